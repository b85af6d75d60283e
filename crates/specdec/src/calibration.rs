//! From counts to the probability that a guess is right, learned while decoding.
//!
//! A guess is filed under where it came from, how long its match is, how often that occurs and which share of it agrees.
//! Each file remembers how many of its guesses were right, old ones fading; where it knows little it believes a coarser
//! file, which believes the share itself.

/// Which files a guess belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    cell: usize,
    coarse: usize,
}

const LENGTHS: [usize; 9] = [1, 2, 3, 4, 6, 8, 12, 16, 32];
const COUNTS: [u32; 6] = [0, 1, 2, 4, 8, 16];
const SHARES: usize = 10;

fn bucket<T: PartialOrd>(edges: &[T], value: T) -> usize {
    edges.iter().rposition(|edge| *edge <= value).unwrap_or(0)
}

/// Right guesses and all guesses, fading.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct File {
    right: f64,
    tried: f64,
}

impl File {
    /// The rate of right guesses, `strength` of them assumed at `prior`.
    fn rate(self, prior: f64, strength: f64) -> f64 {
        (self.right + strength * prior) / (self.tried + strength)
    }
}

/// See the [module](self). A few dozen kilobytes; worth keeping across requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    cells: Vec<File>,
    coarse: Vec<File>,
    strength: f64,
    fading: f64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self::new(3, 8.0, 0.999)
    }
}

impl Calibration {
    /// Empty files for guesses from so many sources. `strength`: how many guesses a coarser file is worth; `fading`: what
    /// remains of a file's memory after one more guess.
    pub fn new(sources: usize, strength: f64, fading: f64) -> Self {
        let coarse = sources * SHARES;
        Self {
            cells: vec![File::default(); coarse * LENGTHS.len() * COUNTS.len()],
            coarse: vec![File::default(); coarse],
            strength,
            fading,
        }
    }

    /// The files of a guess of `source` (from 0) whose match has `len` tokens (from 1) and occurs `count` times (from 1),
    /// with `share` of it in favour.
    pub fn key(&self, source: usize, len: usize, count: u64, share: f64) -> Key {
        let coarse = source * SHARES + ((share * SHARES as f64) as usize).min(SHARES - 1);
        let cell = bucket(&LENGTHS, len) * COUNTS.len() + bucket(&COUNTS, count.max(1).ilog2());
        Key { cell: coarse * LENGTHS.len() * COUNTS.len() + cell, coarse }
    }

    /// How likely such a guess is right.
    pub fn probability(&self, key: Key, share: f64) -> f64 {
        let general = self.coarse[key.coarse].rate(share, self.strength);
        self.cells[key.cell].rate(general, self.strength)
    }

    /// A guess turned out right or wrong.
    pub fn learn(&mut self, key: Key, right: bool) {
        for file in [&mut self.cells[key.cell], &mut self.coarse[key.coarse]] {
            file.right = self.fading * file.right + f64::from(u8::from(right));
            file.tried = self.fading * file.tried + 1.0;
        }
    }
}

/// The share of a match's `count` occurrences that agree, as if one more did not: a match that occurs once proves little.
pub fn share(agree: f64, count: f64) -> f64 {
    agree / (count + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lean_on_coarser_ones() {
        let mut calibration = Calibration::new(2, 8.0, 1.0);
        let key = calibration.key(1, 5, 3, 0.6);
        assert_eq!(calibration.probability(key, 0.6), 0.6, "nothing known");
        // 3 of 4 in the cell, 30 of 40 in the coarse file: 27 of 36 came from other lengths.
        let other = calibration.key(1, 1, 1, 0.6);
        (0..36).for_each(|i| calibration.learn(other, i < 27));
        (0..4).for_each(|i| calibration.learn(key, i < 3));
        assert!((calibration.probability(key, 0.6) - 0.733_333_333).abs() < 1e-6);
        assert_eq!(calibration.key(0, 5, 3, 0.6), calibration.key(0, 4, 2, 0.69));
        assert_ne!(calibration.key(0, 5, 3, 0.6), calibration.key(0, 6, 2, 0.6));
    }

    #[test]
    fn keys_fit_whatever_comes() {
        let calibration = Calibration::default();
        for (len, count, share) in [(0, 0, 0.0), (usize::MAX, u64::MAX, 1.0), (3, 1, f64::NAN)] {
            let key = calibration.key(1, len, count, share);
            assert!(calibration.probability(key, 0.5) == 0.5);
        }
    }
}
