//! Cross-entropy of logits with labels, value and gradient in one pass over the vocabulary.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation::log_softmax};
use rayon::prelude::*;

use super::simd::{LANES, exp, total, vectorised};

/// The plain twin. Returns `−log q_label` of every row `[rows]` and its gradient with respect to the logits,
/// `q − onehot(label)`, `[rows, vocabulary]`.
pub fn cross_entropy_reference(logits: Tensor<2>, labels: Tensor<1, Int>) -> (Tensor<1>, Tensor<2>) {
    let [rows, _] = logits.dims();
    let log_q = log_softmax(logits, 1);
    let labels = labels.reshape([rows, 1]);
    let loss = log_q.clone().gather(1, labels.clone()).neg().reshape([rows]);
    let ones = Tensor::<2>::ones([rows, 1], &log_q.device());
    (loss, log_q.exp().scatter(1, labels, ones.neg(), IndexingUpdateOp::Add))
}

vectorised! {
    /// One row: logits become the gradient in place; returns the loss.
    fn row(logits: &mut [f32], label: usize) -> f32 {
        let mut highest = [f32::NEG_INFINITY; LANES];
        let chunks = logits.chunks_exact(LANES);
        let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for chunk in chunks {
            for i in 0..LANES {
                highest[i] = highest[i].max(chunk[i]);
            }
        }
        let highest = highest.into_iter().fold(tail, f32::max);
        let at_label = logits[label];
        let mut lanes = [0.0_f32; LANES];
        let mut chunks = logits.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for i in 0..LANES {
                chunk[i] = exp::<FMA>(chunk[i] - highest);
                lanes[i] += chunk[i];
            }
        }
        let mut sum = 0.0;
        for z in chunks.into_remainder() {
            *z = exp::<FMA>(*z - highest);
            sum += *z;
        }
        let sum = sum + total(lanes);
        let inverse = 1.0 / sum;
        logits.iter_mut().for_each(|z| *z *= inverse);
        logits[label] -= 1.0;
        highest + sum.ln() - at_label
    }
}

/// The losses; `logits` `[rows, vocabulary]` become the gradient.
pub(super) fn in_place(logits: &mut [f32], vocabulary: usize, labels: &[i32]) -> Vec<f32> {
    logits
        .par_chunks_exact_mut(vocabulary)
        .zip(labels)
        .with_min_len(8)
        .map(|(logits, &label)| row(logits, label as usize))
        .collect()
}
