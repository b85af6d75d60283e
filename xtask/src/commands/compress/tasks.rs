//! What the recipe does to the model of long-context tasks that ships: the second half of a run without `--model`, where that model is there.

use std::path::Path;

use anyhow::Result;
use burn::tensor::Device;
use kindling_core::Cx;
use kindling_model::compress::{self as stream, CalibrationSet, CompressOptions, TokenWindows};
use kindling_model::tasks::{Task, generate_example};
use kindling_model::{Decoder, ModelError, ModelFiles};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::commands::blocks_of;
use crate::methods;
use crate::recipe::{Recipe, resolve};
use crate::report::data::TaskFigures;
use crate::tasks::accuracies;

/// Tasks that the model masters.
const ASKED: [Task; 4] = [Task::NiahSingle, Task::NiahMultikey(4), Task::Copy, Task::KvQa];
/// Tokens of context.
const CONTEXT: usize = 512;
/// Examples of each.
const EXAMPLES: usize = 50;
/// Calibration rows and their length.
const ROWS: (usize, usize) = (64, 256);

/// Compresses the model into `out` and asks it before and after.
pub(super) fn compare(
    model: &Path,
    recipe: &Recipe,
    out: &Path,
    device: &Device,
    seed: u64,
    cx: &Cx,
) -> Result<Vec<TaskFigures>> {
    let files = ModelFiles::open(model)?;
    let resolved = resolve(recipe, &methods::all(), &blocks_of(&files))?;
    let stages: Vec<stream::Stage> = resolved.stages.into_iter().map(|stage| stage.into_stage()).collect();
    let row = |i: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(i as u64);
        generate_example(Task::Lm, ROWS.1, None, &mut rng).context
    };
    let calibration = TokenWindows::from_rows("generated tasks", (0..ROWS.0).map(row).collect())?;
    let set = CalibrationSet { calibration, evaluation: None };
    if out.exists() {
        // A few seconds' work: not worth going on with.
        std::fs::remove_dir_all(out).map_err(|source| ModelError::Io { path: out.to_owned(), source })?;
    }
    let options = CompressOptions {
        out: out.to_owned(),
        resume: false,
        max_shard_bytes: u64::MAX,
        device_name: "for the tasks".into(),
    };
    stream::compress(&files, &stages, &set, &options, device, cx)?;
    let _ = std::fs::remove_dir_all(out.join(stream::WORK_DIR));

    let ask = |files: &ModelFiles| accuracies(&Decoder::load(files, device)?, &ASKED, CONTEXT, EXAMPLES, seed);
    cx.progress().begin("asking before and after", 2);
    let before = ask(&files)?;
    cx.progress().advance(1);
    let after = ask(&ModelFiles::open(out)?)?;
    cx.progress().end();
    Ok(before
        .into_iter()
        .zip(after)
        .map(|(before, after)| TaskFigures {
            task: before.task,
            context: before.context as u64,
            examples: before.examples as u64,
            before: before.accuracy,
            after: after.accuracy,
        })
        .collect())
}
