//! AVX2: a table says for every eight bits of a mask how bytes are shuffled.
#![allow(unsafe_code, reason = "loads take pointers")]

use std::arch::x86_64::*;

use super::{Kept, ROWS, Tile, WORD, across, by_words};
use crate::ops::simd::LANES;

/// Whether this processor runs these kernels.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
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

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn unfolded<T: Kept>(tile: Tile<'_, T>, out: &mut [f32]) {
    by_words(tile, out, |before, mask, out| {
        // SAFETY: a tile has what its masks keep, and a margin; the array has room for all registers.
        unsafe {
            let weights = T::expand_avx2(tile.values.as_ptr().add(before), mask);
            for (i, weights) in weights.into_iter().enumerate() {
                _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), weights);
            }
        }
    });
}

/// The sums of a tile with one row of inputs.
///
/// # Panics
/// If the processor does not have the instructions, or `x` is not a padded row of inputs.
pub(super) fn one<T: Kept>(tile: Tile<'_, T>, x: &[f32]) -> [f32; ROWS] {
    assert!(available() && tile.masks.len() * WORD == x.len(), "instructions and inputs");
    // SAFETY: the features were just found.
    unsafe { sums(tile, x) }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn sums<T: Kept>(tile: Tile<'_, T>, x: &[f32]) -> [f32; ROWS] {
    let mut values = tile.values.as_ptr();
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (masks, x) in tile.masks.iter().zip(x.as_chunks::<WORD>().0) {
        for j in 0..ROWS {
            // SAFETY: a tile has what its masks keep, and a margin; a word is four registers.
            unsafe {
                let weights = T::expand_avx2(values, masks[j]);
                for i in 0..4 {
                    let x = _mm256_loadu_ps(x.as_ptr().add(8 * i));
                    sums[j][i % 2] = _mm256_fmadd_ps(x, weights[i], sums[j][i % 2]);
                }
            }
            values = values.wrapping_add(masks[j].count_ones() as usize);
        }
    }
    let mut found = [0.0; ROWS];
    for (found, sums) in found.iter_mut().zip(sums) {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has room for both registers.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[1]);
        }
        *found = across(lanes);
    }
    found
}
