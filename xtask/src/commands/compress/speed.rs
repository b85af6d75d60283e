//! Tokens per second before and after, for models that fit twice without a thought.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;
use kindling_core::{Cx, KvStore};
use kindling_model::compress::CalibrationSet;
use kindling_model::{Decoder, ModelFiles, Wanted};
use kindling_tensor_backend::kernels::Arithmetic;

use crate::commands::logits::values;
use crate::report::Report;
use crate::report::data::Speed;

/// Larger models are not loaded whole: that would take the memory that the run has saved.
const LARGEST: u64 = 1 << 30;
const PREFILL: usize = 128;
const DECODE: usize = 32;
const REPEATS: usize = 3;

/// What was measured of one model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    speed: Speed,
    /// Memory that the loaded weights take.
    bytes: u64,
}

/// Measures both models; nothing if the dense one is large.
pub(super) fn compare(
    dense: &ModelFiles,
    compressed: &Path,
    set: &CalibrationSet,
    device: &Device,
    cx: &Cx,
) -> Result<(Option<Measured>, Option<Measured>)> {
    if dense.spec().parameters() * 4 >= LARGEST {
        return Ok((None, None));
    }
    let ids: Vec<u32> = set.calibration.rows.iter().flatten().copied().cycle().take(PREFILL + DECODE).collect();
    cx.progress().begin("speed", 2);
    let before = measure(&Decoder::load(dense, device)?, &ids)?;
    cx.progress().advance(1);
    // As `generate` runs it.
    let mut small = Decoder::load(&ModelFiles::open(compressed)?, device)?;
    small.set_arithmetic(Arithmetic::Int8);
    let after = measure(&small, &ids)?;
    cx.progress().end();
    Ok((Some(before), Some(after)))
}

/// Puts what was measured into the report.
pub(super) fn record(report: &mut Report, before: Option<Measured>, after: Option<Measured>) {
    if let Some(measured) = &mut report.measured {
        measured.before = before.map(|before| before.speed);
        measured.after = after.map(|after| after.speed);
    }
    for (figures, found) in [(&mut report.before, before), (&mut report.after, after)] {
        if let Some(found) = found {
            figures.bytes_resident = found.bytes;
        }
    }
}

/// The best of some repeats after a warm-up: the others met something else that the machine was doing.
fn measure(model: &Decoder, ids: &[u32]) -> Result<Measured> {
    let mut speed = Speed { prefill_tok_s: 0.0, decode_tok_s: 0.0 };
    for repeat in 0..=REPEATS {
        let mut kv = model.new_kv();
        let start = Instant::now();
        forward(model, &ids[..PREFILL], &mut kv)?;
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for id in &ids[PREFILL..] {
            forward(model, std::slice::from_ref(id), &mut kv)?;
        }
        let decode = start.elapsed().as_secs_f64();
        if repeat > 0 {
            speed.prefill_tok_s = speed.prefill_tok_s.max(PREFILL as f64 / prefill);
            speed.decode_tok_s = speed.decode_tok_s.max((ids.len() - PREFILL) as f64 / decode);
        }
    }
    Ok(Measured { speed, bytes: model.bytes() as u64 })
}

/// Reading the logits back waits for them.
fn forward(model: &Decoder, ids: &[u32], kv: &mut dyn KvStore) -> Result<()> {
    values(model.forward(&[ids.to_vec()], &[], kv, Wanted::LastLogits)?).map(drop)
}
