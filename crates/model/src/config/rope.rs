//! Rotary positions: which frequencies a family turns its heads by.

use super::{ConfigError, RawConfig};

/// Rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// How many leading dimensions of a head turn (even).
    pub dim: usize,
    /// The base of the geometric series of wavelengths.
    pub theta: f64,
    /// How the series is stretched for long contexts.
    pub kind: RopeKind,
}

/// Stretching of the frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeKind {
    /// None.
    Default,
    /// All positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base grows once the text is longer than the trained length.
    Dynamic {
        /// The factor.
        factor: f64,
        /// The trained length.
        original: f64,
    },
    /// Long wavelengths divided by a factor, short ones kept, a smooth passage between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// The trained length.
        original: f64,
    },
    /// YaRN: interpolation by parts, and a factor on cos and sin (arXiv 2309.00071).
    Yarn {
        /// The factor.
        factor: f64,
        /// Rotations within the trained length above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// The trained length.
        original: f64,
        /// Factor on cos and sin.
        attention: f64,
        /// Whether the bounds of the passage are rounded to whole dimensions.
        truncate: bool,
    },
}

impl RopeSpec {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
    ///
    /// `head_dim` is the width that turns when no `partial_rotary_factor` is given.
    pub fn read(raw: &RawConfig, head_dim: usize, max_positions: usize) -> Result<Self, ConfigError> {
        let parameters = raw.object("rope_parameters")?;
        let scaling = raw.object("rope_scaling")?;
        let empty = RawConfig::parse("{}")?;
        let rope = parameters.as_ref().or(scaling.as_ref()).unwrap_or(&empty);
        let theta = match rope.maybe_number("rope_theta")? {
            Some(theta) => theta,
            None => raw.number_or("rope_theta", 10_000.0)?,
        };
        let partial = match rope.maybe_number("partial_rotary_factor")? {
            Some(factor) => factor,
            None => raw.number_or("partial_rotary_factor", 1.0)?,
        };
        if !(partial > 0.0 && partial <= 1.0) {
            let expected = "a fraction above 0, at most 1".into();
            return Err(ConfigError::Value {
                key: "partial_rotary_factor".into(),
                expected,
                found: partial.to_string(),
            });
        }
        let dim = (head_dim as f64 * partial) as usize;
        let kind = match rope.maybe_text("rope_type")? {
            Some(kind) => kind,
            None => rope.maybe_text("type")?.unwrap_or("default"),
        };
        let factor = || {
            let factor = rope.maybe_number("factor")?.ok_or_else(|| ConfigError::Missing("rope factor".into()))?;
            if factor >= 1.0 { Ok(factor) } else { Err(rope.bad("factor", "a rope factor of at least 1")) }
        };
        let original = || -> Result<f64, ConfigError> {
            let own = rope.maybe_number("original_max_position_embeddings")?;
            let top = raw.maybe_number("original_max_position_embeddings")?;
            Ok(own.or(top).unwrap_or(max_positions as f64))
        };
        let kind = match kind {
            "default" => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: factor()? },
            "dynamic" => RopeKind::Dynamic { factor: factor()?, original: max_positions as f64 },
            "llama3" => {
                let (low, high) = (rope.number_or("low_freq_factor", 1.0)?, rope.number_or("high_freq_factor", 4.0)?);
                if high <= low {
                    return Err(rope.bad("high_freq_factor", "a number above low_freq_factor"));
                }
                RopeKind::Llama3 { factor: factor()?, low, high, original: original()? }
            }
            "yarn" => {
                let factor = factor()?;
                let attention = match rope.maybe_number("attention_factor")? {
                    Some(given) => given,
                    None => match (rope.maybe_number("mscale")?, rope.maybe_number("mscale_all_dim")?) {
                        (Some(some), Some(all)) if some != 0.0 && all != 0.0 => {
                            yarn_mscale(factor, some) / yarn_mscale(factor, all)
                        }
                        _ => yarn_mscale(factor, 1.0),
                    },
                };
                RopeKind::Yarn {
                    factor,
                    beta_fast: rope.number_or("beta_fast", 32.0)?,
                    beta_slow: rope.number_or("beta_slow", 1.0)?,
                    original: original()?,
                    attention,
                    truncate: rope.flag_or("truncate", true)?,
                }
            }
            other => {
                let known = ["default", "linear", "dynamic", "llama3", "yarn"];
                let expected = kindling_core::options::unknown("rope type", other, &known);
                return Err(ConfigError::Value { key: "rope_type".into(), expected, found: other.into() });
            }
        };
        Ok(Self { dim, theta, kind })
    }

    /// Texts of which lengths have the same frequencies: those of which this gives the same.
    pub fn length_class(&self, len: usize) -> usize {
        match self.kind {
            RopeKind::Dynamic { original, .. } => len.max(original as usize),
            _ => 0,
        }
    }

    /// Angle per position of every pair of dimensions, for a text of `len` positions, and the factor on cos and sin.
    pub fn frequencies(&self, len: usize) -> (Vec<f64>, f64) {
        let dim = self.dim as f64;
        let series =
            |theta: f64| -> Vec<f64> { (0..self.dim / 2).map(|i| theta.powf(-(2.0 * i as f64) / dim)).collect() };
        let plain = series(self.theta);
        match self.kind {
            RopeKind::Default => (plain, 1.0),
            RopeKind::Linear { factor } => (plain.iter().map(|f| f / factor).collect(), 1.0),
            RopeKind::Dynamic { factor, original } => {
                let len = (len as f64).max(original);
                let stretch = (factor * len / original - (factor - 1.0)).powf(dim / (dim - 2.0));
                (series(self.theta * stretch), 1.0)
            }
            RopeKind::Llama3 { factor, low, high, original } => {
                let stretched = |f: &f64| {
                    let wavelength = std::f64::consts::TAU / f;
                    let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                };
                (plain.iter().map(stretched).collect(), 1.0)
            }
            RopeKind::Yarn { factor, beta_fast, beta_slow, original, attention, truncate } => {
                // The dimension that makes `rotations` turns within the trained length.
                let turning = |rotations: f64| {
                    dim * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (turning(beta_fast), turning(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let mix = |(i, f): (usize, &f64)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                };
                (plain.iter().enumerate().map(mix).collect(), attention)
            }
        }
    }
}

/// YaRN's temperature: `0.1 · mscale · ln(factor) + 1`.
pub(super) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<RopeSpec, ConfigError> {
        RopeSpec::read(&RawConfig::parse(json).unwrap(), 16, 256)
    }

    #[test]
    fn both_generations_of_keys_say_the_same() {
        let old = r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}"#;
        let new = r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}"#;
        assert_eq!(read(old).unwrap(), read(new).unwrap());
        assert_eq!(read("{}").unwrap(), RopeSpec { dim: 16, theta: 1e4, kind: RopeKind::Default });
    }

    #[test]
    fn mistakes_are_named() {
        let message = |json: &str| read(json).unwrap_err().to_string();
        assert!(message(r#"{"rope_scaling": {"type": "yarm", "factor": 2.0}}"#).contains("did you mean `yarn`?"));
        assert!(message(r#"{"rope_scaling": {"type": "linear"}}"#).contains("factor"));
        assert!(message(r#"{"rope_parameters": 3}"#).contains("expected an object"));
        assert!(message(r#"{"partial_rotary_factor": 0.0}"#).contains("partial_rotary_factor"));
    }

    #[test]
    fn stretched_series_keep_fast_and_slow_ends() {
        let spec = RopeSpec {
            dim: 16,
            theta: 1e4,
            kind: RopeKind::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 },
        };
        let plain = RopeSpec { kind: RopeKind::Default, ..spec.clone() }.frequencies(1).0;
        let stretched = spec.frequencies(1).0;
        assert_eq!(stretched[0], plain[0]);
        assert!((stretched[7] - plain[7] / 8.0).abs() < 1e-18);
        // Dynamic stretching starts only beyond the trained length.
        let dynamic = RopeSpec { kind: RopeKind::Dynamic { factor: 2.0, original: 64.0 }, ..spec };
        assert_eq!(dynamic.frequencies(64).0, plain);
        assert!(dynamic.frequencies(128).0[7] < plain[7]);
    }
}
