//! A dense matrix in bf16 or f16: half the bytes of f32, and the values are the same where the checkpoint had no more digits
//! in the first place.
//!
//! Sixteen outputs lie side by side, input after input, so that a register of weights meets one input and no sum is ever taken
//! across lanes. Every output is summed in the order of its inputs, whatever the number of rows: a row gives the same bits alone as in
//! any company. A few rows meet the matrix as it lies, at the pace of the memory; for many it is unfolded to f32, two tiles at a time.

use std::borrow::Cow;

use half::f16;
use rayon::prelude::*;

use super::columns::{Columns, Stretch};
use super::pages::Pages;
use super::tiles::ROWS;
use crate::ops::simd::{mul_add, vectorised};

/// Bytes of weights that a thread takes at a time at least.
const PART: usize = 1 << 16;
/// From so many bytes, times rows, on threads share the work: below, waking them takes longer.
const SHARED: usize = 1 << 19;
/// Up to so many rows of inputs the matrix is not unfolded.
const FEW_ROWS: usize = 32;
/// Tiles that a thread takes at a time at most, where there are many rows.
const TILES_OF_PART: usize = 16;

/// The type of the values in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfType {
    /// The upper half of an f32.
    BF16,
    /// IEEE half precision.
    F16,
}

/// `[rows, cols]`: tile by tile of 16 rows, input by input, row by row; zeros beyond the last row.
#[derive(Debug, Clone)]
pub struct HalfTiles {
    rows: usize,
    cols: usize,
    kind: HalfType,
    values: Pages<u16>,
}

impl HalfTiles {
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
        let narrow = |x: f32| match kind {
            HalfType::BF16 => (x.to_bits() >> 16) as u16,
            HalfType::F16 => f16::from_f32(x).to_bits(),
        };
        let tile = ROWS * cols.max(1);
        let mut held = Pages::<u16>::zeroed(rows.div_ceil(ROWS) * ROWS * cols);
        held.par_chunks_mut(tile).zip(values.par_chunks(tile)).for_each(|(held, values)| {
            for (row, values) in values.chunks_exact(cols).enumerate() {
                held[row..].iter_mut().step_by(ROWS).zip(values).for_each(|(held, &x)| *held = narrow(x));
            }
        });
        Some(Self { rows, cols, kind, values: held })
    }

    /// The rows of all `parts`, one after the other; `None` where they differ in width or type, or one but the last ends within a
    /// tile.
    pub fn stacked(parts: &[&Self]) -> Option<Self> {
        let (first, last) = (*parts.first()?, parts.len() - 1);
        let fits = |(i, part): (usize, &&Self)| {
            (part.cols, part.kind) == (first.cols, first.kind) && (i == last || part.rows.is_multiple_of(ROWS))
        };
        if !parts.iter().enumerate().all(fits) {
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

    fn wide(&self, bits: u16) -> f32 {
        match self.kind {
            HalfType::BF16 => from_bf16(bits),
            HalfType::F16 => from_f16(bits),
        }
    }

    /// Row `i` in f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows && out.len() == self.cols, "row {i} of {}", self.rows);
        let tile = &self.values[i / ROWS * ROWS * self.cols..][..ROWS * self.cols];
        out.iter_mut().zip(tile[i % ROWS..].iter().step_by(ROWS)).for_each(|(out, &bits)| *out = self.wide(bits));
    }

    /// All values in f32, row-major.
    pub fn to_host(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        out.par_chunks_mut(self.cols.max(1)).enumerate().for_each(|(i, out)| self.row(i, out));
        out
    }

    /// `x · Wᵀ`: `[n, in]` to `[n, out]`. The result does not depend on the number of threads, and that of a row not on the number
    /// of rows.
    ///
    /// # Panics
    /// If `x` is not `n` rows of inputs, or `out` not `n` rows of outputs.
    pub fn product(&self, x: &[f32], n: usize, out: &mut [f32]) {
        assert_eq!([x.len(), out.len()], [n * self.cols, n * self.rows], "inputs and outputs");
        if out.is_empty() || self.cols == 0 {
            return out.fill(0.0);
        }
        let inputs = Inputs::new(x, n, self.cols);
        let (tiles, threads) = (self.rows.div_ceil(ROWS), rayon::current_num_threads());
        let (per_part, shared) = match n <= FEW_ROWS {
            true => (PART.div_ceil(2 * n * ROWS * self.cols), n * self.bytes() >= SHARED),
            false => ((tiles / (4 * threads)).clamp(1, TILES_OF_PART), true),
        };
        let per_part = per_part.next_multiple_of(TOGETHER);
        Columns::share(out, n, per_part * ROWS, shared, |part, mut columns| {
            let held = columns.width().div_ceil(ROWS) * ROWS * self.cols;
            let weights = &self.values[part * per_part * ROWS * self.cols..][..held];
            match self.kind {
                HalfType::BF16 => multiply::<true>(weights, &inputs, &mut columns),
                HalfType::F16 => multiply::<false>(weights, &inputs, &mut columns),
            }
        });
    }
}

