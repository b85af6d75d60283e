use proptest::prelude::*;

use super::*;

/// The index by its definition: every place is looked at.
struct Brute {
    documents: Vec<Vec<u32>>,
}

impl Brute {
    fn places(&self, ngram: &[u32]) -> Vec<Option<u32>> {
        let mut following = Vec::new();
        for document in &self.documents {
            for start in 0..document.len() {
                if document[start..].starts_with(ngram) {
                    following.push(document.get(start + ngram.len()).copied());
                }
            }
            if ngram.is_empty() {
                following.push(None);
            }
        }
        following
    }

    fn longest(&self, context: &[u32], most: usize) -> usize {
        (1..=context.len().min(most))
            .take_while(|&len| !self.places(&context[context.len() - len..]).is_empty())
            .last()
            .unwrap_or(0)
    }

    fn next(&self, ngram: &[u32]) -> Next {
        let mut next = Next::default();
        for token in self.places(ngram) {
            match token {
                None => next.ends += 1,
                Some(token) => match next.tokens.iter_mut().find(|(found, _)| *found == token) {
                    Some((_, count)) => *count += 1,
                    None => next.tokens.push((token, 1)),
                },
            }
        }
        next.tokens.sort_unstable();
        next
    }
}

fn built(documents: &[Vec<u32>], vocab: usize, options: BuildOptions) -> Index<Vec<u8>> {
    let mut builder = IndexBuilder::new(vocab, [7; 32], options).unwrap();
    documents.iter().for_each(|document| builder.push(document).unwrap());
    Index::read(builder.into_bytes().unwrap()).unwrap()
}

fn one(document: &[u32]) -> Index<Vec<u8>> {
    built(&[document.to_vec()], 10, BuildOptions::default())
}

fn documents() -> impl Strategy<Value = Vec<Vec<u32>>> {
    let document = prop_oneof![
        prop::collection::vec(0u32..2, 1..40),
        prop::collection::vec(0u32..4, 1..90),
        prop::collection::vec(0u32..2, 100..300)
    ];
    prop::collection::vec(document, 1..4)
}

proptest! {
    #[test]
    fn everything_is_as_counted(
        documents in documents(),
        queries in prop::collection::vec(prop::collection::vec(0u32..5, 0..24), 1..12),
        vocab in prop_oneof![Just(4usize), Just(300), Just(70_000)],
        shard_tokens in prop_oneof![Just(None), (20usize..200).prop_map(Some)],
        copied in 0usize..300,
    ) {
        let options = BuildOptions { shard_tokens, threads: 2, overlap: 40 };
        let index = built(&documents, vocab, options);
        let brute = Brute { documents };
        let mut queries = queries;
        // A query that occurs, with a strange token in front.
        let text = brute.documents.concat();
        let start = copied % text.len();
        queries.push([vec![3], text[start..(start + 30).min(text.len())].to_vec()].concat());
        for query in queries {
            prop_assert_eq!(index.count(&query), brute.places(&query).len() as u64, "{:?}", query);
            let found = index.longest(&query);
            prop_assert_eq!(found.len, brute.longest(&query, 40), "{:?}", query);
            let end = &query[query.len() - found.len..];
            prop_assert_eq!(&found, &index.find(end));
            let next = index.next(&found);
            prop_assert_eq!(&next, &brute.next(end));
            prop_assert_eq!(next.count(), found.count());
            for (token, count) in next.tokens {
                prop_assert_eq!(index.narrow(&found, token).count(), count);
                prop_assert_eq!(index.narrow(&found, token), index.find(&[end, &[token]].concat()));
            }
            let most = 1 + copied % 6;
            for continuation in index.continuations(&found, 5, most) {
                let copy = [end, &continuation].concat();
                prop_assert!(index.count(&copy) > 0);
            }
        }
    }

    #[test]
    fn a_cursor_is_where_a_search_would_be(
        documents in documents(), text in prop::collection::vec(0u32..5, 1..120), most in 1usize..20,
        shard_tokens in prop_oneof![Just(None), (20usize..200).prop_map(Some)], jump in 0usize..60,
    ) {
        let index = built(&documents, 4, BuildOptions { shard_tokens, threads: 1, overlap: 40 });
        // Half of the text is copied from the corpus.
        let text = [text, documents[0].clone()].concat();
        let mut cursor = Cursor::new(&index, most);
        cursor.extend(&index, &text[..jump.min(text.len())]);
        for at in jump.min(text.len())..text.len() {
            cursor.advance(&index, text[at]);
            let context = &text[..=at];
            let expected = index.longest(&context[context.len().saturating_sub(most)..]);
            prop_assert_eq!(cursor.longest(), &expected);
            for len in 0..=expected.len {
                prop_assert_eq!(cursor.last(&index, len), index.find(&context[context.len() - len..]));
            }
        }
    }

    #[test]
    fn altered_bytes_are_refused_or_harmless(at in 0usize..100_000, flip in 1u8..=255, cut in 0usize..20_000) {
        let document: Vec<u32> = (0..400).map(|i| i * i % 7).collect();
        let mut builder = IndexBuilder::new(10, [7; 32], BuildOptions { shard_tokens: Some(150), ..BuildOptions::default() }).unwrap();
        builder.push(&document).unwrap();
        let good = builder.into_bytes().unwrap();
        let used: Vec<_> = Header::read(&good).unwrap().shards.iter().flat_map(|s| s.sections().map(|(_, s)| s.bytes.clone())).collect();
        let mut bytes = good.clone();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let seen = at < Header::bytes(3) || used.iter().any(|range| range.contains(&at));
        prop_assert_eq!(Index::read(&bytes[..]).is_err(), seen, "byte {}", at);
        if let Ok(index) = Index::read_with(&bytes[..], Check::HeaderOnly) {
            for query in [&document[..5], &document[100..140], &[6, 6, 6]] {
                let found = index.longest(query);
                index.next(&found);
                index.continuations(&found, 10, 10);
            }
        }
        prop_assert!(Index::read(&good[..cut.min(good.len() - 1)]).is_err());
        prop_assert!(Index::read([&good[..], &[0]].concat()).is_err());
    }
}

