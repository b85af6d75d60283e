//! NEON: a tile's 16 rows are four registers of four.
//!
//! Whole numbers go through the products of four bytes (`dotprod`) where the processor has them, and through products of
//! bytes into 16 bits elsewhere. Both take signed bytes: codes of 8 bits are taken less 128, and what that changes is added to
//! the block's sum.
#![allow(clippy::needless_range_loop, reason = "an index counts several arrays of registers")]
#![allow(unsafe_code, reason = "loads take pointers; one instruction has no stable function")]

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::activations::{Arithmetic, Group, TOGETHER};
use super::tiles::{BLOCK, ROWS, Register, TWO_OF_FOUR, TileScales, Tiles};

/// Rows of a register.
const LANES: usize = 4;

/// Whether these kernels run on this matrix; every processor of this kind has NEON.
pub(super) fn runs(tiles: &Tiles) -> bool {
    tiles.width != TWO_OF_FOUR
}

/// As [`scalar::tile`](super::scalar::tile).
///
/// # Panics
/// If the matrix has no kernels.
pub(super) fn tile(tiles: &Tiles, tile: usize, x: Group<'_>, arithmetic: Arithmetic, out: &mut [[f32; ROWS]]) {
    if is_aarch64_feature_detected!("dotprod") {
        tile_by::<true>(tiles, tile, x, arithmetic, out);
    } else {
        tile_by::<false>(tiles, tile, x, arithmetic, out);
    }
}

/// [`tile`] with products of four bytes, which the processor must have then, or without.
pub(super) fn tile_by<const DOT: bool>(
    tiles: &Tiles,
    tile: usize,
    x: Group<'_>,
    arithmetic: Arithmetic,
    out: &mut [[f32; ROWS]],
) {
    assert!(runs(tiles) && (!DOT || is_aarch64_feature_detected!("dotprod")), "called without its instructions");
    assert!(out.len() >= x.width && tile < tiles.tiles(), "a tile and its outputs");
    x.assert_covers(tiles.blocks(), arithmetic);
    macro_rules! widths {
        ($function:ident, $bits:literal $(, $dot:ident)?) => {
            // SAFETY: the features were found above, and all buffers were compared with the shape.
            unsafe {
                match x.width {
                    1 => $function::<1, 4, $bits $(, $dot)?>(tiles, tile, x, out),
                    2 => $function::<2, 2, $bits $(, $dot)?>(tiles, tile, x, out),
                    3 => $function::<3, 2, $bits $(, $dot)?>(tiles, tile, x, out),
                    4 => $function::<4, 2, $bits $(, $dot)?>(tiles, tile, x, out),
                    5 => $function::<5, 1, $bits $(, $dot)?>(tiles, tile, x, out),
                    6 => $function::<6, 1, $bits $(, $dot)?>(tiles, tile, x, out),
                    7 => $function::<7, 1, $bits $(, $dot)?>(tiles, tile, x, out),
                    _ => $function::<TOGETHER, 1, $bits $(, $dot)?>(tiles, tile, x, out),
                }
            }
        };
    }
    match (arithmetic, tiles.width) {
        (Arithmetic::Int8, 2) => widths!(int8, 2, DOT),
        (Arithmetic::Int8, 3) => widths!(int8, 3, DOT),
        (Arithmetic::Int8, 4) => widths!(int8, 4, DOT),
        (Arithmetic::Int8, _) => widths!(int8, 8, DOT),
        (Arithmetic::F32, 2) => widths!(float, 2),
        (Arithmetic::F32, 3) => widths!(float, 3),
        (Arithmetic::F32, 4) => widths!(float, 4),
        (Arithmetic::F32, _) => widths!(float, 8),
    }
}

