//! [`LearnedMap`] does what `BTreeMap` does.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Bound;

use kindling_core::{IndexMut, OrderedIndex};
use kindling_learned_index::data::{KeySet, Keys, SplitMix64};
use kindling_learned_index::{F64, Key, LearnedMap};
use proptest::prelude::*;

/// Both maps, kept equal.
struct Pair<K: Key> {
    map: LearnedMap<K, u64>,
    model: BTreeMap<K, u64>,
}

impl<K: Key> Pair<K> {
    fn load(keys: impl IntoIterator<Item = K>) -> Self {
        let model: BTreeMap<K, u64> = keys.into_iter().zip(0..).collect();
        let map = LearnedMap::from_sorted(model.iter().map(|(&k, &v)| (k, v))).unwrap();
        Self { map, model }
    }

    fn insert(&mut self, key: K, value: u64) {
        assert_eq!(self.map.insert(key, value), self.model.insert(key, value), "insert {key:?}");
    }

    fn remove(&mut self, key: &K) {
        assert_eq!(self.map.remove(key), self.model.remove(key), "remove {key:?}");
    }

    fn get(&mut self, key: &K) {
        assert_eq!(self.map.get(key), self.model.get(key), "get {key:?}");
        assert_eq!(self.map.get_mut(key), self.model.get_mut(key));
        assert_eq!(self.map.contains_key(key), self.model.contains_key(key));
    }

    /// Up to `limit` pairs from both ends of a range.
    fn range(&self, begin: Bound<K>, end: Bound<K>, limit: usize) {
        let ours = self.map.range((begin, end));
        if inverted(&begin, &end) {
            assert_eq!(ours.count(), 0);
            return;
        }
        let theirs = self.model.range((begin, end));
        assert!(ours.clone().take(limit).eq(theirs.clone().take(limit)), "{begin:?} .. {end:?}");
        // Visited together, and from anywhere between.
        let mut rest = ours.clone();
        let skipped = rest.by_ref().take(limit / 2).count();
        let all = rest.fold(Vec::new(), |mut all, pair| {
            all.push(pair);
            all
        });
        assert!(all.into_iter().eq(theirs.clone().skip(skipped)), "{begin:?} .. {end:?} together");
        assert!(ours.rev().take(limit).eq(theirs.rev().take(limit)), "{begin:?} .. {end:?} backwards");
    }

    fn scan(&self, from: &K, limit: usize) {
        let mut ours = Vec::new();
        let count = self.map.scan(from, limit, &mut |key, value| ours.push((*key, *value)));
        let theirs: Vec<(K, u64)> = self.model.range(*from..).take(limit).map(|(k, v)| (*k, *v)).collect();
        assert_eq!((count, ours), (theirs.len(), theirs));
    }

    fn whole(&self) {
        assert_eq!(self.map.len(), self.model.len());
        assert!(self.map.iter().eq(&self.model));
        assert!(self.map.iter().rev().eq(self.model.iter().rev()));
        assert_eq!(self.map.values().sum::<u64>(), self.model.values().sum::<u64>());
        assert_eq!(self.map.iter().size_hint(), (self.model.len(), Some(self.model.len())));
        assert_eq!(self.map.first_key_value(), self.model.first_key_value());
        assert_eq!(self.map.last_key_value(), self.model.last_key_value());
        let keys: Vec<K> = self.model.keys().copied().collect();
        let mut found = Vec::new();
        self.map.get_batch(&keys, &mut found);
        assert!(found.iter().copied().eq(self.model.values().map(Some)));
        for (rank, key) in keys.iter().enumerate().step_by(1 + keys.len() / 20) {
            assert_eq!(self.map.rank(key), rank);
        }
        let shape = self.map.shape();
        assert_eq!(shape.depths.iter().sum::<usize>(), self.model.len());
        assert!(shape.data_bytes + shape.model_bytes <= shape.total_bytes);
    }
}

fn inverted<K: Ord>(begin: &Bound<K>, end: &Bound<K>) -> bool {
    match (begin, end) {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a >= b,
        _ => false,
    }
}

