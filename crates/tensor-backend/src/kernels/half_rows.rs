//! A dense matrix in bf16 or f16: half the bytes of f32, and the values are the same where the checkpoint had no more digits
//! in the first place.
//!
//! A few rows of inputs meet the matrix as it lies, at the pace of the memory. For many rows stretches of it are unfolded
//! into a buffer that stays in the cache, and multiplied as f32.

use half::f16;
use rayon::prelude::*;

use super::pages::Pages;
use crate::ops::simd::{LANES, mul_add, total, vectorised};
use crate::ops::tile::{Mat, product};

/// Bytes of weights that a thread takes at a time at least.
const PART: usize = 1 << 16;
/// Up to so many rows of inputs reading the matrix takes longer than multiplying it.
const FEW_ROWS: usize = 32;
/// Outputs that are unfolded at a time.
const SLAB: usize = 96;

/// The type of the values in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfType {
    /// The upper half of an f32.
    BF16,
    /// IEEE half precision.
    F16,
}

/// `[rows, cols]`, row-major.
#[derive(Debug, Clone)]
pub struct HalfRows {
    rows: usize,
    cols: usize,
    kind: HalfType,
    values: Pages<u16>,
}

impl HalfRows {
    /// Takes a row-major matrix if bf16, or else f16, holds every value of it exactly.
    pub fn exactly(values: &[f32], rows: usize, cols: usize) -> Option<Self> {
        if values.len() != rows * cols {
            return None;
        }
        // Without a way out in the middle the loops become vector instructions.
        let all_bf16 = |part: &[f32]| part.iter().fold(0, |bits, value| bits | value.to_bits() & 0xffff) == 0;
        let all_f16 = |part: &[f32]| part.iter().all(|&value| f16::from_f32(value).to_f32() == value);
        let kind = if values.par_chunks(PART).all(all_bf16) {
            HalfType::BF16
        } else if values.par_chunks(PART).all(all_f16) {
            HalfType::F16
        } else {
            return None;
        };
        let mut held = Pages::<u16>::zeroed(values.len());
        held.par_chunks_mut(PART).zip(values.par_chunks(PART)).for_each(|(held, values)| match kind {
            HalfType::BF16 => held.iter_mut().zip(values).for_each(|(held, x)| *held = (x.to_bits() >> 16) as u16),
            HalfType::F16 => held.iter_mut().zip(values).for_each(|(held, &x)| *held = f16::from_f32(x).to_bits()),
        });
        Some(Self { rows, cols, kind, values: held })
    }

    /// The rows of all `parts`, one after the other; `None` where they differ in width or type.
    pub fn stacked(parts: &[&Self]) -> Option<Self> {
        let first = *parts.first()?;
        if parts.iter().any(|part| (part.cols, part.kind) != (first.cols, first.kind)) {
            return None;
        }
        let values: Vec<&[u16]> = parts.iter().map(|part| &part.values[..]).collect();
        let rows = parts.iter().map(|part| part.rows).sum();
        Some(Self { rows, cols: first.cols, kind: first.kind, values: Pages::joined(&values) })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The type in memory.
    pub fn kind(&self) -> HalfType {
        self.kind
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        2 * self.values.len()
    }

    /// Row `i` in f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        self.unfold(&self.values[i * self.cols..][..self.cols], out);
    }

    /// All values in f32.
    pub fn to_host(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.values.len()];
        out.par_chunks_mut(PART).zip(self.values.par_chunks(PART)).for_each(|(out, values)| self.unfold(values, out));
        out
    }

    fn unfold(&self, values: &[u16], out: &mut [f32]) {
        assert_eq!(values.len(), out.len(), "values");
        match self.kind {
            HalfType::BF16 => unfold_bf16(values, out),
            HalfType::F16 => unfold_f16(values, out),
        }
    }

    /// `x · Wᵀ`: `[n, in]` to `[n, out]`. The result does not depend on the number of threads, and a row of few gives the same
    /// in any number of them.
    ///
    /// # Panics
    /// If `x` is not `n` rows of inputs.
    pub fn product(&self, x: &[f32], n: usize) -> Vec<f32> {
        assert_eq!(x.len(), n * self.cols, "inputs");
        // Output by output, so that threads write apart; put in order below.
        let mut columns = vec![0.0; n * self.rows];
        if columns.is_empty() || self.cols == 0 {
            return columns;
        }
        if n > FEW_ROWS {
            return self.by_slabs(x, n);
        }
        let per_part = PART.div_ceil(2 * self.cols).max(1);
        let dot = match self.kind {
            HalfType::BF16 => dot_bf16,
            HalfType::F16 => dot_f16,
        };
        columns.par_chunks_mut(n * per_part).enumerate().for_each(|(part, out)| {
            for (i, out) in out.chunks_mut(n).enumerate() {
                let row = &self.values[(part * per_part + i) * self.cols..][..self.cols];
                for (out, x) in out.iter_mut().zip(x.chunks(self.cols)) {
                    *out = dot(row, x);
                }
            }
        });
        if n == 1 { columns } else { transposed(&columns, n, self.rows) }
    }

    fn by_slabs(&self, x: &[f32], n: usize) -> Vec<f32> {
        let cols = self.cols;
        let slabs: Vec<Vec<f32>> = self
            .values
            .par_chunks(SLAB * cols)
            .map(|values| {
                let (rows, mut weights) = (values.len() / cols, vec![0.0; values.len()]);
                self.unfold(values, &mut weights);
                let mut out = vec![0.0; n * rows];
                product([n, rows, cols], Mat::rows(x, cols), Mat::rows(&weights, cols).transposed(), &mut out, false);
                out
            })
            .collect();
        let mut out = vec![0.0; n * self.rows];
        out.par_chunks_mut(self.rows).enumerate().for_each(|(row, out)| {
            for (slab, out) in slabs.iter().zip(out.chunks_mut(SLAB)) {
                out.copy_from_slice(&slab[row * out.len()..][..out.len()]);
            }
        });
        out
    }
}

