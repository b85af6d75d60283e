//! The buckets of a model node.
//!
//! Buckets have room for a few pairs each, a cache line where pairs fill one, and lie one after the other. What does not
//! fit into the bucket of its place flows into the next one, so the pairs of a node lie in order, with gaps, and a
//! look-up reads one line or two neighbours. A byte per bucket says how full it is and whether anything flows out of it.
//! Where too much would flow, the bucket holds the pointer to a child instead, and takes all that flows in.

use std::alloc::Layout;
use std::ptr;

use super::heap::Heap;
use super::node::{Node, search};

/// What the processor fetches at once.
const LINE: usize = 64;

/// What a byte says about a bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(u8);

impl State {
    /// The bucket is the pointer to a child.
    pub(super) const CHILD: State = State(0x80);
    /// Pairs that belong here or before may lie in the next bucket, which is no child.
    const NEXT: u8 = 0x40;
    /// They may lie in the next bucket, which is a child.
    const BELOW: u8 = 0x20;

    #[inline(always)]
    pub(super) fn len(self) -> usize {
        usize::from(self.0 & (Self::BELOW - 1))
    }

    #[inline(always)]
    pub(super) fn is_child(self) -> bool {
        self.0 >= Self::CHILD.0
    }

    #[inline(always)]
    pub(super) fn flows(self) -> bool {
        self.0 & (Self::NEXT | Self::BELOW) != 0
    }

    /// 1 if pairs may lie in the next bucket and that is no child, else 0.
    #[inline(always)]
    pub(super) fn next(self) -> usize {
        usize::from(self.0 & Self::NEXT != 0)
    }

    /// Whether pairs may lie in the next bucket, which is a child.
    pub(super) fn flows_below(self) -> bool {
        self.0 & Self::BELOW != 0
    }

    /// The same with another number of pairs.
    #[inline(always)]
    fn with_len(self, len: usize) -> State {
        State(self.0 & (Self::NEXT | Self::BELOW) | len as u8)
    }
}

/// The buckets of a model node. A copy is as good as the original.
pub(super) struct Buckets<K, V> {
    pairs: *mut (K, V),
    states: *mut State,
}

impl<K, V> Clone for Buckets<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Buckets<K, V> {}

impl<K, V> Buckets<K, V> {
    /// Pairs that a bucket has room for.
    pub(super) const PER: usize = match LINE / if size_of::<(K, V)>() > 0 { size_of::<(K, V)>() } else { LINE } {
        n @ 4..16 => n,
        0..4 => 4,
        16.. => 16,
    };
    /// Whether a bucket can hold the pointer to a child: pairs without a size have no buckets.
    pub(super) const POSSIBLE: bool = Self::PER * size_of::<(K, V)>() >= size_of::<*mut u8>();

    fn layout(room: usize) -> Layout {
        let pairs = Layout::array::<(K, V)>(room * Self::PER).and_then(|pairs| pairs.align_to(LINE));
        let both = pairs.and_then(|pairs| pairs.extend(Layout::array::<State>(room)?));
        both.unwrap_or_else(|_| panic!("{room} buckets are more than memory can hold")).0
    }

    /// Bytes of so many buckets.
    pub(super) fn bytes(room: usize) -> usize {
        Self::layout(room).size()
    }

    /// Uninitialised buckets.
    pub(super) fn new(heap: &mut Heap, room: usize) -> Self {
        let pairs = heap.take(Self::layout(room)).cast::<(K, V)>();
        Self { pairs, states: pairs.wrapping_add(room * Self::PER).cast() }
    }

    /// Takes them back.
    ///
    /// # Safety
    /// They came from [`Buckets::new`] with this heap and `room`, and are not used afterwards.
    pub(super) unsafe fn free(self, heap: &mut Heap, room: usize) {
        // SAFETY: the caller's promise.
        unsafe { heap.give_back(self.pairs.cast(), Self::layout(room)) }
    }

    /// Those of a model node.
    #[inline(always)]
    pub(super) fn of<C>(node: &Node<C>) -> Self {
        Self::at(node.data, node.side)
    }

    /// Those with these [`parts`](Buckets::parts).
    #[inline(always)]
    pub(super) fn at(data: *mut u8, side: *mut u8) -> Self {
        Self { pairs: data.cast(), states: side.cast() }
    }

