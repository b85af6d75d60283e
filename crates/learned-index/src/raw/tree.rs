//! Look-up, insert, remove, rebuild.

use std::marker::PhantomData;
use std::mem;
use std::ptr;

use super::bucket::{Buckets, Seat};
use super::build::{Builder, GROWING, LOADED};
use super::heap::Heap;
use super::node::{Kind, Node, find, search};
use super::prefetch::prefetch;
use crate::key::Key;

/// Where a tree puts a key.
pub(crate) trait Project<K> {
    /// What the lines of the tree are lines over.
    type C: Key;
    /// Whether coordinates ascend with keys.
    const ORDERED: bool;

    /// The coordinate of a key; always the same for the same key.
    fn project(&self, key: &K) -> Self::C;
}

/// Keys are their own coordinates.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Direct;

impl<K: Key> Project<K> for Direct {
    type C = K;
    const ORDERED: bool = true;

    #[inline(always)]
    fn project(&self, key: &K) -> K {
        *key
    }
}

/// A fan is rebuilt when it holds this many times (in halves) what it held when it was built,
const GROWN_HALVES: usize = 5;
/// a model node when it holds so many tenths of what fits into its buckets.
const FULL_TENTHS: usize = 9;
/// Buckets that a pair may flow past when it is inserted.
const REACH: usize = 16;
/// Smaller subtrees are not worth a rebuild.
const REBUILD_MIN: usize = 64;
/// A flat node with more keys is rebuilt, which gives it a line if there is one.
const FLAT_MAX: usize = 64;

/// A map from keys to values, placed by their coordinates.
pub(crate) struct Tree<K, V, P: Project<K>> {
    pub(super) root: Node<P::C>,
    heap: Heap,
    pub(crate) project: P,
    marker: PhantomData<(K, V)>,
}

// SAFETY: the tree owns all that its pointers lead to, and changes it through `&mut self` only.
unsafe impl<K: Send, V: Send, P: Project<K> + Send> Send for Tree<K, V, P> where P::C: Send {}
// SAFETY: as above.
unsafe impl<K: Sync, V: Sync, P: Project<K> + Sync> Sync for Tree<K, V, P> where P::C: Sync {}

/// Where the way to a coordinate ends.
#[derive(Clone, Copy)]
pub(super) struct Leaf<C> {
    pub(super) node: *const Node<C>,
    /// The bucket where the coordinate belongs, no child, if the node is a model.
    pub(super) bucket: usize,
}

impl<K: Copy + Ord, V, P: Project<K>> Tree<K, V, P> {
    /// A tree without keys, which needs no memory.
    pub(crate) fn new(project: P) -> Self {
        Self { root: Node::empty(), heap: Heap::default(), project, marker: PhantomData }
    }

    /// A tree of pairs in ascending order of their keys, without duplicates.
    pub(crate) fn from_sorted(pairs: Vec<(K, V)>, project: P) -> Self {
        let mut tree = Self::new(project);
        tree.root = Self::build(&mut tree.heap, &tree.project, pairs, LOADED, false);
        tree
    }

    pub(crate) fn len(&self) -> usize {
        self.root.len
    }

