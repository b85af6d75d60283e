//! The weight of a layer on the host.

use kindling_core::{Error, Layer, Mask, Result};

/// The weight of a layer on the host, checked: finite, of the announced shape, zero where pruned.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Row-major `[rows, cols]`.
    pub values: Vec<f32>,
    /// The weights that earlier stages removed.
    pub mask: Option<Mask>,
}

impl Matrix {
    /// Fetches the weight of a layer. An error where its shape or its mask's is not the announced one, and
    /// where a weight is not finite.
    pub fn of(layer: &Layer) -> Result<Self> {
        let name = &layer.shape.name;
        let expected = [layer.shape.rows, layer.shape.cols];
        let shape = |what: &str, found: [usize; 2]| {
            let what = format!("{what} of layer `{name}`");
            let error = Error::Shape { what, expected: expected.to_vec(), found: found.to_vec() };
            if found == expected { Ok(()) } else { Err(error) }
        };
        shape("weight", layer.weight.dims())?;
        if let Some(mask) = &layer.mask {
            shape("mask", mask.shape())?;
        }
        let data = layer.weight.to_data().convert::<f32>();
        let mut values = data
            .try_into_vec::<f32>()
            .map_err(|error| Error::layer(name, format!("its weight cannot be read as f32: {error:?}")))?;
        let [rows, cols] = expected;
        if let Some(at) = values.iter().position(|w| !w.is_finite()) {
            let reason =
                format!("weight [{}, {}] is {}; a grid needs finite weights", at / cols, at % cols, values[at]);
            return Err(Error::Numerics { layer: name.clone(), reason });
        }
        if let Some(mask) = &layer.mask {
            mask.apply(&mut values);
        }
        Ok(Self { rows, cols, values, mask: layer.mask.clone() })
    }
}
