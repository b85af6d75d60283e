//! Who goes: from a matrix of scores to a [`Mask`], written once for every method.
//!
//! Counts are exact (`⌊g·s⌋` of every comparison group of `g` weights), ties go by position (the lower
//! index is removed first), and a weight that an earlier stage removed counts as the least important of
//! its group: it is the first to be counted and it stays removed. Groups are searched by quickselect, in
//! parallel over rows; the result does not depend on the number of threads.

use kindling_core::options::OptionsError;
use kindling_core::{Error, LayerShape, Mask, NM, Result};
use rayon::prelude::*;
use serde::Deserialize;

/// Which weights compete with each other when a fraction of them is removed one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All weights of the matrix.
    Matrix,
    /// The weights of one output row.
    Row,
    /// The weights of one input column.
    Column,
}

/// The direction in which the groups of an N:M pattern run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// M consecutive inputs of one output row: what sparse matrix units multiply.
    Inputs,
    /// M consecutive output rows of one input column.
    Outputs,
}

/// What is removed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Structure {
    /// Output rows (neurons).
    Rows,
    /// Input columns (features).
    Columns,
}

/// How the scores of a matrix become a mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Selection {
    /// Removes the `⌊g·sparsity⌋` lowest scores of every group.
    Unstructured {
        /// Fraction to remove, 0 to 1.
        sparsity: f64,
        /// The groups.
        per: Per,
    },
    /// Keeps the `N` highest scores of every `M` consecutive ones.
    Pattern {
        /// N and M.
        nm: NM,
        /// The direction of the groups.
        axis: Axis,
    },
    /// Removes the `⌊n·sparsity⌋` whole rows or columns with the lowest sums of scores.
    Structured {
        /// Fraction to remove, 0 to 1.
        sparsity: f64,
        /// Rows or columns.
        structure: Structure,
    },
}

/// The keys of a recipe stage that say how much goes, as a method's config holds them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Keys {
    /// `pattern = "N:M"`.
    pub pattern: Option<NM>,
    /// `sparsity = 0.5`.
    pub sparsity: Option<f64>,
    /// `per`, with `sparsity`.
    pub per: Option<Per>,
    /// `axis`, with `pattern`.
    pub axis: Option<Axis>,
    /// `structure`, with `sparsity`.
    pub structure: Option<Structure>,
}

impl Keys {
    /// The selection that the keys of a stage of `method` mean; `default` are the groups if `per` is absent.
    ///
    /// Errors unless exactly one of `pattern` and `sparsity` is there and the others go with it.
    pub fn selection(&self, method: &str, default: Per) -> Result<Selection, OptionsError> {
        let fail = |reason: &str| Err(OptionsError(format!("{method}: {reason}")));
        match (self.pattern, self.sparsity) {
            (Some(_), Some(_)) => fail("`pattern` and `sparsity` exclude each other; write one of them"),
            (None, None) => fail("write how much to remove: `pattern = \"2:4\"` or `sparsity = 0.5`"),
            (Some(_), None) if self.per.is_some() || self.structure.is_some() => {
                fail("`per` and `structure` go with `sparsity`, not with `pattern`")
            }
            (Some(nm), None) => Ok(Selection::Pattern { nm, axis: self.axis.unwrap_or(Axis::Inputs) }),
            (None, Some(_)) if self.axis.is_some() => fail("`axis` goes with `pattern`, not with `sparsity`"),
            (None, Some(sparsity)) if !(0.0..=1.0).contains(&sparsity) => {
                fail(&format!("`sparsity = {sparsity}`: expected the fraction to remove, between 0 and 1"))
            }
            (None, Some(sparsity)) => match (self.per, self.structure) {
                (Some(_), Some(_)) => fail("`per` and `structure` exclude each other; write one of them"),
                (_, Some(structure)) => Ok(Selection::Structured { sparsity, structure }),
                (per, None) => Ok(Selection::Unstructured { sparsity, per: per.unwrap_or(default) }),
            },
        }
    }
}

impl Selection {
    /// An error that names the layer if the pattern does not divide it.
    pub fn check(&self, layer: &LayerShape) -> Result<()> {
        let Selection::Pattern { nm, axis } = *self else { return Ok(()) };
        let (count, what) = match axis {
            Axis::Inputs => (layer.cols, "input columns"),
            Axis::Outputs => (layer.rows, "output rows"),
        };
        if count.is_multiple_of(nm.of) {
            return Ok(());
        }
        let reason = format!(
            "{count} {what} are no multiple of {}, which the pattern {nm} needs; \
             choose another pattern or leave the layer out with `ignore`",
            nm.of
        );
        Err(Error::layer(&layer.name, reason))
    }

