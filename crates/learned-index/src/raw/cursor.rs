//! Walks in order.

use std::marker::PhantomData;
use std::ops::{Bound, ControlFlow};

use super::bucket::{Buckets, Seat};
use super::node::{Kind, Node, search};
use super::prefetch::prefetch;
use super::tree::{Project, Tree};
use super::walk::{Gathered, Walk};
use crate::key::Key;

/// How many buckets a walk asks for ahead of where it is.
const AHEAD: usize = 8;
/// Pairs that a walk over a range gathers first.
const SOME: usize = 16;

/// The place of one pair.
struct Cursor<K, V, C> {
    /// Nodes above the pairs, each with the child or bucket that leads there.
    above: Vec<(*const Node<C>, usize)>,
    pairs: *mut (K, V),
    len: usize,
    at: usize,
}

impl<K, V, C> Clone for Cursor<K, V, C> {
    fn clone(&self) -> Self {
        Self { above: self.above.clone(), ..*self }
    }
}

// The methods are unsafe to call once the tree has changed; those who hold a cursor borrow the tree.
impl<K: Ord, V, C: Key> Cursor<K, V, C> {
    fn new() -> Self {
        Self { above: Vec::with_capacity(4), pairs: std::ptr::null_mut(), len: 0, at: 0 }
    }

    /// The first pair below `root`, or the last.
    unsafe fn end(root: *const Node<C>, last: bool) -> Option<Self> {
        let mut cursor = Self::new();
        // SAFETY: the caller's promise.
        unsafe { cursor.enter(root, last) }.then_some(cursor)
    }

    /// The first pair whose key is not smaller than `key`.
    unsafe fn lower_bound(root: *const Node<C>, coordinate: C, key: &K) -> Option<Self> {
        let mut cursor = Self::new();
        let mut node = root;
        // SAFETY: the caller's promise, and the invariants of the module.
        unsafe {
            loop {
                match (*node).kind {
                    Kind::Fan => {
                        let i = (*node).child_of(coordinate);
                        cursor.above.push((node, i));
                        node = (*node).data.cast::<Node<C>>().add(i);
                    }
                    Kind::Model => {
                        let buckets = Buckets::<K, V>::of(&*node);
                        match buckets.seat((*node).place(coordinate), key, true) {
                            Seat::Below(i) => {
                                cursor.above.push((node, i));
                                node = buckets.child(i);
                            }
                            Seat::Taken(i, at) | Seat::Free(i, at) => {
                                cursor.above.push((node, i));
                                (1..AHEAD).for_each(|ahead| prefetch(buckets.pairs(i + ahead)));
                                cursor.pairs = buckets.pairs(i);
                                cursor.len = buckets.state(i).len();
                                cursor.at = at;
                                break;
                            }
                        }
                    }
                    Kind::Flat => {
                        cursor.pairs = (*node).data.cast();
                        cursor.len = (*node).len;
                        cursor.at = search(cursor.pairs, cursor.len, key).0;
                        break;
                    }
                }
            }
            (cursor.at < cursor.len || cursor.turn(false)).then_some(cursor)
        }
    }

    /// Goes to the first (or last) pair below `node`; false if there is none.
    unsafe fn enter(&mut self, node: *const Node<C>, last: bool) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            if (*node).kind == Kind::Flat {
                return self.land((*node).data.cast(), (*node).len, last);
            }
            self.above.push((node, if last { (*node).room as usize } else { usize::MAX }));
            self.advance(last)
        }
    }

    /// Goes to the next (or last) pair of the innermost node; false, and out of it, if there is none.
    #[inline]
    unsafe fn advance(&mut self, back: bool) -> bool {
        let top = self.above.len() - 1;
        let (node, mut i) = self.above[top];
        // SAFETY: the caller's promise.
        unsafe {
            loop {
                // One before the first part is the largest number.
                i = if back { i.wrapping_sub(1) } else { i.wrapping_add(1) };
                if i >= (*node).room as usize {
                    self.above.pop();
                    return false;
                }
                let child = if (*node).kind == Kind::Fan {
                    (*node).data.cast::<Node<C>>().add(i)
                } else {
                    let buckets = Buckets::<K, V>::of(&*node);
                    let state = buckets.state(i);
                    if !state.is_child() {
                        prefetch(buckets.pairs(if back { i.wrapping_sub(AHEAD) } else { i + AHEAD }));
                        if state.len() > 0 {
                            self.above[top].1 = i;
                            return self.land(buckets.pairs(i), state.len(), back);
                        }
                        continue;
                    }
                    buckets.child(i)
                };
                self.above[top].1 = i;
                if self.enter(child, back) {
                    return true;
                }
            }
        }
    }

    #[inline]
    fn land(&mut self, pairs: *mut (K, V), len: usize, last: bool) -> bool {
        self.pairs = pairs;
        self.len = len;
        self.at = if last { len.wrapping_sub(1) } else { 0 };
        len > 0
    }

    /// Goes to the next leaf, or the one before; false if there is none.
    #[inline]
    unsafe fn turn(&mut self, back: bool) -> bool {
        while !self.above.is_empty() {
            // SAFETY: the caller's promise.
            if unsafe { self.advance(back) } {
                return true;
            }
        }
        false
    }

    #[inline]
    unsafe fn forward(&mut self) -> bool {
        self.at += 1;
        // SAFETY: the caller's promise.
        self.at < self.len || unsafe { self.turn(false) }
    }

    #[inline]
    unsafe fn backward(&mut self) -> bool {
        if self.at > 0 {
            self.at -= 1;
            return true;
        }
        // SAFETY: the caller's promise.
        unsafe { self.turn(true) }
    }

    #[inline]
    fn pair(&self) -> *mut (K, V) {
        self.pairs.wrapping_add(self.at)
    }
}

