//! [`LearnedMap`]: a map in the order of its keys, in place of `BTreeMap`.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | the map: look-up, change, ranges |
//! | [`entry`] | one place of the map, taken or free |
//! | `traits` | what the standard library asks of a map |
//! | `serial` | serde: a sorted sequence of pairs |

pub mod entry;
mod serial;
mod traits;

use std::ops::{Bound, RangeBounds};

use kindling_core::{IndexMut, OrderedIndex, PointIndex};

use crate::error::{Error, Result};
use crate::key::Key;
use crate::raw::cursor::{Iter, IterMut};
use crate::raw::{Direct, GROUP, Shape, Tree};

use entry::{Entry, OccupiedEntry, VacantEntry};
pub use traits::IntoIter;

/// A map in the order of its keys that places them by lines instead of comparing its way down a tree.
///
/// It does what [`BTreeMap`](std::collections::BTreeMap) does, for keys that a line can place: see [`Key`].
///
/// ```
/// use kindling_learned_index::LearnedMap;
///
/// let mut map: LearnedMap<u64, &str> = [(3, "three"), (1, "one"), (2, "two")].into_iter().collect();
/// assert_eq!(map.get(&2), Some(&"two"));
/// assert_eq!(map.insert(2, "deux"), Some("two"));
/// assert_eq!(map.range(2..).map(|(key, _)| *key).collect::<Vec<_>>(), [2, 3]);
/// assert_eq!(map.remove(&1), Some("one"));
/// assert_eq!(map.first_key_value(), Some((&2, &"deux")));
/// ```
///
/// Source: the tree of "NFL: Robust Learned Index via Distribution Transformation" (arXiv 2205.11807), with another
/// layout in memory; see [`reference`](crate::reference) for the published one.
///
/// Cost: a look-up takes one cache miss in the pairs; where no line carries the keys, also a table and a node or two, which
/// mostly are in a cache. An insert moves a few pairs, most often within one cache line. A node is rebuilt, with twice the
/// room, when an insert finds none near its place and nine tenths of the node are taken: in the long run that moves about
/// two keys per insert.
pub struct LearnedMap<K: Key, V> {
    pub(crate) tree: Tree<K, V, Direct>,
}

impl<K: Key, V> LearnedMap<K, V> {
    /// An empty map, which needs no memory.
    pub fn new() -> Self {
        Self { tree: Tree::new(Direct) }
    }

    /// Builds a map of pairs whose keys ascend strictly; faster than inserting them.
    ///
    /// # Errors
    /// [`Error::NotSorted`] at the first pair that does not come after its predecessor.
    pub fn from_sorted(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Self> {
        let pairs: Vec<(K, V)> = pairs.into_iter().collect();
        match pairs.windows(2).position(|two| two[0].0 >= two[1].0) {
            Some(at) => Err(Error::NotSorted { at: at + 1 }),
            None => Ok(Self::from_ascending(pairs)),
        }
    }

    /// Builds a map of pairs in any order. Of equal keys the last pair stays.
    pub fn from_unsorted(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        if !pairs.is_sorted_by(|a, b| a.0 < b.0) {
            pairs.sort_by_key(|pair| pair.0);
            // `dedup` keeps the first of a run: bring the value of the last there.
            pairs.dedup_by(|later, kept| {
                let same = later.0 == kept.0;
                if same {
                    std::mem::swap(&mut later.1, &mut kept.1);
                }
                same
            });
        }
        Self::from_ascending(pairs)
    }

    /// Of pairs that are known to ascend.
    pub(crate) fn from_ascending(pairs: Vec<(K, V)>) -> Self {
        Self { tree: Tree::from_sorted(pairs, Direct) }
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of `key`.
    #[inline(always)]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.tree.get(key).map(|pair| &pair.1)
    }

    /// The value of `key`, to change it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.tree.get_mut(key)
    }

    /// The stored key that equals `key`, and its value.
    pub fn get_key_value(&self, key: &K) -> Option<(&K, &V)> {
        self.tree.get(key).map(|(key, value)| (key, value))
    }

