//! Which child of a fan a coordinate belongs to.
//!
//! A fan cuts the coordinates above its first into cells, a cell where keys are crowded into parts, and a table says which
//! child has a part; neighbours may share a child. There is nothing to search. The cells of a fan are equally wide, or they
//! grow with the distance from the first coordinate, like the steps of a floating-point number: its highest bits are the
//! number of the cell, the next bits that of the part.

use super::node::Node;
use crate::key::Key;

/// Bits of 1.0.
const ONE: u64 = 1f64.to_bits();
/// Times that the width of the cells may double.
const DOUBLINGS: [u32; 7] = [1, 4, 8, 16, 24, 32, 48];
/// How many times the cells may become twice as wide.
const WIDER: u8 = 20;
/// How often a cell may be halved into parts: their numbers have 16 bits.
pub(super) const PARTS_MOST: u8 = 16;
/// Runs of a table, and bits that say how wide a part is.
pub(super) const RUNS_MOST: usize = 1 << (32 - WIDTH_BITS);
const WIDTH_BITS: u32 = 6;
/// Numbers of 16 bits in a word.
const HALVES: usize = 4;
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
        (point(self.limit, self.limit) >> self.shift) as usize + 1
    }

    /// The cell of a coordinate.
    pub(super) fn cell(&self, coordinate: C) -> usize {
        (self.point(coordinate) >> self.shift) as usize
    }

    /// Bits of a coordinate, the highest of which are the number of its cell.
    #[inline(always)]
    pub(super) fn point(&self, coordinate: C) -> u64 {
        point(1.0 + coordinate.offset_from(self.base) * self.scale, self.limit)
    }

    /// The table of runs that begin, ascending and the first of them with the first cell, at these points, fewer than
    /// [`RUNS_MOST`], no cell halved more than [`PARTS_MOST`] times. It widens the cells if that makes it smaller.
    ///
    /// First a word for each cell: the width of its parts, the run of its first part, and where to look for a part. The last
    /// word is the length of the table. Then, in 16 bits each, how many runs later than the first the run of a part is. All
    /// cells that are not cut share one such number, which therefore is always near.
    pub(super) fn table(&mut self, runs: &[u64]) -> Vec<u64> {
        debug_assert!(runs.len() < RUNS_MOST);
        // Runs that begin inside a cell of some width: its number, and the width of the parts that tell them.
        let parts = |shift: u8| {
            let inside = runs.iter().filter(move |at| at.trailing_zeros() < shift.into());
            inside.map(move |at| (at >> shift, at.trailing_zeros() as u8))
        };
        // What the table would take.
        let size = |shift: u8| {
            let (mut size, mut last, mut finest) = (4 * (point(self.limit, self.limit) >> shift), u64::MAX, shift);
            for (cell, width) in parts(shift) {
                if shift - width > PARTS_MOST {
                    return u64::MAX;
                }
                if cell != last {
                    (size, last, finest) = (size + (1 << (shift - finest)), cell, shift);
                }
                finest = finest.min(width);
            }
            size + (1 << (shift - finest))
        };
        self.shift = (self.shift..=(self.shift + WIDER).min(52)).min_by_key(|shift| size(*shift)).unwrap_or(self.shift);
        let (shift, count) = (self.shift, self.count());
        let mut finest = parts(shift).peekable();
        let mut cells = Vec::with_capacity(count + 1);
        // The number that cells without parts share comes first.
        let entries_at = HALVES * (count + 1);
        let mut entries = vec![0u16];
        let mut run = 0;
        for cell in 0..count {
            let mut width = shift;
            while let Some((_, part)) = finest.next_if(|(at, _)| *at == cell as u64) {
                width = width.min(part);
            }
            let first_point = (cell as u64) << shift;
            let mut run_of = |point: u64| {
                while runs.get(run + 1).is_some_and(|at| *at <= point) {
                    run += 1;
                }
                run
            };
            let first = run_of(first_point);
            let entry = if width == shift { 0 } else { entries.len() };
            // Of a point the parts of all cells up to its own are taken off, and those before its own put back.
            let offset = ((entries_at + entry) as u32).wrapping_sub((first_point >> width) as u32);
            cells.push(u64::from(offset) << 32 | (first as u64) << WIDTH_BITS | u64::from(width));
            if width < shift {
                let parts = 0..1u64 << (shift - width);
                entries.extend(parts.map(|part| (run_of(first_point + (part << width)) - first) as u16));
            }
        }
        cells.push((count + 1 + entries.len().div_ceil(HALVES)) as u64);
        cells.extend(entries.chunks(HALVES).map(|four| {
            let mut word = [0; size_of::<u64>()];
            word.chunks_exact_mut(size_of::<u16>()).zip(four).for_each(|(to, x)| to.copy_from_slice(&x.to_ne_bytes()));
            u64::from_ne_bytes(word)
        }));
        cells
    }
}

