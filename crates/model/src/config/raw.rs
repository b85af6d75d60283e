//! Typed access to the keys of a `config.json`, with errors that name the key.

use serde_json::{Map, Value};

/// What can be wrong with a `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not a JSON object.
    #[error("config.json: not a JSON object: {0}")]
    Json(String),
    /// The family is not one of the list.
    #[error("config.json: {0}")]
    UnknownFamily(String),
    /// A key that the family needs is absent.
    #[error("config.json: the key `{0}` is missing")]
    Missing(String),
    /// A key has another type or a value that cannot be.
    #[error("config.json: `{key}`: expected {expected}, found {found}")]
    Value {
        /// The key.
        key: String,
        /// What would be right.
        expected: String,
        /// What stands there.
        found: String,
    },
}

/// A parsed `config.json`. A key that is absent or `null` counts as not given.
#[derive(Debug, Clone)]
pub struct RawConfig(Map<String, Value>);

impl RawConfig {
    /// Parses the text.
    pub fn parse(json: &str) -> Result<Self, ConfigError> {
        match serde_json::from_str(json) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(ConfigError::Json(format!("found {}", kind(&other)))),
            Err(error) => Err(ConfigError::Json(error.to_string())),
        }
    }

    /// The value of `key` unless absent or `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`.
    pub fn object(&self, key: &str) -> Result<Option<RawConfig>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map.clone()))),
            Some(other) => Err(wrong(key, "an object", other)),
        }
    }

    /// A text that must be there.
    pub fn text(&self, key: &str) -> Result<&str, ConfigError> {
        self.maybe_text(key)?.ok_or_else(|| ConfigError::Missing(key.into()))
    }

    /// A text.
    pub fn maybe_text(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| wrong(key, "a text", v))).transpose()
    }

    /// A size (1 to 2^31) that must be there.
    pub fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.maybe_size(key)?.ok_or_else(|| ConfigError::Missing(key.into()))
    }

    /// A size.
    pub fn maybe_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let read = |v: &Value| match v.as_u64() {
            Some(n @ 1..=0x8000_0000) => Ok(n as usize),
            _ => Err(wrong(key, "a whole number from 1 to 2^31", v)),
        };
        self.get(key).map(read).transpose()
    }

    /// A count that may be zero.
    pub fn maybe_count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let read = |v: &Value| match v.as_u64() {
            Some(n @ 0..=0x8000_0000) => Ok(n as usize),
            _ => Err(wrong(key, "a whole number from 0 to 2^31", v)),
        };
        self.get(key).map(read).transpose()
    }

    /// A finite number.
    pub fn maybe_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let read = |v: &Value| v.as_f64().filter(|n| n.is_finite()).ok_or_else(|| wrong(key, "a number", v));
        self.get(key).map(read).transpose()
    }

    /// A finite number, with the value that transformers assumes when it is absent.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.maybe_number(key)?.unwrap_or(default))
    }

    /// A truth value, with the value that transformers assumes when it is absent.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        self.get(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| wrong(key, "true or false", v)))
    }

    /// A list of texts.
    pub fn maybe_texts(&self, key: &str) -> Result<Option<Vec<&str>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| wrong(key, "a list of texts", value))
    }

    /// Token ids given as one number or a list.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let one =
            |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(key, "token ids", v));
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    /// An error about the value of `key`.
    pub fn bad(&self, key: &str, expected: &str) -> ConfigError {
        self.get(key).map_or_else(|| ConfigError::Missing(key.into()), |value| wrong(key, expected, value))
    }
}

fn wrong(key: &str, expected: &str, found: &Value) -> ConfigError {
    let text = found.to_string();
    let found = if text.len() > 60 { kind(found).to_string() } else { text };
    ConfigError::Value { key: key.into(), expected: expected.into(), found }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
