//! `½ Σ |p − q|`: the largest difference in probability that the two give to any event.
//!
//! Source: Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", arXiv 2307.15190. Its
//! gradient vanishes where a student is confidently wrong: it trains slowly from scratch.

use burn::tensor::Tensor;

use super::{DistillLoss, Logits, LossEntry, column, log_distributions, through_softmax};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "total-variation",
    summary: "half the absolute difference of probabilities",
    paper: "f-Divergence Minimization for Sequence-Level Knowledge Distillation, arXiv 2307.15190",
    needs_teacher: true,
    make: |_| Box::new(TotalVariation),
};

/// Total variation distance.
#[derive(Debug, Clone, Copy, Default)]
pub struct TotalVariation;

impl DistillLoss for TotalVariation {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let [log_p, log_q] = log_distributions(self.name(), logits)?;
        let q = log_q.exp();
        let difference = q.clone() - log_p.exp();
        let loss = difference.clone().abs().sum_dim(1).mul_scalar(0.5);
        Ok((column(loss), through_softmax(q, difference.sign().mul_scalar(0.5))))
    }
}
