//! Which weights stay: N:M patterns and masks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// At most `keep` non-zero values in every aligned group of `of`.
///
/// The text form is `keep:of`, for example `2:4`. Some papers count the zeros instead; the two readings
/// agree only when `keep` is half of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NM {
    /// How many of a group may be non-zero.
    pub keep: usize,
    /// The size of a group.
    pub of: usize,
}

impl NM {
    /// The pattern `keep:of`; an error unless `1 ≤ keep < of ≤ 256`.
    pub fn new(keep: usize, of: usize) -> Result<Self> {
        if keep == 0 || keep >= of || of > 256 {
            return Err(Error::Invalid(format!(
                "pattern `{keep}:{of}`: N:M keeps N of every M weights, with 1 <= N < M <= 256 (for example 2:4)"
            )));
        }
        Ok(Self { keep, of })
    }

    /// The fraction of weights that the pattern removes.
    pub fn sparsity(self) -> f64 {
        1.0 - self.keep as f64 / self.of as f64
    }
}

impl fmt::Display for NM {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.keep, self.of)
    }
}

impl FromStr for NM {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parsed =
            text.split_once(':').and_then(|(keep, of)| Some((keep.trim().parse().ok()?, of.trim().parse().ok()?)));
        let Some((keep, of)) = parsed else {
            return Err(Error::Invalid(format!("pattern `{text}`: expected `N:M`, for example `2:4`")));
        };
        Self::new(keep, of)
    }
}

impl Serialize for NM {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NM {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which weights of a `[rows, cols]` matrix are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    rows: usize,
    cols: usize,
    keep: Vec<bool>,
}

impl Mask {
    /// A mask from row-major flags; `keep.len()` must be `rows · cols`.
    pub fn new(rows: usize, cols: usize, keep: Vec<bool>) -> Result<Self> {
        if keep.len() != rows * cols {
            return Err(Error::Shape { what: "mask".into(), expected: vec![rows, cols], found: vec![keep.len()] });
        }
        Ok(Self { rows, cols, keep })
    }

    /// Keeps exactly the non-zero weights of a row-major matrix.
    pub fn of_nonzero(rows: usize, cols: usize, weight: &[f32]) -> Result<Self> {
        Self::new(rows, cols, weight.iter().map(|&w| w != 0.0).collect())
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// All flags, row-major.
    pub fn as_slice(&self) -> &[bool] {
        &self.keep
    }

    /// The flags of one row.
    pub fn row(&self, row: usize) -> &[bool] {
        &self.keep[row * self.cols..(row + 1) * self.cols]
    }

    /// How many weights are kept.
    pub fn kept(&self) -> usize {
        self.keep.iter().filter(|&&keep| keep).count()
    }

    /// The fraction of weights removed.
    pub fn sparsity(&self) -> f64 {
        if self.keep.is_empty() { 0.0 } else { 1.0 - self.kept() as f64 / self.keep.len() as f64 }
    }

    /// Keeps what both masks keep. The shapes must agree.
    pub fn and(&self, other: &Mask) -> Result<Self> {
        if self.shape() != other.shape() {
            return Err(Error::Shape {
                what: "mask".into(),
                expected: self.shape().to_vec(),
                found: other.shape().to_vec(),
            });
        }
        let keep = self.keep.iter().zip(&other.keep).map(|(&a, &b)| a && b).collect();
        Ok(Self { keep, ..*self })
    }

    /// Sets the removed weights of a row-major matrix to zero.
    pub fn apply(&self, weight: &mut [f32]) {
        for (w, &keep) in weight.iter_mut().zip(&self.keep) {
            if !keep {
                *w = 0.0;
            }
        }
    }

    /// Whether every aligned group along the columns (the inputs) obeys `nm`.
    pub fn obeys(&self, nm: NM) -> bool {
        self.cols.is_multiple_of(nm.of)
            && self.keep.chunks_exact(nm.of).all(|group| group.iter().filter(|&&k| k).count() <= nm.keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_parse_and_refuse() {
        assert_eq!("2:4".parse::<NM>().unwrap(), NM { keep: 2, of: 4 });
        assert_eq!(NM { keep: 4, of: 8 }.to_string(), "4:8");
        for bad in ["3:2", "0:4", "4:4", "2", "a:b", "2:4:8", "-1:4"] {
            assert!(bad.parse::<NM>().is_err(), "{bad}");
        }
    }

    #[test]
    fn masks_count_and_obey() {
        let mask = Mask::of_nonzero(2, 4, &[1., 0., 0., 2., 0., 3., 4., 5.]).unwrap();
        assert_eq!(mask.kept(), 5);
        assert!(!mask.obeys(NM { keep: 2, of: 4 }));
        let first_two = Mask::new(2, 4, [[true, true, false, false]; 2].concat()).unwrap();
        let both = mask.and(&first_two).unwrap();
        assert!(both.obeys(NM { keep: 2, of: 4 }));
        assert_eq!(both.as_slice(), &[true, false, false, false, false, true, false, false]);
        assert!(Mask::new(2, 4, vec![true; 7]).is_err());
    }
}
