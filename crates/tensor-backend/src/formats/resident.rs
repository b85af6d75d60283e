//! Packed codes in a GPU's memory: what a model runs with there once it is loaded.
//!
//! The values are those of [`Packed`], bit for bit; the layout is that of the kernels.

use burn::tensor::{Device, Tensor};

use super::Packed;
use crate::gpu::packed::DeviceCodes;

/// A quantised weight on a GPU.
#[derive(Debug, Clone)]
pub struct Resident {
    codes: DeviceCodes,
    name: String,
}

impl Resident {
    /// The name in files, of which there are none: files hold [`Packed`].
    pub const CODE: &str = "resident";

    /// Lays out a packed weight on `device`. `None` for groups that are not whole blocks of 32 inputs, for a matrix without
    /// rows or inputs, and for a device that runs no GPU kernels.
    pub fn from_packed(packed: &Packed, device: &Device) -> Option<Self> {
        let name = packed.format_name();
        crate::ops::on_gpu(device).then(|| DeviceCodes::new(packed, device))?.map(|codes| Self { codes, name })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.codes.shape()
    }

    /// Bytes in the device's memory.
    pub fn bytes(&self) -> usize {
        self.codes.bytes()
    }

    /// The name of the packed format, and where it lies.
    pub fn format_name(&self) -> String {
        format!("{}, on the GPU", self.name)
    }

    /// All values as an f32 tensor `[out, in]`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        self.codes.unfold().to_device(device)
    }

    /// One matrix of several with the same inputs, the outputs of the first before those of the next.
    ///
    /// `None` where they differ in width, groups, scales or order of inputs.
    pub fn stacked(parts: &[&Self]) -> Option<Self> {
        let codes: Vec<&DeviceCodes> = parts.iter().map(|part| &part.codes).collect();
        Some(Self { codes: DeviceCodes::stacked(&codes)?, name: parts.first()?.name.clone() })
    }

    /// Whether `x` lies where the kernels read it.
    pub(super) fn takes(&self, x: &Tensor<3>) -> bool {
        crate::gpu::has_kernels(x)
    }

    /// `x · Wᵀ` on the GPU: `[batch, tokens, in]` to `[batch, tokens, out]`.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let ([batch, tokens, inputs], [outputs, _]) = (x.dims(), self.shape());
        self.codes.forward(x.reshape([batch * tokens, inputs])).reshape([batch, tokens, outputs])
    }
}
