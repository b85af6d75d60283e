//! Pruned weights laid out for the processor's kernels: what a model with zeros runs with once it is loaded.
//!
//! The values are those of [`Sparse`](super::Sparse) or [`Bitmask`](super::Bitmask); the layout is that of
//! [`MaskedRows`](crate::kernels::MaskedRows).

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::{Dense, Half, Weight, by_rows, to_tensor};
use crate::kernels::{MaskedRows, masked_rows_pay};

/// A weight of which only the kept values are read.
///
/// Size: one bit per weight, 2 bytes per kept value that bf16 or f16 holds like all others (else 4), 8 bytes for every four
/// outputs.
#[derive(Debug, Clone)]
pub struct Masked {
    rows: Arc<MaskedRows>,
    /// What is known of its zeros, in words.
    pattern: Option<String>,
}

impl Masked {
    /// The name in files, of which there are none: files hold pruned weights dense.
    pub const CODE: &str = "masked";

    /// Takes row-major values `[rows, cols]`; `pattern` names the order of the zeros, if there is one. `None` where reading
    /// all values is the faster way.
    ///
    /// # Panics
    /// If there are not `rows · cols` values.
    pub fn from_host(values: &[f32], rows: usize, cols: usize, pattern: Option<String>) -> Option<Self> {
        let kept = values.iter().filter(|&&value| value != 0.0).count();
        let pays = masked_rows_pay(kept as f64 / values.len().max(1) as f64);
        pays.then(|| Self { rows: Arc::new(MaskedRows::new(values, rows, cols)), pattern })
    }

    /// The fastest weight with these values: as [`from_host`](Self::from_host), else dense.
    pub(super) fn or_dense(
        values: Vec<f32>,
        [rows, cols]: [usize; 2],
        pattern: Option<String>,
        device: &Device,
    ) -> Option<Weight> {
        if let Some(masked) = Self::from_host(&values, rows, cols, pattern) {
            return Some(Weight::Masked(masked));
        }
        match Half::exactly(&values, rows, cols) {
            Some(half) => Some(Weight::Half(half)),
            None => Dense::from_host(rows, cols, values, device).ok().map(Weight::Dense),
        }
    }

    /// One matrix of several with the same inputs, the outputs of the first before those of the next; `None` where they differ
    /// in width or type, or one but the last has outputs that are no multiple of 4.
    pub fn stacked(parts: &[&Self]) -> Option<Self> {
        let rows: Vec<&MaskedRows> = parts.iter().map(|part| &*part.rows).collect();
        let first = parts.first()?;
        let same = parts.iter().all(|part| part.pattern == first.pattern);
        let pattern = first.pattern.clone().filter(|_| same);
        Some(Self { rows: Arc::new(MaskedRows::stacked(&rows)?), pattern })
    }

    /// The kernel's matrix.
    pub(super) fn held(&self) -> &Arc<MaskedRows> {
        &self.rows
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.rows.shape()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// For example `sparse 2:4, bf16` or `bitmask 50.0% zero, f32`.
    pub fn format_name(&self) -> String {
        let [rows, cols] = self.shape();
        let zeros = || 100.0 * (1.0 - self.rows.kept() as f64 / (rows * cols).max(1) as f64);
        let pattern = self.pattern.clone().unwrap_or_else(|| format!("bitmask {:.1}% zero", zeros()));
        format!("{pattern}, {}", self.rows.kind())
    }

    /// All values as an f32 tensor `[out, in]`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        let [rows, cols] = self.shape();
        to_tensor(self.rows.to_host(), rows, cols, device)
    }

    /// Whether `x` lies where the kernel reads it.
    pub(super) fn takes(&self, x: &Tensor<3>) -> bool {
        crate::ops::on_flex(x)
    }

    /// `x · Wᵀ` on the processor: `[batch, tokens, in]` to `[batch, tokens, out]`.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        by_rows(x, self.shape()[0], |x, rows, out| self.rows.product(x, rows, out))
    }
}
