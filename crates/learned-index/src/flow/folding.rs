//! A flow that folds.
//!
//! The key, scaled to `[0, S]`, is split into its whole part and its fraction, and a tiny network with positive weights
//! adds up both. That lays `S` strips of the key range over each other: locally dense keys come apart because their
//! fractions spread. The price is the order: neighbours in the key are no neighbours in the result.
//!
//! Source: "NFL: Robust Learned Index via Distribution Transformation" (arXiv 2205.11807); blocks after "Block Neural
//! Autoregressive Flow" (arXiv 1904.04676). Cost: two hyperbolic tangents a key for the usual size.

use serde::{Deserialize, Serialize};

use super::tanh::{ROUND, tanh};
use crate::error::{Error, Result};
use crate::raw::simd;

/// Rows (inputs) × columns (outputs), by rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// Inputs.
    pub rows: usize,
    /// Outputs.
    pub columns: usize,
    /// Entries.
    pub entries: Vec<f64>,
}

/// A flow as serde stores it: what [`FoldingFlow::new`] takes, so that it is checked again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    mean: f64,
    var: f64,
    layers: Vec<Matrix>,
    raw_first_feature: bool,
}

impl TryFrom<Stored> for FoldingFlow {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self> {
        let flow = Self::new(stored.mean, stored.var, stored.layers)?;
        Ok(Self { raw_first_feature: stored.raw_first_feature, ..flow })
    }
}

impl From<FoldingFlow> for Stored {
    fn from(flow: FoldingFlow) -> Self {
        let FoldingFlow { mean, var, layers, raw_first_feature, .. } = flow;
        Self { mean, var, layers, raw_first_feature }
    }
}

/// A trained flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct FoldingFlow {
    /// What is subtracted from a key: the smallest key it was trained on.
    pub mean: f64,
    /// What the difference is divided by: the range of the keys over `S`.
    pub var: f64,
    /// Layers, with a hyperbolic tangent between two; the outputs of the last are added.
    layers: Vec<Matrix>,
    /// Whether the first feature keeps its fraction, as in the published inference code. The training code cuts it off.
    pub raw_first_feature: bool,
    /// The network of the usual size in two lines: weights of both tangents, of both outputs.
    small: Option<[f64; 6]>,
}

/// Widest layer that a flow may have.
pub const MAX_WIDTH: usize = 64;

impl FoldingFlow {
    /// A flow of these layers: inputs of the first and outputs of the last are the features, 1 or 2.
    ///
    /// # Errors
    /// [`Error::Invalid`] if shapes do not fit together or numbers are not finite.
    pub fn new(mean: f64, var: f64, layers: Vec<Matrix>) -> Result<Self> {
        let invalid = |what: String| Err(Error::Invalid(format!("flow: {what}")));
        let (Some(first), Some(last)) = (layers.first(), layers.last()) else {
            return invalid("expected at least one layer, found none".into());
        };
        if !(1..=2).contains(&first.rows) || last.columns != first.rows {
            return invalid(format!(
                "expected 1 or 2 features in and as many out, found {} in and {} out",
                first.rows, last.columns
            ));
        }
        if let Some(two) = layers.windows(2).find(|two| two[0].columns != two[1].rows) {
            return invalid(format!("a layer gives {} values, the next takes {}", two[0].columns, two[1].rows));
        }
        for layer in &layers {
            if layer.columns > MAX_WIDTH || layer.entries.len() != layer.rows * layer.columns {
                return invalid(format!(
                    "a layer of {} × {} with {} entries (at most {MAX_WIDTH} wide)",
                    layer.rows,
                    layer.columns,
                    layer.entries.len()
                ));
            }
        }
        let finite = layers.iter().flat_map(|layer| &layer.entries).all(|x| x.is_finite());
        if !finite || !mean.is_finite() || !var.is_finite() || var <= 0.0 {
            return invalid(format!("expected finite weights and a positive scale, found a scale of {var}"));
        }
        let small = match &layers[..] {
            [first, last] if first.entries.len() == 4 && last.entries.len() == 4 => {
                let (a, b) = (&first.entries, &last.entries);
                Some([a[0], a[2], a[1], a[3], b[0] + b[1], b[2] + b[3]])
            }
            _ => None,
        };
        Ok(Self { mean, var, layers, raw_first_feature: false, small })
    }

    /// Layers of the network.
    pub fn layers(&self) -> &[Matrix] {
        &self.layers
    }

    /// Features of a key.
    pub fn features(&self) -> usize {
        self.layers[0].rows
    }

    /// Where a key goes.
    pub fn transform(&self, key: f64) -> f64 {
        self.transform_offset(key - self.mean)
    }

    /// Where the key goes that lies `offset` above [`FoldingFlow::mean`].
    #[inline]
    pub fn transform_offset(&self, offset: f64) -> f64 {
        match &self.small {
            Some(weights) => self.transform_small(weights, offset),
            None => self.transform_any(offset),
        }
    }

    /// Replaces offsets by where their keys go; bit for bit what [`FoldingFlow::transform_offset`] gives.
    pub fn transform_offsets(&self, offsets: &mut [f64]) {
        match &self.small {
            Some(weights) => simd::run(
                #[inline(always)]
                || offsets.iter_mut().for_each(|x| *x = self.transform_small(weights, *x)),
            ),
            None => offsets.iter_mut().for_each(|x| *x = self.transform_any(*x)),
        }
    }

