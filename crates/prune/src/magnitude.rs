//! Magnitude pruning: the smallest weights go. The baseline that every other method has to beat.
//!
//! Source: folklore; "Learning both Weights and Connections for Efficient Neural Networks"
//! (arXiv 1506.02626). Needs no data. Cost: one partial selection over the matrix.

use burn::tensor::Tensor;
use kindling_core::options::OptionsError;
use kindling_core::{Family, Layer, Method, MethodEntry, NM, Needs, Options, Result, ScoreMethod, Stats};
use serde::Deserialize;

use crate::{Axis, Keys, Per, ScorePruner, Structure};

/// The line of the method list.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "magnitude",
    family: Family::Prune,
    summary: "removes the smallest weights",
    paper: "Learning both Weights and Connections for Efficient Neural Networks (arXiv 1506.02626)",
    needs: Needs::Nothing,
    build,
};

/// The keys of a stage with `method = "magnitude"`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `"N:M"`: keep N of every M weights.
    pub pattern: Option<NM>,
    /// The fraction to remove; exactly one of `pattern` and `sparsity`.
    pub sparsity: Option<f64>,
    /// Which weights compete (with `sparsity`). Default: the whole matrix.
    pub per: Option<Per>,
    /// The direction of the groups (with `pattern`). Default: along the inputs.
    pub axis: Option<Axis>,
    /// Remove whole rows or columns (with `sparsity`).
    pub structure: Option<Structure>,
}

fn build(options: &Options) -> Result<Method, OptionsError> {
    let Config { pattern, sparsity, per, axis, structure } = options.read("magnitude")?;
    let keys = Keys { pattern, sparsity, per, axis, structure };
    let selection = keys.selection("magnitude", Per::Matrix)?;
    Ok(Method::Layer(Box::new(ScorePruner { method: Magnitude, selection })))
}

/// The score `|W|`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Magnitude;

impl ScoreMethod for Magnitude {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn score(&self, layer: &Layer, _stats: &Stats) -> Result<Tensor<2>> {
        Ok(layer.weight.clone().abs())
    }
}

#[cfg(test)]
mod tests {
    use kindling_core::options::Value;

    use super::*;
    use crate::testing::{W, X, close, dense, digits, error, layer, prune, stats, worked};

    const HALF: &[(&str, Value)] = &[("sparsity", Value::Float(0.5))];

    #[test]
    fn worked_example() {
        let pruned = prune("magnitude", HALF, &worked(), &Stats::new(4, Needs::Nothing));
        assert_eq!(digits(&pruned), "10010110");
        assert_eq!(dense(&pruned), [1.0, 0.0, 0.0, 0.8, 0.0, 0.9, -1.2, 0.0]);
        close(error(&X, &W, &dense(&pruned), 4), 2.0175, 1e-6);
    }

    #[test]
    fn scale_does_not_matter_and_twice_is_once() {
        let stats = stats(&X, 4);
        let once = prune("magnitude", HALF, &worked(), &stats);
        let scaled = layer(worked().shape, &W.map(|w| w * 37.0));
        assert_eq!(digits(&prune("magnitude", HALF, &scaled, &stats)), digits(&once));
        let mut again = layer(worked().shape, &dense(&once));
        again.mask = once.mask.clone();
        assert_eq!(dense(&prune("magnitude", HALF, &again, &stats)), dense(&once));
    }
}
