//! The model that is measured, and how measurements are summed up.

use std::time::Instant;

use anyhow::Result;
use kindling_core::Cx;
use kindling_model::checkpoint::DType;
use kindling_model::random::{config_of, random_checkpoint};
use kindling_model::{Decoder, ModelFiles};
use serde::Serialize;

use crate::cli::{Inputs, Subject};
use crate::commands::workspace;
use crate::{progress, signal};

/// Opens the random checkpoint of a shape and format; writes it first if it is not there.
pub(super) fn files(subject: &Subject) -> Result<ModelFiles> {
    let folder = subject.folder.clone().unwrap_or_else(|| workspace().join("target/bench"));
    let (shape, format) = (subject.shape.name(), subject.weights.random());
    let group = format.bits.map_or(String::new(), |_| format!("-g{}", format.group));
    let dir = folder.join(format!("{shape}-{}{group}", subject.weights.format));
    if !dir.join("config.json").exists() {
        let cx = Cx::new(1).with_cancel(signal::cancel_flag()?).with_progress(progress::for_stderr());
        random_checkpoint(&config_of(&shape, DType::BF16)?, DType::BF16, format, &dir, 5_000_000_000, &cx)?;
    }
    Ok(ModelFiles::open(dir)?)
}

/// Bytes of weights that a token needs.
pub(super) fn weight_bytes(model: &Decoder) -> usize {
    model.blocks().iter().map(|block| block.bytes()).sum::<usize>() + model.ends().output_bytes()
}

/// What was measured, as every result begins.
#[derive(Debug, Serialize)]
pub(super) struct Setting {
    shape: String,
    format: String,
    group: usize,
    inputs: Inputs,
    threads: usize,
}

impl Setting {
    pub(super) fn of(subject: &Subject) -> Self {
        Self {
            shape: subject.shape.name(),
            format: subject.weights.format.clone(),
            group: subject.weights.group,
            inputs: subject.inputs,
            threads: rayon::current_num_threads(),
        }
    }
}

/// Mean and spread of several measurements.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Runs {
    pub(super) mean: f64,
    /// Standard deviation of one measurement; 0 of a single one.
    pub(super) deviation: f64,
    pub(super) runs: Vec<f64>,
}

impl Runs {
    pub(super) fn of(runs: Vec<f64>) -> Self {
        let n = runs.len() as f64;
        let mean = runs.iter().sum::<f64>() / n;
        let squares = runs.iter().map(|run| (run - mean).powi(2)).sum::<f64>();
        let deviation = if runs.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        Self { mean, deviation, runs }
    }

    /// `repeats` rates of work that counts `units`, after one run to warm up.
    pub(super) fn rates(repeats: usize, units: f64, mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        work()?;
        let timed = (0..repeats).map(|_| {
            let start = Instant::now();
            work()?;
            Ok(units / start.elapsed().as_secs_f64())
        });
        Ok(Self::of(timed.collect::<Result<_>>()?))
    }

    pub(super) fn show(&self, unit: &str) -> String {
        format!("{:.2} ± {:.2} {unit}", self.mean, self.deviation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_have_a_mean_and_a_spread() {
        let runs = Runs::of(vec![1.0, 2.0, 3.0]);
        assert_eq!((runs.mean, runs.deviation), (2.0, 1.0));
        assert_eq!(Runs::of(vec![4.0]).show("s"), "4.00 ± 0.00 s");
    }
}
