//! A weight multiplied from memory to memory, without tensors.

use std::sync::Arc;

#[cfg(feature = "flex")]
use burn::tensor::DType;
use burn::tensor::Tensor;

use super::Weight;
use crate::kernels::{Activations, Arithmetic, HalfTiles, MaskedRows, Tiles, product};
#[cfg(feature = "flex")]
use crate::ops::HostMatrix;

/// Up to so many rows a product is the same as through [`Weight::forward`], to the bit.
pub const MOST_ROWS: usize = crate::ops::product::MOST_ROWS;

/// A weight in the processor's memory, shared with the [`Weight`] it was made of.
#[derive(Debug, Clone)]
pub struct Host(Held);

#[derive(Debug, Clone)]
enum Held {
    Half(Arc<HalfTiles>),
    Masked(Arc<MaskedRows>),
    Tiled(Arc<Tiles>, Arithmetic),
    #[cfg(feature = "flex")]
    Full(HostMatrix),
}

impl Host {
    /// `None` for formats that only tensors can multiply with.
    pub fn of(weight: &Weight) -> Option<Self> {
        match weight {
            Weight::Half(half) => Some(Self(Held::Half(half.held().clone()))),
            Weight::Masked(masked) => Some(Self(Held::Masked(masked.held().clone()))),
            Weight::Tiled(tiled) if tiled.has_kernels() => {
                Some(Self(Held::Tiled(tiled.held().clone(), tiled.arithmetic())))
            }
            #[cfg(feature = "flex")]
            Weight::Dense(dense) if dense.dtype() == DType::F32 => {
                HostMatrix::of(dense.transposed()).map(|matrix| Self(Held::Full(matrix)))
            }
            _ => None,
        }
    }

    /// Of a matrix `[out, in]` on the processor, in f32.
    pub fn of_matrix(matrix: &Tensor<2>) -> Option<Self> {
        #[cfg(feature = "flex")]
        return HostMatrix::of(&matrix.clone().transpose()).map(|matrix| Self(Held::Full(matrix)));
        #[cfg(not(feature = "flex"))]
        {
            let _ = matrix;
            None
        }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match &self.0 {
            Held::Half(rows) => rows.shape(),
            Held::Masked(rows) => rows.shape(),
            Held::Tiled(tiles, _) => tiles.shape(),
            #[cfg(feature = "flex")]
            Held::Full(matrix) => matrix.shape(),
        }
    }

    /// Row `i` in f32, as an embedding gives it; `false` for packed codes and pruned weights.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    pub fn row(&self, i: usize, out: &mut [f32]) -> bool {
        match &self.0 {
            Held::Half(half) => half.row(i, out),
            Held::Tiled(..) | Held::Masked(..) => return false,
            #[cfg(feature = "flex")]
            Held::Full(matrix) => matrix.row(i, out),
        }
        true
    }

    /// `x · Wᵀ`: `[rows, in]` to `[rows, out]`, at most [`MOST_ROWS`] of them. One row asks for no memory but what `inputs`
    /// needs the first time.
    ///
    /// # Panics
    /// If `x` or `out` are not so many rows.
    pub fn product(&self, x: &[f32], rows: usize, inputs: &mut Activations, out: &mut [f32]) {
        let [outputs, features] = self.shape();
        assert!(x.len() == rows * features && out.len() == rows * outputs, "{rows} rows of {features} and {outputs}");
        match &self.0 {
            Held::Half(half) => half.product(x, rows, out),
            Held::Masked(masked) => masked.product(x, rows, out),
            Held::Tiled(tiles, arithmetic) => {
                inputs.set(x, rows, features, tiles.order(), *arithmetic);
                product(tiles, inputs, out);
            }
            #[cfg(feature = "flex")]
            Held::Full(matrix) => matrix.product(x, rows, out),
        }
    }
}
