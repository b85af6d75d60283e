//! Dense weights: every value in its place.
//!
//! Layout: a contiguous tensor `[in, out]`, the transpose of a checkpoint's. Flex multiplies a few tokens
//! with it faster than with a transposed view of `[out, in]`.

use burn::tensor::{DType, Device, Tensor};

use super::{FormatError, Result, check_len, times, to_tensor};

/// A weight as a tensor.
///
/// Size: `out · in` elements of the tensor's type.
#[derive(Debug, Clone)]
pub struct Dense {
    /// `[in, out]`.
    transposed: Tensor<2>,
}

impl Dense {
    /// The name in files.
    pub const CODE: &str = "dense";

    /// Holds a tensor `[out, in]` on its device. It is laid out anew, so gradients do not flow back into it.
    pub fn new(weight: Tensor<2>) -> Self {
        let (device, dtype) = (weight.device(), weight.dtype());
        // A transpose is a view; reading it back gives the contiguous order.
        Self { transposed: Tensor::from_data(weight.transpose().into_data(), (&device, dtype)) }
    }

    /// Puts row-major f32 values `[rows, cols]` on a device.
    pub fn from_host(rows: usize, cols: usize, values: Vec<f32>, device: &Device) -> Result<Self> {
        check_len("dense weight", values.len(), rows, cols)?;
        Ok(Self::new(to_tensor(values, rows, cols, device)))
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        let [inputs, outputs] = self.transposed.dims();
        [outputs, inputs]
    }

    /// `[in, out]`.
    #[cfg(feature = "flex")]
    pub(super) fn transposed(&self) -> &Tensor<2> {
        &self.transposed
    }

    /// The tensor `[in, out]` itself, to train it.
    pub fn transposed_mut(&mut self) -> &mut Tensor<2> {
        &mut self.transposed
    }

    /// Whether kernels for the processor could read the values in 16 bits instead.
    pub fn takes_half(&self) -> bool {
        crate::ops::on_flex(&self.transposed)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.transposed.dtype()
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

    /// The tensor `[out, in]` on `device`: a view where it already lies there.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        self.transposed.clone().to_device(device).transpose()
    }

    /// `x · Wᵀ`; the shapes are checked by [`Weight::forward`](super::Weight::forward). A weight in 16 bits multiplies f32
    /// activations rounded to its type, and the product is f32 again: mixed precision, as training asks for it.
    pub(super) fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let weight = self.transposed.clone().to_device(&x.device());
        match (x.dtype(), self.dtype()) {
            (activations, dtype) if activations == dtype => Ok(times(x, weight)),
            (DType::F32, dtype @ (DType::BF16 | DType::F16)) => Ok(times(x.cast(dtype), weight).cast(DType::F32)),
            (activations, weight) => Err(FormatError::DType { activations, weight }),
        }
    }
}
