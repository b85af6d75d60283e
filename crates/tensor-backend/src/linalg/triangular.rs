//! Cholesky factors, triangular inverses and triangular solves, blocked over fixed slabs of rows.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltError, LltParams, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Accum, Auto, MatMut, MatRef, Par, Spec};
use rayon::prelude::*;

use super::{LinalgError, Result, check_finite, check_len};

/// Rows of a block and of a slab: fixed, so that results do not depend on the number of threads.
const BLOCK: usize = 128;

/// The lower triangular `L` with `L Lᵀ = a` for a symmetric positive definite `a` of shape `[n, n]`.
///
/// Only the lower triangle of `a` is read; the upper triangle of the result is zero.
pub fn cholesky_lower(a: &[f64], n: usize) -> Result<Vec<f64>> {
    check_len("matrix to factorise", a.len(), n, n)?;
    let mut l = a.to_vec();
    cholesky_in_slabs(&mut l, n)?;
    Ok(l)
}

/// The inverse of a symmetric positive definite `a` of shape `[n, n]`, exactly symmetric.
///
/// Only the lower triangle of `a` is read. Needs `2 n²` values of memory.
pub fn spd_inverse(a: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut l = cholesky_lower(a, n)?;
    invert_lower_in_slabs(&mut l, n);
    let mut inverse = vec![0.0; n * n];
    // a⁻¹ = L⁻ᵀ L⁻¹, and row k of L⁻¹ ends at column k: sums start at the first row of the slab.
    inverse.par_chunks_mut(BLOCK * n.max(1)).enumerate().for_each(|(slab, rows)| {
        let start = slab * BLOCK;
        let height = rows.len() / n;
        let end = start + height;
        let below = row_major(&l[start * n..], n - start, end, n);
        let left = below.subcols(start, height).transpose();
        matmul(row_major_mut(rows, height, end, n), Accum::Replace, left, below, 1.0, Par::Seq);
    });
    for row in 0..n {
        for col in row + 1..n {
            inverse[row * n + col] = inverse[col * n + row];
        }
    }
    Ok(inverse)
}

/// The upper triangular `U` with `h⁻¹ = Uᵀ U`, for a symmetric positive definite `h` of shape `[n, n]`.
///
/// The factor through which GPTQ and SparseGPT spread the error of one column over the later ones. With `J`
/// the reversal of the indices and `M` the lower Cholesky factor of `J h J`, it is `J M⁻¹ J`: no inverse of
/// `h` is formed. Only the upper triangle of `h` is read. Works in place: apart from the buffer handed in it
/// needs `O(n)` values.
pub fn inverse_cholesky_upper(mut h: Vec<f64>, n: usize) -> Result<Vec<f64>> {
    check_len("matrix to factorise", h.len(), n, n)?;
    h.reverse();
    cholesky_in_slabs(&mut h, n).map_err(|error| match error {
        LinalgError::NotPositiveDefinite { n, pivot, value } => {
            LinalgError::NotPositiveDefinite { n, pivot: n - 1 - pivot, value }
        }
        LinalgError::NotFinite { what, index, value } => {
            LinalgError::NotFinite { what, index: n * n - 1 - index, value }
        }
        other => other,
    })?;
    invert_lower_in_slabs(&mut h, n);
    h.reverse();
    Ok(h)
}

/// Solves `l x = b` for `x` of shape `[n, nrhs]`; only the lower triangle of `l` (`[n, n]`) is read.
pub fn solve_lower(l: &[f64], n: usize, b: &[f64], nrhs: usize) -> Result<Vec<f64>> {
    solve(l, n, b, nrhs, |l, x| solve_lower_triangular_in_place(l, x, Par::Seq))
}

/// Solves `u x = b` for `x` of shape `[n, nrhs]`; only the upper triangle of `u` (`[n, n]`) is read.
pub fn solve_upper(u: &[f64], n: usize, b: &[f64], nrhs: usize) -> Result<Vec<f64>> {
    solve(u, n, b, nrhs, |u, x| solve_upper_triangular_in_place(u, x, Par::Seq))
}