    /// The fraction of the weights that goes.
    pub fn sparsity(&self) -> f64 {
        match *self {
            Selection::Unstructured { sparsity, .. } | Selection::Structured { sparsity, .. } => sparsity,
            Selection::Pattern { nm, .. } => nm.sparsity(),
        }
    }

    /// The mask for row-major `scores` `[rows, cols]` (finite, at least zero), within what `earlier` kept.
    ///
    /// Errors: scores or earlier mask of another shape than the layer, a score that is not a finite
    /// number, a pattern that does not divide the layer.
    pub fn select(&self, layer: &LayerShape, mut scores: Vec<f32>, earlier: Option<&Mask>) -> Result<Mask> {
        let [rows, cols] = prepare(layer, &mut scores, earlier)?;
        self.check(layer)?;
        let row_wise = |scores: &[f32], width: usize, group: usize, count: usize| {
            let mut keep = vec![true; scores.len()];
            let width = width.max(1);
            keep.par_chunks_mut(width).zip(scores.par_chunks(width)).for_each_init(Vec::new, |scratch, (keep, row)| {
                for (keep, scores) in keep.chunks_mut(group).zip(row.chunks(group)) {
                    drop_lowest(scores, count, scratch, keep);
                }
            });
            keep
        };
        let column_wise = |group: usize, count: usize| {
            let keep = row_wise(&transpose(&scores, rows, cols), rows, group, count);
            transpose(&keep, cols, rows)
        };
        let keep = match *self {
            Selection::Unstructured { sparsity, per: Per::Matrix } => {
                let all = scores.len();
                row_wise(&scores, all, all.max(1), exact_count(all, sparsity))
            }
            Selection::Unstructured { sparsity, per: Per::Row } => {
                row_wise(&scores, cols, cols.max(1), exact_count(cols, sparsity))
            }
            Selection::Unstructured { sparsity, per: Per::Column } => {
                column_wise(rows.max(1), exact_count(rows, sparsity))
            }
            Selection::Pattern { nm, axis: Axis::Inputs } => row_wise(&scores, cols, nm.of, nm.of - nm.keep),
            Selection::Pattern { nm, axis: Axis::Outputs } => column_wise(nm.of, nm.of - nm.keep),
            Selection::Structured { sparsity, structure } => {
                structured(&scores, [rows, cols], structure, exact_count_of(structure, rows, cols, sparsity))
            }
        };
        Mask::new(rows, cols, keep)
    }
}

/// `⌊group · sparsity⌋`, where a product that only rounding keeps below a whole number counts as that
/// number: 0.29 of 100 is 29.
pub fn exact_count(group: usize, sparsity: f64) -> usize {
    let count = group as f64 * sparsity * (1.0 + 2.0 * f64::EPSILON);
    (count.floor() as usize).min(group)
}

fn exact_count_of(structure: Structure, rows: usize, cols: usize, sparsity: f64) -> usize {
    match structure {
        Structure::Rows => exact_count(rows, sparsity),
        Structure::Columns => exact_count(cols, sparsity),
    }
}

/// Checks sizes and numbers, then gives removed weights the score −∞.
pub(crate) fn prepare(layer: &LayerShape, scores: &mut [f32], earlier: Option<&Mask>) -> Result<[usize; 2]> {
    let shape = [layer.rows, layer.cols];
    let mismatch = |what: &str, found: Vec<usize>| Error::Shape {
        what: format!("{what} of layer `{}`", layer.name),
        expected: shape.to_vec(),
        found,
    };
    if scores.len() != layer.rows * layer.cols {
        return Err(mismatch("scores", vec![scores.len()]));
    }
    if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
        let reason = format!(
            "the score of weight [{}, {}] is {}; the weights or the calibration statistics contain NaN or infinity",
            at / layer.cols,
            at % layer.cols,
            scores[at]
        );
        return Err(Error::Numerics { layer: layer.name.clone(), reason });
    }
    if let Some(earlier) = earlier {
        if earlier.shape() != shape {
            return Err(mismatch("earlier mask", earlier.shape().to_vec()));
        }
        for (score, &kept) in scores.iter_mut().zip(earlier.as_slice()) {
            if !kept {
                *score = f32::NEG_INFINITY;
            }
        }
    }
    Ok(shape)
}

