//! Llama 1 to 3: grouped attention, SwiGLU, norms before each half of a block.

use super::Family;
use super::common::{Sizes, activation, plain};
use crate::config::{ConfigError, MlpSpec, RawConfig, Spec};

pub(super) const FAMILY: Family =
    Family { model_type: "llama", paper: "The Llama 3 Herd of Models, arXiv 2407.21783", spec };

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(raw)?;
    let mut attention = sizes.attention();
    attention.qkv_bias = raw.flag_or("attention_bias", false)?;
    attention.out_bias = attention.qkv_bias;
    let bias = raw.flag_or("mlp_bias", false)?;
    let activation = activation(raw, "hidden_act")?;
    let mlp = MlpSpec::Gated { inner: sizes.inner, fused: false, bias, activation };
    plain("llama", raw, &sizes, attention.spec(&sizes), mlp)
}
