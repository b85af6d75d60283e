//! AVX-512 with VBMI2: an instruction puts 32 words, or 16 values of 32 bits, in the places that a mask says.
#![allow(unsafe_code, reason = "loads take pointers")]

use std::arch::x86_64::*;

use super::{Kept, ROWS, Tile, WORD, by_words};
use crate::ops::few_rows::avx512::{TOGETHER, across};
use crate::ops::simd::LANES;

/// Bytes of values ahead that are asked for where several rows of inputs slow the reading down. Of one row the processor looks
/// far enough ahead by itself.
const AHEAD: usize = 4096;

/// Whether this processor runs these kernels.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("popcnt")
}

/// As [`unfold`](super::unfold).
///
/// # Panics
/// If the processor does not have the instructions.
pub(super) fn unfold<T: Kept>(tile: Tile<'_, T>, out: &mut [f32]) {
    assert!(available(), "called without its instructions");
    // SAFETY: the features were just found.
    unsafe { unfolded(tile, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
fn unfolded<T: Kept>(tile: Tile<'_, T>, out: &mut [f32]) {
    by_words(tile, out, |before, mask, out| {
        // SAFETY: a tile has what its masks keep, and a margin; the array has room for both registers.
        unsafe {
            let [low, high] = T::expand(tile.values.as_ptr().add(before), mask);
            _mm512_storeu_ps(out.as_mut_ptr(), low);
            _mm512_storeu_ps(out.as_mut_ptr().add(LANES), high);
        }
    });
}

/// The sums of a tile with the next rows of inputs, row by row, and how many those are.
///
/// # Panics
/// If the processor does not have the instructions, or there is no padded row of inputs.
pub(super) fn few<T: Kept>(tile: Tile<'_, T>, x: &[f32]) -> ([f32; TOGETHER], usize) {
    assert!(available(), "called without its instructions");
    // SAFETY: the features were just found.
    unsafe {
        match x.len() / (tile.masks.len() * WORD) {
            4.. => (sums::<T, 4>(tile, x), 4),
            2.. => (sums::<T, 2>(tile, x), 2),
            _ => (sums::<T, 1>(tile, x), 1),
        }
    }
}

/// The sums with `R` rows of inputs, which do not depend on `R`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
fn sums<T: Kept, const R: usize>(tile: Tile<'_, T>, x: &[f32]) -> [f32; TOGETHER] {
    let width = tile.masks.len() * WORD;
    assert!(R * ROWS <= TOGETHER && x.len() >= R * width, "inputs");
    let mut values = tile.values.as_ptr();
    let mut sums = [_mm512_setzero_ps(); TOGETHER];
    for (word, masks) in tile.masks.iter().enumerate() {
        let mut inputs = [[_mm512_setzero_ps(); 2]; R];
        for (r, inputs) in inputs.iter_mut().enumerate() {
            // SAFETY: `R` rows of as many words.
            unsafe {
                let x = x.as_ptr().add(r * width + word * WORD);
                *inputs = [_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(LANES))];
            }
        }
        for (j, mask) in masks.iter().enumerate() {
            if R > 1 {
                // A hint: it reads nothing, wherever it points.
                _mm_prefetch::<_MM_HINT_T0>(values.cast::<i8>().wrapping_add(AHEAD));
            }
            // SAFETY: a tile has what its masks keep, and a margin.
            let weights = unsafe { T::expand(values, *mask) };
            values = values.wrapping_add(mask.count_ones() as usize);
            for (r, inputs) in inputs.iter().enumerate() {
                let sum = &mut sums[r * ROWS + j];
                *sum = _mm512_fmadd_ps(inputs[0], weights[0], *sum);
                *sum = _mm512_fmadd_ps(inputs[1], weights[1], *sum);
            }
        }
    }
    let mut found = [0.0f32; TOGETHER];
    // SAFETY: 64 bytes of the array.
    unsafe { _mm512_storeu_ps(found.as_mut_ptr(), across(&sums)) };
    found
}
