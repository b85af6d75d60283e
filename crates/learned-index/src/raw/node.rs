//! The three kinds of nodes.
//!
//! A **model node** places a key by a line. Its slots are grouped into chunks of [`SLOTS`]; the keys of a slot are its
//! bucket, and the buckets of a chunk lie one after the other in one block, so that a chunk costs one cache line, a
//! bucket one more, and no slot is ever empty memory. A chunk that holds too many keys becomes a child node.
//!
//! A **dense node** is what stands above keys that no line carries: the first coordinates of its children, searched
//! by halves.
//!
//! A **flat node** is a small sorted array, or a large one of keys that all have one coordinate.

use std::hint;
use std::mem::MaybeUninit;
use std::ptr;

use serde::{Deserialize, Serialize};

use crate::key::Key;

/// Slots of a chunk.
pub(super) const SLOTS: usize = 48;
/// Most keys of a chunk: positions inside are bytes.
pub(super) const CHUNK_MAX: usize = 255;

/// A group of slots: one cache line.
#[repr(C, align(64))]
pub(super) struct Chunk {
    /// A block of pairs, or a [`Node`] if `child`.
    pub(super) data: *mut u8,
    /// Pairs that the block has room for.
    pub(super) cap: u8,
    pub(super) child: bool,
    /// `ends[s]..ends[s + 1]` is the bucket of slot `s`.
    pub(super) ends: [u8; SLOTS + 1],
}

impl Chunk {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.ends[SLOTS].into()
    }

    /// One key more in `slot`.
    #[inline]
    pub(super) fn grew(&mut self, slot: usize) {
        for (i, end) in self.ends.iter_mut().enumerate() {
            *end += u8::from(i > slot);
        }
    }

    /// One key less in `slot`.
    #[inline]
    pub(super) fn shrank(&mut self, slot: usize) {
        for (i, end) in self.ends.iter_mut().enumerate() {
            *end -= u8::from(i > slot);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// `data` is a block of `room` pairs, `len` of them initialised.
    Flat,
    /// `data` is an array of `room` chunks.
    Model,
    /// `data` is a [`Separators`] of `room` children.
    Dense,
}

/// A node of any kind.
#[repr(C, align(64))]
pub(super) struct Node<C> {
    /// Where a model begins; the others have none.
    pub(super) base: MaybeUninit<C>,
    /// Slots per unit of the coordinate.
    pub(super) scale: f64,
    /// The last slot, as the line gives it.
    pub(super) limit: f64,
    pub(super) data: *mut u8,
    pub(super) room: u32,
    pub(super) kind: Kind,
    /// Keys below this node.
    pub(super) len: usize,
    /// Keys below it when it was built.
    pub(super) built: usize,
}

impl<C: Key> Node<C> {
    /// An empty node, which needs no memory.
    pub(super) const fn empty() -> Self {
        let data = std::ptr::null_mut();
        Self { base: MaybeUninit::uninit(), scale: 0.0, limit: 0.0, data, room: 0, kind: Kind::Flat, len: 0, built: 0 }
    }

    /// Chunk and slot of a coordinate.
    ///
    /// # Safety
    /// This is a model node.
    #[inline(always)]
    pub(super) unsafe fn place(&self, coordinate: C) -> (usize, usize) {
        // SAFETY: models are built with a base.
        let base = unsafe { self.base.assume_init() };
        let at = slot_of(base, self.scale, self.limit, coordinate);
        (at / SLOTS, at % SLOTS)
    }
}

/// The slot of a coordinate on a line, between 0 and `limit`.
#[inline(always)]
pub(super) fn slot_of<C: Key>(base: C, scale: f64, limit: f64, coordinate: C) -> usize {
    // NaN (infinity times zero) becomes 0: `max` returns its other operand. Clamped below 2^32, hence the detour over
    // i64, which processors convert to in one instruction.
    let at = (coordinate.offset_from(base) * scale).max(0.0).min(limit);
    // SAFETY: `at` is a number between 0 and `limit` < 2^38, see `build`.
    unsafe { at.to_int_unchecked::<i64>() as usize }
}

/// Children of a dense node and the coordinates where they begin.
pub(super) struct Separators<C> {
    pub(super) children: *mut Node<C>,
    /// Where every child begins.
    pub(super) begins: *mut C,
}

impl<C: Key> Separators<C> {
    /// The last of `n` children that begins at or before `coordinate`, else the first.
    #[inline(always)]
    pub(super) fn find(&self, coordinate: C, n: usize) -> usize {
        let (mut at, mut size) = (0, n);
        while size > 1 {
            let half = size / 2;
            // SAFETY: `at + half` is less than `at + size`, which is at most `n`.
            let begin = unsafe { *self.begins.add(at + half) };
            at = hint::select_unpredictable(begin <= coordinate, at + half, at);
            size -= half;
        }
        at
    }
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

/// What a tree looks like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Keys.
    pub len: usize,
    /// Nodes that place keys by a line.
    pub model_nodes: usize,
    /// Nodes of separators, above keys that no line carries.
    pub dense_nodes: usize,
    /// Small sorted arrays, and large ones of keys with one coordinate.
    pub flat_nodes: usize,
    /// Groups of slots.
    pub chunks: usize,
    /// Slots with at least one key.
    pub buckets: usize,
    /// The largest number of keys in one slot.
    pub largest_bucket: usize,
    /// `depths[d]`: keys whose look-up passes `d + 1` nodes.
    pub depths: Vec<usize>,
    /// Bytes of nodes, chunks and separators.
    pub model_bytes: usize,
    /// Bytes of blocks of pairs, their free room included.
    pub data_bytes: usize,
    /// Bytes of all memory that the tree holds.
    pub total_bytes: usize,
}

impl Shape {
    /// Nodes that a look-up of a present key passes, on average.
    pub fn mean_depth(&self) -> f64 {
        let sum: usize = self.depths.iter().enumerate().map(|(d, keys)| (d + 1) * keys).sum();
        sum as f64 / self.len.max(1) as f64
    }
}
