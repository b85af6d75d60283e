//! Visits of many pairs in order.
//!
//! A walk first gathers the places of the pairs of some buckets, then visits them. So nothing depends on how full a bucket
//! is but where the places of the next one are noted: the processor has no branch to guess wrong at the end of every
//! bucket, and asks for the memory of all before it needs the first pair.

use std::array;
use std::ops::ControlFlow;
use std::slice;

use super::bucket::{Buckets, Seat};
use super::node::{Kind, Node, search};
use super::prefetch::prefetch;
use super::tree::{Project, Tree};
use crate::key::Key;

/// Most pairs that are gathered before they are visited.
const MOST: usize = 128;
/// Places that are noted at once.
const FOUR: usize = 4;
/// Pairs that a bucket has room for at most, in whole fours.
const BUCKET_MOST: usize = 16;
/// The number of one pair four times, and how much more the others of four have.
const FIRST: u64 = 0x0001_0001_0001_0001;
const OTHERS: u64 = 0x0003_0002_0001_0000;
/// Pairs of a block: their numbers, and those noted behind the last, have 16 bits.
const STRETCH: usize = (1 << 16) - 2 * BUCKET_MOST;

/// Whether to go on.
type Flow = ControlFlow<()>;

/// A visit of many pairs.
pub(super) struct Walk<K, V, F> {
    /// Where the pairs lie that are gathered …
    block: *mut (K, V),
    /// … and their numbers there.
    places: [u16; MOST + BUCKET_MOST],
    len: usize,
    /// From so many on they are visited; 1 to [`MOST`].
    most: usize,
    visit: F,
}

/// Pairs that were gathered.
pub(super) struct Gathered<'a, K, V> {
    block: *mut (K, V),
    places: slice::Iter<'a, u16>,
}

impl<K, V> Iterator for Gathered<'_, K, V> {
    type Item = *mut (K, V);

    #[inline(always)]
    fn next(&mut self) -> Option<*mut (K, V)> {
        self.places.next().map(|place| self.block.wrapping_add(usize::from(*place)))
    }
}

impl<K: Ord, V, F: FnMut(Gathered<'_, K, V>) -> usize> Walk<K, V, F> {
    /// `visit` gets pairs, and says how many it wants next, 0 to end the walk. At first it wants `most`.
    pub(super) fn new(most: usize, visit: F) -> Self {
        let block = std::ptr::null_mut();
        Self { block, places: [0; MOST + BUCKET_MOST], len: 0, most: most.clamp(1, MOST), visit }
    }

    /// Visits the pairs from the first on whose key is not smaller than `key`.
    ///
    /// # Safety
    /// `node` is a node of a tree of this type, ordered by coordinates.
    pub(super) unsafe fn from<C: Key>(&mut self, node: *const Node<C>, coordinate: C, key: &K) -> Flow {
        // SAFETY: the caller's promise, and the invariants of the module.
        unsafe {
            let part = match (*node).kind {
                Kind::Flat => search((*node).data.cast::<(K, V)>(), (*node).len, key).0,
                Kind::Fan => {
                    let i = (*node).child_of(coordinate);
                    self.from((*node).data.cast::<Node<C>>().add(i), coordinate, key)?;
                    i + 1
                }
                Kind::Model => {
                    let (buckets, place) = (Buckets::<K, V>::of(&*node), (*node).place(coordinate));
                    match buckets.seat(place, key, true) {
                        Seat::Below(i) => {
                            self.from(buckets.child::<C>(i), coordinate, key)?;
                            i + 1
                        }
                        Seat::Taken(i, at) | Seat::Free(i, at) => {
                            self.turn(buckets.pairs(i))?;
                            note(&mut self.places, 0, Buckets::<K, V>::PER, at);
                            self.len = buckets.state(i).len() - at;
                            return self.buckets::<C>(buckets, i, i + 1, (*node).room as usize);
                        }
                    }
                }
            };
            self.rest(node, part)
        }
    }

    /// Visits the parts of a node from one on: children, buckets, or pairs.
    ///
    /// # Safety
    /// As for [`Walk::from`].
    pub(super) unsafe fn rest<C: Key>(&mut self, node: *const Node<C>, part: usize) -> Flow {
        // SAFETY: the caller's promise, and the invariants of the module.
        unsafe {
            let room = (*node).room as usize;
            match (*node).kind {
                Kind::Flat => self.run((*node).data.cast::<(K, V)>().wrapping_add(part), (*node).len - part),
                Kind::Fan => (part..room).try_for_each(|i| self.rest((*node).data.cast::<Node<C>>().add(i), 0)),
                Kind::Model => {
                    let buckets = Buckets::<K, V>::of(&*node);
                    self.turn(buckets.pairs(part))?;
                    self.buckets::<C>(buckets, part, part, room)
                }
            }
        }
    }

    /// Visits the buckets from `next` to `room`; the pairs of bucket `first` begin the block.
    ///
    /// # Safety
    /// These are buckets of a tree of this type.
    unsafe fn buckets<C: Key>(&mut self, buckets: Buckets<K, V>, mut first: usize, next: usize, room: usize) -> Flow {
        let per = Buckets::<K, V>::PER;
        // Counted apart: through memory one bucket would wait for the other.
        let mut len = self.len;
        for i in next..room {
            // SAFETY: the caller's promise.
            let state = unsafe { buckets.state(i) };
            if state.is_child() || len >= self.most || (i + 1 - first) * per >= STRETCH {
                self.len = len;
                self.turn(buckets.pairs(i))?;
                first = i;
                if state.is_child() {
                    // SAFETY: the caller's promise.
                    unsafe { self.rest(buckets.child::<C>(i), 0)? };
                    self.turn(buckets.pairs(i))?;
                }
                len = 0;
            }
            prefetch(buckets.pairs(i));
            note(&mut self.places, len, per, (i - first) * per);
            // No bucket that is a child has pairs.
            len += state.len();
        }
        self.len = len;
        Flow::Continue(())
    }

    /// Visits pairs that lie one after the other.
    pub(super) fn run(&mut self, pairs: *mut (K, V), n: usize) -> Flow {
        for begin in (0..n).step_by(STRETCH) {
            self.turn(pairs.wrapping_add(begin))?;
            for at in (begin..n.min(begin + STRETCH)).step_by(FOUR) {
                if self.len >= self.most {
                    self.flush()?;
                }
                note(&mut self.places, self.len, FOUR, at - begin);
                self.len += FOUR.min(n - at);
            }
        }
        Flow::Continue(())
    }

    /// Visits what is gathered. What comes next lies in another block.
    fn turn(&mut self, block: *mut (K, V)) -> Flow {
        if self.len > 0 {
            self.flush()?;
        }
        self.block = block;
        Flow::Continue(())
    }

    /// Visits what is gathered.
    #[inline(always)]
    pub(super) fn flush(&mut self) -> Flow {
        let places = self.places[..self.len].iter();
        self.len = 0;
        self.most = (self.visit)(Gathered { block: self.block, places }).min(MOST);
        if self.most > 0 { Flow::Continue(()) } else { Flow::Break(()) }
    }
}

