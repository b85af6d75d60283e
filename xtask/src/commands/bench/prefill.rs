//! `bench prefill`: a prompt at once.

use anyhow::Result;
use kindling_model::Wanted;
use kindling_tensor_backend::device::{DeviceName, device};
use serde::Serialize;

use super::peer::{self, PeerRuns};
use super::subject::{self, Runs, Setting};
use crate::cli::BenchPrefill;
use crate::output;

/// What `--json` prints.
#[derive(Serialize)]
struct Findings {
    #[serde(flatten)]
    setting: Setting,
    tokens: usize,
    tok_s: Runs,
    /// 10⁹ multiplications and additions per second, of the projections alone.
    gop_s: f64,
    peer: Option<PeerRuns>,
}

pub(crate) fn run(args: &BenchPrefill, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let subject = &args.subject;
    let files = subject::files(subject)?;
    let model = crate::commands::load(&files, None, subject.inputs, &device)?;
    let vocabulary = model.spec().vocab_size as u32;
    let prompt = [(0..args.tokens as u32).map(|i| (300 + 7 * i) % vocabulary).collect::<Vec<u32>>()];
    let tok_s = Runs::rates(subject.repeats, args.tokens as f64, || {
        let logits = model.forward(&prompt, &[], &mut model.new_kv(), Wanted::LastLogits)?;
        // Work that is put off is done when its result is read.
        let _ = logits.into_data();
        Ok(())
    })?;
    let weights: usize =
        model.blocks().iter().flat_map(|block| block.projections()).map(|p| p.shape.rows * p.shape.cols).sum();
    drop(model);
    let work = ["--tokens", &args.tokens.to_string()].map(String::from);
    let peer = peer::run(&args.peer, subject, &files, &work, tok_s.mean)?;
    let found = Findings {
        setting: Setting::of(subject),
        tokens: args.tokens,
        gop_s: tok_s.mean * 2.0 * weights as f64 / 1e9,
        tok_s,
        peer,
    };
    if subject.json {
        return output::json(&found);
    }
    let mut rows = vec![
        ["prefill".to_string(), found.tok_s.show("tok/s")],
        ["projections".into(), format!("{:.0} GOP/s", found.gop_s)],
    ];
    rows.extend(peer::line(&found.peer));
    output::line(output::table(["", ""], rows))
}
