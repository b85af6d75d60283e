//! Integer codes with the grid that gives them their values.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which weights share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// One scale for the whole matrix.
    Tensor,
    /// One scale per row (output channel).
    Channel,
    /// One scale per row and run of this many inputs. The last group of a row may be shorter.
    Group(usize),
}

impl Granularity {
    /// How many groups a row of `cols` inputs has (per tensor and per channel: one).
    pub fn groups(self, cols: usize) -> usize {
        match self {
            Granularity::Tensor | Granularity::Channel => 1,
            Granularity::Group(size) => cols.div_ceil(size),
        }
    }

    /// The number of inputs in a full group.
    pub fn group_len(self, cols: usize) -> usize {
        match self {
            Granularity::Tensor | Granularity::Channel => cols,
            Granularity::Group(size) => size.min(cols),
        }
    }
}

/// The type a scale is rounded to before codes are computed, and stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleType {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
}

/// A quantised matrix: `weight[o, i] = scale · (code − zero)`.
///
/// Codes and zero points are unsigned, `0 … 2^bits − 1`; a symmetric grid has the zero point `2^(bits−1)`
/// everywhere and stores none. Scales are row-major `[rows, groups]` (one value for
/// [`Granularity::Tensor`]) and already rounded to `scale_type`.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Bits per code, 1 to 8.
    pub bits: u8,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// The type scales are rounded to.
    pub scale_type: ScaleType,
    /// Row-major codes, `[rows, cols]`.
    pub codes: Vec<u8>,
    /// Scales, `[rows, groups]` or one.
    pub scales: Vec<f32>,
    /// Zero points in the layout of the scales; `None` for a symmetric grid.
    pub zeros: Option<Vec<u8>>,
    /// The group of every input where groups are not consecutive (dynamic activation order).
    pub group_index: Option<Vec<u32>>,
}

impl Quantized {
    /// Checks that every buffer has the length its shape asks for and every value is in range.
    pub fn validate(&self) -> Result<()> {
        let scales = match self.granularity {
            Granularity::Tensor => 1,
            other => self.rows * other.groups(self.cols),
        };
        let check = |what: &str, expected: usize, found: usize| {
            if expected == found {
                return Ok(());
            }
            Err(Error::Shape { what: format!("quantised {what}"), expected: vec![expected], found: vec![found] })
        };
        if !(1..=8).contains(&self.bits) {
            return Err(Error::Invalid(format!("{} bits per code: 1 to 8 are possible", self.bits)));
        }
        check("codes", self.rows * self.cols, self.codes.len())?;
        check("scales", scales, self.scales.len())?;
        if let Some(zeros) = &self.zeros {
            check("zero points", scales, zeros.len())?;
        }
        if let Some(index) = &self.group_index {
            check("group index", self.cols, index.len())?;
            let groups = self.granularity.groups(self.cols) as u32;
            if index.iter().any(|&group| group >= groups) {
                return Err(Error::Invalid(format!("group index beyond the {groups} groups of a row")));
            }
        }
        let max = self.max_code();
        if self.codes.iter().chain(self.zeros.iter().flatten()).any(|&code| code > max) {
            return Err(Error::Invalid(format!("a code exceeds {max}, the largest of {} bits", self.bits)));
        }
        Ok(())
    }

    /// The largest code, `2^bits − 1`.
    pub fn max_code(&self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }

    /// The zero point of a symmetric grid, `2^(bits−1)`.
    pub fn symmetric_zero(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// The index into `scales` for an element.
    pub fn scale_index(&self, row: usize, col: usize) -> usize {
        let group = || match (&self.group_index, self.granularity) {
            (Some(index), _) => index[col] as usize,
            (None, Granularity::Group(size)) => col / size,
            _ => 0,
        };
        match self.granularity {
            Granularity::Tensor => 0,
            other => row * other.groups(self.cols) + group(),
        }
    }

    /// The value of one element.
    pub fn value(&self, row: usize, col: usize) -> f32 {
        let at = self.scale_index(row, col);
        let zero = self.zeros.as_ref().map_or(self.symmetric_zero(), |zeros| zeros[at]);
        self.scales[at] * (f32::from(self.codes[row * self.cols + col]) - f32::from(zero))
    }

    /// All values, row-major `[rows, cols]`.
    pub fn dequantize(&self) -> Vec<f32> {
        (0..self.rows * self.cols).map(|i| self.value(i / self.cols, i % self.cols)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_groups_and_zero_points() {
        let q = Quantized {
            rows: 2,
            cols: 3,
            bits: 2,
            granularity: Granularity::Group(2),
            scale_type: ScaleType::F32,
            codes: vec![0, 1, 3, 2, 2, 0],
            scales: vec![1.0, 0.5, 2.0, 4.0],
            zeros: Some(vec![1, 0, 2, 3]),
            group_index: None,
        };
        q.validate().unwrap();
        assert_eq!(q.dequantize(), [-1.0, 0.0, 1.5, 0.0, 0.0, -12.0]);
        let symmetric = Quantized { zeros: None, ..q.clone() };
        assert_eq!(symmetric.dequantize()[0], -2.0);
        assert!(Quantized { scales: vec![1.0; 3], ..q.clone() }.validate().is_err());
        assert!(Quantized { codes: vec![4; 6], ..q }.validate().is_err());
    }
}
