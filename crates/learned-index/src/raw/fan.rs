//! Which child of a fan a coordinate belongs to.
//!
//! A fan cuts the coordinates above its first into cells, and a table says which child has a cell; neighbours may share a
//! child. There is nothing to search. The cells of a fan are equally wide, or they grow with the distance from the first
//! coordinate, like the steps of a floating-point number: its highest bits are the number of the cell.

use super::node::Node;
use crate::key::Key;

/// Bits of 1.0.
const ONE: u64 = 1f64.to_bits();
/// Times that the width of the cells may double.
const DOUBLINGS: [u32; 7] = [1, 4, 8, 16, 24, 32, 48];
/// Coordinates that the choice looks at.
const SAMPLE: usize = 4096;

/// Cells over coordinates.
#[derive(Clone, Copy)]
pub(super) struct Cells<C> {
    pub(super) base: C,
    /// Widths of the first octave in a unit of the coordinate: from 1 on, these are floating-point numbers whose highest
    /// bits count the cells.
    pub(super) scale: f64,
    /// The last coordinate as such a number.
    pub(super) limit: f64,
    pub(super) shift: u8,
}

impl<C: Key> Cells<C> {
    /// About `count` cells over the ascending coordinates `at(0)` to `at(n - 1)`, which are not one, such that the
    /// coordinates spread over them as evenly as they can.
    pub(super) fn over(n: usize, at: impl Fn(usize) -> C, count: usize) -> Self {
        let base = at(0);
        let range = at(n - 1).offset_from(base).min(f64::MAX);
        let candidates = DOUBLINGS.map(|doublings| {
            let scale = (((doublings as f64).exp2() - 1.0) / range).min(f64::MAX);
            let shift = 52 - (count / doublings as usize).max(2).ilog2() as u8;
            Self { base, scale, limit: 1.0 + range * scale, shift }
        });
        let step = n.div_ceil(SAMPLE);
        let crowd = |cells: &Self| {
            let (mut crowd, mut cell, mut here) = (0.0, usize::MAX, 0.0f64);
            for i in (0..n).step_by(step) {
                let next = cells.cell(at(i));
                if next != cell {
                    crowd += here * here.max(1.0).log2();
                    (cell, here) = (next, 0.0);
                }
                here += 1.0;
            }
            crowd + here * here.max(1.0).log2()
        };
        let [first, rest @ ..] = candidates;
        let mut best = (first, crowd(&first));
        for cells in rest {
            let crowd = crowd(&cells);
            if crowd < 0.95 * best.1 {
                best = (cells, crowd);
            }
        }
        best.0
    }

    /// How many cells there are.
    pub(super) fn count(&self) -> usize {
        number(self.limit, self.limit, self.shift) + 1
    }

    /// The cell of a coordinate.
    #[inline(always)]
    pub(super) fn cell(&self, coordinate: C) -> usize {
        number(1.0 + coordinate.offset_from(self.base) * self.scale, self.limit, self.shift)
    }
}

/// Number of the cell of `x`, which becomes a number from 1 to `limit`.
#[inline(always)]
fn number(x: f64, limit: f64, shift: u8) -> usize {
    ((x.max(1.0).min(limit).to_bits() - ONE) >> shift) as usize
}

impl<C: Key> Node<C> {
    /// The child that has a coordinate.
    ///
    /// # Safety
    /// This is a fan.
    #[inline(always)]
    pub(super) unsafe fn child_of(&self, coordinate: C) -> usize {
        // SAFETY: fans are built with a base, and the table has as many entries as there are cells.
        unsafe {
            let x = 1.0 + coordinate.offset_from(self.base.assume_init()) * self.scale;
            *self.side.cast::<u32>().add(number(x, self.limit, self.shift)) as usize
        }
    }
}

impl<C> Node<C> {
    /// Cells of a fan.
    pub(super) fn cells(&self) -> usize {
        number(self.limit, self.limit, self.shift) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::KeySet;
    use crate::key::F64;

    #[test]
    fn cells_ascend_from_the_first_coordinate_to_the_last() {
        for set in KeySet::ALL {
            let mut keys = set.generate(3000, 42).to_f64();
            keys.dedup();
            let key = |i: usize| F64::new(keys[i]).unwrap();
            for count in [16, 100, 5000] {
                let cells = Cells::over(keys.len(), key, count);
                let of = |i: usize| cells.cell(key(i));
                assert!((1..keys.len()).all(|i| of(i - 1) <= of(i)));
                assert_eq!((of(0), of(keys.len() - 1)), (0, cells.count() - 1));
                assert!((2..=(2 * count).max(100)).contains(&cells.count()), "{} of {count}", cells.count());
                let outside = [f64::MIN, f64::MAX].map(|x| cells.cell(F64::new(x).unwrap()));
                assert_eq!(outside, [0, cells.count() - 1]);
            }
        }
    }

    #[test]
    fn wide_distributions_get_cells_that_grow() {
        let keys: Vec<u64> = (0..60).map(|i| 1 << i).collect();
        let cells = Cells::over(keys.len(), |i| keys[i], 256);
        let different: std::collections::BTreeSet<usize> = keys.iter().map(|key| cells.cell(*key)).collect();
        assert!(different.len() > 40, "{different:?}");
    }
}
