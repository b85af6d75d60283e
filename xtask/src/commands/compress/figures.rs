//! From the outcome of a run to its report.

use std::path::Path;

use anyhow::{Context, Result};
use kindling_model::checkpoint::Checkpoint;
use kindling_model::compress::{CalibrationSet, LayerRecord, Outcome};
use kindling_model::evaluate::Perplexity;
use kindling_model::layers::block_prefix;
use kindling_model::{ModelError, ModelFiles};
use kindling_tensor_backend::device::DeviceName;

use crate::cli::Compress;
use crate::commands::{bytes_on_disk, doctor};
use crate::report::Report;
use crate::report::data::{Calibration, Figures, Measured, ModelInfo, Module, Protocol, SCHEMA, Share};

/// The notes of all layers, each once: with the block where it is one, with their number where they are many.
pub(super) fn notes(records: &[LayerRecord]) -> Vec<String> {
    let mut seen: Vec<(&str, &str, Vec<usize>)> = Vec::new();
    for record in records {
        for note in &record.notes {
            match seen.iter_mut().find(|(name, text, _)| *name == record.name && *text == note) {
                Some((_, _, blocks)) => blocks.push(record.block),
                None => seen.push((&record.name, note, vec![record.block])),
            }
        }
    }
    seen.iter()
        .map(|(name, note, blocks)| match blocks.as_slice() {
            [block] => format!("block {block}, {name}: {note}"),
            many => format!("{name} of {} blocks: {note}", many.len()),
        })
        .collect()
}

/// A finished run.
pub(super) struct Run<'a> {
    pub(super) args: &'a Compress,
    pub(super) name: String,
    pub(super) files: &'a ModelFiles,
    pub(super) out: &'a Path,
    pub(super) recipe: &'a str,
    pub(super) set: &'a CalibrationSet,
    pub(super) outcome: &'a Outcome,
}

