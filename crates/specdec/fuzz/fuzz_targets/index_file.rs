//! Any bytes as an index: an error, or answers within bounds. The checksum of the header is put right, so that what lies
//! behind it is reached; those of the sections are not looked at.
#![no_main]

use kindling_specdec::index::{Check, Cursor, Index};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|input: (&[u8], Vec<u32>)| {
    let (bytes, query) = input;
    let mut bytes = bytes.to_vec();
    // The header of one shard takes a page.
    if let Some(header) = bytes.get_mut(..4096) {
        header[96..128].fill(0);
        let digest = Sha256::digest(&*header);
        header[96..128].copy_from_slice(&digest);
    }
    let Ok(index) = Index::read_with(&bytes[..], Check::HeaderOnly) else { return };
    let found = index.longest(&query);
    assert!(found.len <= query.len());
    index.next(&found);
    index.majority(&found);
    index.continuations(&found, 100, 10);
    let mut cursor = Cursor::new(&index, 8);
    query.iter().for_each(|&token| cursor.advance(&index, token));
    assert!(cursor.longest().len <= 8);
});