    /// Whole part (or all) and fraction of a scaled key.
    #[inline(always)]
    fn split(&self, offset: f64) -> (f64, f64) {
        let x = offset / self.var;
        let nearest = (x + ROUND) - ROUND;
        let whole = if nearest > x { nearest - 1.0 } else { nearest };
        (if self.raw_first_feature { x } else { whole }, x - whole)
    }

    #[inline(always)]
    fn transform_small(&self, weights: &[f64; 6], offset: f64) -> f64 {
        let (whole, fraction) = self.split(offset);
        let first = tanh(whole * weights[0] + fraction * weights[1]);
        let second = tanh(whole * weights[2] + fraction * weights[3]);
        first * weights[4] + second * weights[5]
    }

    fn transform_any(&self, offset: f64) -> f64 {
        let (mut values, mut next) = ([0.0; MAX_WIDTH], [0.0; MAX_WIDTH]);
        if self.features() == 1 {
            values[0] = offset / self.var;
        } else {
            (values[0], values[1]) = self.split(offset);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            for (column, out) in next.iter_mut().enumerate().take(layer.columns) {
                let sum = (0..layer.rows).map(|row| values[row] * layer.entries[row * layer.columns + column]).sum();
                *out = if i + 1 < self.layers.len() { tanh(sum) } else { sum };
            }
            std::mem::swap(&mut values, &mut next);
        }
        values[..self.features()].iter().sum()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::{KeySet, SplitMix64};

    /// The published weights for longitudes.
    pub(in crate::flow) fn longitudes() -> FoldingFlow {
        let matrix = |entries: [f64; 4]| Matrix { rows: 2, columns: 2, entries: entries.to_vec() };
        let layers = vec![
            matrix([2.004_125_515e-7, 8.127e-13, 0.0, 0.013_450_209_128_077_2]),
            matrix([84.125_095_662_133_94, 7.171_774_6e-9, 0.0, 96.297_926_680_684_88]),
        ];
        FoldingFlow::new(-180.0, 0.0036, layers).unwrap()
    }

    #[test]
    fn published_weights_give_the_published_results() {
        let mut flow = longitudes();
        let expected = [
            (-73.9857, 1.036_161, 1.036_154),
            (-73.9856, 1.072_139, 1.072_131),
            (-0.1276, 1.561_922, 1.561_912),
            (139.6917, 1.820_853, 1.820_849),
        ];
        for (key, raw, whole) in expected {
            flow.raw_first_feature = true;
            assert!((flow.transform(key) - raw).abs() < 1e-6, "{key}: {}", flow.transform(key));
            flow.raw_first_feature = false;
            assert!((flow.transform(key) - whole).abs() < 1e-6, "{key}: {}", flow.transform(key));
        }
    }

    #[test]
    fn batches_of_any_size_give_the_same_bits() {
        let mut rng = SplitMix64::new(1);
        let wide = |rows: usize, columns: usize, rng: &mut SplitMix64| Matrix {
            rows,
            columns,
            entries: (0..rows * columns).map(|_| rng.f64() * 0.1).collect(),
        };
        let general =
            FoldingFlow::new(-180.0, 0.0036, vec![wide(2, 8, &mut rng), wide(8, 8, &mut rng), wide(8, 2, &mut rng)]);
        for flow in [longitudes(), general.unwrap()] {
            let offsets: Vec<f64> = (0..4196).map(|_| rng.f64() * 400.0 - 20.0).collect();
            let single: Vec<u64> = offsets.iter().map(|&x| flow.transform_offset(x).to_bits()).collect();
            for size in [1, 2, 3, 7, 8, 255, 256, 4196] {
                let mut batch = offsets.clone();
                batch.chunks_mut(size).for_each(|chunk| flow.transform_offsets(chunk));
                assert!(batch.iter().map(|z| z.to_bits()).eq(single.iter().copied()), "batches of {size}");
            }
        }
    }

    #[test]
    fn it_folds() {
        let keys = KeySet::named("longitudes").unwrap().generate(100_000, 42).to_f64();
        let flow = longitudes();
        let z: Vec<f64> = keys.iter().map(|&key| flow.transform(key)).collect();
        let descents = z.windows(2).filter(|two| two[0] > two[1]).count();
        // As many strips as keys; with ten times as many, more than a third of the neighbours descend.
        assert!(descents > 15_000, "{descents}");
    }

    #[test]
    fn shapes_are_checked() {
        let matrix = |rows, columns, n| Matrix { rows, columns, entries: vec![0.5; n] };
        assert!(FoldingFlow::new(0.0, 1.0, vec![]).is_err());
        assert!(FoldingFlow::new(0.0, 1.0, vec![matrix(2, 3, 6), matrix(2, 2, 4)]).is_err());
        assert!(FoldingFlow::new(0.0, 1.0, vec![matrix(3, 3, 9)]).is_err());
        assert!(FoldingFlow::new(0.0, 1.0, vec![matrix(2, 2, 3)]).is_err());
        assert!(FoldingFlow::new(0.0, 0.0, vec![matrix(2, 2, 4)]).is_err());
        assert!(FoldingFlow::new(f64::NAN, 1.0, vec![matrix(2, 2, 4)]).is_err());
    }
}
