//! [`NflMap`]: a map for point look-ups that lays its keys out by a flow where that pays.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | the map |
//! | [`monotone`] | the map with ranges, over a flow that ascends |
//! | `serial` | serde |
//! | [`switch`] | whether a flow pays |

pub mod monotone;
mod serial;
pub mod switch;

use kindling_core::{IndexMut, PointIndex};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::flow::FoldingFlow;
use crate::flow::train::{TrainConfig, train};
use crate::key::{F64, Key};
use crate::map::LearnedMap;
use crate::raw::{GROUP, Project, Shape, Tree};

use switch::Switch;

/// Keys whose places are computed together.
const BATCH: usize = 256;
/// Keys that the drift test looks at.
const SAMPLE: usize = 1 << 14;
/// How much the tail conflict may grow before the map is built anew.
const DRIFT: usize = 4;
/// Nodes on the way of a look-up that take as long as a flow: it must spare more.
const FLOW_NODES: f64 = 1.5;

/// A key's place by a flow.
#[derive(Debug, Clone)]
struct Folded<K> {
    /// The smallest key when the flow was trained.
    base: K,
    flow: FoldingFlow,
}

impl<K: Key> Project<K> for Folded<K> {
    type C = F64;
    const ORDERED: bool = false;

    #[inline]
    fn project(&self, key: &K) -> F64 {
        F64::new(self.flow.transform_offset(key.offset_from(self.base))).unwrap_or_default()
    }
}

enum Layout<K: Key, V> {
    /// The flow is off.
    Plain(LearnedMap<K, V>),
    Folded(Tree<K, V, Folded<K>>),
}

/// A map for look-ups of single keys and batches, which lays crowded keys out by a [`FoldingFlow`].
///
/// Where the way through a [`LearnedMap`] of the keys is long, loading trains a flow on a sample of them and tests whether
/// it takes conflicts away (see [`Switch`]), and nodes from the way of a look-up, more than the flow itself costs. If not,
/// this is a [`LearnedMap`]; so it is for all key sets of [`data`](crate::data), whose ways are short. Keys that come
/// later use the same flow, until [`NflMap::adapt`] finds that they no longer suit it. There are no ranges: neighbours by
/// key are no neighbours by place; [`MonotoneMap`](monotone::MonotoneMap) has them.
///
/// ```
/// use kindling_learned_index::data::{KeySet, Keys};
/// use kindling_learned_index::{NflConfig, NflMap};
///
/// let Some(Keys::U64(keys)) = KeySet::named("lognormal").map(|set| set.generate(10_000, 42)) else { return Ok(()) };
/// let config = NflConfig { force: Some(true), ..NflConfig::default() };
/// let mut map = NflMap::from_sorted(keys.iter().copied().zip(0..), &config)?;
/// assert!(map.is_folded() && map.switch().is_some_and(|test| test.on));
/// assert_eq!(map.get(&keys[3]), Some(&3));
/// assert_eq!(map.insert(5, 0), None);
/// # Ok::<(), kindling_learned_index::Error>(())
/// ```
///
/// Source: "NFL: Robust Learned Index via Distribution Transformation", arXiv 2205.11807. Cost: the look-up of
/// [`LearnedMap`] and two hyperbolic tangents; loading adds a training and a sort.
pub struct NflMap<K: Key, V> {
    layout: Layout<K, V>,
    config: NflConfig,
    switch: Option<Switch>,
    /// Tail conflict of a sample when the map was loaded, and inserts since it was last looked at.
    sampled: usize,
    unchecked: usize,
}

/// How an [`NflMap`] is loaded.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NflConfig {
    /// How the flow is trained.
    pub train: TrainConfig,
    /// Whether the flow is used: `None` asks the switch test and the lengths of the ways.
    pub force: Option<bool>,
    /// A flow that was trained before; `mean` and `var` are fitted to the keys.
    pub flow: Option<FoldingFlow>,
}

impl<K: Key, V> NflMap<K, V> {
    /// Loads pairs whose keys ascend strictly.
    ///
    /// # Errors
    /// [`Error::NotSorted`] at the first pair that does not come after its predecessor. Keys that no flow can be trained
    /// on are no error: the flow stays off.
    pub fn from_sorted(pairs: impl IntoIterator<Item = (K, V)>, config: &NflConfig) -> Result<Self> {
        let pairs: Vec<(K, V)> = pairs.into_iter().collect();
        match pairs.windows(2).position(|two| two[0].0 >= two[1].0) {
            Some(at) => Err(Error::NotSorted { at: at + 1 }),
            None => Ok(Self::load(pairs, config.clone())),
        }
    }

