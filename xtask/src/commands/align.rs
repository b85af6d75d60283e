//! `align`: a model learns which of two answers is better.

use std::path::Path;

use anyhow::Result;
use kindling_core::Cx;
use kindling_distill::loss::{LossOptions, build};
use kindling_distill::preferences::choose;
use kindling_distill::{AdamW, AnswerPair, Decay, LayerOptions, PreferencePairs, Schedule, TrainOptions, Trainer};
use kindling_model::chat::{ChatTemplate, RenderOptions};
use kindling_model::tokenizer::Tokenizer;
use kindling_model::{Decoder, ModelFiles};
use kindling_tensor_backend::device::{DeviceName, device};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::heal::attached;
use crate::cli::{Align, AlignLoss};
use crate::error::{OrUser, user};
use crate::report::format::count;
use crate::training::taught::{command_line, write_log, write_result};
use crate::training::{folder, run};
use crate::{output, progress, signal, tokens};

/// A line of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Pair { prompt: Prompt, chosen: String, rejected: String },
    Answers { prompt: Prompt, answers: Vec<Answer> },
    One { prompt: Prompt, chosen: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Messages(Vec<Value>),
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    score: f64,
}

/// What the run ends with, in `training.json`.
#[derive(Serialize)]
struct Summary {
    loss: &'static str,
    pairs: usize,
    left_out: usize,
    steps: u64,
    tokens: u64,
    trained_parameters: usize,
    final_loss: Option<f64>,
    /// Of the last tenth of the steps: the share of pairs whose better answer gained more over the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    /// Of the same steps: by how much the better answer's reward exceeds the other's.
    #[serde(skip_serializing_if = "Option::is_none")]
    margin: Option<f64>,
    command: String,
}

pub(crate) fn run(args: &Align, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let files = ModelFiles::open(&args.model)?;
    let tokenizer = tokens::tokenizer(&files)?;
    let positions = files.spec().max_positions;
    if args.length > positions {
        return Err(user(format!("--length {}: the model has {positions} positions", args.length)));
    }
    let (name, compared) = match args.loss {
        AlignLoss::Dpo => ("dpo", true),
        AlignLoss::CrossEntropy => ("cross-entropy", false),
    };
    let text = tokens::text(&args.pairs)?;
    let (pairs, unscored) = read_pairs(&args.pairs, &text, compared, &files, &tokenizer, args.run.seed)?;
    let in_file = |error| user(format!("{}: {error}", args.pairs.display()));
    let (mut pairs, left_out) =
        PreferencePairs::new(pairs, args.length, args.pairs_per_step, args.run.seed).map_err(in_file)?;
    let left_out = left_out + unscored;
    let steps = (pairs.len() * args.epochs).div_ceil(args.pairs_per_step) as u64;

    let mut model = Decoder::load_dense(&files, &device.autodiff())?;
    let adapter = attached(&mut model, &args.adapter, args.run.seed)?;
    let loss = LossOptions { loss: name.into(), dpo_beta: args.beta, ..LossOptions::default() };
    let identity = json!({
        "model": files.checkpoint().fingerprint()?,
        "adapter": adapter,
        "masked": args.adapter.masked,
        "pairs": folder::digest([text]),
        "loss": loss,
        "epochs": args.epochs,
        "pairs_per_step": args.pairs_per_step,
        "micro_pairs": args.micro_pairs,
        "length": args.length,
        "rate": args.rate,
        "warmup": args.warmup,
        "clip": args.run.clip,
        "precision": args.run.precision,
        "seed": args.run.seed,
    });
    folder::prepare(&args.run.out, &identity, args.run.resume, args.run.force)?;
    let cx = Cx::new(args.run.seed).with_cancel(signal::cancel_flag()?).with_progress(progress::for_stderr());
    if left_out > 0 {
        let reason = "an answer too long, or two answers alike";
        cx.progress().note(&format!("{} pairs learn, {} are left out: {reason}", pairs.len(), count(left_out as u64)));
    }
    let warmup = (args.warmup * steps as f64).round() as u64;
    let train = TrainOptions {
        schedule: Schedule { peak: args.rate, warmup, decay: Decay::Cosine, last: 0.05, steps },
        adamw: AdamW { weight_decay: 0.0, beta2: 0.999, ..AdamW::default() },
        muon: None,
        clip: Some(args.run.clip),
        micro_rows: if compared { 2 * args.micro_pairs } else { args.micro_pairs },
        workers: rayon::current_num_threads(),
        checkpoint_blocks: args.run.checkpoint_blocks,
        spike: 5.0,
        layers: LayerOptions::default(),
        precision: args.run.precision,
    };
    let with_adapter = adapter.is_some();
    let chosen = |name: &str| !with_adapter || name.contains(".lora_");
    let mut trainer = Trainer::new(model, None, build(&loss).or_user()?, train, &chosen).or_user()?;
    if args.adapter.masked && !with_adapter {
        trainer.keep_zeros().or_user()?;
    }
    let trained: usize = trainer.trained().map(|(_, size)| size).sum();
    cx.progress().note(&format!("{} parameters learn", count(trained as u64)));
    if compared {
        // Before the first step, and before an earlier run is taken up: the model is its own reference.
        let reference = reference(&trainer, &pairs, &cx)?;
        pairs.set_reference(reference).or_user()?;
    }
    let plan = run::Plan {
        out: &args.run.out,
        steps,
        evaluate_every: 0,
        held_out: "",
        checkpoint_every: 200,
        group: 1,
        patience: 0,
    };
    run::run(&mut trainer, &mut |step, _| Ok(pairs.rows(step)), &plan, &cx, &mut |_| Ok(0.0))?;

    let lines = run::read_log(&args.run.out.join("log.jsonl"))?;
    let last = lines.len() - lines.len().div_ceil(10);
    let seen: Vec<_> = lines[last..].iter().filter_map(|line| line.preferences).collect();
    let mean = |value: fn(&kindling_distill::trainer::Preferences) -> f64| {
        (!seen.is_empty()).then(|| seen.iter().map(value).sum::<f64>() / seen.len() as f64)
    };
    let summary = Summary {
        loss: name,
        pairs: pairs.len(),
        left_out,
        steps: trainer.steps_done(),
        tokens: trainer.tokens_seen(),
        trained_parameters: trained,
        final_loss: lines.last().map(|line| line.mean_loss),
        accuracy: mean(|seen| seen.accuracy),
        margin: mean(|seen| seen.chosen - seen.rejected),
        command: command_line(),
    };
    let mut model = trainer.into_model();
    let whole = adapter.is_none() || args.adapter.merge;
    write_result(&mut model, &files, adapter.as_ref(), whole.then_some(&[]), &args.run.out)?;
    write_log(&summary, &lines, &args.run.out)?;
    if args.run.json {
        return output::json(&summary);
    }
    if let (Some(accuracy), Some(margin)) = (summary.accuracy, summary.margin) {
        output::line(format_args!(
            "the better answer gained more in {:.0} % of the last pairs, by {margin:.3} on average",
            100.0 * accuracy
        ))?;
    }
    output::line(format_args!("{} steps, {} tokens: {}", summary.steps, count(summary.tokens), args.run.out.display()))
}

