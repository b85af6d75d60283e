//! A run in which a model learns from a text and, for most losses, from a teacher.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::Device;
use kindling_core::{Cx, LanguageModel};
use kindling_distill::loss::{LossOptions, build};
use kindling_distill::store::{StoreBatches, StoreReader};
use kindling_distill::{
    AdamW, Decay, LayerOptions, MiniLlm, OnPolicy, Sampling, Schedule, TextBatches, TokenWindows, TrainOptions, Trainer,
};
use kindling_model::adapter::{self, AdapterConfig};
use kindling_model::checkpoint::atomic::atomic_write;
use kindling_model::checkpoint::{DType, MappedFile};
use kindling_model::evaluate::{perplexity, windows};
use kindling_model::tokenizer::Tokenizer;
use kindling_model::{Decoder, ModelFiles};
use serde::Serialize;
use serde_json::json;

use super::source::{Rolling, Source};
use super::{curve, folder, run, texts};
use crate::cli::Training;
use crate::error::{OrUser, user};
use crate::report::format::{count, number};
use crate::{output, progress, signal, tokens};

/// Tokens in a window of an evaluation.
const WINDOW: usize = 256;

/// Who learns.
pub(crate) struct Pupil {
    pub files: ModelFiles,
    /// On a device with autodiff.
    pub model: Decoder,
    /// What learns if it is not the weights themselves.
    pub adapter: Option<AdapterConfig>,
    /// Write a whole checkpoint instead of an adapter.
    pub merge: bool,
    /// Which blocks of the checkpoint it has, if not all.
    pub kept: Vec<usize>,
    /// Its weights were forgotten.
    pub from_scratch: bool,
    /// Pruned weights stay zero.
    pub masked: bool,
}

/// What the run ends with, in `training.json`.
#[derive(Serialize)]
struct Summary {
    loss: String,
    steps: u64,
    tokens: u64,
    trained_parameters: usize,
    final_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<Perplexities>,
    command: String,
}

#[derive(Serialize)]
struct Perplexities {
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<f64>,
    before: f64,
    after: f64,
}

