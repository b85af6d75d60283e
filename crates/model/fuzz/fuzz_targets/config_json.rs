//! Any text as a `config.json`: the model's configuration and its quantisation are read or refused, never a panic.
#![no_main]

use kindling_model::compressed_tensors::QuantizationConfig;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|json: &str| {
    let _ = kindling_model::config::parse(json);
    let Ok(value) = serde_json::from_str::<Value>(json) else { return };
    let quantization = value.get("quantization_config").unwrap_or(&value);
    if let Ok(config) = QuantizationConfig::parse(quantization) {
        let scheme = config.scheme_for("model.layers.0.self_attn.q_proj");
        assert!(scheme.is_none_or(|scheme| (1..=8).contains(&scheme.bits)));
    }
});
