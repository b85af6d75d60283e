//! `verify`: is what `compress` wrote what it computed?
//!
//! One block is in memory at a time, so a model of any size can be verified.

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};
use kindling_core::options::Value;
use kindling_core::{Cx, LayerShape, NM};
use kindling_model::checkpoint::{Checkpoint, DType, OutTensor};
use kindling_model::compress::Probe;
use kindling_model::decoder::{ForwardCx, Rotary};
use kindling_model::kv::DenseKv;
use kindling_model::{ModelError, ModelFiles};
use kindling_tensor_backend::device::{DeviceName, device};
use serde::Serialize;

use super::blocks_of;
use super::inspect::obeys;
use super::logits::values;
use crate::cli::Verify;
use crate::error::user;
use crate::recipe::{Recipe, ResolvedStage, resolve};
use crate::report::format::count;
use crate::{methods, output, progress, signal, tokens};

/// Beside the weights: token ids, and the logits that the run computed for them.
pub(super) const VERIFY_FILE: &str = "verify.safetensors";
/// Beside the weights: the recipe of the run.
pub(super) const RECIPE_FILE: &str = "recipe.toml";
/// How far logits from the files may be from those of the run, relative to the largest.
const TOLERANCE: f64 = 1e-3;

/// The findings, as `--json` prints them.
#[derive(Default, Serialize)]
struct Findings {
    files: usize,
    tensors: usize,
    /// Matrices whose zeros were compared with the recipe.
    masks: usize,
    /// `null` if there is nothing to compare with.
    logits: Option<Distance>,
}

/// How far two sets of logits are apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Distance {
    max_difference: f64,
    /// `max_difference` in relation to the largest logit.
    relative: f64,
    mean_kl: f64,
}

pub(crate) fn run(args: &Verify, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let files = ModelFiles::open(&args.model)?;
    let dir = files.dir();
    let cx = Cx::new(0).with_cancel(signal::cancel_flag()?).with_progress(progress::for_stderr());
    let mut found = Findings { files: files.checkpoint().files().len(), ..Findings::default() };
    found.tensors = check_numbers(files.checkpoint(), &cx)?;
    let promises = promises(&files, &dir)?;
    let probe = read_probe(&dir.join(VERIFY_FILE), files.spec().vocab_size)?;
    let (masks, logits) = walk(&files, &promises, probe.as_ref(), &device, &cx)?;
    found.masks = masks;
    found.logits = probe.zip(logits).map(|(probe, logits)| distance(&probe.logits, &logits, files.spec().vocab_size));

    if let Some(Distance { max_difference, relative, .. }) = found.logits
        && (relative > TOLERANCE || relative.is_nan())
    {
        return Err(user(format!(
            "{}: the logits differ by up to {max_difference:.2e} ({relative:.1e} of the largest) from those of the run \
             that wrote it, more than {TOLERANCE:.0e}: files were changed since, compress again",
            dir.display()
        )));
    }
    if args.json {
        return output::json(&found);
    }
    output::line(format_args!(
        "{}: {} tensors in {} files are whole, {} masks are as the recipe says",
        dir.display(),
        count(found.tensors as u64),
        found.files,
        found.masks
    ))?;
    match &found.logits {
        Some(d) => output::line(format_args!(
            "logits: max |difference| {:.2e}, {:.1e} of the largest; mean KL {:.2e} nats",
            d.max_difference, d.relative, d.mean_kl
        )),
        None => output::line(format_args!("logits: not compared, there is no {VERIFY_FILE} in this folder")),
    }
}

/// Reads every tensor of floats; gives the number of all tensors.
fn check_numbers(checkpoint: &Checkpoint, cx: &Cx) -> Result<usize> {
    let names = checkpoint.names();
    let tensors = names.len();
    cx.progress().begin("tensors", tensors as u64);
    for name in names {
        cx.check()?;
        let info = checkpoint.info(name).map_err(ModelError::from)?;
        if matches!(info.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
            let values = checkpoint.tensor_f32(name).map_err(ModelError::from)?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let (file, value) = (info.shard.display(), values[at]);
                return Err(user(format!("{file}: tensor `{name}` holds {value} at position {at}: compress again")));
            }
        }
        cx.progress().advance(1);
    }
    cx.progress().end();
    Ok(tensors)
}

/// A stage of the recipe that removed weights, and how many.
struct Promise {
    stage: ResolvedStage,
    keep: Keep,
}

enum Keep {
    Pattern(NM),
    Sparsity(f64),
}

/// What the recipe beside the weights promises of their zeros; nothing where there is none.
fn promises(files: &ModelFiles, dir: &Path) -> Result<Vec<Promise>> {
    let path = dir.join(RECIPE_FILE);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let recipe = Recipe::read(&path)?;
    let stages = resolve(&recipe, &methods::all(), &blocks_of(files))?.stages;
    let keeps =
        recipe.stages.iter().map(|stage| match (stage.options.0.get("pattern"), stage.options.0.get("sparsity")) {
            (Some(Value::Text(pattern)), _) => pattern.parse().map(|nm| Some(Keep::Pattern(nm))),
            (_, Some(Value::Float(share))) => Ok(Some(Keep::Sparsity(*share))),
            _ => Ok(None),
        });
    let pairs = stages.into_iter().zip(keeps);
    pairs.filter_map(|(stage, keep)| Some(Ok(Promise { stage, keep: keep.transpose()?.ok()? }))).collect()
}

