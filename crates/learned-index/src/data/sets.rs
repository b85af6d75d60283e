//! Ten distributions of keys, from dense integers to clusters of clusters.

use std::collections::HashSet;
use std::hash::Hash;

use super::rng::{LN_2, SplitMix64, exp, ln};
use crate::key::F64;

/// Keys in ascending order without duplicates.
#[derive(Debug, Clone, PartialEq)]
pub enum Keys {
    /// Integers.
    U64(Vec<u64>),
    /// Degrees.
    F64(Vec<F64>),
}

impl Keys {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Keys::U64(keys) => keys.len(),
            Keys::F64(keys) => keys.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys as `f64`, rounded; integers beyond 2^53 may coincide.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Keys::U64(keys) => keys.iter().map(|&key| key as f64).collect(),
            Keys::F64(keys) => keys.iter().map(|key| key.get()).collect(),
        }
    }

    /// [`checksum`](super::checksum) of the keys' bits.
    pub fn checksum(&self) -> u64 {
        match self {
            Keys::U64(keys) => super::checksum(keys.iter().copied()),
            Keys::F64(keys) => super::checksum(keys.iter().map(|key| key.get().to_bits())),
        }
    }
}

/// A distribution of keys with a name.
#[derive(Debug, Clone, Copy)]
pub struct KeySet {
    /// How commands and tables call it.
    pub name: &'static str,
    /// What it looks like.
    pub summary: &'static str,
    draw: fn(usize, SplitMix64) -> Keys,
}

impl KeySet {
    /// All of them.
    pub const ALL: &[KeySet] = &[
        KeySet { name: "dense", summary: "consecutive integers", draw: dense },
        KeySet { name: "uniform", summary: "random 63-bit integers", draw: uniform },
        KeySet { name: "normal", summary: "normal around 2^62", draw: normal },
        KeySet { name: "lognormal", summary: "log-normal, sigma 2", draw: lognormal },
        KeySet { name: "zipfgap", summary: "heavy-tailed gaps", draw: zipfgap },
        KeySet { name: "outliers", summary: "heavy-tailed gaps and 21 far outliers", draw: outliers },
        KeySet { name: "osm", summary: "clusters of clusters, as cell ids of a map", draw: osm },
        KeySet { name: "ts", summary: "time stamps with days, bursts and outages", draw: timestamps },
        KeySet { name: "longitudes", summary: "longitudes around 64 cities", draw: longitudes },
        KeySet { name: "longlat", summary: "longitude and latitude in one number", draw: longlat },
    ];

    /// The set with this name.
    pub fn named(name: &str) -> Option<&'static KeySet> {
        Self::ALL.iter().find(|set| set.name == name)
    }

    /// `n` keys, ascending; the usual seed is 42. `n` should be at least 22 for `outliers`.
    pub fn generate(&self, n: usize, seed: u64) -> Keys {
        (self.draw)(n, SplitMix64::new(seed))
    }
}

/// Draws until `n` values are distinct, then sorts them.
fn fill<T: Copy + Ord + Hash>(n: usize, mut draw: impl FnMut() -> T) -> Vec<T> {
    let mut values: Vec<T> = (0..n).map(|_| draw()).collect();
    values.sort_unstable();
    values.dedup();
    // What the first n draws lack comes one by one: only these need a set.
    let (mut more, mut seen) = (Vec::new(), HashSet::new());
    while values.len() + more.len() < n {
        let value = draw();
        if values.binary_search(&value).is_err() && seen.insert(value) {
            more.push(value);
        }
    }
    values.extend(more);
    values.sort_unstable();
    values
}

fn dense(n: usize, _: SplitMix64) -> Keys {
    Keys::U64((42..42 + n as u64).collect())
}

fn uniform(n: usize, mut rng: SplitMix64) -> Keys {
    Keys::U64(fill(n, || rng.next_u64() >> 1))
}

