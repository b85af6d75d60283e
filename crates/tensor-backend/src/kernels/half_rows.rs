//! A dense matrix of bf16 values, for products with few rows of inputs: half the bytes of f32, and the values are the same
//! where the checkpoint had bf16 in the first place.

use half::bf16;
use rayon::prelude::*;

use crate::ops::simd::{LANES, mul_add, total, vectorised};

/// Bytes of weights that a thread takes at a time at least.
const PART: usize = 1 << 16;

/// `[rows, cols]` in bf16, row-major.
#[derive(Debug, Clone)]
pub struct HalfRows {
    rows: usize,
    cols: usize,
    values: Vec<bf16>,
}

impl HalfRows {
    /// Takes a row-major matrix if bf16 holds every value of it exactly.
    pub fn exactly(values: &[f32], rows: usize, cols: usize) -> Option<Self> {
        if values.len() != rows * cols || values.par_iter().any(|value| value.to_bits() & 0xffff != 0) {
            return None;
        }
        Some(Self { rows, cols, values: values.par_iter().map(|&value| bf16::from_f32(value)).collect() })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        2 * self.values.len()
    }

    /// `x · Wᵀ`: `[n, in]` to `[n, out]`. The result does not depend on the number of threads.
    ///
    /// # Panics
    /// If `x` is not `n` rows of inputs.
    pub fn product(&self, x: &[f32], n: usize) -> Vec<f32> {
        assert_eq!(x.len(), n * self.cols, "inputs");
        let mut columns = vec![0.0; n * self.rows];
        if columns.is_empty() {
            return columns;
        }
        let per_part = PART.div_ceil(2 * self.cols.max(1)).max(1);
        // Output by output, so that threads write apart; put in order below.
        columns.par_chunks_mut(n * per_part).enumerate().for_each(|(part, out)| {
            for (i, out) in out.chunks_mut(n).enumerate() {
                let row = &self.values[(part * per_part + i) * self.cols..][..self.cols];
                for (out, x) in out.iter_mut().zip(x.chunks(self.cols.max(1))) {
                    *out = dot(row, x);
                }
            }
        });
        if n == 1 {
            return columns;
        }
        let mut out = vec![0.0; n * self.rows];
        for (row, column) in columns.chunks(n).enumerate() {
            column.iter().enumerate().for_each(|(i, &y)| out[i * self.rows + row] = y);
        }
        out
    }
}

vectorised! {
    /// Sum of products in [`LANES`] partial sums, four of them in turn to hide the time of an addition.
    fn dot(weights: &[bf16], x: &[f32]) -> f32 {
        let mut sums = [[0.0f32; LANES]; 4];
        let (w_chunks, x_chunks) = (weights.chunks_exact(4 * LANES), x.chunks_exact(4 * LANES));
        let (w_rest, x_rest) = (w_chunks.remainder(), x_chunks.remainder());
        let tail: f32 = w_rest.iter().zip(x_rest).map(|(w, x)| w.to_f32() * x).sum();
        for (w, x) in w_chunks.zip(x_chunks) {
            for part in 0..4 {
                for i in 0..LANES {
                    // bf16 is the upper half of an f32.
                    let weight = f32::from_bits(u32::from(w[part * LANES + i].to_bits()) << 16);
                    sums[part][i] = mul_add::<FMA>(weight, x[part * LANES + i], sums[part][i]);
                }
            }
        }
        let mut all = sums[0];
        for i in 0..LANES {
            all[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
        }
        total(all) + tail
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_are_those_of_f64(rows in 1usize..40, cols in 1usize..300, n in 1usize..5) {
            let weights: Vec<f32> = (0..rows * cols).map(|i| bf16::from_f32(((i * 37 % 101) as f32 - 50.0) / 31.0).to_f32()).collect();
            let x: Vec<f32> = (0..n * cols).map(|i| ((i * 53 % 97) as f32 - 48.0) / 29.0).collect();
            let half = HalfRows::exactly(&weights, rows, cols).unwrap();
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
    fn other_values_are_not_taken() {
        assert!(HalfRows::exactly(&[1.0, 0.1], 1, 2).is_none());
        assert!(HalfRows::exactly(&[1.0, 0.5], 2, 2).is_none());
        assert_eq!(HalfRows::exactly(&[], 0, 7).unwrap().product(&[0.0; 7], 1), [0.0f32; 0]);
    }
}
