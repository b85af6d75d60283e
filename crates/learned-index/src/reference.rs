//! AFLI as it was published, plain and slow: the twin of the tree in this crate.
//!
//! Every slot of a model node is empty, one pair, a bucket of a few unsorted pairs, or a child; adjacent slots may share
//! a child. What the published code gets wrong is put right here: positions are clamped to the capacity, a dense node
//! loses the key that is removed and no other, an insert replaces, keys are compared exactly, and keys that all fall into
//! one slot end in a dense node instead of a chain without end.
//!
//! Source: "NFL: Robust Learned Index via Distribution Transformation", arXiv 2205.11807.

use std::mem;

use crate::key::Key;
use crate::line::{Conflicts, Line};

/// Slots per key that a node may have.
const AMPLIFICATION: f64 = 2.0;

/// AFLI as published.
#[derive(Debug, Clone)]
pub struct ReferenceAfli<K, V> {
    /// Nodes refer to each other by position; 0 is the root. Freed ones stay as empty dense nodes.
    nodes: Vec<Node<K, V>>,
    bucket: usize,
}

#[derive(Debug, Clone)]
struct Node<K, V> {
    kind: Kind<K, V>,
    len: usize,
    built: usize,
}

#[derive(Debug, Clone)]
enum Kind<K, V> {
    Model(Line<K>, Vec<Slot<K, V>>),
    /// Sorted pairs and how many there is room for.
    Dense(Vec<(K, V)>, usize),
}

#[derive(Debug, Clone)]
enum Slot<K, V> {
    Empty,
    Data(K, V),
    Bucket(Vec<(K, V)>),
    Child(usize),
}

/// Counts of a [`ReferenceAfli`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ReferenceShape {
    /// Nodes with a line.
    pub models: usize,
    /// Nodes without.
    pub dense: usize,
    /// Buckets.
    pub buckets: usize,
    /// Pairs that sit alone in their slot.
    pub data: usize,
    /// Mean over keys of the node's depth, from 1; one more in a bucket.
    pub depth: f64,
    /// Slots of all nodes and places of all buckets, per key.
    pub slots_per_key: f64,
}

