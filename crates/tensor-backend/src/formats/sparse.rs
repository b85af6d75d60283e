//! N:M sparsity: of every aligned group of M weights at most N are kept, each with its place in the group.
//!
//! Layout: groups run along the inputs (a group is M neighbours of a row) or along the outputs (a group is M
//! neighbours of a column). A *line* is a row, or a block of M rows. Along the inputs, a line holds its kept
//! weights group after group; along the outputs it holds the first kept weight of every column, then the second,
//! and so on. Places are `⌈log₂ M⌉`-bit codes in the same order, each line from a new word on
//! ([`kindling_core::pack`]). Within a group places ascend; a group with fewer than N non-zero weights is filled
//! with zeros at its lowest free places.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use kindling_core::NM;
use kindling_core::pack::{pack_rows, words_for};
use rayon::prelude::*;

use super::packed::unpack_codes;
use super::{FormatError, Result, check_len, to_tensor};

/// The direction in which the M weights of a group lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Neighbours in a row share a group.
    Inputs,
    /// Neighbours in a column share a group.
    Outputs,
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Axis::Inputs => "inputs",
            Axis::Outputs => "outputs",
        })
    }
}

/// An N:M sparse weight.
///
/// Size: 4 bytes per kept weight (`out · in · N / M` of them) and `⌈log₂ M⌉` bits for its place, each line rounded
/// up to a word.
#[derive(Debug, Clone)]
pub struct Sparse {
    rows: usize,
    cols: usize,
    pattern: NM,
    axis: Axis,
    values: Arc<[f32]>,
    places: Arc<[u32]>,
}

impl Sparse {
    /// The name in files.
    pub const CODE: &str = "sparse_nm";

    /// Compresses a row-major matrix `[rows, cols]` that obeys `pattern` along `axis`; an error if it does not.
    ///
    /// A negative zero counts, and comes back, as zero.
    pub fn from_host(rows: usize, cols: usize, weight: &[f32], pattern: NM, axis: Axis) -> Result<Self> {
        check_len("weight to compress", weight.len(), rows, cols)?;
        if let Err(reason) = obeys(rows, cols, weight, pattern, axis) {
            return Err(FormatError::Unfit { format: format!("sparse {pattern} along {axis}"), reason });
        }
        let NM { keep, of } = pattern;
        let shape = Shape { cols, pattern, axis };
        let (mut values, mut places) = (vec![0.0; shape.kept(rows)], vec![0u8; shape.kept(rows)]);
        let (kept_per_line, line) = (shape.kept_per_line(), shape.line());
        values
            .par_chunks_mut(kept_per_line)
            .zip(places.par_chunks_mut(kept_per_line))
            .zip(weight.par_chunks(line))
            .for_each(|((values, places), weight)| {
                for group in 0..line / of {
                    let nonzero = (0..of).filter(|&place| weight[shape.element(group, place)] != 0.0).count();
                    let mut fill = keep - nonzero;
                    let mut slot = 0;
                    for place in 0..of {
                        let value = weight[shape.element(group, place)];
                        if value == 0.0 && fill == 0 {
                            continue;
                        }
                        let at = shape.slot(group, slot);
                        (places[at], values[at]) = (place as u8, value + 0.0);
                        slot += 1;
                        fill -= usize::from(value == 0.0);
                    }
                }
            });
        let places = if places.is_empty() { Vec::new() } else { pack_rows(&places, kept_per_line, shape.bits())? };
        Ok(Self { rows, cols, pattern, axis, values: values.into(), places: places.into() })
    }

