//! The `quantization_config` object of `config.json`.

use std::collections::BTreeMap;

use kindling_core::Granularity;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::targets::Target;
use super::{ActOrder, CompressedTensorsError, Scheme};

type Result<T, E = CompressedTensorsError> = std::result::Result<T, E>;

/// The only layout this module reads and writes.
const FORMAT: &str = "pack-quantized";

/// A parsed `quantization_config`: which linear modules are quantised, and how.
#[derive(Debug, Clone)]
pub struct QuantizationConfig {
    groups: Vec<Group>,
    ignore: Vec<Target>,
}

#[derive(Debug, Clone)]
struct Group {
    targets: Vec<Target>,
    /// `None` for a group whose weights stay dense.
    scheme: Option<Scheme>,
}

/// The object as written by all versions of the library: later ones add keys, none changed the meaning of one.
#[derive(Deserialize)]
struct RawConfig {
    quant_method: Option<String>,
    format: Option<String>,
    #[serde(default)]
    config_groups: BTreeMap<String, Value>,
    #[serde(default)]
    ignore: Option<Vec<String>>,
    kv_cache_scheme: Option<Value>,
    sparsity_config: Option<Map<String, Value>>,
    transform_config: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    targets: Vec<String>,
    weights: Option<Value>,
    input_activations: Option<Value>,
    output_activations: Option<Value>,
    format: Option<String>,
}

/// Unknown keys are refused: they may change what the codes mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWeights {
    #[serde(default = "eight")]
    num_bits: u64,
    #[serde(rename = "type", default = "int")]
    kind: String,
    #[serde(default = "yes")]
    symmetric: bool,
    group_size: Option<i64>,
    strategy: Option<String>,
    block_structure: Option<Value>,
    dynamic: Option<Value>,
    actorder: Option<Value>,
    // How ranges were found and in which type tensors were held: none of it matters to the codes on disk.
    #[serde(rename = "observer")]
    _observer: Option<Value>,
    #[serde(rename = "observer_kwargs")]
    _observer_kwargs: Option<Value>,
    #[serde(rename = "scale_dtype")]
    _scale_dtype: Option<Value>,
    #[serde(rename = "zp_dtype")]
    _zp_dtype: Option<Value>,
}

fn eight() -> u64 {
    8
}

fn int() -> String {
    "int".into()
}

fn yes() -> bool {
    true
}

impl QuantizationConfig {
    /// Reads the value of `quantization_config`.
    ///
    /// # Errors
    /// The object breaks the schema, or asks for something other than integer weights in `pack-quantized`: the error
    /// names it.
    pub fn parse(value: &Value) -> Result<Self> {
        let raw: RawConfig = read("quantization_config", value)?;
        match raw.quant_method.as_deref() {
            None | Some("compressed-tensors") => {}
            Some(other) => return unsupported(format!("quant_method `{other}`")),
        }
        if raw.kv_cache_scheme.is_some() {
            return unsupported("a quantised KV cache (`kv_cache_scheme`)");
        }
        if let Some(sparsity) = raw.sparsity_config.filter(|map| map.get("format").is_some_and(|f| f != "dense")) {
            return unsupported(format!("sparsity_config with format {}", sparsity["format"]));
        }
        let transforms = raw.transform_config.as_ref().and_then(|map| map.get("config_groups"));
        if transforms.and_then(Value::as_object).is_some_and(|groups| !groups.is_empty()) {
            return unsupported("a transform of activations (`transform_config`)");
        }
        let groups = raw.config_groups.iter().map(|(name, group)| Group::parse(name, group, raw.format.as_deref()));
        let groups = groups.collect::<Result<_>>()?;
        let ignore = raw.ignore.unwrap_or_default();
        let ignore = ignore.iter().map(|entry| Target::parse("ignore", entry)).collect::<Result<_>>()?;
        Ok(QuantizationConfig { groups, ignore })
    }

