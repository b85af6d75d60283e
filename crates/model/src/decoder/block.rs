//! One decoder block.

use burn::tensor::{Device, Tensor};
use kindling_tensor_backend::formats::{Bitmask, Half, Sparse, Weight};
use kindling_tensor_backend::ops::on_gpu;

use super::attention::Attention;
use super::experts::Experts;
use super::mlp::GatedMlp;
use super::{ForwardCx, Projection, RmsNorm};
use crate::error::{ModelError, Result};

/// From this share of zeros on a weight counts as pruned, and a bitmask is smaller than all values.
const PRUNED: f64 = 0.2;

/// Attention and MLP around the residual stream, with norms where the family has them.
#[derive(Debug, Clone)]
pub struct DecoderBlock {
    pub(super) attention: Attention,
    pub(super) mlp: Mlp,
    pub(super) attention_input: Option<RmsNorm>,
    pub(super) attention_output: Option<RmsNorm>,
    pub(super) mlp_input: Option<RmsNorm>,
    pub(super) mlp_output: Option<RmsNorm>,
}

/// What follows attention.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a handful of blocks exist, and none is moved in a hot loop")]
pub(super) enum Mlp {
    Gated(GatedMlp),
    Experts(Experts),
}

impl DecoderBlock {
    /// `[batch, tokens, hidden]` → the same shape; keys and values join the store of `cx`.
    pub fn forward(&self, x: Tensor<3>, cx: &mut ForwardCx<'_>) -> Result<Tensor<3>> {
        let y = self.attention.forward(normed(&self.attention_input, x.clone()), cx)?;
        let x = x + normed(&self.attention_output, y);
        let inner = normed(&self.mlp_input, x.clone());
        let y = match &self.mlp {
            Mlp::Gated(mlp) => mlp.forward(inner, cx)?,
            Mlp::Experts(experts) => experts.forward(inner, cx)?,
        };
        Ok(x + normed(&self.mlp_output, y))
    }

    /// The projections in the order of [`projections_of_block`](crate::layers::projections_of_block).
    pub fn projections(&self) -> Vec<&Projection> {
        let mut list = self.attention.projections();
        list.extend(match &self.mlp {
            Mlp::Gated(mlp) => mlp.projections(),
            Mlp::Experts(experts) => experts.projections(),
        });
        list
    }

    /// The projections, to replace their weights.
    pub fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let mut list = self.attention.projections_mut();
        list.extend(match &mut self.mlp {
            Mlp::Gated(mlp) => mlp.projections_mut(),
            Mlp::Experts(experts) => experts.projections_mut(),
        });
        list
    }

    /// Holds pruned dense weights in a sparse format: N:M where they obey a pattern, else a bitmask where that is smaller;
    /// other dense weights in 16 bits where those hold them. On a GPU, which has no kernels for these, all stay dense.
    ///
    /// The values stay the same.
    pub(super) fn repack(&mut self, device: &Device) -> Result<()> {
        if on_gpu(device) {
            return Ok(());
        }
        for projection in self.projections_mut() {
            let Weight::Dense(dense) = &projection.weight else { continue };
            let values = projection.weight.to_dense(device)?.into_data().convert::<f32>().try_to_vec::<f32>();
            let values = values.map_err(|error| ModelError::Input(format!("{}: {error:?}", projection.shape.name)))?;
            let zeros = values.iter().filter(|&&w| w == 0.0).count();
            let (rows, cols) = (projection.shape.rows, projection.shape.cols);
            if (zeros as f64) < PRUNED * values.len() as f64 {
                if dense.takes_half()
                    && let Some(half) = Half::exactly(&values, rows, cols)
                {
                    projection.weight = Weight::Half(half);
                }
                continue;
            }
            projection.weight = match Sparse::detect(rows, cols, &values) {
                Some((pattern, axis)) => Weight::Sparse(Sparse::from_host(rows, cols, &values, pattern, axis)?),
                None => Weight::Bitmask(Bitmask::from_host(rows, cols, &values)?),
            };
        }
        Ok(())
    }

    /// Bytes that its weights hold in memory.
    pub fn bytes(&self) -> usize {
        let norms = [&self.attention_input, &self.attention_output, &self.mlp_input, &self.mlp_output];
        let router = match &self.mlp {
            Mlp::Experts(experts) => experts.router.dims().iter().product::<usize>() * 4,
            Mlp::Gated(_) => 0,
        };
        router
            + norms.into_iter().flatten().map(RmsNorm::bytes).sum::<usize>()
            + self.projections().into_iter().map(Projection::bytes).sum::<usize>()
    }
}

fn normed(norm: &Option<RmsNorm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
