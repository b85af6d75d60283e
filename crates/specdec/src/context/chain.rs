//! The newest earlier occurrences of the end of a text.
//!
//! Occurrences of each n-gram of a fixed small length are chained from newest to oldest; a lookup follows the chain of
//! the text's last n-gram and compares backwards. Appending is one map access; the end itself is never its own match.

use std::collections::HashMap;

/// An earlier place that looks like the end of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earlier {
    /// The position of the token that follows the match.
    pub next: usize,
    /// Tokens that agree.
    pub len: usize,
}

/// A text that grows, and the newest places that look like its end.
#[derive(Debug, Clone)]
pub struct HashChain {
    tokens: Vec<u32>,
    /// The position before, that ends with the same n-gram.
    before: Vec<u32>,
    newest: HashMap<u64, u32, std::hash::BuildHasherDefault<Mixed>>,
    order: usize,
    links: usize,
}

const NONE: u32 = u32::MAX;

/// The keys are mixed already.
#[derive(Debug, Clone, Copy, Default)]
struct Mixed(u64);

impl std::hash::Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// The key of an n-gram.
fn key(ngram: &[u32]) -> u64 {
    let mix = |key: u64, &token: &u32| (key.rotate_left(23) ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let key = ngram.iter().fold(0, mix);
    key ^ key >> 29
}

impl HashChain {
    /// An empty text whose matches have at least `order` tokens (from 1); at most `links` places are looked at.
    pub fn new(order: usize, links: usize) -> Self {
        Self { tokens: Vec::new(), before: Vec::new(), newest: HashMap::default(), order: order.max(1), links }
    }

    /// The text so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets the text.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.before.clear();
        self.newest.clear();
    }

    /// Adds a token.
    pub fn append(&mut self, token: u32) {
        self.tokens.push(token);
        let position = self.tokens.len() - 1;
        let before = match self.tokens.len().checked_sub(self.order) {
            Some(start) => self.newest.insert(key(&self.tokens[start..]), position as u32).unwrap_or(NONE),
            None => NONE,
        };
        self.before.push(before);
    }

    /// The newest earlier places that agree with the end of the text in at least `order` tokens, newest first; each
    /// with the length of its match, at most `most`.
    pub fn earlier(&self, most: usize, out: &mut Vec<Earlier>) {
        out.clear();
        if let Some(&newest) = self.before.last() {
            self.follow(newest, &self.tokens, most, out);
        }
    }

    /// As [`earlier`](Self::earlier), for the end of another text.
    pub fn like(&self, text: &[u32], most: usize, out: &mut Vec<Earlier>) {
        out.clear();
        let newest = text.len().checked_sub(self.order).and_then(|start| self.newest.get(&key(&text[start..])));
        if let Some(&newest) = newest {
            self.follow(newest, text, most, out);
        }
    }

    /// Follows the chain from the place `at`.
    fn follow(&self, mut at: u32, text: &[u32], most: usize, out: &mut Vec<Earlier>) {
        for _ in 0..self.links {
            if at == NONE {
                return;
            }
            let end = at as usize + 1;
            let ends = self.tokens[..end].iter().rev().zip(text.iter().rev());
            let len = ends.take(most).take_while(|(a, b)| a == b).count();
            // Fewer: two n-grams share a hash.
            if len >= self.order {
                out.push(Earlier { next: end, len });
            }
            at = self.before[at as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_earlier_place_is_found(text in prop::collection::vec(0u32..3, 1..80), order in 1usize..4, most in 4usize..10) {
            let mut chain = HashChain::new(order, usize::MAX);
            let mut found = Vec::new();
            for at in 0..text.len() {
                chain.append(text[at]);
                chain.earlier(most, &mut found);
                let length = |end: usize| (0..end.min(most)).take_while(|k| text[end - 1 - k] == text[at - k]).count();
                let brute: Vec<Earlier> = (1..=at).rev().map(|end| Earlier { next: end, len: length(end) }).filter(|e| e.len >= order).collect();
                prop_assert_eq!(&found, &brute);
            }
        }
    }

    proptest! {
        #[test]
        fn places_like_the_end_of_another_text_are_found(
            known in prop::collection::vec(0u32..3, 1..80), text in prop::collection::vec(0u32..4, 0..10),
            order in 1usize..4, most in 4usize..10,
        ) {
            let mut chain = HashChain::new(order, usize::MAX);
            known.iter().for_each(|&token| chain.append(token));
            let mut found = Vec::new();
            chain.like(&text, most, &mut found);
            let length = |end: usize| (0..end.min(most).min(text.len())).take_while(|k| known[end - 1 - k] == text[text.len() - 1 - k]).count();
            let brute: Vec<Earlier> = (1..=known.len()).rev().map(|end| Earlier { next: end, len: length(end) }).filter(|e| e.len >= order).collect();
            prop_assert_eq!(found, brute);
        }
    }

    #[test]
    fn only_the_newest_links_are_followed() {
        let mut chain = HashChain::new(1, 2);
        [7, 7, 7, 7, 7].iter().for_each(|&token| chain.append(token));
        let mut found = Vec::new();
        chain.earlier(3, &mut found);
        assert_eq!(found, [Earlier { next: 4, len: 3 }, Earlier { next: 3, len: 3 }]);
    }
}
