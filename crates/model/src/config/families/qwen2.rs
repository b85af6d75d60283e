//! Qwen 2 and 2.5: Llama with biases on queries, keys and values.

use super::Family;
use super::common::{Sizes, activation, plain, set_windows, windows};
use crate::config::{ConfigError, RawConfig, Spec};

pub(super) const FAMILY: Family =
    Family { model_type: "qwen2", paper: "Qwen2 Technical Report, arXiv 2407.10671", spec };

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(raw)?;
    let mut attention = sizes.attention();
    attention.qkv_bias = true;
    let mlp = sizes.mlp(activation(raw, "hidden_act")?);
    let mut spec = plain("qwen2", raw, &sizes, attention.spec(&sizes), mlp)?;
    set_windows(&mut spec, qwen_windows(raw, sizes.layers)?);
    Ok(spec)
}

/// Windows count only when `use_sliding_window` says so, and then from block `max_window_layers` on.
pub(super) fn qwen_windows(raw: &RawConfig, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    if !raw.flag_or("use_sliding_window", false)? {
        return Ok(vec![None; layers]);
    }
    let first = raw.maybe_count("max_window_layers")?.unwrap_or(28);
    windows(raw, layers, |i| i >= first)
}