    /// Bytes of memory, free room included.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.heap.reserved()
    }

    /// Builds a node over pairs that ascend by key. `curved`: lines are not likely to carry them.
    fn build(heap: &mut Heap, project: &P, mut pairs: Vec<(K, V)>, fill: f64, curved: bool) -> Node<P::C> {
        let n = pairs.len();
        let marker = PhantomData;
        if P::ORDERED {
            let coordinate = {
                let first = pairs.as_ptr();
                // SAFETY: asked for positions below `n` only. The keys stay readable while their pairs are moved: they
                // are `Copy`.
                move |i: usize| project.project(unsafe { &(*first.add(i)).0 })
            };
            // SAFETY: from here on the nodes own the pairs. A panic in a user's key type leaks them.
            unsafe {
                pairs.set_len(0);
                Builder { heap, pairs: pairs.as_ptr(), coordinate, ordered: P::ORDERED, fill, curved, marker }
                    .build(0, n)
            }
        } else {
            let mut placed: Vec<(P::C, (K, V))> =
                pairs.into_iter().map(|pair| (project.project(&pair.0), pair)).collect();
            // Equal coordinates keep the order of keys: the pairs came in it, or nearly so.
            placed.sort_unstable_by(|(a, (j, _)), (b, (k, _))| a.cmp(b).then_with(|| j.cmp(k)));
            let (coordinates, mut pairs): (Vec<P::C>, Vec<(K, V)>) = placed.into_iter().unzip();
            // SAFETY: as above.
            unsafe {
                pairs.set_len(0);
                let coordinates = &coordinates;
                let coordinate = |i: usize| coordinates[i];
                Builder { heap, pairs: pairs.as_ptr(), coordinate, ordered: P::ORDERED, fill, curved, marker }
                    .build(0, n)
            }
        }
    }

    /// The pair of `key`, or null.
    #[inline(always)]
    fn seek(&self, coordinate: P::C, key: &K) -> *mut (K, V) {
        let mut node: *const Node<P::C> = &raw const self.root;
        // SAFETY: invariants 1 to 3 of the module.
        unsafe {
            loop {
                match (*node).kind {
                    Kind::Fan => {
                        node = Self::child(node, coordinate);
                        prefetch(&raw const (*node).knots);
                    }
                    Kind::Model => {
                        let (buckets, bucket) = (Buckets::<K, V>::of(&*node), (*node).place(coordinate));
                        prefetch(buckets.pairs(bucket + 1));
                        if !buckets.state(bucket).is_child() {
                            return Self::find(Leaf { node, bucket }, coordinate, key);
                        }
                        node = buckets.child(bucket);
                    }
                    Kind::Flat => return Self::find_far(node, coordinate, key),
                }
            }
        }
    }

    /// The pair of `key`, whose way ends at `leaf`; or null.
    ///
    /// # Safety
    /// It is a leaf of this tree, the one where `coordinate` leads.
    #[inline(always)]
    pub(super) unsafe fn find(leaf: Leaf<P::C>, coordinate: P::C, key: &K) -> *mut (K, V) {
        // SAFETY: the caller's promise, invariants 1 to 3.
        unsafe {
            let Leaf { node, bucket } = leaf;
            if (*node).kind == Kind::Flat {
                return Self::find_far(node, coordinate, key);
            }
            let buckets = Buckets::<K, V>::of(&*node);
            let found = buckets.find(bucket, buckets.state(bucket), key);
            found.unwrap_or_else(|| Self::find_far(node, coordinate, key))
        }
    }

    /// The pair of `key` below a node, or null: for the few keys that have flowed far or lie in flat nodes. Apart, so that
    /// the usual way is short enough to stand where it is called.
    ///
    /// # Safety
    /// It is a node of this tree.
    #[inline(never)]
    unsafe fn find_far(mut node: *const Node<P::C>, coordinate: P::C, key: &K) -> *mut (K, V) {
        // SAFETY: the caller's promise, invariants 1 to 3.
        unsafe {
            loop {
                match (*node).kind {
                    Kind::Fan => node = Self::child(node, coordinate),
                    Kind::Model => {
                        let buckets = Buckets::<K, V>::of(&*node);
                        match buckets.seat((*node).place(coordinate), key, P::ORDERED) {
                            Seat::Below(bucket) => node = buckets.child(bucket),
                            Seat::Taken(bucket, at) => return buckets.pairs(bucket).add(at),
                            Seat::Free(..) => return ptr::null_mut(),
                        }
                    }
                    Kind::Flat => return find((*node).data.cast(), (*node).len, key).cast_mut(),
                }
            }
        }
    }

    /// The pair of `key`.
    #[inline(always)]
    pub(crate) fn get(&self, key: &K) -> Option<&(K, V)> {
        self.get_at(self.project.project(key), key)
    }

    /// The pair of `key`, whose coordinate the caller knows.
    #[inline(always)]
    pub(crate) fn get_at(&self, coordinate: P::C, key: &K) -> Option<&(K, V)> {
        // SAFETY: invariants 2 and 4.
        unsafe { self.seek(coordinate, key).as_ref() }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        // SAFETY: invariant 2; the tree is borrowed mutably.
        unsafe { self.seek(self.project.project(key), key).as_mut().map(|pair| &mut pair.1) }
    }

    /// Gives `key` a value; returns the one it had.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.insert_at(self.project.project(&key), key, value)
    }

    /// As [`Tree::insert`], with a coordinate that the caller knows.
    pub(crate) fn insert_at(&mut self, coordinate: P::C, key: K, value: V) -> Option<V> {
        // Taken apart: a reference to the whole tree would claim the root.
        let Self { root, heap, project, .. } = self;
        // SAFETY: the root is a node of this tree.
        unsafe { Self::insert_below(heap, project, &raw mut *root, coordinate, key, value) }
    }

    /// Gives `key` a value below a node, and makes room for it if there is none.
    ///
    /// # Safety
    /// `node` is a node of the tree of `heap`.
    unsafe fn insert_below(
        heap: &mut Heap,
        project: &P,
        node: *mut Node<P::C>,
        coordinate: P::C,
        key: K,
        mut value: V,
    ) -> Option<V> {
        loop {
            // SAFETY (both): the caller's promise.
            match unsafe { Self::try_insert(heap, project, node, coordinate, key, value) } {
                Ok(old) => return old,
                Err(back) => value = back,
            }
            unsafe { Self::make_room(heap, project, node, coordinate, &key) };
        }
    }

    /// Gives the value back where the place of `key` is full.
    ///
    /// # Safety
    /// As for [`Tree::insert_below`].
    unsafe fn try_insert(
        heap: &mut Heap,
        project: &P,
        node: *mut Node<P::C>,
        coordinate: P::C,
        key: K,
        value: V,
    ) -> Result<Option<V>, V> {
        // SAFETY: invariants 1 to 3. Positions found by `search` and `seat` are within the pairs they searched, and a
        // pair is only added where there is room for it.
        unsafe {
            let outcome = match (*node).kind {
                Kind::Fan => {
                    let child = Self::child(node, coordinate).cast_mut();
                    Self::try_insert(heap, project, child, coordinate, key, value)
                }
                Kind::Model => {
                    let (buckets, place) = (Buckets::<K, V>::of(&*node), (*node).place(coordinate));
                    match buckets.seat(place, &key, P::ORDERED) {
                        Seat::Below(bucket) => {
                            Self::try_insert(heap, project, buckets.child(bucket), coordinate, key, value)
                        }
                        Seat::Taken(bucket, at) => {
                            Ok(Some(mem::replace(&mut (*buckets.pairs(bucket).add(at)).1, value)))
                        }
                        Seat::Free(bucket, at) => {
                            let end = (*node).room as usize;
                            match buckets.room(bucket, end.min(place + REACH)) {
                                None => Err(value),
                                Some(gap) => {
                                    let pair = (key, value);
                                    Self::let_in(heap, project, buckets, (bucket, at), gap, coordinate, pair);
                                    Ok(None)
                                }
                            }
                        }
                    }
                }
                Kind::Flat => Self::try_insert_flat(heap, node, key, value),
            };
            (*node).len += usize::from(matches!(outcome, Ok(None)));
            outcome
        }
    }

    /// Puts a pair at a position of a bucket; what has no room there flows on towards `gap`, which has room or is a child.
    ///
    /// # Safety
    /// These are buckets of the tree of `heap`; those from the first up to `gap` are full.
    #[inline(always)]
    unsafe fn let_in(
        heap: &mut Heap,
        project: &P,
        buckets: Buckets<K, V>,
        (bucket, at): (usize, usize),
        gap: usize,
        coordinate: P::C,
        pair: (K, V),
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let below = buckets.state(gap).is_child();
            if P::ORDERED && !below {
                return buckets.push(bucket, at, gap, pair);
            }
            if !P::ORDERED && !below {
                // Any pair may flow: the new one does.
                let at = search(buckets.pairs(gap), buckets.state(gap).len(), &pair.0).0;
                buckets.push(gap, at, gap, pair);
                return (bucket..gap).for_each(|i| buckets.flow(i));
            }
            let child = buckets.child(gap);
            let last = gap - 1;
            if !P::ORDERED || bucket == last && at == Buckets::<K, V>::PER {
                Self::insert_below(heap, project, child, coordinate, pair.0, pair.1);
            } else {
                let (key, value) = buckets.take(last, Buckets::<K, V>::PER - 1);
                buckets.push(bucket, at, last, pair);
                Self::insert_below(heap, project, child, project.project(&key), key, value);
            }
            (bucket..gap).for_each(|i| buckets.flow(i));
        }
    }

    /// Into a flat node, which may grow up to a size.
    ///
    /// # Safety
    /// `node` is a flat node of the tree of `heap`.
    unsafe fn try_insert_flat(heap: &mut Heap, node: *mut Node<P::C>, key: K, value: V) -> Result<Option<V>, V> {
        // SAFETY: the caller's promise, invariant 2.
        unsafe {
            let (pairs, len) = ((*node).data.cast::<(K, V)>(), (*node).len);
            let (at, found) = search(pairs, len, &key);
            if found {
                return Ok(Some(mem::replace(&mut (*pairs.add(at)).1, value)));
            }
            let cap = (*node).room as usize;
            if len == cap {
                if len >= FLAT_MAX {
                    return Err(value);
                }
                let larger = (2 * cap).max(4);
                (*node).data = Self::widen(heap, pairs, len, cap, larger).cast();
                (*node).room = larger as u32;
            }
            let here = (*node).data.cast::<(K, V)>().add(at);
            ptr::copy(here, here.add(1), len - at);
            here.write((key, value));
            Ok(None)
        }
    }

    /// # Safety
    /// `node` is a fan of this tree.
    #[inline(always)]
    pub(super) unsafe fn child(node: *const Node<P::C>, coordinate: P::C) -> *const Node<P::C> {
        // SAFETY: the caller's promise, invariant 3.
        unsafe { (*node).data.cast::<Node<P::C>>().add((*node).child_of(coordinate)) }
    }

    /// Moves `len` pairs from a block of `cap` into one of `larger`.
    ///
    /// # Safety
    /// `pairs` is a block of this heap for `cap` pairs, the first `len` initialised; or `cap` is 0.
    unsafe fn widen(heap: &mut Heap, pairs: *mut (K, V), len: usize, cap: usize, larger: usize) -> *mut (K, V) {
        let block = heap.array::<(K, V)>(larger);
        if cap > 0 {
            // SAFETY: the caller's promise; the new block is larger.
            unsafe {
                ptr::copy_nonoverlapping(pairs, block, len);
                heap.free_array(pairs, cap);
            }
        }
        block
    }

    /// Makes room for `key` below a node: rebuilds the topmost subtree that has outgrown its buckets or lines, else the
    /// full flat node, else makes the full bucket a child.
    ///
    /// # Safety
    /// As for [`Tree::insert_below`].
    #[cold]
    unsafe fn make_room(heap: &mut Heap, project: &P, mut node: *mut Node<P::C>, coordinate: P::C, key: &K) {
        // SAFETY: the caller's promise, invariants 1 to 3.
        unsafe {
            loop {
                let Node { len, built, room, kind, .. } = *node;
                let outgrown = match kind {
                    Kind::Flat => true,
                    Kind::Fan => 2 * len >= GROWN_HALVES * built,
                    Kind::Model => 10 * len >= FULL_TENTHS * room as usize * Buckets::<K, V>::PER,
                };
                if outgrown && (len >= REBUILD_MIN || kind == Kind::Flat) {
                    return Self::rebuild(heap, project, node);
                }
                if kind == Kind::Fan {
                    node = Self::child(node, coordinate).cast_mut();
                    continue;
                }
                let (buckets, place) = (Buckets::<K, V>::of(&*node), (*node).place(coordinate));
                match buckets.seat(place, key, P::ORDERED) {
                    Seat::Below(bucket) => node = buckets.child(bucket),
                    _ => return Self::deepen(heap, project, node, place),
                }
            }
        }
    }

    /// Moves the pairs that belong to bucket `place` or flowed into it to a child in its stead.
    ///
    /// # Safety
    /// `node` is a model node of the tree of `heap`; the bucket is no child.
    unsafe fn deepen(heap: &mut Heap, project: &P, node: *mut Node<P::C>, place: usize) {
        // SAFETY: the caller's promise, invariants 1 to 3. No last bucket flows.
        unsafe {
            let buckets = Buckets::<K, V>::of(&*node);
            let mut pairs = Vec::new();
            while buckets.state(place).len() > 0 {
                pairs.push(buckets.take(place, 0));
            }
            let belongs = |pair: &(K, V)| (*node).place(project.project(&pair.0)) <= place;
            let mut i = place;
            while buckets.state(i).next() == 1 {
                i += 1;
                let mut at = 0;
                while at < buckets.state(i).len() {
                    if belongs(&*buckets.pairs(i).add(at)) {
                        pairs.push(buckets.take(i, at));
                    } else {
                        at += 1;
                    }
                }
            }
            if buckets.state(i).flows_below() {
                let below = buckets.child(i + 1);
                let mut all = Vec::with_capacity((*below).len);
                Self::unload(heap, below, &mut all);
                let (here, there): (Vec<_>, Vec<_>) = all.into_iter().partition(belongs);
                pairs.extend(here);
                *below = Self::build(heap, project, there, GROWING, false);
            }
            let child = heap.array::<Node<P::C>>(1);
            child.write(Self::build(heap, project, pairs, GROWING, false));
            buckets.set_child(place, child);
        }
    }

    /// Builds a subtree anew, in its place.
    ///
    /// # Safety
    /// `node` is a node of this tree.
    unsafe fn rebuild(heap: &mut Heap, project: &P, node: *mut Node<P::C>) {
        // SAFETY: the caller's promise. The pairs move to `pairs`, from there into the new node.
        unsafe {
            let mut pairs = Vec::with_capacity((*node).len + 1);
            let curved = (*node).kind == Kind::Model && (*node).curved;
            Self::unload(heap, node, &mut pairs);
            let mut built = Self::build(heap, project, pairs, GROWING, curved);
            if built.kind == Kind::Flat {
                // Keys of one coordinate: no line, so room for as many again.
                let (cap, larger) = (built.room as usize, (2 * built.len).max(4));
                built.data = Self::widen(heap, built.data.cast::<(K, V)>(), built.len, cap, larger).cast();
                built.room = u32::try_from(larger).expect("a node has fewer than 2^32 pairs");
            }
            *node = built;
        }
    }

    /// Moves all pairs below `node` to the end of `pairs`, in order, and frees everything but the node itself.
    ///
    /// # Safety
    /// `node` is a node of this tree. It is empty afterwards.
    unsafe fn unload(heap: &mut Heap, node: *mut Node<P::C>, pairs: &mut Vec<(K, V)>) {
        // SAFETY: the caller's promise and invariants 1 and 2.
        unsafe {
            let before = mem::replace(&mut *node, Node::empty());
            let Node { data, side, room, kind, len, .. } = before;
            let room = room as usize;
            match kind {
                Kind::Flat => {
                    Self::move_out(data.cast(), len, pairs);
                    if room > 0 {
                        heap.free_array(data.cast::<(K, V)>(), room);
                    }
                }
                Kind::Model => {
                    let buckets = Buckets::<K, V>::at(data, side);
                    for i in 0..room {
                        let state = buckets.state(i);
                        if state.is_child() {
                            let child = buckets.child::<P::C>(i);
                            Self::unload(heap, child, pairs);
                            heap.free_array(child, 1);
                        } else {
                            Self::move_out(buckets.pairs(i), state.len(), pairs);
                        }
                    }
                    buckets.free(heap, room);
                }
                Kind::Fan => {
                    let (children, words) = (data.cast::<Node<P::C>>(), before.words());
                    for i in 0..room {
                        Self::unload(heap, children.add(i), pairs);
                    }
                    heap.free_array(children, room);
                    heap.free_array(side.cast::<u64>(), words);
                }
            }
        }
    }

    /// # Safety
    /// The first `len` pairs of `from` are initialised, and not used again.
    unsafe fn move_out(from: *mut (K, V), len: usize, pairs: &mut Vec<(K, V)>) {
        if len == 0 {
            return;
        }
        pairs.reserve(len);
        // SAFETY: the caller's promise; the pairs are owned by the vector from here on.
        unsafe {
            ptr::copy_nonoverlapping(from, pairs.as_mut_ptr().add(pairs.len()), len);
            pairs.set_len(pairs.len() + len);
        }
    }

    /// Takes `key` out.
    pub(crate) fn remove(&mut self, key: &K) -> Option<(K, V)> {
        // SAFETY: the root is a node of this tree.
        let pair = unsafe { Self::remove_below(&raw mut self.root, self.project.project(key), key) }?;
        if self.root.built >= 1024 && 4 * self.root.len < self.root.built {
            self.shrink();
        }
        Some(pair)
    }

    /// # Safety
    /// `node` is a node of a tree of this type.
    unsafe fn remove_below(node: *mut Node<P::C>, coordinate: P::C, key: &K) -> Option<(K, V)> {
        // SAFETY: the caller's promise, invariants 1 to 3.
        unsafe {
            let pair = match (*node).kind {
                Kind::Fan => Self::remove_below(Self::child(node, coordinate).cast_mut(), coordinate, key)?,
                Kind::Model => {
                    let buckets = Buckets::<K, V>::of(&*node);
                    match buckets.seat((*node).place(coordinate), key, P::ORDERED) {
                        Seat::Below(bucket) => Self::remove_below(buckets.child(bucket), coordinate, key)?,
                        Seat::Taken(bucket, at) => buckets.take(bucket, at),
                        Seat::Free(..) => return None,
                    }
                }
                Kind::Flat => {
                    let pairs = (*node).data.cast::<(K, V)>();
                    let (at, found) = search(pairs, (*node).len, key);
                    if !found {
                        return None;
                    }
                    let pair = pairs.add(at).read();
                    ptr::copy(pairs.add(at + 1), pairs.add(at), (*node).len - at - 1);
                    pair
                }
            };
            (*node).len -= 1;
            Some(pair)
        }
    }

    /// Builds the whole tree anew, in memory of its own size.
    pub(crate) fn shrink(&mut self) {
        let pairs = self.take_all();
        self.root = Self::build(&mut self.heap, &self.project, pairs, LOADED, false);
    }

    /// All pairs in the order of the tree; it is empty afterwards and holds no memory.
    pub(crate) fn take_all(&mut self) -> Vec<(K, V)> {
        let mut pairs = Vec::with_capacity(self.root.len);
        // SAFETY: the root is a node of this tree.
        unsafe { Self::unload(&mut self.heap, &raw mut self.root, &mut pairs) };
        self.heap = Heap::default();
        pairs
    }

    /// How many keys are smaller than `key`. For an ordered projection only.
    pub(crate) fn rank(&self, key: &K) -> usize {
        let coordinate = self.project.project(key);
        let (mut node, mut rank): (*const Node<P::C>, usize) = (&raw const self.root, 0);
        // SAFETY: invariants 1 to 3.
        unsafe {
            loop {
                match (*node).kind {
                    Kind::Fan => {
                        let (children, at) = ((*node).data.cast::<Node<P::C>>(), (*node).child_of(coordinate));
                        rank += (0..at).map(|i| (*children.add(i)).len).sum::<usize>();
                        node = children.add(at);
                    }
                    Kind::Model => {
                        let (buckets, place) = (Buckets::<K, V>::of(&*node), (*node).place(coordinate));
                        let seat = buckets.seat(place, key, true);
                        let (Seat::Below(bucket) | Seat::Taken(bucket, _) | Seat::Free(bucket, _)) = seat;
                        rank += (0..bucket).map(|i| Self::keys_in(buckets, i)).sum::<usize>();
                        match seat {
                            Seat::Below(bucket) => node = buckets.child(bucket),
                            Seat::Taken(_, at) | Seat::Free(_, at) => return rank + at,
                        }
                    }
                    Kind::Flat => return rank + search((*node).data.cast::<(K, V)>(), (*node).len, key).0,
                }
            }
        }
    }

    /// # Safety
    /// These are buckets of this tree, and there is one of this number.
    unsafe fn keys_in(buckets: Buckets<K, V>, i: usize) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            let state = buckets.state(i);
            if state.is_child() { (*buckets.child::<P::C>(i)).len } else { state.len() }
        }
    }
}

