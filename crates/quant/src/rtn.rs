//! Round to nearest: every weight goes to the nearest value of its group's grid.
//!
//! Source: folklore. The error measure of the clip search (exponent 2.4, 80 ranges) is that of the GPTQ
//! reference implementation (*GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
//! Transformers*, arXiv 2210.17323).
//!
//! Needs nothing. One pass over the weights; the clip search makes it 80.

use kindling_core::options::OptionsError;
use kindling_core::{
    Compressed, CompressedWeight, Cx, Family, Granularity, Layer, LayerMethod, LayerShape, Method, MethodEntry, Needs,
    Quantized, Result, Stats,
};
use rayon::prelude::*;

use crate::config::{Target, quantiser_config};
use crate::grid::Grid;
use crate::matrix::Matrix;

/// The list entry of this method.
pub const ENTRY: MethodEntry = MethodEntry {
    name: "rtn",
    family: Family::Quantise,
    summary: "rounds every weight to the nearest value of its group's grid",
    paper: "folklore",
    needs: Needs::Nothing,
    build: |options| Ok(Method::Layer(Box::new(Rtn::new(&options.read("rtn")?)?))),
};

quantiser_config! {
    /// Options of round to nearest: the shared ones alone.
    pub struct RtnConfig {}
}

/// Rounds to nearest.
#[derive(Debug, Clone)]
pub struct Rtn {
    target: Target,
}

impl Rtn {
    /// The method with these options; an error if they are out of range.
    pub fn new(config: &RtnConfig) -> Result<Self, OptionsError> {
        Ok(Self { target: config.shared().resolve("rtn")? })
    }
}

/// Fits a grid to every group and rounds every weight to it.
pub fn quantize(matrix: &Matrix, target: &Target) -> Quantized {
    let grids = target.spec.fit_matrix(&matrix.values, matrix.cols, target.granularity);
    round(matrix, target, &grids)
}

/// Rounds every weight to its grid; `grids` as [`GridSpec::fit_matrix`](crate::grid::GridSpec::fit_matrix)
/// gives them.
pub fn round(matrix: &Matrix, target: &Target, grids: &[Grid]) -> Quantized {
    let Matrix { rows, cols, values, .. } = matrix;
    let (groups, len) = (target.granularity.groups(*cols), target.granularity.group_len(*cols).max(1));
    let mut codes = vec![0; values.len()];
    let row_len = (*cols).max(1);
    codes.par_chunks_mut(row_len).zip(values.par_chunks(row_len)).enumerate().for_each(|(row, (codes, weights))| {
        let first = if target.granularity == Granularity::Tensor { 0 } else { row * groups };
        for (group, (codes, weights)) in codes.chunks_mut(len).zip(weights.chunks(len)).enumerate() {
            grids[first + group].codes(weights, codes);
        }
    });
    target.spec.assemble([*rows, *cols], target.granularity, codes, grids, None)
}

impl LayerMethod for Rtn {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn check(&self, shape: &LayerShape) -> Result<()> {
        self.target.check(shape)
    }

    fn bits_per_weight(&self, shape: &LayerShape, _dense_bits: f64) -> f64 {
        self.target.bits_per_weight(shape.rows, shape.cols)
    }

    fn compress(&self, layer: &Layer, _stats: &Stats, cx: &Cx) -> Result<Compressed> {
        cx.check()?;
        self.check(&layer.shape)?;
        let matrix = Matrix::of(layer)?;
        let weight = CompressedWeight::Quantized(quantize(&matrix, &self.target));
        Ok(Compressed { weight, mask: matrix.mask, notes: self.target.notes(matrix.cols) })
    }
}
