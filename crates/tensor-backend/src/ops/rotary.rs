//! Rotary positions in Hugging Face's layout: dimension `i` of a head turns with dimension `i + half`.

use burn::tensor::{Tensor, s};
use rayon::prelude::*;

use super::rows::Rows;
use super::simd::vectorised;

/// The plain twin. `x` is `[batch, heads, tokens, width]`; `cos` and `sin` are `[batch or 1, 1, tokens, half]` with
/// `2 · half ≤ width`: what lies beyond does not turn.
pub fn rotary_reference(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let (half, width) = (cos.dims()[3], x.dims()[3]);
    let first = x.clone().slice(s![.., .., .., 0..half]);
    let second = x.clone().slice(s![.., .., .., half..2 * half]);
    let mut parts = vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
    if width > 2 * half {
        parts.push(x.slice(s![.., .., .., 2 * half..width]));
    }
    Tensor::cat(parts, 3)
}

vectorised! {
    /// `direction` 1 turns, −1 turns back.
    pub(super) fn turn(x: &[f32], cos: &[f32], sin: &[f32], direction: f32, y: &mut [f32]) {
        let half = cos.len();
        let (x_turned, x_rest) = x.split_at(2 * half);
        let (y_turned, y_rest) = y.split_at_mut(2 * half);
        let (first, second) = x_turned.split_at(half);
        let (y_first, y_second) = y_turned.split_at_mut(half);
        for i in 0..half {
            let sin = sin[i] * direction;
            y_first[i] = first[i] * cos[i] - second[i] * sin;
            y_second[i] = second[i] * cos[i] + first[i] * sin;
        }
        y_rest.copy_from_slice(x_rest);
    }
}

/// Turned rows in the order `[batch, tokens, heads, width]`, which the projections before and after use.
pub(super) fn rotate(x: &Rows<'_>, cos: &[f32], sin: &[f32], half: usize, direction: f32) -> Vec<f32> {
    let [batch, heads, tokens, width] = x.shape;
    // One table for all rows of the batch, or one each.
    let own = if cos.len() > tokens * half { tokens } else { 0 };
    let mut y = vec![0.0; batch * heads * tokens * width];
    y.par_chunks_mut(heads * width).with_min_len(64).enumerate().for_each(|(i, y)| {
        let (b, t) = (i / tokens, i % tokens);
        let at = (b * own + t) * half;
        for (h, y) in y.chunks_exact_mut(width).enumerate() {
            turn(x.row(b, h, t), &cos[at..at + half], &sin[at..at + half], direction, y);
        }
    });
    y
}
