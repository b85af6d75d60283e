//! An altered index: an error, or answers within bounds. The checksum of the header is put right, so that what lies behind
//! it is reached; those of the sections are not looked at.
#![no_main]

use std::sync::LazyLock;

use kindling_specdec::index::{BuildOptions, Check, Cursor, Index, IndexBuilder};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

/// Good files with one, two and four bytes a token, in three shards.
static GOOD: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    [10, 300, 70_000].map(|vocab| {
        let options = BuildOptions { shard_tokens: Some(150), threads: 1, overlap: 20 };
        let mut builder = IndexBuilder::new(vocab, [7; 32], options).expect("good options");
        for document in 1..4 {
            let tokens: Vec<u32> = (0..130).map(|i| i * i * document % 7).collect();
            builder.push(&tokens).expect("tokens of the vocabulary");
        }
        builder.into_bytes().expect("there is text")
    })
});

fuzz_target!(|input: (u8, Vec<(u16, u8)>, Option<u16>, Vec<u8>)| {
    let (which, edits, cut, query) = input;
    let mut bytes = GOOD[usize::from(which) % 3].clone();
    for (at, byte) in edits {
        // Half of the edits are of the header, where each byte means something.
        let at = if at % 2 == 0 { usize::from(at / 2) % 640 } else { usize::from(at) };
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.into());
    }
    // The header of three shards takes a page.
    if let Some(header) = bytes.get_mut(..4096) {
        header[96..128].fill(0);
        let digest = Sha256::digest(&*header);
        header[96..128].copy_from_slice(&digest);
    }
    let _ = Index::read(&bytes[..]);
    let Ok(index) = Index::read_with(&bytes[..], Check::HeaderOnly) else { return };
    let query: Vec<u32> = query.into_iter().map(u32::from).collect();
    let found = index.longest(&query);
    assert!(found.len <= query.len());
    index.next(&found);
    index.continuations(&found, 100, 10);
    let mut places = Vec::new();
    index.places(&found, 16, &mut places);
    assert!(places.len() <= 16);
    for place in places {
        assert!((0..20).filter_map(|ahead| index.token(place, ahead)).count() <= 20);
    }
    let mut cursor = Cursor::new(&index, 8);
    query.iter().for_each(|&token| cursor.advance(&index, token));
    assert!(cursor.longest().len <= 8);
});
