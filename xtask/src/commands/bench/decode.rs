//! `bench decode`: one token after the other.

use std::time::Instant;

use anyhow::Result;
use kindling_core::KvStore;
use kindling_core::sampling::argmax;
use kindling_model::{Decoder, StepRoom, Wanted};
use kindling_tensor_backend::device::{DeviceName, device};
use kindling_tensor_backend::measure;
use serde::Serialize;

use super::peer::{self, PeerRuns};
use super::subject::{self, Runs, Setting};
use crate::cli::BenchDecode;
use crate::output;

/// What `--json` prints.
#[derive(Serialize)]
struct Findings {
    #[serde(flatten)]
    setting: Setting,
    context: usize,
    tok_s: Runs,
    weight_bytes: usize,
    kv_bytes: usize,
    read_gb_s: f64,
    /// Of the memory's rate.
    fraction: f64,
    peer: Option<PeerRuns>,
}

pub(crate) fn run(args: &BenchDecode, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let subject = &args.subject;
    let files = subject::files(subject)?;
    let model = crate::commands::load(&files, None, subject.inputs, &device)?;
    let vocabulary = model.spec().vocab_size as u32;
    let prompt: Vec<u32> = (0..args.context as u32).map(|i| (300 + 7 * i) % vocabulary).collect();
    let mut kv = model.new_kv();
    kv.expect(args.context + args.new);
    model.forward(&[prompt], &[], &mut kv, Wanted::LastLogits)?;
    let mut runs = Vec::with_capacity(subject.repeats);
    for round in 0..=subject.repeats {
        kv.truncate(args.context)?;
        let start = Instant::now();
        write(&model, &mut kv, args.new)?;
        if round > 0 {
            runs.push(args.new as f64 / start.elapsed().as_secs_f64());
        }
    }
    let tok_s = Runs::of(runs);
    let kv_bytes = kv.bytes_of(args.context + args.new / 2);
    let (weight_bytes, read_gb_s) = (subject::weight_bytes(&model), measure::read_bandwidth_gb_s());
    // The peer shall have the memory for itself.
    drop((model, kv));
    let work = ["--context", &args.context.to_string(), "--new", &args.new.to_string()].map(String::from);
    let peer = peer::run(&args.peer, subject, &files, &work, tok_s.mean)?;
    let found = Findings {
        setting: Setting::of(subject),
        context: args.context,
        fraction: tok_s.mean * (weight_bytes + kv_bytes) as f64 / 1e9 / read_gb_s,
        tok_s,
        weight_bytes,
        kv_bytes,
        read_gb_s,
        peer,
    };
    if subject.json {
        return output::json(&found);
    }
    let floor = found.read_gb_s * 1e9 / (weight_bytes + kv_bytes) as f64;
    let mut rows = vec![
        ["decode".to_string(), found.tok_s.show("tok/s")],
        ["weights".into(), format!("{:.1} MB a token", weight_bytes as f64 / 1e6)],
        ["keys and values".into(), format!("{:.1} MB a token", kv_bytes as f64 / 1e6)],
        ["memory".into(), format!("{read_gb_s:.1} GB/s, which allows {floor:.1} tok/s")],
        ["reached".into(), format!("{:.0} % of that", 100.0 * found.fraction)],
    ];
    rows.extend(peer::line(&found.peer));
    output::line(output::table(["", ""], rows))
}

/// So many tokens, each the likeliest after those before.
fn write(model: &Decoder, kv: &mut dyn KvStore, count: usize) -> Result<()> {
    let (mut next, mut room) = (300, StepRoom::default());
    for _ in 0..count {
        let mut held;
        let logits = match model.step(next, kv, &mut room)? {
            Some(logits) => logits,
            None => {
                let logits = model.forward(&[vec![next]], &[], kv, Wanted::LastLogits)?.into_data();
                held = logits.try_into_vec::<f32>().map_err(|error| anyhow::anyhow!("logits: {error:?}"))?;
                &mut held
            }
        };
        next = argmax(logits)?;
    }
    Ok(())
}
