//! The line of a node, and how badly keys collide on it.
//!
//! The tree of this crate draws its lines from the first key of a run to the last. These are the published ones: least
//! squares through ranks for AFLI ([`Line`]), fastest minimum conflict degree for LIPP ([`fmcd`]); the switch test of
//! [`NflMap`](crate::NflMap) and the twin in [`reference`](crate::reference) use them.
//!
//! Sources: "NFL: Robust Learned Index via Distribution Transformation" (arXiv 2205.11807); "Updatable Learned Index with
//! Precise Positions" (arXiv 2104.05520).

use serde::{Deserialize, Serialize};

use crate::key::Key;

/// A line through ranks, anchored at the smallest key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line<K> {
    /// The smallest key.
    pub base: K,
    /// Slots per unit.
    pub slope: f64,
    /// Slots.
    pub capacity: usize,
}

impl<K: Key> Line<K> {
    /// Least squares of rank on key, with at most `amplification` slots a key. `None` where no line ascends over the
    /// keys, which must be sorted: fewer than two, all equal, or too far apart for a slope.
    pub fn fit(keys: &[K], amplification: f64) -> Option<Self> {
        let (&base, &last) = (keys.first()?, keys.last()?);
        let (n, range) = (keys.len() as f64, last.offset_from(base));
        if keys.len() < 2 || base == last {
            return None;
        }
        let mean = keys.iter().map(|key| key.offset_from(base)).sum::<f64>() / n;
        let (mut with_rank, mut with_self) = (0.0, 0.0);
        for (rank, key) in keys.iter().enumerate() {
            let x = key.offset_from(base) - mean;
            with_rank += x * (rank as f64 - (n - 1.0) / 2.0);
            with_self += x * x;
        }
        let slope = if with_self == 0.0 { 0.0 } else { with_rank / with_self };
        let slope = if slope > 0.0 { slope } else { (n - 1.0) / range };
        if !(slope * range).is_finite() || slope * range <= 0.0 {
            return None;
        }
        let most = (amplification * n) as usize;
        let top = (slope * range + 0.5).floor().min(most as f64) as usize + 1;
        let mut line = Self { base, slope, capacity: if top > 1 { top.min(most) } else { most } };
        if line.position(base) == line.position(last) {
            line.slope = n / range;
        }
        (line.slope * range).is_finite().then_some(line)
    }

    /// The slot of a key.
    pub fn position(&self, key: K) -> usize {
        let at = (self.slope * key.offset_from(self.base) + 0.5).floor();
        at.max(0.0).min((self.capacity - 1) as f64) as usize
    }

    /// Occupied slots in ascending order, each with how many of the sorted `keys` fall there.
    pub fn counts(&self, keys: &[K]) -> Vec<(usize, usize)> {
        let mut counts: Vec<(usize, usize)> = Vec::new();
        for &key in keys {
            let position = self.position(key);
            match counts.last_mut() {
                Some((last, count)) if *last == position => *count += 1,
                _ => counts.push((position, 1)),
            }
        }
        counts
    }
}

/// How keys collide on their line.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conflicts {
    /// Keys too many in a slot, at the 99th percentile of occupied slots. Blind to a single slot that takes all.
    pub tail: usize,
    /// Keys in the fullest slot.
    pub most: usize,
    /// Keys in an occupied slot, on average.
    pub mean: f64,
}

impl Conflicts {
    /// Of sorted keys on a line with at most `amplification` slots a key; all keys collide where there is no line.
    pub fn of<K: Key>(keys: &[K], amplification: f64) -> Self {
        let Some(line) = Line::fit(keys, amplification) else {
            let n = keys.len();
            return Self { tail: n.saturating_sub(1), most: n, mean: n as f64 };
        };
        let mut counts: Vec<usize> = line.counts(keys).into_iter().map(|(_, count)| count).collect();
        counts.sort_unstable();
        let at = ((counts.len() as f64 * 0.99) as usize).saturating_sub(1);
        let most = counts.last().copied().unwrap_or(0);
        Self { tail: counts[at] - 1, most, mean: keys.len() as f64 / counts.len() as f64 }
    }
}

