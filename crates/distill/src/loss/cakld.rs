//! `γ KL(q ‖ p) + (1 − γ) KL(p ‖ q)`: the surer the teacher, the more the student keeps to its choice.
//!
//! Source: Du et al., "BitDistiller", arXiv 2402.10631. γ is the mean probability that the teacher gives to the next token
//! of the text ([`confidence`]), estimated once; the authors' code takes the highest probability instead and divides by one
//! batch too few.

use burn::tensor::{Int, Tensor, activation::log_softmax};

use super::{DistillLoss, Logits, LossEntry, Survey, Weighting};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "cakld",
    summary: "both directions, by the confidence of the teacher",
    paper: "BitDistiller, arXiv 2402.10631",
    needs_teacher: true,
    make: |o| Box::new(Cakld { gamma: o.gamma }),
};

/// The confidence-aware divergence.
#[derive(Debug, Clone, Copy)]
pub struct Cakld {
    /// The share of the reverse divergence.
    pub gamma: f64,
}

impl DistillLoss for Cakld {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let gamma = self.gamma.clamp(0.0, 1.0);
        Survey { forward: 1.0 - gamma, reverse: gamma, weighting: Weighting::Uniform }.rows(logits)
    }
}

/// The probability that the teacher gives to every label, `[rows]`: its mean over a text is γ.
pub fn confidence(teacher: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    let [rows, _] = teacher.dims();
    log_softmax(teacher, 1).gather(1, labels.reshape([rows, 1])).exp().reshape([rows])
}
