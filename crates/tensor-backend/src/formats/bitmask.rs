//! Unstructured sparsity: one bit per weight says whether it is kept, and the kept ones follow each other.
//!
//! Layout: the flags of a row are a bit stream, least significant bit first, that starts on a word; kept weights
//! are in row-major order; `starts[r]` is the position of the first kept weight of row `r`.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use super::{Result, check_len, to_tensor};

/// A weight of which the zeros are not stored.
///
/// Size: 4 bytes per kept weight, `4 · out · ⌈in / 32⌉` bytes of flags and `8 · (out + 1)` bytes of row starts.
/// Smaller than dense f32 from about 3 % zeros on.
#[derive(Debug, Clone)]
pub struct Bitmask {
    rows: usize,
    cols: usize,
    flags: Arc<[u32]>,
    starts: Arc<[u64]>,
    values: Arc<[f32]>,
}

impl Bitmask {
    /// The name in files.
    pub const CODE: &str = "bitmask";

    /// Compresses a row-major matrix `[rows, cols]`. A negative zero counts, and comes back, as zero.
    pub fn from_host(rows: usize, cols: usize, weight: &[f32]) -> Result<Self> {
        check_len("weight to compress", weight.len(), rows, cols)?;
        let words = cols.div_ceil(32);
        let mut flags = vec![0u32; rows * words];
        flags.par_chunks_mut(words.max(1)).zip(weight.par_chunks(cols.max(1))).for_each(|(flags, weight)| {
            for (flag, weight) in flags.iter_mut().zip(weight.chunks(32)) {
                *flag = weight.iter().enumerate().fold(0, |bits, (i, &w)| bits | u32::from(w != 0.0) << i);
            }
        });
        let mut starts = vec![0u64; rows + 1];
        for (row, flags) in flags.chunks(words.max(1)).enumerate() {
            starts[row + 1] = starts[row] + flags.iter().map(|flag| u64::from(flag.count_ones())).sum::<u64>();
        }
        let values: Vec<f32> = weight.iter().copied().filter(|&w| w != 0.0).collect();
        Ok(Self { rows, cols, flags: flags.into(), starts: starts.into(), values: values.into() })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The words of the flags, `⌈in / 32⌉` per row.
    pub fn flags(&self) -> &[u32] {
        &self.flags
    }

    /// The kept weights, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The flags and the kept weights of one row. Panics beyond the last row.
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let words = self.cols.div_ceil(32);
        let kept = self.starts[row] as usize..self.starts[row + 1] as usize;
        (&self.flags[row * words..][..words], &self.values[kept])
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        4 * (self.values.len() + self.flags.len()) + 8 * self.starts.len()
    }

    /// For example `bitmask 50.0% zero`.
    pub fn format_name(&self) -> String {
        let zero = 1.0 - self.values.len() as f64 / (self.rows * self.cols).max(1) as f64;
        format!("bitmask {:.1}% zero", 100.0 * zero)
    }

    /// All values, row-major.
    pub fn to_host(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        out.par_chunks_mut(self.cols.max(1)).enumerate().for_each(|(row, out)| {
            let (flags, mut values) = self.row(row);
            for (&flag, out) in flags.iter().zip(out.chunks_mut(32)) {
                let (here, rest) = values.split_at(flag.count_ones() as usize);
                let mut left = flag;
                for &value in here {
                    out[left.trailing_zeros() as usize] = value;
                    left &= left - 1;
                }
                values = rest;
            }
        });
        out
    }

    /// All values as an f32 tensor `[out, in]`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        to_tensor(self.to_host(), self.rows, self.cols, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_values_and_size_are_pinned() {
        let mut weight = vec![0.0f32; 2 * 33];
        (weight[0], weight[31], weight[32], weight[33 + 5]) = (1.0, -2.0, 3.0, 4.0);
        weight[7] = -0.0;
        let mask = Bitmask::from_host(2, 33, &weight).unwrap();
        assert_eq!(mask.flags(), &[0x8000_0001, 1, 0x20, 0]);
        assert_eq!(mask.values(), &[1.0, -2.0, 3.0, 4.0]);
        assert_eq!(mask.row(1), (&[0x20, 0][..], &[4.0][..]));
        assert_eq!(mask.bytes(), 4 * 4 + 4 * 4 + 8 * 3);
        assert_eq!(mask.format_name(), "bitmask 93.9% zero");
        assert_eq!(mask.to_host(), weight);
        assert!(Bitmask::from_host(2, 33, &weight[1..]).is_err());
    }
}
