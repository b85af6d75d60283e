//! `bench load`: from files in the system's cache to the first token.

use std::time::Instant;

use anyhow::Result;
use kindling_model::{ModelFiles, Wanted};
use kindling_tensor_backend::device::{DeviceName, device};
use serde::Serialize;

use super::subject::{self, Runs, Setting};
use crate::cli::BenchLoad;
use crate::commands::bytes_on_disk;
use crate::output;

/// What `--json` prints.
#[derive(Serialize)]
struct Findings {
    #[serde(flatten)]
    setting: Setting,
    file_bytes: u64,
    open_s: Runs,
    load_s: Runs,
    first_token_s: Runs,
    total_s: Runs,
}

pub(crate) fn run(args: &BenchLoad, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let subject = &args.subject;
    let files = subject::files(subject)?;
    let (dir, file_bytes) = (files.dir(), bytes_on_disk(files.checkpoint()));
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 0..=subject.repeats {
        let start = Instant::now();
        let files = ModelFiles::open(&dir)?;
        let opened = start.elapsed().as_secs_f64();
        let model = crate::commands::load(&files, None, subject.inputs, &device)?;
        let loaded = start.elapsed().as_secs_f64();
        let _ = model.forward(&[vec![1]], &[], &mut model.new_kv(), Wanted::LastLogits)?.into_data();
        let total = start.elapsed().as_secs_f64();
        // The first round brings the files into the cache.
        if round > 0 {
            for (list, time) in times.iter_mut().zip([opened, loaded - opened, total - loaded, total]) {
                list.push(time);
            }
        }
    }
    let [open_s, load_s, first_token_s, total_s] = times.map(Runs::of);
    let found = Findings { setting: Setting::of(subject), file_bytes, open_s, load_s, first_token_s, total_s };
    if subject.json {
        return output::json(&found);
    }
    output::line(output::table(
        ["", ""],
        [
            ["files".to_string(), format!("{:.1} MB", file_bytes as f64 / 1e6)],
            ["open".into(), found.open_s.show("s")],
            ["load".into(), found.load_s.show("s")],
            ["first token".into(), found.first_token_s.show("s")],
            ["together".into(), found.total_s.show("s")],
        ],
    ))
}