impl<K: Key, V: Clone> ReferenceAfli<K, V> {
    /// Loads pairs that ascend. `bucket` is the most pairs of a bucket, 1 to 6; by default the tail conflict of the keys.
    pub fn load(pairs: Vec<(K, V)>, bucket: Option<usize>) -> Self {
        let keys: Vec<K> = pairs.iter().map(|pair| pair.0).collect();
        let bucket = bucket.unwrap_or_else(|| Conflicts::of(&keys, AMPLIFICATION).tail).clamp(1, 6);
        let mut tree = Self { nodes: Vec::new(), bucket };
        tree.add(pairs);
        tree
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.nodes[0].len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add(&mut self, pairs: Vec<(K, V)>) -> usize {
        let at = self.nodes.len();
        self.nodes.push(Node { kind: Kind::Dense(Vec::new(), 0), len: 0, built: 0 });
        self.build(at, pairs);
        at
    }

    /// Builds node `at` over sorted pairs.
    fn build(&mut self, at: usize, pairs: Vec<(K, V)>) {
        let n = pairs.len();
        let keys: Vec<K> = pairs.iter().map(|pair| pair.0).collect();
        let line = Line::fit(&keys, AMPLIFICATION).map(|line| (line, line.counts(&keys)));
        let kind = match line {
            Some((line, counts)) if counts.len() > 1 => {
                let slots = self.slots(&line, &counts, pairs);
                Kind::Model(line, slots)
            }
            _ => Kind::Dense(pairs, n + self.bucket),
        };
        self.nodes[at] = Node { kind, len: n, built: n };
    }

    fn slots(&mut self, line: &Line<K>, counts: &[(usize, usize)], pairs: Vec<(K, V)>) -> Vec<Slot<K, V>> {
        let (b, n) = (self.bucket, pairs.len());
        let mut slots: Vec<Slot<K, V>> = vec![Slot::Empty; line.capacity];
        let mut pairs = pairs.into_iter();
        let mut i = 0;
        while i < counts.len() {
            let (position, count) = counts[i];
            if count <= b {
                let mut here: Vec<(K, V)> = pairs.by_ref().take(count).collect();
                slots[position] = match here.pop() {
                    Some((key, value)) if count == 1 => Slot::Data(key, value),
                    last => Slot::Bucket(here.into_iter().chain(last).collect()),
                };
                i += 1;
                continue;
            }
            // Full neighbours share a child, unless that child would be this node again.
            let mut run = 1;
            while counts.get(i + run).is_some_and(|next| next.0 == position + run && next.1 > b + 1) {
                run += 1;
            }
            if counts[i..i + run].iter().map(|c| c.1).sum::<usize>() == n {
                run = 1;
            }
            let total = counts[i..i + run].iter().map(|c| c.1).sum();
            let child = self.add(pairs.by_ref().take(total).collect());
            slots[position..position + run].fill(Slot::Child(child));
            i += run;
        }
        slots
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        let mut at = 0;
        loop {
            match &self.nodes[at].kind {
                Kind::Dense(pairs, _) => {
                    return pairs.binary_search_by(|pair| pair.0.cmp(key)).ok().map(|i| &pairs[i].1);
                }
                Kind::Model(line, slots) => match &slots[line.position(*key)] {
                    Slot::Empty => return None,
                    Slot::Data(own, value) => return (own == key).then_some(value),
                    Slot::Bucket(pairs) => return pairs.iter().find(|pair| pair.0 == *key).map(|pair| &pair.1),
                    Slot::Child(child) => at = *child,
                },
            }
        }
    }

    /// Gives `key` a value; returns the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let b = self.bucket;
        let (mut at, mut path) = (0, vec![0]);
        let old = loop {
            let full = match &mut self.nodes[at].kind {
                Kind::Dense(pairs, room) => match pairs.binary_search_by(|pair| pair.0.cmp(&key)) {
                    Ok(i) => break Some(mem::replace(&mut pairs[i].1, value)),
                    Err(i) => {
                        pairs.insert(i, (key, value));
                        if pairs.len() > *room {
                            let pairs = mem::take(pairs);
                            self.build(at, pairs);
                            // It counts the new key already.
                            self.nodes[at].len -= 1;
                        }
                        break None;
                    }
                },
                Kind::Model(line, slots) => {
                    let slot = &mut slots[line.position(key)];
                    match slot {
                        Slot::Child(child) => {
                            at = *child;
                            path.push(at);
                            continue;
                        }
                        Slot::Empty => {
                            *slot = Slot::Data(key, value);
                            break None;
                        }
                        Slot::Data(own, old) if *own == key => break Some(mem::replace(old, value)),
                        Slot::Data(own, old) => {
                            let both = vec![(*own, old.clone()), (key, value)];
                            if b > 1 {
                                *slot = Slot::Bucket(both);
                                break None;
                            }
                            both
                        }
                        Slot::Bucket(pairs) => {
                            if let Some(pair) = pairs.iter_mut().find(|pair| pair.0 == key) {
                                break Some(mem::replace(&mut pair.1, value));
                            }
                            pairs.push((key, value));
                            if pairs.len() <= b {
                                break None;
                            }
                            mem::take(pairs)
                        }
                    }
                }
            };
            let mut full = full;
            full.sort_by_key(|pair| pair.0);
            let child = self.add(full);
            if let Kind::Model(line, slots) = &mut self.nodes[at].kind {
                slots[line.position(key)] = Slot::Child(child);
            }
            break None;
        };
        if old.is_none() {
            path.iter().for_each(|&node| self.nodes[node].len += 1);
            let outgrown = |&&at: &&usize| self.nodes[at].len >= (4 * self.nodes[at].built).max(64);
            if let Some(&at) = path.iter().find(outgrown) {
                let mut pairs = Vec::new();
                self.collect(at, &mut pairs);
                self.build(at, pairs);
            }
        }
        old
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.get(key)?;
        let mut at = 0;
        loop {
            self.nodes[at].len -= 1;
            match &mut self.nodes[at].kind {
                Kind::Dense(pairs, _) => {
                    let i = pairs.binary_search_by(|pair| pair.0.cmp(key)).ok()?;
                    return Some(pairs.remove(i).1);
                }
                Kind::Model(line, slots) => match &mut slots[line.position(*key)] {
                    Slot::Child(child) => at = *child,
                    Slot::Bucket(pairs) => {
                        let i = pairs.iter().position(|pair| pair.0 == *key)?;
                        return Some(pairs.remove(i).1);
                    }
                    slot => match mem::replace(slot, Slot::Empty) {
                        Slot::Data(_, value) => return Some(value),
                        _ => return None,
                    },
                },
            }
        }
    }

