//! [`MonotoneMap`]: a map in the order of its keys that lays them out by an ascending flow.

use std::ops::RangeBounds;

use kindling_core::{IndexMut, OrderedIndex, PointIndex};

use crate::error::{Error, Result};
use crate::flow::MonotoneFlow;
use crate::key::{F64, Key};
use crate::line::Conflicts;
use crate::raw::cursor::{Iter, IterMut};
use crate::raw::{GROUP, Project, Shape, Tree};

use super::{DRIFT, SAMPLE};

/// A key's place by a flow that ascends.
#[derive(Debug, Clone)]
pub(super) struct Ascending<K> {
    /// The smallest key when the flow was fitted; of an empty map none.
    pub(super) base: Option<K>,
    /// `None` for keys without a range: they are their own places.
    pub(super) flow: Option<MonotoneFlow>,
}

impl<K: Key> Ascending<K> {
    fn fit(pairs: &[(K, impl Sized)], steps: usize) -> Self {
        let base = pairs.first().map(|pair| pair.0);
        let flow = base.and_then(|base| {
            let offsets: Vec<f64> = pairs.iter().map(|pair| pair.0.offset_from(base)).collect();
            MonotoneFlow::fit(base.to_f64(), &offsets, steps).ok()
        });
        Self { base, flow }
    }
}

impl<K: Key> Project<K> for Ascending<K> {
    type C = F64;
    const ORDERED: bool = true;

    #[inline]
    fn project(&self, key: &K) -> F64 {
        let Some(base) = self.base else { return F64::default() };
        // Differences of unsigned numbers end at 0: below the smallest key the distance is taken the other way round.
        let offset = if *key < base { -base.offset_from(*key) } else { key.offset_from(base) };
        F64::new(self.flow.as_ref().map_or(offset, |flow| flow.place(offset))).unwrap_or_default()
    }
}

/// A map in the order of its keys, laid out by a [`MonotoneFlow`]: [`NflMap`](super::NflMap) with ranges.
///
/// The flow evens out the global shape of the keys without any training, so that one line carries them. Keys that come
/// later use the same flow, until [`MonotoneMap::adapt`] finds that they no longer suit it.
///
/// ```
/// use kindling_learned_index::MonotoneMap;
///
/// let mut map = MonotoneMap::from_sorted((0..1000u64).map(|i| (i * i * i, i)), 64)?;
/// assert_eq!(map.get(&(7 * 7 * 7)), Some(&7));
/// map.insert(100, 0);
/// assert_eq!(map.range(64..=125).map(|(key, _)| *key).collect::<Vec<_>>(), [64, 100, 125]);
/// # Ok::<(), kindling_learned_index::Error>(())
/// ```
///
/// Source: none; an ascending flow in the place that "NFL: Robust Learned Index via Distribution Transformation" (arXiv
/// 2205.11807) gives one that folds. Cost: a look-up of [`LearnedMap`](crate::LearnedMap) over even keys, and a binary
/// search among the points of the flow, four a step.
pub struct MonotoneMap<K: Key, V> {
    pub(super) tree: Tree<K, V, Ascending<K>>,
    pub(super) steps: usize,
    /// Conflicts of a sample when the flow was fitted, and inserts since they were last looked at.
    pub(super) sampled: Conflicts,
    pub(super) unchecked: usize,
}

impl<K: Key, V> MonotoneMap<K, V> {
    /// Loads pairs whose keys ascend strictly, with a flow of `steps`.
    ///
    /// # Errors
    /// [`Error::NotSorted`] at the first pair that does not come after its predecessor; [`Error::Invalid`] without steps.
    pub fn from_sorted(pairs: impl IntoIterator<Item = (K, V)>, steps: usize) -> Result<Self> {
        if steps == 0 {
            return Err(Error::Invalid("a monotone flow needs at least one step, found 0".into()));
        }
        let pairs: Vec<(K, V)> = pairs.into_iter().collect();
        match pairs.windows(2).position(|two| two[0].0 >= two[1].0) {
            Some(at) => Err(Error::NotSorted { at: at + 1 }),
            None => Ok(Self::load(pairs, steps)),
        }
    }

