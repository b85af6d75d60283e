//! Dense weights: a tensor `[out, in]`, the layout of checkpoints, row after row.

use burn::tensor::{DType, Device, Tensor};

use super::{FormatError, Result, check_len, times_transposed, to_tensor};

/// A weight with every value in its place.
///
/// Size: `out · in` elements of the tensor's type.
#[derive(Debug, Clone)]
pub struct Dense {
    weight: Tensor<2>,
}

impl Dense {
    /// The name in files.
    pub const CODE: &str = "dense";

    /// Holds a tensor `[out, in]`; nothing is copied.
    pub fn new(weight: Tensor<2>) -> Self {
        Self { weight }
    }

    /// Puts row-major f32 values `[rows, cols]` on a device.
    pub fn from_host(rows: usize, cols: usize, values: Vec<f32>, device: &Device) -> Result<Self> {
        check_len("dense weight", values.len(), rows, cols)?;
        Ok(Self::new(to_tensor(values, rows, cols, device)))
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.dims()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        let [rows, cols] = self.shape();
        rows * cols * self.dtype().size()
    }

    /// For example `dense f32`.
    pub fn format_name(&self) -> String {
        format!("dense {}", self.dtype().name())
    }

    /// The tensor itself, on `device`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        self.weight.clone().to_device(device)
    }

    /// `x · Wᵀ`; the shapes are checked by [`Weight::forward`](super::Weight::forward).
    pub(super) fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        if x.dtype() != self.dtype() {
            return Err(FormatError::DType { activations: x.dtype(), weight: self.dtype() });
        }
        let weight = self.to_dense(&x.device());
        Ok(times_transposed(x, weight))
    }
}
