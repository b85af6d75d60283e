//! `y = x / sqrt(mean(x²) + eps) · gain` over the last dimension.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::simd::{LANES, dot, mul_add, total, vectorised};

/// The plain twin: a chain of tensor operations.
pub fn rms_norm_reference<const D: usize>(x: Tensor<D>, gain: Tensor<1>, eps: f64) -> Tensor<D> {
    let mean = x.clone().square().mean_dim(D - 1);
    x / mean.add_scalar(eps).sqrt() * gain.unsqueeze()
}

/// Rows whose contributions to the gain's gradient are summed in one go, whatever the number of threads.
const ROWS: usize = 128;

vectorised! {
    pub(super) fn forward_rows(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
        let width = gain.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let scale = 1.0 / (dot::<FMA>(x, x) / width as f32 + eps).sqrt();
            for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
                *y = x * scale * gain;
            }
        }
    }

    fn backward_rows(x: &[f32], gain: &[f32], dy: &[f32], eps: f32, dx: &mut [f32], dgain: &mut [f32]) {
        let width = gain.len();
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let scale = 1.0 / (dot::<FMA>(x, x) / width as f32 + eps).sqrt();
            // dx = scale · (dy · gain − x · scale² · mean(dy · gain · x))
            let mut sums = [0.0_f32; LANES];
            let whole = width - width % LANES;
            for i in (0..whole).step_by(LANES) {
                let (x, dy, gain) = (&x[i..][..LANES], &dy[i..][..LANES], &gain[i..][..LANES]);
                for j in 0..LANES {
                    sums[j] = mul_add::<FMA>(dy[j] * gain[j], x[j], sums[j]);
                }
            }
            let tail: f32 = (whole..width).map(|i| dy[i] * gain[i] * x[i]).sum();
            let pull = (total(sums) + tail) * scale * scale / width as f32;
            for i in 0..width {
                dx[i] = scale * (dy[i] * gain[i] - x[i] * pull);
                dgain[i] = mul_add::<FMA>(dy[i] * scale, x[i], dgain[i]);
            }
        }
    }
}

/// `x` is `[rows, gain.len()]`.
pub(super) fn forward(x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let chunk = ROWS * gain.len();
    y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| forward_rows(x, gain, eps, y));
    y
}

/// Gradients of `x` and `gain`.
pub(super) fn backward(x: &[f32], gain: &[f32], dy: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let mut dx = vec![0.0; x.len()];
    let chunk = ROWS * gain.len();
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(chunk)
        .zip(x.par_chunks(chunk).zip(dy.par_chunks(chunk)))
        .map(|(dx, (x, dy))| {
            let mut dgain = vec![0.0; gain.len()];
            backward_rows(x, gain, dy, eps, dx, &mut dgain);
            dgain
        })
        .collect();
    let mut dgain = vec![0.0; gain.len()];
    for part in parts {
        dgain.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    (dx, dgain)
}