    /// Address of the pairs and the states, for a [`Node`].
    pub(super) fn parts(self) -> (*mut u8, *mut u8) {
        (self.pairs.cast(), self.states.cast())
    }

    /// Where the pairs of a bucket begin; `i` may be past the last one if nothing is read there.
    #[inline(always)]
    pub(super) fn pairs(self, i: usize) -> *mut (K, V) {
        self.pairs.wrapping_add(i.wrapping_mul(Self::PER))
    }

    pub(super) fn state_address(self, i: usize) -> *const State {
        self.states.wrapping_add(i)
    }

    /// # Safety
    /// There is a bucket `i`, and its state is initialised.
    #[inline(always)]
    pub(super) unsafe fn state(self, i: usize) -> State {
        // SAFETY: the caller's promise.
        unsafe { *self.states.add(i) }
    }

    /// # Safety
    /// Bucket `i` is a child.
    #[inline(always)]
    pub(super) unsafe fn child<C>(self, i: usize) -> *mut Node<C> {
        // SAFETY: the caller's promise.
        unsafe { self.pairs(i).cast::<*mut Node<C>>().read_unaligned() }
    }

    /// Makes bucket `i` a child; what it held is forgotten. The bucket before has its state.
    ///
    /// # Safety
    /// There is a bucket `i`.
    pub(super) unsafe fn set_child<C>(self, i: usize, child: *mut Node<C>) {
        // SAFETY: a bucket holds a pointer, see `POSSIBLE`.
        unsafe {
            self.pairs(i).cast::<*mut Node<C>>().write_unaligned(child);
            self.states.add(i).write(State::CHILD);
            if i > 0 && (*self.states.add(i - 1)).next() == 1 {
                self.flow(i - 1);
            }
        }
    }

    /// Notes that pairs of bucket `i` may lie in the next one.
    ///
    /// # Safety
    /// Both are there, with states, and `i` is no child.
    pub(super) unsafe fn flow(self, i: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let bit = if self.state(i + 1).is_child() { State::BELOW } else { State::NEXT };
            let state = self.states.add(i);
            *state = State((*state).0 & !(State::NEXT | State::BELOW) | bit);
        }
    }

    /// Sets a bucket's number of pairs, and notes whether the next bucket, which has no state yet, will hold more.
    ///
    /// # Safety
    /// There is a bucket `i`; its first `len` pairs are initialised.
    #[inline(always)]
    pub(super) unsafe fn begin(self, i: usize, len: usize, flows: bool) {
        // SAFETY: the caller's promise.
        unsafe { self.states.add(i).write(State(len as u8 | if flows { State::NEXT } else { 0 })) }
    }

    /// # Safety
    /// There is a bucket `i`, no child; its first `len` pairs are initialised.
    #[inline(always)]
    pub(super) unsafe fn set_len(self, i: usize, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { *self.states.add(i) = self.state(i).with_len(len) }
    }

    /// Puts `key` where bucket `i` has no pair: every key of a bucket can be read, and those past its length are not
    /// smaller than those before.
    ///
    /// # Safety
    /// There is a bucket `i` of `len` pairs.
    #[inline(always)]
    pub(super) unsafe fn fill(self, i: usize, len: usize, key: K)
    where
        K: Copy,
    {
        for j in len..Self::PER {
            // SAFETY: the caller's promise; only free places are written.
            unsafe { (&raw mut (*self.pairs(i).add(j)).0).write(key) }
        }
    }

    /// The pair of `key`, if bucket `i`, which has this state and is no child, or the one it flows into has it.
    ///
    /// `None` if it may yet lie further on.
    ///
    /// # Safety
    /// There is a bucket `i`.
    #[inline(always)]
    pub(super) unsafe fn find(self, i: usize, state: State, key: &K) -> Option<*mut (K, V)>
    where
        K: Ord,
    {
        // SAFETY: the caller's promise; the next bucket is there if this one flows into it.
        unsafe {
            if let Some(pair) = self.within(i, state, key) {
                return Some(pair);
            }
            if state.next() == 1
                && let Some(pair) = self.within(i + 1, self.state(i + 1), key)
            {
                return Some(pair);
            }
            if state.flows() { None } else { Some(ptr::null_mut()) }
        }
    }

    /// The pair of `key` in bucket `i`.
    ///
    /// # Safety
    /// There is a bucket `i` with this state, no child.
    #[inline(always)]
    unsafe fn within(self, i: usize, state: State, key: &K) -> Option<*mut (K, V)>
    where
        K: Ord,
    {
        let bucket = self.pairs(i);
        // One branch for all keys, and one that is nearly always taken: the processor goes on to the next look-ups while
        // the keys of this one are fetched. All of them can be read, see `fill`.
        // SAFETY: positions are below the length.
        unsafe {
            let smaller: usize = (0..Self::PER).map(|j| usize::from((*bucket.add(j)).0 < *key)).sum();
            (smaller < state.len() && (*bucket.add(smaller)).0 == *key).then(|| bucket.add(smaller))
        }
    }
}

