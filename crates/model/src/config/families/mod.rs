//! One family, one file, one entry of [`FAMILIES`].

mod common;
mod deepseek_v3;
mod gemma2;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;

use super::{ConfigError, RawConfig, Spec};

/// A family of checkpoints.
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Where it was described.
    pub paper: &'static str,
    /// Reads its configuration.
    pub spec: fn(&RawConfig) -> Result<Spec, ConfigError>,
}

/// Every family that opens.
pub const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma2::FAMILY,
    phi3::FAMILY,
    olmo2::FAMILY,
    mixtral::FAMILY,
    deepseek_v3::FAMILY,
];