    /// All pairs in ascending order.
    pub fn pairs(&self) -> Vec<(K, V)> {
        let mut pairs = Vec::with_capacity(self.len());
        self.collect(0, &mut pairs);
        pairs
    }

    fn collect(&self, at: usize, pairs: &mut Vec<(K, V)>) {
        let mut before = None;
        match &self.nodes[at].kind {
            Kind::Dense(own, _) => pairs.extend(own.iter().cloned()),
            Kind::Model(_, slots) => {
                for slot in slots {
                    match slot {
                        Slot::Empty => {}
                        Slot::Data(key, value) => pairs.push((*key, value.clone())),
                        Slot::Bucket(own) => {
                            let begin = pairs.len();
                            pairs.extend(own.iter().cloned());
                            pairs[begin..].sort_by_key(|pair| pair.0);
                        }
                        Slot::Child(child) if before == Some(*child) => {}
                        Slot::Child(child) => {
                            before = Some(*child);
                            self.collect(*child, pairs);
                        }
                    }
                }
            }
        }
    }

    /// What the tree looks like.
    pub fn shape(&self) -> ReferenceShape {
        let mut shape = ReferenceShape::default();
        let (mut depths, mut slots) = (0, 0);
        self.describe(0, 1, &mut shape, &mut depths, &mut slots);
        let n = self.len().max(1) as f64;
        ReferenceShape { depth: depths as f64 / n, slots_per_key: slots as f64 / n, ..shape }
    }

