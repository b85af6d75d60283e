//! [`MonotoneMap`] does what `BTreeMap` does, ranges included.

use std::collections::BTreeMap;
use std::ops::Bound;

use kindling_learned_index::data::{KeySet, Keys, SplitMix64};
use kindling_learned_index::{Key, MonotoneMap};

fn exercise<K: Key>(pool: &[K], steps: usize, operations: usize) {
    let mut rng = SplitMix64::new(9);
    let mut model: BTreeMap<K, u64> = pool.iter().copied().filter(|_| rng.below(2) == 0).zip(0..).collect();
    let mut map = MonotoneMap::from_sorted(model.clone(), steps).unwrap();
    let pick = |rng: &mut SplitMix64| pool[rng.below(pool.len() as u64) as usize];
    for i in 0..operations {
        let key = pick(&mut rng);
        match rng.below(8) {
            0..3 => assert_eq!(map.insert(key, i as u64), model.insert(key, i as u64)),
            3 | 4 => assert_eq!(map.remove(&key), model.remove(&key)),
            5 => {
                let (from, to) = (key.min(pool[i % pool.len()]), key.max(pool[i % pool.len()]));
                assert!(map.range(from..to).take(50).eq(model.range(from..to).take(50)));
                assert!(map.range(from..=to).rev().take(50).eq(model.range(from..=to).rev().take(50)));
                let behind = (Bound::Excluded(from), Bound::Unbounded);
                assert!(map.range_mut(behind).take(5).eq(model.range_mut(behind).take(5)));
                if i % 16 == 0 {
                    assert_eq!(map.rank(&key), model.range(..key).count());
                }
            }
            _ => {
                assert_eq!(map.get(&key), model.get(&key));
                assert_eq!(map.get_mut(&key), model.get_mut(&key));
            }
        }
        if i % 1000 == 0 {
            map.adapt();
        }
    }
    let mut found = Vec::new();
    for keys in pool.chunks(300).take(20) {
        map.get_batch(keys, &mut found);
        assert!(found.iter().copied().eq(keys.iter().map(|key| model.get(key))));
    }
    assert!(map.iter().eq(&model) && map.len() == model.len());
    assert_eq!(map.into_sorted(), model.into_iter().collect::<Vec<_>>());
}

#[test]
fn all_sets_with_ranges() {
    let (n, operations) = if cfg!(miri) { (60, 60) } else { (10_000, 20_000) };
    for set in KeySet::ALL {
        match set.generate(n, 42) {
            Keys::U64(keys) => exercise(&keys, 64, operations),
            Keys::F64(keys) => exercise(&keys, 7, operations),
        }
        if cfg!(miri) {
            return;
        }
    }
}

#[test]
fn keys_beyond_those_of_the_fit() {
    let n = if cfg!(miri) { 50 } else { 5000u64 };
    let middle = (1 << 40..).take(n as usize).map(|key| (key, key));
    let mut map = MonotoneMap::from_sorted(middle, 16).unwrap();
    // Descending and ascending, far and near; a place of their own each.
    for i in 1..n {
        map.insert((1 << 40) - i * i, i);
        map.insert((1 << 40) + n + i * i, i);
    }
    assert_eq!(map.len() as u64, 3 * n - 2);
    assert!(map.iter().map(|(key, _)| *key).is_sorted_by(|a, b| a < b));
    assert!(map.shape().mean_depth() < 8.0, "{:?}", map.shape());
    // The flow goes on beyond its keys as evenly as these lie there.
    map.adapt();
    assert_eq!(map.range(..1 << 40).count() as u64, n - 1);
}

#[test]
fn few_keys() {
    let mut map = MonotoneMap::<u64, u8>::from_sorted([], 8).unwrap();
    assert!(map.is_empty() && map.get(&3).is_none() && map.flow().is_none() && !map.adapt());
    assert_eq!((map.insert(5, 1), map.insert(0, 2), map.insert(u64::MAX, 3)), (None, None, None));
    assert!(map.iter().eq([(&0, &2), (&5, &1), (&u64::MAX, &3)]) && map.adapt());
    assert!(map.range(1..).eq([(&5, &1), (&u64::MAX, &3)]));
    exercise(&[5u64, u64::MAX], 3, 40);
    assert!(MonotoneMap::from_sorted([(1u64, ())], 0).is_err());
    assert!(MonotoneMap::from_sorted([(2u64, ()), (1, ())], 4).is_err());
}

#[test]
fn a_stream_that_drifts_is_noticed() {
    if cfg!(miri) {
        return;
    }
    let Keys::U64(near) = KeySet::named("lognormal").unwrap().generate(30_000, 42) else { panic!("integers") };
    let mut map = MonotoneMap::from_sorted(near.iter().map(|&key| (key, ())), 64).unwrap();
    assert!(!map.adapt());
    // Far away and crowded.
    let far = near[near.len() - 1] * 1000;
    let mut adapted = false;
    for i in 0..60_000 {
        map.insert(far + i * i % 100_003, ());
        adapted |= i % 256 == 0 && map.adapt();
    }
    assert!(adapted && near.iter().all(|key| map.contains_key(key)));
    assert_eq!(map.range(far..).next().map(|(key, ())| *key), Some(far));
}

#[test]
fn a_stored_map_is_the_same_map_with_the_same_flow() {
    let n = if cfg!(miri) { 60 } else { 5000 };
    let Keys::U64(keys) = KeySet::named("lognormal").unwrap().generate(n, 42) else { panic!("integers") };
    let mut map = MonotoneMap::from_sorted(keys.iter().copied().zip(0u64..), 32).unwrap();
    map.insert(keys[0] / 2, 7);
    map.remove(&keys[9]);
    let text = serde_json::to_string(&map).unwrap();
    let mut back: MonotoneMap<u64, u64> = serde_json::from_str(&text).unwrap();
    assert!(map.flow().is_some() && back.flow() == map.flow());
    assert_eq!(serde_json::to_string(&back).unwrap(), text);
    // Keys before and behind those that the flow was fitted to go to the same places.
    for key in [0, u64::MAX] {
        assert_eq!((back.insert(key, 3), map.insert(key, 3)), (None, None));
    }
    assert!(back.range(keys[0] / 2..=keys[9]).eq(map.range(keys[0] / 2..=keys[9])));
    assert_eq!(back.into_sorted(), map.into_sorted());
}

#[test]
fn stored_maps_without_a_flow_and_broken_ones() {
    let empty = MonotoneMap::<u64, u64>::from_sorted([], 8).unwrap();
    let text = serde_json::to_string(&empty).unwrap();
    let mut back: MonotoneMap<u64, u64> = serde_json::from_str(&text).unwrap();
    assert!(back.is_empty() && back.insert(5, 1).is_none() && back.iter().eq([(&5, &1)]));
    let error = |text: &str| serde_json::from_str::<MonotoneMap<u64, u64>>(text).err().unwrap().to_string();
    assert!(error(&text.replace("\"steps\":8", "\"steps\":0")).contains("at least one step"));
    // A flow whose points do not ascend would put keys out of order.
    let map = MonotoneMap::from_sorted((0..100u64).map(|i| (i * i, i)), 3).unwrap();
    let mut value = serde_json::to_value(&map).unwrap();
    value["flow"]["points"][1][1] = serde_json::json!(9.0);
    assert!(error(&value.to_string()).contains("its points ascend"));
    value["flow"]["points"] = serde_json::json!([[0.0, 0.0]]);
    assert!(error(&value.to_string()).contains("1 points"));
    value["flow"]["range"] = serde_json::json!(0.0);
    assert!(error(&value.to_string()).contains("a range of 0"));
}
