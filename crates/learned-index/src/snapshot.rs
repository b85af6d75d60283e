//! One writer, many readers: readers hold snapshots, the writer copies what they still see.
//!
//! The keys are cut into parts, each a [`LearnedMap`] behind an `Arc`. A snapshot is a list of parts. A writer changes a
//! part in place while nobody else holds it, and a copy of it otherwise; when it is done, the new list takes the place of
//! the old one in one step. So readers never wait for a writer's work, and see all of an update or nothing.
//!
//! Cost: a look-up searches the list of parts first; the first change of a part after a snapshot copies [`PART`] keys.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::key::Key;
use crate::map::LearnedMap;

/// Keys of a part; one with twice as many is cut in two.
pub const PART: usize = if cfg!(miri) { 16 } else { 1 << 14 };

/// A map that threads share.
///
/// ```
/// use kindling_learned_index::SharedMap;
///
/// let map = SharedMap::new((0..100u64).map(|i| (i, i)).collect());
/// let before = map.snapshot();
/// map.update(|writer| {
///     writer.insert(7, 70);
///     writer.remove(&8);
/// });
/// assert_eq!((before.get(&7), before.get(&8)), (Some(&7), Some(&8)));
/// assert_eq!((map.snapshot().get(&7), map.snapshot().get(&8)), (Some(&70), None));
/// ```
pub struct SharedMap<K: Key, V> {
    current: RwLock<Snapshot<K, V>>,
    writing: Mutex<()>,
}

/// What the map held at one time.
pub struct Snapshot<K: Key, V> {
    parts: Arc<Vec<Part<K, V>>>,
    len: usize,
}

struct Part<K: Key, V> {
    /// All keys of the part are at least this, those of the part before are smaller. The first part takes all below.
    first: Option<K>,
    map: Arc<LearnedMap<K, V>>,
}

/// The writer's view during [`SharedMap::update`].
pub struct Writer<K: Key, V> {
    parts: Vec<Part<K, V>>,
    len: usize,
}

impl<K: Key, V> Clone for Part<K, V> {
    fn clone(&self) -> Self {
        Self { first: self.first, map: self.map.clone() }
    }
}

impl<K: Key, V> Clone for Snapshot<K, V> {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone(), len: self.len }
    }
}

/// The part that a key belongs to.
fn part_of<K: Key, V>(parts: &[Part<K, V>], key: &K) -> usize {
    parts.partition_point(|part| part.first.is_none_or(|first| first <= *key)).saturating_sub(1)
}

impl<K: Key, V: Clone> SharedMap<K, V> {
    /// Shares a map.
    pub fn new(map: LearnedMap<K, V>) -> Self {
        let len = map.len();
        let mut pairs = map.into_iter().peekable();
        let mut parts = Vec::new();
        loop {
            let first = if parts.is_empty() { None } else { pairs.peek().map(|pair| pair.0) };
            parts.push(Part { first, map: Arc::new(LearnedMap::from_ascending(pairs.by_ref().take(PART).collect())) });
            if pairs.peek().is_none() {
                break;
            }
        }
        Self { current: RwLock::new(Snapshot { parts: Arc::new(parts), len }), writing: Mutex::new(()) }
    }

    /// What the map holds now. It stays so for as long as the snapshot is kept.
    pub fn snapshot(&self) -> Snapshot<K, V> {
        // A lock is only held for a moment in which nothing can panic: what a poisoned one guards is whole.
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the map. Other writers wait; readers go on with what there was until `change` has returned. If it panics,
    /// nothing has changed.
    pub fn update<R>(&self, change: impl FnOnce(&mut Writer<K, V>) -> R) -> R {
        let _alone: MutexGuard<'_, ()> = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.snapshot();
        let mut writer = Writer { parts: before.parts.to_vec(), len: before.len };
        drop(before);
        let result = change(&mut writer);
        let after = Snapshot { parts: Arc::new(writer.parts), len: writer.len };
        // The old list may be the last reference to its parts: it is dropped after the lock.
        let old = std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), after);
        drop(old);
        result
    }
}

impl<K: Key, V> Snapshot<K, V> {
    /// How many keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.parts[part_of(&self.parts, key)].map.get(key)
    }

    /// All pairs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flat_map(|part| part.map.iter())
    }

    /// The pairs from `from` on, in ascending order.
    pub fn range_from<'a>(&'a self, from: &K) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let at = part_of(&self.parts, from);
        let begun = self.parts[at].map.range(*from..);
        begun.chain(self.parts[at + 1..].iter().flat_map(|part| part.map.iter()))
    }
}

impl<K: Key, V: Clone> Writer<K, V> {
    /// The value of `key`, changes of this update included.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.parts[part_of(&self.parts, key)].map.get(key)
    }

    /// Gives `key` a value; returns the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = part_of(&self.parts, &key);
        let map = Arc::make_mut(&mut self.parts[at].map);
        let old = map.insert(key, value);
        self.len += usize::from(old.is_none());
        if map.len() >= 2 * PART
            && let Some(&middle) = map.iter().nth(PART).map(|pair| pair.0)
        {
            let right = Part { first: Some(middle), map: Arc::new(map.split_off(&middle)) };
            self.parts.insert(at + 1, right);
        }
        old
    }

    /// Takes `key` out; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = part_of(&self.parts, key);
        self.parts[at].map.get(key)?;
        let old = Arc::make_mut(&mut self.parts[at].map).remove(key);
        self.len -= usize::from(old.is_some());
        if at > 0 && self.parts[at].map.is_empty() {
            self.parts.remove(at);
        }
        old
    }
}