/// `[rows, n]` becomes `[n, rows]`.
fn transposed(columns: &[f32], n: usize, rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; columns.len()];
    for (row, column) in columns.chunks(n).enumerate() {
        column.iter().enumerate().for_each(|(i, &y)| out[i * rows + row] = y);
    }
    out
}

/// bf16 is the upper half of an f32.
#[inline(always)]
fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f16 in the places of an f32, its exponent put right by a multiplication, which is exact. Finite values only.
#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    const EXPONENT: f32 = f32::from_bits((127 + 112) << 23);
    let size = f32::from_bits(u32::from(bits & 0x7fff) << 13) * EXPONENT;
    f32::from_bits(size.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// Defines the loops over values of one type.
macro_rules! loops {
    ($dot:ident, $unfold:ident, $from:ident) => {
        vectorised! {
            /// Sum of products in [`LANES`] partial sums, four of them in turn to hide the time of an addition.
            fn $dot(weights: &[u16], x: &[f32]) -> f32 {
                let mut sums = [[0.0f32; LANES]; 4];
                let (w_chunks, x_chunks) = (weights.chunks_exact(4 * LANES), x.chunks_exact(4 * LANES));
                let (w_rest, x_rest) = (w_chunks.remainder(), x_chunks.remainder());
                let tail: f32 = w_rest.iter().zip(x_rest).map(|(&w, x)| $from(w) * x).sum();
                for (w, x) in w_chunks.zip(x_chunks) {
                    for part in 0..4 {
                        for i in 0..LANES {
                            let at = part * LANES + i;
                            sums[part][i] = mul_add::<FMA>($from(w[at]), x[at], sums[part][i]);
                        }
                    }
                }
                let mut all = sums[0];
                for i in 0..LANES {
                    all[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
                }
                total(all) + tail
            }

            fn $unfold(values: &[u16], out: &mut [f32]) {
                let _ = FMA;
                for (out, &bits) in out.iter_mut().zip(values) {
                    *out = $from(bits);
                }
            }
        }
    };
}
loops!(dot_bf16, unfold_bf16, from_bf16);
loops!(dot_f16, unfold_f16, from_f16);

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_are_those_of_f64(rows in 1usize..120, cols in 1usize..300, n in prop_oneof![1usize..5, 30usize..40], f16s in any::<bool>()) {
            let rounded = |x: f32| if f16s { f16::from_f32(x + 1e-3).to_f32() } else { bf16::from_f32(x).to_f32() };
            let weights: Vec<f32> = (0..rows * cols).map(|i| rounded(((i * 37 % 101) as f32 - 50.0) / 31.0)).collect();
            let x: Vec<f32> = (0..n * cols).map(|i| ((i * 53 % 97) as f32 - 48.0) / 29.0).collect();
            let half = HalfRows::exactly(&weights, rows, cols).unwrap();
            prop_assert_eq!(&half.to_host(), &weights);
            let found = half.product(&x, n);
            for (i, found) in found.iter().enumerate() {
                let (w, x) = (&weights[i % rows * cols..][..cols], &x[i / rows * cols..][..cols]);
                let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                let size: f64 = terms.clone().map(f64::abs).sum();
                prop_assert!((f64::from(*found) - terms.sum::<f64>()).abs() <= 1e-6 * size.max(1e-9));
            }
        }
    }

    #[test]
    fn every_finite_f16_is_read_right() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            if value.is_finite() {
                assert_eq!(from_f16(bits).to_bits(), value.to_f32().to_bits(), "{value}");
            }
        }
    }

    #[test]
    fn other_values_are_not_taken() {
        assert!(HalfRows::exactly(&[1.0, 0.1], 1, 2).is_none());
        assert!(HalfRows::exactly(&[1.0, 0.5], 2, 2).is_none());
        assert!(HalfRows::exactly(&[1e9, 1.0 + 1.0 / 1024.0], 1, 2).is_none(), "one for each type");
        assert_eq!(HalfRows::exactly(&[1.0, 1.0 + 1.0 / 1024.0], 1, 2).unwrap().kind(), HalfType::F16);
        assert_eq!(HalfRows::exactly(&[], 0, 7).unwrap().product(&[0.0; 7], 1), [0.0f32; 0]);
    }

    #[test]
    fn parts_are_stacked_if_they_are_alike() {
        let part = |x: f32| HalfRows::exactly(&[x, 2.0], 1, 2).unwrap();
        let both = HalfRows::stacked(&[&part(1.0), &part(-3.0)]).unwrap();
        assert_eq!((both.shape(), both.to_host()), ([2, 2], vec![1.0, 2.0, -3.0, 2.0]));
        let mut row = [0.0; 2];
        both.row(1, &mut row);
        assert_eq!(row, [-3.0, 2.0]);
        assert!(HalfRows::stacked(&[&part(1.0), &part(1.0 + 1.0 / 1024.0)]).is_none());
    }
}
