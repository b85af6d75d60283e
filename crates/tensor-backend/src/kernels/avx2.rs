//! AVX2: a tile's 16 rows are two registers of 8, one after the other.
//!
//! Whole numbers go through products of bytes that add pairs into 16 bits. Those saturate: codes of up to 4 bits stay far
//! enough below for the eight pairs of a block to be added in 16 bits, too; codes of 8 bits are taken less 128, so that a pair
//! stays below 2^15, and what that changes is added to the block's sum.
#![allow(clippy::needless_range_loop, reason = "an index counts several arrays of registers")]
#![allow(unsafe_code, reason = "loads take pointers")]

use std::arch::x86_64::*;

use super::activations::{Arithmetic, Group, TOGETHER};
use super::tiles::{BLOCK, ROWS, Register, TWO_OF_FOUR, TileScales, Tiles};

/// Rows of a register.
const HALF: usize = ROWS / 2;

/// Whether this processor runs these kernels.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether it runs them on this matrix.
pub(super) fn runs(tiles: &Tiles) -> bool {
    tiles.width != TWO_OF_FOUR && available()
}

/// As [`scalar::tile`](super::scalar::tile).
///
/// # Panics
/// If the processor does not have the instructions.
pub(super) fn tile(tiles: &Tiles, tile: usize, x: Group<'_>, arithmetic: Arithmetic, out: &mut [[f32; ROWS]]) {
    assert!(runs(tiles), "called without its instructions");
    assert!(out.len() >= x.width && tile < tiles.tiles(), "a tile and its outputs");
    x.assert_covers(tiles.blocks(), arithmetic);
    macro_rules! widths {
        ($function:ident, $bits:literal) => {
            // SAFETY: the features were found above, and all buffers were compared with the shape.
            unsafe {
                match x.width {
                    1 => $function::<1, 2, $bits>(tiles, tile, x, out),
                    2 => $function::<2, 1, $bits>(tiles, tile, x, out),
                    3 => $function::<3, 1, $bits>(tiles, tile, x, out),
                    4 => $function::<4, 1, $bits>(tiles, tile, x, out),
                    5 => $function::<5, 1, $bits>(tiles, tile, x, out),
                    6 => $function::<6, 1, $bits>(tiles, tile, x, out),
                    7 => $function::<7, 1, $bits>(tiles, tile, x, out),
                    _ => $function::<TOGETHER, 1, $bits>(tiles, tile, x, out),
                }
            }
        };
    }
    match (arithmetic, tiles.width) {
        (Arithmetic::Int8, 2) => widths!(int8, 2),
        (Arithmetic::Int8, 3) => widths!(int8, 3),
        (Arithmetic::Int8, 4) => widths!(int8, 4),
        (Arithmetic::Int8, _) => widths!(int8, 8),
        (Arithmetic::F32, 2) => widths!(float, 2),
        (Arithmetic::F32, 3) => widths!(float, 3),
        (Arithmetic::F32, 4) => widths!(float, 4),
        (Arithmetic::F32, _) => widths!(float, 8),
    }
}

/// Scales and zero points of 8 rows of a group.
///
/// # Safety
/// `at` is the first of 8 scales.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn grid(tiles: &Tiles, at: usize) -> (__m256, __m256) {
    // SAFETY: 8 scales and zero points from `at` on.
    unsafe {
        let scale = match &tiles.scales {
            TileScales::F32(scales) => _mm256_loadu_ps(scales.as_ptr().add(at)),
            TileScales::F16(scales) => _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().add(at).cast())),
            TileScales::BF16(scales) => {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(scales.as_ptr().add(at).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
        };
        let zero = match &tiles.zeros {
            Some(zeros) => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(zeros.as_ptr().add(at).cast()))),
            None => _mm256_set1_ps(f32::from(tiles.middle)),
        };
        (scale, zero)
    }
}

/// The four codes of quad `quad` of the 8 rows from `half` on, as bytes.
///
/// # Safety
/// The block has its `BITS` registers.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quad<const BITS: usize>(registers: *const Register, half: usize, quad: usize) -> __m256i {
    // SAFETY: 8 of the 16 words of a register of the block.
    let load = |i: usize| unsafe { _mm256_load_si256(registers.add(i).cast::<u32>().add(half).cast()) };
    let masked = |register: __m256i, bits: usize, step: usize| {
        let shifted = _mm256_srl_epi32(register, _mm_cvtsi32_si128((step * bits) as i32));
        _mm256_and_si256(shifted, _mm256_set1_epi8(((1u32 << bits) - 1) as i8))
    };
    match BITS {
        8 => load(quad),
        3 => {
            let (low, high) = (masked(load(quad / 4), 2, quad % 4), masked(load(2), 1, quad));
            _mm256_or_si256(low, _mm256_slli_epi32::<2>(high))
        }
        _ => masked(load(quad * BITS / 8), BITS, quad % (8 / BITS)),
    }
}

