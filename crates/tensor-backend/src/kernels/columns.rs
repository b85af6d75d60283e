//! A row-major output whose columns are shared out among threads: each writes its part of every row in place.

#![allow(unsafe_code, reason = "rows of one buffer are written by several threads, each in columns of its own")]

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// `[rows, columns]`, borrowed as a whole, written in stretches of columns.
pub(super) struct Columns<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    out: PhantomData<&'a mut [f32]>,
}

// SAFETY: the buffer is borrowed for as long as this lives, and every column is given to one `Stretch` only.
unsafe impl Sync for Columns<'_> {}

/// Some columns of all rows: nobody else writes there.
pub(super) struct Stretch<'a> {
    all: &'a Columns<'a>,
    columns: Range<usize>,
}

impl<'a> Columns<'a> {
    /// Shares `out` `[rows, columns]` out, `width` columns at a time (the last stretch may have fewer); each stretch and its number
    /// go to `write`, on this thread alone unless `shared`.
    ///
    /// # Panics
    /// If `out` is not so many rows, or `width` is 0.
    pub(super) fn share(
        out: &'a mut [f32],
        rows: usize,
        width: usize,
        shared: bool,
        write: impl Fn(usize, Stretch<'_>) + Sync,
    ) {
        assert!(width > 0 && out.len().is_multiple_of(rows.max(1)), "rows of an output");
        let columns = out.len() / rows.max(1);
        let all = Columns { start: out.as_mut_ptr(), rows, columns, out: PhantomData };
        let give = |i: usize| write(i, Stretch { all: &all, columns: i * width..columns.min((i + 1) * width) });
        let count = columns.div_ceil(width);
        if shared && count > 1 {
            (0..count).into_par_iter().for_each(give);
        } else {
            (0..count).for_each(give);
        }
    }
}

impl Stretch<'_> {
    /// Columns of the stretch.
    pub(super) fn width(&self) -> usize {
        self.columns.len()
    }

    /// The stretch's part of a row, from its column `first` on.
    ///
    /// # Panics
    /// If there is no such row, or it begins beyond the stretch.
    pub(super) fn row(&mut self, row: usize, first: usize) -> &mut [f32] {
        assert!(row < self.all.rows && first <= self.width(), "row {row}, column {first} of a stretch");
        let at = row * self.all.columns + self.columns.start + first;
        // SAFETY: inside the borrowed buffer, as just checked; other stretches have other columns, and this one is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.all.start.add(at), self.width() - first) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_written_once() {
        for (rows, columns, width) in [(1, 1, 1), (3, 10, 4), (5, 8, 8), (2, 33, 16), (4, 7, 100), (0, 0, 3), (3, 0, 2)]
        {
            for shared in [false, true] {
                let mut out = vec![0.0; rows * columns];
                Columns::share(&mut out, rows, width, shared, |i, mut stretch| {
                    for row in 0..rows {
                        stretch.row(row, 0).iter_mut().enumerate().for_each(|(j, x)| {
                            *x += (row * columns + i * width + j + 1) as f32;
                        });
                    }
                });
                let expected: Vec<f32> = (1..=rows * columns).map(|i| i as f32).collect();
                assert_eq!(out, expected, "{rows} × {columns} by {width}");
            }
        }
    }
}