    /// The common pattern and axis in which a row-major matrix `[rows, cols]` takes the least memory, if it obeys
    /// one. Along the inputs is tried first.
    pub fn detect(rows: usize, cols: usize, weight: &[f32]) -> Option<(NM, Axis)> {
        // In the order of size.
        const COMMON: [(usize, usize); 11] =
            [(1, 16), (1, 8), (1, 4), (2, 8), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (3, 4), (6, 8)];
        if weight.is_empty() || weight.len() != rows * cols {
            return None;
        }
        let candidates = COMMON
            .into_iter()
            .map(|(keep, of)| NM { keep, of })
            .flat_map(|pattern| [Axis::Inputs, Axis::Outputs].map(|axis| (pattern, axis)));
        candidates.into_iter().find(|&(pattern, axis)| obeys(rows, cols, weight, pattern, axis).is_ok())
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The pattern.
    pub fn pattern(&self) -> NM {
        self.pattern
    }

    /// The direction of its groups.
    pub fn axis(&self) -> Axis {
        self.axis
    }

    /// The kept weights, in the order of the layout.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The words of their places.
    pub fn places(&self) -> &[u32] {
        &self.places
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        4 * (self.values.len() + self.places.len())
    }

    /// For example `sparse 2:4`, or `sparse 2:4 along outputs`.
    pub fn format_name(&self) -> String {
        match self.axis {
            Axis::Inputs => format!("sparse {}", self.pattern),
            Axis::Outputs => format!("sparse {} along outputs", self.pattern),
        }
    }

    /// All values, row-major.
    pub fn to_host(&self) -> Vec<f32> {
        let shape = Shape { cols: self.cols, pattern: self.pattern, axis: self.axis };
        let (kept, words) = (shape.kept_per_line(), words_for(shape.kept_per_line(), shape.bits()));
        let mut out = vec![0.0; self.rows * self.cols];
        out.par_chunks_mut(shape.line().max(1)).enumerate().for_each_init(
            || vec![0u8; kept],
            |places, (line, out)| {
                unpack_codes(&self.places[line * words..][..words], shape.bits(), places);
                let values = &self.values[line * kept..][..kept];
                for (at, (&value, &place)) in values.iter().zip(&*places).enumerate() {
                    out[shape.element(shape.group_of(at), place.into())] = value;
                }
            },
        );
        out
    }

    /// All values as an f32 tensor `[out, in]`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        to_tensor(self.to_host(), self.rows, self.cols, device)
    }
}

/// Where groups, places and slots lie within a line.
#[derive(Clone, Copy)]
struct Shape {
    cols: usize,
    pattern: NM,
    axis: Axis,
}

impl Shape {
    /// Weights of a line.
    fn line(self) -> usize {
        match self.axis {
            Axis::Inputs => self.cols,
            Axis::Outputs => self.cols * self.pattern.of,
        }
    }

    fn kept_per_line(self) -> usize {
        self.line() / self.pattern.of * self.pattern.keep
    }

    fn kept(self, rows: usize) -> usize {
        rows * self.cols / self.pattern.of * self.pattern.keep
    }

    /// Bits of a place, `⌈log₂ M⌉`.
    fn bits(self) -> u8 {
        self.pattern.of.next_power_of_two().trailing_zeros() as u8
    }

    /// Position in the line of a group's weight at `place`.
    fn element(self, group: usize, place: usize) -> usize {
        match self.axis {
            Axis::Inputs => group * self.pattern.of + place,
            Axis::Outputs => place * self.cols + group,
        }
    }

    /// Position among the line's kept weights of a group's kept weight `slot`.
    fn slot(self, group: usize, slot: usize) -> usize {
        match self.axis {
            Axis::Inputs => group * self.pattern.keep + slot,
            Axis::Outputs => slot * self.cols + group,
        }
    }

    /// The group of a kept weight.
    fn group_of(self, at: usize) -> usize {
        match self.axis {
            Axis::Inputs => at / self.pattern.keep,
            Axis::Outputs => at % self.cols,
        }
    }
}

