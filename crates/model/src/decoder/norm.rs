//! Root-mean-square norm.

use burn::tensor::Tensor;
use kindling_tensor_backend::ops::rms_norm;

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
        rms_norm(x, self.gain.clone(), self.eps)
    }

    /// The factor of every feature: the stored weight, plus 1 where the family stores it less 1.
    pub(super) fn gain_mut(&mut self) -> &mut Tensor<1> {
        &mut self.gain
    }

    /// The factors, and what is added to the mean square, off the device.
    pub(super) fn to_host(&self) -> Option<(Vec<f32>, f32)> {
        Some((self.gain.clone().into_data().try_into_vec::<f32>().ok()?, self.eps as f32))
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.gain.dims()[0] * 4
    }
}
