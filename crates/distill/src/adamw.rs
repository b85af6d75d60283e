//! AdamW: Adam with weight decay apart from the gradient.
//!
//! Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101. Memory: two more tensors of
//! the size of every trained weight, in f32.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Constants of the optimiser; the rate comes from the [schedule](crate::schedule).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Keeps the division finite.
    pub epsilon: f64,
    /// Share of a matrix that a step at rate 1 takes away. Vectors (gains, biases) do not decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 }
    }
}

/// Means of one weight's gradient and squared gradient.
#[derive(Debug, Clone)]
pub struct Moments<const D: usize> {
    /// Mean gradient.
    pub first: Tensor<D>,
    /// Mean squared gradient.
    pub second: Tensor<D>,
}

impl AdamW {
    /// One step of one weight; `step` counts from 1.
    pub fn step<const D: usize>(
        &self,
        weight: Tensor<D>,
        gradient: Tensor<D>,
        moments: Option<Moments<D>>,
        rate: f64,
        step: u64,
    ) -> (Tensor<D>, Moments<D>) {
        let fresh = gradient.clone().mul_scalar(1.0 - self.beta1);
        let fresh_square = gradient.square().mul_scalar(1.0 - self.beta2);
        let moments = match moments {
            Some(Moments { first, second }) => Moments {
                first: first.mul_scalar(self.beta1) + fresh,
                second: second.mul_scalar(self.beta2) + fresh_square,
            },
            None => Moments { first: fresh, second: fresh_square },
        };
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let (c1, c2) = (1.0 - self.beta1.powi(exponent), 1.0 - self.beta2.powi(exponent));
        let size = moments.second.clone().div_scalar(c2).sqrt().add_scalar(self.epsilon);
        let update = (moments.first.clone() / size).mul_scalar(rate / c1);
        let weight = if D > 1 { weight.mul_scalar(1.0 - rate * self.weight_decay) } else { weight };
        (weight - update, moments)
    }
}
