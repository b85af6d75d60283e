//! Searches in one shard. Everything is a comparison of bytes: the text holds its tokens big-endian.

use std::ops::Range;

use super::format::{KEY, STRIDE};

/// The ranks of suffixes that begin alike.
pub type Ranks = Range<usize>;

/// One shard, as its bytes lie in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shard<'a> {
    pub(super) text: &'a [u8],
    /// Start of each suffix in order, u32 little-endian.
    pub(super) order: &'a [u8],
    /// The first 16 bytes of every 32nd suffix in order, zeros past the end: small enough to stay in the caches.
    pub(super) top: &'a [u8],
    pub(super) suffixes: usize,
    pub(super) width: usize,
}

impl<'a> Shard<'a> {
    pub(super) fn len(&self) -> usize {
        self.suffixes
    }

    /// The suffix of a rank, as bytes. A rank or start that does not exist gives no bytes.
    fn suffix(&self, rank: usize) -> &'a [u8] {
        let start = self
            .order
            .get(4 * rank..4 * rank + 4)
            .map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize);
        self.text.get(start.saturating_mul(self.width)..).unwrap_or(&[])
    }

    /// The suffix of a rank, at most `len` bytes of it.
    fn start_of(&self, rank: usize, len: usize) -> &'a [u8] {
        let suffix = self.suffix(rank);
        &suffix[..suffix.len().min(len)]
    }

    /// The token at `depth` of the suffix of a rank; `None` past the end of the text.
    pub(super) fn token(&self, rank: usize, depth: usize) -> Option<u32> {
        token(self.suffix(rank), depth, self.width)
    }

    /// Where in the text the suffix of a rank begins, in tokens.
    pub(super) fn position(&self, rank: usize) -> usize {
        (self.text.len() - self.suffix(rank).len()) / self.width
    }

    /// The bytes of up to `tokens` tokens that follow the first `depth` of the suffix of a rank.
    pub(super) fn following(&self, rank: usize, depth: usize, tokens: usize) -> &'a [u8] {
        let suffix = self.suffix(rank);
        let from = (depth * self.width).min(suffix.len());
        &suffix[from..suffix.len().min(from + tokens * self.width)]
    }

    fn key(&self, block: usize) -> u128 {
        let bytes = &self.top[KEY * block..KEY * (block + 1)];
        u128::from_be_bytes(bytes.try_into().expect("sixteen bytes"))
    }

    /// How many keys are below `bound`.
    fn keys_below(&self, bound: u128) -> usize {
        partition(0..self.top.len() / KEY, |block| self.key(block) < bound)
    }

    /// The first rank whose suffix is not below `query`.
    fn lower(&self, query: &[u8]) -> usize {
        let (least, most) = bounds(query);
        let first = self.keys_below(least);
        // A key inside the bounds tells that its suffix is not below the query only if the query is that short.
        let end = if query.len() <= KEY {
            first
        } else {
            gallop(first..self.top.len() / KEY, |block| self.key(block) <= most)
        };
        let ranks = self.block_end(first.wrapping_sub(1), true)..self.block_end(end, false);
        // Sixteen bytes decide most comparisons without a call.
        partition(ranks, |rank| match self.suffix(rank).first_chunk::<KEY>() {
            Some(key) if query.len() <= KEY || u128::from_be_bytes(*key) != least => u128::from_be_bytes(*key) < least,
            _ => self.start_of(rank, query.len()) < query,
        })
    }

    fn begins(&self, rank: usize, query: &[u8], (least, most): (u128, u128)) -> bool {
        let suffix = self.suffix(rank);
        match suffix.first_chunk::<KEY>() {
            Some(key) if query.len() <= KEY => (least..=most).contains(&u128::from_be_bytes(*key)),
            _ => suffix.starts_with(query),
        }
    }

    /// The rank of a block's key: ranks before the answer, or the end of the ranks that may hold it.
    fn block_end(&self, block: usize, below: bool) -> usize {
        match (block, below) {
            (usize::MAX, true) => 0,
            (block, true) => block * STRIDE + 1,
            (block, false) => block.saturating_mul(STRIDE).min(self.suffixes),
        }
    }

    /// The first rank from `lower` on whose suffix does not begin with `query`, if all that do begin at `lower`.
    fn upper(&self, lower: usize, query: &[u8]) -> usize {
        let bounds = bounds(query);
        gallop(lower..self.suffixes, |rank| self.begins(rank, query, bounds))
    }

    /// The ranks of the suffixes that begin with `query`; empty if none does.
    pub(super) fn find(&self, query: &[u8]) -> Ranks {
        let lower = self.lower(query);
        some(lower..self.upper(lower, query))
    }

    /// The first rank whose suffix begins with `query`.
    pub(super) fn first(&self, query: &[u8]) -> Option<usize> {
        Some(self.lower(query)).filter(|&rank| self.suffix(rank).starts_with(query))
    }

    /// The ranks that begin with `query`, the first of which is known.
    pub(super) fn all_from(&self, first: usize, query: &[u8]) -> Ranks {
        first..self.upper(first, query)
    }

    /// The ranks among `ranks`, which agree in their first `depth` tokens, whose next token is `token`.
    pub(super) fn narrow(&self, ranks: Ranks, depth: usize, token: u32) -> Ranks {
        let lower = partition(ranks.clone(), |rank| self.token(rank, depth).is_none_or(|found| found < token));
        some(lower..gallop(lower..ranks.end, |rank| self.token(rank, depth) == Some(token)))
    }

    /// The end of the run of equal next tokens that begins at the start of `ranks`.
    pub(super) fn run_end(&self, ranks: Ranks, depth: usize) -> usize {
        let token = self.token(ranks.start, depth);
        gallop(ranks, |rank| self.token(rank, depth) == token)
    }
}

