//! The loop of a training run: steps, log, checkpoints, evaluation. It can be killed at any moment and taken up again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use kindling_core::{Cx, LanguageModel};
use kindling_distill::trainer::Preferences;
use kindling_distill::{Row, Trainer};
use serde::{Deserialize, Serialize};

use super::folder::Checkpoints;
use crate::error::user;

/// One line of `log.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogLine {
    /// Steps done.
    pub step: u64,
    /// Predictions learnt from.
    pub tokens: u64,
    /// Loss of the step.
    pub loss: f64,
    /// Its running mean.
    pub mean_loss: f64,
    /// Norm of the gradients.
    pub gradient_norm: f64,
    /// Learning rate.
    pub rate: f64,
    /// Predictions per second since the process began.
    pub tok_s: f64,
    /// What pairs of answers gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferences: Option<Preferences>,
    /// What an evaluation gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
}

/// When the loop does what.
pub(crate) struct Plan<'a> {
    /// The folder of the run.
    pub out: &'a Path,
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps between two evaluations; 0: none on the way.
    pub evaluate_every: u64,
    /// What an evaluation's figure is called.
    pub held_out: &'a str,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Steps that share what was sampled before them: a run can be taken up between such groups only.
    pub group: u64,
    /// Evaluations without a better one after which the run ends; 0: never.
    pub patience: u64,
}

/// Gives a step its rows, which may depend on what the model has learnt so far.
pub(crate) type RowsOf<'a, M> = dyn FnMut(u64, &Trainer<M>) -> Result<Vec<Row>> + 'a;

/// Runs the steps that are left. `data` gives the rows of a step, `evaluate` a figure of which less is better.
pub(crate) fn run<M: LanguageModel + Clone>(
    trainer: &mut Trainer<M>,
    data: &mut RowsOf<'_, M>,
    plan: &Plan<'_>,
    cx: &Cx,
    evaluate: &mut dyn FnMut(&Trainer<M>) -> Result<f64>,
) -> Result<()> {
    let checkpoints = Checkpoints::new(plan.out);
    if let Some(snapshot) = checkpoints.newest()? {
        trainer.restore(snapshot).map_err(|error| user(format!("{}: {error}", plan.out.display())))?;
        cx.progress().note(&format!("going on after step {}", trainer.steps_done()));
    }
    let mut log = Log::resume(&plan.out.join("log.jsonl"), trainer.steps_done())?;
    let (begin, before) = (Instant::now(), trainer.tokens_seen());
    // A group is lost as a whole, so each ends with a checkpoint.
    let checkpoint_every = if plan.group > 1 { plan.group } else { plan.checkpoint_every };
    cx.progress().begin("training steps", plan.steps);
    cx.progress().skip(trainer.steps_done());
    while trainer.steps_done() < plan.steps {
        let between_groups = trainer.steps_done().is_multiple_of(plan.group.max(1));
        if cx.check().is_err() {
            if between_groups {
                checkpoints.write(&trainer.snapshot()?)?;
            }
            let (done, kept) = (trainer.steps_done(), trainer.steps_done() / plan.group.max(1) * plan.group.max(1));
            let again = if between_groups { String::new() } else { format!(", from step {kept}") };
            return Err(anyhow::Error::from(kindling_core::Error::Cancelled)
                .context(format!("stopped after step {done}: the same command with --resume goes on{again}")));
        }
        let step = trainer.steps_done();
        let report = trainer.step(&data(step, trainer)?).map_err(|error| {
            let kept = "the last checkpoint is kept; --resume goes on from it";
            user(format!("{}: {error} ({kept})", plan.out.display()))
        })?;
        let done = trainer.steps_done();
        let evaluated = if plan.evaluate_every > 0 && done.is_multiple_of(plan.evaluate_every) && done < plan.steps {
            Some(evaluate(trainer)?)
        } else {
            None
        };
        let tok_s = (trainer.tokens_seen() - before) as f64 / begin.elapsed().as_secs_f64();
        cx.progress().status(&format!("loss {:.4}, {tok_s:.0} tokens/s", report.mean_loss));
        cx.progress().advance(1);
        log.add(LogLine {
            step: done,
            tokens: trainer.tokens_seen(),
            loss: report.loss,
            mean_loss: report.mean_loss,
            gradient_norm: report.gradient_norm,
            rate: report.rate,
            tok_s,
            preferences: report.preferences,
            held_out: evaluated,
        })?;
        if let Some(figure) = evaluated {
            let (mean, name) = (report.mean_loss, plan.held_out);
            cx.progress().note(&format!("step {done}: loss {mean:.4}, {name} {figure:.4}, {tok_s:.0} tokens/s"));
            if log.evaluations_since_best() >= plan.patience && plan.patience > 0 {
                cx.progress().note(&format!("no better {name} in {} evaluations: ending early", plan.patience));
                break;
            }
        }
        if done.is_multiple_of(checkpoint_every) {
            checkpoints.write(&trainer.snapshot()?)?;
        }
    }
    checkpoints.write(&trainer.snapshot()?)?;
    cx.progress().end();
    Ok(())
}

/// The log file and what it holds.
struct Log {
    path: PathBuf,
    file: fs::File,
    lines: Vec<LogLine>,
}

impl Log {
    /// Opens the log of a run that has done `steps` steps: lines of steps after a lost checkpoint go.
    fn resume(path: &Path, steps: u64) -> Result<Self> {
        let lines: Vec<LogLine> = read_log(path)?.into_iter().filter(|line| line.step <= steps).collect();
        let mut text = String::new();
        for line in &lines {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        kindling_model::checkpoint::atomic::atomic_write(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_owned(), file, lines })
    }

    fn add(&mut self, line: LogLine) -> Result<()> {
        let text = serde_json::to_string(&line)? + "\n";
        self.file.write_all(text.as_bytes()).with_context(|| self.path.display().to_string())?;
        self.lines.push(line);
        Ok(())
    }

    fn evaluations_since_best(&self) -> u64 {
        let figures: Vec<f64> = self.lines.iter().filter_map(|line| line.held_out).collect();
        let best = figures.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        (figures.len() - 1 - best.min(figures.len() - 1)) as u64
    }
}

/// The lines of a log; a last line that was cut off is left out.
pub(crate) fn read_log(path: &Path) -> Result<Vec<LogLine>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(user(format!("cannot read {}: {error}", path.display()))),
    }
}
