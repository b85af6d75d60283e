//! A corpus whose every n-gram, of any length, can be looked up: how often it occurs, and what followed.
//!
//! All suffixes of the text in order: the places where an n-gram occurs are neighbours there, found by binary search,
//! and so are the tokens that follow. The longest end of a context that occurs anywhere says what may come next.
//!
//! | part | what it does |
//! | --- | --- |
//! | [`IndexBuilder`] | documents in, one file out, in shards |
//! | [`Index`] | opens the file (read or mapped), refuses altered ones; counts, longest match, next tokens |
//! | [`Cursor`] | keeps the longest match while a text grows, token by token |
//! | [`suffix_array`] | the reference sorter |
//!
//! Source: "Infini-gram: Scaling Unbounded n-gram Language Models to a Trillion Tokens", arXiv 2401.17377. Beyond it, the
//! beginning of every 32nd suffix is kept apart, small enough for the caches, so that a search touches the text
//! about five times.

mod build;
mod cursor;
mod error;
mod format;
mod sais;
mod search;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

pub use build::{BuildOptions, IndexBuilder};
pub use cursor::Cursor;
pub use error::IndexError;
use format::{Header, checksum, hex, separator};
pub use sais::{Symbol, suffix_array};
pub use search::Ranks;
use search::{Shard, token};

/// Whether the checksums of the sections are compared with their bytes when an index is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// All bytes are read once.
    #[default]
    Everything,
    /// Only the header. Searches in altered sections give wrong counts, and never panic.
    HeaderOnly,
}

/// An index, over whatever holds its bytes: a vector, a mapped file.
pub struct Index<B> {
    bytes: B,
    header: Header,
}

impl<B> fmt::Debug for Index<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("tokens", &self.header.tokens)
            .field("vocab", &self.header.vocab)
            .finish_non_exhaustive()
    }
}

/// The longest end of a context that occurs in an index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Its tokens.
    pub len: usize,
    /// Where it occurs, by shard.
    pub ranks: Vec<Ranks>,
}

impl Match {
    /// How often it occurs.
    pub fn count(&self) -> u64 {
        self.ranks.iter().map(|ranks| ranks.len() as u64).sum()
    }
}

/// Where an n-gram occurs: the token after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    shard: u32,
    /// In tokens of the shard.
    next: u32,
}

/// What follows an n-gram.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Next {
    /// Tokens and how often each follows, by token.
    pub tokens: Vec<(u32, u64)>,
    /// How often a document ends there.
    pub ends: u64,
}

impl Next {
    /// How often the n-gram occurs.
    pub fn count(&self) -> u64 {
        self.ends + self.tokens.iter().map(|(_, count)| count).sum::<u64>()
    }

    /// Tokens with the share of the occurrences that they follow; the shares and that of `ends` sum to 1.
    pub fn shares(&self) -> impl Iterator<Item = (u32, f64)> + '_ {
        let total = self.count().max(1) as f64;
        self.tokens.iter().map(move |&(token, count)| (token, count as f64 / total))
    }
}

impl Index<Vec<u8>> {
    /// Reads a whole file into memory. To share it between processes, map it and use [`Index::read`].
    ///
    /// # Errors
    /// [`IndexError`] if the file cannot be read or is not what was written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IndexError> {
        let path = path.as_ref();
        Self::read(std::fs::read(path).map_err(|source| IndexError::io("read", path, source))?)
    }
}

impl<B: AsRef<[u8]>> Index<B> {
    /// The index in `bytes`, all checksums compared.
    ///
    /// # Errors
    /// [`IndexError`] if the bytes are not those of a complete, unaltered index.
    pub fn read(bytes: B) -> Result<Self, IndexError> {
        Self::read_with(bytes, Check::Everything)
    }

    /// The index in `bytes`.
    ///
    /// # Errors
    /// As [`read`](Self::read), as far as checked.
    pub fn read_with(bytes: B, check: Check) -> Result<Self, IndexError> {
        let header = Header::read(bytes.as_ref())?;
        if check == Check::Everything {
            for (i, shard) in header.shards.iter().enumerate() {
                for (name, section) in shard.sections() {
                    if checksum(&bytes.as_ref()[section.bytes.clone()]) != section.checksum {
                        return Err(IndexError::Checksum { section: format!("{name} of shard {}", i + 1) });
                    }
                }
            }
        }
        Ok(Self { bytes, header })
    }

