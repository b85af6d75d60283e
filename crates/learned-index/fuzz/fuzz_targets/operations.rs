//! Any bytes as a stream of operations: the map does what a `BTreeMap` does.
#![no_main]

use std::collections::BTreeMap;

use kindling_learned_index::LearnedMap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&scale, bytes)) = bytes.split_first() else { return };
    let (mut map, mut model) = (LearnedMap::new(), BTreeMap::new());
    for (i, step) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let [operation, a, b, c] = *step;
        // Clusters, and clusters of clusters.
        let key = (u64::from(a) << (scale % 57)) + (u64::from(b) << (scale % 23)) + u64::from(c);
        match operation % 8 {
            0..4 => assert_eq!(map.insert(key, i), model.insert(key, i)),
            4 => assert_eq!(map.remove(&key), model.remove(&key)),
            5 => assert_eq!(map.get(&key), model.get(&key)),
            6 => assert!(map.range(key..).take(20).eq(model.range(key..).take(20))),
            // A run: what one insert at a time seldom fills.
            _ => {
                let run: Vec<(u64, usize)> = (0..u64::from(c) * 4).map(|j| (key.wrapping_add(j * u64::from(b)), i)).collect();
                map.insert_batch(&run);
                model.extend(run);
            }
        }
    }
    assert_eq!(map.len(), model.len());
    assert!(map.iter().eq(&model) && map.iter().rev().eq(model.iter().rev()));
});
