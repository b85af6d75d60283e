//! A dense matrix in bf16 or f16: half the bytes of f32, and the values are the same where the checkpoint had no more digits
//! in the first place.
//!
//! A few rows of inputs meet the matrix as it lies, at the pace of the memory. For many rows stretches of it are unfolded
//! into a buffer that stays in the cache, and multiplied as f32.

use half::f16;
use rayon::prelude::*;

use super::columns::Columns;
use super::pages::Pages;
use crate::ops::simd::{LANES, mul_add, total, vectorised};
use crate::ops::tile::{Mat, product};

/// Bytes of weights that a thread takes at a time at least.
const PART: usize = 1 << 16;
/// From so many bytes, times rows, on threads share the work: below, waking them takes longer.
const SHARED: usize = 1 << 20;
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
        let mut out = vec![0.0; n * self.rows];
        if out.is_empty() || self.cols == 0 {
            return out;
        }
        if n > FEW_ROWS {
            return self.by_slabs(x, n);
        }
        self.few_rows(x, n, &mut out);
        out
    }

    /// As [`product`](Self::product) of at most 32 rows, written to `out`. One row asks for no memory.
    ///
    /// # Panics
    /// If `x` and `out` are not `n` rows, or more than these.
    pub fn few_rows(&self, x: &[f32], n: usize, out: &mut [f32]) {
        assert_eq!([x.len(), out.len()], [n * self.cols, n * self.rows], "inputs and outputs");
        assert!(n <= FEW_ROWS, "{n} rows are many");
        if self.cols == 0 {
            return out.fill(0.0);
        }
        let per_part = (PART / n.max(1)).div_ceil(2 * self.cols).max(1);
        let shared = n * self.bytes() >= SHARED;
        Columns::share(out, n, per_part, shared, |part, mut columns| {
            let weights = &self.values[part * per_part * self.cols..][..columns.width() * self.cols];
            if n == 1 {
                return self.few(weights, x, columns.row(0, 0));
            }
            let mut sums = vec![0.0; n * columns.width()];
            self.few(weights, x, &mut sums);
            for (row, sums) in sums.chunks_exact(columns.width()).enumerate() {
                columns.row(row, 0).copy_from_slice(sums);
            }
        });
    }

    fn few(&self, weights: &[u16], x: &[f32], out: &mut [f32]) {
        match self.kind {
            HalfType::BF16 => few::<true>(weights, self.cols, x, out),
            HalfType::F16 => few::<false>(weights, self.cols, x, out),
        }
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

/// `out [inputs, weights] = x · weightsᵀ`, both of rows of `cols` values.
#[allow(unsafe_code, reason = "a call for an instruction set that was found")]
fn few<const BF16: bool>(weights: &[u16], cols: usize, x: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        let (n, rows) = (x.len() / cols, weights.len() / cols);
        let mut first = 0;
        while first < n {
            let (x, out) = (&x[first * cols..], &mut out[first * rows..]);
            // SAFETY: the instructions are there; the slices are checked where they are read.
            first += unsafe {
                match n - first {
                    // A fourth row that is not there costs less than reading the weights twice.
                    3.. => avx512::few::<4, BF16>(weights, cols, x, out),
                    2 => avx512::few::<2, BF16>(weights, cols, x, out),
                    _ => avx512::few::<1, BF16>(weights, cols, x, out),
                }
            };
        }
        return;
    }
    let dot = if BF16 { dot_bf16 } else { dot_f16 };
    for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(weights.len() / cols)) {
        for (row, out) in weights.chunks_exact(cols).zip(out) {
            *out = dot(row, x);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "sums across the lanes of registers have no safe form")]
mod avx512 {
    use std::arch::x86_64::*;

    use crate::ops::few_rows::avx512::{TOGETHER, across};
    use crate::ops::simd::LANES;

    /// Rows of weights that are read side by side: of more the processor does not read ahead.
    const STREAMS: usize = 8;

    /// Sixteen values as f32. Finite ones only, in f16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn wide<const BF16: bool>(bits: __m256i) -> __m512 {
        if BF16 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        } else {
            _mm512_cvtph_ps(bits)
        }
    }

    /// `R` rows of inputs (4, 2 or 1; the last one stands in for those that are missing) with all rows of weights, sixteen sums at a time: each weight and each input is read
    /// once for several sums, whose lanes are added up together. A row's sums do not depend on `R`. `out` is as in
    /// [`few`](super::few). Gives how many rows there were.
    ///
    /// # Safety
    /// The processor has AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn few<const R: usize, const BF16: bool>(
        weights: &[u16],
        cols: usize,
        x: &[f32],
        out: &mut [f32],
    ) -> usize {
        let (rows, there) = (weights.len() / cols, R.min(x.len() / cols));
        assert!((R == 1 || R == 2 || R == 4) && there > 0 && out.len() >= there * rows, "rows and sums");
        let start = |r: usize| r.min(there - 1) * cols;
        let per_step = TOGETHER / R;
        let (whole, tail) = (cols - cols % LANES, ((1u32 << (cols % LANES)) - 1) as __mmask16);
        for first in (0..rows).step_by(per_step) {
            let mut sums = [_mm512_setzero_ps(); TOGETHER];
            // The last row stands in for those that are missing; what it gives is dropped.
            let row = |j: usize| (first + j).min(rows - 1) * cols;
            for part in (0..per_step).step_by(STREAMS) {
                let part = part..per_step.min(part + STREAMS);
                // SAFETY: every row has `cols` values; the tail reads from a copy.
                unsafe {
                    for at in (0..whole).step_by(LANES) {
                        let mut inputs = [_mm512_setzero_ps(); R];
                        for (r, input) in inputs.iter_mut().enumerate() {
                            *input = _mm512_loadu_ps(x.as_ptr().add(start(r) + at));
                        }
                        for j in part.clone() {
                            let weight = wide::<BF16>(_mm256_loadu_si256(weights.as_ptr().add(row(j) + at).cast()));
                            for (r, input) in inputs.iter().enumerate() {
                                sums[r * per_step + j] = _mm512_fmadd_ps(*input, weight, sums[r * per_step + j]);
                            }
                        }
                    }
                    if tail != 0 {
                        let mut inputs = [_mm512_setzero_ps(); R];
                        for (r, input) in inputs.iter_mut().enumerate() {
                            *input = _mm512_maskz_loadu_ps(tail, x.as_ptr().add(start(r) + whole));
                        }
                        for j in part {
                            let mut last = [0u16; LANES];
                            last[..cols - whole].copy_from_slice(&weights[row(j) + whole..row(j) + cols]);
                            let weight = wide::<BF16>(_mm256_loadu_si256(last.as_ptr().cast()));
                            for (r, input) in inputs.iter().enumerate() {
                                sums[r * per_step + j] = _mm512_fmadd_ps(*input, weight, sums[r * per_step + j]);
                            }
                        }
                    }
                }
            }
            let mut found = [0.0f32; TOGETHER];
            // SAFETY: 64 bytes of the array.
            unsafe { _mm512_storeu_ps(found.as_mut_ptr(), across(&sums)) };
            let here = per_step.min(rows - first);
            for (out, found) in out.chunks_mut(rows).zip(found.chunks(per_step)).take(there) {
                out[first..first + here].copy_from_slice(&found[..here]);
            }
        }
        there
    }
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