/// A stream of random operations on keys from `pool`.
fn exercise<K: Key>(pool: &[K], operations: usize, seed: u64) {
    let mut rng = SplitMix64::new(seed);
    let mut pair = Pair::load(pool.iter().copied().filter(|_| rng.below(2) == 0));
    pair.whole();
    // Phases that grow and phases that shrink.
    let mut inserts = 6;
    for i in 0..operations {
        let any = |rng: &mut SplitMix64| pool[rng.below(pool.len() as u64) as usize];
        let key = any(&mut rng);
        match rng.below(12) {
            n if n < inserts => pair.insert(key, i as u64),
            6..=8 => pair.get(&key),
            9 if i % 64 == 1 => {
                let new: Vec<(K, u64)> = (0..50).map(|_| any(&mut rng)).zip(1..).collect();
                pair.map.insert_batch(&new);
                pair.model.extend(new);
            }
            9 if i % 16 == 0 => pair.scan(&key, 40),
            10 if i % 16 == 0 => {
                let bound = |rng: &mut SplitMix64| match rng.below(5) {
                    0 => Bound::Unbounded,
                    1 | 2 => Bound::Included(any(rng)),
                    _ => Bound::Excluded(any(rng)),
                };
                let (begin, end) = (bound(&mut rng), bound(&mut rng));
                pair.range(begin, end, 40);
            }
            _ => pair.remove(&key),
        }
        if i % (operations / 8).max(1) == 0 {
            inserts = [2, 6][rng.below(2) as usize];
            pair.whole();
        }
    }
    pair.whole();
    let keys: Vec<K> = pair.model.keys().copied().collect();
    for key in &keys {
        pair.remove(key);
    }
    pair.whole();
    for key in pool {
        pair.insert(*key, 1);
    }
    pair.whole();
}

const OPERATIONS: usize = if cfg!(miri) { 200 } else { 100_000 };
const POOL: usize = if cfg!(miri) { 150 } else { 20_000 };

#[test]
fn a_million_operations_on_all_sets() {
    for set in KeySet::ALL {
        match set.generate(POOL, 42) {
            Keys::U64(keys) => exercise(&keys, OPERATIONS, 1),
            Keys::F64(keys) => exercise(&keys, OPERATIONS, 2),
        }
    }
}

