//! Eigenvalues and singular values, on one thread: their reductions would otherwise depend on the pool.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, SelfAdjointEvdParams, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::svd::{self as faer_svd, ComputeSvdVectors, SvdParams};
use faer::{Auto, Mat, MatRef, Par, Spec};

use super::{LinalgError, Result, check_finite, check_len};

/// `a = vectors · diag(values) · vectorsᵀ`.
#[derive(Debug, Clone, PartialEq)]
pub struct Eigen {
    /// Ascending.
    pub values: Vec<f64>,
    /// Row-major `[n, n]`; column `j` belongs to `values[j]`.
    pub vectors: Vec<f64>,
}

/// `a = u · diag(s) · vt` with `k = min(rows, cols)` singular values.
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// Left vectors, row-major `[rows, k]`.
    pub u: Vec<f64>,
    /// Singular values, descending.
    pub s: Vec<f64>,
    /// Right vectors, row-major `[k, cols]`.
    pub vt: Vec<f64>,
}

/// The eigen decomposition of a symmetric `a` of shape `[n, n]`; only its lower triangle is read.
pub fn symmetric_eigen(a: &[f64], n: usize) -> Result<Eigen> {
    check_len("matrix to decompose", a.len(), n, n)?;
    check_finite("matrix to decompose", a)?;
    let params = Spec::<SelfAdjointEvdParams, f64>::new(<SelfAdjointEvdParams as Auto<f64>>::auto());
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, params);
    let mut memory = MemBuffer::new(scratch);
    let mut values = Diag::<f64>::zeros(n);
    let mut vectors = Mat::<f64>::zeros(n, n);
    self_adjoint_evd(
        MatRef::from_row_major_slice(a, n, n),
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        params,
    )
    .map_err(|_| LinalgError::NoConvergence { what: "eigen decomposition", rows: n, cols: n })?;
    Ok(Eigen { values: values.column_vector().iter().copied().collect(), vectors: to_rows(vectors.as_ref()) })
}

/// The thin singular value decomposition of `a` of shape `[rows, cols]`.
pub fn svd(a: &[f64], rows: usize, cols: usize) -> Result<Svd> {
    check_len("matrix to decompose", a.len(), rows, cols)?;
    check_finite("matrix to decompose", a)?;
    let k = rows.min(cols);
    let thin = ComputeSvdVectors::Thin;
    let params = Spec::<SvdParams, f64>::new(<SvdParams as Auto<f64>>::auto());
    let mut memory = MemBuffer::new(faer_svd::svd_scratch::<f64>(rows, cols, thin, thin, Par::Seq, params));
    let mut s = Diag::<f64>::zeros(k);
    let (mut u, mut v) = (Mat::<f64>::zeros(rows, k), Mat::<f64>::zeros(cols, k));
    faer_svd::svd(
        MatRef::from_row_major_slice(a, rows, cols),
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        params,
    )
    .map_err(|_| LinalgError::NoConvergence { what: "singular value decomposition", rows, cols })?;
    Ok(Svd {
        u: to_rows(u.as_ref()),
        s: s.column_vector().iter().copied().collect(),
        vt: to_rows(v.as_ref().transpose()),
    })
}

fn to_rows(m: MatRef<'_, f64>) -> Vec<f64> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::test_support::{assert_close, product, random, spd, transpose};

    /// `m · diag(d)` for `m` of shape `[_, d.len()]`.
    fn scale_columns(m: &[f64], d: &[f64]) -> Vec<f64> {
        m.iter().enumerate().map(|(i, v)| v * d[i % d.len()]).collect()
    }

    fn identity(n: usize) -> Vec<f64> {
        (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect()
    }

    #[test]
    fn eigen_of_known_and_random_matrices() {
        let Eigen { values, .. } = symmetric_eigen(&[2.0, 1.0, 1.0, 2.0], 2).unwrap();
        assert_close(&values, &[1.0, 3.0], 1e-14);
        for n in [1, 3, 40, 150] {
            let a = spd(n, 2);
            let Eigen { values, vectors } = symmetric_eigen(&a, n).unwrap();
            assert!(values.is_sorted());
            let back = product(&scale_columns(&vectors, &values), &transpose(&vectors, n, n), n, n, n);
            assert_close(&back, &a, 1e-11);
            assert_close(&product(&transpose(&vectors, n, n), &vectors, n, n, n), &identity(n), 1e-11);
        }
        assert!(symmetric_eigen(&[f64::NAN], 1).is_err());
    }

    #[test]
    fn svd_of_known_and_random_matrices() {
        // The singular values of [[3, 0], [4, 5]] are √45 and √5.
        let s = svd(&[3.0, 0.0, 4.0, 5.0], 2, 2).unwrap().s;
        assert_close(&s, &[45f64.sqrt(), 5f64.sqrt()], 1e-14);
        for (rows, cols) in [(1, 4), (30, 20), (20, 30), (64, 64)] {
            let a = random(rows * cols, 9);
            let Svd { u, s, vt } = svd(&a, rows, cols).unwrap();
            let k = rows.min(cols);
            assert!(s.is_sorted_by(|a, b| a >= b) && s[k - 1] >= 0.0);
            assert_close(&product(&scale_columns(&u, &s), &vt, rows, k, cols), &a, 1e-12);
            assert_close(&product(&vt, &transpose(&vt, k, cols), k, cols, k), &identity(k), 1e-12);
        }
    }
}
