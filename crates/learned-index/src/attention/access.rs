//! How the tokens of a cell's range are read.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::key::Key;
use crate::map::LearnedMap;

/// Tokens that most ranges have.
const USUAL: usize = 16;

/// Which structure finds the beginning of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessKind {
    /// Sorted arrays and the offset of every cell; built anew when tokens come.
    Csr,
    /// A [`LearnedMap`] over all cells' intervals; takes tokens one by one.
    Learned,
}

/// The place of a token. `y` is where lines put it; its order is cell, coordinate, token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) y: f64,
    /// The cell, and below it the coordinate as an integer that ascends with it.
    pub(super) order: u64,
    pub(super) token: u32,
}

/// The sign of a float.
const SIGN: u32 = 1 << 31;

impl Place {
    pub(super) fn new(y: f64, cell: u32, t: f32, token: u32) -> Self {
        Self { y, order: order(cell, t), token }
    }

    pub(super) fn cell(&self) -> u32 {
        (self.order >> 32) as u32
    }

    /// Its coordinate.
    pub(super) fn t(&self) -> f32 {
        let bits = self.order as u32;
        f32::from_bits(if bits & SIGN != 0 { bits ^ SIGN } else { !bits })
    }
}

/// An integer that ascends with the cell and, inside a cell, with the coordinate.
fn order(cell: u32, t: f32) -> u64 {
    // Adding 0 turns −0 into 0.
    let bits = (t + 0.0).to_bits();
    let ascending = if bits & SIGN != 0 { !bits } else { bits | SIGN };
    u64::from(cell) << 32 | u64::from(ascending)
}

impl Ord for Place {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order).then(self.token.cmp(&other.token))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Place {}

impl Key for Place {
    fn offset_from(self, base: Self) -> f64 {
        self.y - base.y
    }

    fn to_f64(self) -> f64 {
        self.y
    }
}

/// Tokens by cell and coordinate.
#[derive(Debug, Clone)]
pub(super) enum Access {
    Csr { begins: Vec<u32>, ts: Vec<f32>, tokens: Vec<u32> },
    Learned(Box<LearnedMap<Place, ()>>),
}

impl Access {
    pub(super) fn new(kind: AccessKind, mut places: Vec<Place>, cells: usize) -> Self {
        places.sort_unstable();
        match kind {
            AccessKind::Csr => Self::csr(&places, cells),
            AccessKind::Learned => Self::Learned(Box::new(LearnedMap::from_ascending(
                places.into_iter().map(|place| (place, ())).collect(),
            ))),
        }
    }

    fn csr(places: &[Place], cells: usize) -> Self {
        let begins =
            (0..=cells as u32).map(|cell| places.partition_point(|place| place.cell() < cell) as u32).collect();
        Self::Csr {
            begins,
            ts: places.iter().map(Place::t).collect(),
            tokens: places.iter().map(|place| place.token).collect(),
        }
    }

    /// Takes more tokens; there are `cells` in all now.
    pub(super) fn extend(&mut self, more: Vec<Place>, cells: usize) {
        match self {
            Access::Csr { begins, ts, tokens } => {
                let cell_of = |i: usize| begins.partition_point(|&begin| begin as usize <= i) as u32 - 1;
                // What lies on the axis is not needed here: the order is that of cells and coordinates.
                let own = (0..ts.len()).map(|i| Place::new(0.0, cell_of(i), ts[i], tokens[i]));
                let mut places: Vec<Place> = own.chain(more).collect();
                places.sort();
                *self = Self::csr(&places, cells);
            }
            Access::Learned(map) => map.extend(more.into_iter().map(|place| (place, ()))),
        }
    }

    /// Puts tokens, which are there, where `moved` says; their order stays.
    pub(super) fn replace(&mut self, places: &[Place], moved: impl Fn(&Place) -> Place) {
        // Arrays know nothing of the axis.
        if let Access::Learned(map) = self {
            // All out before one goes in: lines must not see old and new places side by side.
            places.iter().for_each(|place| _ = map.remove(place));
            map.extend(places.iter().map(|place| (moved(place), ())));
        }
    }

    /// Emits the tokens of a cell with coordinates from `from` to `to`; `y` is the place of `from`.
    #[inline]
    pub(super) fn range(&self, cell: u32, y: f64, from: f32, to: f32, mut emit: impl FnMut(u32, f32)) {
        match self {
            Access::Csr { begins, ts, tokens } => {
                let (begin, end) = (begins[cell as usize] as usize, begins[cell as usize + 1] as usize);
                let own = &ts[begin..end];
                let first = begin + own.partition_point(|&t| t < from);
                let last = begin + own.partition_point(|&t| t <= to);
                for i in first..last {
                    emit(tokens[i], ts[i]);
                }
            }
            Access::Learned(map) => {
                let last = order(cell, to);
                map.tree.visit(&Place::new(y, cell, from, 0), USUAL, |place, ()| {
                    let inside = place.order <= last;
                    if inside {
                        emit(place.token, place.t());
                    }
                    inside
                });
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Access::Csr { begins, ts, tokens } => 4 * (begins.capacity() + ts.capacity() + tokens.capacity()),
            Access::Learned(map) => kindling_core::PointIndex::bytes(map.as_ref()),
        }
    }
}
