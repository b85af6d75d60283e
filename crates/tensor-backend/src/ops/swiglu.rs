//! `silu(gate) · up`, the inner activation of a gated MLP; `silu(x) = x / (1 + e^−x)`.

use burn::tensor::{Tensor, activation::silu};
use rayon::prelude::*;

use super::simd::{exp, vectorised};

/// The plain twin.
pub fn swiglu_reference<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}

/// Elements that one task works on.
const CHUNK: usize = 16 * 1024;

vectorised! {
    pub(super) fn forward_chunk(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * up / (1.0 + exp::<FMA>(-gate));
        }
    }

    fn backward_chunk(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((gate, up), dy), dgate), dup) in gate.iter().zip(up).zip(dy).zip(dgate).zip(dup) {
            let sigmoid = 1.0 / (1.0 + exp::<FMA>(-gate));
            *dup = dy * gate * sigmoid;
            *dgate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
        }
    }
}

pub(super) fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; gate.len()];
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|(y, (gate, up))| forward_chunk(gate, up, y));
    y
}

/// Gradients of `gate` and `up`.
pub(super) fn backward(gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    dgate
        .par_chunks_mut(CHUNK)
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)))
        .for_each(|((dgate, dup), ((gate, up), dy))| backward_chunk(gate, up, dy, dgate, dup));
    (dgate, dup)
}