    /// Refuses a model whose tokens are others than those of this index.
    ///
    /// `vocab` is the number of tokens that the model's tokenizer has; a model may have more logits than that.
    ///
    /// # Errors
    /// [`IndexError::Tokenizer`], [`IndexError::Vocabulary`].
    pub fn check_tokenizer(&self, tokenizer: &[u8; 32], vocab: usize) -> Result<(), IndexError> {
        if *tokenizer != self.header.tokenizer {
            return Err(IndexError::Tokenizer { expected: hex(tokenizer), found: hex(&self.header.tokenizer) });
        }
        if vocab < self.header.vocab {
            return Err(IndexError::Vocabulary { expected: vocab, found: self.header.vocab });
        }
        Ok(())
    }

    /// Tokens in the index, one separator per document included.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Documents in the index.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// Every token is below this.
    pub fn vocab_size(&self) -> usize {
        self.header.vocab
    }

    /// How many parts are searched one by one.
    pub fn shard_count(&self) -> usize {
        self.header.shards.len()
    }

    /// The name of the tokenizer.
    pub fn tokenizer(&self) -> &[u8; 32] {
        &self.header.tokenizer
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> usize {
        self.bytes.as_ref().len()
    }

    /// No longer match is looked for: shards repeat so many tokens of each other.
    pub fn longest_possible(&self) -> usize {
        if self.header.shards.len() == 1 { usize::MAX } else { self.header.overlap }
    }

    fn shard(&self, i: usize) -> Shard<'_> {
        let (bytes, parts) = (self.bytes.as_ref(), &self.header.shards[i]);
        Shard {
            text: &bytes[parts.text.bytes.clone()],
            order: &bytes[parts.order.bytes.clone()],
            top: &bytes[parts.top.bytes.clone()],
            suffixes: parts.suffixes,
            width: self.header.width,
        }
    }