    fn load(pairs: Vec<(K, V)>, config: NflConfig) -> Self {
        let (layout, switch) = match config.force {
            Some(false) => (Layout::Plain(LearnedMap::from_ascending(pairs)), None),
            Some(true) => match Self::fold(&pairs, &config) {
                Some((folded, switch)) => (Layout::Folded(Tree::from_sorted(pairs, folded)), Some(switch)),
                None => (Layout::Plain(LearnedMap::from_ascending(pairs)), None),
            },
            None => Self::choose(pairs, &config),
        };
        let mut map = Self { layout, config, switch, sampled: 0, unchecked: 0 };
        map.sampled = map.conflicts_of_a_sample();
        map
    }

    /// A flow for the keys and what the switch test says about it; `None` if there is none for them.
    fn fold(pairs: &[(K, V)], config: &NflConfig) -> Option<(Folded<K>, Switch)> {
        let base = pairs.first()?.0;
        let offsets: Vec<f64> = pairs.iter().map(|pair| pair.0.offset_from(base)).collect();
        let flow = match &config.flow {
            Some(flow) => flow.clone(),
            None => train(base.to_f64(), &offsets, &config.train).ok()?.flow,
        };
        let switch = Switch::test(&offsets, &flow);
        Some((Folded { base, flow }, switch))
    }

    /// The layout with the shorter way, the flow counted.
    fn choose(pairs: Vec<(K, V)>, config: &NflConfig) -> (Layout<K, V>, Option<Switch>) {
        let plain = LearnedMap::from_ascending(pairs);
        let depth = plain.shape().mean_depth();
        // No way is shorter than one node.
        if depth <= 1.0 + FLOW_NODES {
            return (Layout::Plain(plain), None);
        }
        let pairs: Vec<(K, V)> = plain.into_iter().collect();
        let Some((folded, switch)) = Self::fold(&pairs, config) else {
            return (Layout::Plain(LearnedMap::from_ascending(pairs)), None);
        };
        if !switch.on {
            return (Layout::Plain(LearnedMap::from_ascending(pairs)), Some(switch));
        }
        let mut tree = Tree::from_sorted(pairs, folded);
        if tree.shape().mean_depth() + FLOW_NODES < depth {
            return (Layout::Folded(tree), Some(switch));
        }
        let mut pairs = tree.take_all();
        pairs.sort_unstable_by_key(|pair| pair.0);
        (Layout::Plain(LearnedMap::from_ascending(pairs)), Some(switch))
    }

    /// Whether the flow is on.
    pub fn is_folded(&self) -> bool {
        matches!(self.layout, Layout::Folded(_))
    }

    /// What the switch test found when the map was loaded; `None` if no flow was trained.
    pub fn switch(&self) -> Option<Switch> {
        self.switch
    }