/// Clears `keep` for the `count` lowest of `scores` by (score, index), and for every −∞.
pub(crate) fn drop_lowest(scores: &[f32], count: usize, scratch: &mut Vec<f32>, keep: &mut [bool]) {
    let threshold = match count.min(scores.len()) {
        0 => f32::NEG_INFINITY,
        count => {
            scratch.clear();
            scratch.extend_from_slice(scores);
            *scratch.select_nth_unstable_by(count - 1, f32::total_cmp).1
        }
    };
    let below = scores.iter().filter(|&&score| score < threshold).count();
    let mut ties = count.saturating_sub(below);
    for (keep, &score) in keep.iter_mut().zip(scores) {
        let tied = score == threshold && ties > 0;
        ties -= usize::from(tied);
        if tied || score < threshold || score == f32::NEG_INFINITY {
            *keep = false;
        }
    }
}

/// Removes whole rows or columns. A weight removed earlier adds nothing to its sum; a row or column of
/// which nothing is left goes first.
fn structured(scores: &[f32], [rows, cols]: [usize; 2], structure: Structure, count: usize) -> Vec<bool> {
    let by_rows = structure == Structure::Rows;
    let mut sums = vec![None; if by_rows { rows } else { cols }];
    for (at, &score) in scores.iter().enumerate().filter(|(_, score)| score.is_finite()) {
        let unit = if by_rows { at / cols } else { at % cols };
        *sums[unit].get_or_insert(0.0) += f64::from(score);
    }
    let sums: Vec<f32> = sums.into_iter().map(|sum| sum.map_or(f32::NEG_INFINITY, |sum| sum as f32)).collect();
    let mut kept = vec![true; sums.len()];
    drop_lowest(&sums, count, &mut Vec::new(), &mut kept);
    let unit = |at: usize| if by_rows { at / cols } else { at % cols };
    scores.iter().enumerate().map(|(at, score)| kept[unit(at)] && score.is_finite()).collect()
}

/// The row-major transpose of a row-major matrix `[rows, cols]`.
fn transpose<T: Copy + Default + Send + Sync>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    let mut out = vec![T::default(); values.len()];
    out.par_chunks_mut(rows.max(1)).enumerate().for_each(|(col, out)| {
        out.iter_mut().enumerate().for_each(|(row, to)| *to = values[row * cols + col]);
    });
    out
}

#[cfg(test)]
mod tests {
    use kindling_core::Role;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{flags, shape};

    fn select(selection: Selection, [rows, cols]: [usize; 2], scores: &[f32], earlier: Option<&str>) -> String {
        let earlier = earlier.map(|digits| Mask::new(rows, cols, digits.chars().map(|c| c == '1').collect()).unwrap());
        let mask = selection.select(&shape(Role::Query, rows, cols), scores.to_vec(), earlier.as_ref()).unwrap();
        flags(mask.as_slice())
    }

    const SCORES: [f32; 8] = [4., 3., 2., 1., 1., 2., 3., 4.];

    #[test]
    fn groups_compete_as_named() {
        let half = |per| Selection::Unstructured { sparsity: 0.5, per };
        assert_eq!(select(half(Per::Row), [2, 4], &SCORES, None), "11000011");
        assert_eq!(select(half(Per::Column), [2, 4], &SCORES, None), "11000011");
        // Of the two weights of score 3 and the two of score 4 all stay; lower scores go.
        assert_eq!(select(half(Per::Matrix), [2, 4], &SCORES, None), "11000011");
        let quarter = |per| Selection::Unstructured { sparsity: 0.375, per };
        assert_eq!(select(quarter(Per::Matrix), [2, 4], &SCORES, None), "11000111", "ties: the lower index goes");
        assert_eq!(select(quarter(Per::Row), [2, 4], &SCORES, None), "11100111", "one of four");
        assert_eq!(select(quarter(Per::Column), [2, 4], &SCORES, None), "11111111", "none of two");
    }

    #[test]
    fn patterns_run_along_either_axis() {
        let nm = NM::new(1, 2).unwrap();
        assert_eq!(select(Selection::Pattern { nm, axis: Axis::Inputs }, [2, 4], &SCORES, None), "10100101");
        assert_eq!(select(Selection::Pattern { nm, axis: Axis::Outputs }, [2, 4], &SCORES, None), "11000011");
        let nm = NM::new(2, 4).unwrap();
        assert_eq!(select(Selection::Pattern { nm, axis: Axis::Inputs }, [1, 4], &[1.0; 4], None), "0011");
        let check = |axis, rows, cols| Selection::Pattern { nm, axis }.check(&shape(Role::Query, rows, cols));
        let message = check(Axis::Inputs, 4, 6).unwrap_err().to_string();
        assert!(message.contains("`Query`") && message.contains("6 input columns") && message.contains("2:4"));
        assert!(check(Axis::Outputs, 6, 4).is_err());
        assert!(check(Axis::Outputs, 4, 6).is_ok());
    }

