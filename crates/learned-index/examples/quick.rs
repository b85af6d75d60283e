//! scratch
use std::time::Instant;
use std::collections::BTreeMap;
use kindling_learned_index::data::*;
use kindling_learned_index::*;
use std::hint::black_box;

fn run<K: Key>(name: &str, keys: &[K], btree: bool) {
    let n = keys.len();
    let pairs: Vec<(K, u64)> = keys.iter().copied().zip(0..).collect();
    let t = Instant::now();
    let map = LearnedMap::from_sorted(pairs.clone()).unwrap();
    let build = t.elapsed().as_secs_f64();
    let mut rng = SplitMix64::new(44);
    let m = 1_000_000;
    let queries: Vec<K> = (0..m).map(|_| keys[rng.below(n as u64) as usize]).collect();
    let mut best = f64::MAX;
    for _ in 0..12 {
        let t = Instant::now();
        let mut sum = 0u64;
        for q in &queries { sum = sum.wrapping_add(*map.get(q).unwrap()); }
        black_box(sum);
        best = best.min(t.elapsed().as_secs_f64() * 1e9 / m as f64);
    }
    let mut batch = f64::MAX;
    let mut out = Vec::new();
    for _ in 0..12 {
        let t = Instant::now();
        let mut sum = 0u64;
        for q in queries.chunks(256) { map.get_batch(q, &mut out); for v in &out { sum = sum.wrapping_add(*v.unwrap()); } }
        black_box(sum);
        batch = batch.min(t.elapsed().as_secs_f64() * 1e9 / m as f64);
    }
    let t = Instant::now();
    let mut sum = 0u64;
    for q in &queries[..200_000] { for (_, v) in map.range(*q..).take(100) { sum = sum.wrapping_add(*v); } }
    let range = t.elapsed().as_secs_f64() * 1e9 / 200_000.;
    let t = Instant::now();
    for q in &queries[..200_000] { tree_scan(&map, q, &mut sum); }
    let scan = t.elapsed().as_secs_f64() * 1e9 / 200_000.;
    let shape = map.shape();
    // mix: half load, insert other half
    let split = queries::Split::new(n, 43, 45);
    let mut half = LearnedMap::from_sorted(split.load.iter().map(|&i| pairs[i])).unwrap();
    let t = Instant::now();
    for &i in &split.inserts { half.insert(pairs[i].0, pairs[i].1); }
    let ins = t.elapsed().as_secs_f64() * 1e9 / split.inserts.len() as f64;
    let mut best2 = f64::MAX;
    for _ in 0..2 {
        let t = Instant::now();
        for q in &queries { sum = sum.wrapping_add(*half.get(q).unwrap()); }
        best2 = best2.min(t.elapsed().as_secs_f64() * 1e9 / m as f64);
    }
    println!("{name:11} build {build:.2} get {best:5.1} batch {batch:5.1} range100 {range:6.0} scan {scan:6.0} bytes/key {:.1} depth {:.2} models {} dense {} flat {} chunks {} largest {} | insert {ins:.0} get after {best2:.1} bytes {:.1} depth {:.2}", shape.total_bytes as f64 / n as f64, shape.mean_depth(), shape.model_nodes, shape.dense_nodes, shape.flat_nodes, shape.chunks, shape.largest_bucket, half.shape().total_bytes as f64 / n as f64, half.shape().mean_depth());
    drop(half);
    if btree {
        let tree: BTreeMap<K, u64> = pairs.iter().copied().collect();
        let t = Instant::now();
        for q in &queries { sum = sum.wrapping_add(*tree.get(q).unwrap()); }
        let g = t.elapsed().as_secs_f64() * 1e9 / m as f64;
        let t = Instant::now();
        for q in &queries[..200_000] { for (_, v) in tree.range(*q..).take(100) { sum = sum.wrapping_add(*v); } }
        let range = t.elapsed().as_secs_f64() * 1e9 / 200_000.;
        let mut tree: BTreeMap<K, u64> = split.load.iter().map(|&i| pairs[i]).collect();
        let t = Instant::now();
        for &i in &split.inserts { tree.insert(pairs[i].0, pairs[i].1); }
        let ins = t.elapsed().as_secs_f64() * 1e9 / split.inserts.len() as f64;
        println!("  btree get {g:.1} range {range:.0} insert {ins:.0}");
    }
    black_box(sum);
}
fn tree_scan<K: Key>(map: &LearnedMap<K, u64>, q: &K, sum: &mut u64) {
    use kindling_core::OrderedIndex;
    map.scan(q, 100, &mut |_, v| *sum = sum.wrapping_add(*v));
}
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let btree = std::env::args().nth(3).is_some();
    for name in std::env::args().nth(2).unwrap().split(',') {
        match KeySet::named(name).unwrap().generate(n, 42) {
            Keys::U64(k) => run(name, &k, btree),
            Keys::F64(k) => run(name, &k, btree),
        }
    }
}
