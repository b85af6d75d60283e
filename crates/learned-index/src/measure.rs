//! Speed of every structure on one set of keys.
//!
//! Look-ups and scans are measured on all keys loaded, with uniform reads of keys that are there. Mixes follow the
//! protocol of the NFL paper: half of the keys are loaded, both ends among them, and requests come in batches of 256, some
//! reads (by a Zipf law over the loaded keys, θ = 0.99) and some inserts of the other keys. Times are of this thread, on a
//! clock; percentiles are of single operations, those of every tenth batch of a mix, timed one by one, the clock's own cost
//! included.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use kindling_core::{IndexMut, OrderedIndex, PointIndex};
use serde::Serialize;

use crate::baseline::pgm::Exact;
use crate::baseline::{DynamicPgm, Eytzinger, PgmMap, RadixSpline, SortedArray};
use crate::data::queries::{Split, Zipf};
use crate::data::{Keys, SplitMix64};
use crate::map::LearnedMap;
use crate::nfl::{NflConfig, NflMap};

/// Requests of a batch.
const BATCH: usize = 256;
/// Pairs of a scan.
const SCAN: usize = 100;
/// Look-ups timed together.
const SLICE: usize = 20_000;
/// Operations of one in so many batches are timed one by one.
const APART: usize = 10;
/// Passes over the look-ups.
const PASSES: usize = 3;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Look-ups one by one, all keys loaded.
    Get,
    /// Look-ups in batches, all keys loaded.
    Batch,
    /// Scans of a hundred pairs, all keys loaded.
    Scan,
    /// Reads, in per cent of requests; the others insert. Half of the keys are loaded.
    Reads(u8),
}

impl Mix {
    /// All that are usually measured.
    pub const ALL: [Mix; 7] =
        [Mix::Get, Mix::Batch, Mix::Scan, Mix::Reads(100), Mix::Reads(80), Mix::Reads(20), Mix::Reads(0)];

    /// Reads `get`, `batch`, `scan` or a percentage.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "get" => Some(Mix::Get),
            "batch" => Some(Mix::Batch),
            "scan" => Some(Mix::Scan),
            _ => text.parse().ok().filter(|reads| *reads <= 100).map(Mix::Reads),
        }
    }

    /// What [`Mix::parse`] reads.
    pub fn name(self) -> String {
        match self {
            Mix::Get => "get".into(),
            Mix::Batch => "batch".into(),
            Mix::Scan => "scan".into(),
            Mix::Reads(reads) => reads.to_string(),
        }
    }
}

/// One structure under one mix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the structure.
    pub structure: &'static str,
    /// Name of the mix.
    pub mix: String,
    /// Median nanoseconds of an operation (over slices of the run); of a whole scan.
    pub ns_per_op: f64,
    /// The same of the fastest twentieth of the slices: what the machine gives when others are quiet.
    pub best_ns: f64,
    /// 99th percentile of single operations.
    pub p99_ns: f64,
    /// 99.9th percentile of single operations.
    pub p999_ns: f64,
    /// Bytes of memory per key at the end, keys and values included.
    pub bytes_per_key: f64,
    /// Seconds to load the sorted keys, training and switch test included.
    pub build_s: f64,
    /// Whether a flow was on.
    pub flow: bool,
}

/// Names of the structures; `folded` is `nfl` with the flow on whether it pays or not.
pub const STRUCTURES: [&str; 9] =
    ["afli", "nfl", "folded", "btree", "sorted", "eytzinger", "pgm", "dynamic-pgm", "radix-spline"];

/// Measures `structures` under `mixes`, and tells `done` each row when it is there. The structures that cannot do a mix
/// are left out. Answers are checked.
pub fn run(keys: &Keys, structures: &[&str], mixes: &[Mix], mut done: impl FnMut(Row)) {
    match keys {
        Keys::U64(keys) => {
            let case = Case::new(keys, structures, mixes);
            case.run(&mut done);
            case.read_only("radix-spline", |pairs| RadixSpline::from_ascending(pairs, 18, 32), |_| false, &mut done);
        }
        Keys::F64(keys) => Case::new(keys, structures, mixes).run(&mut done),
    }
}

struct Case<'a, K> {
    keys: &'a [K],
    structures: &'a [&'a str],
    mixes: &'a [Mix],
    reads: Vec<K>,
    split: Split,
    zipf: Option<Zipf>,
}