/// Trains and writes the result.
pub(crate) fn teach(pupil: Pupil, teacher: Option<&ModelFiles>, args: &Training, device: &Device) -> Result<()> {
    let options = loss_options(args)?;
    let loss = build(&options).or_user()?;
    let tokenizer = tokens::tokenizer(&pupil.files)?;
    let layers = LayerOptions {
        weights: args.layers.iter().cloned().collect(),
        relation_heads: args.relation_heads,
        teacher_block: args.teacher_block,
        seed: args.run.seed,
    };
    if !layers.weights.is_empty() && teacher.is_none() {
        return Err(user("--layers compares with a teacher: name its folder with --teacher"));
    }
    let asked = loss.needs_teacher() || args.teacher_writes || !layers.weights.is_empty();
    if let (Some(teacher), true) = (teacher, asked) {
        let theirs = tokens::tokenizer(teacher)?;
        if theirs.fingerprint() != tokenizer.fingerprint() {
            return Err(user(format!(
                "{} and {} have different tokenizers: distillation by logits needs the same one",
                teacher.dir().display(),
                pupil.files.dir().display()
            )));
        }
    }
    if args.teacher_writes && teacher.is_none() {
        return Err(user("--teacher-writes needs a teacher: name its folder with --teacher"));
    }
    let held = held_out(args, &tokenizer)?;
    let (mut source, text) = source(args, &options, &tokenizer, pupil.model.vocab_size())?;
    let weights = |files: &ModelFiles| files.checkpoint().fingerprint();
    let identity = json!({
        "model": weights(&pupil.files)?,
        "blocks": pupil.kept,
        "from_scratch": pupil.from_scratch,
        "teacher": teacher.filter(|_| asked).map(weights).transpose()?,
        "adapter": pupil.adapter,
        "masked": pupil.masked,
        "text": text,
        "on_policy": args.on_policy,
        "teacher_writes": args.teacher_writes,
        "prompt_tokens": prompt_tokens(args),
        "writing_temperature": args.writing_temperature,
        "texts": args.texts,
        "epochs": args.epochs,
        "loss": options,
        "layers": layers,
        "precision": args.run.precision,
        "steps": args.steps,
        "rows": args.rows,
        "length": args.length,
        "micro_rows": args.micro_rows,
        "rate": args.rate,
        "warmup": args.warmup,
        "clip": args.run.clip,
        "seed": args.run.seed,
    });
    folder::prepare(&args.run.out, &identity, args.run.resume, args.run.force)?;
    let cx = Cx::new(args.run.seed).with_cancel(signal::cancel_flag()?).with_progress(progress::for_stderr());

    let teacher = match teacher.filter(|_| asked || held.is_some()) {
        Some(files) => Some(Decoder::load(files, device)?),
        None => None,
    };
    let measure = |model: &Decoder| -> Result<Option<f64>> {
        held.as_ref().map(|ids| Ok(perplexity(model, ids, WINDOW, |_| {})?.perplexity)).transpose()
    };
    let of_teacher = teacher.as_ref().map(&measure).transpose()?.flatten();
    let before = measure(&pupil.model)?;

    let train = TrainOptions {
        schedule: Schedule {
            peak: args.rate,
            warmup: args.warmup,
            decay: Decay::Cosine,
            last: 0.05,
            steps: args.steps as u64,
        },
        adamw: AdamW { weight_decay: 0.0, beta2: 0.999, ..AdamW::default() },
        muon: None,
        clip: Some(args.run.clip),
        micro_rows: args.micro_rows,
        workers: rayon::current_num_threads(),
        checkpoint_blocks: args.run.checkpoint_blocks,
        spike: 5.0,
        layers,
        precision: args.run.precision,
    };
    let with_adapter = pupil.adapter.is_some();
    let teacher = teacher.filter(|_| asked).map(|model| Box::new(model) as Box<dyn LanguageModel>);
    let chosen = |name: &str| !with_adapter || name.contains(".lora_");
    let mut trainer = Trainer::new(pupil.model, teacher, loss, train, &chosen).or_user()?;
    if pupil.masked && !with_adapter {
        trainer.keep_zeros().or_user()?;
    }
    let trained: usize = trainer.trained().map(|(_, size)| size).sum();
    cx.progress().note(&format!("{} parameters learn", count(trained as u64)));
    let plan = run::Plan {
        out: &args.run.out,
        steps: args.steps as u64,
        evaluate_every: 0,
        held_out: "",
        checkpoint_every: 200,
        group: source.group(),
        patience: 0,
    };
    run::run(&mut trainer, &mut |step, trainer| source.rows(step, trainer), &plan, &cx, &mut |_| Ok(0.0))?;

    let (steps, tokens) = (trainer.steps_done(), trainer.tokens_seen());
    let mut model = trainer.into_model();
    let after = measure(&model)?;
    let lines = run::read_log(&args.run.out.join("log.jsonl"))?;
    let summary = Summary {
        loss: args.loss.clone(),
        steps,
        tokens,
        trained_parameters: trained,
        final_loss: lines.last().map(|line| line.mean_loss),
        perplexity: before.zip(after).map(|(before, after)| Perplexities { teacher: of_teacher, before, after }),
        command: command_line(),
    };
    let whole = pupil.adapter.is_none() || pupil.merge;
    let kept = whole.then_some(pupil.kept.as_slice());
    write_result(&mut model, &pupil.files, pupil.adapter.as_ref(), kept, &args.run.out)?;
    write_log(&summary, &lines, &args.run.out)?;
    if args.run.json {
        return output::json(&summary);
    }
    if let Some(Perplexities { teacher, before, after }) = summary.perplexity {
        let teacher = teacher.map_or(String::new(), |teacher| format!(" (teacher {})", number(teacher)));
        output::line(format_args!("perplexity {} -> {}{teacher}", number(before), number(after)))?;
    }
    output::line(format_args!("{} steps, {} tokens: {}", summary.steps, count(summary.tokens), args.run.out.display()))
}