/// Rows of inputs that meet two tiles in registers.
const BLOCK: usize = 12;
/// Tiles that a few rows meet together.
const TOGETHER: usize = 4;

/// Rows in groups of [`BLOCK`] (the last one may have fewer), each input by input: rows of a matrix lie a power of two apart as a rule, and
/// twelve such lines do not fit into the first cache together.
struct Inputs<'a> {
    rows: usize,
    cols: usize,
    values: Cow<'a, [f32]>,
}

impl<'a> Inputs<'a> {
    fn new(x: &'a [f32], rows: usize, cols: usize) -> Self {
        if rows == 1 {
            return Self { rows, cols, values: Cow::Borrowed(x) };
        }
        let mut values = vec![0.0; x.len()];
        let grouped = |(values, x): (&mut [f32], &[f32])| {
            let width = x.len() / cols;
            for (row, x) in x.chunks_exact(cols).enumerate() {
                values[row..].iter_mut().step_by(width).zip(x).for_each(|(value, x)| *value = *x);
            }
        };
        let group = BLOCK * cols;
        if rows <= FEW_ROWS {
            values.chunks_mut(group).zip(x.chunks(group)).for_each(grouped);
        } else {
            values.par_chunks_mut(group).zip(x.par_chunks(group)).for_each(grouped);
        }
        Self { rows, cols, values: Cow::Owned(values) }
    }

    /// The first row, the rows and the values of every group from row `from` on, with which one begins, up to another.
    fn groups(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, usize, &[f32])> {
        let values = &self.values[from * self.cols..to.min(self.rows) * self.cols];
        let groups = values.chunks(BLOCK * self.cols).enumerate();
        groups.map(move |(i, values)| (from + i * BLOCK, values.len() / self.cols, values))
    }
}

/// All rows with some tiles.
fn multiply<const BF16: bool>(weights: &[u16], x: &Inputs<'_>, out: &mut Stretch<'_>) {
    #[cfg(target_arch = "x86_64")]
    if avx512::available() {
        return match x.rows <= FEW_ROWS {
            true => avx512::few::<BF16>(weights, x, out),
            false => avx512::many::<BF16>(weights, x, out),
        };
    }
    plain::<BF16>(weights, x, out);
}

/// The plain twin: the same sums. What runs where there is no AVX-512.
fn plain<const BF16: bool>(weights: &[u16], x: &Inputs<'_>, out: &mut Stretch<'_>) {
    let mut sums = [[0.0; ROWS]; BLOCK];
    for (tile, weights) in weights.chunks_exact(ROWS * x.cols).enumerate() {
        for (first, rows, x) in x.groups(0, x.rows) {
            if BF16 {
                tile_bf16(weights, x, &mut sums[..rows])
            } else {
                tile_f16(weights, x, &mut sums[..rows])
            }
            for (row, sums) in sums[..rows].iter().enumerate() {
                put(sums, out.row(first + row, tile * ROWS));
            }
        }
    }
}

