//! The n-gram proposer of vLLM: one linear scan finds the longest n-gram at the end that stood earlier, and copies on.
//!
//! Source: the `ngram_proposer` of vLLM. The text is read backwards; its prefix function, kept below `max_ngram`, tells at
//! every place how much of the end stands there. `O(T)` a round.

use kindling_core::DrafterEntry;
use serde::{Deserialize, Serialize};

use super::copying::{Copies, Copying};

/// The list entry.
pub const ENTRY: DrafterEntry = DrafterEntry {
    name: "ngram",
    summary: "Copies what followed the longest n-gram that ends the text, at its first place.",
    paper: "n-gram proposer of vLLM",
    trees: false,
};

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NgramConfig {
    /// Shorter matches are ignored.
    pub min_ngram: usize,
    /// Longer matches count as this long.
    pub max_ngram: usize,
    /// Tokens to copy, at most.
    pub length: usize,
}

impl Default for NgramConfig {
    fn default() -> Self {
        Self { min_ngram: 2, max_ngram: 5, length: 8 }
    }
}

/// What followed the longest n-gram at the end of `text`, at its first place; up to `length` tokens.
///
/// ```
/// use kindling_specdec::drafters::ngram::{NgramConfig, ngram};
///
/// let config = NgramConfig { min_ngram: 2, max_ngram: 3, length: 4 };
/// assert_eq!(ngram(&[1, 2, 3, 4, 2, 3], &config), [4, 2, 3]);
/// ```
pub fn ngram<'a>(text: &'a [u32], config: &NgramConfig) -> &'a [u32] {
    let back = |i: usize| text[text.len() - 1 - i];
    // How much of the end of the text stands where the scan is; the memory of the first `max_ngram` places is enough.
    let mut borders = vec![0; config.max_ngram.min(text.len())];
    let (mut border, mut best, mut best_at) = (0, 0, 0);
    for i in 1..text.len() {
        if border == config.max_ngram {
            border = borders[border - 1];
        }
        while border > 0 && back(border) != back(i) {
            border = borders[border - 1];
        }
        border += usize::from(config.max_ngram > 0 && back(border) == back(i));
        if let Some(kept) = borders.get_mut(i) {
            *kept = border;
        }
        // Later in the scan is earlier in the text.
        if border >= best {
            (best, best_at) = (border, i);
        }
    }
    if best < config.min_ngram.max(1) {
        return &[];
    }
    let from = text.len() - 1 - best_at + best;
    &text[from..text.len().min(from + config.length)]
}

/// The drafter.
pub type Ngram = Copying<NgramConfig>;

impl Copies for NgramConfig {
    fn continuation<'a>(&self, text: &'a [u32]) -> &'a [u32] {
        ngram(text, self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every length from the longest on, every place from the first on.
    fn brute<'a>(text: &'a [u32], config: &NgramConfig) -> &'a [u32] {
        for n in (config.min_ngram..=config.max_ngram.min(text.len())).rev() {
            let end = &text[text.len() - n..];
            if let Some(start) = (0..text.len() - n).find(|&start| text[start..].starts_with(end)) {
                return &text[start + n..text.len().min(start + n + config.length)];
            }
        }
        &[]
    }

    proptest! {
        #[test]
        fn the_scan_agrees_with_brute_force(text in prop::collection::vec(0u32..3, 0..60), min_ngram in 1usize..4, more in 0usize..4, length in 1usize..6) {
            let config = NgramConfig { min_ngram, max_ngram: min_ngram + more, length };
            prop_assert_eq!(ngram(&text, &config), brute(&text, &config));
        }
    }
}