fn solve(
    t: &[f64],
    n: usize,
    b: &[f64],
    nrhs: usize,
    kernel: impl Fn(MatRef<'_, f64>, MatMut<'_, f64>) + Sync,
) -> Result<Vec<f64>> {
    check_len("triangular matrix", t.len(), n, n)?;
    check_len("right-hand sides", b.len(), n, nrhs)?;
    if let Some(index) = (0..n).find(|&i| t[i * n + i] == 0.0) {
        return Err(LinalgError::Singular { n, index });
    }
    if b.is_empty() {
        return Ok(Vec::new());
    }
    let matrix = row_major(t, n, n, n);
    // Every slab is a run of right-hand sides, held one after the other.
    let slabs: Vec<Vec<f64>> = (0..nrhs.div_ceil(BLOCK))
        .into_par_iter()
        .map(|slab| {
            let columns = slab * BLOCK..nrhs.min((slab + 1) * BLOCK);
            let width = columns.len();
            let mut x: Vec<f64> = columns.flat_map(|j| (0..n).map(move |i| b[i * nrhs + j])).collect();
            kernel(matrix, MatMut::from_column_major_slice_mut(&mut x, n, width));
            x
        })
        .collect();
    let mut out = vec![0.0; n * nrhs];
    for (i, row) in out.chunks_exact_mut(nrhs).enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            *value = slabs[j / BLOCK][j % BLOCK * n + i];
        }
    }
    Ok(out)
}

/// Replaces a symmetric matrix, of which the lower triangle is read, by its lower Cholesky factor.
fn cholesky_in_slabs(a: &mut [f64], n: usize) -> Result<()> {
    check_finite("matrix to factorise", a)?;
    let mut panel = Vec::new();
    for start in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - start);
        let end = start + width;
        let diagonal = factor_diagonal(a, n, start, width)?;
        let diagonal = row_major(&diagonal, width, width, width);

        // The rows below: P = A D⁻ᵀ. A copy of P lets every slab read all of it while it writes its own rows.
        let below = &mut a[end * n..];
        panel.resize(below.len() / n.max(1) * width, 0.0);
        (panel.par_chunks_mut(BLOCK * width), below.par_chunks_mut(BLOCK * n)).into_par_iter().for_each(
            |(panel, rows)| {
                for (p, row) in panel.chunks_exact_mut(width).zip(rows.chunks_exact(n)) {
                    p.copy_from_slice(&row[start..end]);
                }
                let height = panel.len() / width;
                let transposed = MatMut::from_column_major_slice_mut(&mut *panel, width, height);
                solve_lower_triangular_in_place(diagonal, transposed, Par::Seq);
                for (p, row) in panel.chunks_exact(width).zip(rows.chunks_exact_mut(n)) {
                    row[start..end].copy_from_slice(p);
                }
            },
        );
        let panel = &panel;
        below.par_chunks_mut(BLOCK * n).enumerate().for_each(|(slab, rows)| {
            let first = slab * BLOCK;
            let height = rows.len() / n;
            let all = row_major(panel, first + height, width, width);
            let own = all.subrows(first, height);
            let target = row_major_mut(&mut rows[end..], height, first + height, n);
            matmul(target, Accum::Add, own, all.transpose(), -1.0, Par::Seq);
        });
    }
    clear_above_diagonal(a, n);
    Ok(())
}

/// Factorises the diagonal block at `start` in place and returns a dense copy of its factor.
fn factor_diagonal(a: &mut [f64], n: usize, start: usize, width: usize) -> Result<Vec<f64>> {
    let block_row = |i: usize| (start + i) * n + start..(start + i) * n + start + width;
    let original: Vec<f64> = (0..width).flat_map(|i| a[block_row(i)].to_vec()).collect();
    let mut block = original.clone();
    let params = Spec::<LltParams, f64>::new(<LltParams as Auto<f64>>::auto());
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(width, Par::Seq, params));
    let view = row_major_mut(&mut block, width, width, width);
    let done = cholesky_in_place(view, Default::default(), Par::Seq, MemStack::new(&mut memory), params);
    if let Err(LltError::NonPositivePivot { index }) = done {
        let value = pivot_value(&original, width, index);
        return Err(LinalgError::NotPositiveDefinite { n, pivot: start + index, value });
    }
    for i in 0..width {
        block[i * width + i + 1..(i + 1) * width].fill(0.0);
        a[block_row(i)].copy_from_slice(&block[i * width..(i + 1) * width]);
    }
    Ok(block)
}

