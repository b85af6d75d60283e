//! What a run would do and take: `--dry-run` and `--max-memory`.

use anyhow::Result;
use kindling_model::ModelFiles;
use kindling_model::compress::{Forecast, Stage};
use serde::Serialize;

use crate::cli::Bytes;
use crate::commands::{blocks_of, kind_of};
use crate::error::user;
use crate::output;
use crate::report::format::{bytes_pair, in_unit, number, unit};

/// The plan, as `--json` prints it.
#[derive(Serialize)]
struct Plan {
    layers: Vec<Row>,
    peak_memory: u64,
    parts: Vec<(&'static str, u64)>,
    output: u64,
    scratch: u64,
}

/// Layers that are treated alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    /// Their name within a block, `*` for the number of an expert.
    layer: String,
    methods: Vec<String>,
    count: usize,
    bits_per_weight: f64,
    bytes_before: u64,
    bytes_after: u64,
}

/// Prints the plan.
pub(super) fn print(files: &ModelFiles, stages: &[Stage], forecast: &Forecast, json: bool) -> Result<()> {
    let layers = rows(files, stages);
    if json {
        let Forecast { peak_memory, output, scratch, ref parts } = *forecast;
        return output::json(&Plan { layers, peak_memory, parts: parts.clone(), output, scratch });
    }
    let table = output::table(
        ["layer", "count", "methods", "bits/weight", "before", "after"],
        layers.iter().map(|row| {
            let (before, after) = bytes_pair(row.bytes_before, row.bytes_after);
            let methods = if row.methods.is_empty() { "unchanged".into() } else { row.methods.join(" + ") };
            [row.layer.clone(), row.count.to_string(), methods, number(row.bits_per_weight), before, after]
        }),
    );
    output::line(table.trim_fmt())?;
    let size = |bytes: u64| in_unit(bytes, unit(bytes));
    output::line(format_args!(
        "\nweights on disk: {} → about {}; space for work: {}",
        size(files.checkpoint().total_bytes()),
        size(forecast.output),
        size(forecast.scratch)
    ))?;
    output::line(format_args!("memory: about {} ({})", size(forecast.peak_memory), parts(forecast)))
}

/// Fails if the run would need more memory than the user allows.
pub(super) fn fits(forecast: &Forecast, limit: Option<Bytes>) -> Result<()> {
    match limit {
        Some(Bytes(limit)) if forecast.peak_memory > limit => {
            let size = |bytes: u64| in_unit(bytes, unit(bytes));
            Err(user(format!(
                "the run would need about {} of memory ({}), more than --max-memory {}: allow more, or choose methods \
                 that need less of the inputs (`cargo xtask list`)",
                size(forecast.peak_memory),
                parts(forecast),
                size(limit)
            )))
        }
        _ => Ok(()),
    }
}

fn parts(forecast: &Forecast) -> String {
    let part = |(name, bytes): &(&str, u64)| format!("{name} {}", in_unit(*bytes, unit(*bytes)));
    forecast.parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn rows(files: &ModelFiles, stages: &[Stage]) -> Vec<Row> {
    let dense_bits = files.dtype().bits() as f64;
    let mut rows: Vec<Row> = Vec::new();
    for shape in blocks_of(files).iter().flatten() {
        let mine: Vec<&Stage> = stages.iter().filter(|stage| (stage.targets)(shape)).collect();
        let methods: Vec<String> = mine.iter().map(|stage| stage.name.clone()).collect();
        let bits_per_weight = mine.last().map_or(dense_bits, |stage| stage.method.bits_per_weight(shape, dense_bits));
        let weights = (shape.rows * shape.cols) as f64;
        let (before, after) = ((weights * dense_bits / 8.0) as u64, (weights * bits_per_weight / 8.0) as u64);
        let layer = kind_of(&shape.name);
        let alike =
            |row: &&mut Row| row.layer == layer && row.methods == methods && row.bits_per_weight == bits_per_weight;
        match rows.iter_mut().find(alike) {
            Some(row) => {
                row.count += 1;
                row.bytes_before += before;
                row.bytes_after += after;
            }
            None => {
                rows.push(Row { layer, methods, count: 1, bits_per_weight, bytes_before: before, bytes_after: after })
            }
        }
    }
    rows
}
