//! `bench matmul`: every projection of a block by itself.

use anyhow::Result;
use burn::tensor::{Distribution, Tensor};
use kindling_tensor_backend::device::{DeviceName, device};
use kindling_tensor_backend::formats::Weight;
use serde::Serialize;

use super::subject::{self, Runs};
use crate::cli::BenchMatmul;
use crate::output;

/// One projection with so many rows of inputs.
#[derive(Serialize)]
struct Row {
    projection: String,
    format: String,
    outputs: usize,
    inputs: usize,
    rows: usize,
    /// 10⁹ multiplications and additions per second.
    gop_s: Runs,
    /// 10⁹ bytes of weights read per second.
    gb_s: f64,
}

/// So many bytes of weights are gone through in turn, so that none is in the cache when its turn comes.
const BEYOND_CACHES: usize = 512 << 20;

pub(crate) fn run(args: &BenchMatmul, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let subject = &args.subject;
    let files = subject::files(subject)?;
    let model = crate::commands::load(&files, None, subject.inputs, &device)?;
    let mut found = Vec::new();
    let first = &model.blocks()[0];
    for (at, projection) in first.projections().into_iter().enumerate() {
        let (outputs, inputs) = (projection.shape.rows, projection.shape.cols);
        // The same projection of all blocks, again and again.
        let weights: Vec<&Weight> = model.blocks().iter().map(|block| &block.projections()[at].weight).collect();
        let bytes = weights[0].bytes();
        for &rows in &args.rows {
            let x = Tensor::<3>::random([1, rows, inputs], Distribution::Normal(0.0, 1.0), &device);
            let work = 2.0 * (outputs * inputs * rows) as f64;
            // About a fifth of a second at 200 GOP/s, but at least all weights once.
            let count = ((4e10 / work) as usize).clamp(1, BEYOND_CACHES.div_ceil(bytes)).max(weights.len());
            let gop_s = Runs::rates(subject.repeats, count as f64 * work / 1e9, || {
                for weight in weights.iter().cycle().take(count) {
                    let _ = weight.forward(x.clone())?.into_data();
                }
                Ok(())
            })?;
            let gb_s = gop_s.mean * 1e9 / work * bytes as f64 / 1e9;
            let (projection, format) = (projection.shape.name.clone(), projection.weight.format_name());
            found.push(Row { projection, format, outputs, inputs, rows, gop_s, gb_s });
        }
    }
    if subject.json {
        return output::json(&found);
    }
    let cells = found.iter().map(|row| {
        [
            row.projection.clone(),
            row.format.clone(),
            format!("{} × {}", row.outputs, row.inputs),
            row.rows.to_string(),
            row.gop_s.show(""),
            format!("{:.1}", row.gb_s),
        ]
    });
    output::line(output::table(["projection", "format", "size", "rows", "GOP/s", "GB/s of weights"], cells))
}
