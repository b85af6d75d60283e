//! Integer grids: from a group of weights to a scale and a zero point, from a weight to a code and back.
//!
//! Every quantiser of this crate uses these functions, so that they differ in which weights they round
//! and never in how. All arithmetic is f32 with true divisions and halves rounded to even, as in the
//! reference implementations: multiplying by a reciprocal instead changes codes.

use burn::tensor::{bf16, f16};
use kindling_core::{Granularity, Quantized, ScaleType};
use rayon::prelude::*;
use serde::Deserialize;

/// How the range of a group is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// The range that holds every weight.
    #[default]
    None,
    /// Of 80 ranges, shrunk by 0 to 79 percent, the one with the smallest `Σ |w − ŵ|^2.4`.
    Mse,
}

/// How the grid of each group is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GridSpec {
    /// Bits per code, 2 to 8.
    pub bits: u8,
    /// Whether the zero point is `2^(bits−1)` everywhere.
    pub symmetric: bool,
    /// How the range is chosen.
    pub clip: Clip,
    /// The type that a scale is rounded to before any code is computed.
    pub scale_type: ScaleType,
}

/// The grid of one group: the values `scale · (code − zero)` for the codes `0 … max`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// The step: positive, finite and a value of the scale type.
    pub scale: f32,
    /// The code of the value 0; a whole number within `0 … max`.
    pub zero: f32,
    /// The largest code.
    pub max: f32,
}

/// Added to a number below 2²² in magnitude, this leaves the number rounded (half to even) in the low
/// mantissa bits. Unlike `round_ties_even` it needs no instruction beyond baseline x86-64.
const ROUND: f32 = 12_582_912.0;

/// How many partial sums a reduction keeps, so that it vectorises and its order is fixed.
const LANES: usize = 16;

impl Grid {
    /// The distance of `w` from 0 in steps, rounded and kept within the grid; still offset by [`ROUND`].
    #[inline(always)]
    fn offset_steps(self, w: f32) -> f32 {
        (w / self.scale).clamp(-self.zero, self.max - self.zero) + ROUND
    }

    /// The code nearest to `w`: halves go to even, values beyond the ends to the ends.
    #[inline(always)]
    pub fn code(self, w: f32) -> u8 {
        // The low byte is the step count in two's complement; adding the zero point makes it a code.
        (self.offset_steps(w).to_bits() as u8).wrapping_add(self.zero as u8)
    }

    /// The value of a code.
    #[inline(always)]
    pub fn value(self, code: u8) -> f32 {
        self.scale * (f32::from(code) - self.zero)
    }

    /// The value of the code nearest to `w`.
    #[inline(always)]
    pub fn round(self, w: f32) -> f32 {
        self.scale * (self.offset_steps(w) - ROUND)
    }

    /// The codes of a group.
    pub fn codes(self, weights: &[f32], codes: &mut [u8]) {
        codes.iter_mut().zip(weights).for_each(|(code, &w)| *code = self.code(w));
    }
}

impl GridSpec {
    /// The largest code, `2^bits − 1`.
    pub fn max_code(&self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }

    /// The grid for a group of finite weights. Zero is always a value of the grid, so a pruned weight
    /// (pass it as 0) stays exactly 0; a group of zeros alone gets an ordinary scale, never 0.
    pub fn fit(&self, weights: &[f32]) -> Grid {
        let (lo, hi) = range(weights);
        let errors = self.candidates().map(|shrink| self.candidate(weights, lo, hi, shrink));
        best(errors).unwrap_or_else(|| self.over(lo, hi))
    }

    /// [`GridSpec::fit`] for a group as large as a matrix: the clip search runs on all threads.
    fn fit_tensor(&self, weights: &[f32]) -> Grid {
        let (lo, hi) = range(weights);
        let shrinks: Vec<u8> = self.candidates().collect();
        let errors: Vec<(f64, Grid)> =
            shrinks.par_iter().map(|&shrink| self.candidate(weights, lo, hi, shrink)).collect();
        best(errors.into_iter()).unwrap_or_else(|| self.over(lo, hi))
    }

    /// The grids of all groups of a row-major matrix with `cols` columns, in the order of
    /// [`Quantized::scales`].
    pub fn fit_matrix(&self, weights: &[f32], cols: usize, granularity: Granularity) -> Vec<Grid> {
        if granularity == Granularity::Tensor {
            return vec![self.fit_tensor(weights)];
        }
        let len = granularity.group_len(cols).max(1);
        weights.par_chunks(cols.max(1)).flat_map_iter(|row| row.chunks(len).map(|group| self.fit(group))).collect()
    }

    /// Puts codes and grids together.
    pub(crate) fn assemble(
        &self,
        [rows, cols]: [usize; 2],
        granularity: Granularity,
        codes: Vec<u8>,
        grids: &[Grid],
        group_index: Option<Vec<u32>>,
    ) -> Quantized {
        Quantized {
            rows,
            cols,
            bits: self.bits,
            granularity,
            scale_type: self.scale_type,
            codes,
            scales: grids.iter().map(|grid| grid.scale).collect(),
            zeros: (!self.symmetric).then(|| grids.iter().map(|grid| grid.zero as u8).collect()),
            group_index,
        }
    }