/// What both answers of every pair score under the model before training.
fn reference(trainer: &Trainer<Decoder>, pairs: &PreferencePairs, cx: &Cx) -> Result<Vec<[f64; 2]>> {
    cx.progress().begin("scores under the reference", pairs.len() as u64);
    let mut scores = Vec::with_capacity(pairs.len());
    for rows in pairs.each() {
        cx.check()?;
        let found = trainer.scores(&rows).or_user()?;
        scores.push([found[0], found[1]]);
        cx.progress().advance(1);
    }
    cx.progress().end();
    Ok(scores)
}

/// The pairs of a file; and how many lines with scored answers gave none.
fn read_pairs(
    path: &Path,
    text: &str,
    compared: bool,
    files: &ModelFiles,
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<(Vec<AnswerPair>, usize)> {
    let template = ChatTemplate::open(files.dir()).or_user()?;
    let Some(&end) = tokenizer.eos_ids().first() else {
        return Err(user(format!("{} has no end token to end answers with", files.dir().display())));
    };
    let (mut pairs, mut unscored) = (Vec::new(), 0);
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |reason: String| user(format!("{}:{}: {reason}", path.display(), index + 1));
        let expected =
            "expected `prompt`, `chosen` and `rejected`, or `prompt` and `answers` with `text` and `score` each";
        let line: Line = serde_json::from_str(line).map_err(|_| at(expected.into()))?;
        let (prompt, chosen, rejected) = match line {
            Line::Pair { prompt, chosen, rejected } => (prompt, chosen, rejected),
            Line::One { prompt, chosen } if !compared => (prompt, chosen, String::new()),
            Line::One { .. } => {
                return Err(at("`rejected` is missing: one answer is enough for --loss cross-entropy".into()));
            }
            Line::Answers { prompt, answers } => {
                let answers: Vec<(String, f64)> = answers.into_iter().map(|a| (a.text, a.score)).collect();
                let Some([best, other]) = choose(&answers, seed, index as u64) else {
                    unscored += 1;
                    continue;
                };
                (prompt, answers[best].0.clone(), answers[other].0.clone())
            }
        };
        let prompt = match prompt {
            Prompt::Text(text) => tokenizer.encode_document(&text).or_user()?,
            Prompt::Messages(messages) => {
                let Some(template) = &template else {
                    return Err(at("the prompt is a list of messages, and the model has no chat template".into()));
                };
                let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
                let rendered = template.render(&messages, &options).map_err(|error| at(error.to_string()))?;
                tokenizer.encode(&rendered, false).or_user()?
            }
        };
        // Apart from the prompt, so that no token lies across the border.
        let answer = |text: &str| -> Result<Vec<u32>> {
            let mut ids = tokenizer.encode(text, false).or_user()?;
            ids.push(end);
            Ok(ids)
        };
        let rejected = if compared { answer(&rejected)? } else { Vec::new() };
        pairs.push(AnswerPair { prompt, chosen: answer(&chosen)?, rejected });
    }
    Ok((pairs, unscored))
}
