//! Measures the structures of this crate, and `pgm-extra` of the crate of this name: `bench KEYS N [STRUCTURE,… [MIX,…]]`.

use std::hint::black_box;
use std::time::Instant;

use kindling_learned_index::data::{KeySet, Keys, SplitMix64};
use kindling_learned_index::measure::{Mix, STRUCTURES, run};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |i: usize| arguments.get(i).map(String::as_str);
    let (Some(sets), Some(n)) = (word(0), word(1).and_then(|n| n.parse().ok())) else {
        return eprintln!("bench KEYS N [STRUCTURE,… [MIX,…]]");
    };
    let structures: Vec<&str> = word(2).map_or(STRUCTURES.to_vec(), |list| list.split(',').collect());
    let mixes: Vec<Mix> = word(3).map_or(Mix::ALL.to_vec(), |list| list.split(',').filter_map(Mix::parse).collect());
    for name in sets.split(',') {
        let Some(set) = KeySet::named(name) else { return eprintln!("no key set `{name}`") };
        let keys = set.generate(n, 42);
        run(&keys, &structures, &mixes, |row| println!("{name:10} {n:9} {}", serde_json::json!(row)));
        if let (Keys::U64(keys), true) = (&keys, structures.contains(&"pgm-extra")) {
            println!("{name:10} {n:9} {}", pgm_extra(keys));
        }
    }
}

/// Look-ups one by one in a map of `pgm-extra`, measured as [`run`] does. Its window can lie beside the key: how many keys
/// it does not find is a column of its own.
fn pgm_extra(keys: &[u64]) -> serde_json::Value {
    let begin = Instant::now();
    let map = match pgm_extra::Map::from_sorted_unique(keys.iter().copied().zip(0u64..).collect(), 32, 4) {
        Ok(map) => map,
        Err(error) => return serde_json::json!({"structure": "pgm-extra", "error": error.to_string()}),
    };
    let build_s = begin.elapsed().as_secs_f64();
    let missed = keys.iter().filter(|key| map.get(key).is_none()).count();
    let mut rng = SplitMix64::new(44);
    let reads: Vec<u64> = (0..1_000_000).map(|_| keys[rng.below(keys.len() as u64) as usize]).collect();
    let slice = |reads: &[u64]| {
        let begin = Instant::now();
        black_box(reads.iter().filter_map(|key| map.get(key)).fold(0u64, |sum, value| sum.wrapping_add(*value)));
        begin.elapsed().as_nanos() as f64 / reads.len() as f64
    };
    let mut times: Vec<f64> = (0..3).flat_map(|_| reads.chunks_exact(20_000)).map(slice).collect();
    times.sort_unstable_by(f64::total_cmp);
    serde_json::json!({
        "structure": "pgm-extra", "mix": "get", "ns_per_op": times[times.len() / 2],
        "best_ns": times[times.len() / 20], "missed": missed, "build_s": build_s,
    })
}