    /// Whether `key` is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.tree.get(key).is_some()
    }

    /// The values of many keys, in their order, into `out`, which is cleared first. Several times faster a key than
    /// [`LearnedMap::get`] where the map is larger than the caches: the memory accesses overlap.
    ///
    /// ```
    /// # use kindling_learned_index::LearnedMap;
    /// let map: LearnedMap<u32, char> = (0..1000).zip('a'..).collect();
    /// let mut found = Vec::new();
    /// map.get_batch(&[1, 5000, 0], &mut found);
    /// assert_eq!(found, [Some(&'b'), None, Some(&'a')]);
    /// ```
    pub fn get_batch<'a>(&'a self, keys: &[K], out: &mut Vec<Option<&'a V>>) {
        out.clear();
        out.reserve(keys.len());
        self.tree.get_each(keys, |i| keys[i], |pair| out.push(pair.map(|pair| &pair.1)));
    }

    /// Gives `key` a value; returns the one it had.
    #[inline]
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.tree.insert(key, value)
    }

    /// Inserts pairs in their order, faster than one by one where the map is larger than the caches: the memory accesses
    /// overlap. Of equal keys the last pair stays.
    pub fn insert_batch(&mut self, pairs: &[(K, V)])
    where
        V: Clone,
    {
        for group in pairs.chunks(GROUP) {
            self.tree.warm(group.len(), |i| group[i].0);
            for (key, value) in group {
                self.tree.insert(*key, value.clone());
            }
        }
    }

    /// Takes `key` out; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.tree.remove(key).map(|pair| pair.1)
    }

    /// Takes `key` out; returns it and its value.
    pub fn remove_entry(&mut self, key: &K) -> Option<(K, V)> {
        self.tree.remove(key)
    }

    /// The place of `key`, taken or free.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        if self.contains_key(&key) {
            Entry::Occupied(OccupiedEntry { map: self, key })
        } else {
            Entry::Vacant(VacantEntry { map: self, key })
        }
    }

    /// Pairs with keys in `range`, in ascending order, from both ends. An empty or inverted range has no pairs.
    pub fn range(&self, range: impl RangeBounds<K>) -> Iter<'_, K, V> {
        self.tree.range(range.start_bound(), range.end_bound())
    }

    /// As [`LearnedMap::range`], with values to change.
    pub fn range_mut(&mut self, range: impl RangeBounds<K>) -> IterMut<'_, K, V> {
        self.tree.range_mut(range.start_bound(), range.end_bound())
    }

    /// All pairs in ascending order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.tree.iter()
    }

    /// All pairs in ascending order, with values to change.
    pub fn iter_mut(&mut self) -> IterMut<'_, K, V> {
        self.tree.iter_mut()
    }

    /// All keys in ascending order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// All values in the order of their keys, to change.
    pub fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut V> {
        self.iter_mut().map(|(_, value)| value)
    }

    /// The smallest key and its value.
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.tree.end(false).map(|(key, value)| (key, value))
    }

    /// The largest key and its value.
    pub fn last_key_value(&self) -> Option<(&K, &V)> {
        self.tree.end(true).map(|(key, value)| (key, value))
    }

    /// Takes the smallest key out.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        let key = *self.first_key_value()?.0;
        self.tree.remove(&key)
    }

    /// Takes the largest key out.
    pub fn pop_last(&mut self) -> Option<(K, V)> {
        let key = *self.last_key_value()?.0;
        self.tree.remove(&key)
    }

    /// The pairs from the first key at or after `bound` on.
    pub fn lower_bound(&self, bound: Bound<&K>) -> Iter<'_, K, V> {
        self.tree.range(bound, Bound::Unbounded)
    }

    /// The pairs up to the last key at or before `bound`; walk them backwards.
    pub fn upper_bound(&self, bound: Bound<&K>) -> Iter<'_, K, V> {
        self.tree.range(Bound::Unbounded, bound)
    }

    /// How many keys are smaller than `key`. Takes time in proportion to the number of nodes, not of keys.
    pub fn rank(&self, key: &K) -> usize {
        self.tree.rank(key)
    }

    /// How many keys lie in `range`. Takes time as [`LearnedMap::rank`].
    pub fn count(&self, range: impl RangeBounds<K>) -> usize {
        let up_to = |key: &K, with: bool| self.rank(key) + usize::from(with && self.contains_key(key));
        let begin = match range.start_bound() {
            Bound::Unbounded => 0,
            Bound::Included(key) => up_to(key, false),
            Bound::Excluded(key) => up_to(key, true),
        };
        let end = match range.end_bound() {
            Bound::Unbounded => self.len(),
            Bound::Included(key) => up_to(key, true),
            Bound::Excluded(key) => up_to(key, false),
        };
        end.saturating_sub(begin)
    }

    /// Keeps the pairs for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        let mut pairs = self.tree.take_all();
        pairs.retain_mut(|(key, value)| keep(key, value));
        *self = Self::from_ascending(pairs);
    }

    /// Moves all pairs of `other` here; where both have a key, the value of `other` stays.
    pub fn append(&mut self, other: &mut Self) {
        let mut pairs = self.tree.take_all();
        pairs.append(&mut other.tree.take_all());
        *self = Self::from_unsorted(pairs);
    }

    /// Moves the pairs from `key` on into a map of their own.
    pub fn split_off(&mut self, key: &K) -> Self {
        let mut pairs = self.tree.take_all();
        let right = pairs.split_off(pairs.partition_point(|pair| pair.0 < *key));
        *self = Self::from_ascending(pairs);
        Self::from_ascending(right)
    }

    /// Takes everything out and gives the memory back.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Builds the map anew in memory of its own size: after many removals, or to make look-ups after many inserts as
    /// fast as after [`LearnedMap::from_sorted`].
    pub fn rebuild(&mut self) {
        self.tree.shrink();
    }

    /// What the tree under the map looks like. Reads all of it.
    pub fn shape(&self) -> Shape {
        self.tree.shape()
    }
}

impl<K: Key, V> PointIndex<K, V> for LearnedMap<K, V> {
    fn len(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn get(&self, key: &K) -> Option<&V> {
        self.get(key)
    }

    fn get_batch<'a>(&'a self, keys: &[K], out: &mut Vec<Option<&'a V>>) {
        self.get_batch(keys, out);
    }

    fn bytes(&self) -> usize {
        self.tree.bytes()
    }
}

impl<K: Key, V> OrderedIndex<K, V> for LearnedMap<K, V> {
    fn scan(&self, from: &K, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize {
        self.tree.scan(from, limit, visit)
    }
}

impl<K: Key, V> IndexMut<K, V> for LearnedMap<K, V> {
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.insert(key, value)
    }

    fn insert_batch(&mut self, pairs: &[(K, V)])
    where
        V: Clone,
    {
        self.insert_batch(pairs);
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        self.remove(key)
    }
}