impl<K, V, P: Project<K>> Drop for Tree<K, V, P> {
    fn drop(&mut self) {
        if mem::needs_drop::<(K, V)>() {
            // SAFETY: the root is a node of this tree; nothing uses it afterwards.
            unsafe { drop_below::<P::C, K, V>(&self.root) }
        }
    }
}

/// Drops all pairs below a node, not its memory.
///
/// # Safety
/// `node` is a node of a tree of this type, and the pairs are not used afterwards.
unsafe fn drop_below<C, K, V>(node: &Node<C>) {
    let room = node.room as usize;
    let drop_pairs = |pairs: *mut (K, V), len: usize| {
        if len > 0 {
            // SAFETY: invariant 2 and the caller's promise.
            unsafe { ptr::drop_in_place(ptr::slice_from_raw_parts_mut(pairs, len)) }
        }
    };
    // SAFETY: invariants 1 and 2.
    unsafe {
        match node.kind {
            Kind::Flat => drop_pairs(node.data.cast(), node.len),
            Kind::Fan => {
                let children = node.data.cast::<Node<C>>();
                (0..room).for_each(|i| drop_below::<C, K, V>(&*children.add(i)));
            }
            Kind::Model => {
                let buckets = Buckets::<K, V>::of(node);
                for i in 0..room {
                    let state = buckets.state(i);
                    if state.is_child() {
                        drop_below::<C, K, V>(&*buckets.child(i));
                    } else {
                        drop_pairs(buckets.pairs(i), state.len());
                    }
                }
            }
        }
    }
}
