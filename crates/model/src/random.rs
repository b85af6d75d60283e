//! Checkpoints of a given shape with random weights: real sizes without real knowledge.

use std::path::Path;

use kindling_core::Cx;
use rand_chacha::rand_core::Rng;
use serde_json::json;

use crate::checkpoint::atomic::atomic_write;
use crate::checkpoint::{DType, OutTensor, Writer, WriterOptions};
use crate::config;
use crate::error::{ModelError, Result};
use crate::layers::{EMBEDDING, FINAL_NORM, HEAD, block_prefix, tensors_of_block};

/// A shape that can be asked for by name.
pub struct NamedShape {
    /// The name.
    pub name: &'static str,
    /// Hidden size, MLP size, blocks, heads, key heads, vocabulary.
    sizes: [usize; 6],
}

/// Llama-style shapes.
pub const SHAPES: &[NamedShape] = &[
    NamedShape { name: "llama-160m", sizes: [768, 3072, 12, 12, 12, 32000] },
    NamedShape { name: "llama-1b", sizes: [2048, 5632, 22, 32, 4, 32000] },
    NamedShape { name: "llama-8b", sizes: [4096, 14336, 32, 32, 8, 128_256] },
];

/// The `config.json` of a named shape; an error that lists the known names for another.
pub fn config_of(shape: &str, dtype: DType) -> Result<serde_json::Value> {
    let Some(shape) = SHAPES.iter().find(|known| known.name == shape) else {
        let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        return Err(ModelError::Input(kindling_core::options::unknown("shape", shape, &known)));
    };
    let dtype = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        other => return Err(ModelError::Input(format!("dtype {}: f32, f16 or bf16 are possible", other.name()))),
    };
    let [hidden, inner, blocks, heads, kv_heads, vocab] = shape.sizes;
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden / heads,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
        "attention_bias": false,
        "mlp_bias": false
    }))
}

/// Writes a checkpoint with Gaussian weights (norms: ones) into `out`. Their standard deviation is `initializer_range`
/// of the configuration, else `1 / √inputs`.
///
/// Each tensor depends on the seed and its name only. Memory holds one block.
pub fn random_checkpoint(
    config: &serde_json::Value,
    dtype: DType,
    out: &Path,
    max_shard_bytes: u64,
    cx: &Cx,
) -> Result<u64> {
    let spec =
        config::parse(&config.to_string()).map_err(|source| ModelError::Config { dir: out.to_path_buf(), source })?;
    let matrix = vec![spec.vocab_size, spec.hidden_size];
    let mut parts: Vec<Vec<(String, Vec<usize>)>> = vec![vec![(EMBEDDING.into(), matrix.clone())]];
    for i in 0..spec.blocks.len() {
        let prefix = block_prefix(i);
        parts.push(tensors_of_block(&spec, i).into_iter().map(|t| (format!("{prefix}{}", t.name), t.shape)).collect());
    }
    let mut last = vec![(FINAL_NORM.to_string(), vec![spec.hidden_size])];
    if !spec.tied {
        last.push((HEAD.into(), matrix));
    }
    parts.push(last);
    // Consecutive parts share a file up to the limit.
    let mut files: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
    let mut filled = 0u64;
    for part in parts {
        let bytes: u64 =
            part.iter().map(|(_, shape)| (shape.iter().product::<usize>() * dtype.bits() / 8) as u64).sum();
        if filled > 0 && filled + bytes > max_shard_bytes {
            files.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(file) = files.last_mut() {
            file.extend(part);
        }
    }
    let options = WriterOptions { parts: files.len(), max_shard_bytes: u64::MAX, ..WriterOptions::default() };
    let mut writer = Writer::resume(out, options)?;
    let deviation = config.get("initializer_range").and_then(serde_json::Value::as_f64);
    cx.progress().begin("shards", files.len() as u64);
    cx.progress().advance(writer.done().len() as u64);
    for file in &files[writer.done().len()..] {
        let tensors: Vec<OutTensor<'_>> = file
            .iter()
            .map(|(name, shape)| {
                cx.check()?;
                Ok(OutTensor::from_f32(name.as_str(), dtype, shape, &values(name, shape, deviation, cx))?)
            })
            .collect::<Result<_>>()?;
        writer.write_shard(&tensors)?;
        cx.progress().advance(1);
    }
    cx.progress().end();
    let bytes = writer.finish()?;
    let mut text = serde_json::to_string_pretty(config).map_err(|e| ModelError::Input(format!("config.json: {e}")))?;
    text.push('\n');
    atomic_write(out.join("config.json"), text.as_bytes())?;
    Ok(bytes)
}

fn values(name: &str, shape: &[usize], deviation: Option<f64>, cx: &Cx) -> Vec<f32> {
    let count: usize = shape.iter().product();
    if shape.len() < 2 {
        return vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; count];
    }
    let scale = deviation.map_or_else(|| (shape[1] as f32).sqrt().recip(), |deviation| deviation as f32);
    normals(count, scale, &mut cx.rng(name))
}

/// Normal values of standard deviation `scale`.
pub(crate) fn normals(count: usize, scale: f32, rng: &mut impl Rng) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // Box-Muller: two uniforms, two normals.
        let word = rng.next_u64();
        let (a, b) = ((word >> 32) as u32, word as u32);
        let radius = (-2.0 * ((a as f32 + 1.0) / 4_294_967_296.0).ln()).sqrt() * scale;
        let (sin, cos) = (std::f32::consts::TAU * (b as f32 / 4_294_967_296.0)).sin_cos();
        values.extend([radius * cos, radius * sin]);
    }
    values.truncate(count);
    values
}
