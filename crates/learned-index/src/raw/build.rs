//! From sorted pairs to nodes.
//!
//! A run of keys becomes a model node if a line spreads it well enough; else it is cut in two, down to runs that fit into
//! one or two chunks anyway. So the line is never asked for more than it can do, every run is read O(log n) times at
//! most, and all look-ups of a freshly built tree take the same path: separators, line, chunk, bucket.

use std::mem::MaybeUninit;
use std::ptr;

use super::heap::Heap;
use super::node::{CHUNK_MAX, Chunk, Kind, Node, SLOTS, Separators, slot_of};
use crate::key::Key;

/// Keys per chunk that a line aims at.
const TARGET: usize = 32;
/// A chunk with more keys becomes a child when it is built; the others have room to grow before they do.
const CHUNK_FULL: usize = 144;
/// Runs up to here become a model whatever they look like.
const RUN_MIN: usize = 128;
/// Longer runs are cut, so that a rebuild stays a matter of milliseconds.
const RUN_MAX: usize = 1 << 24;
/// Buckets above this size count as crowded …
const CROWDED: usize = 8;
/// … and one key in so many may be in a crowded bucket,
const CROWDED_SHARE: usize = 12;
/// … and one in so many must be in a chunk that does not hold too many.
const CARRIED_SHARE: usize = 5;
/// Up to here a sorted array needs no model.
const FLAT: usize = 32;
/// Blocks grow in steps of so many pairs.
pub(super) const STEP: usize = 8;

/// Room for a block of `n` pairs in a chunk.
pub(super) fn room(n: usize) -> usize {
    n.next_multiple_of(STEP).min(CHUNK_MAX)
}

/// Bytes that `n` pairs of `pair` bytes will take, about.
pub(super) fn forecast(n: usize, pair: usize) -> usize {
    let chunks = n / TARGET + 1;
    n * pair + chunks * (STEP / 2 * pair + 128) + n / 16
}

/// Builds nodes over pairs whose coordinates ascend.
pub(super) struct Builder<'a, C, K, V, F> {
    pub(super) heap: &'a mut Heap,
    pub(super) pairs: *const (K, V),
    /// The coordinate of the pair at a position.
    pub(super) coordinate: F,
    /// Whether keys ascend with coordinates; if not, every bucket is sorted by key.
    pub(super) ordered: bool,
    pub(super) marker: std::marker::PhantomData<C>,
}

struct Line<C> {
    base: C,
    scale: f64,
    limit: f64,
    chunks: usize,
}

