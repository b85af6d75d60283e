//! AVX-512: a register is a tile's 16 rows.
//!
//! Whole numbers need VNNI: one instruction multiplies the four codes of every row with four inputs and adds them to 16 sums.
//! Per 64 bytes of 4-bit codes that is one load, a shift, two masks and two products, a third of what the memory allows time
//! for; so the time of one row is that of reading the weights. With several rows the unpacked codes are used again.
#![allow(unsafe_code, reason = "loads take pointers")]

use std::arch::x86_64::*;

use super::activations::{Arithmetic, Group, TOGETHER};
use super::tiles::{BLOCK, ROWS, Register, TileScales, Tiles};

/// Whether this processor runs these kernels.
pub(super) fn available(arithmetic: Arithmetic) -> bool {
    let base = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    base && (arithmetic == Arithmetic::F32 || is_x86_feature_detected!("avx512vnni"))
}

/// As [`scalar::tile`](super::scalar::tile).
///
/// # Panics
/// If the processor does not have the instructions.
pub(super) fn tile(tiles: &Tiles, tile: usize, x: Group<'_>, arithmetic: Arithmetic, out: &mut [[f32; ROWS]]) {
    assert!(available(arithmetic), "called without its instructions");
    assert!(out.len() >= x.width && tile < tiles.tiles(), "a tile and its outputs");
    macro_rules! widths {
        ($function:ident, $bits:literal) => {
            // SAFETY: the features were found above; the slices were checked against the shape in `checked`.
            unsafe {
                match x.width {
                    1 => $function::<1, $bits>(tiles, tile, x, out),
                    2 => $function::<2, $bits>(tiles, tile, x, out),
                    3 => $function::<3, $bits>(tiles, tile, x, out),
                    4 => $function::<4, $bits>(tiles, tile, x, out),
                    5 => $function::<5, $bits>(tiles, tile, x, out),
                    6 => $function::<6, $bits>(tiles, tile, x, out),
                    7 => $function::<7, $bits>(tiles, tile, x, out),
                    _ => $function::<TOGETHER, $bits>(tiles, tile, x, out),
                }
            }
        };
    }
    checked(tiles, x, arithmetic);
    match (arithmetic, tiles.bits) {
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

/// The loads below reach these ends and no further.
fn checked(tiles: &Tiles, x: Group<'_>, arithmetic: Arithmetic) {
    let (blocks, width) = (tiles.blocks(), x.width);
    let enough = match arithmetic {
        Arithmetic::Int8 => {
            x.codes.len() >= blocks * width * (BLOCK / 4)
                && x.scales.len() >= blocks * width
                && x.sums.len() >= blocks * width
        }
        Arithmetic::F32 => x.values.len() >= blocks * width * BLOCK,
    };
    assert!(enough && (1..=TOGETHER).contains(&width), "inputs shorter than the matrix is wide");
}

/// The scales of a group of a tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scales(tiles: &Tiles, at: usize) -> __m512 {
    match &tiles.scales {
        TileScales::F32(scales) => {
            let scales: &[f32; ROWS] = scales[at..].first_chunk().expect("16 scales to a group");
            // SAFETY: 64 bytes of the array.
            unsafe { _mm512_loadu_ps(scales.as_ptr()) }
        }
        TileScales::F16(scales) => {
            let scales: &[half::f16; ROWS] = scales[at..].first_chunk().expect("16 scales to a group");
            // SAFETY: 32 bytes of the array.
            _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
        }
        TileScales::BF16(scales) => {
            let scales: &[half::bf16; ROWS] = scales[at..].first_chunk().expect("16 scales to a group");
            // SAFETY: 32 bytes of the array.
            let bits = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) });
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
}

/// The zero points of a group of a tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn zeros(tiles: &Tiles, at: usize) -> __m512 {
    match &tiles.zeros {
        Some(zeros) => {
            let zeros: &[u8; ROWS] = zeros[at..].first_chunk().expect("16 zero points to a group");
            // SAFETY: 16 bytes of the array.
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(zeros.as_ptr().cast()) }))
        }
        None => _mm512_set1_ps(f32::from(tiles.middle)),
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn load(register: &Register) -> __m512i {
    // SAFETY: 64 aligned bytes.
    unsafe { _mm512_load_si512(register.0.as_ptr().cast()) }
}

