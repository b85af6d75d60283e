//! Root-mean-square norm.

use burn::tensor::Tensor;

use crate::config::NormSpec;

/// `x / sqrt(mean(x²) + eps) · gain`.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    gain: Tensor<1>,
    eps: f64,
}

impl RmsNorm {
    /// A norm from its stored weight `[features]`.
    pub fn new(weight: Tensor<1>, spec: NormSpec) -> Self {
        let gain = if spec.unit_offset { weight.add_scalar(1.0) } else { weight };
        Self { gain, eps: spec.eps }
    }

    /// Norms the last dimension.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let mean = x.clone().square().mean_dim(D - 1);
        x / mean.add_scalar(self.eps).sqrt() * self.gain.clone().unsqueeze()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.gain.dims()[0] * 4
    }
}
