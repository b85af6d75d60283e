//! Mixtral: Mistral with a softmax router over several MLPs.

use super::Family;
use super::common::{Sizes, activation, plain, set_windows, windows};
use crate::config::{ConfigError, ExpertGating, ExpertNames, MlpSpec, RawConfig, Spec};

pub(super) const FAMILY: Family = Family { model_type: "mixtral", paper: "Mixtral of Experts, arXiv 2401.04088", spec };

fn spec(raw: &RawConfig) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(raw)?;
    let mlp = MlpSpec::Experts {
        count: raw.size("num_local_experts")?,
        top_k: raw.maybe_size("num_experts_per_tok")?.unwrap_or(2),
        inner: sizes.inner,
        shared_inner: None,
        activation: activation(raw, "hidden_act")?,
        gating: ExpertGating::Softmax,
        names: ExpertNames { module: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" },
    };
    let mut spec = plain("mixtral", raw, &sizes, sizes.attention().spec(&sizes), mlp)?;
    spec.norm.eps = raw.number_or("rms_norm_eps", 1e-5)?;
    set_windows(&mut spec, windows(raw, sizes.layers, |_| true)?);
    Ok(spec)
}
