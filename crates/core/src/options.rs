//! The keys of a recipe stage before a method gives them types.
//!
//! A recipe is parsed by the driver; a method's config struct is read from [`Options`] with serde.
//! Unknown keys are refused with the nearest known one (put `#[serde(deny_unknown_fields)]` on the struct).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::{Deserialize, Serialize};

/// One value of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// Nested keys.
    Table(BTreeMap<String, Value>),
}

/// The keys of one stage that belong to the method itself.
///
/// ```
/// use kindling_core::{Options, options::Value};
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config { bits: u8, group_size: usize }
///
/// let ok = Options::from_iter([("bits", Value::Int(4)), ("group_size", Value::Int(128))]);
/// assert_eq!(ok.read::<Config>("gptq").unwrap().bits, 4);
///
/// let typo = Options::from_iter([("bits", Value::Int(4)), ("groupsize", Value::Int(128))]);
/// let message = typo.read::<Config>("gptq").err().unwrap().to_string();
/// assert_eq!(message, "gptq: unknown key `groupsize`, did you mean `group_size`? (known: bits, group_size)");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(pub BTreeMap<String, Value>);

impl<K: Into<String>> FromIterator<(K, Value)> for Options {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(iter: I) -> Self {
        Self(iter.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

impl Options {
    /// Reads the options into the config of `method`.
    pub fn read<T: DeserializeOwned>(&self, method: &str) -> Result<T, OptionsError> {
        let map = self.0.iter().map(|(key, value)| (key.clone(), value.clone()));
        T::deserialize(MapDeserializer::new(map))
            .map_err(|OptionsError(reason)| OptionsError(format!("{method}: {reason}")))
    }
}

/// An option that is unknown, missing or of the wrong type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionsError(pub String);

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OptionsError {}

impl de::Error for OptionsError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self(unknown("key", field, expected))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self(unknown("value", variant, expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("the key `{field}` is required"))
    }
}

/// ``unknown KIND `NAME`, did you mean …?`` with the full list behind it.
pub fn unknown(kind: &str, name: &str, known: &[&str]) -> String {
    let hint = nearest(name, known).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
    format!("unknown {kind} `{name}`{hint} (known: {})", known.join(", "))
}

/// The known name that a misspelt one most likely means: within a third of its length in edits.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (edit_distance(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(name.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits from `a` to `b`: characters inserted, removed, replaced, or swapped with their neighbour.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

impl<'de> IntoDeserializer<'de, OptionsError> for Value {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Value {
    type Error = OptionsError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionsError> {
        match self {
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Int(value) => visitor.visit_i64(value),
            Value::Float(value) => visitor.visit_f64(value),
            Value::Text(value) => visitor.visit_string(value),
            Value::List(values) => visitor.visit_seq(SeqDeserializer::new(values.into_iter())),
            Value::Table(table) => visitor.visit_map(MapDeserializer::new(table.into_iter())),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, OptionsError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, OptionsError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, OptionsError> {
        match self {
            Value::Text(text) => {
                let text: de::value::StringDeserializer<OptionsError> = text.into_deserializer();
                text.deserialize_enum(name, variants, visitor)
            }
            Value::Table(table) => {
                visitor.visit_enum(de::value::MapAccessDeserializer::new(MapDeserializer::new(table.into_iter())))
            }
            other => Err(de::Error::custom(format!("expected one of {variants:?}, found {other:?}"))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Order {
        Natural,
        ActOrder,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        bits: u8,
        #[serde(default)]
        order: Option<Order>,
        #[serde(default)]
        targets: Vec<String>,
    }

    fn read(pairs: &[(&str, Value)]) -> Result<Config, OptionsError> {
        pairs.iter().map(|(k, v)| (*k, v.clone())).collect::<Options>().read("m")
    }

    #[test]
    fn reads_every_kind_of_value() {
        let config = read(&[
            ("bits", Value::Int(3)),
            ("order", Value::Text("act-order".into())),
            ("targets", Value::List(vec![Value::Text("mlp.*".into())])),
        ]);
        let expected = Config { bits: 3, order: Some(Order::ActOrder), targets: vec!["mlp.*".into()] };
        assert_eq!(config.unwrap(), expected);
    }

    #[test]
    fn messages_name_method_key_and_remedy() {
        let check = |pairs: &[(&str, Value)], expected: &str| {
            assert_eq!(read(pairs).unwrap_err().to_string(), expected);
        };
        check(&[], "m: the key `bits` is required");
        check(
            &[("bits", Value::Int(4)), ("oder", Value::Bool(true))],
            "m: unknown key `oder`, did you mean `order`? (known: bits, order, targets)",
        );
        check(
            &[("bits", Value::Int(4)), ("order", Value::Text("actorder".into()))],
            "m: unknown value `actorder`, did you mean `act-order`? (known: natural, act-order)",
        );
        check(&[("bits", Value::Int(-1))], "m: invalid value: integer `-1`, expected u8");
    }

    #[test]
    fn distance_counts_edits_and_swaps() {
        assert_eq!(edit_distance("gtpq", "gptq"), 1);
        assert_eq!(nearest("gtpq", &["rtn", "gptq"]), Some("gptq"));
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(nearest("zebra", &["gptq", "rtn"]), None);
    }
}
