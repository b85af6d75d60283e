//! Which keys are loaded first, and which are asked for.

use super::rng::{SplitMix64, exp, ln};

/// Half of the keys to load, the others in the order of their insertion; positions into the sorted keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Ascending; holds the first and the last position, so that inserts never leave the range.
    pub load: Vec<usize>,
    /// What is inserted later.
    pub inserts: Vec<usize>,
}

impl Split {
    /// Splits `n` positions; the seeds in use are 43 and 45.
    pub fn new(n: usize, split_seed: u64, order_seed: u64) -> Self {
        if n < 4 {
            return Self { load: (0..n).collect(), inserts: Vec::new() };
        }
        let mut inner: Vec<usize> = (1..n - 1).collect();
        SplitMix64::new(split_seed).shuffle(&mut inner);
        let mut inserts = inner.split_off(n / 2 - 2);
        SplitMix64::new(order_seed).shuffle(&mut inserts);
        let mut load = inner;
        load.extend([0, n - 1]);
        load.sort_unstable();
        Self { load, inserts }
    }
}

/// Positions below `n` by a Zipf law over ranks, scattered over the range.
#[derive(Debug, Clone)]
pub struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    /// Ranks 1 to `n` with weight `rank^−theta`; the table is exact and takes 8 bytes a rank.
    pub fn new(n: usize, theta: f64) -> Self {
        let mut total = 0.0;
        let weights = (1..=n).map(|rank| exp(-theta * ln(rank as f64)));
        Self {
            cumulative: weights
                .map(|weight| {
                    total += weight;
                    total
                })
                .collect(),
        }
    }

    /// A rank, from 1.
    pub fn rank(&self, rng: &mut SplitMix64) -> usize {
        let target = rng.f64() * self.cumulative.last().copied().unwrap_or(0.0);
        self.cumulative.partition_point(|&sum| sum < target) + 1
    }

    /// A position: frequent ranks are not neighbours.
    pub fn position(&self, rng: &mut SplitMix64) -> usize {
        let scattered = (self.rank(rng) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((u128::from(scattered) * self.cumulative.len() as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_and_zipf_reads_are_the_published_ones() {
        let mut rng = SplitMix64::new(44);
        assert_eq!([0; 5].map(|_| rng.below(1000)), [981, 566, 388, 781, 361]);
        let zipf = Zipf::new(1000, 0.99);
        assert!((zipf.cumulative[999] - 7.728_953_217).abs() < 1e-9);
        let mut rng = SplitMix64::new(44);
        assert_eq!([0; 5].map(|_| zipf.rank(&mut rng)), [876, 42, 11, 204, 9]);
        let mut rng = SplitMix64::new(44);
        assert_eq!([0; 5].map(|_| zipf.position(&mut rng)), [397, 957, 798, 78, 562]);
    }

    #[test]
    fn a_split_covers_everything_once() {
        for n in [0, 1, 3, 4, 5, 100, 101] {
            let split = Split::new(n, 43, 45);
            let mut all: Vec<usize> = split.load.iter().chain(&split.inserts).copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            assert!(split.load.is_sorted());
            if n >= 4 {
                assert_eq!(split.load.len(), n / 2);
            }
        }
    }
}
