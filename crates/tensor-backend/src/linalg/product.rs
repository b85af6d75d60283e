//! Matrix products on f32 slices.

use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{LinalgError, Result, check_len};

/// A row-major block of a larger f32 matrix: row `i` is `data[i · stride ..][.. cols]`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

/// The mutable twin of [`View`].
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> View<'a> {
    /// A `[rows, cols]` block that starts at `data[0]` and whose rows are `stride` values apart.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check_block(data.len(), rows, cols, stride)?;
        Ok(Self { data, rows, cols, stride })
    }

    fn faer(self) -> MatRef<'a, f32> {
        MatRef::from_column_major_slice_with_stride(self.data, self.cols, self.rows, self.stride).transpose()
    }
}

impl<'a> ViewMut<'a> {
    /// A `[rows, cols]` block that starts at `data[0]` and whose rows are `stride` values apart.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check_block(data.len(), rows, cols, stride)?;
        Ok(Self { data, rows, cols, stride })
    }

    fn faer(self) -> MatMut<'a, f32> {
        MatMut::from_column_major_slice_with_stride_mut(self.data, self.cols, self.rows, self.stride).transpose_mut()
    }
}

fn check_block(len: usize, rows: usize, cols: usize, stride: usize) -> Result<()> {
    let expected = if rows * cols == 0 { 0 } else { (rows - 1) * stride + cols };
    if len < expected || (stride < cols && rows > 1) {
        return Err(LinalgError::Shape {
            what: format!("block of shape [{rows}, {cols}] with rows {stride} apart"),
            expected,
            found: len,
        });
    }
    Ok(())
}

/// `c −= a · b` on the calling thread, for a slab of rows: `c [m, n]`, `a [m, k]`, `b [k, n]`.
///
/// The lazy block update of GPTQ and SparseGPT: `c = W[slab, end..]`, `a = E[slab]`, `b = U[block, end..]`.
/// A row of `c` depends on the same row of `a` alone, so callers spread slabs of rows over threads.
pub fn sub_matmul_f32(c: ViewMut<'_>, a: View<'_>, b: View<'_>) -> Result<()> {
    if (c.rows, a.cols, b.cols) != (a.rows, b.rows, c.cols) {
        return Err(LinalgError::Shape {
            what: format!("c [{}, {}] -= a [{}, {}] · b [{}, {}]", c.rows, c.cols, a.rows, a.cols, b.rows, b.cols),
            expected: a.rows * b.cols,
            found: c.rows * c.cols,
        });
    }
    if c.rows * c.cols * a.cols > 0 {
        matmul(c.faer(), Accum::Add, a.faer(), b.faer(), -1.0, Par::Seq);
    }
    Ok(())
}

/// Rows of the Gram matrix that one task computes.
const SLAB: usize = 256;

/// Adds `xᵀ x` to `out` for `x` of shape `[tokens, width]` and `out` of shape `[width, width]`.
///
/// Products are summed in f32 over at most 1024 tokens, then added in f64. Only one triangle is computed;
/// `out` stays exactly symmetric if it was. Needs `width² / 2` f32 values of memory.
pub fn xtx(x: &[f32], tokens: usize, width: usize, out: &mut [f64]) -> Result<()> {
    const TOKENS: usize = 1024;
    check_len("activations", x.len(), tokens, width)?;
    check_len("sum of products", out.len(), width, width)?;
    if width == 0 {
        return Ok(());
    }
    for batch in x.chunks(TOKENS * width) {
        add_gram(batch, width, out);
    }
    Ok(())
}