impl<K: Ord, V, C: Key> Cursor<K, V, C> {
    /// Visits the pairs from here on.
    ///
    /// # Safety
    /// The tree has not changed since the cursor was made.
    unsafe fn walk<F: FnMut(Gathered<'_, K, V>) -> usize>(&self, walk: &mut Walk<K, V, F>) -> ControlFlow<()> {
        walk.run(self.pair(), self.len - self.at)?;
        // SAFETY: the caller's promise.
        self.above.iter().rev().try_for_each(|&(node, part)| unsafe { walk.rest(node, part + 1) })?;
        walk.flush()
    }
}

type Ends<K, V, C> = (Cursor<K, V, C>, Cursor<K, V, C>);

/// Pairs from `front` to `back`, both included.
struct Span<K, V, C> {
    ends: Option<Ends<K, V, C>>,
}

impl<K: Copy + Ord, V, C: Key> Span<K, V, C> {
    fn new<P: Project<K, C = C>>(tree: &Tree<K, V, P>, begin: Bound<&K>, end: Bound<&K>) -> Self {
        let root = &raw const tree.root;
        // SAFETY: cursors stay in this tree, which outlives the span: see the types that hold one.
        unsafe {
            let at = |key: &K| Cursor::lower_bound(root, tree.project.project(key), key);
            let front = match begin {
                Bound::Unbounded => Cursor::end(root, false),
                Bound::Included(key) => at(key),
                Bound::Excluded(key) => {
                    at(key).and_then(|mut cursor| ((*cursor.pair()).0 != *key || cursor.forward()).then_some(cursor))
                }
            };
            let before = |key: &K, equal: bool| match at(key) {
                None => Cursor::end(root, true),
                Some(cursor) if equal && (*cursor.pair()).0 == *key => Some(cursor),
                Some(mut cursor) => cursor.backward().then_some(cursor),
            };
            let back = match end {
                Bound::Unbounded => Cursor::end(root, true),
                Bound::Included(key) => before(key, true),
                Bound::Excluded(key) => before(key, false),
            };
            // Between two bounds there may be nothing: then the first pair after one comes after the last before the other.
            let bounded = begin != Bound::Unbounded && end != Bound::Unbounded;
            let ends = front.zip(back).filter(|(front, back)| !bounded || (*front.pair()).0 <= (*back.pair()).0);
            Self { ends }
        }
    }

    #[inline]
    fn next(&mut self) -> Option<*mut (K, V)> {
        let (front, back) = self.ends.as_mut()?;
        let pair = front.pair();
        // SAFETY: the tree has not changed. The last pair is not stepped over.
        if pair == back.pair() || !unsafe { front.forward() } {
            self.ends = None;
        }
        Some(pair)
    }

    /// Visits all pairs.
    fn for_each(self, mut visit: impl FnMut(*mut (K, V))) {
        let Some((front, back)) = self.ends else { return };
        let last = back.pair();
        let mut walk = Walk::new(SOME, |mut pairs| {
            // The last one ends it.
            let ended = pairs.any(|pair| {
                visit(pair);
                pair == last
            });
            if ended { 0 } else { usize::MAX }
        });
        // SAFETY: the tree has not changed.
        _ = unsafe { front.walk(&mut walk) };
    }

    #[inline]
    fn next_back(&mut self) -> Option<*mut (K, V)> {
        let (front, back) = self.ends.as_mut()?;
        let pair = back.pair();
        // SAFETY: as above.
        if pair == front.pair() || !unsafe { back.backward() } {
            self.ends = None;
        }
        Some(pair)
    }
}

