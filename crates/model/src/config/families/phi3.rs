//! Phi-3: Llama with fused projections and, in some sizes, a rotary part of each head only.

use super::Family;
use super::common::{Sizes, activation, plain, set_windows, windows};
use crate::config::{ConfigError, MlpSpec, RawConfig, Spec};

pub(super) const FAMILY: Family =
    Family { model_type: "phi3", paper: "Phi-3 Technical Report, arXiv 2404.14219", spec };

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(raw)?;
    let mut attention = sizes.attention();
    attention.fused = true;
    let activation = activation(raw, "hidden_act")?;
    let mlp = MlpSpec::Gated { inner: sizes.inner, fused: true, bias: false, activation };
    let mut spec = plain("phi3", raw, &sizes, attention.spec(&sizes), mlp)?;
    set_windows(&mut spec, windows(raw, sizes.layers, |_| true)?);
    Ok(spec)
}