    /// The flow, if it is on.
    pub fn flow(&self) -> Option<&FoldingFlow> {
        match &self.layout {
            Layout::Plain(_) => None,
            Layout::Folded(tree) => Some(&tree.project.flow),
        }
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        match &self.layout {
            Layout::Plain(map) => map.len(),
            Layout::Folded(tree) => tree.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of `key`.
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        match &self.layout {
            Layout::Plain(map) => map.get(key),
            Layout::Folded(tree) => tree.get(key).map(|pair| &pair.1),
        }
    }

    /// The value of `key`, to change it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match &mut self.layout {
            Layout::Plain(map) => map.get_mut(key),
            Layout::Folded(tree) => tree.get_mut(key),
        }
    }

    /// Whether `key` is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The values of many keys, in their order, into `out`, which is cleared first. The flow and the memory accesses of
    /// several keys overlap: this is how the map is meant to be read.
    pub fn get_batch<'a>(&'a self, keys: &[K], out: &mut Vec<Option<&'a V>>) {
        let tree = match &self.layout {
            Layout::Plain(map) => return map.get_batch(keys, out),
            Layout::Folded(tree) => tree,
        };
        out.clear();
        out.reserve(keys.len());
        let mut places = [0.0; BATCH];
        for keys in keys.chunks(BATCH) {
            for (place, key) in places.iter_mut().zip(keys) {
                *place = key.offset_from(tree.project.base);
            }
            tree.project.flow.transform_offsets(&mut places[..keys.len()]);
            let place = |i: usize| F64::new(places[i]).unwrap_or_default();
            tree.get_each(keys, place, |pair| out.push(pair.map(|pair| &pair.1)));
        }
    }

    /// Gives `key` a value; returns the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.unchecked += 1;
        match &mut self.layout {
            Layout::Plain(map) => map.insert(key, value),
            Layout::Folded(tree) => tree.insert(key, value),
        }
    }

    /// Inserts pairs in their order, faster than one by one: the flow and the memory accesses overlap.
    pub fn insert_batch(&mut self, pairs: &[(K, V)])
    where
        V: Clone,
    {
        self.unchecked += pairs.len();
        let tree = match &mut self.layout {
            Layout::Plain(map) => return map.insert_batch(pairs),
            Layout::Folded(tree) => tree,
        };
        let mut places = [0.0; GROUP];
        for group in pairs.chunks(GROUP) {
            for (place, pair) in places.iter_mut().zip(group) {
                *place = pair.0.offset_from(tree.project.base);
            }
            tree.project.flow.transform_offsets(&mut places[..group.len()]);
            let places = places.map(|z| F64::new(z).unwrap_or_default());
            tree.warm(group.len(), |i| places[i]);
            for ((key, value), place) in group.iter().zip(places) {
                tree.insert_at(place, *key, value.clone());
            }
        }
    }

    /// Takes `key` out; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        match &mut self.layout {
            Layout::Plain(map) => map.remove(key),
            Layout::Folded(tree) => tree.remove(key).map(|pair| pair.1),
        }
    }

    /// All pairs, about in the order of their places.
    pub fn iter(&self) -> Box<dyn Iterator<Item = (&K, &V)> + '_> {
        match &self.layout {
            Layout::Plain(map) => Box::new(map.iter()),
            Layout::Folded(tree) => Box::new(tree.iter()),
        }
    }

    /// All pairs, in ascending order of their keys.
    pub fn into_sorted(self) -> Vec<(K, V)> {
        match self.layout {
            Layout::Plain(map) => map.into_iter().collect(),
            Layout::Folded(mut tree) => {
                let mut pairs = tree.take_all();
                pairs.sort_unstable_by_key(|pair| pair.0);
                pairs
            }
        }
    }

    /// What the tree under the map looks like. Reads all of it.
    pub fn shape(&self) -> Shape {
        match &self.layout {
            Layout::Plain(map) => map.shape(),
            Layout::Folded(tree) => tree.shape(),
        }
    }

    /// Looks whether the keys that came since the load still suit the flow, and builds the map anew with a new flow if
    /// not. Returns whether it did. Costs nothing until half as many keys came as there are; call it as often as you
    /// like between batches.
    pub fn adapt(&mut self) -> bool {
        if 2 * self.unchecked < self.len() {
            return false;
        }
        self.unchecked = 0;
        if self.conflicts_of_a_sample() <= self.sampled + DRIFT {
            return false;
        }
        let empty = Layout::Plain(LearnedMap::new());
        let old = Self {
            layout: std::mem::replace(&mut self.layout, empty),
            config: self.config.clone(),
            switch: None,
            sampled: 0,
            unchecked: 0,
        };
        let config = NflConfig { flow: None, ..self.config.clone() };
        *self = Self::load(old.into_sorted(), config);
        true
    }

    /// Tail conflict of the places of some keys, evenly taken.
    fn conflicts_of_a_sample(&self) -> usize {
        let stride = self.len().div_ceil(SAMPLE).max(1);
        match &self.layout {
            Layout::Plain(map) => {
                let keys: Vec<K> = map.keys().step_by(stride).copied().collect();
                crate::line::Conflicts::of(&keys, 1.5).tail
            }
            Layout::Folded(tree) => {
                let mut places: Vec<F64> =
                    tree.iter().step_by(stride).map(|pair| tree.project.project(pair.0)).collect();
                places.sort_unstable();
                crate::line::Conflicts::of(&places, 1.5).tail
            }
        }
    }
}

impl<K: Key, V> PointIndex<K, V> for NflMap<K, V> {
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
        match &self.layout {
            Layout::Plain(map) => map.bytes(),
            Layout::Folded(tree) => tree.bytes(),
        }
    }
}

impl<K: Key, V> IndexMut<K, V> for NflMap<K, V> {
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