/// Pairs in ascending order, from both ends.
pub struct Iter<'a, K, V, C = K> {
    span: Span<K, V, C>,
    left: Option<usize>,
    tree: PhantomData<&'a (K, V)>,
}

/// Pairs in ascending order with values to change, from both ends.
pub struct IterMut<'a, K, V, C = K> {
    span: Span<K, V, C>,
    left: Option<usize>,
    tree: PhantomData<&'a mut (K, V)>,
}

// SAFETY: these are references to pairs that the tree owns, with pointers to find the next.
unsafe impl<K: Sync, V: Sync, C: Sync> Send for Iter<'_, K, V, C> {}
// SAFETY: as above.
unsafe impl<K: Sync, V: Sync, C: Sync> Sync for Iter<'_, K, V, C> {}
// SAFETY: as above; the mutable references are given out once each.
unsafe impl<K: Send, V: Send, C: Send> Send for IterMut<'_, K, V, C> {}
// SAFETY: a shared `IterMut` gives nothing out.
unsafe impl<K: Sync, V: Sync, C: Sync> Sync for IterMut<'_, K, V, C> {}

impl<K: Copy + Ord, V, P: Project<K>> Tree<K, V, P> {
    /// Pairs between two bounds, of an ordered projection.
    pub(crate) fn range(&self, begin: Bound<&K>, end: Bound<&K>) -> Iter<'_, K, V, P::C> {
        Iter { span: Span::new(self, begin, end), left: None, tree: PhantomData }
    }

    /// Pairs between two bounds, of an ordered projection.
    pub(crate) fn range_mut(&mut self, begin: Bound<&K>, end: Bound<&K>) -> IterMut<'_, K, V, P::C> {
        IterMut { span: Span::new(self, begin, end), left: None, tree: PhantomData }
    }

    /// All pairs in the order of the tree.
    pub(crate) fn iter(&self) -> Iter<'_, K, V, P::C> {
        Iter { left: Some(self.len()), ..self.range(Bound::Unbounded, Bound::Unbounded) }
    }

    /// All pairs in the order of the tree.
    pub(crate) fn iter_mut(&mut self) -> IterMut<'_, K, V, P::C> {
        let left = Some(self.len());
        IterMut { left, ..self.range_mut(Bound::Unbounded, Bound::Unbounded) }
    }

    /// The first pair, or the last.
    pub(crate) fn end(&self, last: bool) -> Option<&(K, V)> {
        // SAFETY: the tree is borrowed as long as the pair.
        unsafe { Cursor::<K, V, P::C>::end(&raw const self.root, last).map(|cursor| &*cursor.pair()) }
    }
}

macro_rules! iterator {
    ($name:ident, $item:ty, $of:expr) => {
        impl<'a, K: Copy + Ord, V, C: Key> Iterator for $name<'a, K, V, C> {
            type Item = $item;

            #[inline]
            fn next(&mut self) -> Option<Self::Item> {
                let pair = self.span.next()?;
                self.left = self.left.map(|left| left - 1);
                Some($of(pair))
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                (self.left.unwrap_or(usize::from(self.span.ends.is_some())), self.left)
            }

            fn fold<B, F: FnMut(B, Self::Item) -> B>(self, first: B, mut with: F) -> B {
                let mut all = Some(first);
                self.span.for_each(|pair| all = all.take().map(|all| with(all, $of(pair))));
                all.expect("it is always put back")
            }
        }

        impl<K: Copy + Ord, V, C: Key> DoubleEndedIterator for $name<'_, K, V, C> {
            #[inline]
            fn next_back(&mut self) -> Option<Self::Item> {
                let pair = self.span.next_back()?;
                self.left = self.left.map(|left| left - 1);
                Some($of(pair))
            }
        }

        impl<K: Copy + Ord, V, C: Key> std::iter::FusedIterator for $name<'_, K, V, C> {}
    };
}

// SAFETY (both): the pair is initialised, the tree is borrowed for 'a, and every pair is given out once.
iterator!(Iter, (&'a K, &'a V), |pair: *mut (K, V)| unsafe { (&(*pair).0, &(*pair).1) });
iterator!(IterMut, (&'a K, &'a mut V), |pair: *mut (K, V)| unsafe { (&(*pair).0, &mut (*pair).1) });

impl<K, V, C> Clone for Iter<'_, K, V, C> {
    fn clone(&self) -> Self {
        Self { span: Span { ends: self.span.ends.clone() }, left: self.left, tree: PhantomData }
    }
}
