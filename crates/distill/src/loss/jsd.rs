//! `β KL(p ‖ M) + (1 − β) KL(q ‖ M)` with `M = β p + (1 − β) q`: between the two directions.
//!
//! Source: Agarwal et al., "On-Policy Distillation of Language Models", arXiv 2306.13649. Divided by β it tends to the
//! forward divergence for β → 0; at the ends the value itself is 0, so there the limits take its place.

use burn::tensor::Tensor;

use super::{DistillLoss, ForwardKl, Logits, LossEntry, ReverseKl, column, log_add, log_distributions};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "jsd",
    summary: "between the two directions",
    paper: "On-Policy Distillation of Language Models, arXiv 2306.13649",
    needs_teacher: true,
    make: |o| Box::new(Jsd { beta: o.beta }),
};

/// The generalised Jensen-Shannon divergence. At β = 0 it is the forward, at β = 1 the reverse divergence.
#[derive(Debug, Clone, Copy)]
pub struct Jsd {
    /// The teacher's share in the mixture.
    pub beta: f64,
}

impl DistillLoss for Jsd {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let beta = self.beta;
        if beta == 0.0 {
            return ForwardKl.rows(logits);
        }
        if beta == 1.0 {
            return ReverseKl.rows(logits);
        }
        let [log_p, log_q] = log_distributions(self.name(), logits)?;
        let log_m = log_add(log_p.clone().add_scalar(beta.ln()), log_q.clone().add_scalar((1.0 - beta).ln()));
        let (q, ratio) = (log_q.clone().exp(), log_q - log_m.clone());
        let of_teacher = (log_p.clone().exp() * (log_p - log_m)).sum_dim(1);
        let of_student = (q.clone() * ratio.clone()).sum_dim(1);
        // What comes through M cancels between the two terms.
        let gradient = (q * (ratio - of_student.clone())).mul_scalar(1.0 - beta);
        Ok((column(of_teacher.mul_scalar(beta) + of_student.mul_scalar(1.0 - beta)), gradient))
    }
}
