//! From `config.json` to a [`Spec`]: what the decoder must compute, whichever family wrote it.
//!
//! A family is one file in `families/` and one entry in [`FAMILIES`]. It reads its own keys and describes its
//! blocks in the common vocabulary of [`Spec`]; attention and MLP are written once, elsewhere.

mod families;
mod raw;
mod rope;
mod spec;

pub use families::{FAMILIES, Family};
pub use raw::{ConfigError, RawConfig};
pub use rope::{RopeKind, RopeSpec};
pub use spec::{
    Activation, AttentionSpec, BlockNorms, BlockSpec, ExpertGating, ExpertNames, MlpSpec, NormSpec, QkNorm, Spec,
};

/// Reads the text of a `config.json`.
///
/// ```
/// let error = kindling_model::config::parse(r#"{"model_type": "lama"}"#).unwrap_err();
/// assert!(error.to_string().contains("did you mean `llama`?"));
/// ```
pub fn parse(json: &str) -> Result<Spec, ConfigError> {
    let raw = RawConfig::parse(json)?;
    let model_type = raw.text("model_type")?;
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        return Err(ConfigError::UnknownFamily(kindling_core::options::unknown("model_type", model_type, &known)));
    };
    let spec = (family.spec)(&raw)?;
    spec.validate()?;
    Ok(spec)
}
