//! `compress`: the main job.
//!
//! Everything that can be wrong is found before the first weight is touched: model, recipe, texts, output folder and
//! memory. Then the library streams the model block by block; what follows is the report.
//!
//! | file | what it does |
//! | --- | --- |
//! | `texts` | calibration and evaluation windows |
//! | `folder` | what may happen to the output folder |
//! | `plan` | `--dry-run` and `--max-memory` |
//! | `speed` | tokens per second before and after |
//! | `tasks` | the second model that ships, before and after |
//! | `figures` | from the outcome of a run to its report |

mod figures;
mod folder;
mod plan;
mod speed;
mod tasks;
mod texts;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use kindling_core::options::Value;
use kindling_core::{Cx, Family};
use kindling_model::checkpoint::DType;
use kindling_model::checkpoint::atomic::atomic_write;
use kindling_model::compress::{self as model, CompressOptions, Outcome, Stage, forecast, resolve_targets};
use kindling_model::{ModelError, ModelFiles};
use kindling_tensor_backend::device::{DeviceName, device};

use self::figures::{Run, notes};
use self::folder::Folder;
use super::verify::{RECIPE_FILE, VERIFY_FILE, write_probe};
use super::{blocks_of, named_model, workspace};
use crate::cli::Compress;
use crate::error::user;
use crate::memory::PeakMemory;
use crate::recipe::{Recipe, resolve};
use crate::report::format::{in_unit, unit};
use crate::report::{self, Report, table};
use crate::{methods, output, progress, signal};

pub(crate) fn run(args: &Compress, device_name: DeviceName) -> Result<()> {
    let started = Instant::now();
    let device = device(device_name)?;
    let source = named_model(&args.model);
    let files = ModelFiles::open(&source)?;
    if files.quantization().is_some() {
        let dir = source.display();
        return Err(user(format!("{dir} is quantised already: compress the dense checkpoint it was made from")));
    }
    let name = model_name(&source, &files);

    let mut recipe = args.recipe.as_deref().map_or_else(|| Ok(Recipe::default_recipe()), Recipe::read)?;
    recipe.default_option(Family::Quantise, "scale_type", &Value::Text(scale_type(files.dtype()).into()));
    let resolved = resolve(&recipe, &methods::all(), &blocks_of(&files))?;
    let stages: Vec<Stage> = resolved.stages.into_iter().map(|stage| stage.into_stage()).collect();
    let targets = resolve_targets(files.spec(), &stages)?;

    let out = args.out.clone().unwrap_or_else(|| default_out(&name, &recipe));
    let inputs = [Some(files.dir()), Some(args.calibration.clone()), args.eval.clone()];
    let folder = Folder::look(&out, &inputs.into_iter().flatten().collect::<Vec<_>>(), args)?;
    if folder == Folder::Finished {
        let report = Report::read(&out.join("report.json"))?;
        folder::finish(&out)?;
        eprintln!("{} was finished already: nothing is left to resume", out.display());
        return show(&report, &out, args.json);
    }

    let progress = progress::for_stderr();
    let cx = Cx::new(args.seed).with_cancel(signal::cancel_flag()?).with_progress(progress);
    if args.dry_run {
        let set = texts::placeholder(args, &files)?;
        let forecast = forecast(&files, &stages, &targets, &set);
        resolved.warnings.iter().for_each(|warning| cx.progress().warn(warning));
        plan::print(&files, &stages, &forecast, args.json)?;
        return plan::fits(&forecast, args.max_memory);
    }
    // Before the texts: with `self` these take the model's time.
    plan::fits(&forecast(&files, &stages, &targets, &texts::placeholder(args, &files)?), args.max_memory)?;
    let texts = texts::read(args, &files, &device, &cx).map_err(|error| how_to_go_on(error, &out))?;
    plan::fits(&forecast(&files, &stages, &targets, &texts.set), args.max_memory)?;

    let mut warnings = resolved.warnings;
    warnings.extend(texts.warnings);
    warnings.iter().for_each(|warning| cx.progress().warn(warning));
    folder.prepare(&out)?;
    let options = CompressOptions {
        out: out.clone(),
        resume: folder == Folder::Resume,
        max_shard_bytes: args.max_shard_size.0,
        device_name: device_name.to_string(),
    };
    let watch = PeakMemory::watch();
    let outcome = model::compress(&files, &stages, &texts.set, &options, &device, &cx);
    let outcome: Outcome = outcome.map_err(|error| how_to_go_on(error.into(), &out))?;
    let peak_memory = watch.stop();
    let seconds = started.elapsed().as_secs_f64();

    warnings.extend(notes(&outcome.records));
    let parsed = recipe;
    let recipe = parsed.normalised()?;
    let (before, after) = speed::compare(&files, &out, &texts.set, &device, &cx)?;
    let task_figures = match (&args.model, kindling_model::assets::tasks()) {
        (None, Some(model)) => tasks::compare(&model, &parsed, &out.join("tasks"), &device, args.seed, &cx)?,
        _ => Vec::new(),
    };
    let run = Run { args, name, files: &files, out: &out, recipe: &recipe, set: &texts.set, outcome: &outcome };
    let mut report = run.report(warnings)?;
    report.measured = Some(run.measured(device_name, seconds, peak_memory));
    speed::record(&mut report, before, after);
    report.tasks = task_figures;

    if let Some(probe) = &outcome.probe {
        write_probe(&out.join(VERIFY_FILE), probe)?;
    }
    atomic_write(out.join(RECIPE_FILE), recipe.as_bytes()).map_err(ModelError::from)?;
    report::write(&report, &out)?;
    folder::finish(&out)?;
    if let Some(bytes) = peak_memory {
        eprintln!("peak memory {} (pages of mapped files not counted)", in_unit(bytes, unit(bytes)));
    }
    show(&report, &out, args.json)
}

fn show(report: &Report, out: &Path, json: bool) -> Result<()> {
    if json {
        return output::json(report);
    }
    output::line(table::summary(report, output::width()))?;
    if !report.tasks.is_empty() {
        output::line(format_args!("\n{}\n", table::tasks(report, output::width())))?;
    }
    output::line(format_args!("wrote {}; every layer is in {}", out.display(), out.join("report.html").display()))
}

/// An interrupted run tells how to go on.
fn how_to_go_on(error: anyhow::Error, out: &Path) -> anyhow::Error {
    if !matches!(error.downcast_ref(), Some(ModelError::Core(kindling_core::Error::Cancelled))) {
        return error;
    }
    match folder::is_interrupted(out) {
        true => error.context("stopped: finished blocks are kept; go on with the same command and --resume"),
        false => error.context("stopped before the first block: start again with the same command"),
    }
}

/// What the model is called: the name of its folder, or its id.
fn model_name(source: &Path, files: &ModelFiles) -> String {
    let folder = source.exists().then(|| files.dir().canonicalize().ok()).flatten();
    let folder = folder.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    folder.unwrap_or_else(|| source.display().to_string())
}

fn default_out(model: &str, recipe: &Recipe) -> PathBuf {
    let recipe = Path::new(&recipe.name).file_stem().unwrap_or_default().to_string_lossy();
    let name = format!("{model}-{recipe}").replace(['/', '\\', ':'], "-");
    workspace().join("target/compressed").join(name)
}

/// Scales are stored in the type of the checkpoint, unless the recipe says otherwise.
fn scale_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => "f32",
    }
}
