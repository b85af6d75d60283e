//! Look-up, insert, remove, rebuild.

use std::marker::PhantomData;
use std::mem;
use std::ptr;

use super::build::{Builder, STEP, forecast, room};
use super::heap::Heap;
use super::node::{CHUNK_MAX, Chunk, Kind, Node, SLOTS, Separators, Shape, find, search};
use super::prefetch::prefetch;
use super::simd;
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

/// Look-ups that are under way at the same time in a batch.
pub(crate) const GROUP: usize = 32;
/// A subtree is rebuilt when it holds this many times (in halves) what it held when it was built.
const GROWN_HALVES: usize = 5;
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

/// A bucket: some consecutive pairs.
type Bucket<K, V> = (*mut (K, V), usize);

/// Where the way to a coordinate ends.
enum Leaf<'a, K, V> {
    /// A chunk and the slot in it.
    Chunk(&'a Chunk, usize),
    /// The pairs of a flat node.
    Flat(*mut (K, V), usize),
}

impl<K, V> Leaf<'_, K, V> {
    /// The bucket of the coordinate.
    ///
    /// # Safety
    /// The chunk is one of a tree of this type, and no child.
    #[inline(always)]
    unsafe fn bucket(&self) -> Bucket<K, V> {
        match *self {
            Leaf::Flat(pairs, len) => (pairs, len),
            Leaf::Chunk(chunk, slot) => {
                // SAFETY: slots are below `SLOTS`, see `Node::place`; `ends` lie within the block.
                unsafe {
                    let begin = usize::from(*chunk.ends.get_unchecked(slot));
                    let end = usize::from(*chunk.ends.get_unchecked(slot + 1));
                    (chunk.data.cast::<(K, V)>().wrapping_add(begin), end - begin)
                }
            }
        }
    }

    /// What an insert moves: from the bucket to the end of the block, and one place more.
    #[inline(always)]
    fn moved_by_insert(&self) -> (*mut (K, V), *mut (K, V)) {
        match *self {
            Leaf::Flat(pairs, len) => (pairs, pairs.wrapping_add(len + 1)),
            Leaf::Chunk(chunk, slot) => {
                let pairs = chunk.data.cast::<(K, V)>();
                (pairs.wrapping_add(chunk.ends[slot].into()), pairs.wrapping_add(chunk.len() + 1))
            }
        }
    }
}

impl<K: Copy + Ord, V, P: Project<K>> Tree<K, V, P> {
    /// A tree without keys, which needs no memory.
    pub(crate) fn new(project: P) -> Self {
        Self { root: Node::empty(), heap: Heap::default(), project, marker: PhantomData }
    }

    /// A tree of pairs in ascending order of their keys, without duplicates.
    pub(crate) fn from_sorted(pairs: Vec<(K, V)>, project: P) -> Self {
        let mut tree = Self::new(project);
        tree.heap.reserve(forecast(pairs.len(), size_of::<(K, V)>()));
        tree.root = Self::build(&mut tree.heap, &tree.project, pairs);
        tree
    }

    pub(crate) fn len(&self) -> usize {
        self.root.len
    }

