//! Direct preference optimisation: the better of two answers becomes likelier than under a frozen reference.
//!
//! Sources: Rafailov et al., arXiv 2305.18290; as the second stage of distilling a chat model: Tunstall et al., "Zephyr",
//! arXiv 2310.16944. An answer's score is the sum, not the mean, of its tokens' log-probabilities. The rows of a batch are
//! better and worse answer by turns, see [`PreferencePairs`](crate::preferences::PreferencePairs): what their tokens count
//! follows from the rows' scores, and the loss is a mean over pairs.

use burn::tensor::Tensor;
use kindling_tensor_backend::ops::cross_entropy;

use super::{DistillLoss, Logits, LossEntry};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "dpo",
    summary: "the better of two answers (xtask align)",
    paper: "Direct Preference Optimization, arXiv 2305.18290; Zephyr, arXiv 2310.16944",
    needs_teacher: false,
    make: |options| Box::new(Dpo { beta: options.dpo_beta }),
};

/// The loss of pairs of answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpo {
    /// Inverse temperature: how far from the reference the model may go; larger is nearer.
    pub beta: f64,
}

impl DistillLoss for Dpo {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn needs_teacher(&self) -> bool {
        false
    }

    fn of_pairs(&self) -> Option<f64> {
        Some(self.beta)
    }

    /// Minus the log-probability of every token: scores are sums of them.
    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        Ok(cross_entropy(logits.student, logits.labels))
    }
}

/// Summed log-probabilities of the two answers to a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Of the better answer, under the model that learns.
    pub chosen: f64,
    /// Of the worse answer, under the model that learns.
    pub rejected: f64,
    /// Of the better answer, under the reference.
    pub reference_chosen: f64,
    /// Of the worse answer, under the reference.
    pub reference_rejected: f64,
}

/// What a pair gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference {
    /// `−ln σ(β h)`.
    pub loss: f64,
    /// Slope along the score of the better answer; that of the worse is its negative.
    pub slope: f64,
    /// `β` times the gain of either answer over the reference: better, worse.
    pub rewards: [f64; 2],
    /// Whether the better answer gained more.
    pub correct: bool,
}

/// The loss of a pair at inverse temperature `beta`.
///
/// ```
/// use kindling_distill::loss::dpo::{Pair, preference};
/// let pair = Pair { chosen: -12.3, reference_chosen: -13.0, rejected: -15.1, reference_rejected: -14.6 };
/// assert!((preference(pair, 0.1).loss - 0.634946).abs() < 1e-6);
/// ```
pub fn preference(pair: Pair, beta: f64) -> Preference {
    let gains = [pair.chosen - pair.reference_chosen, pair.rejected - pair.reference_rejected];
    let h = gains[0] - gains[1];
    let x = -beta * h;
    // ln(1 + e^x) without overflow.
    let loss = x.max(0.0) + (-x.abs()).exp().ln_1p();
    let slope = -beta / (1.0 + (-x).exp());
    Preference { loss, slope, rewards: gains.map(|gain| beta * gain), correct: h > 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_numbers() {
        let pair = Pair { chosen: -12.3, reference_chosen: -13.0, rejected: -15.1, reference_rejected: -14.6 };
        let found = preference(pair, 0.1);
        assert!((found.loss - 0.634946).abs() < 1e-6 && (found.slope + 0.047004).abs() < 1e-6 && found.correct);
        assert!((found.rewards[0] - 0.07).abs() < 1e-9 && (found.rewards[1] + 0.05).abs() < 1e-9);
        assert!((preference(pair, 0.01).loss - 0.687165).abs() < 1e-6);
    }

    #[test]
    fn a_model_like_its_reference_still_learns() {
        let pair = Pair { chosen: -3.0, reference_chosen: -3.0, rejected: -4.0, reference_rejected: -4.0 };
        let found = preference(pair, 0.1);
        assert!((found.loss - std::f64::consts::LN_2).abs() < 1e-12 && (found.slope + 0.05).abs() < 1e-12);
        assert!(!found.correct);
    }

    #[test]
    fn constants_cancel_and_exchange_mirrors() {
        let pair = Pair { chosen: -1.0, rejected: -2.5, reference_chosen: -1.5, reference_rejected: -2.0 };
        let moved = Pair { chosen: 6.0, rejected: 4.5, ..pair };
        assert!((preference(pair, 0.3).loss - preference(moved, 0.3).loss).abs() < 1e-12);
        let swapped = Pair {
            chosen: pair.rejected,
            rejected: pair.chosen,
            reference_chosen: pair.reference_rejected,
            reference_rejected: pair.reference_chosen,
        };
        let h = preference(pair, 0.3).loss - preference(swapped, 0.3).loss;
        assert!((h + 0.3 * 1.0).abs() < 1e-12);
        let far = Pair { chosen: 1e6, ..pair };
        assert!(preference(far, 1.0).loss.is_finite() && preference(far, 1.0).loss >= 0.0);
    }
}