fn add_gram(x: &[f32], width: usize, out: &mut [f64]) {
    let x = MatRef::from_row_major_slice(x, x.len() / width, width);
    // Slab s holds rows [256 s, …) of the lower triangle, each up to the slab's last column.
    let slabs: Vec<Vec<f32>> = (0..width.div_ceil(SLAB))
        .into_par_iter()
        .map(|slab| {
            let start = slab * SLAB;
            let height = SLAB.min(width - start);
            let mut gram = vec![0.0f32; height * (start + height)];
            let own = x.subcols(start, height).transpose();
            let target = MatMut::from_row_major_slice_mut(&mut gram, height, start + height);
            let (left, square) = target.split_at_col_mut(start);
            if start > 0 {
                matmul(left, Accum::Replace, own, x.subcols(0, start), 1.0, Par::Seq);
            }
            use triangular::BlockStructure::{Rectangular, TriangularLower};
            let x_own = own.transpose();
            triangular::matmul(
                square,
                TriangularLower,
                Accum::Replace,
                own,
                Rectangular,
                x_own,
                Rectangular,
                1.0,
                Par::Seq,
            );
            gram
        })
        .collect();
    let at = |row: usize, col: usize| {
        let slab = row / SLAB;
        let stride = width.min((slab + 1) * SLAB);
        slabs[slab][(row - slab * SLAB) * stride + col]
    };
    out.par_chunks_mut(width).enumerate().for_each(|(row, values)| {
        for (col, value) in values.iter_mut().enumerate() {
            *value += f64::from(if col <= row { at(row, col) } else { at(col, row) });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::test_support::{in_pool, random_f32};

    #[test]
    fn lazy_update_touches_its_block_alone() {
        // W [5, 9], columns 4.. of rows 1..4 updated with E [3, 2] and rows 2..4 of U [9, 9].
        let (mut w, e, u) = (random_f32(45, 1), random_f32(6, 2), random_f32(81, 3));
        let before = w.clone();
        let c = ViewMut::new(&mut w[9 + 4..], 3, 5, 9).unwrap();
        sub_matmul_f32(c, View::new(&e, 3, 2, 2).unwrap(), View::new(&u[2 * 9 + 4..], 2, 5, 9).unwrap()).unwrap();
        for row in 0..5 {
            for col in 0..9 {
                let mut expected = before[row * 9 + col];
                if (1..4).contains(&row) && col >= 4 {
                    expected -= (0..2).map(|k| e[(row - 1) * 2 + k] * u[(2 + k) * 9 + col]).sum::<f32>();
                }
                assert!((w[row * 9 + col] - expected).abs() < 1e-6, "{row} {col}");
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_slab() {
        let (m, k, n) = (70, 128, 333);
        let (a, b) = (random_f32(m * k, 4), random_f32(k * n, 5));
        let run = |slab: usize| {
            let mut c = random_f32(m * n, 6);
            for (i, rows) in c.chunks_mut(slab * n).enumerate() {
                let height = rows.len() / n;
                let own = View::new(&a[i * slab * k..], height, k, k).unwrap();
                let target = ViewMut::new(rows, height, n, n).unwrap();
                sub_matmul_f32(target, own, View::new(&b, k, n, n).unwrap()).unwrap();
            }
            c
        };
        assert_eq!(run(64), run(32));
    }

    #[test]
    fn blocks_that_do_not_fit_are_refused() {
        let data = [0.0; 10];
        assert!(View::new(&data, 2, 4, 6).is_ok());
        assert!(View::new(&data, 2, 5, 6).is_err());
        assert!(View::new(&data, 2, 4, 3).is_err());
        let mut c = [0.0; 4];
        let c = ViewMut::new(&mut c, 2, 2, 2).unwrap();
        let a = View::new(&data, 2, 3, 3).unwrap();
        assert!(sub_matmul_f32(c, a, View::new(&data, 2, 2, 2).unwrap()).is_err());
    }

    #[test]
    fn gram_equals_its_plain_twin() {
        for (tokens, width) in [(1, 1), (3, 5), (20, 256), (7, 600), (2100, 17)] {
            let x = random_f32(tokens * width, 8);
            let mut out = vec![1.0; width * width];
            xtx(&x, tokens, width, &mut out).unwrap();
            for i in 0..width {
                for j in 0..width {
                    let terms = || (0..tokens).map(|t| f64::from(x[t * width + i]) * f64::from(x[t * width + j]));
                    let (dot, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                    let found = out[i * width + j];
                    assert!((found - 1.0 - dot).abs() < 2e-6 * size, "{tokens}×{width} at {i},{j}: {found} {dot}");
                    assert_eq!(found, out[j * width + i]);
                }
            }
        }
        assert!(xtx(&[0.0; 5], 2, 3, &mut [0.0; 9]).is_err());
    }

    #[test]
    fn gram_bits_do_not_depend_on_the_number_of_threads() {
        let x = random_f32(65 * 700, 12);
        let run = || {
            let mut out = vec![0.0; 700 * 700];
            xtx(&x, 65, 700, &mut out).unwrap();
            out
        };
        assert!(in_pool(1, run) == in_pool(2, run));
    }
}
