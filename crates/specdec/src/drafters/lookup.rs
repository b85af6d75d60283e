//! Prompt lookup: where the last few tokens stood before, copy what followed.
//!
//! Source: "Prompt Lookup Decoding", Apoorv Saxena, 2023. Takes the first match with a whole continuation, as the
//! original does. A scan of the text per n-gram length: `O(3 T)` comparisons a round.

use kindling_core::DrafterEntry;
use serde::{Deserialize, Serialize};

use super::copying::{Copies, Copying};

/// The list entry.
pub const ENTRY: DrafterEntry = DrafterEntry {
    name: "lookup",
    summary: "Copies what followed the first earlier place that ends like the text.",
    paper: "Prompt Lookup Decoding, 2023",
    trees: false,
};

/// Settings; the defaults are the original's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LookupConfig {
    /// The longest n-gram to look for; shorter ones are tried after it.
    pub max_ngram: usize,
    /// Tokens to copy; a place with fewer is passed over.
    pub length: usize,
}

impl Default for LookupConfig {
    fn default() -> Self {
        Self { max_ngram: 3, length: 10 }
    }
}

/// What followed the first earlier place that ends like `text`; empty if there is none.
pub fn lookup<'a>(text: &'a [u32], config: &LookupConfig) -> &'a [u32] {
    for n in (1..=config.max_ngram.min(text.len())).rev() {
        let end = &text[text.len() - n..];
        let starts = (0..text.len()).take_while(|start| start + n + config.length <= text.len());
        let mut matches = starts.filter(|&start| text[start..].starts_with(end));
        if let Some(start) = matches.next() {
            return &text[start + n..start + n + config.length];
        }
    }
    &[]
}

/// The drafter.
pub type Lookup = Copying<LookupConfig>;

impl Copies for LookupConfig {
    fn continuation<'a>(&self, text: &'a [u32]) -> &'a [u32] {
        lookup(text, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_whole_continuation_of_the_longest_ngram_is_copied() {
        let config = LookupConfig { max_ngram: 2, length: 2 };
        assert_eq!(lookup(&[1, 2, 7, 8, 1, 2, 9, 9, 1, 2], &config), [7, 8]);
        assert_eq!(lookup(&[2, 5, 6, 1, 2], &config), [5, 6], "a shorter n-gram where the longer one is new");
        assert_eq!(
            lookup(&[1, 2, 7, 1, 2], &LookupConfig { max_ngram: 2, length: 4 }),
            [0u32; 0],
            "no whole continuation"
        );
        assert_eq!(lookup(&[], &config), [0u32; 0]);
    }
}
