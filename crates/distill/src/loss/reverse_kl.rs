//! `KL(q ‖ p) = Σ q ln(q / p)`: the student keeps to what the teacher finds likely.
//!
//! Source: Gu et al., "MiniLLM", arXiv 2306.08543 (there over whole sequences; here token by token).

use burn::tensor::Tensor;

use super::{DistillLoss, Logits, LossEntry, column, log_distributions};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "reverse-kl",
    summary: "keeps to what the teacher finds likely",
    paper: "MiniLLM, arXiv 2306.08543",
    needs_teacher: true,
    make: |_| Box::new(ReverseKl),
};

/// The reverse divergence.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReverseKl;

impl DistillLoss for ReverseKl {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let [log_p, log_q] = log_distributions(self.name(), logits)?;
        let (q, ratio) = (log_q.clone().exp(), log_q - log_p);
        let loss = (q.clone() * ratio.clone()).sum_dim(1);
        Ok((column(loss.clone()), q * (ratio - loss)))
    }
}
