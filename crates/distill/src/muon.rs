//! Muon: steps of matrices along the nearest orthogonal matrix of their momentum.
//!
//! Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale of the step is that
//! of Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, so that rates and decay of AdamW can be kept.
//! Memory: one more tensor of the size of every trained matrix, in f32.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Coefficients of one Newton-Schulz step `aX + bYX + cY²X` with `Y = XXᵀ`: steep at zero, so that small singular values
/// grow quickly; singular values end in about 0.7 to 1.2 instead of exactly 1, which serves as well.
const QUINTIC: [f64; 3] = [3.4445, -4.775, 2.0315];

/// Constants of the optimiser. It moves hidden matrices; vectors, the embedding and the output matrix stay with
/// [`AdamW`](crate::AdamW).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Muon {
    /// Decay of the summed gradient.
    pub momentum: f64,
    /// Looks one step ahead: the gradient once more on top of the decayed sum.
    pub nesterov: bool,
    /// Newton-Schulz steps.
    pub iterations: usize,
    /// Share of a matrix that a step at rate 1 takes away.
    pub weight_decay: f64,
    /// Its rate, as a multiple of the schedule's.
    pub rate: f64,
}

impl Default for Muon {
    fn default() -> Self {
        Self { momentum: 0.95, nesterov: true, iterations: 5, weight_decay: 0.1, rate: 1.0 }
    }
}

impl Muon {
    /// One step of one matrix `[rows, columns]`; returns it with its momentum.
    pub fn step(
        &self,
        weight: Tensor<2>,
        gradient: Tensor<2>,
        momentum: Option<Tensor<2>>,
        rate: f64,
    ) -> (Tensor<2>, Tensor<2>) {
        let rate = rate * self.rate;
        let momentum = match momentum {
            Some(sum) => sum.mul_scalar(self.momentum) + gradient.clone(),
            None => gradient.clone(),
        };
        let direction =
            if self.nesterov { momentum.clone().mul_scalar(self.momentum) + gradient } else { momentum.clone() };
        let [rows, cols] = weight.dims();
        // An orthogonal matrix has entries of root mean square 1/√max(rows, cols); AdamW's steps have about 0.2.
        let scale = 0.2 * (rows.max(cols) as f64).sqrt();
        let update = orthogonal(direction, self.iterations).mul_scalar(rate * scale);
        (weight.mul_scalar(1.0 - rate * self.weight_decay) - update, momentum)
    }
}

/// About the orthogonal factor `UVᵀ` of `matrix = USVᵀ`, by so many Newton-Schulz steps.
fn orthogonal(matrix: Tensor<2>, iterations: usize) -> Tensor<2> {
    let [rows, cols] = matrix.dims();
    let tall = rows > cols;
    let x = if tall { matrix.transpose() } else { matrix };
    let norm = x.clone().square().sum().sqrt().clamp_min(1e-7);
    let mut x = x / norm.unsqueeze();
    let [a, b, c] = QUINTIC;
    for _ in 0..iterations {
        let y = x.clone().matmul(x.clone().transpose());
        let polynomial = y.clone().mul_scalar(b) + y.clone().matmul(y).mul_scalar(c);
        x = x.clone().mul_scalar(a) + polynomial.matmul(x);
    }
    if tall { x.transpose() } else { x }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    fn values(x: &Tensor<2>) -> Vec<f32> {
        x.to_data().try_to_vec().expect("f32")
    }

    #[test]
    fn singular_values_of_a_diagonal_follow_the_polynomial() {
        let device = Device::default();
        let diagonal = [3.0f64, 1.0, 0.25, 0.01];
        let mut entries = [[0.0f32; 4]; 4];
        for (i, &value) in diagonal.iter().enumerate() {
            entries[i][i] = value as f32;
        }
        let norm = diagonal.iter().map(|x| x * x).sum::<f64>().sqrt();
        let found = values(&orthogonal(Tensor::from_floats(entries, &device), 5));
        for (i, &value) in diagonal.iter().enumerate() {
            let mut s = value / norm;
            for _ in 0..5 {
                s = QUINTIC[0] * s + QUINTIC[1] * s.powi(3) + QUINTIC[2] * s.powi(5);
            }
            assert!((f64::from(found[5 * i]) - s).abs() < 1e-4, "{i}: {} against {s}", found[5 * i]);
        }
    }

    #[test]
    fn rows_of_a_wide_and_columns_of_a_tall_matrix_become_nearly_orthonormal() {
        let device = Device::default();
        device.seed(7);
        for (rows, cols) in [(8, 48), (48, 8)] {
            let random = Tensor::<2>::random([rows, cols], Distribution::Normal(0.0, 1.0), &device);
            let q = orthogonal(random, 5);
            let gram = if rows < cols { q.clone().matmul(q.transpose()) } else { q.clone().transpose().matmul(q) };
            let gram = values(&gram);
            for i in 0..8 {
                for j in 0..8 {
                    let (found, wanted) = (gram[8 * i + j], f32::from(u8::from(i == j)));
                    // Singular values in 0.65 … 1.25: their squares lie within 0.6 of 1.
                    assert!((found - wanted).abs() < 0.6, "({i}, {j}): {found}");
                }
            }
        }
    }

    #[test]
    fn momentum_looks_ahead_and_the_step_is_as_long_as_adamws() {
        let device = Device::default();
        device.seed(3);
        let gradient = Tensor::<2>::random([32, 64], Distribution::Normal(0.0, 1.0), &device);
        let muon = Muon { weight_decay: 0.5, ..Muon::default() };
        let weight = Tensor::<2>::ones([32, 64], &device);
        let (moved, momentum) = muon.step(weight.clone(), gradient.clone(), None, 0.1);
        assert_eq!(values(&momentum), values(&gradient));
        let step = values(&(weight.mul_scalar(0.95) - moved.clone()));
        let rms = (step.iter().map(|x| f64::from(x * x)).sum::<f64>() / step.len() as f64).sqrt();
        // 0.1 · 0.2 · √64 times the entries of a half-orthogonal matrix: √(32 / (32 · 64)) each.
        assert!((rms / 0.02 - 1.0).abs() < 0.25, "{rms}");
        let (_, momentum) = muon.step(moved, gradient.clone(), Some(momentum), 0.1);
        let wanted = values(&gradient.mul_scalar(1.95));
        assert!(values(&momentum).iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