    /// The percentages by which the clip search shrinks a range; none without a search.
    fn candidates(&self) -> std::ops::Range<u8> {
        if self.clip == Clip::Mse { 0..80 } else { 0..0 }
    }

    /// One step of the clip search: the error of the grid over the shrunk range, and the grid.
    fn candidate(&self, weights: &[f32], lo: f32, hi: f32, shrink: u8) -> (f64, Grid) {
        let keep = (1.0 - f64::from(shrink) / 100.0) as f32;
        let grid = self.over(keep * lo, keep * hi);
        (error(weights, grid, hi.max(-lo)), grid)
    }

    /// The grid over the range `lo ≤ 0 ≤ hi`.
    fn over(&self, lo: f32, hi: f32) -> Grid {
        let extreme = hi.max(-lo);
        let (lo, hi) = match (self.symmetric, extreme == 0.0) {
            (_, true) => (-1.0, 1.0),
            (true, false) => (-extreme, extreme),
            (false, false) => (lo, hi),
        };
        let max = f32::from(self.max_code());
        let scale = if self.symmetric { hi / (max / 2.0) } else { (hi - lo) / max };
        let scale = stored(scale, self.scale_type);
        let middle = f32::from(1u8 << (self.bits - 1));
        let zero = if self.symmetric { middle } else { ((-lo / scale).clamp(0.0, max) + ROUND) - ROUND };
        Grid { scale, zero, max }
    }
}

/// The grid with the smallest error; the first of equals. None where no error is a number below infinity.
fn best(candidates: impl Iterator<Item = (f64, Grid)>) -> Option<Grid> {
    let mut best = (f64::INFINITY, None);
    for (error, grid) in candidates {
        if error < best.0 {
            best = (error, Some(grid));
        }
    }
    best.1
}

/// The scale as its storage type holds it, as f32: the nearest value, but never 0 nor infinite. Below the
/// normal range, where the nearest value may be far off, the next larger one: it costs resolution, not range.
pub fn stored(scale: f32, scale_type: ScaleType) -> f32 {
    // 2⁻²⁴ and 2⁻¹³³: the smallest positive values of the two half-width types.
    let (nearest, normal, step, largest) = match scale_type {
        ScaleType::F32 => (scale, f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX),
        ScaleType::F16 => {
            (f16::from_f32(scale).to_f32(), f16::MIN_POSITIVE.to_f32(), 2f32.powi(-24), f16::MAX.to_f32())
        }
        ScaleType::BF16 => {
            (bf16::from_f32(scale).to_f32(), bf16::MIN_POSITIVE.to_f32(), f32::from_bits(1 << 16), bf16::MAX.to_f32())
        }
    };
    let rounded = if scale < normal { (scale / step).ceil() * step } else { nearest };
    rounded.clamp(step, largest)
}

/// The smallest and largest weight of a group, with 0 among them.
fn range(weights: &[f32]) -> (f32, f32) {
    let (mut lo, mut hi) = ([0f32; LANES], [0f32; LANES]);
    let mut include = |chunk: &[f32]| {
        for ((lo, hi), &w) in lo.iter_mut().zip(&mut hi).zip(chunk) {
            *lo = if w < *lo { w } else { *lo };
            *hi = if w > *hi { w } else { *hi };
        }
    };
    let chunks = weights.chunks_exact(LANES);
    let rest = chunks.remainder();
    chunks.for_each(&mut include);
    include(rest);
    (lo.into_iter().fold(0.0, f32::min), hi.into_iter().fold(0.0, f32::max))
}

/// `Σ |w − ŵ|^2.4` in units of `unit`, the largest weight, which keeps the powers in range.
fn error(weights: &[f32], grid: Grid, unit: f32) -> f64 {
    let per_unit = 1.0 / unit;
    let mut total = 0.0;
    // f32 lanes within a run, f64 across runs: a group can be a whole matrix.
    for run in weights.chunks(1024) {
        let mut sums = [0f32; LANES];
        let mut add = |chunk: &[f32]| {
            for (sum, &w) in sums.iter_mut().zip(chunk) {
                *sum += power_2_4((w - grid.round(w)) * per_unit);
            }
        };
        let chunks = run.chunks_exact(LANES);
        let rest = chunks.remainder();
        chunks.for_each(&mut add);
        add(rest);
        total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    total
}

/// `|x|^2.4` for `|x|` up to 2, to about 1e-6 relative; branch-free, so that a loop over it vectorises.
///
/// With a = x² this is `a · a^(1/5)`, and `a^(1/5) = a · r⁴` for `r = a^(−1/5)`, which Newton's iteration
/// finds without a division.
#[inline(always)]
fn power_2_4(x: f32) -> f32 {
    // The floor stands for an error that no sum notices and keeps r⁵ finite.
    let a = if x * x > 1e-30 { x * x } else { 1e-30 };
    // About 6/5 of the bits of 1.0, less what centres the error: the start is within 3.2 percent.
    let mut r = f32::from_bits(1_277_923_296 - a.to_bits() / 5);
    for _ in 0..3 {
        let r2 = r * r;
        r *= 1.2 - 0.2 * a * (r2 * r2 * r);
    }
    let r2 = r * r;
    a * a * (r2 * r2)
}

#[cfg(test)]
pub(crate) mod tests;
