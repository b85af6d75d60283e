//! scratch
use std::time::Instant;
use std::collections::BTreeMap;
use kindling_learned_index::data::*;
use kindling_learned_index::*;
use std::hint::black_box;
fn slices(queries: usize, mut f: impl FnMut(std::ops::Range<usize>)) -> (f64, f64) {
    let mut times = vec![];
    for _ in 0..6 { for s in 0..queries/20000 { let t = Instant::now(); f(s*20000..(s+1)*20000); times.push(t.elapsed().as_secs_f64()*1e9/20000.); } }
    times.sort_by(f64::total_cmp); (times[times.len()/20], times[times.len()/2])
}
fn run<K: Key>(name: &str, keys: &[K], btree: bool) {
    let n = keys.len();
    let pairs: Vec<(K, u64)> = keys.iter().copied().zip(0..).collect();
    let mut t = Instant::now();
    let mut build = f64::MAX;
    let mut map = LearnedMap::new();
    for _ in 0..3 { let p = pairs.clone(); map.clear(); t = Instant::now(); map = LearnedMap::from_sorted(p).unwrap(); build = build.min(t.elapsed().as_secs_f64()); }
    let mut rng = SplitMix64::new(44);
    let m = 1_000_000;
    let queries: Vec<K> = (0..m).map(|_| keys[rng.below(n as u64) as usize]).collect();
    let mut sum = 0u64;
    let get = slices(m, |r| for q in &queries[r] { sum = sum.wrapping_add(*map.get(q).unwrap()); });
    let mut out = vec![];
    let batch = slices(m, |r| for q in queries[r].chunks(256) { map.get_batch(q, &mut out); for v in &out { sum = sum.wrapping_add(*v.unwrap()); } });
    let shape = map.shape();
    print!("{name:11} build {build:.2} get {:5.1} ({:5.1}) batch {:5.1} ({:5.1}) depth {:.2} models {} dense {} bytes {:.1}", get.0, get.1, batch.0, batch.1, shape.mean_depth(), shape.model_nodes, shape.dense_nodes, shape.total_bytes as f64 / n as f64);
    if btree {
        drop(map);
        let tree: BTreeMap<K, u64> = pairs.iter().copied().collect();
        let get = slices(m, |r| for q in &queries[r] { sum = sum.wrapping_add(*tree.get(q).unwrap()); });
        print!(" btree {:.1} ({:.1})", get.0, get.1);
    }
    println!(); let _ = t;
    black_box(sum);
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
