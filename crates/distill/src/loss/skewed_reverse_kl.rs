//! `KL(q ‖ (1 − α) p + α q)`: the reverse divergence from a mixture, whose gradient stays bounded.
//!
//! Source: Ko et al., "DistiLLM", arXiv 2402.03898. The value here is the divergence itself; the authors' code leaves
//! out the terms of the teacher alone, with the same gradient.

use burn::tensor::Tensor;

use super::{DistillLoss, Logits, LossEntry, ReverseKl, column, log_add, log_distributions, through_softmax};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "skewed-reverse-kl",
    summary: "reverse divergence from a mixture: bounded gradients",
    paper: "DistiLLM, arXiv 2402.03898",
    needs_teacher: true,
    make: |o| Box::new(SkewedReverseKl { alpha: o.alpha }),
};

/// `KL(q ‖ (1 − α) p + α q)`. At α = 0 the reverse divergence; at α = 1 zero.
#[derive(Debug, Clone, Copy)]
pub struct SkewedReverseKl {
    /// The student's share in the mixture.
    pub alpha: f64,
}

impl DistillLoss for SkewedReverseKl {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let alpha = self.alpha;
        if alpha == 0.0 {
            return ReverseKl.rows(logits);
        }
        let [log_p, log_q] = log_distributions(self.name(), logits)?;
        if alpha == 1.0 {
            return Ok((column(log_q.clone().sum_dim(1)).zeros_like(), log_q.zeros_like()));
        }
        let log_m = log_add(log_p.add_scalar((1.0 - alpha).ln()), log_q.clone().add_scalar(alpha.ln()));
        let (q, ratio) = (log_q.clone().exp(), log_q - log_m);
        let loss = (q.clone() * ratio.clone()).sum_dim(1);
        let slope = ratio.clone().add_scalar(1.0) - ratio.exp().mul_scalar(alpha);
        Ok((column(loss), through_softmax(q, slope)))
    }
}
