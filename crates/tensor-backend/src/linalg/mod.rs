//! Dense linear algebra on the host: factorisations in f64, products in f32.
//!
//! Matrices are row-major slices, square ones of `n · n` values. Everything that runs on several threads
//! works on slabs whose borders depend on the shape alone and never splits a sum, so results have the
//! same bits whatever the size of the rayon pool. Within a slab the arithmetic is `faer`'s.

mod product;
mod spectral;
mod triangular;

pub use product::{View, ViewMut, sub_matmul_f32, xtx};
pub use spectral::{Eigen, Svd, svd, symmetric_eigen};
pub use triangular::{cholesky_lower, inverse_cholesky_upper, solve_lower, solve_upper, spd_inverse};

use rayon::prelude::*;

/// A result with [`LinalgError`].
pub type Result<T, E = LinalgError> = std::result::Result<T, E>;

/// Why a factorisation or product was refused or failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LinalgError {
    /// A Cholesky pivot was not positive.
    #[error(
        "matrix of size {n} is not positive definite: pivot {pivot} (0-based, of the index order given) is {value:e}; \
         add a larger multiple of the mean diagonal to the diagonal"
    )]
    NotPositiveDefinite {
        /// Rows of the matrix.
        n: usize,
        /// The row and column, in the caller's order, whose pivot failed.
        pivot: usize,
        /// The pivot before its square root.
        value: f64,
    },
    /// A triangular matrix has a zero on its diagonal.
    #[error("triangular matrix of size {n} is singular: its diagonal value {index} is zero")]
    Singular {
        /// Rows of the matrix.
        n: usize,
        /// The row of the zero.
        index: usize,
    },
    /// A buffer has another length than its shape needs.
    #[error("{what}: a buffer of {expected} values is needed, found {found}")]
    Shape {
        /// Which argument, with its shape.
        what: String,
        /// Values that the shape asks for.
        expected: usize,
        /// Values that came.
        found: usize,
    },
    /// An input holds a NaN or an infinity.
    #[error("{what}: the value at flat index {index} is {value}, finite values are needed")]
    NotFinite {
        /// Which argument.
        what: String,
        /// Position in the buffer.
        index: usize,
        /// The value found.
        value: f64,
    },
    /// An iteration did not converge.
    #[error("{what} of a [{rows}, {cols}] matrix did not converge")]
    NoConvergence {
        /// Which decomposition.
        what: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
}

/// Refuses a buffer whose length is not `rows · cols`.
fn check_len(what: &str, len: usize, rows: usize, cols: usize) -> Result<()> {
    let expected = rows.saturating_mul(cols);
    if len == expected {
        return Ok(());
    }
    Err(LinalgError::Shape { what: format!("{what} of shape [{rows}, {cols}]"), expected, found: len })
}

/// Refuses NaN and infinities.
fn check_finite(what: &str, values: &[f64]) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    // `0 · x` is zero exactly for finite x; a sum of zeros vectorises where an early exit does not.
    let bad = values
        .par_chunks(CHUNK)
        .enumerate()
        .find_first(|(_, chunk)| chunk.iter().map(|x| 0.0 * x).sum::<f64>() != 0.0)
        .and_then(|(c, chunk)| chunk.iter().position(|x| !x.is_finite()).map(|i| c * CHUNK + i));
    match bad {
        None => Ok(()),
        Some(index) => Err(LinalgError::NotFinite { what: what.into(), index, value: values[index] }),
    }
}

#[cfg(test)]
mod test_support {
    /// Values in (−1, 1) from a linear congruential generator.
    pub(super) fn random(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    pub(super) fn random_f32(count: usize, seed: u64) -> Vec<f32> {
        random(count, seed).into_iter().map(|v| v as f32).collect()
    }

    /// A well conditioned symmetric positive definite matrix.
    pub(super) fn spd(n: usize, seed: u64) -> Vec<f64> {
        let r = random(n * n, seed);
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let dot: f64 = (0..n).map(|k| r[i * n + k] * r[j * n + k]).sum::<f64>() / n as f64;
                a[i * n + j] = dot + if i == j { 0.5 } else { 0.0 };
                a[j * n + i] = a[i * n + j];
            }
        }
        a
    }

    pub(super) fn transpose(a: &[f64], rows: usize, cols: usize) -> Vec<f64> {
        (0..rows * cols).map(|i| a[i % rows * cols + i / rows]).collect()
    }

    /// `a [m, k] · b [k, n]`, plainly.
    pub(super) fn product(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
        (0..m * n).map(|i| (0..k).map(|t| a[i / n * k + t] * b[t * n + i % n]).sum()).collect()
    }

    #[track_caller]
    pub(super) fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f - e).abs() <= tolerance, "at {i}: found {f}, expected {e}");
        }
    }

    pub(super) fn in_pool<R: Send>(threads: usize, work: impl Fn() -> R + Send + Sync) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }
}