fn normal(n: usize, mut rng: SplitMix64) -> Keys {
    let (middle, width) = ((1u64 << 62) as f64, (1u64 << 58) as f64);
    Keys::U64(fill(n, || (middle + width * rng.normal()).floor() as u64))
}

fn lognormal(n: usize, mut rng: SplitMix64) -> Keys {
    Keys::U64(fill(n, || (exp(2.0 * rng.normal()) * 1e9).floor() as u64))
}

fn zipfgap(n: usize, mut rng: SplitMix64) -> Keys {
    let most = (1u64 << 40) as f64;
    let mut key = 0;
    let gaps = (0..n).map(|_| exp(-ln(1.0 - rng.f64()) / 1.05).min(most).floor() as u64);
    Keys::U64(gaps.map(|gap| step(&mut key, gap)).collect())
}

fn step(key: &mut u64, gap: u64) -> u64 {
    *key += gap.max(1);
    *key
}

fn outliers(n: usize, mut rng: SplitMix64) -> Keys {
    let mut key = 0;
    let gaps = (0..n.saturating_sub(21)).map(|_| (100.0 * exp(-ln(1.0 - rng.f64()) / 1.5)).min(1e12).floor() as u64);
    let mut keys: Vec<u64> = gaps.map(|gap| step(&mut key, gap)).collect();
    while keys.len() < n {
        let far = (1 << 59) + (rng.next_u64() >> 5) * 7 / 8;
        if !keys.contains(&far) {
            keys.push(far);
        }
    }
    keys.sort_unstable();
    Keys::U64(keys)
}

struct Weighted<T> {
    items: Vec<T>,
    /// Running sums of the weights.
    cumulative: Vec<f64>,
}

impl<T> Weighted<T> {
    fn new(items: impl Iterator<Item = (T, f64)>) -> Self {
        let (mut list, mut cumulative, mut total) = (Vec::new(), Vec::new(), 0.0);
        for (item, weight) in items {
            total += weight;
            list.push(item);
            cumulative.push(total);
        }
        Self { items: list, cumulative }
    }

    fn draw(&self, rng: &mut SplitMix64) -> &T {
        let target = rng.f64() * self.cumulative.last().copied().unwrap_or(0.0);
        let at = self.cumulative.partition_point(|&sum| sum < target);
        &self.items[at.min(self.items.len() - 1)]
    }
}

fn osm(n: usize, mut rng: SplitMix64) -> Keys {
    let bases: Vec<u64> = (0..32).map(|_| rng.next_u64() >> 4).collect();
    let clusters = Weighted::new((0..(n / 500).max(8)).map(|_| {
        let base = bases[rng.below(32) as usize] as i64;
        let spread = exp(LN_2 * (40.0 + 14.0 * rng.f64()));
        let centre = base + (spread * rng.normal()).floor() as i64;
        let width = exp(LN_2 * (12.0 + 28.0 * rng.f64()));
        ((centre, width), exp(1.5 * rng.normal()))
    }));
    Keys::U64(fill(n, || {
        loop {
            let &(centre, width) = clusters.draw(&mut rng);
            let value = centre + (width * rng.normal()).floor() as i64;
            if (0..1 << 60).contains(&value) {
                break value as u64;
            }
        }
    }))
}

fn timestamps(n: usize, mut rng: SplitMix64) -> Keys {
    const DAY: u64 = 86_400_000;
    let (mut time, mut burst) = (1_500_000_000_000u64, 0);
    let next = |_| {
        let gap = if burst > 0 {
            burst -= 1;
            1 + rng.below(2)
        } else {
            let phase = (time % DAY) as f64 / DAY as f64;
            let triangle = 1.0 - (2.0 * phase - 1.0).abs();
            let mean = 2000.0 / (0.1 + triangle);
            let mut gap = 1 + (-ln(1.0 - rng.f64()) * mean).floor() as u64;
            if rng.below(2000) == 0 {
                burst = 1 + rng.below(1000);
            } else if rng.below(20_000) == 0 {
                gap += 3_600_000 + rng.below(21_600_000);
            }
            gap
        };
        time += gap;
        time
    };
    Keys::U64((0..n).map(next).collect())
}

