//! The common vocabulary in which every family describes itself.

use super::{ConfigError, RopeSpec};
use crate::checkpoint::DType;

/// What a decoder computes. Sizes are in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// `model_type` of the family.
    pub family: &'static str,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The longest context that the model was trained for.
    pub max_positions: usize,
    /// How every RMS norm computes.
    pub norm: NormSpec,
    /// Factor on the embeddings.
    pub embedding_scale: Option<f64>,
    /// `cap · tanh(logit / cap)` on the logits.
    pub logit_softcap: Option<f64>,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Rotary positions, the same for every block.
    pub rope: RopeSpec,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSpec>,
    /// The type that the checkpoint says its weights have.
    pub dtype: Option<DType>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// Ends of text.
    pub eos: Vec<u32>,
}

/// An RMS norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f64,
    /// The gain is `1 + weight`.
    pub unit_offset: bool,
}

/// One decoder block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSpec {
    /// How it attends.
    pub attention: AttentionSpec,
    /// How many most recent positions a query sees; `None`: all.
    pub window: Option<usize>,
    /// What follows attention.
    pub mlp: MlpSpec,
    /// Where its norms stand.
    pub norms: BlockNorms,
}

/// Module names of the norms of a block, where present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNorms {
    /// On the input of attention.
    pub attention_input: Option<&'static str>,
    /// On the output of attention, before it joins the residual stream.
    pub attention_output: Option<&'static str>,
    /// On the input of the MLP.
    pub mlp_input: Option<&'static str>,
    /// On the output of the MLP, before it joins the residual stream.
    pub mlp_output: Option<&'static str>,
}

impl BlockNorms {
    /// Norms on the inputs only, as Llama has them.
    pub const PRE: BlockNorms = BlockNorms {
        attention_input: Some("input_layernorm"),
        attention_output: None,
        mlp_input: Some("post_attention_layernorm"),
        mlp_output: None,
    };
}

/// Norms on queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// One gain of head width, applied to every head.
    PerHead,
    /// Over all heads together, before they are split.
    AllHeads,
}

/// How a block attends.
#[derive(Debug, Clone, PartialEq)]
pub enum AttentionSpec {
    /// Heads in groups that share keys and values (multi-head and multi-query are the extremes).
    Grouped {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// Queries, keys and values in one matrix.
        fused: bool,
        /// Whether queries, keys and values have a bias.
        qkv_bias: bool,
        /// Whether the output has a bias.
        out_bias: bool,
        /// Norms on queries and keys.
        qk_norm: QkNorm,
        /// Factor on the scores.
        scale: f64,
        /// Soft cap on the scores.
        softcap: Option<f64>,
    },
    /// Keys and values expanded from a small latent vector; one rotary key for all heads.
    Latent {
        /// Heads.
        heads: usize,
        /// Rank of the query factors; `None`: a full matrix.
        q_rank: Option<usize>,
        /// Width of the latent vector.
        kv_rank: usize,
        /// Width of the part of a head without positions.
        nope_dim: usize,
        /// Width of the rotary part.
        rope_dim: usize,
        /// Width of a value head.
        value_dim: usize,
        /// Whether the projections from the residual stream and the output have a bias.
        bias: bool,
        /// Whether the rotary part is stored with the pairs side by side.
        interleaved: bool,
        /// Factor on the scores.
        scale: f64,
    },
}

/// The non-linearity of a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    Gelu,
}

/// What follows attention.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    /// `down(act(gate(x)) · up(x))`.
    Gated {
        /// Neurons.
        inner: usize,
        /// Gate and up in one matrix.
        fused: bool,
        /// Whether the projections have a bias.
        bias: bool,
        /// The non-linearity.
        activation: Activation,
    },
    /// Several gated MLPs of which each token takes a few.
    Experts {
        /// How many.
        count: usize,
        /// How many a token takes.
        top_k: usize,
        /// Neurons of each.
        inner: usize,
        /// Neurons of the MLP that every token takes besides, if there is one.
        shared_inner: Option<usize>,
        /// The non-linearity.
        activation: Activation,
        /// How the router's scores become choices and weights.
        gating: ExpertGating,
        /// What the checkpoint calls the parts.
        names: ExpertNames,
    },
}

/// How a router chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExpertGating {
    /// Softmax over all experts, the best `top_k`, weights scaled to sum one.
    Softmax,
    /// Sigmoid scores; a correction bias joins for the choice only; the best groups first, then the best experts
    /// within them.
    SigmoidGroups {
        /// Groups of experts.
        groups: usize,
        /// Groups that may be chosen from.
        top_groups: usize,
        /// Whether weights are scaled to sum one.
        normalize: bool,
        /// Factor on the weights.
        scale: f64,
    },
}

/// What a checkpoint calls the parts of an expert layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// The module of the layer.
    pub module: &'static str,
    /// Gate projection of an expert.
    pub gate: &'static str,
    /// Up projection of an expert.
    pub up: &'static str,
    /// Down projection of an expert.
    pub down: &'static str,
}

impl Spec {
    /// Checks what no single key can show: divisibility, sizes of heads, dimensions that must be even.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, expected: String, found: usize| {
            if ok {
                return Ok(());
            }
            Err(ConfigError::Value { key: key.into(), expected, found: found.to_string() })
        };
        check(self.rope.dim.is_multiple_of(2), "head_dim", "an even rotary width".into(), self.rope.dim)?;
        for block in &self.blocks {
            if let AttentionSpec::Grouped { heads, kv_heads, head_dim, .. } = block.attention {
                let expected = format!("a divisor of num_attention_heads ({heads})");
                check(heads.is_multiple_of(kv_heads), "num_key_value_heads", expected, kv_heads)?;
                let expected = format!("at most head_dim ({head_dim})");
                check(self.rope.dim <= head_dim, "partial_rotary_factor", expected, self.rope.dim)?;
            }
            if let MlpSpec::Experts { count, top_k, gating, .. } = block.mlp {
                check(top_k <= count, "num_experts_per_tok", format!("at most {count} experts"), top_k)?;
                if let ExpertGating::SigmoidGroups { groups, top_groups, .. } = gating {
                    let expected = format!("a divisor of n_routed_experts ({count})");
                    check(count.is_multiple_of(groups), "n_group", expected, groups)?;
                    check(top_groups <= groups, "topk_group", format!("at most n_group ({groups})"), top_groups)?;
                }
            }
        }
        Ok(())
    }

    /// Parameters of the whole model: embeddings, blocks, norms, head.
    pub fn parameters(&self) -> u64 {
        let embedding = (self.vocab_size * self.hidden_size) as u64;
        let head = if self.tied { 0 } else { embedding };
        let blocks: u64 = (0..self.blocks.len()).map(|i| self.block_parameters(i)).sum();
        embedding + head + blocks + self.hidden_size as u64
    }

    /// Parameters of block `i`.
    pub fn block_parameters(&self, i: usize) -> u64 {
        crate::layers::tensors_of_block(self, i).iter().map(|t| t.shape.iter().product::<usize>() as u64).sum()
    }
}
