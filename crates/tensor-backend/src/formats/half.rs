//! Dense weights in 16 bits: what a dense model runs with on the processor once it is loaded.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::{Dense, by_rows, to_tensor};
use crate::kernels::{HalfTiles, HalfType};

/// A weight whose values bf16 or f16 hold exactly.
///
/// Size: `2 · out · in` bytes.
#[derive(Debug, Clone)]
pub struct Half(Arc<HalfTiles>);

impl Half {
    /// The name in files: there it is a dense weight.
    pub const CODE: &str = Dense::CODE;

    /// Takes row-major values `[rows, cols]`; `None` where 16 bits do not hold them all exactly.
    pub fn exactly(values: &[f32], rows: usize, cols: usize) -> Option<Self> {
        HalfTiles::exactly(values, rows, cols).map(|rows| Self(Arc::new(rows)))
    }

    /// One matrix of several with the same inputs; `None` where they differ in width or type.
    pub fn stacked(parts: &[&Self]) -> Option<Self> {
        let parts: Vec<&HalfTiles> = parts.iter().map(|part| &*part.0).collect();
        HalfTiles::stacked(&parts).map(|rows| Self(Arc::new(rows)))
    }

    /// The kernel's matrix.
    pub(super) fn held(&self) -> &Arc<HalfTiles> {
        &self.0
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// For example `dense bf16`.
    pub fn format_name(&self) -> String {
        match self.0.kind() {
            HalfType::BF16 => "dense bf16".into(),
            HalfType::F16 => "dense f16".into(),
        }
    }

    /// Rows `[ids, in]` of the matrix, as an embedding gives them, in f32.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn rows(&self, ids: &[u32], device: &Device) -> Tensor<2> {
        let [_, cols] = self.shape();
        let mut values = vec![0.0; ids.len() * cols];
        ids.iter().zip(values.chunks_mut(cols.max(1))).for_each(|(&id, out)| self.0.row(id as usize, out));
        to_tensor(values, ids.len(), cols, device)
    }

    /// All values as an f32 tensor `[out, in]`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        let [rows, cols] = self.shape();
        to_tensor(self.0.to_host(), rows, cols, device)
    }

    /// Whether `x` lies where the kernel reads it.
    pub(super) fn takes(&self, x: &Tensor<3>) -> bool {
        crate::ops::on_flex(x)
    }

    /// `x · Wᵀ` on the processor: `[batch, tokens, in]` to `[batch, tokens, out]`.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        by_rows(x, self.shape()[0], |x, rows, out| self.0.product(x, rows, out))
    }
}