/// Scales and zero points of four rows of a group.
///
/// # Safety
/// `at` is the first of four scales.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn grid(tiles: &Tiles, at: usize) -> (float32x4_t, float32x4_t) {
    // SAFETY: four scales from `at` on.
    let scale = unsafe {
        match &tiles.scales {
            TileScales::F32(scales) => vld1q_f32(scales.as_ptr().add(at)),
            TileScales::F16(scales) => {
                let scales: [f32; LANES] = std::array::from_fn(|lane| scales[at + lane].to_f32());
                vld1q_f32(scales.as_ptr())
            }
            TileScales::BF16(scales) => {
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(scales.as_ptr().add(at).cast())))
            }
        }
    };
    let zero = match &tiles.zeros {
        Some(zeros) => {
            let zeros: [f32; LANES] = std::array::from_fn(|lane| f32::from(zeros[at + lane]));
            // SAFETY: four numbers.
            unsafe { vld1q_f32(zeros.as_ptr()) }
        }
        None => vdupq_n_f32(f32::from(tiles.middle)),
    };
    (scale, zero)
}

/// The four codes of quad `quad` of the four rows from `first` on, as bytes.
///
/// # Safety
/// The block has its `BITS` registers.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn quad<const BITS: usize>(registers: *const Register, first: usize, quad: usize) -> uint8x16_t {
    // SAFETY: four of the 16 words of a register of the block.
    let load = |i: usize| unsafe { vld1q_u32(registers.add(i).cast::<u32>().add(first)) };
    let masked = |register: uint32x4_t, bits: usize, step: usize| {
        let shifted = vshlq_u32(register, vdupq_n_s32(-((step * bits) as i32)));
        vandq_u8(vreinterpretq_u8_u32(shifted), vdupq_n_u8(((1u32 << bits) - 1) as u8))
    };
    match BITS {
        8 => vreinterpretq_u8_u32(load(quad)),
        3 => {
            let (low, high) = (masked(load(quad / 4), 2, quad % 4), masked(load(2), 1, quad));
            vorrq_u8(low, vshlq_n_u8::<2>(high))
        }
        _ => masked(load(quad * BITS / 8), BITS, quad % (8 / BITS)),
    }
}

/// Adds to every lane the products of its four bytes.
///
/// # Safety
/// With `DOT` the processor has the instruction.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_products<const DOT: bool>(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    if DOT {
        let mut sums = sums;
        // SAFETY: it changes the one register; the caller knows that it exists.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
                sums = inout(vreg) sums,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    } else {
        // Pairs of products stay below 2¹⁵: codes here are at most 127, inputs, too.
        let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        let high = vmull_high_s8(a, b);
        vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
    }
}

/// Sums in whole numbers, `Q` registers of rows at a time: all for one row of inputs, so that codes come from memory in their
/// order.
///
/// # Safety
/// Inputs cover the matrix, the tile exists, and with `DOT` the processor has products of four bytes.
#[target_feature(enable = "neon")]
unsafe fn int8<const N: usize, const Q: usize, const BITS: usize, const DOT: bool>(
    tiles: &Tiles,
    tile: usize,
    x: Group<'_>,
    out: &mut [[f32; ROWS]],
) {
    let (blocks, groups, per_group) = (tiles.blocks(), tiles.groups(), tiles.blocks_per_group);
    let (codes, x_scales, x_sums) = (x.codes.as_ptr(), x.scales.as_ptr(), x.sums.as_ptr());
    let start = tiles.tile(tile).as_ptr();
    for first in (0..ROWS).step_by(Q * LANES) {
        let mut totals = [[vdupq_n_f32(0.0); Q]; N];
        for group in 0..groups {
            // SAFETY: groups and blocks stay below those of the tile, which has 16 scales to a group; the inputs have `N` rows
            // of as many blocks.
            unsafe {
                let mut grids = [(vdupq_n_f32(0.0), vdupq_n_f32(0.0)); Q];
                for h in 0..Q {
                    grids[h] = grid(tiles, (tile * groups + group) * ROWS + first + h * LANES);
                }
                let mut sums = [[vdupq_n_f32(0.0); Q]; N];
                for block in group * per_group..((group + 1) * per_group).min(blocks) {
                    let registers = start.add(block * BITS);
                    let codes = codes.add(block * N * (BLOCK / 4)).cast::<i32>();
                    let mut dots = [[vdupq_n_s32(0); Q]; N];
                    for q in 0..BLOCK / 4 {
                        for h in 0..Q {
                            let weights = quad::<BITS>(registers, first + h * LANES, q);
                            let weights = if BITS == 8 { veorq_u8(weights, vdupq_n_u8(128)) } else { weights };
                            for row in 0..N {
                                let inputs = vdupq_n_s32(codes.add(q * N + row).read_unaligned());
                                let (a, b) = (vreinterpretq_s8_u8(weights), vreinterpretq_s8_s32(inputs));
                                dots[row][h] = add_products::<DOT>(dots[row][h], a, b);
                            }
                        }
                    }
                    for h in 0..Q {
                        let (_, zero) = grids[h];
                        for row in 0..N {
                            let sum = *x_sums.add(block * N + row);
                            let shift = if BITS == 8 { 128 * sum as i32 } else { 0 };
                            let dot = vcvtq_f32_s32(vaddq_s32(dots[row][h], vdupq_n_s32(shift)));
                            // Both below 2²⁴: exact.
                            let dot = vfmsq_f32(dot, zero, vdupq_n_f32(sum));
                            let scale = vdupq_n_f32(*x_scales.add(block * N + row));
                            sums[row][h] = vfmaq_f32(sums[row][h], dot, scale);
                        }
                    }
                }
                for h in 0..Q {
                    let (scale, _) = grids[h];
                    for row in 0..N {
                        totals[row][h] = vfmaq_f32(totals[row][h], sums[row][h], scale);
                    }
                }
            }
        }
        // SAFETY: `Q` times 16 bytes of the array from `first` on.
        unsafe { store(&totals, first, out) };
    }
}