/// Sums in whole numbers, `H` registers of rows at a time: both for one row of inputs, so that codes come from memory in their
/// order.
///
/// # Safety
/// Inputs cover the matrix, and the tile exists.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn int8<const N: usize, const H: usize, const BITS: usize>(
    tiles: &Tiles,
    tile: usize,
    x: Group<'_>,
    out: &mut [[f32; ROWS]],
) {
    let (blocks, groups, per_group) = (tiles.blocks(), tiles.groups(), tiles.blocks_per_group);
    let (codes, x_scales, x_sums) = (x.codes.as_ptr(), x.scales.as_ptr(), x.sums.as_ptr());
    let start = tiles.tile(tile).as_ptr();
    let ones = _mm256_set1_epi16(1);
    for first in (0..ROWS).step_by(H * HALF) {
        let mut totals = [[_mm256_setzero_ps(); H]; N];
        for group in 0..groups {
            // SAFETY: groups and blocks stay below those of the tile, which has 16 scales to a group; the inputs have `N` rows
            // of as many blocks.
            unsafe {
                let mut grids = [(_mm256_setzero_ps(), _mm256_setzero_ps()); H];
                for h in 0..H {
                    grids[h] = grid(tiles, (tile * groups + group) * ROWS + first + h * HALF);
                }
                let mut sums = [[_mm256_setzero_ps(); H]; N];
                for block in group * per_group..((group + 1) * per_group).min(blocks) {
                    let registers = start.add(block * BITS);
                    let codes = codes.add(block * N * (BLOCK / 4)).cast::<i32>();
                    // Pairs in 16 bits; of wide codes sums in 32.
                    let mut dots = [[_mm256_setzero_si256(); H]; N];
                    for q in 0..BLOCK / 4 {
                        for h in 0..H {
                            let weights = quad::<BITS>(registers, first + h * HALF, q);
                            for row in 0..N {
                                let inputs = _mm256_set1_epi32(codes.add(q * N + row).read_unaligned());
                                let dot = &mut dots[row][h];
                                if BITS == 8 {
                                    let weights = _mm256_sub_epi8(weights, _mm256_set1_epi8(-128));
                                    let inputs = _mm256_sign_epi8(inputs, weights);
                                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), inputs);
                                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
                                } else {
                                    *dot = _mm256_add_epi16(*dot, _mm256_maddubs_epi16(weights, inputs));
                                }
                            }
                        }
                    }
                    for h in 0..H {
                        let (_, zero) = grids[h];
                        for row in 0..N {
                            let sum = *x_sums.add(block * N + row);
                            let dot = if BITS == 8 {
                                _mm256_add_epi32(dots[row][h], _mm256_set1_epi32(128 * sum as i32))
                            } else {
                                _mm256_madd_epi16(dots[row][h], ones)
                            };
                            // Both below 2²⁴: exact.
                            let dot = _mm256_fnmadd_ps(zero, _mm256_set1_ps(sum), _mm256_cvtepi32_ps(dot));
                            let scale = _mm256_set1_ps(*x_scales.add(block * N + row));
                            sums[row][h] = _mm256_fmadd_ps(dot, scale, sums[row][h]);
                        }
                    }
                }
                for h in 0..H {
                    let (scale, _) = grids[h];
                    for row in 0..N {
                        totals[row][h] = _mm256_fmadd_ps(sums[row][h], scale, totals[row][h]);
                    }
                }
            }
        }
        // SAFETY: `H` times 32 bytes of the array from `first` on.
        unsafe { store(&totals, first, out) };
    }
}

/// Sums in f32, as [`int8`].
///
/// # Safety
/// Inputs cover the matrix, and the tile exists.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float<const N: usize, const H: usize, const BITS: usize>(
    tiles: &Tiles,
    tile: usize,
    x: Group<'_>,
    out: &mut [[f32; ROWS]],
) {
    let (blocks, groups, per_group) = (tiles.blocks(), tiles.groups(), tiles.blocks_per_group);
    let values = x.values.as_ptr();
    let start = tiles.tile(tile).as_ptr();
    for first in (0..ROWS).step_by(H * HALF) {
        let mut totals = [[_mm256_setzero_ps(); H]; N];
        for group in 0..groups {
            // SAFETY: as above.
            unsafe {
                let mut grids = [(_mm256_setzero_ps(), _mm256_setzero_ps()); H];
                for h in 0..H {
                    grids[h] = grid(tiles, (tile * groups + group) * ROWS + first + h * HALF);
                }
                let mut sums = [[_mm256_setzero_ps(); H]; N];
                for block in group * per_group..((group + 1) * per_group).min(blocks) {
                    let registers = start.add(block * BITS);
                    let values = values.add(block * N * BLOCK);
                    for h in 0..H {
                        let (_, zero) = grids[h];
                        for q in 0..BLOCK / 4 {
                            let mut codes = quad::<BITS>(registers, first + h * HALF, q);
                            for i in 4 * q..4 * q + 4 {
                                let code = _mm256_cvtepi32_ps(_mm256_and_si256(codes, _mm256_set1_epi32(255)));
                                codes = _mm256_srli_epi32::<8>(codes);
                                let weight = _mm256_sub_ps(code, zero);
                                for row in 0..N {
                                    let input = _mm256_set1_ps(*values.add(i * N + row));
                                    sums[row][h] = _mm256_fmadd_ps(weight, input, sums[row][h]);
                                }
                            }
                        }
                    }
                }
                for h in 0..H {
                    let (scale, _) = grids[h];
                    for row in 0..N {
                        totals[row][h] = _mm256_fmadd_ps(sums[row][h], scale, totals[row][h]);
                    }
                }
            }
        }
        // SAFETY: `H` times 32 bytes of the array from `first` on.
        unsafe { store(&totals, first, out) };
    }
}

/// # Safety
/// `H` registers of rows begin at `first`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store<const N: usize, const H: usize>(totals: &[[__m256; H]; N], first: usize, out: &mut [[f32; ROWS]]) {
    for (totals, out) in totals.iter().zip(out) {
        for (h, total) in totals.iter().enumerate() {
            // SAFETY: inside the array, as the caller says.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(first + h * HALF), *total) };
        }
    }
}
