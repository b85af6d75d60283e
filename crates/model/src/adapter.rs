//! Low-rank adapters on the projections of a decoder: attach, train through
//! [`parameters_mut`](kindling_core::LanguageModel::parameters_mut), merge, and read and write in the layout of PEFT
//! (`adapter_config.json`, `adapter_model.safetensors`).

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use kindling_core::Cx;
use kindling_tensor_backend::formats::{Adapted, Weight};
use rand_chacha::rand_core::Rng;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checkpoint::atomic::atomic_write_with;
use crate::checkpoint::{Checkpoint, DType, OutTensor, Writer, WriterOptions};
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::layers::block_prefix;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of a Hugging Face model.
const PREFIX: &str = "base_model.model.";

/// What an adapter is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Rows of `A`.
    pub rank: usize,
    /// The correction is multiplied by `alpha / rank`, or `alpha / √rank` with `rank_stabilized`.
    pub alpha: f64,
    /// See `alpha`. Source: Kalajdzievski, arXiv 2312.03732.
    pub rank_stabilized: bool,
    /// Learn the norms of rows, too. Source: Liu et al., "DoRA", arXiv 2402.09353.
    pub dora: bool,
    /// Leave pruned weights at zero: the correction counts only where the base has a weight.
    pub masked: bool,
    /// Ends of module names, for example `q_proj`; empty: every projection.
    pub targets: Vec<String>,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, rank_stabilized: false, dora: false, masked: false, targets: Vec::new() }
    }
}

