//! Indexes over a million keys: look-ups one by one and in batches, scans, loading.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kindling_core::{OrderedIndex, PointIndex};
use kindling_learned_index::baseline::{Eytzinger, PgmMap, SortedArray};
use kindling_learned_index::data::{KeySet, Keys, SplitMix64};
use kindling_learned_index::{LearnedMap, NflConfig, NflMap};

const N: usize = 1_000_000;
const READS: usize = 1024;

fn keys(name: &str) -> Vec<u64> {
    match KeySet::named(name).map(|set| set.generate(N, 42)) {
        Some(Keys::U64(keys)) => keys,
        _ => panic!("a set of integers"),
    }
}

fn look_ups(criterion: &mut Criterion) {
    for name in ["uniform", "lognormal", "osm"] {
        let keys = keys(name);
        let pairs: Vec<(u64, u64)> = keys.iter().copied().zip(0..).collect();
        let mut rng = SplitMix64::new(44);
        let all_reads: Vec<u64> = (0..1 << 20).map(|_| keys[rng.below(N as u64) as usize]).collect();
        let learned = LearnedMap::from_sorted(pairs.clone()).expect("ascending");
        let nfl = NflMap::from_sorted(pairs.clone(), &NflConfig::default()).expect("ascending");
        let btree: BTreeMap<u64, u64> = pairs.iter().copied().collect();
        let sorted = SortedArray::from_ascending(pairs.clone());
        let eytzinger = Eytzinger::from_ascending(pairs.clone());
        let pgm = PgmMap::from_ascending(pairs.clone(), 32);
        let indexes: [(&str, &dyn PointIndex<u64, u64>); 6] = [
            ("afli", &learned),
            ("nfl", &nfl),
            ("btree", &btree),
            ("sorted", &sorted),
            ("eytzinger", &eytzinger),
            ("pgm", &pgm),
        ];
        let mut group = criterion.benchmark_group(format!("index/{name}"));
        group.throughput(Throughput::Elements(READS as u64));
        group.sample_size(20);
        for (index_name, index) in indexes {
            let mut reads = all_reads.chunks_exact(READS).cycle();
            group.bench_function(format!("get/{index_name}"), |bencher| {
                bencher.iter(|| {
                    let reads = reads.next().expect("a cycle");
                    reads.iter().fold(0u64, |sum, key| sum.wrapping_add(*index.get(key).expect("there")))
                });
            });
            let mut reads = all_reads.chunks_exact(READS).cycle();
            group.bench_function(format!("batch/{index_name}"), |bencher| {
                bencher.iter(|| {
                    let mut found = Vec::with_capacity(READS);
                    index.get_batch(reads.next().expect("a cycle"), &mut found);
                    black_box(found.len())
                });
            });
        }
        let theirs = pgm_extra::Map::from_sorted_unique(pairs.clone(), 32, 4);
        if let Ok(theirs) = theirs {
            // Its window can lie beside the key: how many keys it does not find stands in the row's name.
            let missed = keys.iter().filter(|key| theirs.get(key).is_none()).count();
            let row =
                if missed == 0 { "get/pgm-extra".to_string() } else { format!("get/pgm-extra ({missed} keys missed)") };
            let mut reads = all_reads.chunks_exact(READS).cycle();
            group.bench_function(row, |bencher| {
                bencher.iter(|| {
                    let reads = reads.next().expect("a cycle");
                    reads.iter().fold(0u64, |sum, key| sum.wrapping_add(theirs.get(key).copied().unwrap_or(0)))
                });
            });
        }
        let scanned: [(&str, &dyn OrderedIndex<u64, u64>); 2] = [("afli", &learned), ("btree", &btree)];
        for (index_name, index) in scanned {
            let mut reads = all_reads.iter().cycle();
            group.bench_function(format!("scan 100/{index_name}"), |bencher| {
                bencher.iter(|| {
                    let mut sum = 0u64;
                    index.scan(reads.next().expect("a cycle"), 100, &mut |_, value| sum = sum.wrapping_add(*value));
                    sum
                });
            });
        }
        group.bench_function("load/afli", |bencher| {
            bencher.iter_batched(|| pairs.clone(), LearnedMap::from_sorted, BatchSize::LargeInput);
        });
        group.finish();
    }
}

criterion_group!(benches, look_ups);
criterion_main!(benches);
