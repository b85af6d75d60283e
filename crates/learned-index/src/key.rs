//! What a key must be able to do.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A scalar that a linear model can place.
///
/// A wrong implementation gives wrong answers and slow look-ups, never undefined behaviour.
pub trait Key: Copy + Ord + fmt::Debug {
    /// `self − base`, computed in the native domain and then rounded; 0 or less for keys up to `base`.
    ///
    /// Must not decrease when `self` grows. Subtracting before rounding is what keeps neighbours apart: two integers
    /// beyond 2^53 may be the same `f64` while their distances from a near `base` are exact.
    fn offset_from(self, base: Self) -> f64;

    /// The key as an `f64`, rounded; must not decrease when `self` grows.
    fn to_f64(self) -> f64;
}

macro_rules! integer_key {
    ($($type:ty),*) => {$(
        impl Key for $type {
            #[inline]
            fn offset_from(self, base: Self) -> f64 {
                // Converting a signed integer takes one instruction, an unsigned one five. Distances of 2^63 and more
                // become one: a line over such keys is refused and they are cut apart.
                let distance = if self >= base { self.abs_diff(base) as u64 } else { 0 };
                distance.min(i64::MAX as u64) as i64 as f64
            }

            #[inline]
            fn to_f64(self) -> f64 {
                self as f64
            }
        }
    )*};
}

integer_key!(u16, u32, u64, i32, i64);

/// A float that is a number, in the order of numbers; −0 is 0.
///
/// ```
/// use kindling_learned_index::{F64, LearnedMap};
///
/// let mut map = LearnedMap::new();
/// map.insert(F64::new(-0.1276)?, "London");
/// assert_eq!(map.get(&F64::new(-0.1276)?), Some(&"London"));
/// assert!(F64::new(f64::NAN).is_err());
/// # Ok::<(), kindling_learned_index::Error>(())
/// ```
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct F64(f64);

impl F64 {
    /// Wraps a number.
    ///
    /// # Errors
    /// [`Error::NotANumber`] for NaN, which has no place in an order.
    pub fn new(number: f64) -> Result<Self> {
        // Adding 0 turns −0 into 0 and changes nothing else.
        if number.is_nan() { Err(Error::NotANumber) } else { Ok(Self(number + 0.0)) }
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Key for F64 {
    #[inline]
    fn offset_from(self, base: Self) -> f64 {
        self.0 - base.0
    }

    #[inline]
    fn to_f64(self) -> f64 {
        self.0
    }
}

impl PartialEq for F64 {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for F64 {}

impl PartialOrd for F64 {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }

    #[inline]
    fn lt(&self, other: &Self) -> bool {
        self.0 < other.0
    }

    #[inline]
    fn le(&self, other: &Self) -> bool {
        self.0 <= other.0
    }
}

impl Ord for F64 {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        // Equal but neither smaller nor larger: there is no NaN.
        self.0.partial_cmp(&other.0).unwrap_or(Ordering::Equal)
    }
}

impl std::hash::Hash for F64 {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl fmt::Debug for F64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for F64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<f64> for F64 {
    type Error = Error;

    fn try_from(number: f64) -> Result<Self> {
        Self::new(number)
    }
}

impl From<F64> for f64 {
    fn from(key: F64) -> f64 {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_refused_and_zeros_are_one() {
        assert!(matches!(F64::new(f64::NAN), Err(Error::NotANumber)));
        assert_eq!(F64::new(-0.0).unwrap().get().to_bits(), 0f64.to_bits());
        assert!(F64::new(f64::NEG_INFINITY).unwrap() < F64::new(f64::MIN).unwrap());
    }

    #[test]
    fn offsets_are_taken_before_rounding() {
        let base = u64::MAX - 10;
        assert_eq!(u64::MAX.offset_from(base), 10.0);
        assert_eq!(base.offset_from(u64::MAX), 0.0);
        assert_eq!(i64::MAX.offset_from(i64::MIN), 2f64.powi(63));
        assert_eq!(F64(5.5).offset_from(F64(5.0)), 0.5);
    }
}
