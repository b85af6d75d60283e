//! The plain twin of every kernel: the same sums in the same order, one at a time, with the same roundings.

use super::activations::{Arithmetic, Group};
use super::tiles::{BLOCK, ROWS, Tiles};

/// Outputs of one tile for a group of rows: `out[row][lane]`.
pub(super) fn tile(tiles: &Tiles, tile: usize, x: Group<'_>, arithmetic: Arithmetic, out: &mut [[f32; ROWS]]) {
    for (row, out) in out.iter_mut().enumerate().take(x.width) {
        for (lane, out) in out.iter_mut().enumerate() {
            let at = tile * ROWS + lane;
            *out = if at < tiles.rows { output(tiles, at, x, row, arithmetic) } else { 0.0 };
        }
    }
}

/// One output: `at` of row `row`.
fn output(tiles: &Tiles, at: usize, x: Group<'_>, row: usize, arithmetic: Arithmetic) -> f32 {
    let mut total = 0.0f32;
    for group in 0..tiles.groups() {
        let zero = tiles.zero(at, group);
        let first = group * tiles.blocks_per_group;
        let mut sum = 0.0f32;
        for block in first..(first + tiles.blocks_per_group).min(tiles.blocks()) {
            match arithmetic {
                Arithmetic::Int8 => {
                    let place = block * x.width + row;
                    let code = |i: usize| x.codes[(block * (BLOCK / 4) + i / 4) * x.width + row][i % 4];
                    let dot = |i: usize| i32::from(tiles.code(at, block * BLOCK + i)) * i32::from(code(i));
                    let dot: i32 = (0..BLOCK).map(dot).sum();
                    // Below 2²⁴: exact in f32.
                    let dot = dot - i32::from(zero) * x.sums[place] as i32;
                    sum = (dot as f32).mul_add(x.scales[place], sum);
                }
                Arithmetic::F32 => {
                    for i in 0..BLOCK {
                        let weight = f32::from(tiles.code(at, block * BLOCK + i)) - f32::from(zero);
                        sum = weight.mul_add(x.values[(block * BLOCK + i) * x.width + row], sum);
                    }
                }
            }
        }
        total = sum.mul_add(tiles.scale(at, group), total);
    }
    total
}