    /// How the weight of a linear module is stored; `None` if it is dense.
    ///
    /// Of the groups that mean the module, the one that does so by its exact name wins, then by a pattern, then by
    /// the class `Linear`; an entry of `ignore` that means it always wins.
    pub fn scheme_for(&self, module: &str) -> Option<Scheme> {
        if self.ignore.iter().any(|entry| entry.matches(module).is_some()) {
            return None;
        }
        let closeness = |group: &Group| group.targets.iter().filter_map(|target| target.matches(module)).max();
        let best = self.groups.iter().filter_map(|group| Some((closeness(group)?, group)));
        // Of equally close groups the first wins, so compare in reverse: `max_by_key` keeps the last.
        best.rev().max_by_key(|(closeness, _)| *closeness).and_then(|(_, group)| group.scheme)
    }
}

impl Group {
    fn parse(name: &str, value: &Value, default_format: Option<&str>) -> Result<Self> {
        let key = format!("config_groups.{name}");
        let raw: RawGroup = read(&key, value)?;
        for (what, activations) in
            [("input_activations", raw.input_activations), ("output_activations", raw.output_activations)]
        {
            if let Some(activations) = activations {
                return unsupported(format!("`{key}.{what}` ({})", summary(&activations)));
            }
        }
        let scheme = match &raw.weights {
            None => None,
            Some(weights) => {
                let weights_key = format!("{key}.weights");
                let scheme = read::<RawWeights>(&weights_key, weights)?.scheme(&weights_key)?;
                match raw.format.as_deref().or(default_format) {
                    Some(FORMAT) => Some(scheme),
                    Some(other) => return unsupported(format!("format `{other}`")),
                    None => return invalid("format", format!("missing; expected `{FORMAT}`")),
                }
            }
        };
        let targets_key = format!("{key}.targets");
        let targets = raw.targets.iter().map(|target| Target::parse(&targets_key, target)).collect::<Result<_>>()?;
        Ok(Group { targets, scheme })
    }
}

impl RawWeights {
    fn scheme(self, key: &str) -> Result<Scheme> {
        let at = |field: &str| format!("{key}.{field}");
        if self.kind != "int" {
            return unsupported(format!("`{key}` of type `{}` with {} bits", self.kind, self.num_bits));
        }
        if !(1..=8).contains(&self.num_bits) {
            return invalid(at("num_bits"), format!("expected 1 to 8, found {}", self.num_bits));
        }
        if self.dynamic.is_some_and(|dynamic| dynamic != false) {
            return unsupported(format!("`{key}` with dynamic scales"));
        }
        if self.block_structure.is_some() {
            return unsupported(format!("`{key}` with a block_structure"));
        }
        let granularity = match (self.strategy.as_deref(), self.group_size) {
            (Some("tensor"), None) | (None, None) => Granularity::Tensor,
            (Some("channel"), None | Some(-1)) | (None, Some(-1)) => Granularity::Channel,
            (Some("group") | None, Some(size)) if size > 0 => Granularity::Group(
                usize::try_from(size).or_else(|_| invalid(at("group_size"), format!("{size} is too large")))?,
            ),
            (Some(strategy @ ("tensor" | "channel" | "group")), size) => {
                let expected = if strategy == "group" { "a positive number" } else { "null" };
                let found = size.map_or("none".to_owned(), |size| size.to_string());
                return invalid(at("group_size"), format!("strategy `{strategy}` expects {expected}, found {found}"));
            }
            (None, Some(size)) => {
                return invalid(at("group_size"), format!("expected -1 or more than 0, found {size}"));
            }
            (Some(other), _) => return unsupported(format!("`{key}` with strategy `{other}`")),
        };
        // Older writers used a boolean, later ones other words for the same two ways.
        let actorder = match &self.actorder {
            None | Some(Value::Bool(false)) => ActOrder::None,
            Some(Value::Bool(true)) => ActOrder::Group,
            Some(Value::String(word)) if matches!(word.as_str(), "group" | "dynamic") => ActOrder::Group,
            Some(Value::String(word)) if matches!(word.as_str(), "weight" | "static") => ActOrder::Weight,
            Some(other) => return invalid(at("actorder"), format!("expected null, weight or group, found {other}")),
        };
        if actorder == ActOrder::Group && !matches!(granularity, Granularity::Group(_)) {
            return invalid(at("actorder"), "`group` needs the strategy `group`".into());
        }
        Ok(Scheme { bits: self.num_bits as u8, symmetric: self.symmetric, granularity, actorder })
    }
}

