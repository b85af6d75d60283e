//! OLMo 2: norms after each half of a block only, and over all query and key heads together.

use super::Family;
use super::common::{Sizes, activation, plain};
use crate::config::{BlockNorms, ConfigError, QkNorm, RawConfig, Spec};

pub(super) const FAMILY: Family = Family { model_type: "olmo2", paper: "2 OLMo 2 Furious, arXiv 2501.00656", spec };

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(raw)?;
    let mut attention = sizes.attention();
    attention.qk_norm = QkNorm::AllHeads;
    attention.qkv_bias = raw.flag_or("attention_bias", false)?;
    attention.out_bias = attention.qkv_bias;
    let mlp = sizes.mlp(activation(raw, "hidden_act")?);
    let mut spec = plain("olmo2", raw, &sizes, attention.spec(&sizes), mlp)?;
    spec.norm.eps = raw.number_or("rms_norm_eps", 1e-5)?;
    for block in &mut spec.blocks {
        block.norms = BlockNorms {
            attention_input: None,
            attention_output: Some("post_attention_layernorm"),
            mlp_input: None,
            mlp_output: Some("post_feedforward_layernorm"),
        };
    }
    Ok(spec)
}
