//! Which tensors a block has: names, shapes and roles, from the [`Spec`] alone.
//!
//! The loader, the recipe, the forecast of memory and the writer of random checkpoints all read these lists.

use kindling_core::{LayerShape, Role};

use crate::config::{AttentionSpec, BlockSpec, ExpertGating, MlpSpec, QkNorm, Spec};

/// A tensor of a block, named within the block (`mlp.down_proj.weight`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTensor {
    /// Name without the prefix of the block.
    pub name: String,
    /// Shape as stored.
    pub shape: Vec<usize>,
}

/// A projection of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockProjection {
    /// Name, role, site and size.
    pub shape: LayerShape,
    /// Whether it has a bias.
    pub bias: bool,
}

/// The prefix of the tensors of block `i`, with its dot.
pub fn block_prefix(i: usize) -> String {
    format!("model.layers.{i}.")
}

/// Name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the last norm.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Name of the output head.
pub const HEAD: &str = "lm_head.weight";

/// Every projection of block `i`, in the order in which the block computes them.
pub fn projections_of_block(spec: &Spec, i: usize) -> Vec<BlockProjection> {
    let block = &spec.blocks[i];
    let mut list = Vec::new();
    attention(spec.hidden_size, &block.attention, &mut list);
    mlp(spec.hidden_size, &block.mlp, &mut list);
    list
}

/// Every tensor of block `i`.
pub fn tensors_of_block(spec: &Spec, i: usize) -> Vec<BlockTensor> {
    let mut tensors = Vec::new();
    for projection in projections_of_block(spec, i) {
        let LayerShape { name, rows, cols, .. } = projection.shape;
        if projection.bias {
            tensors.push(BlockTensor { name: format!("{name}.bias"), shape: vec![rows] });
        }
        tensors.push(BlockTensor { name: format!("{name}.weight"), shape: vec![rows, cols] });
    }
    tensors.extend(other_tensors(spec, &spec.blocks[i]));
    tensors
}

/// Norms and routers.
fn other_tensors(spec: &Spec, block: &BlockSpec) -> Vec<BlockTensor> {
    let mut list = Vec::new();
    let mut push = |name: String, shape: Vec<usize>| list.push(BlockTensor { name, shape });
    let norms = block.norms;
    for name in [norms.attention_input, norms.attention_output, norms.mlp_input, norms.mlp_output].into_iter().flatten()
    {
        push(format!("{name}.weight"), vec![spec.hidden_size]);
    }
    match &block.attention {
        AttentionSpec::Grouped { heads, kv_heads, head_dim, qk_norm, .. } => {
            let widths = match qk_norm {
                QkNorm::None => None,
                QkNorm::PerHead => Some((*head_dim, *head_dim)),
                QkNorm::AllHeads => Some((heads * head_dim, kv_heads * head_dim)),
            };
            if let Some((query, key)) = widths {
                push("self_attn.q_norm.weight".into(), vec![query]);
                push("self_attn.k_norm.weight".into(), vec![key]);
            }
        }
        AttentionSpec::Latent { q_rank, kv_rank, .. } => {
            if let Some(rank) = q_rank {
                push("self_attn.q_a_layernorm.weight".into(), vec![*rank]);
            }
            push("self_attn.kv_a_layernorm.weight".into(), vec![*kv_rank]);
        }
    }
    if let MlpSpec::Experts { count, names, gating, .. } = &block.mlp {
        push(format!("{}.gate.weight", names.module), vec![*count, spec.hidden_size]);
        if let ExpertGating::SigmoidGroups { .. } = gating {
            push(format!("{}.gate.e_score_correction_bias", names.module), vec![*count]);
        }
    }
    list
}

fn attention(hidden: usize, spec: &AttentionSpec, list: &mut Vec<BlockProjection>) {
    let mut push = |name: &str, role, site: &str, rows, cols, bias| {
        let (name, site) = (format!("self_attn.{name}"), format!("self_attn.{site}"));
        list.push(BlockProjection { shape: LayerShape { name, role, unit: 0, site, rows, cols }, bias });
    };
    match *spec {
        AttentionSpec::Grouped { heads, kv_heads, head_dim, fused, qkv_bias, out_bias, .. } => {
            let (q, kv) = (heads * head_dim, kv_heads * head_dim);
            if fused {
                push("qkv_proj", Role::QueryKeyValue, "input", q + 2 * kv, hidden, qkv_bias);
            } else {
                push("q_proj", Role::Query, "input", q, hidden, qkv_bias);
                push("k_proj", Role::Key, "input", kv, hidden, qkv_bias);
                push("v_proj", Role::Value, "input", kv, hidden, qkv_bias);
            }
            push("o_proj", Role::AttentionOutput, "inner", hidden, q, out_bias);
        }
        AttentionSpec::Latent { heads, q_rank, kv_rank, nope_dim, rope_dim, value_dim, bias, .. } => {
            let q = heads * (nope_dim + rope_dim);
            match q_rank {
                Some(rank) => {
                    push("q_a_proj", Role::Latent, "input", rank, hidden, bias);
                    push("q_b_proj", Role::Query, "query_latent", q, rank, false);
                }
                None => push("q_proj", Role::Query, "input", q, hidden, false),
            }
            push("kv_a_proj_with_mqa", Role::Latent, "input", kv_rank + rope_dim, hidden, bias);
            push("kv_b_proj", Role::Latent, "key_value_latent", heads * (nope_dim + value_dim), kv_rank, false);
            push("o_proj", Role::AttentionOutput, "inner", hidden, heads * value_dim, bias);
        }
    }
}

fn mlp(hidden: usize, spec: &MlpSpec, list: &mut Vec<BlockProjection>) {
    let mut gated = |module: &str, names: [&str; 3], unit, inner: usize, bias| {
        let mut push = |name: &str, role, site: &str, rows, cols| {
            let (name, site) = (format!("{module}.{name}"), format!("{module}.{site}"));
            list.push(BlockProjection { shape: LayerShape { name, role, unit, site, rows, cols }, bias });
        };
        push(names[0], Role::Gate, "input", inner, hidden);
        push(names[1], Role::Up, "input", inner, hidden);
        push(names[2], Role::Down, "inner", hidden, inner);
    };
    let plain = ["gate_proj", "up_proj", "down_proj"];
    match *spec {
        MlpSpec::Gated { inner, fused: false, bias, .. } => gated("mlp", plain, 0, inner, bias),
        MlpSpec::Gated { inner, fused: true, bias, .. } => {
            for (name, role, site, rows, cols) in [
                ("mlp.gate_up_proj", Role::GateUp, "mlp.input", 2 * inner, hidden),
                ("mlp.down_proj", Role::Down, "mlp.inner", hidden, inner),
            ] {
                let shape = LayerShape { name: name.into(), role, unit: 0, site: site.into(), rows, cols };
                list.push(BlockProjection { shape, bias });
            }
        }
        MlpSpec::Experts { count, inner, shared_inner, names, .. } => {
            for unit in 0..count {
                let module = format!("{}.experts.{unit}", names.module);
                gated(&module, [names.gate, names.up, names.down], unit, inner, false);
            }
            if let Some(inner) = shared_inner {
                gated(&format!("{}.shared_experts", names.module), plain, count, inner, false);
            }
        }
    }
}