#[test]
fn the_worked_example() {
    let index = one(&[5, 1, 2, 3, 1, 2, 4, 1, 2, 3, 5]);
    // The separator follows the text, so that its suffix is last and the others keep their places.
    assert_eq!(index.find(&[1, 2]).ranks, vec![0..3]);
    assert_eq!(index.find(&[1, 2, 3]).ranks, vec![0..2]);
    assert_eq!(index.count(&[9]), 0);
    let next = index.next(&index.find(&[1, 2]));
    assert_eq!(next.tokens, [(3, 2), (4, 1)]);
    assert_eq!(next.shares().map(|(_, share)| share).collect::<Vec<_>>(), [2.0 / 3.0, 1.0 / 3.0]);
    let found = index.longest(&[7, 4, 1, 2]);
    assert_eq!((found.len, found.ranks.first().cloned()), (3, Some(8..9)));
    assert_eq!(index.next(&found).tokens, [(3, 1)]);
    assert_eq!(index.continuations(&found, 9, 9), [[3, 5]]);
}

#[test]
fn the_format_is_pinned() {
    let mut builder =
        IndexBuilder::new(300, [9; 32], BuildOptions { shard_tokens: None, threads: 1, overlap: 8 }).unwrap();
    builder.push(&[258, 1, 2]).unwrap();
    let bytes = builder.into_bytes().unwrap();
    assert_eq!(&bytes[..12], b"kdlngram\x01\0\0\0");
    assert_eq!(bytes[12..16], 2u32.to_le_bytes());
    assert_eq!(bytes[16..20], 300u32.to_le_bytes());
    assert_eq!(bytes[4096..4104], [1, 2, 0, 1, 0, 2, 255, 255]);
    let order = [1u32, 2, 0, 3].map(u32::to_le_bytes).concat();
    assert_eq!(bytes[8192..8208], order);
    assert_eq!(bytes[12288..], [0, 1, 0, 2, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_file_is_written_whole_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("corpus.index");
    let mut builder = IndexBuilder::new(255, [1; 32], BuildOptions::default()).unwrap();
    builder.push_bytes(b"the cat sat on the mat").unwrap();
    builder.write(&path).unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    let index = Index::open(&path).unwrap();
    assert_eq!((index.count(&b"the ".map(u32::from)), index.documents(), index.tokens()), (2, 1, 23));
    let error = index.check_tokenizer(&[2; 32], 255).unwrap_err().to_string();
    assert!(error.starts_with("the index was built with another tokenizer (hash 0101"), "{error}");
    assert!(matches!(index.check_tokenizer(&[1; 32], 200), Err(IndexError::Vocabulary { expected: 200, found: 255 })));
    assert!(index.check_tokenizer(&[1; 32], 300).is_ok());
    let missing = Index::open(dir.path().join("none")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read `"), "{missing}");
}

#[test]
fn mistakes_are_named() {
    let empty = IndexBuilder::new(10, [0; 32], BuildOptions::default()).unwrap();
    assert_eq!(empty.into_bytes().unwrap_err().to_string(), "the text has no tokens: nothing to index");
    let mut builder = IndexBuilder::new(10, [0; 32], BuildOptions::default()).unwrap();
    let error = builder.push(&[3, 10]).unwrap_err().to_string();
    assert_eq!(error, "token 10 at place 1 of document 0 is outside the vocabulary of 10 tokens");
    assert!(IndexBuilder::new(10, [0; 32], BuildOptions { threads: 0, ..BuildOptions::default() }).is_err());
    assert!(Index::read(&b"kdl"[..]).unwrap_err().to_string().contains("3 bytes are too few"));
    assert!(Index::read(&[0u8; 200][..]).unwrap_err().to_string().contains("it begins with"));
}

#[test]
fn long_repeats_are_no_trouble() {
    let index = one(&[1, 2, 3].repeat(20_000));
    let found = index.longest(&[1, 2, 3].repeat(100));
    assert_eq!((found.len, found.count()), (300, 19_901));
    assert_eq!(index.next(&found).tokens, [(1, 19_900)]);
}
