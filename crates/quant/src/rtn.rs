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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Shared, Sharing};
    use crate::grid::tests::normals;

    fn target(shared: Shared) -> Target {
        shared.resolve("rtn").unwrap()
    }

    #[test]
    fn groups_follow_the_granularity() {
        let matrix = Matrix { rows: 2, cols: 3, values: vec![1.0, -1.0, 0.5, 4.0, 2.0, 8.0], mask: None };
        let scales = |shared| quantize(&matrix, &target(shared)).scales;
        let base = Shared { bits: 2, ..Shared::default() };
        let third = |x: f32| x / 3.0;
        assert_eq!(scales(Shared { group_size: 2, ..base }), [2.0, 0.5, 4.0, 8.0].map(third));
        assert_eq!(scales(Shared { group_size: 0, ..base }), [2.0, 8.0].map(third));
        assert_eq!(scales(Shared { granularity: Some(Sharing::Channel), ..base }), [2.0, 8.0].map(third));
        assert_eq!(scales(Shared { granularity: Some(Sharing::Tensor), ..base }), [third(9.0)]);
        let last = quantize(&matrix, &target(Shared { granularity: Some(Sharing::Tensor), ..base }));
        assert_eq!(last.codes, [0, 0, 0, 1, 1, 3]);
    }

    #[test]
    fn quantising_again_changes_nothing() {
        let matrix = Matrix { rows: 8, cols: 40, values: normals(320, 9), mask: None };
        let target = target(Shared { group_size: 16, ..Shared::default() });
        let once = quantize(&matrix, &target);
        let grids = target.spec.fit_matrix(&matrix.values, 40, target.granularity);
        let again = round(&Matrix { values: once.dequantize(), ..matrix }, &target, &grids);
        assert_eq!(once, again);
    }

    #[test]
    fn a_ragged_group_is_refused_only_where_it_must_be_portable() {
        let shape = LayerShape {
            name: "mlp.down_proj".into(),
            role: kindling_core::Role::Down,
            unit: 0,
            site: "down".into(),
            rows: 64,
            cols: 172,
        };
        let loose = target(Shared { group_size: 32, ..Shared::default() });
        loose.check(&shape).unwrap();
        assert!(loose.notes(172)[0].contains("12 of 32"), "{:?}", loose.notes(172));
        assert!(loose.notes(160).is_empty());
        let strict = Target { portable: true, ..loose };
        let message = strict.check(&shape).unwrap_err().to_string();
        assert!(["mlp.down_proj", "172", "32"].iter().all(|part| message.contains(part)), "{message}");
    }

    #[test]
    fn storage_is_counted() {
        let bits = |shared, cols| target(shared).bits_per_weight(64, cols);
        let half = Shared { scale_type: Some(kindling_core::ScaleType::F16), ..Shared::default() };
        assert_eq!(bits(half, 4096), 4.0 + 20.0 / 128.0);
        assert_eq!(bits(Shared { symmetric: true, ..half }, 4096), 4.125);
        assert_eq!(bits(Shared { group_size: 100, ..half }, 150), 4.0 + 2.0 * 20.0 / 150.0);
        assert_eq!(bits(Shared { granularity: Some(Sharing::Tensor), ..half }, 4096), 4.0 + 20.0 / (64.0 * 4096.0));
    }
}