/// Keys made to defeat lines.
fn hostile() -> Vec<Vec<F64>> {
    let real = |keys: Vec<f64>| -> Vec<F64> {
        let mut keys: Vec<F64> = keys.into_iter().filter_map(|x| F64::new(x).ok()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let n = if cfg!(miri) { 80 } else { 600 };
    let ulps = |from: f64| (0..n).map(|i| f64::from_bits(from.to_bits() + i)).collect::<Vec<_>>();
    vec![
        real(ulps(1.0)),
        real(ulps(5e-324)),
        real(ulps(2f64.powi(53))),
        real((0..n as i32).map(|i| 2f64.powi(i - n as i32 / 2)).collect()),
        real((0..n as i32).map(|i| -1.5f64.powi(i)).collect()),
        real(
            [ulps(0.5), vec![1e300, -1e300, f64::MAX, f64::MIN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0]].concat(),
        ),
        real([ulps(1.0), ulps(1e9), ulps(-1e9)].concat()),
        real(vec![3.0]),
        real(vec![3.0, 4.0]),
        real(vec![f64::NEG_INFINITY, f64::INFINITY]),
    ]
}

#[test]
fn hostile_reals() {
    for pool in hostile() {
        exercise(&pool, OPERATIONS / 20, 3);
    }
}

#[test]
fn hostile_integers() {
    let n = if cfg!(miri) { 80 } else { 3000 };
    let powers = (0..64).flat_map(|e| [1u64 << e, (1 << e) + 1, (1u64 << e).wrapping_sub(1)]);
    let pools: Vec<Vec<u64>> = vec![
        powers.collect(),
        (0..n).map(|i| u64::MAX - i).collect(),
        (0..n).map(|i| (1 << 53) + i).collect(),
        (0..n).chain([u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1]).collect(),
        (0..n).map(|i| i * (u64::MAX / n)).collect(),
        (0..n).map(|i| if i % 2 == 0 { i } else { u64::MAX - i }).collect(),
    ];
    for mut pool in pools {
        pool.sort_unstable();
        pool.dedup();
        exercise(&pool, OPERATIONS / 20, 4);
        let signed: Vec<i64> = pool.iter().map(|&key| (key ^ (1 << 63)) as i64).collect();
        exercise(&signed, OPERATIONS / 40, 5);
    }
    exercise(&(0..n as u32).collect::<Vec<_>>(), OPERATIONS / 20, 6);
}

#[test]
fn ascending_and_descending_inserts_stay_shallow() {
    let n = if cfg!(miri) { 2000 } else { 200_000u64 };
    let (mut up, mut down) = (LearnedMap::new(), LearnedMap::new());
    for i in 0..n {
        assert_eq!(up.insert(i, i), None);
        assert_eq!(down.insert(n - i, i), None);
    }
    for map in [up, down] {
        assert_eq!(map.len(), n as usize);
        assert!(map.keys().is_sorted());
        assert!(map.shape().depths.len() <= 9, "{:?}", map.shape());
    }
}

/// A key type whose line is useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lineless(u64);

impl Key for Lineless {
    fn offset_from(self, _: Self) -> f64 {
        0.0
    }

    fn to_f64(self) -> f64 {
        0.0
    }
}

/// A key type that breaks its promises: its offsets neither ascend nor are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lying(u64);

impl Key for Lying {
    fn offset_from(self, base: Self) -> f64 {
        match self.0 % 5 {
            0 => f64::NAN,
            1 => -1e300,
            2 => f64::INFINITY,
            _ => base.0 as f64 - self.0 as f64,
        }
    }

    fn to_f64(self) -> f64 {
        -(self.0 as f64)
    }
}

#[test]
fn keys_without_a_line_work_and_lying_keys_do_no_harm() {
    let n = if cfg!(miri) { 300 } else { 5000 };
    exercise(&(0..n).map(Lineless).collect::<Vec<_>>(), n as usize * 3, 7);
    let mut map: LearnedMap<Lying, String> = (0..n).map(|i| (Lying(i), i.to_string())).collect();
    for i in 0..n {
        map.insert(Lying(i * 7 % n), "again".into());
        map.get(&Lying(i));
        if i % 3 == 0 {
            map.remove(&Lying(i));
        }
    }
    assert!(map.iter().count() > 0);
}

/// Pairs that are visited together are numbered with 16 bits: blocks with more of them.
#[test]
fn long_walks() {
    fn check<K: Key>(keys: impl Iterator<Item = K>, n: usize) {
        let map: LearnedMap<K, usize> = keys.zip(0..).collect();
        let half = *map.keys().nth(n / 2).unwrap();
        assert_eq!(map.values().sum::<usize>(), n * (n - 1) / 2);
        assert!(map.range(half..).fold(n / 2, |next, (_, i)| if *i == next { next + 1 } else { 0 }) == n);
        let mut next = n / 2;
        let count = map.scan(&half, usize::MAX, &mut |_, i| next += usize::from(*i == next));
        assert_eq!((count, next), (n - n / 2, n));
    }
    let n = if cfg!(miri) { 300 } else { 200_000 };
    check(0..n as u64, n);
    check((0..n as u64).map(Lineless), n);
}

#[test]
fn values_are_dropped_once() {
    use std::rc::Rc;
    let value = Rc::new(());
    let n = if cfg!(miri) { 300 } else { 3000 };
    let mut map: LearnedMap<u32, Rc<()>> = (0..n).map(|i| (i * 3, value.clone())).collect();
    for i in 0..n {
        map.insert(i * 2, value.clone());
    }
    for i in 0..n / 2 {
        map.remove(&(i * 3));
    }
    map.retain(|key, _| key % 5 != 0);
    assert_eq!(Rc::strong_count(&value), 1 + map.len());
    let copy = map.clone();
    assert_eq!(Rc::strong_count(&value), 1 + 2 * map.len());
    let mut iter = map.into_iter();
    iter.next();
    iter.next_back();
    drop(iter);
    assert_eq!(Rc::strong_count(&value), 1 + copy.len());
    drop(copy);
    assert_eq!(Rc::strong_count(&value), 1);
}

#[test]
fn the_rest_of_the_interface() {
    let mut map: LearnedMap<u64, u64> = LearnedMap::from([(5, 50), (1, 10), (5, 55), (9, 90)]);
    assert_eq!(format!("{map:?}"), "{1: 10, 5: 55, 9: 90}");
    assert_eq!(map[&5], 55);
    *map.entry(5).or_insert(0) += 1;
    *map.entry(6).or_default() += 2;
    map.entry(9).and_modify(|v| *v = 1).or_insert(3);
    assert_eq!(map.values().copied().collect::<Vec<_>>(), [10, 56, 2, 1]);
    map.values_mut().for_each(|v| *v *= 2);
    for (_, value) in map.range_mut(5..=6) {
        *value += 1;
    }
    assert_eq!(map.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>(), [(1, 20), (5, 113), (6, 5), (9, 2)]);
    assert_eq!((map.count(5..9), map.count(..), map.count(..=5), map.rank(&7)), (2, 4, 2, 3));
    let back: LearnedMap<u64, u64> = serde_json::from_str(&serde_json::to_string(&map).unwrap()).unwrap();
    assert_eq!(back, map);
    let mut right = map.split_off(&6);
    assert_eq!((map.len(), right.len()), (2, 2));
    right.insert(1, 0);
    map.append(&mut right);
    assert_eq!((map.pop_first(), map.pop_last(), map.len(), right.len()), (Some((1, 0)), Some((9, 2)), 2, 0));
    map.extend([(100, 1), (50, 2)]);
    assert_eq!(map.lower_bound(Bound::Excluded(&6)).map(|(k, _)| *k).collect::<Vec<_>>(), [50, 100]);
    assert_eq!(map.upper_bound(Bound::Excluded(&50)).next_back().map(|(k, _)| *k), Some(6));
    assert!(
        LearnedMap::from_sorted([(1u64, ()), (3, ()), (3, ())]).is_err_and(|e| e.to_string().contains("position 2"))
    );
    map.clear();
    assert!(map.is_empty() && map.iter().next().is_none() && map.first_key_value().is_none());
    fn is_send_sync<T: Send + Sync>() {}
    is_send_sync::<LearnedMap<u64, String>>();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 2 } else { 48 }, ..Default::default() })]

    /// Small and large pools, keys close together and far apart.
    #[test]
    fn any_pool_any_stream(bits in 1u32..64, size in 1usize..700, seed: u64) {
        let mut rng = SplitMix64::new(seed);
        let mut pool: Vec<u64> = (0..size).map(|_| rng.next_u64() >> (64 - bits) >> rng.below(u64::from(bits))).collect();
        pool.sort_unstable();
        pool.dedup();
        exercise(&pool, 2000, seed ^ 1);
    }

    /// Reals of all magnitudes.
    #[test]
    fn any_reals(size in 1usize..500, spread in 0i32..300, seed: u64) {
        let mut rng = SplitMix64::new(seed);
        let mut pool: Vec<F64> = (0..size)
            .map(|_| (rng.f64() - 0.5) * 10f64.powi(rng.below(2 * spread as u64 + 1) as i32 - spread))
            .filter_map(|x| F64::new(x).ok())
            .collect();
        pool.sort_unstable();
        pool.dedup();
        exercise(&pool, 2000, seed ^ 2);
    }
}

#[test]
fn trait_objects_work() {
    fn fill(index: &mut dyn IndexMut<u64, u64>) -> usize {
        for i in 0..100 {
            index.insert(i, i);
        }
        index.remove(&3);
        index.len()
    }
    fn debug(value: &impl Debug) -> usize {
        format!("{value:?}").len()
    }
    let mut map = LearnedMap::new();
    assert_eq!(fill(&mut map), 99);
    assert!(debug(&map) > 99);
}
