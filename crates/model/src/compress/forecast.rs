//! How much memory and disk a run will take, before it starts.

use kindling_core::Needs;

use super::calibration::CalibrationSet;
use super::stage::{Stage, Targeted};
use crate::decoder::ModelFiles;
use crate::layers::{EMBEDDING, HEAD, projections_of_block};

/// What a run will take, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Memory at the worst moment, mapped file pages not counted.
    pub peak_memory: u64,
    /// Weights written.
    pub output: u64,
    /// Activations and parts on disk while it runs.
    pub scratch: u64,
    /// What the peak consists of.
    pub parts: Vec<(&'static str, u64)>,
}

/// Forecasts a run. `targets` comes from [`resolve_targets`](super::resolve_targets).
pub fn forecast(files: &ModelFiles, stages: &[Stage], targets: &[Vec<Targeted>], set: &CalibrationSet) -> Forecast {
    let spec = files.spec();
    let dense_bits = files.dtype().bits() as f64;
    let (mut worst_block, mut worst_gram, mut worst_solve, mut worst_batch) = (0u64, 0u64, 0u64, 0u64);
    let mut output = 0f64;
    for (index, targets) in targets.iter().enumerate() {
        let projections = projections_of_block(spec, index);
        let parameters = spec.block_parameters(index);
        // The block as it came, the copy that changes, and the copy on its way to the file.
        worst_block = worst_block.max(parameters * 4 * 3);
        output += parameters as f64 * dense_bits / 8.0;
        let mut widest = spec.hidden_size;
        for (stage_index, stage) in stages.iter().enumerate() {
            let mut sites: Vec<(&str, u64)> = Vec::new();
            for (projection, target) in projections.iter().zip(targets) {
                let shape = &projection.shape;
                widest = widest.max(shape.cols).max(shape.rows);
                if !target.stages.contains(&stage_index) {
                    continue;
                }
                if target.stages.last() == Some(&stage_index) {
                    let bits = stage.method.bits_per_weight(shape, dense_bits);
                    output += (shape.rows * shape.cols) as f64 * (bits - dense_bits) / 8.0;
                }
                let (rows, cols) = (shape.rows as u64, shape.cols as u64);
                let mut solve = rows * cols * 4 * 4;
                if stage.method.needs(shape) >= Needs::Moments {
                    if !sites.iter().any(|(site, _)| *site == shape.site) {
                        sites.push((&shape.site, cols * cols * 8));
                    }
                    // A working copy of the Gram matrix, room for its factor, and the factor in f32.
                    solve += cols * cols * (8 + 8 + 4);
                }
                worst_solve = worst_solve.max(solve);
            }
            worst_gram = worst_gram.max(sites.iter().map(|(_, bytes)| bytes).sum());
        }
        // A batch holds a few tensors as wide as the widest projection, and the scores of attention.
        let tokens = (super::run::TOKENS_AT_A_TIME).max(set.calibration.window()) as u64;
        let scores = tokens * set.calibration.window().min(128) as u64 * 4 * 64;
        worst_batch = worst_batch.max(tokens * widest as u64 * 4 * 6 + scores);
    }
    let size = |name: &str| files.checkpoint().info(name).map_or(0, |info| info.shape.iter().product::<usize>() as u64);
    let ends = size(EMBEDDING) + if spec.tied { 0 } else { size(HEAD) };
    output += (ends + spec.hidden_size as u64) as f64 * dense_bits / 8.0;
    let head = set.evaluation.as_ref().map_or(0, |evaluation| {
        // The head in f32 (twice while it is read), logits and log-probabilities of both models.
        size(if spec.tied { EMBEDDING } else { HEAD }) * 8 + (evaluation.window() * spec.vocab_size * 4 * 6) as u64
    });
    let streams =
        |windows: &super::TokenWindows, copies: u64| (windows.tokens() * spec.hidden_size * 4) as u64 * copies * 2;
    let scratch = streams(&set.calibration, 1) + set.evaluation.as_ref().map_or(0, |e| streams(e, 2)) + output as u64;
    let base = 64 << 20;
    let parts = vec![
        ("block", worst_block),
        ("statistics", worst_gram),
        ("solve", worst_solve.max(worst_batch)),
        ("program", base),
    ];
    let blocks: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    Forecast { peak_memory: blocks.max(head + base), output: output as u64, scratch, parts }
}
