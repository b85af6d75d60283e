//! Mistral: Llama with a sliding window in every block.

use super::Family;
use super::common::{Sizes, activation, plain, set_windows, windows};
use crate::config::{ConfigError, RawConfig, Spec};

pub(super) const FAMILY: Family = Family { model_type: "mistral", paper: "Mistral 7B, arXiv 2310.06825", spec };

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(raw)?;
    let mlp = sizes.mlp(activation(raw, "hidden_act")?);
    let mut spec = plain("mistral", raw, &sizes, sizes.attention().spec(&sizes), mlp)?;
    set_windows(&mut spec, windows(raw, sizes.layers, |_| true)?);
    Ok(spec)
}