impl<C: Key, K: Copy + Ord, V, F: Fn(usize) -> C + Copy> Builder<'_, C, K, V, F> {
    /// A node over the pairs `begin..end`, which it moves out.
    ///
    /// # Safety
    /// These pairs are initialised and will not be used again by their owner.
    pub(super) unsafe fn build(&mut self, begin: usize, end: usize) -> Node<C> {
        if end - begin <= FLAT || self.one_coordinate(begin, end) {
            // SAFETY: the caller's promise.
            return unsafe { self.flat(begin, end) };
        }
        let mut runs = Vec::new();
        self.split(begin, end, &mut runs);
        if runs.len() == 1 {
            // SAFETY: the caller's promise.
            return unsafe { self.run(begin, end) };
        }
        let children = self.heap.array::<Node<C>>(runs.len());
        for (i, &(begin, end)) in runs.iter().enumerate() {
            // SAFETY: runs are disjoint and cover what the caller promised; `children` has their number.
            unsafe { children.add(i).write(self.run(begin, end)) };
        }
        let begins = self.heap.array::<C>(runs.len());
        for (i, run) in runs.iter().enumerate() {
            // SAFETY: there is room for one a run.
            unsafe { begins.add(i).write((self.coordinate)(run.0)) };
        }
        let separators = self.heap.array::<Separators<C>>(1);
        // SAFETY: it was given out for this.
        unsafe { separators.write(Separators { children, begins }) };
        self.node(Kind::Dense, separators.cast(), runs.len(), end - begin)
    }

    fn node(&self, kind: Kind, data: *mut u8, room: usize, len: usize) -> Node<C> {
        let room = u32::try_from(room).expect("a node has fewer than 2^32 parts");
        Node { base: MaybeUninit::uninit(), scale: 0.0, limit: 0.0, data, room, kind, len, built: len }
    }

    /// Sorts a bucket by key, if it is not.
    ///
    /// # Safety
    /// The pairs are initialised and nobody else has them.
    #[inline(always)]
    unsafe fn sort(&self, pairs: *mut (K, V), n: usize) {
        if !self.ordered && n > 1 {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(pairs, n) }.sort_unstable_by_key(|pair| pair.0);
        }
    }

    fn one_coordinate(&self, begin: usize, end: usize) -> bool {
        begin == end || (self.coordinate)(begin) == (self.coordinate)(end - 1)
    }

    /// Cuts `begin..end` into runs that each become one node.
    fn split(&self, begin: usize, end: usize, runs: &mut Vec<(usize, usize)>) {
        let n = end - begin;
        if n <= RUN_MIN || self.one_coordinate(begin, end) || (n <= RUN_MAX && self.is_carried(begin, end)) {
            runs.push((begin, end));
            return;
        }
        let middle = self.cut(begin, end);
        self.split(begin, middle, runs);
        self.split(middle, end, runs);
    }

    /// The position nearest the middle where the coordinate changes: separators cannot tell equal ones apart.
    fn cut(&self, begin: usize, end: usize) -> usize {
        let changes = |&at: &usize| (self.coordinate)(at - 1) != (self.coordinate)(at);
        let middle = begin + (end - begin) / 2;
        let after = (middle..end).find(changes);
        after.or_else(|| (begin + 1..middle).rev().find(changes)).unwrap_or(middle)
    }

    /// The line over a run, from its first to its last key.
    fn line(&self, begin: usize, end: usize) -> Line<C> {
        let chunks = (end - begin).div_ceil(TARGET);
        let base = (self.coordinate)(begin);
        let slots = (chunks * SLOTS) as f64;
        Line { base, scale: slots / (self.coordinate)(end - 1).offset_from(base), limit: slots - 1.0, chunks }
    }

    /// Slots of a run on its line. Where a user's key type breaks its promise they still ascend.
    fn slots(coordinate: F, line: &Line<C>, begin: usize, end: usize) -> impl Iterator<Item = usize> {
        let &Line { base, scale, limit, .. } = line;
        let mut highest = 0;
        (begin..end).map(move |i| {
            highest = slot_of(base, scale, limit, coordinate(i)).max(highest);
            highest
        })
    }

    /// Whether a line spreads most of the run over its chunks and slots.
    fn is_carried(&self, begin: usize, end: usize) -> bool {
        let line = self.line(begin, end);
        let (most_crowded, most_deeper) =
            ((end - begin) / CROWDED_SHARE, (end - begin) - (end - begin) / CARRIED_SHARE);
        let (mut chunk, mut in_chunk, mut slot, mut in_slot) = (0, 0, 0, 0);
        let (mut crowded, mut crowded_here, mut deeper) = (0, 0, 0);
        for at in Self::slots(self.coordinate, &line, begin, end) {
            if at / SLOTS != chunk {
                chunk = at / SLOTS;
                (in_chunk, crowded_here) = (0, 0);
            }
            in_chunk += 1;
            in_slot = if at == slot { in_slot + 1 } else { 1 };
            slot = at;
            if in_chunk > CHUNK_FULL {
                // The key too many sends all of its chunk one node deeper, crowded or not.
                deeper += if in_chunk == CHUNK_FULL + 1 { in_chunk } else { 1 };
                crowded -= crowded_here;
                crowded_here = 0;
            } else if in_slot > CROWDED {
                let more = if in_slot == CROWDED + 1 { in_slot } else { 1 };
                crowded_here += more;
                crowded += more;
            }
            // What is crowded here may yet go deeper with its chunk.
            if deeper > most_deeper || crowded > most_crowded + CHUNK_FULL {
                return false;
            }
        }
        crowded <= most_crowded
    }

    /// # Safety
    /// As for [`Builder::build`].
    unsafe fn run(&mut self, begin: usize, end: usize) -> Node<C> {
        if self.one_coordinate(begin, end) {
            // SAFETY: the caller's promise.
            unsafe { self.flat(begin, end) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.model(begin, end) }
        }
    }

    /// # Safety
    /// As for [`Builder::build`].
    unsafe fn flat(&mut self, begin: usize, end: usize) -> Node<C> {
        let n = end - begin;
        if n == 0 {
            return self.node(Kind::Flat, ptr::null_mut(), 0, 0);
        }
        let room = n.next_multiple_of(4);
        let block = self.heap.array::<(K, V)>(room);
        // SAFETY: initialised by the caller's promise, the block is new and large enough.
        unsafe {
            ptr::copy_nonoverlapping(self.pairs.add(begin), block, n);
            self.sort(block, n);
        }
        self.node(Kind::Flat, block.cast(), room, n)
    }

    /// # Safety
    /// As for [`Builder::build`].
    unsafe fn model(&mut self, begin: usize, end: usize) -> Node<C> {
        let line = self.line(begin, end);
        let chunks = self.heap.array::<Chunk>(line.chunks);
        let empty = || Chunk { data: ptr::null_mut(), cap: 0, child: false, ends: [0; SLOTS + 1] };
        let (mut next, mut current, mut chunk) = (begin, 0, empty());
        for (i, at) in (begin..end).zip(Self::slots(self.coordinate, &line, begin, end)) {
            while at / SLOTS > current {
                // SAFETY: the pairs up to `i` belong to this chunk; `current` is less than the number of chunks.
                unsafe { chunks.add(current).write(self.finish(chunk, next, i)) };
                (next, current, chunk) = (i, current + 1, empty());
            }
            // Wraps where the chunk becomes a child, which does not use it.
            let size = &mut chunk.ends[at % SLOTS + 1];
            *size = size.wrapping_add(1);
        }
        while current < line.chunks {
            // SAFETY: as above, with what is left.
            unsafe { chunks.add(current).write(self.finish(chunk, next, end)) };
            (next, current, chunk) = (end, current + 1, empty());
        }
        Node {
            base: MaybeUninit::new(line.base),
            scale: line.scale,
            limit: line.limit,
            ..self.node(Kind::Model, chunks.cast(), line.chunks, end - begin)
        }
    }

    /// A chunk of the pairs `begin..end`, whose `ends` hold the sizes of its buckets so far.
    ///
    /// # Safety
    /// As for [`Builder::build`].
    unsafe fn finish(&mut self, mut chunk: Chunk, begin: usize, end: usize) -> Chunk {
        let n = end - begin;
        if n > CHUNK_FULL {
            let child = self.heap.array::<Node<C>>(1);
            // SAFETY: the caller's promise; the child has room for one node.
            unsafe { child.write(self.build(begin, end)) };
            return Chunk { data: child.cast(), cap: 0, child: true, ends: [0; SLOTS + 1] };
        }
        if n > 0 {
            let mut before = 0;
            for size in &mut chunk.ends {
                before += *size;
                *size = before;
            }
            chunk.cap = room(n) as u8;
            let block = self.heap.array::<(K, V)>(chunk.cap.into());
            // SAFETY: the caller's promise; the block is new and has room for `n`.
            unsafe {
                ptr::copy_nonoverlapping(self.pairs.add(begin), block, n);
                for ends in chunk.ends.windows(2) {
                    self.sort(block.add(ends[0].into()), (ends[1] - ends[0]).into());
                }
            }
            chunk.data = block.cast();
        }
        chunk
    }
}