    fn load(pairs: Vec<(K, V)>, steps: usize) -> Self {
        let project = Ascending::fit(&pairs, steps);
        let mut map =
            Self { tree: Tree::from_sorted(pairs, project), steps, sampled: Conflicts::default(), unchecked: 0 };
        map.sampled = map.conflicts_of_a_sample();
        map
    }

    /// The flow; `None` for keys without a finite range.
    pub fn flow(&self) -> Option<&MonotoneFlow> {
        self.tree.project.flow.as_ref()
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
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.tree.get(key).map(|pair| &pair.1)
    }

    /// The value of `key`, to change it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.tree.get_mut(key)
    }

    /// Whether `key` is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The values of many keys, in their order, into `out`, which is cleared first. The memory accesses overlap.
    pub fn get_batch<'a>(&'a self, keys: &[K], out: &mut Vec<Option<&'a V>>) {
        out.clear();
        out.reserve(keys.len());
        let mut places = [F64::default(); GROUP];
        for keys in keys.chunks(GROUP) {
            places.iter_mut().zip(keys).for_each(|(place, key)| *place = self.tree.project.project(key));
            self.tree.get_each(keys, |i| places[i], |pair| out.push(pair.map(|pair| &pair.1)));
        }
    }

    /// Gives `key` a value; returns the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.is_empty() {
            // Nodes that are left know places of the old flow.
            self.tree.take_all();
            self.tree.project = Ascending::fit(&[(key, ())], self.steps);
        }
        self.unchecked += 1;
        self.tree.insert(key, value)
    }

    /// Takes `key` out; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.tree.remove(key).map(|pair| pair.1)
    }

    /// Pairs with keys in `range`, in ascending order, from both ends. An empty or inverted range has no pairs.
    pub fn range(&self, range: impl RangeBounds<K>) -> Iter<'_, K, V, F64> {
        self.tree.range(range.start_bound(), range.end_bound())
    }

    /// As [`MonotoneMap::range`], with values to change.
    pub fn range_mut(&mut self, range: impl RangeBounds<K>) -> IterMut<'_, K, V, F64> {
        self.tree.range_mut(range.start_bound(), range.end_bound())
    }

    /// All pairs in ascending order.
    pub fn iter(&self) -> Iter<'_, K, V, F64> {
        self.tree.iter()
    }

    /// How many keys are smaller than `key`. Takes time in proportion to the number of nodes, not of keys.
    pub fn rank(&self, key: &K) -> usize {
        self.tree.rank(key)
    }

    /// What the tree under the map looks like. Reads all of it.
    pub fn shape(&self) -> Shape {
        self.tree.shape()
    }

    /// All pairs, in ascending order.
    pub fn into_sorted(mut self) -> Vec<(K, V)> {
        self.tree.take_all()
    }

    /// Looks whether the keys that came since the flow was fitted still suit it, and fits a new one and builds the map
    /// anew if not. Returns whether it did. Costs nothing until half as many keys came as there are; call it as often as
    /// you like.
    pub fn adapt(&mut self) -> bool {
        if 2 * self.unchecked < self.len() || self.is_empty() {
            return false;
        }
        self.unchecked = 0;
        // The tail is blind to one place that takes all, the mean is not.
        let now = self.conflicts_of_a_sample();
        let suits = now.tail <= self.sampled.tail + DRIFT && now.mean <= 2.0 * self.sampled.mean;
        if self.flow().is_some() && suits {
            return false;
        }
        *self = Self::load(self.tree.take_all(), self.steps);
        true
    }

    /// Conflicts of the places of some keys, evenly taken.
    fn conflicts_of_a_sample(&self) -> Conflicts {
        let stride = self.len().div_ceil(SAMPLE).max(1);
        let places: Vec<F64> = self.iter().step_by(stride).map(|(key, _)| self.tree.project.project(key)).collect();
        Conflicts::of(&places, 1.5)
    }
}

impl<K: Key, V> PointIndex<K, V> for MonotoneMap<K, V> {
    fn len(&self) -> usize {
        self.len()
    }

    #[inline]
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

impl<K: Key, V> OrderedIndex<K, V> for MonotoneMap<K, V> {
    fn scan(&self, from: &K, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize {
        self.tree.scan(from, limit, visit)
    }
}

impl<K: Key, V> IndexMut<K, V> for MonotoneMap<K, V> {
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.insert(key, value)
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        self.remove(key)
    }
}
