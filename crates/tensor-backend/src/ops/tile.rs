//! Small matrix products on one thread, for kernels that divide the work themselves.
#![allow(unsafe_code, reason = "the product takes pointers")]

/// A matrix in a slice: element `(i, j)` lies at `i · row + j · col`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    values: &'a [f32],
    row: usize,
    col: usize,
}

impl<'a> Mat<'a> {
    /// Rows that are `stride` apart.
    pub(crate) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, row: stride, col: 1 }
    }

    /// Rows become columns.
    pub(crate) fn transposed(self) -> Self {
        Self { values: self.values, row: self.col, col: self.row }
    }

    /// Whether `rows × cols` elements lie within the slice.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.values.len()
    }
}

/// `out = lhs · rhs`, or `out += lhs · rhs`: `[m, k]` by `[k, n]`, `out` in rows of `n`.
pub(crate) fn product([m, n, k]: [usize; 3], lhs: Mat<'_>, rhs: Mat<'_>, out: &mut [f32], accumulate: bool) {
    assert!(lhs.holds(m, k) && rhs.holds(k, n) && out.len() >= m * n, "a tile reaches outside its matrix");
    // SAFETY: the three matrices lie within their slices, as just checked, and `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            lhs.values.as_ptr(),
            lhs.col as isize,
            lhs.row as isize,
            rhs.values.as_ptr(),
            rhs.col as isize,
            rhs.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
