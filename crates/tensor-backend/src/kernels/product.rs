//! `x · Wᵀ` over all tiles and rows, on the threads of the current pool.

use rayon::prelude::*;

use super::activations::{Activations, Arithmetic, TOGETHER};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar;
use super::tiles::{ROWS, Tiles};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Bytes of weights that a thread takes at a time at least.
const PART: usize = 1 << 16;
/// Rows of inputs that a thread takes at a time where there are many.
const ROWS_OF_PART: usize = 64;

/// Outputs `[rows of x, rows of W]`. The result does not depend on the number of threads.
///
/// # Panics
/// If `x` and the matrix differ in width, or `out` in size.
pub fn product(tiles: &Tiles, x: &Activations, out: &mut [f32]) {
    let [outputs, inputs] = tiles.shape();
    assert_eq!((x.cols, out.len()), (inputs, x.rows * outputs), "a product of {} × {inputs} with {outputs}", x.rows);
    if out.is_empty() {
        return;
    }
    let tile_bytes = (tiles.bytes() / tiles.tiles()).max(1);
    let per_part = PART.div_ceil(tile_bytes).max(1);
    if x.rows == 1 {
        out.par_chunks_mut(per_part * ROWS).enumerate().for_each(|(part, out)| {
            for (i, out) in out.chunks_mut(ROWS).enumerate() {
                let mut found = [[0.0; ROWS]; 1];
                one(tiles, part * per_part + i, x, 0, &mut found);
                out.copy_from_slice(&found[0][..out.len()]);
            }
        });
        return;
    }
    if x.rows >= ROWS_OF_PART * rayon::current_num_threads() {
        // Many rows: their inputs stay in a core's cache while the weights pass by.
        out.par_chunks_mut(ROWS_OF_PART * outputs).enumerate().for_each(|(part, out)| {
            let mut found = [[0.0; ROWS]; TOGETHER];
            for tile in 0..tiles.tiles() {
                for (group, out) in out.chunks_mut(TOGETHER * outputs).enumerate() {
                    one(tiles, tile, x, part * ROWS_OF_PART + group * TOGETHER, &mut found);
                    for (out, found) in out.chunks_mut(outputs).zip(&found) {
                        put(out, tile, found);
                    }
                }
            }
        });
        return;
    }
    // Tiles side by side would write to the same rows of the output: they give columns, which are put in place after.
    let columns: Vec<Vec<[f32; ROWS]>> = (0..tiles.tiles())
        .into_par_iter()
        .map(|tile| {
            let mut found = vec![[0.0; ROWS]; x.rows];
            for first in (0..x.rows).step_by(TOGETHER) {
                one(tiles, tile, x, first, &mut found[first..]);
            }
            found
        })
        .collect();
    out.par_chunks_mut(outputs).enumerate().for_each(|(row, out)| {
        columns.iter().enumerate().for_each(|(tile, column)| put(out, tile, &column[row]));
    });
}

/// Puts the outputs of a tile into a row; the last tile may reach beyond it.
fn put(row: &mut [f32], tile: usize, found: &[f32; ROWS]) {
    let out = &mut row[tile * ROWS..];
    let count = out.len().min(ROWS);
    out[..count].copy_from_slice(&found[..count]);
}

fn one(tiles: &Tiles, tile: usize, x: &Activations, first: usize, out: &mut [[f32; ROWS]]) {
    let (group, arithmetic) = (x.group(first), x.arithmetic);
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::runs(tiles, arithmetic) {
            return avx512::tile(tiles, tile, group, arithmetic, out);
        }
        if avx2::runs(tiles) {
            return avx2::tile(tiles, tile, group, arithmetic, out);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if neon::runs(tiles) {
        return neon::tile(tiles, tile, group, arithmetic, out);
    }
    scalar::tile(tiles, tile, group, arithmetic, out);
}

/// As [`has_kernels`], for [`Tiles::two_of_four`].
pub fn has_two_of_four_kernels(arithmetic: Arithmetic) -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::available_for_two_of_four(arithmetic);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = arithmetic;
        false
    }
}

/// Whether rows are multiplied by kernels made for this processor.
pub fn has_kernels(arithmetic: Arithmetic) -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::available(arithmetic) || avx2::available();
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = arithmetic;
        cfg!(target_arch = "aarch64")
    }
}