/// The adapter; or, with the blocks that were `kept` (none: all), the weights with the adapter added.
pub(crate) fn write_result(
    model: &mut Decoder,
    files: &ModelFiles,
    adapter: Option<&AdapterConfig>,
    kept: Option<&[usize]>,
    out: &Path,
) -> Result<()> {
    match (adapter, kept) {
        (Some(config), None) => Ok(adapter::save(model, config, &files.dir().display().to_string(), out)?),
        (adapter, kept) => {
            if adapter.is_some() {
                adapter::merge(model)?;
            }
            write_checkpoint(model, files, kept.unwrap_or_default(), out)
        }
    }
}

/// `training.json` and the curve of the losses.
pub(crate) fn write_log(summary: &impl Serialize, lines: &[run::LogLine], out: &Path) -> Result<()> {
    atomic_write(out.join("training.json"), (serde_json::to_string_pretty(summary)? + "\n").as_bytes())?;
    if let Some(svg) = curve::losses(lines)? {
        atomic_write(out.join("loss.svg"), svg.as_bytes())?;
    }
    Ok(())
}

/// The command that was given, for a log.
pub(crate) fn command_line() -> String {
    std::env::args().skip(1).fold("cargo xtask".to_string(), |line, word| line + " " + &word)
}

fn loss_options(args: &Training) -> Result<LossOptions> {
    if args.loss == "dpo" {
        return Err(user("--loss dpo compares two answers to a prompt: `cargo xtask align` learns from such pairs"));
    }
    let mut options = LossOptions {
        loss: args.loss.clone(),
        temperature: args.temperature,
        beta: args.beta,
        alpha: args.skew,
        gamma: args.gamma,
        cross_entropy: args.cross_entropy,
        minillm: MiniLlm { teacher_share: args.teacher_share, ..MiniLlm::default() },
        ..LossOptions::default()
    };
    if args.teacher_store.is_some() {
        // The forward divergence as far as a store knows it.
        if !["forward-kl", "top-k"].contains(&options.loss.as_str()) {
            return Err(user(format!(
                "--loss {}: a store knows the teacher's likeliest tokens only: --loss forward-kl learns from it",
                options.loss
            )));
        }
        options.loss = "top-k".into();
    } else if options.loss == "top-k" {
        return Err(user("--loss top-k learns from what `capture` kept: name the file with --teacher-store"));
    }
    Ok(options)
}

fn prompt_tokens(args: &Training) -> usize {
    args.prompt_tokens.unwrap_or((args.length / 4).max(1))
}

