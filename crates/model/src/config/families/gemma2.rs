//! Gemma 2: norms before and after each half of a block, soft caps, scaled embeddings, every other block sliding.

use super::Family;
use super::common::{Sizes, activation, plain, set_windows, windows};
use crate::config::{BlockNorms, ConfigError, RawConfig, Spec};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    paper: "Gemma 2: Improving Open Language Models at a Practical Size, arXiv 2408.00118",
    spec,
};

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let sizes = Sizes { head_dim: raw.maybe_size("head_dim")?.unwrap_or(256), ..Sizes::read(raw)? };
    let mut attention = sizes.attention();
    attention.scale = Some(raw.number_or("query_pre_attn_scalar", 256.0)?.powf(-0.5));
    attention.softcap = raw.maybe_number("attn_logit_softcapping")?;
    attention.qkv_bias = raw.flag_or("attention_bias", false)?;
    attention.out_bias = attention.qkv_bias;
    let key = if raw.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let mlp = sizes.mlp(activation(raw, key)?);
    let mut spec = plain("gemma2", raw, &sizes, attention.spec(&sizes), mlp)?;
    spec.tied = raw.flag_or("tie_word_embeddings", true)?;
    spec.norm.unit_offset = true;
    spec.embedding_scale = Some((sizes.hidden as f64).sqrt());
    spec.logit_softcap = raw.maybe_number("final_logit_softcapping")?;
    set_windows(&mut spec, windows(raw, sizes.layers, |i| i % 2 == 0)?);
    for block in &mut spec.blocks {
        block.norms = BlockNorms {
            attention_input: Some("input_layernorm"),
            attention_output: Some("post_attention_layernorm"),
            mlp_input: Some("pre_feedforward_layernorm"),
            mlp_output: Some("post_feedforward_layernorm"),
        };
    }
    Ok(spec)
}
