//! Readers beside a writer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kindling_learned_index::data::SplitMix64;
use kindling_learned_index::{LearnedMap, SharedMap};

const KEYS: u64 = if cfg!(miri) { 60 } else { 40_000 };
const UPDATES: u64 = if cfg!(miri) { 8 } else { 300 };

/// Every update keeps the sum of all values; a reader that saw half of one would find another sum.
#[test]
fn readers_see_all_of_an_update_or_nothing() {
    let map: LearnedMap<u64, i64> = (0..KEYS).map(|i| (i * 3, 0)).collect();
    let map = SharedMap::new(map);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|seed| {
                let (map, done) = (&map, &done);
                scope.spawn(move || {
                    let mut rng = SplitMix64::new(seed);
                    let mut looks = 0;
                    while !done.load(Ordering::Acquire) || looks == 0 {
                        let snapshot = map.snapshot();
                        assert_eq!(snapshot.iter().map(|pair| pair.1).sum::<i64>(), 0);
                        assert_eq!(snapshot.iter().count(), snapshot.len());
                        let from = rng.below(KEYS * 3);
                        assert!(snapshot.range_from(&from).take(20).all(|pair| *pair.0 >= from));
                        looks += 1;
                    }
                })
            })
            .collect();
        let mut rng = SplitMix64::new(9);
        for i in 0..UPDATES {
            map.update(|writer| {
                for _ in 0..20 {
                    let (a, b) = (rng.below(KEYS * 3), rng.below(KEYS * 3));
                    let amount = i as i64;
                    let x = writer.get(&a).copied().unwrap_or(0);
                    writer.insert(a, x + amount);
                    let y = writer.get(&b).copied().unwrap_or(0);
                    writer.insert(b, y - amount);
                }
            });
        }
        done.store(true, Ordering::Release);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn a_shared_map_is_a_map() {
    let mut model: BTreeMap<u64, u64> = (0..KEYS).map(|i| (i, i)).collect();
    let map = SharedMap::new(model.iter().map(|(k, v)| (*k, *v)).collect());
    let mut rng = SplitMix64::new(1);
    for round in 0..UPDATES {
        let before = map.snapshot();
        let old = model.clone();
        map.update(|writer| {
            for _ in 0..KEYS / 10 {
                let key = rng.below(KEYS * 4);
                if rng.below(3) == 0 {
                    assert_eq!(writer.remove(&key), model.remove(&key));
                } else {
                    assert_eq!(writer.insert(key, round), model.insert(key, round));
                }
            }
        });
        if round % 50 == 0 || cfg!(miri) {
            assert!(before.iter().eq(&old));
            assert!(map.snapshot().iter().eq(&model));
            assert!(map.snapshot().range_from(&KEYS).eq(model.range(KEYS..)));
        }
        assert_eq!(map.snapshot().len(), model.len());
    }
}

#[test]
fn a_writer_that_panics_changes_nothing() {
    let map = SharedMap::new((0..100u64).map(|i| (i, i)).collect());
    let failed = thread::scope(|scope| {
        let update = || {
            map.update(|writer| {
                writer.insert(5, 500);
                panic!("on purpose");
            })
        };
        scope.spawn(update).join().is_err()
    });
    assert!(failed);
    assert_eq!(map.snapshot().get(&5), Some(&5));
    map.update(|writer| writer.insert(5, 6));
    assert_eq!(map.snapshot().get(&5), Some(&6));
}
