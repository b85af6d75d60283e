//! Checkpoints of a given shape with random weights: real sizes without real knowledge.

use std::path::Path;

use half::{bf16, f16};
use kindling_core::{Cx, Granularity, Quantized, ScaleType};
use rand_chacha::rand_core::Rng;
use serde_json::json;

use crate::checkpoint::atomic::atomic_write;
use crate::checkpoint::{DType, OutTensor, Writer, WriterOptions};
use crate::compressed_tensors::{ActOrder, Scheme, config_json, encode};
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
    NamedShape { name: "llama-1b", sizes: [2048, 8192, 16, 32, 8, 32000] },
    NamedShape { name: "tinyllama-1b", sizes: [2048, 5632, 22, 32, 4, 32000] },
    NamedShape { name: "llama-8b", sizes: [4096, 14336, 32, 32, 8, 128_256] },
];

/// How the matrices of a random checkpoint are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomFormat {
    /// Bits of symmetric codes, the output matrix included; `None`: as dense as the embedding.
    pub bits: Option<u8>,
    /// Weights that share a scale.
    pub group: usize,
    /// Two of four consecutive inputs are zero, except in the output matrix.
    pub pruned: bool,
}

impl RandomFormat {
    /// Every value in its place.
    pub const DENSE: Self = Self { bits: None, group: 32, pruned: false };

    /// The names of [`named`](Self::named).
    pub const NAMES: [&str; 7] = ["dense", "q8", "q4", "q3", "q2", "24", "24-q4"];

    /// A format by its name, with so many weights to a scale.
    pub fn named(name: &str, group: usize) -> Option<Self> {
        let (bits, pruned) = match name {
            "dense" => (None, false),
            "q8" => (Some(8), false),
            "q4" => (Some(4), false),
            "q3" => (Some(3), false),
            "q2" => (Some(2), false),
            "24" => (None, true),
            "24-q4" => (Some(4), true),
            _ => return None,
        };
        Some(Self { bits, group, pruned })
    }

    fn scheme(&self) -> Option<Scheme> {
        let granularity = Granularity::Group(self.group);
        self.bits.map(|bits| Scheme { bits, symmetric: true, granularity, actorder: ActOrder::None })
    }
}

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

/// Writes a checkpoint with Gaussian weights, or uniform codes (norms: ones), into `out`. Their standard deviation is
/// `initializer_range` of the configuration, else `1 / √inputs`.
///
/// Each tensor depends on the seed and its name only. Memory holds one block.
pub fn random_checkpoint(
    config: &serde_json::Value,
    dtype: DType,
    format: RandomFormat,
    out: &Path,
    max_shard_bytes: u64,
    cx: &Cx,
) -> Result<u64> {
    let spec =
        config::parse(&config.to_string()).map_err(|source| ModelError::Config { dir: out.to_path_buf(), source })?;
    if format.bits.is_some() && format.group == 0 {
        return Err(ModelError::Input("groups of 0 weights: at least 1 is needed".into()));
    }
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
        let tensors: Vec<Vec<OutTensor<'_>>> = file
            .iter()
            .map(|(name, shape)| {
                cx.check()?;
                let module = name.strip_suffix(".weight").filter(|_| shape.len() == 2 && name != EMBEDDING);
                if let (Some(module), Some(bits)) = (module, format.bits) {
                    return Ok(encode(module, &codes(name, shape, bits, format, dtype, deviation, cx)));
                }
                let mut values = values(name, shape, deviation, cx);
                if format.pruned && module.is_some() && name != HEAD {
                    prune(&mut values, 0.0, &mut cx.rng(&format!("zeros of {name}")));
                }
                Ok(vec![OutTensor::from_f32(name.as_str(), dtype, shape, &values)?])
            })
            .collect::<Result<_>>()?;
        writer.write_shard(&tensors.into_iter().flatten().collect::<Vec<_>>())?;
        cx.progress().advance(1);
    }
    cx.progress().end();
    let bytes = writer.finish()?;
    let mut config = config.clone();
    if let (Some(scheme), Some(map)) = (format.scheme(), config.as_object_mut()) {
        map.insert("quantization_config".into(), config_json(&[("lm_head".into(), scheme)], &[]));
    }
    let mut text = serde_json::to_string_pretty(&config).map_err(|e| ModelError::Input(format!("config.json: {e}")))?;
    text.push('\n');
    atomic_write(out.join("config.json"), text.as_bytes())?;
    Ok(bytes)
}

fn values(name: &str, shape: &[usize], deviation: Option<f64>, cx: &Cx) -> Vec<f32> {
    let count: usize = shape.iter().product();
    if shape.len() < 2 {
        return vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; count];
    }
    normals(count, scale_of(shape, deviation), &mut cx.rng(name))
}

/// The standard deviation of a matrix.
fn scale_of(shape: &[usize], deviation: Option<f64>) -> f32 {
    deviation.map_or_else(|| (shape[1] as f32).sqrt().recip(), |deviation| deviation as f32)
}

/// A matrix of uniform codes.
fn codes(
    name: &str,
    shape: &[usize],
    bits: u8,
    format: RandomFormat,
    dtype: DType,
    deviation: Option<f64>,
    cx: &Cx,
) -> Quantized {
    let (rows, cols) = (shape[0], shape[1]);
    let mut codes = vec![0; rows * cols];
    let mut rng = cx.rng(name);
    rng.fill_bytes(&mut codes);
    codes.iter_mut().for_each(|code| *code >>= 8 - bits);
    let middle = 1u8 << (bits - 1);
    if format.pruned && name != HEAD {
        prune(&mut codes, middle, &mut cx.rng(&format!("zeros of {name}")));
    }
    // Uniform codes of `levels` steps have a standard deviation of about `levels / √12`.
    let levels = f32::from(middle) * 2.0;
    let step = scale_of(shape, deviation) * 12f32.sqrt() / levels;
    let (scale_type, step) = match dtype {
        DType::F16 => (ScaleType::F16, f16::from_f32(step).to_f32()),
        DType::BF16 => (ScaleType::BF16, bf16::from_f32(step).to_f32()),
        _ => (ScaleType::F32, step),
    };
    let granularity = Granularity::Group(format.group);
    let scales = vec![step; rows * granularity.groups(cols)];
    Quantized { rows, cols, bits, granularity, scale_type, codes, scales, zeros: None, group_index: None }
}

/// Makes two of four consecutive values `zero`, which two by chance.
fn prune<T: Copy>(values: &mut [T], zero: T, rng: &mut impl Rng) {
    const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
    for four in values.as_chunks_mut::<4>().0 {
        PAIRS[rng.next_u32() as usize % PAIRS.len()].into_iter().for_each(|at| four[at] = zero);
    }
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
