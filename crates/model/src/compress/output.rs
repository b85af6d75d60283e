//! From finished blocks to a checkpoint that opens again.
//!
//! Every block becomes a part, a safetensors file in the work folder, as soon as it is finished. At the end parts are
//! gathered into shards, untouched tensors are copied bit for bit, and `config.json` is written last.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kindling_core::{LayerShape, Quantized};

use super::state::LayerRecord;
use crate::checkpoint::atomic::atomic_write;
use crate::checkpoint::{Checkpoint, DType, OutTensor, Writer, WriterOptions};
use crate::compressed_tensors::{Scheme, config_json, encode};
use crate::config::MlpSpec;
use crate::decoder::ModelFiles;
use crate::error::{ModelError, Result};
use crate::layers::{block_prefix, projections_of_block, tensors_of_block};

/// The folder, within the output, of what an unfinished run needs.
pub const WORK_DIR: &str = ".kindling";

/// Files beside the weights that a checkpoint keeps.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "LICENSE",
];

/// How a projection is written.
pub(super) enum StoredProjection {
    /// As the source has it.
    Verbatim,
    /// Floats in the type of the source.
    Dense(Vec<f32>),
    /// Codes.
    Quantized(Quantized),
}

impl StoredProjection {
    /// Bytes of the weight on disk.
    pub(super) fn bytes(&self, shape: &LayerShape, dtype: DType) -> u64 {
        match self {
            StoredProjection::Verbatim | StoredProjection::Dense(_) => {
                (shape.rows * shape.cols * dtype.bits() / 8) as u64
            }
            StoredProjection::Quantized(q) => encode("", q).iter().map(|t| t.bytes.len() as u64).sum(),
        }
    }
}

fn part_dir(work: &Path, block: usize) -> PathBuf {
    work.join(format!("block-{block:05}"))
}

/// Writes the tensors of a finished block. `stored` is in the order of its projections.
pub(super) fn write_part(files: &ModelFiles, work: &Path, block: usize, stored: Vec<StoredProjection>) -> Result<()> {
    let prefix = block_prefix(block);
    let mut tensors: Vec<OutTensor<'_>> = Vec::new();
    let mut replaced = BTreeSet::new();
    for (projection, stored) in projections_of_block(files.spec(), block).into_iter().zip(stored) {
        let module = format!("{prefix}{}", projection.shape.name);
        let name = format!("{module}.weight");
        match stored {
            StoredProjection::Verbatim => continue,
            StoredProjection::Dense(values) => {
                let info = files.checkpoint().info(&name)?;
                let shape = [projection.shape.rows, projection.shape.cols];
                tensors.push(OutTensor::from_f32(name.as_str(), info.dtype, &shape, &values)?);
            }
            StoredProjection::Quantized(quantized) => tensors.extend(encode(&module, &quantized)),
        }
        replaced.insert(name);
    }
    for tensor in tensors_of_block(files.spec(), block) {
        let name = format!("{prefix}{}", tensor.name);
        if !replaced.contains(&name) {
            tensors.push(copied(files.checkpoint(), &name)?);
        }
    }
    let dir = part_dir(work, block);
    if dir.exists() {
        // Left by a run that was killed between this block and its entry in the state.
        std::fs::remove_dir_all(&dir).map_err(ModelError::io(&dir))?;
    }
    let mut writer = Writer::create(&dir, WriterOptions { max_shard_bytes: u64::MAX, ..WriterOptions::default() })?;
    writer.write_shard(&tensors)?;
    writer.finish()?;
    Ok(())
}

/// A tensor as it stands in `checkpoint`.
fn copied<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<OutTensor<'a>> {
    Ok(OutTensor::copy_of(checkpoint.tensor(name)?))
}

/// Gathers the parts into shards and writes everything a reader needs. Gives the bytes of all weights.
pub(super) fn assemble(
    files: &ModelFiles,
    out: &Path,
    work: &Path,
    records: &[LayerRecord],
    max_shard_bytes: u64,
) -> Result<u64> {
    let blocks = files.spec().blocks.len();
    let parts = (0..blocks).map(|i| Checkpoint::open(part_dir(work, i))).collect::<Result<Vec<_>, _>>()?;
    let of_blocks: BTreeSet<String> = (0..blocks)
        .flat_map(|i| {
            tensors_of_block(files.spec(), i).into_iter().map(move |t| format!("{}{}", block_prefix(i), t.name))
        })
        .collect();
    // Embedding, head, norm, and whatever else the source has that no block of the decoder uses.
    let others: Vec<String> =
        files.checkpoint().names().filter(|n| !of_blocks.contains(*n)).map(str::to_string).collect();

    let mut shards: Vec<Vec<(&Checkpoint, String)>> = vec![Vec::new()];
    let (mut filled, mut total) = (0u64, 0u64);
    let sources = parts.iter().map(|part| (part, part.names().map(str::to_string).collect::<Vec<_>>()));
    for (source, names) in std::iter::once((files.checkpoint(), others)).chain(sources) {
        for name in names {
            let bytes = source.info(&name)?.bytes as u64;
            if filled > 0 && filled + bytes > max_shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            total += bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push((source, name));
            }
        }
    }
    // The shards are cut here already: a limit within the writer would cut them again.
    let options = WriterOptions { parts: shards.len(), max_shard_bytes: u64::MAX, ..WriterOptions::default() };
    let mut writer = Writer::resume(out, options)?;
    for shard in &shards[writer.done().len()..] {
        let tensors: Vec<OutTensor<'_>> =
            shard.iter().map(|(source, name)| copied(source, name)).collect::<Result<_>>()?;
        writer.write_shard(&tensors)?;
    }
    writer.finish()?;

    for name in COMPANIONS {
        let from = files.dir().join(name);
        if from.is_file() {
            let bytes = std::fs::read(&from).map_err(ModelError::io(&from))?;
            atomic_write(out.join(name), &bytes)?;
        }
    }
    let mut config = files.config().clone();
    if let (Some(quantization), Some(map)) = (quantization_config(files, records), config.as_object_mut()) {
        map.insert("quantization_config".into(), quantization);
    }
    let mut text = serde_json::to_string_pretty(&config).map_err(|e| ModelError::Input(format!("config.json: {e}")))?;
    text.push('\n');
    atomic_write(out.join("config.json"), text.as_bytes())?;
    Ok(total)
}

/// The `quantization_config` of what was written; `None` if nothing is quantised.
fn quantization_config(files: &ModelFiles, records: &[LayerRecord]) -> Option<serde_json::Value> {
    let module = |record: &LayerRecord| format!("{}{}", block_prefix(record.block), record.name);
    let quantized: Vec<(String, Scheme)> =
        records.iter().filter_map(|record| Some((module(record), record.scheme?))).collect();
    if quantized.is_empty() {
        return None;
    }
    let mut dense: Vec<String> = records.iter().filter(|r| r.scheme.is_none()).map(module).collect();
    for (i, block) in files.spec().blocks.iter().enumerate() {
        if let MlpSpec::Experts { names, .. } = &block.mlp {
            dense.push(format!("{}{}.gate", block_prefix(i), names.module));
        }
    }
    dense.push("lm_head".into());
    Some(config_json(&quantized, &dense))
}
