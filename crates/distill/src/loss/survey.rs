//! Both directions at once, `λ_f α_i KL(p ‖ q) + λ_r β_i KL(q ‖ p)`, with a weight for every token.
//!
//! Source: the combined objective of surveys of efficient language models, after Hinton et al., arXiv 1503.02531, who
//! gave the temperature. A weight by [`Weighting`](super::Weighting) is the same for both directions; [`weighted`] takes
//! any two.

use burn::tensor::{Tensor, activation::log_softmax};

use super::{DistillLoss, Logits, LossEntry, Weighting, column, log_distributions};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "survey",
    summary: "both directions, tokens weighed by the teacher",
    paper: "after Distilling the Knowledge in a Neural Network, arXiv 1503.02531",
    needs_teacher: true,
    make: |o| {
        let (forward, reverse) = (o.lambda_forward, o.lambda_reverse);
        Box::new(Survey { forward, reverse, weighting: o.weighting })
    },
};

/// A weighted sum of the forward and the reverse divergence.
#[derive(Debug, Clone, Copy)]
pub struct Survey {
    /// λ of the forward divergence.
    pub forward: f64,
    /// λ of the reverse divergence.
    pub reverse: f64,
    /// What a token counts.
    pub weighting: Weighting,
}

impl DistillLoss for Survey {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn weighting(&self) -> Weighting {
        self.weighting
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let logs = log_distributions(self.name(), logits)?;
        Ok(both(logs, |x| x.mul_scalar(self.forward), |x| x.mul_scalar(self.reverse)))
    }
}

/// As [`Survey`], with weights of every row, `[rows]`, for either direction.
pub fn weighted(
    student: Tensor<2>,
    teacher: Tensor<2>,
    forward: Tensor<1>,
    reverse: Tensor<1>,
) -> (Tensor<1>, Tensor<2>) {
    let [rows, _] = student.dims();
    let (forward, reverse) = (forward.reshape([rows, 1]), reverse.reshape([rows, 1]));
    let logs = [log_softmax(teacher, 1), log_softmax(student, 1)];
    both(logs, |x| x * forward.clone(), |x| x * reverse.clone())
}

fn both(
    [log_p, log_q]: [Tensor<2>; 2],
    forward: impl Fn(Tensor<2>) -> Tensor<2>,
    reverse: impl Fn(Tensor<2>) -> Tensor<2>,
) -> (Tensor<1>, Tensor<2>) {
    let (p, q) = (log_p.clone().exp(), log_q.clone().exp());
    let ratio = log_q - log_p;
    let of_teacher = (p.clone() * ratio.clone()).sum_dim(1).neg();
    let of_student = (q.clone() * ratio.clone()).sum_dim(1);
    let gradient = forward(q.clone() - p) + reverse(q * (ratio - of_student.clone()));
    (column(forward(of_teacher) + reverse(of_student)), gradient)
}
