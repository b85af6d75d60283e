//! Measures the structures of this crate: `bench KEYS N [STRUCTURE,… [MIX,…]]`.

use kindling_learned_index::data::KeySet;
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
    }
}
