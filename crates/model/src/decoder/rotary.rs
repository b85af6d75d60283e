//! Rotary positions in Hugging Face's layout: the two halves of a head form the pairs.

use burn::tensor::{Device, Tensor, TensorData};
use kindling_tensor_backend::ops::rotary;

use crate::config::RopeSpec;

/// Cosines and sines of the positions of one forward pass, `[rows, 1, tokens, dim / 2]`.
#[derive(Debug, Clone)]
pub struct Rotary {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotary {
    /// Positions `start..start + tokens`, less `padding[row]` in every row of a padded batch.
    pub fn new(spec: &RopeSpec, start: usize, tokens: usize, padding: &[usize], device: &Device) -> Self {
        let shortest = padding.iter().copied().min().unwrap_or(0);
        let (frequencies, factor) = spec.frequencies(start + tokens - shortest);
        let unpadded = [0];
        let rows = if padding.is_empty() { &unpadded } else { padding };
        let size = rows.len() * tokens * frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for &pad in rows {
            for position in start..start + tokens {
                turn(position.saturating_sub(pad), &frequencies, factor, &mut cos, &mut sin);
            }
        }
        let shape = [rows.len(), 1, tokens, frequencies.len()];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// One row of tokens, each at a position of a text of some length.
    pub fn at(spec: &RopeSpec, places: &[(usize, usize)], device: &Device) -> Self {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let mut known = None;
        for &(position, len) in places {
            if known.as_ref().is_none_or(|(at, _)| *at != len) {
                known = Some((len, spec.frequencies(len)));
            }
            let Some((_, (frequencies, factor))) = &known else { continue };
            turn(position, frequencies, *factor, &mut cos, &mut sin);
        }
        let shape = [1, 1, places.len(), cos.len() / places.len().max(1)];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Turns the first dimensions, as many as the family turns, of `x` `[batch, heads, tokens, width]`.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        rotary(x, self.cos.clone(), self.sin.clone())
    }

    /// Brings pairs that are stored side by side into the layout of [`Rotary::apply`].
    pub fn halves_from_pairs(x: Tensor<4>) -> Tensor<4> {
        let [batch, heads, tokens, width] = x.dims();
        x.reshape([batch, heads, tokens, width / 2, 2]).swap_dims(3, 4).reshape([batch, heads, tokens, width])
    }
}

/// Adds the cosines and sines of a position.
pub(super) fn turn(position: usize, frequencies: &[f64], factor: f64, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
    for &frequency in frequencies {
        // Transformers multiplies in f32: the product is rounded before its cosine is taken.
        let angle = f64::from(position as f32 * frequency as f32);
        cos.push((angle.cos() * factor) as f32);
        sin.push((angle.sin() * factor) as f32);
    }
}