impl Run<'_> {
    /// Everything but what depends on the machine.
    pub(super) fn report(&self, warnings: Vec<String>) -> Result<Report> {
        let Self { files, set, .. } = self;
        let (model, calibration) = (files.spec(), &set.calibration);
        Ok(Report {
            schema: SCHEMA,
            kindling: env!("CARGO_PKG_VERSION").into(),
            command: self.command(),
            seed: self.args.seed,
            model: ModelInfo {
                name: self.name.clone(),
                family: model.family.into(),
                parameters: model.parameters(),
                dtype: files.dtype().name().to_lowercase(),
            },
            recipe: self.recipe.into(),
            calibration: Calibration {
                source: calibration.source.clone(),
                sha256: calibration.sha256.clone(),
                sequences: calibration.rows.len() as u64,
                length: calibration.window() as u64,
                tokens: calibration.tokens() as u64,
            },
            protocol: self.protocol(),
            before: self.before()?,
            after: self.after()?,
            modules: self.compressed().map(module).collect(),
            warnings,
            tasks: Vec::new(),
            measured: None,
        })
    }

    /// What depends on the machine and the moment, speeds aside.
    pub(super) fn measured(&self, device: DeviceName, seconds: f64, peak_memory: Option<u64>) -> Measured {
        let threads = rayon::current_num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        Measured {
            machine: format!("{}, {threads} thread{plural}, {device}", doctor::cpu()),
            seconds,
            peak_memory,
            before: None,
            after: None,
            module_seconds: self.compressed().map(|record| record.seconds).collect(),
        }
    }

    /// The records of the projections that a stage acted on.
    fn compressed(&self) -> impl Iterator<Item = &LayerRecord> {
        self.outcome.records.iter().filter(|record| !record.methods.is_empty())
    }

    /// The command with the arguments that determine the result, and no others.
    fn command(&self) -> String {
        let args = self.args;
        let mut words = vec!["cargo xtask compress".to_string()];
        let mut path = |flag: &str, path: &Option<std::path::PathBuf>| {
            words.extend(path.as_ref().map(|path| format!("--{flag} {}", path.display())));
        };
        path("model", &args.model);
        path("recipe", &args.recipe);
        path("calibration", &Some(args.calibration.clone()));
        path("eval", &args.eval);
        words.push(format!(
            "--windows {} --window {} --eval-windows {} --seed {}",
            args.windows, args.window, args.eval_windows, args.seed
        ));
        words.join(" ")
    }

    fn protocol(&self) -> Option<Protocol> {
        let windows = self.set.evaluation.as_ref()?;
        let scored = self.outcome.after.as_ref()?.scored;
        Some(Protocol {
            text: windows.source.clone(),
            sha256: windows.sha256.clone(),
            window: windows.window() as u64,
            windows: windows.rows.len() as u64,
            tokens: windows.text_tokens as u64,
            scored: scored as u64,
        })
    }

    fn before(&self) -> Result<Figures> {
        let checkpoint = self.files.checkpoint();
        let parameters = self.files.spec().parameters();
        let (mut bytes, mut zeros, mut untouched_zeros) = (0, 0, 0);
        for record in &self.outcome.records {
            if record.methods.is_empty() {
                untouched_zeros += weights(record) - record.nonzero;
                continue;
            }
            let name = format!("{}{}.weight", block_prefix(record.block), record.name);
            bytes += checkpoint.info(&name).map_err(ModelError::from)?.bytes as u64;
            let values = checkpoint.tensor_f32(&name).map_err(ModelError::from)?;
            zeros += values.iter().filter(|&&value| value == 0.0).count() as u64;
        }
        let targeted: u64 = self.compressed().map(weights).sum();
        Ok(Figures {
            bytes_on_disk: bytes_on_disk(checkpoint),
            bytes_resident: parameters * 4,
            bits_per_weight: Share {
                targeted: ratio(8 * bytes, targeted),
                model: ratio(8 * checkpoint.total_bytes(), parameters),
            },
            sparsity: Share { targeted: ratio(zeros, targeted), model: ratio(zeros + untouched_zeros, parameters) },
            ..quality(self.outcome.before.as_ref(), None)
        })
    }

    fn after(&self) -> Result<Figures> {
        let outcome = self.outcome;
        let parameters = self.files.spec().parameters();
        let checkpoint = Checkpoint::open(self.out).context("the result cannot be opened")?;
        let sum = |of: fn(&LayerRecord) -> u64| self.compressed().map(of).sum::<u64>();
        let (targeted, bytes) = (sum(weights), sum(|record| record.bytes));
        let zeros = |record: &LayerRecord| weights(record) - record.nonzero;
        // Dense weights are held in f32 while the model runs, whatever the files hold.
        let saved = |record: &LayerRecord| (weights(record) * 4).saturating_sub(record.bytes);
        let shrunk: u64 = self.compressed().filter(|record| record.scheme.is_some()).map(saved).sum();
        Ok(Figures {
            bytes_on_disk: bytes_on_disk(&checkpoint),
            bytes_resident: parameters * 4 - shrunk,
            bits_per_weight: Share {
                targeted: ratio(8 * bytes, targeted),
                model: ratio(8 * outcome.bytes, parameters),
            },
            sparsity: Share {
                targeted: ratio(self.compressed().map(zeros).sum(), targeted),
                model: ratio(outcome.records.iter().map(zeros).sum(), parameters),
            },
            ..quality(outcome.after.as_ref(), outcome.mean_kl)
        })
    }
}

/// Figures that know the quality only.
fn quality(perplexity: Option<&Perplexity>, mean_kl: Option<f64>) -> Figures {
    let nothing = Share { targeted: 0.0, model: 0.0 };
    Figures {
        perplexity: perplexity.map_or(f64::NAN, |found| found.perplexity),
        mean_nll: perplexity.map_or(f64::NAN, |found| found.mean_nll),
        mean_kl,
        bytes_on_disk: 0,
        bytes_resident: 0,
        bits_per_weight: nothing,
        sparsity: nothing,
    }
}

fn module(record: &LayerRecord) -> Module {
    Module {
        block: record.block,
        name: record.name.clone(),
        methods: record.methods.clone(),
        format: record.format.clone(),
        rows: record.rows,
        cols: record.cols,
        error: record.error.unwrap_or(f64::NAN),
        tokens_seen: record.tokens,
        notes: record.notes.clone(),
    }
}

fn weights(record: &LayerRecord) -> u64 {
    (record.rows * record.cols) as u64
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}