/// Outputs of a tile; the last one may reach beyond the row.
fn put(sums: &[f32; ROWS], out: &mut [f32]) {
    match out.first_chunk_mut::<ROWS>() {
        Some(out) => *out = *sums,
        None => out.copy_from_slice(&sums[..out.len()]),
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "blocks of sums in registers have no safe form")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Inputs, ROWS, Stretch, TOGETHER, put};

    /// Tiles of a block of many rows: 24 registers of sums.
    const SIDE: usize = 2;
    /// Bytes of inputs that stay in a core's second cache while tiles pass by.
    const INPUTS: usize = 1 << 19;

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx512f")
    }

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

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn stored(sums: __m512) -> [f32; ROWS] {
        let mut found = [0.0; ROWS];
        // SAFETY: 64 bytes of the array.
        unsafe { _mm512_storeu_ps(found.as_mut_ptr(), sums) };
        found
    }

    pub(super) fn few<const BF16: bool>(weights: &[u16], x: &Inputs<'_>, out: &mut Stretch<'_>) {
        let tile = ROWS * x.cols;
        assert!(x.cols > 0 && weights.len().is_multiple_of(tile), "tiles");
        for (first, tiles) in weights.chunks(TOGETHER * tile).enumerate() {
            for (from, width, x) in x.groups(0, x.rows) {
                let mut row = 0;
                while row < width {
                    let block = Block { tiles, x: &x[row..], width, tile: first * TOGETHER, row: from + row };
                    // SAFETY: the instructions were found; so many rows are left in the group.
                    row += unsafe {
                        match width - row {
                            1 => block.multiply::<BF16, 1, 4>(out),
                            2 => block.multiply::<BF16, 2, 4>(out),
                            3 => block.multiply::<BF16, 3, 4>(out),
                            4 => block.multiply::<BF16, 4, 4>(out),
                            5 => block.multiply::<BF16, 5, 4>(out),
                            6 => block.multiply::<BF16, 6, 4>(out),
                            7 => block.multiply::<BF16, 4, 4>(out),
                            8..12 => block.multiply::<BF16, 8, 2>(out),
                            _ => block.multiply::<BF16, 6, 4>(out),
                        }
                    };
                }
            }
        }
    }

    /// Rows of a group with a few tiles.
    struct Block<'a> {
        tiles: &'a [u16],
        /// Of a group of `width` rows, from the first row on.
        x: &'a [f32],
        width: usize,
        /// The first tile and the first row of the output.
        tile: usize,
        row: usize,
    }

    impl Block<'_> {
        /// `R` rows, `T` tiles at a time; the last one stands in for those that are missing. Gives `R`.
        ///
        /// # Safety
        /// The processor has AVX-512F.
        #[target_feature(enable = "avx512f")]
        unsafe fn multiply<const BF16: bool, const R: usize, const T: usize>(&self, out: &mut Stretch<'_>) -> usize {
            let cols = self.x.len().div_ceil(self.width);
            let there = self.tiles.len() / (ROWS * cols);
            assert!(there > 0 && self.tiles.len() == there * ROWS * cols, "whole tiles");
            assert!((cols - 1) * self.width + R <= self.x.len(), "rows of a group");
            for first in (0..there).step_by(T) {
                let start = |t: usize| (first + t).min(there - 1) * ROWS * cols;
                let mut sums = [[_mm512_setzero_ps(); T]; R];
                for col in 0..cols {
                    let mut held = [_mm512_setzero_ps(); T];
                    // SAFETY: a register of every tile and an input of every row, as just checked.
                    unsafe {
                        for (t, held) in held.iter_mut().enumerate() {
                            let at = self.tiles.as_ptr().add(start(t) + col * ROWS);
                            *held = wide::<BF16>(_mm256_loadu_si256(at.cast()));
                        }
                        let inputs = self.x.as_ptr().add(col * self.width);
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let input = _mm512_set1_ps(*inputs.add(r));
                            for (sum, held) in sums.iter_mut().zip(&held) {
                                *sum = _mm512_fmadd_ps(input, *held, *sum);
                            }
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (t, sums) in sums.iter().take(there - first).enumerate() {
                        put(&stored(*sums), out.row(self.row + r, (self.tile + first + t) * ROWS));
                    }
                }
            }
            R
        }
    }

    pub(super) fn many<const BF16: bool>(weights: &[u16], x: &Inputs<'_>, out: &mut Stretch<'_>) {
        let tile = ROWS * x.cols;
        assert!(x.cols > 0 && weights.len().is_multiple_of(tile), "tiles");
        let mut panel = vec![0.0f32; SIDE * tile];
        let part = (INPUTS / (4 * x.cols)).max(1).next_multiple_of(BLOCK);
        for from in (0..x.rows).step_by(part) {
            for (pair, tiles) in weights.chunks(SIDE * tile).enumerate() {
                for (t, tile) in tiles.chunks_exact(tile).enumerate() {
                    // SAFETY: the instructions were found.
                    unsafe { unfold::<BF16>(tile, t, &mut panel) };
                }
                let (first, side) = (pair * SIDE, tiles.len() / tile);
                for (start, width, x) in x.groups(from, from + part) {
                    let mut row = 0;
                    while row < width {
                        let rows = Panel { panel: &panel, x: &x[row..], width, tile: first, side, row: start + row };
                        // SAFETY: the instructions were found; so many rows are left in the group.
                        row += unsafe {
                            match width - row {
                                12.. => rows.multiply::<12>(out),
                                6.. => rows.multiply::<6>(out),
                                3.. => rows.multiply::<3>(out),
                                _ => rows.multiply::<1>(out),
                            }
                        };
                    }
                }
            }
        }
    }

    /// A tile becomes every other register of the panel.
    ///
    /// # Safety
    /// The processor has AVX-512F; the panel has room for two tiles, and `t` is below 2.
    #[target_feature(enable = "avx512f")]
    unsafe fn unfold<const BF16: bool>(tile: &[u16], t: usize, panel: &mut [f32]) {
        assert!(t < SIDE && panel.len() >= SIDE * tile.len(), "room for two tiles");
        for col in 0..tile.len() / ROWS {
            // SAFETY: one register of the tile, and its place in the panel.
            unsafe {
                let held = wide::<BF16>(_mm256_loadu_si256(tile.as_ptr().add(col * ROWS).cast()));
                _mm512_storeu_ps(panel.as_mut_ptr().add((SIDE * col + t) * ROWS), held);
            }
        }
    }

    /// Rows of a group with two tiles in f32.
    struct Panel<'a> {
        panel: &'a [f32],
        x: &'a [f32],
        width: usize,
        tile: usize,
        /// Tiles that count.
        side: usize,
        row: usize,
    }

    impl Panel<'_> {
        /// `R` rows. Gives `R`.
        ///
        /// # Safety
        /// The processor has AVX-512F.
        #[target_feature(enable = "avx512f")]
        unsafe fn multiply<const R: usize>(&self, out: &mut Stretch<'_>) -> usize {
            let cols = self.x.len().div_ceil(self.width);
            assert!(self.panel.len() >= SIDE * ROWS * cols, "two tiles");
            assert!((cols - 1) * self.width + R <= self.x.len(), "rows of a group");
            let mut sums = [[_mm512_setzero_ps(); SIDE]; R];
            for col in 0..cols {
                // SAFETY: two registers of the panel and an input of every row, as just checked.
                unsafe {
                    let at = self.panel.as_ptr().add(SIDE * col * ROWS);
                    let held = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(ROWS))];
                    let inputs = self.x.as_ptr().add(col * self.width);
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let input = _mm512_set1_ps(*inputs.add(r));
                        for (sum, held) in sums.iter_mut().zip(&held) {
                            *sum = _mm512_fmadd_ps(input, *held, *sum);
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (t, sums) in sums.iter().take(self.side).enumerate() {
                    put(&stored(*sums), out.row(self.row + r, (self.tile + t) * ROWS));
                }
            }
            R
        }
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