    fn describe(&self, at: usize, depth: usize, shape: &mut ReferenceShape, depths: &mut usize, places: &mut usize) {
        match &self.nodes[at].kind {
            Kind::Dense(pairs, room) => {
                shape.dense += 1;
                *depths += depth * pairs.len();
                *places += room;
            }
            Kind::Model(_, slots) => {
                shape.models += 1;
                *places += slots.len();
                let mut before = None;
                for slot in slots {
                    match slot {
                        Slot::Empty => {}
                        Slot::Data(..) => {
                            shape.data += 1;
                            *depths += depth;
                        }
                        Slot::Bucket(pairs) => {
                            shape.buckets += 1;
                            *depths += (depth + 1) * pairs.len();
                            *places += self.bucket;
                        }
                        Slot::Child(child) if before == Some(*child) => {}
                        Slot::Child(child) => {
                            before = Some(*child);
                            self.describe(*child, depth + 1, shape, depths, places);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{KeySet, SplitMix64};
    use crate::key::F64;
    use std::collections::BTreeMap;

    fn load(keys: impl IntoIterator<Item = u64>, bucket: usize) -> ReferenceAfli<u64, ()> {
        ReferenceAfli::load(keys.into_iter().map(|key| (key, ())).collect(), Some(bucket))
    }

    #[test]
    fn fibonacci_numbers() {
        let keys = [1, 2, 3, 5, 8, 13, 21, 34];
        let shape = load(keys, 4).shape();
        assert_eq!((shape.models, shape.buckets, shape.data), (1, 2, 3));
        let shape = load(keys, 1).shape();
        assert_eq!((shape.models, shape.data, shape.depth), (3, 8, 1.625));
    }

    #[test]
    fn squares() {
        let mut tree = load((0..16).map(|i| i * i), 2);
        let bucket = |slot: &Slot<u64, ()>| match slot {
            Slot::Empty => vec![],
            Slot::Data(key, ()) => vec![*key],
            Slot::Bucket(pairs) => pairs.iter().map(|pair| pair.0).collect(),
            Slot::Child(child) => vec![1000 + *child as u64],
        };
        let slots = |tree: &ReferenceAfli<u64, ()>, at: usize| match &tree.nodes[at].kind {
            Kind::Model(line, slots) => (line.slope, slots.iter().map(bucket).collect::<Vec<_>>()),
            Kind::Dense(..) => panic!("a model"),
        };
        let (_, root) = slots(&tree, 0);
        let expected: [&[u64]; 15] = [
            &[1001],
            &[9, 16],
            &[25, 36],
            &[49],
            &[64],
            &[81],
            &[100],
            &[],
            &[121],
            &[144],
            &[169],
            &[],
            &[196],
            &[],
            &[225],
        ];
        assert_eq!(root, expected);
        let (slope, child) = slots(&tree, 1);
        assert!((slope - 0.461_538).abs() < 1e-6);
        assert_eq!(child, [vec![0, 1], vec![], vec![4]]);
        for key in [2, 3, 5] {
            tree.insert(key, ());
        }
        assert_eq!(slots(&tree, 1).1, [[0, 1], [2, 3], [4, 5]]);
        assert_eq!(slots(&tree, 0).1, expected);
        assert_eq!(tree.pairs().len(), 19);
        assert!(tree.pairs().is_sorted());
    }

    #[test]
    fn depths_of_all_sets_are_the_published_ones() {
        let published = [
            ("dense", 1.000, 1.00),
            ("uniform", 1.663, 1.86),
            ("normal", 1.649, 2.83),
            ("lognormal", 2.749, 4.56),
            ("zipfgap", 2.343, 2.98),
            ("outliers", 2.752, 2.37),
            ("osm", 2.850, 4.31),
            ("ts", 1.823, 2.31),
            ("longitudes", 2.233, 3.22),
            ("longlat", 2.518, 4.16),
        ];
        for (name, depth, slots) in published {
            let mut keys: Vec<F64> = KeySet::named(name)
                .unwrap()
                .generate(100_000, 42)
                .to_f64()
                .into_iter()
                .map(|x| F64::new(x).unwrap())
                .collect();
            keys.dedup();
            let shape = ReferenceAfli::load(keys.into_iter().map(|key| (key, ())).collect(), None).shape();
            assert!(
                (shape.depth - depth).abs() < 0.01 && (shape.slots_per_key - slots).abs() < 0.01,
                "{name}: {shape:?}"
            );
        }
    }

    #[test]
    fn it_does_what_a_btreemap_does() {
        for seed in 0..40 {
            let mut rng = SplitMix64::new(seed);
            let bits = 1 + rng.below(63);
            let key = |rng: &mut SplitMix64| rng.next_u64() >> (64 - bits) >> rng.below(bits);
            let mut model: BTreeMap<u64, u64> = (0..rng.below(400)).map(|i| (key(&mut rng), i)).collect();
            let mut tree = ReferenceAfli::load(model.clone().into_iter().collect(), Some(1 + seed as usize % 6));
            for i in 0..600 {
                let key = key(&mut rng);
                match rng.below(4) {
                    0 => assert_eq!(tree.remove(&key), model.remove(&key)),
                    1 => assert_eq!(tree.get(&key), model.get(&key)),
                    _ => assert_eq!(tree.insert(key, i), model.insert(key, i)),
                }
                assert_eq!(tree.len(), model.len());
            }
            assert_eq!(tree.pairs(), model.into_iter().collect::<Vec<_>>());
        }
    }
}