fn read<T: for<'de> Deserialize<'de>>(key: &str, value: &Value) -> Result<T> {
    if !value.is_object() {
        return invalid(key, format!("expected an object, found {value}"));
    }
    T::deserialize(value).or_else(|error| invalid(key, error.to_string()))
}

fn invalid<T>(key: impl Into<String>, reason: String) -> Result<T> {
    Err(CompressedTensorsError::Config { key: key.into(), reason })
}

fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(CompressedTensorsError::Unsupported { what: what.into() })
}

/// `float, 8 bits, tensor`: what an error says about a quantisation it does not support.
fn summary(args: &Value) -> String {
    let text = |key: &str| args.get(key).and_then(Value::as_str).map(str::to_owned);
    let bits = args.get("num_bits").and_then(Value::as_u64).map(|bits| format!("{bits} bits"));
    [text("type"), bits, text("strategy")].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The `quantization_config` for modules that [`encode`](super::encode) wrote, with the linear modules that stayed
/// dense.
///
/// One scheme for all becomes the target `Linear` with the dense modules under `ignore`; of several, each lists its
/// modules by name, in the order of their first module. Only keys that every version of the library knows are used.
pub fn config_json(quantized: &[(String, Scheme)], dense: &[String]) -> Value {
    let mut groups: Vec<(Scheme, Vec<&str>)> = Vec::new();
    for (module, scheme) in quantized {
        match groups.iter_mut().find(|(known, _)| known == scheme) {
            Some((_, modules)) => modules.push(module),
            None => groups.push((*scheme, vec![module])),
        }
    }
    if let [(_, modules)] = groups.as_mut_slice() {
        *modules = vec!["Linear"];
    }
    let group = |(i, (scheme, targets)): (usize, &(Scheme, Vec<&str>))| {
        (format!("group_{i}"), json!({"targets": targets, "weights": weights_json(*scheme)}))
    };
    let config_groups: Map<String, Value> = groups.iter().enumerate().map(group).collect();
    json!({
        "quant_method": "compressed-tensors",
        "version": "0.13.0",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": dense,
    })
}

fn weights_json(scheme: Scheme) -> Value {
    let mut weights = Map::new();
    let mut put = |key: &str, value: Value| weights.insert(key.into(), value);
    put("num_bits", scheme.bits.into());
    put("type", "int".into());
    put("symmetric", scheme.symmetric.into());
    match scheme.granularity {
        Granularity::Tensor => put("strategy", "tensor".into()),
        Granularity::Channel => put("strategy", "channel".into()),
        Granularity::Group(size) => {
            put("strategy", "group".into());
            put("group_size", size.into())
        }
    };
    match scheme.actorder {
        ActOrder::None => None,
        ActOrder::Weight => put("actorder", "weight".into()),
        ActOrder::Group => put("actorder", "group".into()),
    };
    Value::Object(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(weights: Value) -> Value {
        json!({"quant_method": "compressed-tensors", "format": FORMAT, "ignore": ["lm_head"],
               "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
    }

    fn scheme(weights: Value) -> Result<Scheme> {
        Ok(QuantizationConfig::parse(&config(weights))?.scheme_for("model.x").unwrap())
    }

    fn error(value: &Value) -> String {
        QuantizationConfig::parse(value).unwrap_err().to_string()
    }

    #[test]
    fn defaults_and_strategies() {
        let int8 = Scheme { bits: 8, symmetric: true, granularity: Granularity::Tensor, actorder: ActOrder::None };
        assert_eq!(scheme(json!({})).unwrap(), int8);
        let granularity = |weights| scheme(weights).unwrap().granularity;
        assert_eq!(granularity(json!({"group_size": -1})), Granularity::Channel);
        assert_eq!(granularity(json!({"group_size": 64})), Granularity::Group(64));
        assert_eq!(granularity(json!({"strategy": "channel", "group_size": null})), Granularity::Channel);
        assert_eq!(granularity(json!({"strategy": "tensor"})), Granularity::Tensor);
        assert!(!scheme(json!({"num_bits": 3, "symmetric": false})).unwrap().symmetric);
    }

    #[test]
    fn words_for_the_order_of_activations() {
        let actorder = |word: Value| scheme(json!({"strategy": "group", "group_size": 8, "actorder": word}));
        for word in [json!("group"), json!("dynamic"), json!(true)] {
            assert_eq!(actorder(word).unwrap().actorder, ActOrder::Group);
        }
        for word in [json!("weight"), json!("static")] {
            assert_eq!(actorder(word).unwrap().actorder, ActOrder::Weight);
        }
        for word in [json!(null), json!(false)] {
            assert_eq!(actorder(word).unwrap().actorder, ActOrder::None);
        }
        assert_eq!(
            actorder(json!(3)).unwrap_err().to_string(),
            "quantization_config: `config_groups.group_0.weights.actorder`: expected null, weight or group, found 3"
        );
        assert_eq!(
            scheme(json!({"actorder": "group"})).unwrap_err().to_string(),
            "quantization_config: `config_groups.group_0.weights.actorder`: `group` needs the strategy `group`"
        );
    }

    #[test]
    fn exact_names_win_over_patterns_over_classes_and_ignore_over_all() {
        let config = QuantizationConfig::parse(&json!({
            "format": FORMAT,
            "ignore": ["lm_head", "re:.*gate$"],
            "config_groups": {
                "a": {"targets": ["Linear"], "weights": {"num_bits": 2}},
                "b": {"targets": ["re:.*\\.\\d+\\.mlp"], "weights": {"num_bits": 3}},
                "c": {"targets": ["layers.1.mlp.up", "lm_head"], "weights": {"num_bits": 4}},
                "d": {"targets": ["layers.2.q"], "weights": null},
            },
        }))
        .unwrap();
        let bits = |module| config.scheme_for(module).map(|scheme| scheme.bits);
        assert_eq!(bits("layers.0.q"), Some(2));
        assert_eq!(bits("layers.1.mlp.down"), Some(3));
        assert_eq!(bits("layers.1.mlp.up"), Some(4));
        assert_eq!(bits("layers.1.mlp.up.more"), Some(3));
        assert_eq!(bits("layers.2.q"), None);
        assert_eq!(bits("lm_head"), None);
        assert_eq!(bits("layers.1.mlp.gate"), None);
    }

    #[test]
    fn a_pattern_is_anchored_at_the_start_only() {
        let target = Target::parse("k", "re:mlp|attn").unwrap();
        assert!(target.matches("mlp.up").is_some() && target.matches("attn").is_some());
        assert!(target.matches("model.mlp").is_none());
        let text = Target::parse("ignore", "re:(?!x)").unwrap_err().to_string();
        assert!(text.starts_with("quantization_config: `ignore`: `re:(?!x)` is not a regular expression"), "{text}");
    }

    #[test]
    fn other_kinds_are_named() {
        let tail = " is not supported; this reader takes integer weights in `pack-quantized` without quantised \
                    activations: use the dense checkpoint";
        let with = |key: &str, value: Value| {
            let mut config = config(json!({}));
            config[key] = value;
            error(&config)
        };
        let says = |what: &str| format!("quantization_config: {what}{tail}");
        assert_eq!(with("quant_method", json!("gptq")), says("quant_method `gptq`"));
        for format in ["float-quantized", "nvfp4-pack-quantized", "int-quantized", "marlin-24"] {
            assert_eq!(with("format", json!(format)), says(&format!("format `{format}`")));
        }
        let kv = json!({"num_bits": 8, "type": "float"});
        assert_eq!(with("kv_cache_scheme", kv), says("a quantised KV cache (`kv_cache_scheme`)"));
        let sparse = json!({"format": "sparse-24-bitmask"});
        assert_eq!(with("sparsity_config", sparse), says("sparsity_config with format \"sparse-24-bitmask\""));
        let rotation = json!({"config_groups": {"R1": {}}});
        assert_eq!(with("transform_config", rotation), says("a transform of activations (`transform_config`)"));
        let activations = json!({"g": {"targets": [], "weights": null,
            "input_activations": {"num_bits": 8, "type": "int", "strategy": "token"}}});
        assert_eq!(
            with("config_groups", activations),
            says("`config_groups.g.input_activations` (int, 8 bits, token)")
        );
        let weights = |value| scheme(value).unwrap_err().to_string();
        let key = "`config_groups.group_0.weights`";
        assert_eq!(
            weights(json!({"type": "float", "num_bits": 4})),
            says(&format!("{key} of type `float` with 4 bits"))
        );
        assert_eq!(weights(json!({"strategy": "block"})), says(&format!("{key} with strategy `block`")));
        assert_eq!(weights(json!({"dynamic": true})), says(&format!("{key} with dynamic scales")));
        assert_eq!(weights(json!({"block_structure": [128, 128]})), says(&format!("{key} with a block_structure")));
    }

    #[test]
    fn broken_objects_are_located() {
        assert_eq!(error(&json!([])), "quantization_config: `quantization_config`: expected an object, found []");
        assert_eq!(
            error(&json!({"config_groups": {"g": 1}})),
            "quantization_config: `config_groups.g`: expected an object, found 1"
        );
        assert_eq!(
            error(&json!({"config_groups": {"g": {"weights": {}}}})),
            "quantization_config: `config_groups.g`: missing field `targets`"
        );
        assert_eq!(
            error(&json!({"config_groups": {"g": {"targets": ["Linear"], "weights": {}}}})),
            "quantization_config: `format`: missing; expected `pack-quantized`"
        );
        let weights = |value| scheme(value).unwrap_err().to_string();
        let key = "quantization_config: `config_groups.group_0.weights";
        assert!(weights(json!({"new": 1})).starts_with(&format!("{key}`: unknown field `new`")));
        assert_eq!(weights(json!({"num_bits": 9})), format!("{key}.num_bits`: expected 1 to 8, found 9"));
        assert_eq!(
            weights(json!({"strategy": "group"})),
            format!("{key}.group_size`: strategy `group` expects a positive number, found none")
        );
        assert_eq!(
            weights(json!({"strategy": "channel", "group_size": 8})),
            format!("{key}.group_size`: strategy `channel` expects null, found 8")
        );
        assert_eq!(
            weights(json!({"group_size": 0})),
            format!("{key}.group_size`: expected -1 or more than 0, found 0")
        );
    }

    #[test]
    fn one_scheme_targets_the_class_and_several_name_their_modules() {
        let four = Scheme { bits: 4, symmetric: false, granularity: Granularity::Group(32), actorder: ActOrder::Group };
        let eight = Scheme { bits: 8, symmetric: true, granularity: Granularity::Channel, actorder: ActOrder::None };
        let name = str::to_owned;
        let one = config_json(&[(name("a"), four), (name("b"), four)], &[name("lm_head")]);
        assert_eq!(
            one.to_string(),
            r#"{"quant_method":"compressed-tensors","version":"0.13.0","format":"pack-quantized","quantization_status":"compressed","config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int","symmetric":false,"strategy":"group","group_size":32,"actorder":"group"}}},"ignore":["lm_head"]}"#
        );
        let parsed = QuantizationConfig::parse(&one).unwrap();
        assert_eq!((parsed.scheme_for("b"), parsed.scheme_for("lm_head")), (Some(four), None));

        let two = config_json(&[(name("b"), four), (name("a"), eight), (name("c"), four)], &[name("d")]);
        assert_eq!(two["config_groups"]["group_0"]["targets"], json!(["b", "c"]));
        assert_eq!(two["config_groups"]["group_1"]["targets"], json!(["a"]));
        let parsed = QuantizationConfig::parse(&two).unwrap();
        let found = ["a", "b", "c", "d", "e"].map(|module| parsed.scheme_for(module));
        assert_eq!(found, [Some(eight), Some(four), Some(four), None, None]);
    }
}
