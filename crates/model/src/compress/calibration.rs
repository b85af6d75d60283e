//! Token windows to calibrate and evaluate on.

use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{ModelError, Result};
use kindling_core::Cx;

/// Rows of token ids, all of one length, with where they came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenWindows {
    /// Where the tokens came from, as the report should name it.
    pub source: String,
    /// SHA-256 of the ids.
    pub sha256: String,
    /// The rows.
    pub rows: Vec<Vec<u32>>,
    /// Tokens of the whole text.
    pub text_tokens: usize,
}

impl TokenWindows {
    /// From rows of equal length.
    pub fn from_rows(source: impl Into<String>, rows: Vec<Vec<u32>>) -> Result<Self> {
        let length = rows.first().map_or(0, Vec::len);
        if length < 2 || rows.iter().any(|row| row.len() != length) {
            return Err(ModelError::Input("calibration ids: expected rows of one length of at least 2 tokens".into()));
        }
        let text_tokens = rows.len() * length;
        Ok(Self { source: source.into(), sha256: hash(&rows), rows, text_tokens })
    }

    /// The consecutive windows of a text, at most `limit` of them.
    pub fn consecutive(source: impl Into<String>, ids: &[u32], window: usize, limit: usize) -> Result<Self> {
        let mut rows = crate::evaluate::windows(ids, window)?;
        rows.truncate(limit.max(1));
        Ok(Self { source: source.into(), sha256: hash(&rows), rows, text_tokens: ids.len() })
    }

    /// `count` of the consecutive windows of a text, drawn by the seed of `cx` and kept in the order of the text. A
    /// text with fewer windows gives all it has.
    pub fn sampled(source: impl Into<String>, ids: &[u32], window: usize, count: usize, cx: &Cx) -> Result<Self> {
        let all = crate::evaluate::windows(ids, window)?;
        let mut order: Vec<usize> = (0..all.len()).collect();
        let mut rng = cx.rng("calibration windows");
        for i in (1..order.len()).rev() {
            // The multiply-shift map to 0..=i: its bias is below 2^-32 for any real number of windows.
            let j = ((u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64) as usize;
            order.swap(i, j);
        }
        order.truncate(count.max(1));
        order.sort_unstable();
        let rows: Vec<Vec<u32>> = order.into_iter().map(|i| all[i].clone()).collect();
        Ok(Self { source: source.into(), sha256: hash(&rows), rows, text_tokens: ids.len() })
    }

    /// Tokens per row.
    pub fn window(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.rows.len() * self.window()
    }
}

fn hash(rows: &[Vec<u32>]) -> String {
    let mut hasher = Sha256::new();
    for row in rows {
        hasher.update((row.len() as u64).to_le_bytes());
        row.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the statistics come from, and what is measured on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationSet {
    /// Rows for the statistics.
    pub calibration: TokenWindows,
    /// Rows for perplexity and divergence, before and after; `None`: measure nothing.
    pub evaluation: Option<TokenWindows>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_is_seeded_ordered_and_without_repeats() {
        let ids: Vec<u32> = (0..1000).collect();
        let draw = |seed| TokenWindows::sampled("t", &ids, 10, 20, &Cx::new(seed)).unwrap();
        let (a, b) = (draw(1), draw(2));
        assert_eq!(a, draw(1));
        assert_ne!(a.rows, b.rows);
        assert_eq!(a.rows.len(), 20);
        assert!(a.rows.windows(2).all(|pair| pair[0][0] < pair[1][0]));
        assert_eq!(draw(1).sha256.len(), 64);
        let all = TokenWindows::sampled("t", &ids, 10, 1000, &Cx::new(1)).unwrap();
        assert_eq!(all.rows.len(), 100);
        assert!(TokenWindows::sampled("t", &ids[..5], 10, 1, &Cx::new(1)).is_err());
    }
}
