//! From any [`ScoreMethod`] to a [`LayerMethod`]: scores, selection, guards.

use kindling_core::{Compressed, Cx, Layer, LayerMethod, LayerShape, Needs, Result, ScoreMethod, Stats};

use crate::{Selection, host};

/// Prunes by the scores of `S`, as its selection says.
///
/// A layer that no calibration token reached is pruned by magnitude, with a note; a score that is NaN or
/// infinite is an error.
#[derive(Debug, Clone)]
pub struct ScorePruner<S> {
    /// How much each weight matters.
    pub method: S,
    /// Who goes.
    pub selection: Selection,
}

impl<S: ScoreMethod> LayerMethod for ScorePruner<S> {
    fn needs(&self) -> Needs {
        self.method.needs()
    }

    fn check(&self, shape: &LayerShape) -> Result<()> {
        self.selection.check(shape)
    }

    fn bits_per_weight(&self, _shape: &LayerShape, dense_bits: f64) -> f64 {
        dense_bits
    }

    fn compress(&self, layer: &Layer, stats: &Stats, cx: &Cx) -> Result<Compressed> {
        cx.check()?;
        let weight = host::values(layer, "weight", &layer.weight)?;
        let (scores, notes) = scores(&self.method, layer, &weight, stats)?;
        let mask = self.selection.select(&layer.shape, scores, layer.mask.as_ref())?;
        Ok(host::pruned(layer, weight, mask, notes))
    }
}

/// The scores of a layer on the host, or its magnitudes and a note if nothing reached it.
pub(crate) fn scores(
    method: &impl ScoreMethod,
    layer: &Layer,
    weight: &[f32],
    stats: &Stats,
) -> Result<(Vec<f32>, Vec<String>)> {
    let needs = method.needs();
    stats.require(&layer.shape.name, needs, layer.shape.cols)?;
    if needs > Needs::Nothing && stats.tokens == 0 {
        return Ok((host::magnitudes(weight), vec![host::UNSEEN.into()]));
    }
    Ok((host::values(layer, "scores", &method.score(layer, stats)?)?, Vec::new()))
}
