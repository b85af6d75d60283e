//! What this machine can do at best: the yardsticks that speeds are compared with.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::kernels::{Activations, Arithmetic, Codes, Source, TileScales, Tiles, has_kernels, product};
use crate::linalg::{View, ViewMut, sub_matmul_f32};

/// Gigabytes (10⁹ bytes) per second that all threads together read from main memory; best of five passes.
///
/// Reads a buffer of 256 MiB, larger than the caches of common processors. Takes about half a second.
pub fn read_bandwidth_gb_s() -> f64 {
    let buffer = vec![1u64; 1 << 25];
    let slab = buffer.len().div_ceil(4 * rayon::current_num_threads());
    let seconds = best_of(5, || {
        let sum = buffer.par_chunks(slab).map(|part| part.iter().copied().fold(0u64, u64::wrapping_add));
        black_box(sum.reduce(|| 0, u64::wrapping_add));
    });
    (buffer.len() * size_of::<u64>()) as f64 / seconds / 1e9
}

/// 10⁹ f32 operations per second (a multiply-add is two) of all threads in a `[1024, 1024]` matrix product; best of
/// five.
pub fn f32_gflop_s() -> f64 {
    const N: usize = 1024;
    const SLAB: usize = 128;
    let (a, b) = (vec![0.5f32; N * N], vec![0.25f32; N * N]);
    let mut c = vec![0.0f32; N * N];
    let seconds = best_of(5, || {
        c.par_chunks_mut(SLAB * N).zip(a.par_chunks(SLAB * N)).for_each(|(c, a)| {
            let product = ViewMut::new(c, SLAB, N, N)
                .and_then(|c| sub_matmul_f32(c, View::new(a, SLAB, N, N)?, View::new(&b, N, N, N)?));
            product.expect("shapes are constant and fit");
        });
        black_box(&mut c);
    });
    2.0 * (N * N * N) as f64 / seconds / 1e9
}

/// 10⁹ 8-bit integer operations per second (a multiply-add is two) of all threads in the product of 512 rows of inputs with
/// 4-bit codes `[2048, 2048]`; best of five. `None` where this processor has no kernel for it.
pub fn int8_gop_s() -> Option<f64> {
    const N: usize = 2048;
    const INPUT_ROWS: usize = 512;
    if !has_kernels(Arithmetic::Int8) {
        return None;
    }
    let code = |row: usize, place: usize| ((7 * row + 3 * place) % 16) as u8;
    let codes = Codes::Function(&code);
    let source = Source { rows: N, cols: N, bits: 4, group: N, codes, zero: None, order: None };
    let tiles = Tiles::new(&source, TileScales::F32(vec![0.01; N]));
    let values: Vec<f32> = (0..INPUT_ROWS * N).map(|i| (i % 17) as f32 - 8.0).collect();
    let x = Activations::new(&values, INPUT_ROWS, N, None, Arithmetic::Int8);
    let mut out = vec![0.0f32; INPUT_ROWS * N];
    let seconds = best_of(5, || {
        product(&tiles, &x, &mut out);
        black_box(&mut out);
    });
    Some(2.0 * (N * N * INPUT_ROWS) as f64 / seconds / 1e9)
}

/// The shortest time of `count` runs, in seconds.
fn best_of(count: usize, mut work: impl FnMut()) -> f64 {
    let timed = (0..count).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    timed.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yardsticks_are_positive_and_finite() {
        for value in [Some(read_bandwidth_gb_s()), Some(f32_gflop_s()), int8_gop_s()].into_iter().flatten() {
            assert!(value.is_finite() && value > 0.0, "{value}");
        }
    }
}