struct City {
    longitude: f64,
    latitude: f64,
    spread: f64,
}

fn cities(rng: &mut SplitMix64) -> Weighted<City> {
    Weighted::new((0..64).map(|_| {
        let longitude = -180.0 + 360.0 * rng.f64();
        let latitude = -60.0 + 130.0 * rng.f64();
        let spread = exp(-2.5 + 2.5 * rng.f64());
        (City { longitude, latitude, spread }, exp(rng.normal()))
    }))
}

fn place(cities: &Weighted<City>, rng: &mut SplitMix64) -> (f64, f64) {
    loop {
        let (longitude, latitude) = if rng.below(20) == 0 {
            let longitude = -180.0 + 360.0 * rng.f64();
            (longitude, -90.0 + 180.0 * rng.f64())
        } else {
            let city = cities.draw(rng);
            let longitude = city.longitude + city.spread * rng.normal();
            (longitude, city.latitude + city.spread * rng.normal())
        };
        if (-180.0..180.0).contains(&longitude) && (-90.0..90.0).contains(&latitude) {
            return (longitude, latitude);
        }
    }
}

fn degrees(steps: Vec<i64>, per_degree: f64) -> Keys {
    Keys::F64(steps.into_iter().filter_map(|step| F64::new(step as f64 / per_degree).ok()).collect())
}

fn longitudes(n: usize, mut rng: SplitMix64) -> Keys {
    let cities = cities(&mut rng);
    degrees(fill(n, || (place(&cities, &mut rng).0 * 1e7).floor() as i64), 1e7)
}

fn longlat(n: usize, mut rng: SplitMix64) -> Keys {
    let cities = cities(&mut rng);
    let draw = || {
        let (longitude, latitude) = place(&cities, &mut rng);
        ((180.0 * longitude.floor() + latitude) * 1e6).floor() as i64
    };
    degrees(fill(n, draw), 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_has_its_published_checksums() {
        let published: [(&str, u64, u64); 10] = [
            ("dense", 0xc3ce_355f_40ef_d1c5, 0xce23_15e3_5e0f_34bd),
            ("uniform", 0xfd66_971e_e171_7fff, 0x5cef_48bb_8ce9_2af1),
            ("normal", 0x0d7c_8d46_25aa_f475, 0xf5e7_0685_619c_7f96),
            ("lognormal", 0x8dbd_5a88_9ffa_b069, 0x775a_fc79_aff7_e939),
            ("zipfgap", 0x24c2_8010_3dbd_3643, 0x6249_6af4_6884_eb8c),
            ("outliers", 0x994e_8af0_a0b6_2f1a, 0xf702_b826_3305_923f),
            ("osm", 0x8f63_33c8_63cb_b8a4, 0x3832_af93_aba2_f726),
            ("ts", 0x6977_7e10_e0c9_c7fb, 0xb3bf_22b0_46e6_1dc3),
            ("longitudes", 0xf9ea_8f67_fa15_d5a3, 0xdc69_c661_e9fb_4665),
            ("longlat", 0x1de9_6210_ea77_0991, 0x33bd_124b_cb5d_7755),
        ];
        assert_eq!(published.map(|row| row.0).as_slice(), KeySet::ALL.iter().map(|set| set.name).collect::<Vec<_>>());
        for (name, small, large) in published {
            let set = KeySet::named(name).unwrap();
            let keys = set.generate(1000, 42);
            assert_eq!(keys.checksum(), small, "{name}: {keys:?}");
            assert_eq!(set.generate(100_000, 42).checksum(), large, "{name}, 100 000 keys");
        }
    }
}