/// Defines the plain twin for values of one type.
macro_rules! twin {
    ($tile:ident, $from:ident) => {
        vectorised! {
            /// A group of as many rows as there are `sums`, with one tile.
            fn $tile(weights: &[u16], x: &[f32], sums: &mut [[f32; ROWS]]) {
                /// Rows whose sums are in registers at a time.
                #[inline(always)]
                fn rows<const R: usize, const FMA: bool>(weights: &[u16], x: &[f32], width: usize) -> [[f32; ROWS]; R] {
                    let mut sums = [[0.0; ROWS]; R];
                    for (weights, x) in weights.as_chunks::<ROWS>().0.iter().zip(x.chunks(width)) {
                        let mut held = [0.0; ROWS];
                        for i in 0..ROWS {
                            held[i] = $from(weights[i]);
                        }
                        for r in 0..R {
                            for i in 0..ROWS {
                                sums[r][i] = mul_add::<FMA>(x[r], held[i], sums[r][i]);
                            }
                        }
                    }
                    sums
                }

                let width = sums.len();
                let (fours, rest) = sums.as_chunks_mut::<4>();
                let last = 4 * fours.len();
                for (i, sums) in fours.iter_mut().enumerate() {
                    *sums = rows::<4, FMA>(weights, &x[4 * i..], width);
                }
                for (i, sums) in rest.iter_mut().enumerate() {
                    [*sums] = rows::<1, FMA>(weights, &x[last + i..], width);
                }
            }
        }
    };
}
twin!(tile_bf16, from_bf16);
twin!(tile_f16, from_f16);

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_are_those_of_f64(
            rows in 1usize..200, cols in 1usize..300, n in prop_oneof![1usize..12, 30usize..60], f16s in any::<bool>(),
        ) {
            let rounded = |x: f32| if f16s { f16::from_f32(x + 1e-3).to_f32() } else { bf16::from_f32(x).to_f32() };
            let weights: Vec<f32> = (0..rows * cols).map(|i| rounded(((i * 37 % 101) as f32 - 50.0) / 31.0)).collect();
            let x: Vec<f32> = (0..n * cols).map(|i| ((i * 53 % 97) as f32 - 48.0) / 29.0).collect();
            let half = HalfTiles::exactly(&weights, rows, cols).unwrap();
            prop_assert_eq!(&half.to_host(), &weights);
            let mut found = vec![f32::NAN; n * rows];
            half.product(&x, n, &mut found);
            for (i, found) in found.iter().enumerate() {
                let (w, x) = (&weights[i % rows * cols..][..cols], &x[i / rows * cols..][..cols]);
                let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                let size: f64 = terms.clone().map(f64::abs).sum();
                prop_assert!((f64::from(*found) - terms.sum::<f64>()).abs() <= 1e-6 * size.max(1e-9));
            }
            // The plain twin, and each row alone: the same bits.
            let mut plainly = vec![f32::NAN; n * rows];
            let inputs = Inputs::new(&x, n, cols);
            Columns::share(&mut plainly, n, rows, false, |_, mut out| match half.kind {
                HalfType::BF16 => plain::<true>(&half.values, &inputs, &mut out),
                HalfType::F16 => plain::<false>(&half.values, &inputs, &mut out),
            });
            prop_assert_eq!(&plainly, &found);
            let mut alone = vec![f32::NAN; rows];
            for (x, found) in x.chunks_exact(cols).zip(found.chunks_exact(rows)) {
                half.product(x, 1, &mut alone);
                prop_assert_eq!(&alone[..], found);
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
    fn values_that_need_more_digits_are_not_taken() {
        let matrix = |x: f32| HalfTiles::exactly(&[1.0, x], 1, 2);
        assert_eq!(matrix(0.5).unwrap().kind(), HalfType::BF16);
        assert_eq!(matrix(1.0 + 1.0 / 1024.0).unwrap().kind(), HalfType::F16);
        assert!(matrix(1.0 / 3.0).is_none() && HalfTiles::exactly(&[1.0], 1, 2).is_none());
        // Smaller than f16's smallest, and larger than its largest: bf16 has them.
        assert_eq!(matrix(2f32.powi(-100)).unwrap().kind(), HalfType::BF16);
        assert!(matrix(1e6 + 1.0).is_none());
    }

    #[test]
    fn parts_are_stacked_where_they_fit() {
        let part = |rows: usize, cols: usize, x: f32| HalfTiles::exactly(&vec![x; rows * cols], rows, cols).unwrap();
        let stacked = HalfTiles::stacked(&[&part(32, 3, 1.0), &part(5, 3, 2.0)]).unwrap();
        assert_eq!(stacked.shape(), [37, 3]);
        assert_eq!(stacked.to_host(), [vec![1.0; 96], vec![2.0; 15]].concat());
        assert!(HalfTiles::stacked(&[&part(5, 3, 1.0), &part(16, 3, 2.0)]).is_none(), "ends within a tile");
        assert!(HalfTiles::stacked(&[&part(16, 3, 1.0), &part(16, 4, 2.0)]).is_none(), "of another width");
        assert!(
            HalfTiles::stacked(&[&part(16, 3, 1.0), &part(16, 3, 1.0 + 1.0 / 1024.0)]).is_none(),
            "of another type"
        );
    }
}