impl AdapterConfig {
    fn scale(&self, rank: usize, alpha: f64) -> f64 {
        if self.rank_stabilized { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }

    fn hits(&self, module: &str) -> bool {
        let end = |target: &String| module == target || module.ends_with(&format!(".{target}"));
        self.targets.is_empty() || self.targets.iter().any(end)
    }
}

/// Puts fresh adapters on the targeted projections: `A` uniform within `±1/√inputs`, `B` zero, so that nothing changes yet.
/// Returns how many there are.
///
/// # Errors
/// The rank is 0, no projection is a target, or one has an adapter already.
pub fn attach(model: &mut Decoder, config: &AdapterConfig, cx: &Cx) -> Result<usize> {
    if config.rank == 0 {
        return Err(ModelError::Input("an adapter of rank 0 learns nothing: give a rank of 1 or more".into()));
    }
    let device = model.device().clone();
    let mut count = 0;
    for (index, block) in model.blocks_mut().iter_mut().enumerate() {
        for projection in block.projections_mut() {
            let name = format!("{}{}", block_prefix(index), projection.shape.name);
            if !config.hits(&name) {
                continue;
            }
            if matches!(projection.weight, Weight::Adapted(_)) {
                return Err(ModelError::Input(format!("`{name}` has an adapter already: merge it first")));
            }
            let (rows, cols) = (projection.shape.rows, projection.shape.cols);
            let mut rng = cx.rng(&format!("{name}.lora_A"));
            let bound = (cols as f32).sqrt().recip();
            let uniform = |word: u32| (word as f32 / 4_294_967_296.0 * 2.0 - 1.0) * bound;
            let a: Vec<f32> = (0..config.rank * cols).map(|_| uniform(rng.next_u32())).collect();
            let a = Tensor::from_data(TensorData::new(a, [config.rank, cols]), &device);
            let b = Tensor::zeros([rows, config.rank], &device);
            let base = projection.weight.clone();
            projection.weight = build(base, a, b, config.scale(config.rank, config.alpha), config, None)?;
            count += 1;
        }
    }
    if count == 0 {
        return Err(ModelError::Input(format!("no projection ends in any of {:?}", config.targets)));
    }
    Ok(count)
}

fn build(
    base: Weight,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f64,
    config: &AdapterConfig,
    magnitude: Option<Tensor<1>>,
) -> Result<Weight> {
    let mut adapted = Adapted::new(base, a, b, scale)?;
    if config.masked {
        adapted = adapted.masked()?;
    }
    if config.dora {
        adapted = adapted.with_magnitude(magnitude)?;
    }
    Ok(Weight::Adapted(Box::new(adapted)))
}

/// Replaces every adapted weight by a dense one that holds the sum. Returns how many there were.
pub fn merge(model: &mut Decoder) -> Result<usize> {
    let device = model.device().clone();
    let mut count = 0;
    for projection in model.blocks_mut().iter_mut().flat_map(|block| block.projections_mut()) {
        if let Weight::Adapted(adapted) = &projection.weight {
            projection.weight = adapted.merged(&device)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Writes the adapters of a model, as PEFT lays them out, into `dir`.
///
/// # Errors
/// There are none, or a file cannot be written.
pub fn save(model: &Decoder, config: &AdapterConfig, base: &str, dir: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    let mut targets = Vec::new();
    for (index, block) in model.blocks().iter().enumerate() {
        for projection in block.projections() {
            let Weight::Adapted(adapted) = &projection.weight else { continue };
            let end = projection.shape.name.rsplit('.').next().unwrap_or(&projection.shape.name).to_string();
            if !targets.contains(&end) {
                targets.push(end);
            }
            let module = format!("{PREFIX}{}{}", block_prefix(index), projection.shape.name);
            let (a, b, magnitude) = adapted.parts();
            let mut push = |suffix: &str, shape: &[usize], data: TensorData| -> Result<()> {
                let values = data.convert::<f32>().try_to_vec::<f32>();
                let values = values.map_err(|error| ModelError::Input(format!("{module}: {error:?}")))?;
                tensors.push(OutTensor::from_f32(format!("{module}.{suffix}"), DType::F32, shape, &values)?);
                Ok(())
            };
            push("lora_A.weight", &a.dims(), a.clone().into_data())?;
            push("lora_B.weight", &b.dims(), b.clone().into_data())?;
            if let Some(magnitude) = magnitude {
                push("lora_magnitude_vector", &magnitude.dims(), magnitude.clone().into_data())?;
            }
        }
    }
    if tensors.is_empty() {
        return Err(ModelError::Input("the model has no adapter to save".into()));
    }
    let peft = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "use_rslora": config.rank_stabilized,
        "use_dora": config.dora,
        "modules_to_save": null,
        "layers_to_transform": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": true,
    });
    // A writer wants a folder without weights of its own kind: the file is made beside and takes its name last.
    let parts = dir.join(".adapter");
    if parts.exists() {
        std::fs::remove_dir_all(&parts).map_err(ModelError::io(&parts))?;
    }
    let mut writer = Writer::create(&parts, WriterOptions::default())?;
    writer.write_shard(&tensors)?;
    writer.finish()?;
    let (made, path) = (parts.join("model.safetensors"), dir.join(WEIGHTS));
    std::fs::rename(&made, &path).map_err(ModelError::io(&path))?;
    std::fs::remove_dir_all(&parts).map_err(ModelError::io(&parts))?;
    atomic_write_with(&dir.join(CONFIG), |file| serde_json::to_writer_pretty(file, &peft).map_err(Into::into))?;
    Ok(())
}

/// Puts the adapters of a PEFT folder on a model and returns what they are like.
///
/// # Errors
/// The folder holds another kind of adapter, a tensor is missing, unknown or of another shape than the model's projection,
/// or the ranks contradict the configuration.
pub fn load(model: &mut Decoder, dir: &Path) -> Result<AdapterConfig> {
    let path = dir.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path))?;
    let bad = |reason: String| ModelError::Input(format!("{}: {reason}", path.display()));
    let peft: Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let config = read_config(&peft).map_err(bad)?;
    let ranks = patterns(&peft, "rank_pattern").map_err(bad)?;
    let alphas = patterns(&peft, "alpha_pattern").map_err(bad)?;
    let file = Checkpoint::open(dir.join(WEIGHTS))?;
    let mut unread: std::collections::BTreeSet<String> =
        file.names().filter(|name| !name.contains(".base_layer.")).map(str::to_string).collect();
    let device = model.device().clone();
    for (index, block) in model.blocks_mut().iter_mut().enumerate() {
        for projection in block.projections_mut() {
            let module = format!("{}{}", block_prefix(index), projection.shape.name);
            let named = |suffix: &str| format!("{PREFIX}{module}.{suffix}");
            let (a_name, b_name) = (named("lora_A.weight"), named("lora_B.weight"));
            if !file.contains(&a_name) && !file.contains(&b_name) {
                continue;
            }
            let matrix = |name: &str| -> Result<Tensor<2>> {
                let info = file.info(name)?;
                let &[rows, cols] = info.shape else {
                    return Err(ModelError::Input(format!(
                        "{name}: a matrix is expected, found shape {:?}",
                        info.shape
                    )));
                };
                Ok(Tensor::from_data(TensorData::new(file.tensor_f32(name)?, [rows, cols]), &device))
            };
            let (a, b) = (matrix(&a_name)?, matrix(&b_name)?);
            let rank = *first_match(&ranks, &module).unwrap_or(&(config.rank as f64)) as usize;
            if a.dims()[0] != rank {
                let found = a.dims()[0];
                return Err(bad(format!("`{module}` has rank {found}, the configuration says {rank}")));
            }
            let scale = config.scale(rank, *first_match(&alphas, &module).unwrap_or(&config.alpha));
            let m_name = named("lora_magnitude_vector");
            let magnitude = if config.dora {
                let values = file.tensor_f32(&m_name)?;
                Some(Tensor::from_data(TensorData::new(values.clone(), [values.len()]), &device))
            } else {
                None
            };
            let base = projection.weight.clone();
            if matches!(base, Weight::Adapted(_)) {
                return Err(ModelError::Input(format!("`{module}` has an adapter already: merge it first")));
            }
            projection.weight = build(base, a, b, scale, &config, magnitude)
                .map_err(|error| ModelError::Input(format!("{}: `{module}`: {error}", dir.display())))?;
            [a_name, b_name, m_name].iter().for_each(|name| {
                unread.remove(name);
            });
        }
    }
    match unread.first() {
        Some(name) => Err(ModelError::Input(format!(
            "{}: `{name}` belongs to no projection of this model: the adapter was made for another one",
            dir.display()
        ))),
        None => Ok(config),
    }
}