/// The four codes of quad `quad` of a block, as bytes; `registers` are the block's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn quad<const BITS: usize>(registers: &[Register], quad: usize) -> __m512i {
    let masked = |register: __m512i, bits: usize, step: usize| {
        let shifted = _mm512_srl_epi32(register, _mm_cvtsi32_si128((step * bits) as i32));
        _mm512_and_si512(shifted, _mm512_set1_epi8(((1u32 << bits) - 1) as i8))
    };
    match BITS {
        8 => load(&registers[quad]),
        3 => {
            let low = masked(load(&registers[quad / 4]), 2, quad % 4);
            let high = masked(load(&registers[2]), 1, quad);
            _mm512_or_si512(low, _mm512_slli_epi32::<2>(high))
        }
        _ => masked(load(&registers[quad * BITS / 8]), BITS, quad % (8 / BITS)),
    }
}

/// Sums in whole numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8<const N: usize, const BITS: usize>(tiles: &Tiles, tile: usize, x: Group<'_>, out: &mut [[f32; ROWS]]) {
    let (blocks, groups) = (tiles.blocks(), tiles.groups());
    let registers = tiles.tile(tile);
    let mut totals = [_mm512_setzero_ps(); N];
    for group in 0..groups {
        let at = (tile * groups + group) * ROWS;
        let (scale, zero) = (scales(tiles, at), zeros(tiles, at));
        let first = group * tiles.blocks_per_group;
        let mut sums = [_mm512_setzero_ps(); N];
        for block in first..(first + tiles.blocks_per_group).min(blocks) {
            let registers = &registers[block * BITS..][..BITS];
            let codes = &x.codes[block * N * (BLOCK / 4)..][..N * (BLOCK / 4)];
            let mut dots = [_mm512_setzero_si512(); N];
            for q in 0..BLOCK / 4 {
                let weights = quad::<BITS>(registers, q);
                for row in 0..N {
                    let inputs = _mm512_set1_epi32(i32::from_ne_bytes(codes[q * N + row].map(|code| code as u8)));
                    dots[row] = _mm512_dpbusd_epi32(dots[row], weights, inputs);
                }
            }
            let (x_scales, x_sums) = (&x.scales[block * N..][..N], &x.sums[block * N..][..N]);
            for row in 0..N {
                let dot = _mm512_cvtepi32_ps(dots[row]);
                // Both below 2²⁴: exact.
                let dot = _mm512_fnmadd_ps(zero, _mm512_set1_ps(x_sums[row] as f32), dot);
                sums[row] = _mm512_fmadd_ps(dot, _mm512_set1_ps(x_scales[row]), sums[row]);
            }
        }
        for row in 0..N {
            totals[row] = _mm512_fmadd_ps(sums[row], scale, totals[row]);
        }
    }
    for (total, out) in totals.iter().zip(out) {
        // SAFETY: 64 bytes of the array.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *total) };
    }
}

/// Sums in f32.
#[target_feature(enable = "avx512f,avx512bw")]
fn float<const N: usize, const BITS: usize>(tiles: &Tiles, tile: usize, x: Group<'_>, out: &mut [[f32; ROWS]]) {
    let (blocks, groups) = (tiles.blocks(), tiles.groups());
    let registers = tiles.tile(tile);
    let mut totals = [_mm512_setzero_ps(); N];
    for group in 0..groups {
        let at = (tile * groups + group) * ROWS;
        let (scale, zero) = (scales(tiles, at), zeros(tiles, at));
        let first = group * tiles.blocks_per_group;
        let mut sums = [_mm512_setzero_ps(); N];
        for block in first..(first + tiles.blocks_per_group).min(blocks) {
            let registers = &registers[block * BITS..][..BITS];
            let values = &x.values[block * N * BLOCK..][..N * BLOCK];
            for q in 0..BLOCK / 4 {
                let mut codes = quad::<BITS>(registers, q);
                for i in 4 * q..4 * q + 4 {
                    let code = _mm512_cvtepi32_ps(_mm512_and_si512(codes, _mm512_set1_epi32(255)));
                    codes = _mm512_srli_epi32::<8>(codes);
                    let weight = _mm512_sub_ps(code, zero);
                    for row in 0..N {
                        sums[row] = _mm512_fmadd_ps(weight, _mm512_set1_ps(values[i * N + row]), sums[row]);
                    }
                }
            }
        }
        for row in 0..N {
            totals[row] = _mm512_fmadd_ps(sums[row], scale, totals[row]);
        }
    }
    for (total, out) in totals.iter().zip(out) {
        // SAFETY: 64 bytes of the array.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *total) };
    }
}