/// Fails if the zeros of a matrix are not those that a stage promised.
fn check_mask(promise: &Promise, block: usize, shape: &LayerShape, weight: &[f32]) -> Result<()> {
    let (rows, cols) = (shape.rows, shape.cols);
    let zeros = weight.iter().filter(|&&w| w == 0.0).count() as f64 / weight.len().max(1) as f64;
    let (kept, promised) = match promise.keep {
        Keep::Pattern(nm) => (obeys(rows, cols, weight, nm)?.is_some(), format!("pattern {nm}")),
        // Shares are exact for the matrix up to rounding to whole weights in each row or column.
        Keep::Sparsity(share) => {
            (zeros + 1.0 / rows.min(cols) as f64 >= share, format!("sparsity {share} (it has {zeros:.3})"))
        }
    };
    if kept {
        return Ok(());
    }
    let (name, method) = (&shape.name, promise.stage.entry.name);
    Err(user(format!(
        "block {block}, {name}: does not have the {promised} of `{method}` in {RECIPE_FILE}: compress again"
    )))
}

/// Checks masks block by block, and gives the logits of the probe; one loaded block serves both.
fn walk(
    files: &ModelFiles,
    promises: &[Promise],
    probe: Option<&Probe>,
    device: &Device,
    cx: &Cx,
) -> Result<(usize, Option<Vec<f32>>)> {
    let count = files.spec().blocks.len();
    let mut x = probe.map(|probe| files.embed(std::slice::from_ref(&probe.ids), device)).transpose()?;
    let mut masks = 0;
    cx.progress().begin("blocks", count as u64);
    for index in 0..count {
        cx.check()?;
        let block = files.block(index, device)?;
        for projection in block.projections() {
            let mine: Vec<&Promise> = promises.iter().filter(|p| p.stage.selects(&projection.shape)).collect();
            if !mine.is_empty() {
                let weight = values(projection.weight.to_dense(device).map_err(ModelError::from)?)?;
                mine.iter().try_for_each(|promise| check_mask(promise, index, &projection.shape, &weight))?;
                masks += 1;
            }
        }
        if let Some(input) = x.take() {
            let rotary = Rotary::new(&files.spec().rope, 0, input.dims()[1], &[], device);
            let mut kv = DenseKv::new(1, device);
            x = Some(block.forward(input, &mut ForwardCx { kv: &mut kv, layer: 0, rotary: &rotary, tap: None })?);
        }
        cx.progress().advance(1);
    }
    cx.progress().end();
    let logits = |x: Tensor<3>| -> Result<Vec<f32>> {
        let head = files.head(device)?;
        values(head.logits(head.norm(x)))
    };
    Ok((masks, x.map(logits).transpose()?))
}

/// The tensors that keep a probe.
pub(super) fn write_probe(path: &Path, probe: &Probe) -> Result<()> {
    let rows = std::slice::from_ref(&probe.ids);
    let shape = [1, probe.ids.len(), probe.logits.len() / probe.ids.len().max(1)];
    let logits = OutTensor::from_f32("logits", DType::F32, &shape, &probe.logits).map_err(ModelError::from)?;
    tokens::write(path, &[tokens::ids_tensor(rows), logits])
}

/// The probe of a run; `None` if it left none.
fn read_probe(path: &Path, vocab: usize) -> Result<Option<Probe>> {
    if !path.is_file() {
        return Ok(None);
    }
    let ids = tokens::rows(path)?.pop().context("a file of ids has rows")?;
    let checkpoint = Checkpoint::open(path).map_err(ModelError::from)?;
    let logits = checkpoint.tensor_f32("logits").map_err(ModelError::from)?;
    if logits.len() != ids.len() * vocab {
        let (file, found) = (path.display(), logits.len());
        return Err(user(format!("{file}: {} ids of a vocabulary of {vocab} have not {found} logits", ids.len())));
    }
    Ok(Some(Probe { ids, logits }))
}

/// How far `found` is from `expected`, both `[tokens, vocab]`.
fn distance(expected: &[f32], found: &[f32], vocab: usize) -> Distance {
    let pairs = || expected.iter().zip(found);
    // A logit that is not a number is infinitely far away.
    let gap =
        |(a, b): (&f32, &f32)| Some(f64::from((a - b).abs())).filter(|gap| !gap.is_nan()).unwrap_or(f64::INFINITY);
    let max_difference = pairs().map(gap).fold(0.0, f64::max);
    let largest = expected.iter().map(|a| f64::from(a.abs())).fold(f64::MIN_POSITIVE, f64::max);
    let kl: f64 = expected.chunks(vocab).zip(found.chunks(vocab)).map(|(p, q)| divergence(p, q)).sum();
    Distance { max_difference, relative: max_difference / largest, mean_kl: kl * vocab as f64 / expected.len() as f64 }
}

/// `KL(p ‖ q)` of two distributions by their logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln()
    };
    let (sum_p, sum_q) = (log_sum(p), log_sum(q));
    let logs = p.iter().zip(q).map(|(&p, &q)| (f64::from(p) - sum_p, f64::from(q) - sum_q));
    logs.map(|(p, q)| p.exp() * (p - q)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_worked_example() {
        // p = (3/4, 1/4), q = (1/2, 1/2): KL = ln 2 − H(p) = 0.693147 − 0.562335.
        let found = distance(&[3f32.ln(), 0.0], &[0.0, 0.0], 2);
        assert!((found.max_difference - 3f64.ln()).abs() < 1e-6 && (found.relative - 1.0).abs() < 1e-6, "{found:?}");
        assert!((found.mean_kl - 0.130812).abs() < 1e-5, "{found:?}");
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 2.0], 2).mean_kl, 0.0);
        assert_eq!(distance(&[1.0, 2.0], &[f32::NAN, 2.0], 2).max_difference, f64::INFINITY);
    }
}
