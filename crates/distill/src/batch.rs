//! Which tokens a step sees.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::store::Record;

/// A row of a batch: its tokens predict the next one each.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// One token more than the model reads.
    pub ids: Vec<u32>,
    /// What each prediction counts, one for every token but the first; `None`: all count 1.
    pub weights: Option<Vec<f32>>,
    /// What else is known of the predictions.
    pub known: Known,
}

/// What is known of the predictions of a row besides the text, one entry for every token but the first.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Known {
    /// The text alone.
    #[default]
    Nothing,
    /// A teacher's likeliest tokens, from a [store](crate::store).
    Kept(Vec<Record>),
    /// How the tokens were sampled and what came of it.
    Sampled(Vec<Sampled>),
    /// The row is one of two answers: its score under the reference, one for every row. See [`crate::preferences`].
    Answer(Vec<f64>),
}

/// What policy gradients need to know of a sampled token.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sampled {
    /// Its log-probability under the model that learns, when it was sampled.
    pub log_q: f32,
    /// Importance weight: that probability over the one it was sampled with.
    pub weight: f32,
    /// How much better than others it turned out.
    pub advantage: f32,
}

impl Known {
    /// Whether both may stand in one batch.
    pub(crate) fn same_kind(&self, other: &Known) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// How many predictions it tells of; `None`: it tells nothing.
    pub(crate) fn count(&self) -> Option<usize> {
        match self {
            Known::Nothing | Known::Answer(_) => None,
            Known::Kept(records) => Some(records.len()),
            Known::Sampled(tokens) => Some(tokens.len()),
        }
    }

    /// Adds what is known of further predictions, of the same kind.
    pub(crate) fn extend(&mut self, more: &Known) {
        match (&mut *self, more) {
            (Known::Kept(all), Known::Kept(more)) => all.extend_from_slice(more),
            (Known::Sampled(all), Known::Sampled(more)) => all.extend_from_slice(more),
            (Known::Answer(all), Known::Answer(more)) => all.extend_from_slice(more),
            (_, more) => *self = more.clone(),
        }
    }
}

impl Row {
    /// A row whose predictions all count.
    pub fn plain(ids: Vec<u32>) -> Self {
        Self { ids, weights: None, known: Known::Nothing }
    }
}

/// Gives the rows of every step. What a step sees is a function of its number only, so that a run can be taken up again
/// anywhere.
pub trait Batches: Send + Sync {
    /// The rows of `step`, all of one length.
    fn rows(&self, step: u64) -> Vec<Row>;
}

/// A text of token ids as windows, each seen once per pass in a new order.
///
/// Documents follow each other without a gap; a window may hold the end of one and the beginning of the next. Every
/// pass starts its windows at another offset.
#[derive(Debug, Clone)]
pub struct TokenWindows {
    ids: Arc<[u32]>,
    length: usize,
    seed: u64,
}

impl TokenWindows {
    /// Windows of `length` predictions (`length + 1` ids). `None` if the text is shorter than one.
    pub fn new(ids: impl Into<Arc<[u32]>>, length: usize, seed: u64) -> Option<Self> {
        let ids = ids.into();
        (length > 0 && ids.len() > length).then_some(Self { ids, length, seed })
    }

    /// Windows of one pass; the tokens before the first and after the last are left out of it.
    pub fn per_pass(&self) -> u64 {
        // The offset of a pass moves the windows by up to one length, where the text allows it.
        ((self.ids.len() - 1 - self.slack()) / self.length) as u64
    }

    fn slack(&self) -> usize {
        (self.length - 1).min(self.ids.len() - 1 - self.length)
    }

    /// Window number `n` of an endless sequence of passes.
    pub fn window(&self, n: u64) -> Row {
        let per_pass = self.per_pass();
        let (pass, position) = (n / per_pass, n % per_pass);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(pass);
        let offset = (rng.next_u64() % (self.slack() as u64 + 1)) as usize;
        let start = offset + permuted(position, per_pass, rng.next_u64()) as usize * self.length;
        Row::plain(self.ids[start..=start + self.length].to_vec())
    }
}

/// Position `i` of a permutation of `0..n` that `key` chooses: a Feistel network on the next even number of bits, walked
/// until it lands inside.
pub(crate) fn permuted(i: u64, n: u64, key: u64) -> u64 {
    let half = (64 - (n.max(2) - 1).leading_zeros()).div_ceil(2);
    let mask = (1u64 << half) - 1;
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4u64 {
            // SplitMix64's finaliser as the round function.
            let mut z = (right ^ key.rotate_left(round as u32 * 16))
                .wrapping_add((round + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (left, right) = (right, left ^ ((z ^ (z >> 31)) & mask));
        }
        x = (left << half) | right;
        if x < n {
            return x;
        }
    }
}

/// Windows of a text, so many in a step.
#[derive(Debug, Clone)]
pub struct TextBatches {
    /// The text.
    pub text: TokenWindows,
    /// Rows of a step.
    pub rows: usize,
}

impl Batches for TextBatches {
    fn rows(&self, step: u64) -> Vec<Row> {
        let first = step * self.rows as u64;
        (first..first + self.rows as u64).map(|n| self.text.window(n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_shows_every_window_once_and_the_next_another_order() {
        let windows = TokenWindows::new((0..10_000).collect::<Vec<u32>>(), 16, 3).unwrap();
        let n = windows.per_pass();
        let pass = |p: u64| (0..n).map(|i| windows.window(p * n + i).ids[0]).collect::<Vec<_>>();
        let (first, second) = (pass(0), pass(1));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|w| w[1] - w[0] == 16) && n >= 623, "{n} windows");
        assert_ne!(first, second);
        assert_ne!(sorted, first);
        assert_eq!(windows.window(5).ids.len(), 17);
    }

    #[test]
    fn a_text_of_one_window_and_one_too_short() {
        let one = TokenWindows::new(vec![1, 2, 3], 2, 0).unwrap();
        assert_eq!((one.per_pass(), one.window(7).ids), (1, vec![1, 2, 3]));
        assert!(TokenWindows::new(vec![1, 2], 2, 0).is_none());
    }

    #[test]
    fn permutations_are_permutations() {
        for n in [1, 2, 3, 17, 256, 1000] {
            let mut all: Vec<u64> = (0..n).map(|i| permuted(i, n, 99)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_step_goes_on_where_the_last_one_ended() {
        let text = TokenWindows::new((0..5000).collect::<Vec<u32>>(), 8, 1).unwrap();
        let batches = TextBatches { text: text.clone(), rows: 3 };
        let seen: Vec<Row> = (0..4).flat_map(|step| batches.rows(step)).collect();
        assert_eq!(seen, (0..12).map(|n| text.window(n)).collect::<Vec<_>>());
    }
}