/// Where the way of a key through the buckets of a node ends.
pub(super) enum Seat {
    /// In the child that this bucket is.
    Below(usize),
    /// In this bucket, at this position.
    Taken(usize, usize),
    /// Not there; it would come to this bucket, at this position.
    Free(usize, usize),
}

impl<K: Ord, V> Buckets<K, V> {
    /// The seat of a key whose place is bucket `i`. Unordered, it prefers the first gap.
    ///
    /// # Safety
    /// There is a bucket `i`.
    pub(super) unsafe fn seat(self, mut i: usize, key: &K, ordered: bool) -> Seat {
        let mut gap = None;
        loop {
            // SAFETY: `i` is a bucket: no last one flows.
            unsafe {
                let state = self.state(i);
                if state.is_child() {
                    return Seat::Below(i);
                }
                let len = state.len();
                let (at, found) = search(self.pairs(i), len, key);
                if found {
                    return Seat::Taken(i, at);
                }
                if !ordered && gap.is_none() && len < Self::PER {
                    gap = Some((i, at));
                }
                if !state.flows() || ordered && at < len {
                    let (i, at) = gap.unwrap_or((i, at));
                    return Seat::Free(i, at);
                }
            }
            i += 1;
        }
    }

    /// The first bucket from `i` on, before `end`, that is a child or has room.
    ///
    /// # Safety
    /// Buckets up to `end` are there.
    pub(super) unsafe fn room(self, i: usize, end: usize) -> Option<usize> {
        // SAFETY: the caller's promise.
        (i..end).find(|&i| unsafe { self.state(i) }.len() < Self::PER)
    }

    /// Puts a pair at position `at` of bucket `i`, and pushes what comes after towards bucket `gap`, which has room.
    ///
    /// # Safety
    /// The buckets from `i` to `gap` are no children, those before `gap` are full; `at` is at most the length of
    /// bucket `i`, and less than `PER` unless `i < gap`.
    #[inline(always)]
    pub(super) unsafe fn push(self, i: usize, at: usize, gap: usize, pair: (K, V))
    where
        K: Copy,
    {
        // SAFETY: the caller's promise. The pairs from here to the gap lie one after the other.
        unsafe {
            let len = self.state(gap).len();
            let here = self.pairs(i).add(at);
            let behind = self.pairs(gap).add(len).offset_from_unsigned(here);
            ptr::copy(here, here.add(1), behind);
            here.write(pair);
            self.set_len(gap, len + 1);
            if len == 0 || behind == 0 {
                // The last pair of the gap's bucket is a new one.
                self.fill(gap, len + 1, (*self.pairs(gap).add(len)).0);
            }
            (i..gap).for_each(|i| self.flow(i));
        }
    }

    /// Takes the pair at `at` out of bucket `i`.
    ///
    /// # Safety
    /// It is there.
    pub(super) unsafe fn take(self, i: usize, at: usize) -> (K, V) {
        // SAFETY: the caller's promise. The key that stays behind the last pair is not smaller than it.
        unsafe {
            let len = self.state(i).len();
            let here = self.pairs(i).add(at);
            let pair = here.read();
            ptr::copy(here.add(1), here, len - at - 1);
            self.set_len(i, len - 1);
            pair
        }
    }
}
