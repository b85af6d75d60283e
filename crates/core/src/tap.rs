//! A look at activations on their way through a model.

use burn::tensor::Tensor;

use crate::Result;

/// Sees the input of every projection. Burn has no forward hooks: the model calls this instead.
pub trait Tap {
    /// `x` `[tokens, features]` is about to enter the projections that read `site`.
    ///
    /// A site is named after the place in the block, for example `self_attn.input` or `mlp.inner`.
    fn tap(&mut self, site: &str, x: &Tensor<2>) -> Result<()>;
}
