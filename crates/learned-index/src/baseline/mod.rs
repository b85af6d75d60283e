//! What the maps of this crate are measured against, behind the same traits.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`sorted`] | a sorted array and binary search |
//! | [`eytzinger`] | the array in the order of a breadth-first walk |
//! | [`btree`] | the standard library's `BTreeMap` |
//! | [`pgm`] | the optimal PGM-index over a sorted array |
//! | [`dynamic_pgm`] | the same for changing keys, by runs that double |
//! | [`radix_spline`] | a spline through ranks, found by key prefix |

pub mod btree;
pub mod dynamic_pgm;
pub mod eytzinger;
pub mod pgm;
pub mod radix_spline;
pub mod sorted;

pub use dynamic_pgm::DynamicPgm;
pub use eytzinger::Eytzinger;
pub use pgm::PgmMap;
pub use radix_spline::RadixSpline;
pub use sorted::SortedArray;

use std::hint::select_unpredictable;

/// The first position of `keys` that holds no smaller key; without branches on keys.
pub fn lower_bound<K: Ord>(keys: &[K], key: &K) -> usize {
    let (mut at, mut size) = (0, keys.len());
    while size > 1 {
        let half = size / 2;
        at = select_unpredictable(keys[at + half - 1] < *key, at + half, at);
        size -= half;
    }
    at + usize::from(keys.get(at).is_some_and(|own| own < key))
}

/// Visits up to `limit` pairs from position `at` on.
fn visit_from<K, V>(keys: &[K], values: &[V], at: usize, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize {
    let end = keys.len().min(at.saturating_add(limit));
    keys[at..end].iter().zip(&values[at..end]).for_each(|(key, value)| visit(key, value));
    end - at
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kindling_core::{IndexMut, OrderedIndex, PointIndex};

    use super::*;
    use crate::baseline::pgm::Exact;
    use crate::data::{KeySet, Keys, SplitMix64};
    use crate::key::{F64, Key};

    fn reads<K: Key>(index: &dyn PointIndex<K, u64>, model: &BTreeMap<K, u64>, probes: &[K]) {
        assert_eq!(index.len(), model.len());
        let mut found = Vec::new();
        index.get_batch(probes, &mut found);
        for (probe, batched) in probes.iter().zip(found) {
            assert_eq!(index.get(probe), model.get(probe), "{probe:?}");
            assert_eq!(batched, model.get(probe));
        }
        assert!(index.bytes() >= model.len() * 16);
    }

    fn scans<K: Key>(index: &dyn OrderedIndex<K, u64>, model: &BTreeMap<K, u64>, probes: &[K]) {
        for probe in probes.iter().step_by(7) {
            let mut found = Vec::new();
            let n = index.scan(probe, 10, &mut |key, value| found.push((*key, *value)));
            let expected: Vec<(K, u64)> = model.range(*probe..).take(10).map(|(k, v)| (*k, *v)).collect();
            assert_eq!((n, found), (expected.len(), expected), "{probe:?}");
        }
    }

    fn all<K: Exact>(keys: &[K], probes: &[K]) {
        let pairs: Vec<(K, u64)> = keys.iter().copied().zip(0..).collect();
        let model: BTreeMap<K, u64> = pairs.iter().copied().collect();
        let ordered: [Box<dyn OrderedIndex<K, u64>>; 5] = [
            Box::new(SortedArray::from_ascending(pairs.clone())),
            Box::new(PgmMap::from_ascending(pairs.clone(), 1)),
            Box::new(PgmMap::from_ascending(pairs.clone(), 32)),
            Box::new(DynamicPgm::from_ascending(pairs.clone())),
            Box::new(model.clone()),
        ];
        for index in &ordered {
            reads(index.as_ref() as &dyn PointIndex<K, u64>, &model, probes);
            scans(index.as_ref(), &model, probes);
        }
        reads(&Eytzinger::from_ascending(pairs), &model, probes);
    }

    #[test]
    fn every_baseline_answers_like_a_btreemap() {
        for set in KeySet::ALL {
            match set.generate(3000, 42) {
                Keys::U64(keys) => {
                    let probes: Vec<u64> =
                        keys.iter().flat_map(|&key| [key, key - 1, key + 1]).chain([0, u64::MAX]).collect();
                    all(&keys, &probes);
                    let pairs: Vec<(u64, u64)> = keys.iter().copied().zip(0..).collect();
                    let model: BTreeMap<u64, u64> = pairs.iter().copied().collect();
                    let spline = RadixSpline::from_ascending(pairs, 18, 32);
                    reads(&spline, &model, &probes);
                    scans(&spline, &model, &probes);
                }
                Keys::F64(keys) => {
                    let around = |key: &F64| [key.get().next_down(), key.get(), key.get().next_up()];
                    let probes: Vec<F64> = keys.iter().flat_map(around).filter_map(|x| F64::new(x).ok()).collect();
                    all(&keys, &probes);
                }
            }
        }
        all::<u64>(&[], &[1, 2]);
        all::<u64>(&[7], &[6, 7, 8]);
        all::<u64>(&[0, u64::MAX], &[0, 1, u64::MAX]);
    }

    #[test]
    fn the_dynamic_index_follows_any_stream() {
        for seed in 0..10 {
            let mut rng = SplitMix64::new(seed);
            let mut model: BTreeMap<u64, u64> = (0..rng.below(2000)).map(|i| (rng.below(4000), i)).collect();
            let mut index = DynamicPgm::from_ascending(model.clone().into_iter().collect());
            for i in 0..20_000 {
                let key = rng.below(4000);
                if rng.below(3) == 0 {
                    assert_eq!(index.remove(&key), model.remove(&key));
                } else {
                    assert_eq!(index.insert(key, i), model.insert(key, i));
                }
            }
            let probes: Vec<u64> = (0..4000).collect();
            reads(&index, &model, &probes);
            scans(&index, &model, &probes);
        }
    }
}