/// Notes the `room` pairs from `number` on, all of them: the next ones overwrite those that are not there.
#[inline(always)]
fn note(places: &mut [u16; MOST + BUCKET_MOST], at: usize, room: usize, number: usize) {
    for i in (0..room).step_by(FOUR) {
        // No number has more than 16 bits.
        let four = (number + i) as u64 * FIRST + OTHERS;
        let numbers: [u16; FOUR] = array::from_fn(|j| (four >> (16 * j)) as u16);
        places[at + i..][..FOUR].copy_from_slice(&numbers);
    }
}

impl<K: Copy + Ord, V, P: Project<K>> Tree<K, V, P> {
    /// Visits pairs from `from` on, in order, until `visit` refuses one; it is likely to take the first `about`.
    pub(crate) fn visit(&self, from: &K, about: usize, mut visit: impl FnMut(&K, &V) -> bool) {
        let mut want = about.clamp(1, MOST);
        let mut walk = Walk::new(want, |mut pairs: Gathered<'_, K, V>| {
            want = MOST.min(2 * want);
            // SAFETY: pairs of this tree, which is borrowed.
            if pairs.all(|pair| unsafe { visit(&(*pair).0, &(*pair).1) }) { want } else { 0 }
        });
        // SAFETY: the root is a node of this tree.
        let end = unsafe { walk.from(&raw const self.root, self.project.project(from), from) };
        if end.is_continue() {
            _ = walk.flush();
        }
    }

    /// Visits up to `limit` pairs from `from` on, in order. Returns how many.
    pub(crate) fn scan(&self, from: &K, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize {
        let mut left = limit;
        if limit == 0 {
            return 0;
        }
        let mut walk = Walk::new(limit, |pairs: Gathered<'_, K, V>| {
            let take = left.min(pairs.places.len());
            left -= take;
            // SAFETY: pairs of this tree, which is borrowed.
            pairs.take(take).for_each(|pair| unsafe { visit(&(*pair).0, &(*pair).1) });
            left
        });
        // SAFETY: the root is a node of this tree.
        let end = unsafe { walk.from(&raw const self.root, self.project.project(from), from) };
        if end.is_continue() {
            _ = walk.flush();
        }
        limit - left
    }
}
