//! [`NflMap`] does what `BTreeMap` does, with the flow on, off, and chosen.

use std::collections::BTreeMap;

use kindling_learned_index::data::{KeySet, Keys, SplitMix64};
use kindling_learned_index::{Key, NflConfig, NflMap};

fn exercise<K: Key>(pool: &[K], force: Option<bool>, operations: usize) {
    let mut rng = SplitMix64::new(9);
    let mut model: BTreeMap<K, u64> = pool.iter().copied().filter(|_| rng.below(2) == 0).zip(0..).collect();
    let config = NflConfig { force, ..NflConfig::default() };
    let mut map = NflMap::from_sorted(model.clone(), &config).unwrap();
    if let Some(on) = force {
        assert_eq!(map.is_folded(), on && model.len() > 1);
    }
    for i in 0..operations {
        let key = pool[rng.below(pool.len() as u64) as usize];
        match rng.below(8) {
            0..3 => assert_eq!(map.insert(key, i as u64), model.insert(key, i as u64)),
            3 | 4 => assert_eq!(map.remove(&key), model.remove(&key)),
            _ => {
                assert_eq!(map.get(&key), model.get(&key));
                assert_eq!(map.get_mut(&key), model.get_mut(&key));
            }
        }
        if i % 1000 == 0 {
            let new: Vec<(K, u64)> = (0..70).map(|_| pool[rng.below(pool.len() as u64) as usize]).zip(1..).collect();
            map.insert_batch(&new);
            model.extend(new);
            map.adapt();
        }
    }
    let mut found = Vec::new();
    for size in [1, 7, 256, 1000] {
        for keys in pool.chunks(size).take(50) {
            map.get_batch(keys, &mut found);
            assert!(found.iter().copied().eq(keys.iter().map(|key| model.get(key))));
        }
    }
    assert_eq!(map.iter().count(), model.len());
    assert_eq!(map.len(), model.len());
    assert_eq!(map.into_sorted(), model.into_iter().collect::<Vec<_>>());
}

#[test]
fn all_sets_with_the_flow_on_off_and_chosen() {
    let (n, operations) = if cfg!(miri) { (100, 100) } else { (20_000, 20_000) };
    for set in KeySet::ALL {
        for force in [None, Some(true), Some(false)] {
            match set.generate(n, 42) {
                Keys::U64(keys) => exercise(&keys, force, operations),
                Keys::F64(keys) => exercise(&keys, force, operations),
            }
            if cfg!(miri) {
                return;
            }
        }
    }
}

#[test]
fn keys_that_share_a_place() {
    // Beyond 2^53 thousands of keys share one f64.
    let n = if cfg!(miri) { 60 } else { 1500u64 };
    let mut pool: Vec<u64> = (0..n).flat_map(|i| [i, (1 << 62) + i, u64::MAX - i]).collect();
    pool.sort_unstable();
    exercise(&pool, Some(true), n as usize * 4);
    exercise(&[5u64], Some(true), 10);
    exercise(&[5u64, u64::MAX], Some(true), 20);
}

#[test]
fn a_stream_that_drifts_is_noticed() {
    if cfg!(miri) {
        return;
    }
    let near = KeySet::named("lognormal").unwrap().generate(30_000, 42);
    let Keys::U64(near) = near else { panic!("integers") };
    let config = NflConfig { force: Some(true), ..NflConfig::default() };
    let mut map = NflMap::from_sorted(near.iter().map(|&key| (key, ())), &config).unwrap();
    assert!(map.is_folded() && !map.adapt());
    // Far away and crowded.
    let far = near[near.len() - 1] * 1000;
    let mut adapted = false;
    for i in 0..60_000 {
        map.insert(far + i * i % 100_003, ());
        adapted |= i % 256 == 0 && map.adapt();
    }
    assert!(adapted);
    assert!(near.iter().all(|key| map.contains_key(key)));
}

#[test]
fn a_flow_is_left_out_where_ways_are_short() {
    if cfg!(miri) {
        return;
    }
    for name in ["uniform", "lognormal"] {
        let Keys::U64(keys) = KeySet::named(name).unwrap().generate(20_000, 42) else { panic!("integers") };
        let map = NflMap::from_sorted(keys.into_iter().zip(0..), &NflConfig::default()).unwrap();
        assert!(!map.is_folded() && map.switch().is_none() && map.shape().mean_depth() < 2.5, "{name}");
    }
}

#[test]
fn a_stored_map_is_the_same_map_with_the_same_flow() {
    let Keys::U64(keys) = KeySet::named("lognormal").unwrap().generate(5_000, 42) else { panic!("u64 keys") };
    for force in [None, Some(true), Some(false)] {
        let config = NflConfig { force, ..NflConfig::default() };
        let mut map = NflMap::from_sorted(keys.iter().copied().zip(0u64..), &config).unwrap();
        map.insert(keys[0] / 2, 7);
        map.remove(&keys[9]);
        let text = serde_json::to_string(&map).unwrap();
        let mut back: NflMap<u64, u64> = serde_json::from_str(&text).unwrap();
        assert_eq!((back.is_folded(), back.switch(), back.flow()), (map.is_folded(), map.switch(), map.flow()));
        assert_eq!((back.len(), back.get(&(keys[0] / 2)), back.get(&keys[9])), (keys.len(), Some(&7), None));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["config"]["force"],
            serde_json::json!(force)
        );
        back.insert(3, 3);
        map.insert(3, 3);
        assert_eq!(back.into_sorted(), map.into_sorted());
        // A flow that divides by nothing is refused, not used.
        if force == Some(true) {
            let var = text.find("\"var\":").unwrap() + "\"var\":".len();
            let broken = format!("{}0.0{}", &text[..var], &text[var + text[var..].find(',').unwrap()..]);
            let error = serde_json::from_str::<NflMap<u64, u64>>(&broken).err().unwrap();
            assert!(error.to_string().contains("positive scale"), "{error}");
        }
    }
    let empty = NflMap::<u64, u64>::from_sorted([], &NflConfig::default()).unwrap();
    let back: NflMap<u64, u64> = serde_json::from_str(&serde_json::to_string(&empty).unwrap()).unwrap();
    assert!(back.is_empty());
}