impl<'a, K: Exact> Case<'a, K> {
    fn new(keys: &'a [K], structures: &'a [&'a str], mixes: &'a [Mix]) -> Self {
        let mut rng = SplitMix64::new(44);
        let reads = (0..1_000_000).map(|_| keys[rng.below(keys.len() as u64) as usize]).collect();
        let mixed = mixes.iter().any(|mix| matches!(mix, Mix::Reads(_)));
        let split = if mixed { Split::new(keys.len(), 43, 45) } else { Split { load: vec![], inserts: vec![] } };
        let zipf = mixed.then(|| Zipf::new(split.load.len(), 0.99));
        Self { keys, structures, mixes, reads, split, zipf }
    }

    fn run(&self, done: &mut impl FnMut(Row)) {
        let learned = |pairs| LearnedMap::from_sorted(pairs).expect("generated keys ascend");
        self.read_only("afli", learned, |_| false, done);
        self.scanned("afli", learned, done);
        self.mixed("afli", learned, |_| false, done);
        let nfl = |pairs| NflMap::from_sorted(pairs, &NflConfig::default()).expect("generated keys ascend");
        self.read_only("nfl", nfl, NflMap::is_folded, done);
        self.mixed("nfl", nfl, NflMap::is_folded, done);
        let always = NflConfig { force: Some(true), ..NflConfig::default() };
        let folded = |pairs| NflMap::from_sorted(pairs, &always).expect("generated keys ascend");
        self.read_only("folded", folded, NflMap::is_folded, done);
        self.mixed("folded", folded, NflMap::is_folded, done);
        let btree = |pairs: Vec<(K, u64)>| pairs.into_iter().collect::<BTreeMap<K, u64>>();
        self.read_only("btree", btree, |_| false, done);
        self.scanned("btree", btree, done);
        self.mixed("btree", btree, |_| false, done);
        self.read_only("sorted", SortedArray::from_ascending, |_| false, done);
        self.scanned("sorted", SortedArray::from_ascending, done);
        self.read_only("eytzinger", Eytzinger::from_ascending, |_| false, done);
        let pgm = |pairs| PgmMap::from_ascending(pairs, 32);
        self.read_only("pgm", pgm, |_| false, done);
        self.scanned("pgm", pgm, done);
        self.read_only("dynamic-pgm", DynamicPgm::from_ascending, |_| false, done);
        self.scanned("dynamic-pgm", DynamicPgm::from_ascending, done);
        self.mixed("dynamic-pgm", DynamicPgm::from_ascending, |_| false, done);
    }

    fn wants(&self, structure: &str, mix: Mix) -> bool {
        self.structures.contains(&structure) && self.mixes.contains(&mix)
    }

    fn load<I>(&self, positions: impl Iterator<Item = usize>, build: impl Fn(Vec<(K, u64)>) -> I) -> (I, f64) {
        let pairs: Vec<(K, u64)> = positions.map(|i| (self.keys[i], i as u64)).collect();
        let begin = Instant::now();
        let index = build(pairs);
        (index, begin.elapsed().as_secs_f64())
    }

    fn read_only<I: PointIndex<K, u64>>(
        &self,
        structure: &'static str,
        build: impl Fn(Vec<(K, u64)>) -> I,
        folded: impl Fn(&I) -> bool,
        done: &mut impl FnMut(Row),
    ) {
        if !self.wants(structure, Mix::Get) && !self.wants(structure, Mix::Batch) {
            return;
        }
        let (index, build_s) = self.load(0..self.keys.len(), build);
        check(&index, self.keys);
        let row = |mix: Mix, times: Times| times.row(structure, mix, &index, build_s, folded(&index));
        if self.wants(structure, Mix::Get) {
            let mut times = Times::default();
            for slice in self.slices() {
                times.slice(slice.len(), || {
                    let sum = slice.iter().map(|key| *index.get(key).expect("it was loaded"));
                    black_box(sum.fold(0u64, u64::wrapping_add));
                });
            }
            for key in &self.reads[..self.reads.len() / 5] {
                times.one(|| black_box(index.get(key).copied()));
            }
            done(row(Mix::Get, times));
        }
        if self.wants(structure, Mix::Batch) {
            let (mut times, mut found) = (Times::default(), Vec::new());
            for slice in self.slices() {
                times.slice(slice.len(), || {
                    for batch in slice.chunks(BATCH) {
                        index.get_batch(batch, &mut found);
                        let sum = found.iter().map(|value| *value.expect("it was loaded"));
                        black_box(sum.fold(0u64, u64::wrapping_add));
                    }
                });
            }
            done(row(Mix::Batch, times));
        }
    }

    fn slices(&self) -> impl Iterator<Item = &[K]> {
        (0..PASSES).flat_map(|_| self.reads.chunks_exact(SLICE))
    }

    fn scanned<I: OrderedIndex<K, u64>>(
        &self,
        structure: &'static str,
        build: impl Fn(Vec<(K, u64)>) -> I,
        done: &mut impl FnMut(Row),
    ) {
        if !self.wants(structure, Mix::Scan) {
            return;
        }
        let (index, build_s) = self.load(0..self.keys.len(), build);
        let mut times = Times::default();
        for slice in self.reads[..SLICE * 5].chunks_exact(SLICE / 20) {
            times.slice(slice.len(), || {
                let mut sum = 0u64;
                for key in slice {
                    index.scan(key, SCAN, &mut |_, value| sum = sum.wrapping_add(*value));
                }
                black_box(sum);
            });
        }
        for key in &self.reads[..SLICE] {
            times.one(|| index.scan(key, SCAN, &mut |_, value| _ = black_box(*value)));
        }
        done(times.row(structure, Mix::Scan, &index, build_s, false));
    }

    fn mixed<I: IndexMut<K, u64>>(
        &self,
        structure: &'static str,
        build: impl Fn(Vec<(K, u64)>) -> I + Copy,
        folded: impl Fn(&I) -> bool,
        done: &mut impl FnMut(Row),
    ) {
        let Some(zipf) = &self.zipf else { return };
        for &mix in self.mixes {
            let (Mix::Reads(share), true) = (mix, self.structures.contains(&structure)) else { continue };
            let (mut index, build_s) = self.load(self.split.load.iter().copied(), build);
            let flow = folded(&index);
            let reads = BATCH * usize::from(share) / 100;
            let mut rng = SplitMix64::new(44);
            let requests = self.split.inserts.len();
            let mut inserts = self.split.inserts.iter().map(|&i| (self.keys[i], i as u64));
            let mut times = Times::default();
            let batches = (requests / BATCH).max(1);
            for batch in 0..batches {
                let keys: Vec<K> = (0..reads).map(|_| self.keys[self.split.load[zipf.position(&mut rng)]]).collect();
                let new: Vec<(K, u64)> = inserts.by_ref().take(BATCH - reads).collect();
                if batch % APART != APART - 1 {
                    times.slice(BATCH, || {
                        black_box(sum_of(&index, &keys));
                        index.insert_batch(&new);
                    });
                    continue;
                }
                keys.iter().for_each(|key| _ = times.one(|| black_box(index.get(key).copied())));
                new.iter().for_each(|&(key, value)| _ = times.one(|| index.insert(key, value)));
            }
            done(times.row(structure, mix, &index, build_s, flow));
        }
    }
}

/// Reads a batch, which must be there.
fn sum_of<K>(index: &impl PointIndex<K, u64>, keys: &[K]) -> u64 {
    let mut found = Vec::with_capacity(keys.len());
    index.get_batch(keys, &mut found);
    found.into_iter().fold(0, |sum, value| sum.wrapping_add(*value.expect("it was loaded")))
}

/// Every answer, once.
fn check<K: Exact>(index: &impl PointIndex<K, u64>, keys: &[K]) {
    assert_eq!(index.len(), keys.len());
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(index.get(key), Some(&(i as u64)));
    }
}

