//! The longest match while a text grows.

use super::{Index, Match};

/// The longest end of a growing text that occurs in an index. A token costs one search among a few neighbours where the
/// match goes on, and a few searches of the index where it breaks.
#[derive(Debug, Clone)]
pub struct Cursor {
    /// The newest tokens, as the index holds them.
    recent: Vec<u8>,
    most: usize,
    found: Match,
    spare: Match,
}

impl Cursor {
    /// A cursor that looks for matches of at most `most` tokens.
    pub fn new<B: AsRef<[u8]>>(index: &Index<B>, most: usize) -> Self {
        let most = most.min(index.longest_possible()).max(1);
        let mut cursor = Self { recent: Vec::new(), most, found: Match::default(), spare: Match::default() };
        cursor.reset(index);
        cursor
    }

    /// Forgets the text.
    pub fn reset<B: AsRef<[u8]>>(&mut self, index: &Index<B>) {
        self.recent.clear();
        self.found = index.find(&[]);
    }

    /// Moves on by the tokens of a text. Of a long one only the end is looked at.
    pub fn extend<B: AsRef<[u8]>>(&mut self, index: &Index<B>, tokens: &[u32]) {
        let skipped = tokens.len().saturating_sub(self.most);
        if tokens.len() < 4 {
            return tokens.iter().for_each(|&token| self.advance(index, token));
        }
        // One search of the whole beats one step per token.
        let unknown = tokens[skipped..].iter().rposition(|&token| token as usize >= index.vocab_size());
        let start = unknown.map_or(skipped, |place| skipped + place + 1);
        if start > 0 {
            self.recent.clear();
        }
        self.recent.extend(index.encode(&tokens[start..]).unwrap_or_default());
        self.cut(index);
        let most = self.most.min(self.recent.len() / index.header.width);
        index.longest_into(&self.recent, most, 8usize.div_ceil(index.header.width), &mut self.found);
    }

    /// Moves on by one token.
    pub fn advance<B: AsRef<[u8]>>(&mut self, index: &Index<B>, token: u32) {
        if token as usize >= index.vocab_size() {
            return self.reset(index);
        }
        let width = index.header.width;
        self.recent.extend_from_slice(&token.to_be_bytes()[4 - width..]);
        self.cut(index);
        index.narrow_into(&self.found, token, &mut self.spare);
        let goes_on = self.spare.ranks.iter().any(|ranks| !ranks.is_empty());
        if goes_on && self.found.len < self.most {
            std::mem::swap(&mut self.found, &mut self.spare);
        } else {
            // Nothing longer occurs: a longer match would have been one before this token.
            let most = self.found.len.min(self.recent.len() / width);
            index.longest_into(&self.recent, most, self.found.len, &mut self.spare);
            std::mem::swap(&mut self.found, &mut self.spare);
        }
    }

    fn cut<B: AsRef<[u8]>>(&mut self, index: &Index<B>) {
        let most = self.most * index.header.width;
        // Cut seldom, so that a token costs O(1) on average.
        if self.recent.len() >= 4 * most {
            self.recent.drain(..self.recent.len() - most);
        }
    }

    /// The longest match.
    pub fn longest(&self) -> &Match {
        &self.found
    }

    /// Where the last `len` tokens of the text occur; the longest match if that is shorter.
    pub fn last<B: AsRef<[u8]>>(&self, index: &Index<B>, len: usize) -> Match {
        if len >= self.found.len {
            return self.found.clone();
        }
        let query = &self.recent[self.recent.len() - len * index.header.width..];
        Match { len, ranks: index.shards().map(|shard| shard.find(query)).collect() }
    }
}