/// Says what breaks the pattern.
fn obeys(rows: usize, cols: usize, weight: &[f32], pattern: NM, axis: Axis) -> Result<(), String> {
    let NM { keep, of } = pattern;
    let along = if axis == Axis::Inputs { cols } else { rows };
    if !along.is_multiple_of(of) {
        return Err(format!("the {along} {axis} of a [{rows}, {cols}] matrix are no multiple of {of}"));
    }
    let shape = Shape { cols, pattern, axis };
    let line = shape.line().max(1);
    let breaks = weight.par_chunks(line).enumerate().find_map_first(|(index, weight)| {
        let too_many =
            |group: &usize| (0..of).filter(|&place| weight[shape.element(*group, place)] != 0.0).count() > keep;
        (0..line / of).find(too_many).map(|group| index * line + shape.element(group, 0))
    });
    match breaks {
        None => Ok(()),
        Some(at) => {
            let (row, col) = (at / cols, at % cols);
            Err(format!("the group that starts at row {row}, column {col} has more than {keep} non-zero weights"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_FOUR: NM = NM { keep: 2, of: 4 };

    #[test]
    fn two_of_four_along_inputs_is_pinned() {
        let weight = [0., 1., 0., 2., 3., 0., 0., 0.];
        let sparse = Sparse::from_host(1, 8, &weight, TWO_FOUR, Axis::Inputs).unwrap();
        // The second group is filled up with a zero at its lowest free place.
        assert_eq!(sparse.values(), &[1., 2., 3., 0.]);
        assert_eq!(sparse.places(), &[0b01_00_11_01]);
        assert_eq!(sparse.bytes(), 4 * 4 + 4);
        assert_eq!(sparse.format_name(), "sparse 2:4");
        assert_eq!(sparse.to_host(), weight);
    }

    #[test]
    fn two_of_four_along_outputs_is_pinned() {
        // Columns (1, 0, 2, 0), (0, 0, 0, 3) and (0, 4, 5, 0).
        let weight = [1., 0., 0., 0., 0., 4., 2., 0., 5., 0., 3., 0.];
        let sparse = Sparse::from_host(4, 3, &weight, TWO_FOUR, Axis::Outputs).unwrap();
        assert_eq!(sparse.values(), &[1., 0., 4., 2., 3., 5.]);
        assert_eq!(sparse.places(), &[0b10_11_10_01_00_00]);
        assert_eq!(sparse.format_name(), "sparse 2:4 along outputs");
        assert_eq!(sparse.to_host(), weight);
    }

    #[test]
    fn detection_finds_the_smallest_pattern_on_either_axis() {
        let found = |rows, cols, weight: &[f32]| {
            Sparse::detect(rows, cols, weight).map(|(pattern, axis)| (pattern.to_string(), axis))
        };
        assert_eq!(found(1, 8, &[0., 0., 1., 2., 3., 0., 0., 4.]), Some(("2:4".into(), Axis::Inputs)));
        assert_eq!(found(1, 8, &[0., 1., 0., 0., 3., 0., 0., 0.]), Some(("1:4".into(), Axis::Inputs)));
        assert_eq!(found(1, 8, &[1., 1., 1., 1., 0., 0., 0., 0.]), Some(("4:8".into(), Axis::Inputs)));
        let columns = [1., 2., 3., 0., 0., 0., 4., 5., 6., 0., 0., 0.];
        assert_eq!(found(4, 3, &columns), Some(("1:2".into(), Axis::Outputs)));
        assert_eq!(found(1, 8, &[1.; 8]), None);
        assert_eq!(found(1, 5, &[0.; 5]), None);
    }

    #[test]
    fn matrices_that_break_the_pattern_are_refused() {
        let error = Sparse::from_host(1, 4, &[1., 1., 1., 0.], TWO_FOUR, Axis::Inputs).unwrap_err();
        assert!(error.to_string().contains("row 0, column 0"), "{error}");
        let error = Sparse::from_host(1, 6, &[0.; 6], TWO_FOUR, Axis::Inputs).unwrap_err();
        assert!(error.to_string().contains("no multiple of 4"), "{error}");
        assert!(Sparse::from_host(1, 4, &[0.; 5], TWO_FOUR, Axis::Inputs).is_err());
    }
}
