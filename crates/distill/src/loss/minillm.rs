//! MiniLLM's loss: the reverse divergence at the prefixes that the student wrote, and a policy gradient for what each of
//! its tokens led to; cross-entropy and distillation on rows that it did not write.
//!
//! Source: Gu et al., "MiniLLM", arXiv 2306.08543. Sampling and advantages: [`on_policy::minillm`](crate::on_policy).
//! With `ρ = q(y) / q_old(y)` a token's policy term is `−min(ρ w A, clip(ρ w) A)`, whose gradient is `−w A ρ ∇log q(y)`
//! wherever the clipped side is not the smaller one.

use burn::tensor::{Int, Tensor, activation::log_softmax};
use kindling_tensor_backend::ops::cross_entropy;

use super::{DistillLoss, ForwardKl, KnownRows, Logits, LossEntry, ReverseKl};
use crate::error::{DistillError, Result};
use crate::on_policy::MiniLlm;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "minillm",
    summary: "reverse divergence over what the student writes, by policy gradient",
    paper: "MiniLLM, arXiv 2306.08543",
    needs_teacher: true,
    make: |o| Box::new(MiniLlmLoss { options: o.minillm }),
};

/// MiniLLM's loss. Rows that were not sampled are the plain corpus.
#[derive(Debug, Clone, Copy, Default)]
pub struct MiniLlmLoss {
    /// How.
    pub options: MiniLlm,
}

impl DistillLoss for MiniLlmLoss {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let (log_q_old, weight, advantage) = match &logits.known {
            KnownRows::Sampled { log_q, weight, advantage } => (log_q.clone(), weight.clone(), advantage.clone()),
            KnownRows::Nothing => return plain(logits),
            KnownRows::Kept { .. } => {
                return Err(DistillError::Input("loss `minillm` needs the teacher itself, not a store".into()));
            }
        };
        let [rows, _] = logits.student.dims();
        let long = self.policy(&logits, log_q_old, weight.clone(), advantage);
        if !self.options.single_step {
            return Ok(long);
        }
        let (mut loss, mut gradient) = ReverseKl.rows(logits)?;
        if self.options.weigh_single_step {
            gradient = gradient * weight.clone().reshape([rows, 1]);
            loss = loss * weight;
        }
        Ok((loss + long.0, gradient + long.1))
    }
}

impl MiniLlmLoss {
    /// The policy term and its gradient with respect to the logits.
    fn policy(
        &self,
        logits: &Logits,
        log_q_old: Tensor<1>,
        weight: Tensor<1>,
        advantage: Tensor<1>,
    ) -> (Tensor<1>, Tensor<2>) {
        let [rows, vocabulary] = logits.student.dims();
        let log_q = log_softmax(logits.student.clone(), 1);
        let chosen = log_q.clone().gather(1, logits.labels.clone().reshape([rows, 1])).reshape([rows]);
        let ratio = (chosen - log_q_old).exp();
        let (low, high) = (1.0 - self.options.clip, 1.0 + self.options.clip);
        let free = ratio.clone() * weight.clone();
        let clipped =
            if self.options.clip_product { free.clone().clamp(low, high) } else { ratio.clamp(low, high) * weight };
        let (free, clipped) = (free * advantage.clone(), clipped * advantage);
        // Where the clipped side is strictly smaller the value does not depend on the logits.
        let moves = free.clone().lower_equal(clipped.clone()).float();
        let loss = free.clone().min_pair(clipped).neg();
        let slope = (free * moves).neg().reshape([rows, 1]);
        let hot: Tensor<2> = one_hot(logits.labels.clone(), vocabulary, &slope);
        (loss, (hot - log_q.exp()) * slope)
    }
}

fn one_hot(labels: Tensor<1, Int>, vocabulary: usize, like: &Tensor<2>) -> Tensor<2> {
    let [rows] = labels.dims();
    let ones = Tensor::ones([rows, 1], &like.device());
    Tensor::zeros([rows, vocabulary], &like.device()).scatter(
        1,
        labels.reshape([rows, 1]),
        ones,
        burn::tensor::IndexingUpdateOp::Add,
    )
}

/// Half cross-entropy with the text, half with the teacher's distribution.
fn plain(logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
    let teacher = logits.teacher.clone().ok_or(DistillError::NoTeacher(ENTRY.name))?;
    let log_p = log_softmax(teacher, 1);
    let [rows, _] = log_p.dims();
    let entropy = (log_p.clone().exp() * log_p).sum_dim(1).neg().reshape([rows]);
    let (hard, hard_gradient) = cross_entropy(logits.student.clone(), logits.labels.clone());
    let (soft, soft_gradient) = ForwardKl.rows(logits)?;
    Ok(((hard + soft + entropy).mul_scalar(0.5), (hard_gradient + soft_gradient).mul_scalar(0.5)))
}