/// Bits of `x`, which becomes a number from 1 to `limit`, above those of 1.
#[inline(always)]
fn point(x: f64, limit: f64) -> u64 {
    x.max(1.0).min(limit).to_bits() - ONE
}

/// Where a fan says which child it is: a number of the table, and what it is counted from.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) later: *const u16,
    first: u32,
}

impl Entry {
    pub(super) const NONE: Self = Self { later: std::ptr::null(), first: 0 };

    /// The child.
    ///
    /// # Safety
    /// It is an entry of a fan of this tree.
    #[inline(always)]
    pub(super) unsafe fn child(self) -> usize {
        // SAFETY: the caller's promise.
        self.first as usize + usize::from(unsafe { *self.later })
    }
}

impl<C: Key> Node<C> {
    /// The child that has a coordinate.
    ///
    /// # Safety
    /// This is a fan.
    #[inline(always)]
    pub(super) unsafe fn child_of(&self, coordinate: C) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.entry_of(coordinate).child() }
    }

    /// The entry of the table that says which child has a coordinate.
    ///
    /// # Safety
    /// This is a fan.
    #[inline(always)]
    pub(super) unsafe fn entry_of(&self, coordinate: C) -> Entry {
        // SAFETY: fans are built with a base and a table of `Cells::table`, which covers all points up to the limit.
        unsafe {
            let x = 1.0 + coordinate.offset_from(self.base.assume_init()) * self.scale;
            let point = point(x, self.limit);
            let table = self.side.cast::<u64>().cast_const();
            let cell = *table.add((point >> self.shift) as usize);
            let part = (point >> (cell & ((1 << WIDTH_BITS) - 1))) as u32;
            let later = table.cast::<u16>().add(((cell >> 32) as u32).wrapping_add(part) as usize);
            Entry { later, first: cell as u32 >> WIDTH_BITS }
        }
    }
}

impl<C> Node<C> {
    /// Words of the table of a fan.
    ///
    /// # Safety
    /// This is a fan.
    pub(super) unsafe fn words(&self) -> usize {
        let cells = (point(self.limit, self.limit) >> self.shift) as usize + 1;
        // SAFETY: the table was made by `Cells::table`, which ends the list of cells with the length of all.
        unsafe { *self.side.cast::<u64>().add(cells) as usize }
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
    fn tables_say_which_run_has_a_point() {
        let mut rng = crate::data::SplitMix64::new(42);
        for (count, runs) in [(16, 1), (16, 7), (300, 40), (5000, 1000)] {
            let keys: Vec<u64> = (0..20_000).map(|i| i * i * 1000).collect();
            let mut cells = Cells::over(keys.len(), |i| keys[i], count);
            // Some begin with a cell, some with a part of one.
            let mut at: Vec<u64> = (1..runs)
                .map(|_| {
                    let width = u64::from(cells.shift) - rng.below(5);
                    rng.below((cells.count() as u64) << (u64::from(cells.shift) - width)) << width
                })
                .chain([0])
                .collect();
            at.sort_unstable();
            at.dedup();
            let mut table = cells.table(&at);
            let node = Node {
                base: std::mem::MaybeUninit::new(cells.base),
                scale: cells.scale,
                limit: cells.limit,
                shift: cells.shift,
                side: table.as_mut_ptr().cast(),
                ..Node::empty()
            };
            for key in keys.into_iter().chain([u64::MAX]) {
                let run = at.partition_point(|at| *at <= cells.point(key)) - 1;
                // SAFETY: it has all that belongs to a fan but children.
                assert_eq!(unsafe { node.child_of(key) }, run);
            }
            // SAFETY: as above.
            assert_eq!(unsafe { node.words() }, table.len());
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
