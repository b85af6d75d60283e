//! One command per file.

mod align;
mod bench;
mod capture;
mod compress;
mod distill;
mod doctor;
mod eval;
mod generate;
mod heal;
mod index;
mod inspect;
mod list;
mod logits;
mod pretrain;
mod random_checkpoint;
mod report;
mod tidy;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::tensor::Device;
use kindling_core::LayerShape;
use kindling_model::checkpoint::Checkpoint;
use kindling_model::layers::projections_of_block;
use kindling_model::{Decoder, ModelFiles};
use kindling_tensor_backend::device::DeviceName;

use crate::cli::{Command, Inputs};
use crate::error::OrUser;

/// Runs a command on this device.
pub(crate) fn run(command: Command, device: DeviceName) -> Result<()> {
    match command {
        Command::Compress(args) => compress::run(&args, device),
        Command::Eval(args) => eval::run(&args, device),
        Command::Generate(args) => generate::run(&args, device),
        Command::Logits(args) => logits::run(&args, device),
        Command::List(args) => list::run(&args),
        Command::Inspect(args) => inspect::run(&args, device),
        Command::Verify(args) => verify::run(&args, device),
        Command::Report(args) => report::run(&args),
        Command::Pretrain(args) => pretrain::run(&args, device),
        Command::Capture(args) => capture::run(&args, device),
        Command::Distill(args) => distill::run(&args, device),
        Command::Heal(args) => heal::run(&args, device),
        Command::Align(args) => align::run(&args, device),
        Command::RandomCheckpoint(args) => random_checkpoint::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Bench(args) => bench::run(&args, device),
        Command::Doctor(args) => doctor::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Ci => crate::ci::run().or_user(),
    }
}

/// The root of the workspace that this program was built from.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the driver is a folder of the workspace")
}

/// The model that the user names, else the one that ships.
fn named_model(model: &Option<PathBuf>) -> PathBuf {
    model.clone().unwrap_or_else(kindling_model::assets::tiny)
}

/// A model with its adapter, if there is one.
fn load(files: &ModelFiles, adapter: Option<&Path>, inputs: Inputs, device: &Device) -> Result<Decoder> {
    let mut model = match adapter {
        None => Decoder::load(files, device)?,
        Some(dir) => {
            let mut model = Decoder::load_dense(files, device)?;
            kindling_model::adapter::load(&mut model, dir)?;
            model.prepare()?;
            model
        }
    };
    model.set_arithmetic(inputs.arithmetic());
    Ok(model)
}

/// The projections of every block, as recipes see them.
fn blocks_of(files: &ModelFiles) -> Vec<Vec<LayerShape>> {
    let blocks = 0..files.spec().blocks.len();
    blocks.map(|i| projections_of_block(files.spec(), i).into_iter().map(|p| p.shape).collect()).collect()
}

/// Bytes of the weight files.
fn bytes_on_disk(checkpoint: &Checkpoint) -> u64 {
    checkpoint.files().filter_map(|file| std::fs::metadata(file).ok()).map(|file| file.len()).sum()
}

/// A module's name with its numbers replaced by `*`, so that one name stands for all blocks or experts.
fn kind_of(name: &str) -> String {
    let parts = name.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_forget_numbers_only() {
        assert_eq!(kind_of("model.layers.12.mlp.experts.3.w1.weight"), "model.layers.*.mlp.experts.*.w1.weight");
        assert_eq!(kind_of("lm_head.weight"), "lm_head.weight");
    }
}
