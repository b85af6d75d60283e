//! scratch
use kindling_learned_index::*;
#[inline(never)]
pub fn lookup(map: &LearnedMap<u64, u64>, key: &u64) -> u64 { *map.get(key).unwrap() }
fn main() { let m: LearnedMap<u64,u64> = (0..100000).map(|i| (i,i)).collect(); println!("{}", lookup(&m, &5)); }
