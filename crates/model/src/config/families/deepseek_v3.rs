//! DeepSeek V3: latent attention, and after the first blocks expert layers with a sigmoid router and a shared expert.

use super::Family;
use super::common::{Sizes, activation, plain};
use crate::config::rope::yarn_mscale;
use crate::config::{
    AttentionSpec, ConfigError, ExpertGating, ExpertNames, MlpSpec, RawConfig, RopeKind, RopeSpec, Spec,
};

pub(super) const FAMILY: Family =
    Family { model_type: "deepseek_v3", paper: "DeepSeek-V3 Technical Report, arXiv 2412.19437", spec };

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let rope_dim = raw.size("qk_rope_head_dim")?;
    let sizes = Sizes { head_dim: rope_dim, ..Sizes::read(raw)? };
    let nope_dim = raw.size("qk_nope_head_dim")?;
    let mut attention = AttentionSpec::Latent {
        heads: sizes.heads,
        q_rank: raw.maybe_size("q_lora_rank")?,
        kv_rank: raw.size("kv_lora_rank")?,
        nope_dim,
        rope_dim,
        value_dim: raw.size("v_head_dim")?,
        bias: raw.flag_or("attention_bias", false)?,
        interleaved: raw.flag_or("rope_interleave", true)?,
        scale: ((nope_dim + rope_dim) as f64).powf(-0.5),
    };
    let activation = activation(raw, "hidden_act")?;
    let mut spec = plain("deepseek_v3", raw, &sizes, attention.clone(), sizes.mlp(activation))?;
    spec.rope = RopeSpec::read(raw, rope_dim, sizes.max_positions)?;
    // Scores are sharpened again where YaRN is told to scale all dimensions.
    if let (RopeKind::Yarn { factor, .. }, AttentionSpec::Latent { scale, .. }) = (&spec.rope.kind, &mut attention) {
        let rope = match raw.object("rope_parameters")? {
            Some(rope) => Some(rope),
            None => raw.object("rope_scaling")?,
        };
        let all_dim = rope.map(|rope| rope.number_or("mscale_all_dim", 0.0)).transpose()?.unwrap_or(0.0);
        *scale *= yarn_mscale(*factor, all_dim).powi(2);
    }
    let dense_blocks = raw.maybe_count("first_k_dense_replace")?.unwrap_or(3);
    let experts = (dense_blocks < sizes.layers).then(|| expert_layer(raw, activation)).transpose()?;
    for (i, block) in spec.blocks.iter_mut().enumerate() {
        block.attention = attention.clone();
        if let (true, Some(experts)) = (i >= dense_blocks, &experts) {
            block.mlp = experts.clone();
        }
    }
    Ok(spec)
}

fn expert_layer(raw: &RawConfig, activation: crate::config::Activation) -> Result<MlpSpec, ConfigError> {
    let inner = raw.size("moe_intermediate_size")?;
    let shared = raw.maybe_count("n_shared_experts")?.unwrap_or(0);
    Ok(MlpSpec::Experts {
        count: raw.size("n_routed_experts")?,
        top_k: raw.maybe_size("num_experts_per_tok")?.unwrap_or(8),
        inner,
        shared_inner: (shared > 0).then_some(inner.saturating_mul(shared)),
        activation,
        gating: ExpertGating::SigmoidGroups {
            groups: raw.maybe_size("n_group")?.unwrap_or(1),
            top_groups: raw.maybe_size("topk_group")?.unwrap_or(1),
            normalize: raw.flag_or("norm_topk_prob", true)?,
            scale: raw.number_or("routed_scaling_factor", 1.0)?,
        },
        names: ExpertNames { module: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" },
    })
}