    /// Bytes of memory, free room included.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.heap.reserved()
    }

    /// Builds a node over pairs that ascend by key.
    fn build(heap: &mut Heap, project: &P, mut pairs: Vec<(K, V)>) -> Node<P::C> {
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
                Builder { heap, pairs: pairs.as_ptr(), coordinate, ordered: P::ORDERED, marker }.build(0, n)
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
                Builder { heap, pairs: pairs.as_ptr(), coordinate, ordered: P::ORDERED, marker }.build(0, n)
            }
        }
    }

    /// The bucket that holds a coordinate.
    #[inline(always)]
    fn bucket(&self, coordinate: P::C) -> Bucket<K, V> {
        let mut node: *const Node<P::C> = &raw const self.root;
        // SAFETY: invariants 1 to 3 of the module.
        unsafe {
            loop {
                match (*node).kind {
                    Kind::Dense => {
                        let separators = &*(*node).data.cast::<Separators<P::C>>();
                        node = separators.children.add(separators.find(coordinate, (*node).room as usize));
                    }
                    Kind::Model => {
                        let (chunk, slot) = (*node).place(coordinate);
                        let chunk = &*(*node).data.cast::<Chunk>().add(chunk);
                        if !chunk.child {
                            return Self::bucket_in(chunk, slot);
                        }
                        node = chunk.data.cast();
                    }
                    Kind::Flat => return ((*node).data.cast(), (*node).len),
                }
            }
        }
    }

    /// # Safety
    /// `slot` is below [`SLOTS`] and `chunk` is no child.
    #[inline(always)]
    unsafe fn bucket_in(chunk: &Chunk, slot: usize) -> Bucket<K, V> {
        // SAFETY: the caller's promise.
        unsafe { Leaf::Chunk(chunk, slot).bucket() }
    }

    /// The pair of `key`.
    #[inline]
    pub(crate) fn get(&self, key: &K) -> Option<&(K, V)> {
        self.get_at(self.project.project(key), key)
    }

    /// The pair of `key`, whose coordinate the caller knows.
    #[inline]
    pub(crate) fn get_at(&self, coordinate: P::C, key: &K) -> Option<&(K, V)> {
        let (pairs, n) = self.bucket(coordinate);
        // SAFETY: invariants 2 and 4.
        unsafe { find(pairs, n, key).as_ref() }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (pairs, n) = self.bucket(self.project.project(key));
        // SAFETY: invariant 2; the tree is borrowed mutably.
        unsafe {
            let (at, found) = search(pairs, n, key);
            found.then(|| &mut (*pairs.add(at)).1)
        }
    }

    /// Calls `found` with the pair of every key, in order. The memory accesses of [`GROUP`] keys overlap.
    /// `coordinates` are those of `keys`.
    pub(crate) fn get_each<'a>(
        &'a self,
        keys: &[K],
        coordinates: impl Fn(usize) -> P::C,
        mut found: impl FnMut(Option<&'a (K, V)>),
    ) {
        simd::run(
            #[inline(always)]
            || self.get_groups(keys, &coordinates, &mut found),
        );
    }

    #[inline(always)]
    fn get_groups<'a>(
        &'a self,
        keys: &[K],
        coordinates: &impl Fn(usize) -> P::C,
        found: &mut impl FnMut(Option<&'a (K, V)>),
    ) {
        for (group, keys) in keys.chunks(GROUP).enumerate() {
            let mut buckets: [Bucket<K, V>; GROUP] = [(ptr::null_mut(), 0); GROUP];
            self.leaves(
                keys.len(),
                |i| coordinates(group * GROUP + i),
                |i, leaf| {
                    // SAFETY: `leaves` gives leaves of this tree.
                    buckets[i] = unsafe { leaf.bucket() };
                    prefetch(buckets[i].0);
                    prefetch(buckets[i].0.wrapping_add(buckets[i].1));
                },
            );
            for (key, &(pairs, n)) in keys.iter().zip(&buckets) {
                // SAFETY: invariants 2 and 4.
                found(unsafe { find(pairs, n, key).as_ref() });
            }
        }
    }

    /// Finds the leaves of `n` coordinates, up to [`GROUP`], all at the same time: every step of the way asks for the
    /// memory of the next step, and takes it when all others have asked for theirs.
    #[inline(always)]
    fn leaves(&self, n: usize, coordinates: impl Fn(usize) -> P::C, mut found: impl FnMut(usize, Leaf<K, V>)) {
        let n = n.min(GROUP);
        let root: *const Node<P::C> = &raw const self.root;
        let mut nodes = [root; GROUP];
        let mut chunks = [(ptr::null::<Chunk>(), 0usize); GROUP];
        let mut waiting: [u8; GROUP] = std::array::from_fn(|i| i as u8);
        let mut left = n;
        // SAFETY: invariants 1 to 3.
        unsafe {
            while left > 0 {
                // Nodes: to a child of a dense node, to a chunk of a model, or to the end.
                let mut kept = 0;
                for at in 0..left {
                    let i = usize::from(waiting[at]);
                    let node = nodes[i];
                    match (*node).kind {
                        Kind::Flat => {
                            found(i, Leaf::Flat((*node).data.cast(), (*node).len));
                            continue;
                        }
                        Kind::Dense => {
                            let separators = &*(*node).data.cast::<Separators<P::C>>();
                            nodes[i] = separators.children.add(separators.find(coordinates(i), (*node).room as usize));
                            chunks[i].0 = ptr::null();
                            prefetch(nodes[i]);
                        }
                        Kind::Model => {
                            let (chunk, slot) = (*node).place(coordinates(i));
                            chunks[i] = ((*node).data.cast::<Chunk>().add(chunk), slot);
                            prefetch(chunks[i].0);
                        }
                    }
                    waiting[kept] = i as u8;
                    kept += 1;
                }
                // Chunks: to the end, or to a child.
                left = 0;
                for at in 0..kept {
                    let i = usize::from(waiting[at]);
                    if let Some(chunk) = chunks[i].0.as_ref() {
                        if !chunk.child {
                            found(i, Leaf::Chunk(chunk, chunks[i].1));
                            continue;
                        }
                        nodes[i] = chunk.data.cast();
                        prefetch(nodes[i]);
                    }
                    waiting[left] = i as u8;
                    left += 1;
                }
            }
        }
    }

    /// Asks for the memory that inserts at these `n` coordinates will touch, up to [`GROUP`].
    pub(crate) fn warm(&self, n: usize, coordinates: impl Fn(usize) -> P::C) {
        simd::run(
            #[inline(always)]
            || {
                self.leaves(n, coordinates, |_, leaf| {
                    let (begin, end) = leaf.moved_by_insert();
                    (begin as usize..end as usize).step_by(64).for_each(|line| prefetch(line as *const u8));
                });
            },
        );
    }

    /// Gives `key` a value; returns the one it had.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.insert_at(self.project.project(&key), key, value)
    }

    /// As [`Tree::insert`], with a coordinate that the caller knows.
    pub(crate) fn insert_at(&mut self, coordinate: P::C, key: K, mut value: V) -> Option<V> {
        loop {
            let tried = simd::run(
                #[inline(always)]
                || self.try_insert(coordinate, key, value),
            );
            match tried {
                Ok(old) => return old,
                Err(back) => value = back,
            }
            self.make_room(coordinate);
        }
    }

    /// Gives the value back where the place of `key` is full.
    #[inline(always)]
    fn try_insert(&mut self, coordinate: P::C, key: K, value: V) -> Result<Option<V>, V> {
        let mut node = &raw mut self.root;
        // SAFETY: invariants 1 to 3. Positions found by `search` are within the bucket, so `at` is at most the length
        // of the block, and a pair is only added where there is room for it.
        let outcome = unsafe {
            loop {
                match (*node).kind {
                    Kind::Dense => {
                        (*node).len += 1;
                        node = Self::child(node, coordinate);
                    }
                    Kind::Model => {
                        (*node).len += 1;
                        let (chunk, slot) = (*node).place(coordinate);
                        let chunk = &mut *(*node).data.cast::<Chunk>().add(chunk);
                        if chunk.child {
                            node = chunk.data.cast();
                            continue;
                        }
                        let (pairs, n) = Self::bucket_in(chunk, slot);
                        let (at, found) = search(pairs, n, &key);
                        if found {
                            break Ok(Some(mem::replace(&mut (*pairs.add(at)).1, value)));
                        }
                        let len = chunk.len();
                        if len == CHUNK_MAX {
                            break Err(value);
                        }
                        let at = usize::from(chunk.ends[slot]) + at;
                        if len == usize::from(chunk.cap) {
                            let cap = room(len + (len / 4).max(STEP / 2));
                            chunk.data =
                                Self::widen(&mut self.heap, chunk.data.cast(), len, chunk.cap.into(), cap).cast();
                            chunk.cap = cap as u8;
                        }
                        Self::open(chunk.data.cast(), len, at, (key, value));
                        chunk.grew(slot);
                        return Ok(None);
                    }
                    Kind::Flat => {
                        let (pairs, len) = ((*node).data.cast::<(K, V)>(), (*node).len);
                        let (at, found) = search(pairs, len, &key);
                        if found {
                            break Ok(Some(mem::replace(&mut (*pairs.add(at)).1, value)));
                        }
                        let cap = (*node).room as usize;
                        if len == cap {
                            if len >= FLAT_MAX {
                                break Err(value);
                            }
                            let larger = (2 * cap).max(4);
                            (*node).data = Self::widen(&mut self.heap, pairs, len, cap, larger).cast();
                            (*node).room = larger as u32;
                        }
                        Self::open((*node).data.cast(), len, at, (key, value));
                        (*node).len += 1;
                        return Ok(None);
                    }
                }
            }
        };
        // No key came: the nodes above counted too early.
        self.discount(coordinate);
        outcome
    }

    /// Takes one from the count of every node above the leaf of `coordinate`.
    fn discount(&mut self, coordinate: P::C) {
        let mut node = &raw mut self.root;
        // SAFETY: invariants 1 and 3.
        unsafe {
            loop {
                match (*node).kind {
                    Kind::Dense => {
                        (*node).len -= 1;
                        node = Self::child(node, coordinate);
                    }
                    Kind::Model => {
                        (*node).len -= 1;
                        let chunk = (*node).data.cast::<Chunk>().add((*node).place(coordinate).0);
                        if !(*chunk).child {
                            return;
                        }
                        node = (*chunk).data.cast();
                    }
                    Kind::Flat => return,
                }
            }
        }
    }

    /// # Safety
    /// `node` is a dense node of this tree.
    #[inline(always)]
    unsafe fn child(node: *mut Node<P::C>, coordinate: P::C) -> *mut Node<P::C> {
        // SAFETY: the caller's promise, invariant 3.
        unsafe {
            let separators = &*(*node).data.cast::<Separators<P::C>>();
            separators.children.add(separators.find(coordinate, (*node).room as usize))
        }
    }

    /// Puts a pair before position `at` of `len` pairs.
    ///
    /// # Safety
    /// The block has room for one more, `at` is at most `len`.
    #[inline]
    unsafe fn open(pairs: *mut (K, V), len: usize, at: usize, pair: (K, V)) {
        // SAFETY: the caller's promise.
        unsafe {
            ptr::copy(pairs.add(at), pairs.add(at + 1), len - at);
            pairs.add(at).write(pair);
        }
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

    /// Rebuilds what is full at `coordinate`: the topmost subtree that has outgrown its lines, else the full leaf.
    #[cold]
    fn make_room(&mut self, coordinate: P::C) {
        // Taken apart: a reference to the whole tree would claim the root, which `node` may point to.
        let Self { root, heap, project, .. } = self;
        let mut node = &raw mut *root;
        // SAFETY: invariants 1 to 3.
        unsafe {
            loop {
                let outgrown = (*node).len >= REBUILD_MIN && 2 * (*node).len >= GROWN_HALVES * (*node).built;
                if outgrown || (*node).kind == Kind::Flat {
                    return Self::rebuild(heap, project, node);
                }
                if (*node).kind == Kind::Dense {
                    node = Self::child(node, coordinate);
                    continue;
                }
                let chunk = (*node).data.cast::<Chunk>().add((*node).place(coordinate).0);
                if !(*chunk).child {
                    let child = heap.array::<Node<P::C>>(1);
                    child.write(Node {
                        data: (*chunk).data,
                        room: (*chunk).cap.into(),
                        len: (*chunk).len(),
                        ..Node::empty()
                    });
                    (*chunk).data = child.cast();
                    (*chunk).child = true;
                    return Self::rebuild(heap, project, child);
                }
                node = (*chunk).data.cast();
            }
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
            Self::unload(heap, node, &mut pairs);
            let mut built = Self::build(heap, project, pairs);
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
            let Node { data, room, kind, len, .. } = mem::replace(&mut *node, Node::empty());
            let room = room as usize;
            match kind {
                Kind::Flat => Self::unload_block(heap, data.cast(), len, room, pairs),
                Kind::Model => {
                    let chunks = data.cast::<Chunk>();
                    for i in 0..room {
                        let chunk = &*chunks.add(i);
                        if chunk.child {
                            Self::unload(heap, chunk.data.cast(), pairs);
                            heap.free_array(chunk.data.cast::<Node<P::C>>(), 1);
                        } else {
                            Self::unload_block(heap, chunk.data.cast(), chunk.len(), chunk.cap.into(), pairs);
                        }
                    }
                    heap.free_array(chunks, room);
                }
                Kind::Dense => {
                    let separators = data.cast::<Separators<P::C>>();
                    let Separators { children, begins } = separators.read();
                    for i in 0..room {
                        Self::unload(heap, children.add(i), pairs);
                    }
                    heap.free_array(children, room);
                    heap.free_array(begins, room);
                    heap.free_array(separators, 1);
                }
            }
        }
    }

    /// # Safety
    /// `block` is a block of this tree for `cap` pairs, the first `len` initialised; or `cap` is 0.
    unsafe fn unload_block(heap: &mut Heap, block: *mut (K, V), len: usize, cap: usize, pairs: &mut Vec<(K, V)>) {
        if cap == 0 {
            return;
        }
        pairs.reserve(len);
        // SAFETY: the caller's promise; the pairs are owned by the vector from here on.
        unsafe {
            ptr::copy_nonoverlapping(block, pairs.as_mut_ptr().add(pairs.len()), len);
            pairs.set_len(pairs.len() + len);
            heap.free_array(block, cap);
        }
    }

    /// Takes `key` out.
    pub(crate) fn remove(&mut self, key: &K) -> Option<(K, V)> {
        let coordinate = self.project.project(key);
        self.get_at(coordinate, key)?;
        let mut node = &raw mut self.root;
        // SAFETY: invariants 1 to 3; the key is there. Where a user's order says otherwise the second time, nothing
        // is moved.
        let pair = unsafe {
            loop {
                (*node).len -= 1;
                match (*node).kind {
                    Kind::Dense => node = Self::child(node, coordinate),
                    Kind::Model => {
                        let (chunk, slot) = (*node).place(coordinate);
                        let chunk = &mut *(*node).data.cast::<Chunk>().add(chunk);
                        if chunk.child {
                            node = chunk.data.cast();
                            continue;
                        }
                        let (pairs, n) = Self::bucket_in(chunk, slot);
                        let (at, found) = search(pairs, n, key);
                        assert!(found, "a key's order gave two answers for the same keys");
                        let at = usize::from(chunk.ends[slot]) + at;
                        let pair = Self::close(chunk.data.cast(), chunk.len(), at);
                        chunk.shrank(slot);
                        break pair;
                    }
                    Kind::Flat => {
                        let pairs = (*node).data.cast::<(K, V)>();
                        let (at, found) = search(pairs, (*node).len + 1, key);
                        assert!(found, "a key's order gave two answers for the same keys");
                        break Self::close(pairs, (*node).len + 1, at);
                    }
                }
            }
        };
        if self.root.built >= 1024 && 4 * self.root.len < self.root.built {
            self.shrink();
        }
        Some(pair)
    }

    /// Takes the pair at `at` out of `len` pairs.
    ///
    /// # Safety
    /// The pairs are initialised and `at` is less than `len`.
    unsafe fn close(pairs: *mut (K, V), len: usize, at: usize) -> (K, V) {
        // SAFETY: the caller's promise.
        unsafe {
            let pair = pairs.add(at).read();
            ptr::copy(pairs.add(at + 1), pairs.add(at), len - at - 1);
            pair
        }
    }

    /// Builds the whole tree anew, in memory of its own size.
    pub(crate) fn shrink(&mut self) {
        let pairs = self.take_all();
        self.heap.reserve(forecast(pairs.len(), size_of::<(K, V)>()));
        self.root = Self::build(&mut self.heap, &self.project, pairs);
    }

    /// All pairs in the order of the tree; it is empty afterwards and holds no memory.
    pub(crate) fn take_all(&mut self) -> Vec<(K, V)> {
        let mut pairs = Vec::with_capacity(self.root.len);
        // SAFETY: the root is a node of this tree.
        unsafe { Self::unload(&mut self.heap, &raw mut self.root, &mut pairs) };
        self.heap = Heap::default();
        pairs
    }

    /// What the tree looks like.
    pub(crate) fn shape(&self) -> Shape {
        let mut shape = Shape { len: self.root.len, total_bytes: self.bytes(), ..Shape::default() };
        // SAFETY: the root is a node of this tree.
        unsafe { Self::describe(&self.root, 0, &mut shape) };
        shape
    }

    /// # Safety
    /// `node` is a node of a tree of this type.
    unsafe fn describe(node: &Node<P::C>, depth: usize, shape: &mut Shape) {
        let mut at_depth = |keys: usize| {
            shape.depths.resize(shape.depths.len().max(depth + 1), 0);
            shape.depths[depth] += keys;
        };
        let room = node.room as usize;
        // SAFETY: invariants 1 and 2.
        unsafe {
            match node.kind {
                Kind::Flat => {
                    at_depth(node.len);
                    shape.flat_nodes += 1;
                    shape.data_bytes += room * size_of::<(K, V)>();
                }
                Kind::Dense => {
                    let separators = &*node.data.cast::<Separators<P::C>>();
                    shape.dense_nodes += 1;
                    shape.model_bytes += room * (size_of::<Node<P::C>>() + size_of::<P::C>());
                    for i in 0..room {
                        Self::describe(&*separators.children.add(i), depth + 1, shape);
                    }
                }
                Kind::Model => {
                    shape.model_nodes += 1;
                    shape.chunks += room;
                    shape.model_bytes += room * size_of::<Chunk>();
                    for i in 0..room {
                        let chunk = &*node.data.cast::<Chunk>().add(i);
                        if chunk.child {
                            shape.model_bytes += size_of::<Node<P::C>>();
                            Self::describe(&*chunk.data.cast::<Node<P::C>>(), depth + 1, shape);
                            continue;
                        }
                        shape.depths.resize(shape.depths.len().max(depth + 1), 0);
                        shape.depths[depth] += chunk.len();
                        shape.data_bytes += usize::from(chunk.cap) * size_of::<(K, V)>();
                        for slot in 0..SLOTS {
                            let keys = usize::from(chunk.ends[slot + 1] - chunk.ends[slot]);
                            shape.buckets += usize::from(keys > 0);
                            shape.largest_bucket = shape.largest_bucket.max(keys);
                        }
                    }
                }
            }
        }
    }

    /// How many keys are smaller than `key`. For an ordered projection only.
    pub(crate) fn rank(&self, key: &K) -> usize {
        let coordinate = self.project.project(key);
        let (mut node, mut rank): (*const Node<P::C>, usize) = (&raw const self.root, 0);
        // SAFETY: invariants 1 to 3.
        unsafe {
            loop {
                match (*node).kind {
                    Kind::Dense => {
                        let separators = &*(*node).data.cast::<Separators<P::C>>();
                        let at = separators.find(coordinate, (*node).room as usize);
                        rank += (0..at).map(|i| (*separators.children.add(i)).len).sum::<usize>();
                        node = separators.children.add(at);
                    }
                    Kind::Model => {
                        let (at, slot) = (*node).place(coordinate);
                        let chunks = (*node).data.cast::<Chunk>();
                        rank += (0..at).map(|i| Self::keys_in(&*chunks.add(i))).sum::<usize>();
                        let chunk = &*chunks.add(at);
                        if chunk.child {
                            node = chunk.data.cast();
                            continue;
                        }
                        let (pairs, n) = Self::bucket_in(chunk, slot);
                        return rank + usize::from(chunk.ends[slot]) + search(pairs, n, key).0;
                    }
                    Kind::Flat => return rank + search((*node).data.cast::<(K, V)>(), (*node).len, key).0,
                }
            }
        }
    }

    /// # Safety
    /// `chunk` is a chunk of a tree of this type.
    unsafe fn keys_in(chunk: &Chunk) -> usize {
        // SAFETY: the caller's promise.
        if chunk.child { unsafe { (*chunk.data.cast::<Node<P::C>>()).len } } else { chunk.len() }
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
            Kind::Dense => {
                let children = (*node.data.cast::<Separators<C>>()).children;
                (0..room).for_each(|i| drop_below::<C, K, V>(&*children.add(i)));
            }
            Kind::Model => {
                for i in 0..room {
                    let chunk = &*node.data.cast::<Chunk>().add(i);
                    if chunk.child {
                        drop_below::<C, K, V>(&*chunk.data.cast::<Node<C>>());
                    } else {
                        drop_pairs(chunk.data.cast(), usize::from(chunk.ends[SLOTS]));
                    }
                }
            }
        }
    }
}