/// Sums in f32, as [`int8`].
///
/// # Safety
/// Inputs cover the matrix, and the tile exists.
#[target_feature(enable = "neon")]
unsafe fn float<const N: usize, const Q: usize, const BITS: usize>(
    tiles: &Tiles,
    tile: usize,
    x: Group<'_>,
    out: &mut [[f32; ROWS]],
) {
    let (blocks, groups, per_group) = (tiles.blocks(), tiles.groups(), tiles.blocks_per_group);
    let values = x.values.as_ptr();
    let start = tiles.tile(tile).as_ptr();
    for first in (0..ROWS).step_by(Q * LANES) {
        let mut totals = [[vdupq_n_f32(0.0); Q]; N];
        for group in 0..groups {
            // SAFETY: as above.
            unsafe {
                let mut grids = [(vdupq_n_f32(0.0), vdupq_n_f32(0.0)); Q];
                for h in 0..Q {
                    grids[h] = grid(tiles, (tile * groups + group) * ROWS + first + h * LANES);
                }
                let mut sums = [[vdupq_n_f32(0.0); Q]; N];
                for block in group * per_group..((group + 1) * per_group).min(blocks) {
                    let registers = start.add(block * BITS);
                    let values = values.add(block * N * BLOCK);
                    for h in 0..Q {
                        let (_, zero) = grids[h];
                        for q in 0..BLOCK / 4 {
                            let mut codes = vreinterpretq_u32_u8(quad::<BITS>(registers, first + h * LANES, q));
                            for i in 4 * q..4 * q + 4 {
                                let code = vcvtq_f32_u32(vandq_u32(codes, vdupq_n_u32(255)));
                                codes = vshrq_n_u32::<8>(codes);
                                let weight = vsubq_f32(code, zero);
                                for row in 0..N {
                                    let input = vdupq_n_f32(*values.add(i * N + row));
                                    sums[row][h] = vfmaq_f32(sums[row][h], weight, input);
                                }
                            }
                        }
                    }
                }
                for h in 0..Q {
                    let (scale, _) = grids[h];
                    for row in 0..N {
                        totals[row][h] = vfmaq_f32(totals[row][h], sums[row][h], scale);
                    }
                }
            }
        }
        // SAFETY: `Q` times 16 bytes of the array from `first` on.
        unsafe { store(&totals, first, out) };
    }
}

/// # Safety
/// `Q` registers of rows begin at `first`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store<const N: usize, const Q: usize>(totals: &[[float32x4_t; Q]; N], first: usize, out: &mut [[f32; ROWS]]) {
    for (totals, out) in totals.iter().zip(out) {
        for (h, total) in totals.iter().enumerate() {
            // SAFETY: inside the array, as the caller says.
            unsafe { vst1q_f32(out.as_mut_ptr().add(first + h * LANES), *total) };
        }
    }
}
