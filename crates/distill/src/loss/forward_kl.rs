//! `KL(p ‖ q) = Σ p ln(p / q)`: the student covers all that the teacher would say.
//!
//! Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

use burn::tensor::Tensor;

use super::{DistillLoss, Logits, LossEntry, column, log_distributions};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "forward-kl",
    summary: "covers all that the teacher would say",
    paper: "Distilling the Knowledge in a Neural Network, arXiv 1503.02531",
    needs_teacher: true,
    make: |_| Box::new(ForwardKl),
};

/// The forward divergence.
#[derive(Debug, Clone, Copy, Default)]
pub struct ForwardKl;

impl DistillLoss for ForwardKl {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let [log_p, log_q] = log_distributions(self.name(), logits)?;
        let p = log_p.clone().exp();
        let loss = (p.clone() * (log_p - log_q.clone())).sum_dim(1);
        Ok((column(loss), log_q.exp() - p))
    }
}
