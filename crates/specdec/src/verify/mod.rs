//! Which guesses stay: the text follows the target's distribution exactly, whatever the drafter guessed.
//!
//! | guesses | rule | accepted on average |
//! | --- | --- | --- |
//! | fixed (n-grams, retrieval, greedy drafters) | [`follow`]: choose as plain decoding would, go on while the choice was guessed | `Σ p·q` |
//! | drawn from a known law `q` | [`reject`]: rejection sampling with the residual | `Σ min(p, q)` |
//!
//! With the same random numbers per position, [`follow`] gives the very tokens of plain decoding; greedy decoding is the
//! case where the choice is the largest logit. [`reject`] gives other tokens of the same distribution.
//!
//! Sources: "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192; "Accelerating Large Language
//! Model Decoding with Speculative Sampling", arXiv 2302.01318; trees of drawn guesses after "SpecInfer", arXiv 2305.09781.

mod rejection;
#[cfg(test)]
mod tests;

use kindling_core::{Draft, Result};

pub use rejection::{Dice, SeededDice, reject};

/// What a round gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The accepted nodes, each a child of the one before.
    pub path: Vec<usize>,
    /// The tokens of the path and one more, which the target chose itself.
    pub tokens: Vec<u32>,
}

impl Verdict {
    /// Ends at the first of `ends`, if one is among the tokens. Gives whether it was.
    pub fn end_at(&mut self, ends: &[u32]) -> bool {
        let Some(end) = self.tokens.iter().position(|token| ends.contains(token)) else { return false };
        self.tokens.truncate(end + 1);
        self.path.truncate(end + 1);
        true
    }

    /// Rows of the verified input that stay in the cache: the last token's and those of the path. The newest token has
    /// none yet, it is the input of the next round.
    pub fn rows(&self) -> Vec<usize> {
        let path = self.path.iter().take(self.tokens.len() - 1);
        std::iter::once(0).chain(path.map(|node| node + 1)).collect()
    }
}

/// Walks down the tree: `choose(row, prefix)` is the token that plain decoding takes after `prefix` more tokens, given
/// the logits of `row`. Stops where no child is that token.
///
/// One choice per node, never one per path: choosing anew for every path and keeping the longest match favours tokens
/// that were guessed often.
///
/// # Errors
/// Those of `choose`.
pub fn follow(draft: &Draft, mut choose: impl FnMut(usize, &[u32]) -> Result<u32>) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut row = 0;
    loop {
        let token = choose(row, &verdict.tokens)?;
        verdict.tokens.push(token);
        match draft.children(row).find(|&child| draft.nodes()[child].token == token) {
            Some(child) => {
                verdict.path.push(child);
                row = child + 1;
            }
            None => return Ok(verdict),
        }
    }
}
