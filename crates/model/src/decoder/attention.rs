//! Attention: projections, norms and positions around a [`KvStore`](kindling_core::KvStore).

use burn::tensor::{Tensor, s};
use kindling_core::AttendSpec;

use super::{ForwardCx, Projection, RmsNorm, Rotary};
use crate::config::{AttentionSpec, QkNorm};
use crate::error::Result;

/// Attention of one block.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) spec: AttentionSpec,
    pub(super) window: Option<usize>,
    pub(super) inputs: Inputs,
    pub(super) output: Projection,
}

/// The projections before the heads.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one per block, and never moved in a hot loop")]
pub(super) enum Inputs {
    /// One each, with optional norms.
    Separate { query: Projection, key: Projection, value: Projection, norms: Option<(RmsNorm, RmsNorm)> },
    /// One for all three.
    Fused { qkv: Projection, norms: Option<(RmsNorm, RmsNorm)> },
    /// Through low ranks.
    Latent { query: LatentQuery, down: Projection, norm: RmsNorm, up: Projection },
}

/// The query side of latent attention.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one per block, and never moved in a hot loop")]
pub(super) enum LatentQuery {
    Full(Projection),
    Factored { down: Projection, norm: RmsNorm, up: Projection },
}

/// `[batch, tokens, heads · width]` → `[batch, heads, tokens, width]`.
fn heads(x: Tensor<3>, count: usize) -> Tensor<4> {
    let [batch, tokens, features] = x.dims();
    x.reshape([batch, tokens, count, features / count]).swap_dims(1, 2)
}

impl Attention {
    pub(super) fn forward(&self, x: Tensor<3>, cx: &mut ForwardCx<'_>) -> Result<Tensor<3>> {
        cx.tap(|| "self_attn.input".into(), &x)?;
        let (queries, keys, values) = self.project(x, cx)?;
        let (scale, softcap) = match self.spec {
            AttentionSpec::Grouped { scale, softcap, .. } => (scale, softcap),
            AttentionSpec::Latent { scale, .. } => (scale, None),
        };
        cx.kv.append(cx.layer, keys, values)?;
        let y = cx.kv.attend(cx.layer, queries, &AttendSpec { scale, softcap, window: self.window })?;
        let [batch, heads, tokens, width] = y.dims();
        let y = y.swap_dims(1, 2).reshape([batch, tokens, heads * width]);
        cx.tap(|| "self_attn.inner".into(), &y)?;
        self.output.forward(y)
    }

    /// Queries, keys and values, normed and turned.
    fn project(&self, x: Tensor<3>, cx: &mut ForwardCx<'_>) -> Result<(Tensor<4>, Tensor<4>, Tensor<4>)> {
        match (&self.spec, &self.inputs) {
            (AttentionSpec::Latent { .. }, Inputs::Latent { query, down, norm, up }) => {
                self.project_latent(x, query, down, norm, up, cx)
            }
            (AttentionSpec::Grouped { heads: q_heads, kv_heads, head_dim, qk_norm, .. }, inputs) => {
                let (q, k, v, norms) = match inputs {
                    Inputs::Fused { qkv, norms } => {
                        let all = qkv.forward(x)?;
                        let (first, second) = (q_heads * head_dim, (q_heads + kv_heads) * head_dim);
                        let end = second + kv_heads * head_dim;
                        let part = |from: usize, to: usize| all.clone().slice(s![.., .., from..to]);
                        (part(0, first), part(first, second), part(second, end), norms)
                    }
                    Inputs::Separate { query, key, value, norms } => {
                        (query.forward(x.clone())?, key.forward(x.clone())?, value.forward(x)?, norms)
                    }
                    Inputs::Latent { .. } => unreachable!("inputs are built from the same spec"),
                };
                let turned = |x: Tensor<3>, count: usize, norm: Option<&RmsNorm>| {
                    let x = match (norm, qk_norm) {
                        (Some(norm), QkNorm::AllHeads) => heads(norm.forward(x), count),
                        (Some(norm), _) => norm.forward(heads(x, count)),
                        (None, _) => heads(x, count),
                    };
                    cx.rotary.apply(x)
                };
                let norms = norms.as_ref();
                let queries = turned(q, *q_heads, norms.map(|n| &n.0));
                let keys = turned(k, *kv_heads, norms.map(|n| &n.1));
                Ok((queries, keys, heads(v, *kv_heads)))
            }
            _ => unreachable!("inputs are built from the same spec"),
        }
    }

    fn project_latent(
        &self,
        x: Tensor<3>,
        query: &LatentQuery,
        down: &Projection,
        norm: &RmsNorm,
        up: &Projection,
        cx: &mut ForwardCx<'_>,
    ) -> Result<(Tensor<4>, Tensor<4>, Tensor<4>)> {
        let AttentionSpec::Latent { heads: count, kv_rank, nope_dim, rope_dim, value_dim, interleaved, .. } = self.spec
        else {
            unreachable!("called for latent attention only")
        };
        let q = match query {
            LatentQuery::Full(full) => full.forward(x.clone())?,
            LatentQuery::Factored { down, norm, up } => {
                let latent = norm.forward(down.forward(x.clone())?);
                cx.tap(|| "self_attn.query_latent".into(), &latent)?;
                up.forward(latent)?
            }
        };
        let turned = |x: Tensor<4>| cx.rotary.apply(if interleaved { Rotary::halves_from_pairs(x) } else { x });
        let q = heads(q, count);
        let q_rope = turned(q.clone().slice(s![.., .., .., nope_dim..nope_dim + rope_dim]));
        let q = Tensor::cat(vec![q.slice(s![.., .., .., 0..nope_dim]), q_rope], 3);

        let joint = down.forward(x)?;
        let k_rope = turned(heads(joint.clone().slice(s![.., .., kv_rank..kv_rank + rope_dim]), 1));
        let latent = norm.forward(joint.slice(s![.., .., 0..kv_rank]));
        cx.tap(|| "self_attn.key_value_latent".into(), &latent)?;
        let expanded = heads(up.forward(latent)?, count);
        let [batch, _, tokens, _] = expanded.dims();
        let k_nope = expanded.clone().slice(s![.., .., .., 0..nope_dim]);
        let values = expanded.slice(s![.., .., .., nope_dim..nope_dim + value_dim]);
        let keys = Tensor::cat(vec![k_nope, k_rope.expand([batch, count, tokens, rope_dim])], 3);
        Ok((q, keys, values))
    }

    pub(super) fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let mut list = match &mut self.inputs {
            Inputs::Separate { query, key, value, .. } => vec![query, key, value],
            Inputs::Fused { qkv, .. } => vec![qkv],
            Inputs::Latent { query: LatentQuery::Full(full), down, up, .. } => vec![full, down, up],
            Inputs::Latent { query: LatentQuery::Factored { down: q_down, up: q_up, .. }, down, up, .. } => {
                vec![q_down, q_up, down, up]
            }
        };
        list.push(&mut self.output);
        list
    }

    pub(super) fn projections(&self) -> Vec<&Projection> {
        let mut list = match &self.inputs {
            Inputs::Separate { query, key, value, .. } => vec![query, key, value],
            Inputs::Fused { qkv, .. } => vec![qkv],
            Inputs::Latent { query: LatentQuery::Full(full), down, up, .. } => vec![full, down, up],
            Inputs::Latent { query: LatentQuery::Factored { down: q_down, up: q_up, .. }, down, up, .. } => {
                vec![q_down, q_up, down, up]
            }
        };
        list.push(&self.output);
        list
    }
}