    #[test]
    fn structures_go_as_a_whole() {
        let selection = |structure| Selection::Structured { sparsity: 0.5, structure };
        let scores = [1., 9., 1., 1., 1., 8., 1., 3., 1., 1., 1., 1.];
        assert_eq!(select(selection(Structure::Rows), [4, 3], &scores, None), "111111000000");
        assert_eq!(select(selection(Structure::Columns), [3, 4], &scores, None), "010101010101");
        // Column sums become [3, 17, 3, nothing left]: the last column is the first of the two that go.
        let earlier = Some("111011101010");
        assert_eq!(select(selection(Structure::Columns), [3, 4], &scores, earlier), "011001100010");
    }

    #[test]
    fn earlier_masks_are_kept_and_counted() {
        let half = Selection::Unstructured { sparsity: 0.5, per: Per::Row };
        assert_eq!(select(half, [2, 4], &SCORES, Some("01111111")), "01100011");
        assert_eq!(select(half, [2, 4], &SCORES, Some("00010000")), "00010000", "more is gone than asked for");
        let nm = NM::new(2, 4).unwrap();
        let pattern = Selection::Pattern { nm, axis: Axis::Inputs };
        assert_eq!(select(pattern, [2, 4], &SCORES, Some("01110111")), "01100011");
    }

    #[test]
    fn counts_survive_rounding() {
        assert_eq!(exact_count(100, 0.29), 29);
        assert_eq!(exact_count(100, 0.57), 57);
        assert_eq!(exact_count(7, 0.5), 3);
        assert_eq!((exact_count(9, 0.0), exact_count(9, 1.0), exact_count(0, 0.5)), (0, 9, 0));
        assert_eq!(exact_count(4096, 0.4999999), 2047);
    }

    #[test]
    fn bad_scores_and_masks_are_errors() {
        let half = Selection::Unstructured { sparsity: 0.5, per: Per::Row };
        let shape = shape(Role::Query, 1, 3);
        let message =
            |scores: Vec<f32>, mask: Option<&Mask>| half.select(&shape, scores, mask).unwrap_err().to_string();
        assert!(
            message(vec![1.0, f32::NAN, 0.0], None).starts_with("layer `Query`: the score of weight [0, 1] is NaN")
        );
        assert!(message(vec![1.0], None).contains("expected shape [1, 3], found [1]"));
        let mask = Mask::new(3, 1, vec![true; 3]).unwrap();
        assert!(message(vec![1.0; 3], Some(&mask)).contains("earlier mask"));
    }

    #[test]
    fn keys_are_checked_together() {
        let nm = NM::new(2, 4).ok();
        let fails = |keys: Keys, expected: &str| {
            let message = keys.selection("m", Per::Row).unwrap_err().to_string();
            assert!(message.starts_with("m: ") && message.contains(expected), "{message}");
        };
        let none = Keys::default();
        fails(none, "how much to remove");
        fails(Keys { pattern: nm, sparsity: Some(0.5), ..none }, "exclude each other");
        fails(Keys { sparsity: Some(50.0), ..none }, "between 0 and 1");
        fails(Keys { sparsity: Some(f64::NAN), ..none }, "between 0 and 1");
        fails(Keys { pattern: nm, per: Some(Per::Row), ..none }, "`per`");
        fails(Keys { sparsity: Some(0.5), axis: Some(Axis::Inputs), ..none }, "`axis`");
        let both = Keys { per: Some(Per::Row), structure: Some(Structure::Rows), ..none };
        fails(Keys { sparsity: Some(0.5), ..both }, "exclude each other");
        let row = Keys { sparsity: Some(0.5), ..none }.selection("m", Per::Row).unwrap();
        assert_eq!(row, Selection::Unstructured { sparsity: 0.5, per: Per::Row });
    }

    proptest! {
        #[test]
        fn quickselect_agrees_with_a_stable_sort(
            levels in prop::collection::vec(0u8..6, 0..40), share in 0.0f64..=1.0,
        ) {
            let scores: Vec<f32> = levels.iter().map(|&l| if l == 0 { f32::NEG_INFINITY } else { f32::from(l) }).collect();
            let count = exact_count(scores.len(), share);
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            let mut expected: Vec<bool> = scores.iter().map(|s| s.is_finite()).collect();
            order[..count].iter().for_each(|&at| expected[at] = false);
            let mut keep = vec![true; scores.len()];
            drop_lowest(&scores, count, &mut Vec::new(), &mut keep);
            prop_assert_eq!(keep, expected);
        }
    }
}