#[derive(Default)]
struct Times {
    slices: Vec<f64>,
    singles: Vec<f64>,
}

impl Times {
    fn slice(&mut self, operations: usize, work: impl FnOnce()) {
        let begin = Instant::now();
        work();
        self.slices.push(begin.elapsed().as_nanos() as f64 / operations as f64);
    }

    fn one<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = work();
        self.singles.push(begin.elapsed().as_nanos() as f64);
        result
    }

    fn row<K, I: PointIndex<K, u64>>(
        mut self,
        structure: &'static str,
        mix: Mix,
        index: &I,
        build_s: f64,
        flow: bool,
    ) -> Row {
        self.slices.sort_unstable_by(f64::total_cmp);
        self.singles.sort_unstable_by(f64::total_cmp);
        let at = |times: &[f64], share: f64| {
            times
                .get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        Row {
            structure,
            mix: mix.name(),
            ns_per_op: at(&self.slices, 0.5),
            best_ns: at(&self.slices, 0.05),
            p99_ns: at(&self.singles, 0.99),
            p999_ns: at(&self.singles, 0.999),
            bytes_per_key: index.bytes() as f64 / index.len().max(1) as f64,
            build_s,
            flow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::KeySet;

    #[test]
    fn every_structure_is_measured_under_every_mix_it_can() {
        for name in ["lognormal", "longitudes"] {
            let keys = KeySet::named(name).unwrap().generate(3000, 42);
            let mut rows = Vec::new();
            run(&keys, &STRUCTURES, &Mix::ALL, |row| rows.push(row));
            let integers = usize::from(name == "lognormal");
            // Trees that change: all but that NFL has no scans; static ones: no mixes.
            assert_eq!(rows.len(), 7 + 6 + 6 + 7 + 3 + 2 + 3 + 7 + 2 * integers, "{rows:#?}");
            assert!(rows.iter().all(|row| row.ns_per_op > 0.0 && row.bytes_per_key > 15.0));
        }
        assert!(Mix::ALL.iter().all(|mix| Mix::parse(&mix.name()) == Some(*mix)));
        assert_eq!(Mix::parse("101"), None);
    }
}