/// Absent keys mean what PEFT takes them to mean.
fn read_config(peft: &Value) -> Result<AdapterConfig, String> {
    let text = |key: &str, default: &str| peft.get(key).and_then(Value::as_str).unwrap_or(default).to_string();
    let number = |key: &str| peft.get(key).and_then(Value::as_f64).unwrap_or(8.0);
    let flag = |key: &str| peft.get(key).and_then(Value::as_bool).unwrap_or(false);
    let kind = text("peft_type", "");
    if kind != "LORA" {
        return Err(format!("peft_type `{kind}`: only LORA is known"));
    }
    let bias = text("bias", "none");
    if bias != "none" {
        return Err(format!("bias `{bias}`: adapters that train biases are not supported"));
    }
    if let Some(other) = peft.as_object().into_iter().flatten().find(|(key, value)| {
        key.starts_with("use_") && !["use_dora", "use_rslora"].contains(&key.as_str()) && value.as_bool() == Some(true)
    }) {
        return Err(format!("`{}` is not supported", other.0));
    }
    if flag("fan_in_fan_out") {
        return Err("`fan_in_fan_out` is for models with transposed weights".into());
    }
    if peft.get("modules_to_save").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
        return Err("`modules_to_save`: adapters that replace whole modules are not supported".into());
    }
    let targets = match peft.get("target_modules") {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_string).collect(),
        _ => Vec::new(),
    };
    let (rank_stabilized, dora) = (flag("use_rslora"), flag("use_dora"));
    Ok(AdapterConfig {
        rank: number("r") as usize,
        alpha: number("lora_alpha"),
        rank_stabilized,
        dora,
        masked: false,
        targets,
    })
}

type Patterns = Vec<(Regex, f64)>;

/// Regular expressions for the ends of module names, with the value of each.
fn patterns(peft: &Value, key: &str) -> Result<Patterns, String> {
    let entries = peft.get(key).and_then(Value::as_object).into_iter().flatten();
    entries
        .map(|(pattern, value)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(|error| format!("{key}: {error}"))?;
            let value = value.as_f64().ok_or_else(|| format!("{key}: `{pattern}` has no number"))?;
            Ok((regex, value))
        })
        .collect()
}

fn first_match<'a>(patterns: &'a Patterns, module: &str) -> Option<&'a f64> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| value)
}
