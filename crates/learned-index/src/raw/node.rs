//! The three kinds of nodes.
//!
//! A **model node** places a key by a line: the line gives the bucket where the key belongs, see
//! [`bucket`](super::bucket). Where a line does not spread the keys, the node has a curve: a chain of [`PIECES`] lines,
//! equally wide, through the ranks of the keys where they meet. That takes some more instructions and one more cache line.
//!
//! A **fan** is what stands above keys that no line carries: a table of children, see [`fan`](super::fan).
//!
//! A **flat node** is a small sorted array, or a large one of keys that all have one coordinate.

use std::hint;
use std::mem::MaybeUninit;
use std::ptr;

use crate::key::Key;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// `data` is a block of `room` pairs, `len` of them initialised.
    Flat,
    /// `data` and `side` are [`Buckets`](super::bucket::Buckets), `room` of them.
    Model,
    /// `data` is an array of `room` children, `side` the table of cells.
    Fan,
}

/// Lines of a curve.
pub(super) const PIECES: usize = 31;
/// Bits of a position inside a piece.
const WITHIN: u32 = 24;
/// Positions of all pieces.
pub(super) const POSITIONS: f64 = (PIECES << WITHIN) as f64;
/// Buckets behind the last one that the curve gives.
pub(super) const BEHIND: usize = 1;

/// Where the pieces of a curve begin and end, in 65536ths of the buckets; ascends.
pub(super) type Knots = [u16; PIECES + 1];

/// A node of any kind.
#[repr(C, align(128))]
pub(super) struct Node<C> {
    /// Where a model or a fan begins; flat nodes have none.
    pub(super) base: MaybeUninit<C>,
    /// Of a model: buckets, or positions on its curve, per unit of the coordinate. Of a fan: see
    /// [`Cells`](super::fan::Cells).
    pub(super) scale: f64,
    /// The last bucket that the line gives; of a fan again what its cells say.
    pub(super) limit: f64,
    pub(super) data: *mut u8,
    pub(super) side: *mut u8,
    pub(super) room: u32,
    pub(super) kind: Kind,
    /// Of a model: whether it has a curve.
    pub(super) curved: bool,
    /// Of a fan: see [`Cells`](super::fan::Cells).
    pub(super) shift: u8,
    /// Keys below this node.
    pub(super) len: usize,
    /// Keys below it when it was built.
    pub(super) built: usize,
    /// Of a curve.
    pub(super) knots: Knots,
}

impl<C: Key> Node<C> {
    /// An empty node, which needs no memory.
    pub(super) const fn empty() -> Self {
        Self {
            base: MaybeUninit::uninit(),
            scale: 0.0,
            limit: 0.0,
            data: ptr::null_mut(),
            side: ptr::null_mut(),
            room: 0,
            kind: Kind::Flat,
            curved: false,
            shift: 0,
            len: 0,
            built: 0,
            knots: [0; PIECES + 1],
        }
    }

    /// The bucket where a coordinate belongs.
    ///
    /// # Safety
    /// This is a model node.
    #[inline(always)]
    pub(super) unsafe fn place(&self, coordinate: C) -> usize {
        // SAFETY: models are built with a base.
        let base = unsafe { self.base.assume_init() };
        if self.curved {
            place_on_curve(base, self.scale, &self.knots, self.room as usize - BEHIND, coordinate)
        } else {
            place(base, self.scale, self.limit, coordinate)
        }
    }
}

/// The bucket of a coordinate on a line, or its position along the pieces of a curve; between 0 and `limit`.
#[inline(always)]
pub(super) fn place<C: Key>(base: C, scale: f64, limit: f64, coordinate: C) -> usize {
    // NaN (infinity times zero) becomes 0: `max` returns its other operand. Clamped below 2^32, hence the detour over
    // i64, which processors convert to in one instruction.
    let at = (coordinate.offset_from(base) * scale).max(0.0).min(limit);
    // SAFETY: `at` is a number between 0 and `limit` < 2^32, see `build`.
    unsafe { at.to_int_unchecked::<i64>() as usize }
}

/// The piece of a coordinate.
pub(super) fn piece<C: Key>(base: C, scale: f64, coordinate: C) -> usize {
    place(base, scale, POSITIONS - 1.0, coordinate) >> WITHIN
}

/// The bucket of a coordinate on a curve, less than `buckets`, which are fewer than 2^24.
#[inline(always)]
pub(super) fn place_on_curve<C: Key>(base: C, scale: f64, knots: &Knots, buckets: usize, coordinate: C) -> usize {
    let at = place(base, scale, POSITIONS - 1.0, coordinate);
    let piece = at >> WITHIN;
    // SAFETY: the position is less than `POSITIONS`, so there is a knot on either side.
    let (from, to) = unsafe { (*knots.get_unchecked(piece), *knots.get_unchecked(piece + 1)) };
    let (from, to) = (u64::from(from), u64::from(to));
    // Less than `to` << WITHIN, or `from` << WITHIN where both are one: less than 2^40.
    let along = (from << WITHIN) + (at as u64 & ((1 << WITHIN) - 1)) * (to - from);
    ((along * buckets as u64) >> (WITHIN + 16)) as usize
}

/// Pairs before the first one that is not smaller than `key`, and whether that one is `key`.
///
/// # Safety
/// The `n` pairs from `pairs` on are initialised.
#[inline(always)]
pub(super) unsafe fn search<K: Ord, V>(pairs: *const (K, V), n: usize, key: &K) -> (usize, bool) {
    if n == 0 {
        return (0, false);
    }
    // SAFETY: every index below is less than `n`.
    unsafe {
        let mut at = 0;
        if n <= 4 {
            // No branch depends on the keys: the processor goes on to the next look-up while these are fetched.
            for j in 0..4 {
                at += usize::from(j < n) & usize::from((*pairs.add(j.min(n - 1))).0 < *key);
            }
        } else {
            let mut size = n;
            while size > 1 {
                let half = size / 2;
                at = hint::select_unpredictable((*pairs.add(at + half - 1)).0 < *key, at + half, at);
                size -= half;
            }
            at += usize::from((*pairs.add(at)).0 < *key);
        }
        (at, at < n && (*pairs.add(at)).0 == *key)
    }
}

/// The pair with `key`, or null.
///
/// # Safety
/// The `n` pairs from `pairs` on are initialised.
#[inline(always)]
pub(super) unsafe fn find<K: Ord, V>(pairs: *const (K, V), n: usize, key: &K) -> *const (K, V) {
    // SAFETY: every index below is less than `n`.
    unsafe {
        let last = n.wrapping_sub(1);
        let at = if last < 4 {
            // No branch depends on the keys: the processor goes on to the next look-up while these are fetched. Up to
            // the key that is sought, all are smaller.
            let smaller = |j: usize| usize::from((*pairs.add(j.min(last))).0 < *key);
            (smaller(0) + smaller(1) + smaller(2)).min(last)
        } else if n > 0 {
            search(pairs, n, key).0.min(last)
        } else {
            return ptr::null();
        };
        if (*pairs.add(at)).0 == *key { pairs.add(at) } else { ptr::null() }
    }
}
