//! Products of rows.

use crate::raw::simd;

/// Sums that run side by side.
const LANES: usize = 32;

/// Runs a loop of products, compiled for this processor: a plain one, because what an iterator's `fold` or `collect` calls
/// is compiled for the baseline.
#[inline(always)]
pub(super) fn each<R>(work: impl FnOnce() -> R) -> R {
    simd::run(work)
}

/// `a · b`, in lanes; the same on every processor.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0] + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Products of all rows with one.
pub(super) fn products(rows: &[f32], with: &[f32], out: &mut [f32]) {
    each(
        #[inline(always)]
        || {
            for (out, row) in out.iter_mut().zip(rows.chunks_exact(with.len())) {
                *out = dot(row, with);
            }
        },
    );
}

/// The row of `rows` with the largest product minus its `penalty`, for every row of `of`; the first of equals.
pub(super) fn best_rows(rows: &[f32], penalties: &[f32], of: &[f32], dim: usize) -> Vec<u32> {
    each(
        #[inline(always)]
        || {
            let mut best = vec![0; of.len() / dim];
            for (best, row) in best.iter_mut().zip(of.chunks_exact(dim)) {
                let mut highest = f32::NEG_INFINITY;
                for ((i, candidate), penalty) in (0..).zip(rows.chunks_exact(dim)).zip(penalties) {
                    let score = dot(candidate, row) - penalty;
                    (highest, *best) = if score > highest { (score, i) } else { (highest, *best) };
                }
            }
            best
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_sums() {
        for n in [1, 31, 32, 33, 100, 128] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..n).map(|i| (n - i) as f32).collect();
            let plain: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - plain).abs() <= 1e-4 * plain);
            let mut out = [0.0; 2];
            products(&[a.clone(), b.clone()].concat(), &b, &mut out);
            assert_eq!(out, [dot(&a, &b), dot(&b, &b)]);
        }
    }
}
