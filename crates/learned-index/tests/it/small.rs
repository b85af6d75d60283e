//! Maps of a few hundred pairs that own memory, small enough for Miri (`cargo miri test -p kindling-learned-index --test it small`): every kind of node,
//! pairs of every size, removal down to nothing, and the order of a fresh map afterwards.

use std::collections::BTreeMap;

use kindling_core::OrderedIndex;
use kindling_learned_index::{LearnedMap, NflConfig, NflMap};

/// Pseudo-random numbers.
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Keys made of random numbers: spread evenly, over many orders of magnitude, in one place, in eight far places.
const KINDS: [fn(u64) -> u64; 4] =
    [|n| n >> 40, |n| (n >> 50) << (n & 31), |n| 1_000_000 + (n & 255), |n| (n & 7) << 60 | (n >> 20 & 63)];

fn check(kind: fn(u64) -> u64, loaded: usize, operations: usize) {
    let mut next = numbers(88_172_645_463_325_252);
    let mut model: BTreeMap<u64, String> = (0..loaded).map(|_| next()).map(|n| (kind(n), n.to_string())).collect();
    let mut map: LearnedMap<u64, String> = model.clone().into_iter().collect();
    for i in 0..operations {
        let (n, key) = (next() >> 3 & 7, kind(next()));
        match n {
            0..=3 => assert_eq!(map.insert(key, i.to_string()), model.insert(key, i.to_string())),
            4 | 5 => assert_eq!(map.remove(&key), model.remove(&key)),
            6 => assert_eq!(map.get(&key), model.get(&key)),
            _ => assert!(map.range(key..).take(5).eq(model.range(key..).take(5))),
        }
    }
    assert!(map.iter().eq(&model) && map.iter().rev().eq(model.iter().rev()));
    model.keys().for_each(|key| assert!(map.remove(key).is_some()));
    assert!(map.is_empty() && map.iter().next().is_none());
    model.keys().for_each(|key| assert!(map.insert(*key, String::new()).is_none()));
    let copy = map.clone();
    drop(map);
    assert!(copy.keys().eq(model.keys()));
}

#[test]
fn pairs_with_memory_of_their_own_come_and_go() {
    KINDS.into_iter().for_each(|kind| check(kind, 250, 400));
}

#[test]
fn a_map_with_fans_is_the_same_map() {
    KINDS.into_iter().take(2).for_each(|kind| check(kind, 3000, 200));
}

#[test]
fn many_pairs_are_visited_in_order() {
    for kind in KINDS {
        let mut next = numbers(2_463_534_242);
        let mut map: LearnedMap<u64, String> = (0..200).map(|i| (kind(next()), format!("{i}"))).collect();
        (0..60).for_each(|i| _ = map.insert(kind(next()), format!("{i} later")));
        map.iter_mut().for_each(|(key, value)| value.push_str(&key.to_string()));
        let pairs: Vec<(u64, String)> = map.iter().map(|(key, value)| (*key, value.clone())).collect();
        assert!(pairs.iter().all(|(key, value)| value.ends_with(&key.to_string()) && map.get(key) == Some(value)));
        for at in (0..pairs.len()).step_by(pairs.len() / 4) {
            let (from, to) = (pairs[at].0, pairs[(at + 50).min(pairs.len() - 1)].0);
            assert_eq!(map.range(from..=to).fold(0, |n, _| n + 1), pairs.len().min(at + 51) - at);
            let mut seen = Vec::new();
            map.scan(&from, 30, &mut |key, value| seen.push((*key, value.clone())));
            assert_eq!(seen, pairs[at..pairs.len().min(at + 30)]);
        }
    }
}

#[test]
fn keys_far_behind_the_last_and_pairs_of_other_sizes() {
    let mut far: LearnedMap<u64, u8> = (0..100).map(|i| (i, 0)).collect();
    for i in 0..300 {
        far.insert((1 << 50) | (i * i), 1);
        far.insert(200 + i % 40, 2);
    }
    (0..300).step_by(2).for_each(|i: u64| assert_eq!(far.remove(&((1 << 50) | (i * i))), Some(1)));
    assert_eq!(far.len(), 100 + 40 + 150);
    let mut wide: LearnedMap<u32, [u64; 9]> = (0..60).map(|i| (i * i, [1; 9])).collect();
    let mut empty: LearnedMap<i64, ()> = (0..60).map(|i| (i * i - 50, ())).collect();
    let (mut wide_model, mut empty_model): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (wide.iter().map(|(k, v)| (*k, *v)).collect(), empty.iter().map(|(k, v)| (*k, *v)).collect());
    for i in 0..150 {
        assert_eq!(wide.insert(i * 7 % 900, [2; 9]), wide_model.insert(i * 7 % 900, [2; 9]));
        assert_eq!(wide.remove(&(i * 3)), wide_model.remove(&(i * 3)));
        let i = i64::from(i);
        assert_eq!(empty.insert(i * 7 % 900, ()), empty_model.insert(i * 7 % 900, ()));
        assert_eq!(empty.remove(&(i * 3)), empty_model.remove(&(i * 3)));
    }
    assert!(wide.iter().eq(&wide_model) && empty.iter().eq(&empty_model));
}

#[test]
fn a_map_laid_out_by_a_flow_answers_for_every_key() {
    let pairs: Vec<(u64, String)> = (0..150).map(|i| (i * i * i, i.to_string())).collect();
    let mut config = NflConfig { force: Some(true), ..NflConfig::default() };
    config.train.epochs = 1;
    let mut map = NflMap::from_sorted(pairs.clone(), &config).unwrap();
    assert!(map.is_folded());
    (0..150).for_each(|i| {
        assert_eq!(map.insert(i * 5 + 2, "new".into()).is_some(), pairs.iter().any(|p| p.0 == i * 5 + 2))
    });
    for (key, value) in &pairs {
        assert!(map.get(key) == Some(value) || (key % 5 == 2 && map.get(key).is_some_and(|v| v == "new")));
    }
}