/// Pivot `index` of a small symmetric matrix by plain elimination: what an error message shows.
fn pivot_value(a: &[f64], n: usize, index: usize) -> f64 {
    let mut l = a.to_vec();
    for j in 0..=index {
        for k in 0..j {
            for i in j..=index {
                l[i * n + j] -= l[i * n + k] * l[j * n + k];
            }
        }
        if j < index {
            let root = l[j * n + j].sqrt();
            for i in j..=index {
                l[i * n + j] /= root;
            }
        }
    }
    l[index * n + index]
}

/// Replaces a lower triangular matrix with a non-zero diagonal by its inverse.
fn invert_lower_in_slabs(l: &mut [f64], n: usize) {
    for start in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - start);
        let (done, rest) = l.split_at_mut(start * n);
        let rows = &mut rest[..width * n];
        let mut inverse = vec![0.0; width * width];
        invert_lower_triangular(
            row_major_mut(&mut inverse, width, width, width),
            row_major(&rows[start..], width, width, n),
            Par::Seq,
        );
        let left = {
            // −D⁻¹ R once per block row, so that every slab costs one product.
            let mut left = vec![0.0; width * start];
            left.par_chunks_mut(BLOCK * width).enumerate().for_each(|(slab, chunk)| {
                let columns = chunk.len() / width;
                let target = MatMut::from_column_major_slice_mut(chunk, width, columns);
                let source = row_major(&rows[slab * BLOCK..], width, columns, n);
                matmul(target, Accum::Replace, row_major(&inverse, width, width, width), source, -1.0, Par::Seq);
            });
            left
        };
        // Columns of the new block row are independent; column slab j only meets rows from j on.
        let slabs: Vec<Vec<f64>> = (0..start / BLOCK)
            .into_par_iter()
            .map(|slab| {
                let first = slab * BLOCK;
                let mut out = vec![0.0; width * BLOCK];
                let above = row_major(&done[first * n + first..], start - first, BLOCK, n);
                let left = MatRef::from_column_major_slice(&left[first * width..], width, start - first);
                matmul(row_major_mut(&mut out, width, BLOCK, BLOCK), Accum::Replace, left, above, 1.0, Par::Seq);
                out
            })
            .collect();
        for (i, row) in rows.chunks_exact_mut(n).enumerate() {
            for (slab, part) in slabs.iter().enumerate() {
                row[slab * BLOCK..][..BLOCK].copy_from_slice(&part[i * BLOCK..][..BLOCK]);
            }
            row[start..start + width].copy_from_slice(&inverse[i * width..][..width]);
        }
    }
}

fn clear_above_diagonal(a: &mut [f64], n: usize) {
    a.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, row)| row[i + 1..].fill(0.0));
}

/// A row-major view of the first `rows · cols` values that are `stride` apart.
fn row_major(values: &[f64], rows: usize, cols: usize, stride: usize) -> MatRef<'_, f64> {
    MatRef::from_column_major_slice_with_stride(values, cols, rows, stride).transpose()
}

