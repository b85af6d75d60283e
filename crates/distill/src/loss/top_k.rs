//! Divergence from a teacher of whom only the likeliest tokens and the sum of all others are known.
//!
//! The others form one more token, for teacher and student alike: `Σ_K p ln(p/q) + p_rest ln(p_rest/q_rest)`. That is a
//! lower bound of the true divergence, is zero only if the parts agree, and, unlike a sum over the kept tokens alone, is
//! never negative. Sources: Anshumann et al., "Sparse Logit Sampling", arXiv 2503.16870 (why a plain sum is biased).

use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation::log_softmax};

use super::{DistillLoss, KnownRows, Logits, LossEntry};
use crate::error::{DistillError, Result};

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "top-k",
    summary: "forward divergence from a teacher's store: its likeliest tokens, and all others as one",
    paper: "Sparse Logit Sampling, arXiv 2503.16870",
    needs_teacher: false,
    make: |_| Box::new(TopK),
};

/// Divergence from what a [store](crate::store) kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct TopK;

impl DistillLoss for TopK {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn needs_teacher(&self) -> bool {
        false
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        match logits.known {
            KnownRows::Kept { ids, log_p, log_rest } => Ok(kept_and_rest(logits.student, ids, log_p, log_rest)),
            _ => Err(DistillError::Input("loss `top-k` learns from a store of a teacher's logits: name one".into())),
        }
    }
}

/// Loss of every row `[rows]` and its gradient with respect to the student's logits `[rows, vocabulary]`.
///
/// `ids` and `log_p` are `[rows, k]`, `log_rest` `[rows]`.
pub fn kept_and_rest(
    student: Tensor<2>,
    ids: Tensor<2, Int>,
    log_p: Tensor<2>,
    log_rest: Tensor<1>,
) -> (Tensor<1>, Tensor<2>) {
    let [rows, _] = student.dims();
    let log_q = log_softmax(student, 1);
    let kept_q = log_q.clone().gather(1, ids.clone());
    let p = log_p.clone().exp();
    // What is left for the others; a little always, so that its logarithm exists.
    let rest_q = kept_q.clone().exp().sum_dim(1).neg().add_scalar(1.0).clamp_min(1e-7);
    let log_rest = log_rest.reshape([rows, 1]).clamp_min(-80.0);
    let rest_p = log_rest.clone().exp();
    let kept = (p.clone() * (log_p - kept_q.clone())).sum_dim(1);
    let rest = rest_p.clone() * (log_rest - rest_q.clone().log());
    // For the others q (1 − p_rest / q_rest); for the kept tokens q − p.
    let q = log_q.exp();
    let share = rest_p / rest_q;
    let others = q * share.clone().neg().add_scalar(1.0);
    let kept_gradient = kept_q.exp() * share - p;
    (((kept + rest).reshape([rows])), others.scatter(1, ids, kept_gradient, IndexingUpdateOp::Add))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::loss::ForwardKl;

    const TEACHER: [f32; 5] = [2.0, 1.0, 0.5, -1.0, -2.0];
    const STUDENT: [f32; 5] = [1.0, 1.5, 0.0, 0.0, -1.0];

    fn run(ids: &[i32]) -> (f32, Vec<f32>) {
        let device = Device::default();
        let row = |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &device);
        let log_p = log_softmax(row(&TEACHER), 1).into_data().try_to_vec::<f32>().unwrap();
        let kept: Vec<f32> = ids.iter().map(|&id| log_p[id as usize]).collect();
        let rest: f64 = (0..5).filter(|id| !ids.contains(id)).map(|id| f64::from(log_p[id as usize]).exp()).sum();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), &device);
        let rest = Tensor::<1>::from_data([rest.ln() as f32], &device);
        let (loss, gradient) = kept_and_rest(row(&STUDENT), ids, row(&kept), rest);
        (loss.into_scalar::<f32>(), gradient.into_data().try_to_vec().unwrap())
    }

    #[test]
    fn worked_numbers() {
        let (loss, gradient) = run(&[0, 1]);
        assert!((loss - 0.227206).abs() < 2e-6, "{loss}");
        for (found, expected) in gradient.iter().zip([-0.318626, 0.246679, 0.030385, 0.030385, 0.011178]) {
            assert!((found - expected).abs() < 2e-6, "{gradient:?}");
        }
    }

    #[test]
    fn more_tokens_tell_more_and_all_tell_everything() {
        let losses: Vec<f32> = (1..=5).map(|k| run(&[0, 1, 2, 3, 4][..k]).0).collect();
        assert!(losses.windows(2).all(|pair| pair[1] >= pair[0] - 1e-6), "{losses:?}");
        let device = Device::default();
        let row = |values: [f32; 5]| Tensor::<2>::from_data([values], &device);
        let labels = Tensor::<1, Int>::from_data([0], &device);
        let (whole, slope) = ForwardKl.rows(Logits::new(row(STUDENT), Some(row(TEACHER)), labels)).unwrap();
        assert!((losses[4] - whole.into_scalar::<f32>()).abs() < 2e-6);
        let slope: Vec<f32> = slope.into_data().try_to_vec().unwrap();
        assert!(run(&[0, 1, 2, 3, 4]).1.iter().zip(slope).all(|(a, b)| (a - b).abs() < 2e-6));
    }
}