/// A token of a text, by its place in tokens of `width` bytes.
pub(super) fn token(text: &[u8], place: usize, width: usize) -> Option<u32> {
    let at = place * width;
    match width {
        1 => text.get(at).map(|&byte| u32::from(byte)),
        2 => text.get(at..at + 2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))),
        _ => text.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])),
    }
}

/// No ranks are written `0..0`.
fn some(ranks: Ranks) -> Ranks {
    if ranks.is_empty() { 0..0 } else { ranks }
}

/// The least and the greatest key that begin like `query`.
fn bounds(query: &[u8]) -> (u128, u128) {
    let len = query.len().min(KEY);
    let mut key = [0; KEY];
    key[..len].copy_from_slice(&query[..len]);
    let least = u128::from_be_bytes(key);
    let rest = if len == KEY { 0 } else { u128::MAX >> (8 * len) };
    (least, least | rest)
}

/// Probes made together: none depends on another, so the processor waits for the memory of all at once.
const WAYS: usize = 8;

/// The first place in `range` where `before` no longer holds.
fn partition(range: Range<usize>, before: impl Fn(usize) -> bool) -> usize {
    let (mut base, mut len) = (range.start, range.len());
    while len >= WAYS {
        let step = len / WAYS;
        let passed: usize = (1..WAYS).map(|way| usize::from(before(base + way * step))).sum();
        let end = if passed < WAYS - 1 { base + (passed + 1) * step } else { base + len };
        if passed > 0 {
            base += passed * step + 1;
        }
        len = end - base;
    }
    base + (base..base + len).map(|at| usize::from(before(at))).sum::<usize>()
}

/// As [`partition`], for an answer that is probably near the start.
fn gallop(range: Range<usize>, holds: impl Fn(usize) -> bool) -> usize {
    /// Probes made together.
    const WAYS: usize = 4;
    let (mut from, mut step) = (range.start, 1);
    loop {
        let probe = |way: usize| range.start + (step << way) - 1;
        let passed: usize = (0..WAYS).map(|way| usize::from(probe(way) < range.end && holds(probe(way)))).sum();
        if passed > 0 {
            from = probe(passed - 1) + 1;
        }
        if passed < WAYS {
            return partition(from..range.end.min(probe(passed)), holds);
        }
        step <<= WAYS;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_search_ends_where_a_scan_does(start in 0usize..50, len in 0usize..3000, answer in 0usize..3000) {
            let (range, answer) = (start..start + len, start + answer.min(len));
            let before = |at: usize| { assert!(range.contains(&at)); at < answer };
            prop_assert_eq!(partition(range.clone(), before), answer);
            prop_assert_eq!(gallop(range.clone(), before), answer);
        }
    }
}