/// The mutable twin of [`row_major`].
fn row_major_mut(values: &mut [f64], rows: usize, cols: usize, stride: usize) -> MatMut<'_, f64> {
    MatMut::from_column_major_slice_with_stride_mut(values, cols, rows, stride).transpose_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::test_support::{assert_close, in_pool, product, random, spd, transpose};

    /// The inputs of GPTQ's worked example, six tokens of four features.
    const X: [[f64; 4]; 6] = [
        [1.0, 0.5, 0.0, 0.2],
        [0.8, 1.0, 0.3, 0.0],
        [0.0, 0.4, 1.0, 0.6],
        [0.3, 0.0, 0.5, 1.0],
        [1.0, 1.0, 0.2, 0.1],
        [0.5, 0.2, 0.9, 0.4],
    ];

    #[test]
    fn gptq_worked_example() {
        let x = X.concat();
        let mut h: Vec<f64> = product(&transpose(&x, 6, 4), &x, 4, 6, 4).iter().map(|v| v / 3.0).collect();
        assert_close(&h[..4], &[0.993333, 0.8, 0.346667, 0.266667], 1e-6);
        let damping = 0.01 * (0..4).map(|i| h[5 * i]).sum::<f64>() / 4.0;
        (0..4).for_each(|i| h[5 * i] += damping);
        let u = inverse_cholesky_upper(h, 4).unwrap();
        #[rustfmt::skip]
        let expected = [
            2.406729, -2.470061, 0.907183, -1.245206,
            0.0, 1.26388, -0.900285, 0.423864,
            0.0, 0.0, 1.892146, -1.757954,
            0.0, 0.0, 0.0, 1.372322,
        ];
        assert_close(&u, &expected, 1e-6);
    }

    #[test]
    fn factors_inverses_and_solves_agree_with_products() {
        // 1 block, block edges, and several blocks with a ragged last one.
        for n in [1, 5, 127, 128, 129, 300] {
            let a = spd(n, 7);
            let l = cholesky_lower(&a, n).unwrap();
            assert_close(&product(&l, &transpose(&l, n, n), n, n, n), &a, 1e-11 * n as f64);
            assert!((0..n).all(|i| l[i * n + i + 1..(i + 1) * n].iter().all(|&v| v == 0.0)));

            let identity: Vec<f64> = (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
            let inverse = spd_inverse(&a, n).unwrap();
            assert_close(&product(&inverse, &a, n, n, n), &identity, 1e-9);
            assert_eq!(inverse, transpose(&inverse, n, n));

            let u = inverse_cholesky_upper(a.clone(), n).unwrap();
            assert_close(&product(&transpose(&u, n, n), &u, n, n, n), &inverse, 1e-9);
            assert!((0..n).all(|i| u[i * n..i * n + i].iter().all(|&v| v == 0.0)));

            let b = random(n * 131, 3);
            let x = solve_lower(&l, n, &b, 131).unwrap();
            assert_close(&product(&l, &x, n, n, 131), &b, 1e-10 * n as f64);
            let y = solve_upper(&u, n, &b, 131).unwrap();
            assert_close(&product(&u, &y, n, n, 131), &b, 1e-10 * n as f64);
        }
        assert!(inverse_cholesky_upper(Vec::new(), 0).unwrap().is_empty());
    }

    #[test]
    fn only_the_documented_triangle_is_read() {
        let n = 200;
        let a = spd(n, 1);
        let mut lower = a.clone();
        (0..n).for_each(|i| lower[i * n + i + 1..(i + 1) * n].fill(9.0));
        assert_eq!(cholesky_lower(&a, n).unwrap(), cholesky_lower(&lower, n).unwrap());
        let upper = transpose(&lower, n, n);
        assert_eq!(inverse_cholesky_upper(a, n).unwrap(), inverse_cholesky_upper(upper, n).unwrap());
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let n = 517;
        let a = spd(n, 11);
        let run = || {
            let u = inverse_cholesky_upper(a.clone(), n).unwrap();
            let l = cholesky_lower(&a, n).unwrap();
            (solve_lower(&l, n, &a, n).unwrap(), spd_inverse(&a, n).unwrap(), u, l)
        };
        let one = in_pool(1, run);
        for threads in [2, 3, 5] {
            assert!(in_pool(threads, run) == one, "{threads} threads");
        }
    }

    #[test]
    fn failures_name_the_pivot_in_the_callers_order() {
        let n = 200;
        let mut a = spd(n, 5);
        a[150 * n + 150] = -1.0;
        let Err(LinalgError::NotPositiveDefinite { pivot, value, .. }) = cholesky_lower(&a, n) else {
            panic!("a negative diagonal passed");
        };
        assert_eq!(pivot, 150);
        assert!(value < -1.0, "{value}");
        let error = inverse_cholesky_upper(a.clone(), n).unwrap_err();
        assert!(matches!(error, LinalgError::NotPositiveDefinite { pivot: 150, .. }), "{error}");
        a[3] = f64::NAN;
        let error = inverse_cholesky_upper(a, n).unwrap_err();
        assert!(matches!(error, LinalgError::NotFinite { index: 3, .. }), "{error}");
        assert!(matches!(cholesky_lower(&[1.0; 3], 2), Err(LinalgError::Shape { .. })));
        assert!(matches!(solve_lower(&[0.0; 1], 1, &[1.0], 1), Err(LinalgError::Singular { index: 0, .. })));
    }
}
