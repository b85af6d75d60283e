//! Qwen 3: a norm on every query and key head instead of Qwen 2's biases.

use super::Family;
use super::common::{Sizes, activation, plain, set_windows};
use super::qwen2::qwen_windows;
use crate::config::{ConfigError, QkNorm, RawConfig, Spec};

pub(super) const FAMILY: Family =
    Family { model_type: "qwen3", paper: "Qwen3 Technical Report, arXiv 2505.09388", spec };

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let sizes = Sizes { head_dim: raw.maybe_size("head_dim")?.unwrap_or(128), ..Sizes::read(raw)? };
    let mut attention = sizes.attention();
    attention.qk_norm = QkNorm::PerHead;
    attention.qkv_bias = raw.flag_or("attention_bias", false)?;
    attention.out_bias = attention.qkv_bias;
    let mlp = sizes.mlp(activation(raw, "hidden_act")?);
    let mut spec = plain("qwen3", raw, &sizes, attention.spec(&sizes), mlp)?;
    set_windows(&mut spec, qwen_windows(raw, sizes.layers)?);
    Ok(spec)
}
