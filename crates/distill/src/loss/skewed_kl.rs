//! `KL(p ‖ α p + (1 − α) q)`: the forward divergence from a mixture, whose gradient stays bounded.
//!
//! Source: Ko et al., "DistiLLM", arXiv 2402.03898. The value here is the divergence itself; the authors' code leaves
//! out the terms of the teacher alone, with the same gradient.

use burn::tensor::Tensor;

use super::{DistillLoss, ForwardKl, Logits, LossEntry, column, log_add, log_distributions, through_softmax};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "skewed-kl",
    summary: "forward divergence from a mixture: bounded gradients",
    paper: "DistiLLM, arXiv 2402.03898",
    needs_teacher: true,
    make: |o| Box::new(SkewedForwardKl { alpha: o.alpha }),
};

/// `KL(p ‖ α p + (1 − α) q)`. At α = 0 the forward divergence; at α = 1 zero.
#[derive(Debug, Clone, Copy)]
pub struct SkewedForwardKl {
    /// The teacher's share in the mixture.
    pub alpha: f64,
}

impl DistillLoss for SkewedForwardKl {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let alpha = self.alpha;
        if alpha == 0.0 {
            return ForwardKl.rows(logits);
        }
        let [log_p, log_q] = log_distributions(self.name(), logits)?;
        if alpha == 1.0 {
            return Ok((column(log_q.clone().sum_dim(1)).zeros_like(), log_q.zeros_like()));
        }
        let log_m = log_add(log_p.clone().add_scalar(alpha.ln()), log_q.clone().add_scalar((1.0 - alpha).ln()));
        let loss = (log_p.clone().exp() * (log_p.clone() - log_m.clone())).sum_dim(1);
        let slope = (log_p - log_m).exp().mul_scalar(alpha - 1.0);
        Ok((column(loss), through_softmax(log_q.exp(), slope)))
    }
}
