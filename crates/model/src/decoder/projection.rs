//! A linear layer whose weight may be in any format.

use burn::tensor::Tensor;
use kindling_core::LayerShape;
use kindling_tensor_backend::formats::Weight;

use crate::error::Result;

/// `y = x · Wᵀ + b`, with its name and place in the block.
#[derive(Debug, Clone)]
pub struct Projection {
    /// Name, role, site and size.
    pub shape: LayerShape,
    /// The weight `[rows, cols]`.
    pub weight: Weight,
    /// The bias `[rows]`.
    pub bias: Option<Tensor<1>>,
}

impl Projection {
    /// `[batch, tokens, cols]` → `[batch, tokens, rows]`.
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let y = self.weight.forward(x)?;
        Ok(match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        })
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| bias.dims()[0] * 4)
    }
}