/// The conflict degree of LIPP's line: no slot of its `slots` takes more keys, apart from the ends. `None` where no
/// degree up to a third of the keys does.
pub fn fmcd(keys: &[f64], slots: usize) -> Option<usize> {
    let n = keys.len();
    if n < 4 {
        return None;
    }
    let (mut degree, mut i) = (1, 0);
    // The published constant 1e-6 is absolute and distorts narrow ranges; this one is relative.
    let unit = |degree: usize| {
        let width = (keys[n - 1 - degree] - keys[degree]) / (slots as f64 - 2.0);
        width * (1.0 + 1e-12)
    };
    let mut width = unit(degree);
    loop {
        while i + degree < n && keys[i + degree] - keys[i] >= width {
            i += 1;
        }
        if i + degree >= n {
            return Some(degree);
        }
        degree += 1;
        if degree * 3 > n {
            return None;
        }
        width = unit(degree);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::KeySet;
    use crate::key::F64;

    pub(crate) fn reals(name: &str, n: usize) -> Vec<F64> {
        let mut keys: Vec<F64> =
            KeySet::named(name).unwrap().generate(n, 42).to_f64().into_iter().map(|x| F64::new(x).unwrap()).collect();
        keys.dedup();
        keys
    }

    #[test]
    fn fibonacci_numbers() {
        let keys = [1u64, 2, 3, 5, 8, 13, 21, 34];
        let line = Line::fit(&keys, 2.0).unwrap();
        assert!((line.slope - 0.194_501).abs() < 1e-6);
        assert_eq!(line.capacity, 7);
        assert_eq!(keys.map(|key| line.position(key)), [0, 0, 0, 1, 1, 2, 4, 6]);
        assert_eq!(line.counts(&keys), [(0, 3), (1, 2), (2, 1), (4, 1), (6, 1)]);
        assert_eq!(Conflicts::of(&keys, 1.5).tail, 1);
        assert_eq!(fmcd(&keys.map(|key| key as f64), 48), Some(1));
    }

    #[test]
    fn squares() {
        let keys: Vec<u64> = (0..16).map(|i| i * i).collect();
        let line = Line::fit(&keys, 2.0).unwrap();
        assert!((line.slope - 0.062_034_739).abs() < 1e-9 && line.capacity == 15);
    }

    #[test]
    fn no_line() {
        assert_eq!(Line::<u64>::fit(&[], 2.0), None);
        assert_eq!(Line::fit(&[5u64], 2.0), None);
        assert_eq!(Line::fit(&[5u64, 5], 2.0), None);
        let far = [f64::NEG_INFINITY, 0.0, f64::INFINITY].map(|x| F64::new(x).unwrap());
        assert_eq!(Line::fit(&far, 2.0), None);
        assert_eq!(Conflicts::of(&[7u64; 3], 2.0), Conflicts { tail: 2, most: 3, mean: 3.0 });
    }

    #[test]
    fn conflicts_of_all_sets_are_the_published_ones() {
        // Name, conflict degree of LIPP, tail conflict and maximum.
        let published = [
            ("dense", 1, 0, 1),
            ("uniform", 5, 3, 7),
            ("normal", 8, 3, 17_179),
            ("lognormal", 196, 253, 1062),
            ("zipfgap", 6, 13, 18),
            ("outliers", 21, 0, 99_979),
            ("osm", 13_577, 3289, 13_577),
            ("ts", 712, 4, 972),
            ("longitudes", 91, 25, 216),
            ("longlat", 8492, 327, 17_761),
        ];
        for (name, degree, tail, most) in published {
            let keys = reals(name, 100_000);
            let conflicts = Conflicts::of(&keys, 1.5);
            assert_eq!(conflicts.tail, tail, "{name}");
            assert!(conflicts.most.abs_diff(most) <= 1, "{name}: {conflicts:?}");
            let plain: Vec<f64> = keys.iter().map(|key| key.get()).collect();
            assert_eq!(fmcd(&plain, 3 * keys.len()), Some(degree), "{name}");
        }
    }
}
