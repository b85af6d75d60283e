//! Weights between device and host: selection and sweeps work on plain slices.

use burn::tensor::{Device, Tensor, TensorData};
use kindling_core::{Compressed, CompressedWeight, Error, Layer, Mask, Result};

/// The row-major f32 values of a `[rows, cols]` tensor that belongs to `layer`; `what` names it in errors.
pub(crate) fn values(layer: &Layer, what: &str, tensor: &Tensor<2>) -> Result<Vec<f32>> {
    let shape = &layer.shape;
    if tensor.dims() != [shape.rows, shape.cols] {
        return Err(Error::Shape {
            what: format!("{what} of layer `{}`", shape.name),
            expected: vec![shape.rows, shape.cols],
            found: tensor.dims().to_vec(),
        });
    }
    let numerics = |reason: String| Error::Numerics { layer: shape.name.clone(), reason };
    let data = tensor.clone().try_into_data().map_err(|error| numerics(format!("reading the {what}: {error}")))?;
    data.convert::<f32>().try_into_vec().map_err(|error| numerics(format!("reading the {what}: {error}")))
}

/// The row-major flags of the weights that earlier stages kept.
pub(crate) fn kept(layer: &Layer) -> Result<Vec<bool>> {
    let shape = [layer.shape.rows, layer.shape.cols];
    match &layer.mask {
        None => Ok(vec![true; shape[0] * shape[1]]),
        Some(mask) if mask.shape() == shape => Ok(mask.as_slice().to_vec()),
        Some(mask) => Err(Error::Shape {
            what: format!("earlier mask of layer `{}`", layer.shape.name),
            expected: shape.to_vec(),
            found: mask.shape().to_vec(),
        }),
    }
}

/// A `[rows, cols]` tensor from row-major values.
pub(crate) fn tensor(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A pruned layer: the weight with its removed entries set to zero.
pub(crate) fn pruned(layer: &Layer, mut weight: Vec<f32>, mask: Mask, notes: Vec<String>) -> Compressed {
    mask.apply(&mut weight);
    let weight = CompressedWeight::Dense(tensor(weight, mask.shape(), &layer.weight.device()));
    Compressed { weight, mask: Some(mask), notes }
}

/// What the report says when no calibration token reached a layer.
pub(crate) const UNSEEN: &str = "no calibration token reached this layer: pruned by magnitude";

/// `|w|` of every weight.
pub(crate) fn magnitudes(weight: &[f32]) -> Vec<f32> {
    weight.iter().map(|w| w.abs()).collect()
}