/// Where the rows come from, and what they are a function of.
fn source(
    args: &Training,
    options: &LossOptions,
    tokenizer: &Tokenizer,
    vocabulary: usize,
) -> Result<(Source, String)> {
    if let Some(path) = &args.teacher_store {
        let name = path.display();
        let store = StoreReader::new(MappedFile::open(path)?).map_err(|error| user(format!("{name}: {error}")))?;
        store.check_student(tokenizer.fingerprint(), vocabulary).map_err(|error| user(format!("{name}: {error}")))?;
        let manifest = store.manifest();
        if manifest.temperature != args.temperature {
            return Err(user(format!(
                "{name} was captured at temperature {}: train with --temperature {}",
                manifest.temperature, manifest.temperature
            )));
        }
        let identity = folder::digest([serde_json::to_vec(manifest)?]);
        return Ok((Source::Store(StoreBatches { store, rows: args.rows, seed: args.run.seed }), identity));
    }
    let (learnt, _) = texts::read(&args.text, &args.hold_out)?;
    let ids = texts::documents(&learnt, tokenizer)?;
    let text = TokenWindows::new(ids, args.length, args.run.seed)
        .with_context(|| format!("the text is shorter than one row of {} tokens", args.length))
        .or_user()?;
    let identity = folder::digest(learnt.iter().map(|(_, text)| text));
    let text = TextBatches { text, rows: args.rows };
    let prompt = prompt_tokens(args);
    if prompt > args.length {
        return Err(user(format!("--prompt-tokens {prompt}: a row has {} tokens", args.length)));
    }
    let sampling =
        Sampling { temperature: args.writing_temperature, end: tokenizer.eos_ids().to_vec(), seed: args.run.seed };
    let source = if options.loss == "minillm" {
        if !args.texts.is_multiple_of(args.rows) {
            return Err(user(format!("--texts {}: a multiple of --rows {} is needed", args.texts, args.rows)));
        }
        if args.writing_temperature != 1.0 || args.on_policy > 0.0 || args.teacher_writes {
            return Err(user(
                "--loss minillm writes all its texts itself, at temperature 1: leave out --on-policy, --teacher-writes and \
                 --writing-temperature",
            ));
        }
        let (options, epochs) = (options.minillm, args.epochs as u64);
        Source::MiniLlm(Rolling { text, options, sampling, prompt, texts: args.texts, epochs, held: Vec::new() })
    } else if args.on_policy > 0.0 || args.teacher_writes {
        let policy = OnPolicy { share: args.on_policy, teacher_writes: args.teacher_writes, prompt, sampling };
        Source::OnPolicy(text, policy)
    } else {
        Source::Text(text)
    };
    Ok((source, identity))
}

/// The ids to measure on.
fn held_out(args: &Training, tokenizer: &Tokenizer) -> Result<Option<Vec<u32>>> {
    let Some(path) = &args.eval else { return Ok(None) };
    let name = path.display();
    let mut ids = tokenizer.encode_document(&tokens::text(path)?).map_err(|error| user(format!("{name}: {error}")))?;
    windows(&ids, WINDOW).map_err(|error| user(format!("{name}: {error}")))?;
    ids.truncate(args.eval_windows * WINDOW);
    Ok(Some(ids))
}

/// A whole checkpoint: weights in the type of the source, its configuration and its tokenizer.
fn write_checkpoint(model: &mut Decoder, files: &ModelFiles, kept: &[usize], out: &Path) -> Result<()> {
    let mut config = files.config().clone();
    if let Some(config) = config.as_object_mut() {
        // The weights are dense now.
        config.remove("quantization_config");
        if !kept.is_empty() {
            config.insert("num_hidden_layers".into(), json!(kept.len()));
            if let Some(types) = config.get("layer_types").and_then(|types| types.as_array()).cloned() {
                let types: Vec<_> = kept.iter().filter_map(|&i| types.get(i).cloned()).collect();
                config.insert("layer_types".into(), json!(types));
            }
        }
    }
    let named = config.get("dtype").or_else(|| config.get("torch_dtype")).and_then(|dtype| dtype.as_str());
    let dtype = match named {
        Some("float16") => DType::F16,
        Some("bfloat16") => DType::BF16,
        _ => DType::F32,
    };
    let weights = out.join("model.safetensors");
    if weights.exists() {
        fs::remove_file(&weights).with_context(|| weights.display().to_string())?;
    }
    model.save(out, dtype)?;
    atomic_write(out.join("config.json"), format!("{config:#}\n").as_bytes())?;
    copy_beside_weights(&files.dir(), out)
}

/// Copies a checkpoint's tokenizer and what else lies beside its weights.
pub(crate) fn copy_beside_weights(from: &Path, out: &Path) -> Result<()> {
    let beside = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
    ];
    for name in beside {
        let source = from.join(name);
        if source.exists() {
            let bytes = fs::read(&source).with_context(|| source.display().to_string()).or_user()?;
            atomic_write(out.join(name), &bytes)?;
        }
    }
    Ok(())
}