    fn shards(&self) -> impl Iterator<Item = Shard<'_>> {
        (0..self.shard_count()).map(|i| self.shard(i))
    }

    /// Bytes of tokens as the text holds them; `None` if one of them is no token of the index.
    fn encode(&self, tokens: &[u32]) -> Option<Vec<u8>> {
        let width = self.header.width;
        let mut out = Vec::with_capacity(tokens.len() * width);
        for &token in tokens {
            if token as usize >= self.header.vocab {
                return None;
            }
            out.extend_from_slice(&token.to_be_bytes()[4 - width..]);
        }
        Some(out)
    }

    /// Where `ngram` occurs. The empty one occurs before every token.
    pub fn find(&self, ngram: &[u32]) -> Match {
        let ranks = match self.encode(ngram) {
            Some(query) if ngram.len() <= self.longest_possible() => {
                self.shards().map(|shard| shard.find(&query)).collect()
            }
            _ => vec![0..0; self.shard_count()],
        };
        Match { len: ngram.len(), ranks }
    }

    /// How often `ngram` occurs.
    pub fn count(&self, ngram: &[u32]) -> u64 {
        self.find(ngram).count()
    }

    /// The longest end of `context` that occurs; if nothing does, the empty one, which occurs everywhere.
    pub fn longest(&self, context: &[u32]) -> Match {
        // Nothing matches across a token that the index does not know.
        let start = context.iter().rposition(|&token| token as usize >= self.header.vocab).map_or(0, |place| place + 1);
        let context = &context[start..];
        let context = &context[context.len().saturating_sub(self.longest_possible())..];
        let query = self.encode(context).unwrap_or_default();
        let mut found = Match::default();
        self.longest_into(&query, context.len(), 8usize.div_ceil(self.header.width), &mut found);
        found
    }

    /// The longest end of `query`, at most `most` tokens, that occurs; `guess` tokens are tried first.
    ///
    /// Whether an end occurs depends monotonically on its length, over all shards together: not in each one, since a
    /// shard holds the beginnings of its own stretch only.
    fn longest_into(&self, query: &[u8], most: usize, guess: usize, found: &mut Match) {
        let width = self.header.width;
        let end = |len: usize| &query[query.len() - len * width..];
        let (mut known, mut failed) = (0, most + 1);
        let mut at = guess.clamp(1, most.max(1));
        let (mut up, mut down) = (1, 1);
        // Where the longest known end first occurs: shard and rank.
        let mut first = None;
        while known + 1 < failed {
            let query = end(at);
            let hit = self.shards().enumerate().find_map(|(i, shard)| Some((i, shard.first(query)?)));
            if hit.is_some() {
                (known, first) = (at, hit);
                at += up;
                up *= 2;
            } else {
                failed = at;
                at = at.saturating_sub(down);
                down *= 2;
            }
            if at <= known || at >= failed {
                at = known + (failed - known) / 2;
            }
        }
        found.len = known;
        found.ranks.clear();
        let query = end(known);
        found.ranks.extend(self.shards().enumerate().map(|(i, shard)| match first {
            Some((at, _)) if i < at => 0..0,
            Some((at, rank)) if i == at => shard.all_from(rank, query),
            _ => shard.find(query),
        }));
    }

    /// What follows the n-gram that occurs at a match.
    pub fn next(&self, found: &Match) -> Next {
        let mut next = Next::default();
        self.next_into(found, &mut next);
        next
    }

    /// [`next`](Self::next) without a new allocation.
    pub fn next_into(&self, found: &Match, next: &mut Next) {
        next.tokens.clear();
        next.ends = 0;
        for (shard, ranks) in self.shards().zip(&found.ranks) {
            let before = next.tokens.len();
            let mut at = ranks.start;
            while at < ranks.end {
                let end = shard.run_end(at..ranks.end, found.len).max(at + 1);
                let count = (end - at) as u64;
                match shard.token(at, found.len).filter(|&token| token != separator(shard.width)) {
                    Some(token) => next.tokens.push((token, count)),
                    None => next.ends += count,
                }
                at = end;
            }
            if before > 0 && next.tokens.len() > before {
                next.tokens.sort_unstable_by_key(|(token, _)| *token);
                next.tokens.dedup_by(|later, kept| {
                    let same = later.0 == kept.0;
                    kept.1 += if same { later.1 } else { 0 };
                    same
                });
            }
        }
    }

    /// The occurrences that are followed by `token`.
    pub fn narrow(&self, found: &Match, token: u32) -> Match {
        let mut narrowed = Match::default();
        self.narrow_into(found, token, &mut narrowed);
        narrowed
    }

    fn narrow_into(&self, found: &Match, token: u32, narrowed: &mut Match) {
        narrowed.len = found.len + 1;
        narrowed.ranks.clear();
        let ranks = self.shards().zip(&found.ranks);
        narrowed.ranks.extend(ranks.map(|(shard, ranks)| shard.narrow(ranks.clone(), found.len, token)));
    }

    /// At most `most` places of a match, evenly spaced in the order of what follows.
    pub fn places(&self, found: &Match, most: usize, out: &mut Vec<Place>) {
        out.clear();
        let total = found.count();
        let taken = total.min(most as u64);
        // The middle of each of as many equal stretches.
        let middle = |i: u64| ((u128::from(total) * (2 * u128::from(i) + 1)) / (2 * u128::from(taken))) as usize;
        let mut wanted = (0..taken).map(middle).peekable();
        let mut before = 0;
        for ((i, shard), inside) in self.shards().enumerate().zip(&found.ranks) {
            while let Some(at) = wanted.next_if(|&at| at < before + inside.len()) {
                let next = shard.position(inside.start + at - before) + found.len;
                out.push(Place { shard: i as u32, next: next as u32 });
            }
            before += inside.len();
        }
    }

    /// The token `ahead` tokens after the first that follows a place; `None` at the end of its document, beyond which
    /// nothing belongs to it.
    pub fn token(&self, place: Place, ahead: usize) -> Option<u32> {
        let parts = self.header.shards.get(place.shard as usize)?;
        let text = self.bytes.as_ref().get(parts.text.bytes.clone())?;
        token(text, place.next as usize + ahead, self.header.width)
            .filter(|&token| token != separator(self.header.width))
    }

    /// The tokens after each of at most `most` occurrences, up to `len` and not past the end of the document.
    pub fn continuations(&self, found: &Match, most: usize, len: usize) -> Vec<Vec<u32>> {
        let end = separator(self.header.width);
        let places =
            self.shards().zip(&found.ranks).flat_map(|(shard, ranks)| ranks.clone().map(move |rank| (shard, rank)));
        places
            .take(most)
            .map(|(shard, rank)| {
                let bytes = shard.following(rank, found.len, len);
                let tokens = bytes
                    .chunks_exact(shard.width)
                    .map(|b| b.iter().fold(0, |token, &byte| token << 8 | u32::from(byte)));
                tokens.take_while(|&token| token != end).collect()
            })
            .collect()
    }

    /// Where in its shard a rank's suffix begins, in tokens.
    pub fn position(&self, shard: usize, rank: usize) -> Option<usize> {
        (shard < self.shard_count() && rank < self.shard(shard).len()).then(|| self.shard(shard).position(rank))
    }
}
