//! `pretrain`: a tokenizer and a model from a text, from scratch or from a checkpoint on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kindling_core::Cx;
use kindling_distill::loss::CrossEntropy;
use kindling_distill::{Batches, Known, LayerOptions, Row, Schedule, TokenWindows, TrainOptions, Trainer};
use kindling_model::checkpoint::DType;
use kindling_model::checkpoint::atomic::atomic_write;
use kindling_model::random::{RandomFormat, random_checkpoint};
use kindling_model::tasks::{Task, generate_example, vocabulary, write_tokenizer};
use kindling_model::tokenizer::{Tokenizer, train_byte_level_bpe};
use kindling_model::{Decoder, ModelFiles};
use kindling_tensor_backend::device::{DeviceName, device};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::json;

use crate::cli::Pretrain;
use crate::error::{OrUser, user};
use crate::report::format::count;
use crate::tasks::{Accuracy, accuracies};
use crate::training::config::{Pretraining, Stage, TokenizerPart};
use crate::training::taught::copy_beside_weights;
use crate::training::texts::{self, Named};
use crate::training::{curve, folder, run};
use crate::{output, progress, signal, tokens};

/// Rows that an evaluation scores at a time.
const EVALUATION_ROWS: usize = 4;
/// Examples of every task: on the way and in the end.
const EXAMPLES_ON_THE_WAY: usize = 20;
const EXAMPLES: usize = 200;
/// Held-out windows that an evaluation on the way scores; the last one scores all.
const ON_THE_WAY: usize = 20;

/// What the run ends with, in `evaluation.json`.
#[derive(Serialize)]
struct Evaluation {
    parameters: u64,
    steps: u64,
    tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<HeldOut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tasks: Vec<Accuracy>,
    seed: u64,
    command: String,
}

#[derive(Serialize)]
struct HeldOut {
    texts: Vec<String>,
    window: usize,
    windows: usize,
    bits_per_byte: f64,
    perplexity: f64,
}

pub(crate) fn run(args: &Pretrain, device_name: DeviceName) -> Result<()> {
    let config = Pretraining::read(&args.config, args.from.as_deref())?;
    let tasks = config.task_list().map_err(user)?;
    let from = args.from.as_ref().map(ModelFiles::open).transpose()?;
    if tasks.is_empty() && args.text.is_empty() && args.rows.is_none() {
        return Err(user("a text to learn from is needed: name a file or a folder of .txt files with --text"));
    }
    if args.rows.is_some() && config.stage.iter().any(|stage| stage.repeats.is_some()) {
        return Err(user("`repeats` makes rows of --text; rows of --rows are learnt as they are"));
    }
    let (learnt, held_out) =
        if args.text.is_empty() { Default::default() } else { texts::read(&args.text, &args.hold_out)? };
    if let (Some(from), false) = (&from, tasks.is_empty())
        && from.spec().vocab_size != vocabulary::SIZE
    {
        let (dir, found) = (from.dir(), from.spec().vocab_size);
        return Err(user(format!("{}: {found} tokens; a model of tasks has {}", dir.display(), vocabulary::SIZE)));
    }
    let given = match (&args.rows, &from) {
        (Some(path), Some(from)) => Some(given_rows(path, &config, from.spec().vocab_size)?),
        _ => None,
    };
    let longest = config.stage.iter().map(|stage| stage.length).max().unwrap_or(0);
    let described = from.as_ref().map_or(Some(&config.model), |from| from.config().as_object());
    let positions = described.and_then(|model| model.get("max_position_embeddings")?.as_u64());
    let positions = positions.map_or(longest, |positions| positions as usize);
    if longest > positions {
        return Err(user(format!(
            "{}: rows of {longest} tokens, but the model has {positions} positions",
            args.config.display()
        )));
    }
    let identity = json!({
        "configuration": config,
        "text": folder::digest(learnt.iter().map(|(_, text)| text)),
        "from": from.as_ref().map(|from| from.checkpoint().fingerprint()).transpose()?,
        "rows": given.as_ref().map(|rows| folder::digest(rows.iter().map(|row| bytes_of(row)))),
    });
    folder::prepare(&args.out, &identity, args.resume, args.force)?;
    let cx = Cx::new(config.seed).with_cancel(signal::cancel_flag()?).with_progress(progress::for_stderr());

    match config.tokenizer {
        _ if args.out.join("tokenizer.json").exists() => {}
        TokenizerPart::Learnt { vocab_size } => {
            cx.progress().note("learning the tokenizer");
            let documents = learnt.iter().map(|(_, text)| text.as_str());
            train_byte_level_bpe(documents, vocab_size, positions, &args.out)
                .inspect_err(|_| folder::abandon(&args.out))
                .or_user()?;
        }
        TokenizerPart::Tasks { .. } => write_tokenizer(&args.out, positions)?,
        TokenizerPart::Given => {
            let from = from.as_ref().map_or(args.out.clone(), ModelFiles::dir);
            copy_beside_weights(&from, &args.out).inspect_err(|_| folder::abandon(&args.out))?;
        }
    }
    let tokenizer = Tokenizer::open(&args.out).or_user()?;
    let model = initial(args, &config, from.as_ref(), &tokenizer, device_name, &cx)?;
    let parameters = model.spec().parameters();
    let (data, what): (Box<dyn Batches>, String) = if let Some(rows) = given {
        let what = format!("{} given rows", count(rows.len() as u64));
        (Box::new(GivenRows { config: config.clone(), rows }), what)
    } else if tasks.is_empty() {
        let ids = texts::documents(&learnt, &tokenizer)?;
        let what = format!("{} tokens of text", count(ids.len() as u64));
        let text = Text::new(&config, ids, tokenizer.vocab_size().min(model.spec().vocab_size))
            .with_context(|| "the text is shorter than one row: give more text or a smaller `length`")
            .or_user()?;
        (Box::new(text), what)
    } else {
        let tasks_of = config.stage_tasks().map_err(user)?;
        (Box::new(Tasks { config: config.clone(), tasks: tasks_of }), format!("{} tasks", tasks.len()))
    };

    let schedule = Schedule {
        peak: config.train.rate,
        warmup: config.train.warmup,
        decay: config.train.decay,
        last: config.train.last,
        steps: config.steps(),
    };
    let options = TrainOptions {
        schedule,
        adamw: config.train.adamw,
        muon: config.train.muon,
        clip: config.train.clip,
        micro_rows: config.train.micro_rows,
        workers: rayon::current_num_threads(),
        checkpoint_blocks: config.train.checkpoint_blocks,
        spike: config.train.spike,
        layers: LayerOptions::default(),
        precision: config.train.precision,
    };
    let mut trainer = Trainer::new(model, None, Box::new(CrossEntropy), options, &|_| true).or_user()?;
    let window = config.stage[0].length.max(2);
    let held = Held::new(&held_out, &tokenizer, window)?;
    cx.progress().note(&format!("{} parameters, {} steps over {what}", count(parameters), count(config.steps())));
    let plan = run::Plan {
        out: &args.out,
        steps: config.steps(),
        evaluate_every: if held.windows.is_empty() && tasks.is_empty() { 0 } else { config.train.evaluate_every },
        held_out: if tasks.is_empty() { "held-out bits per byte" } else { "share of wrong answers" },
        checkpoint_every: config.train.checkpoint_every,
        group: 1,
        patience: config.train.patience,
    };
    run::run(&mut trainer, &mut |step, _| Ok(data.rows(step)), &plan, &cx, &mut |trainer| {
        if tasks.is_empty() {
            return Ok(held.score(trainer, ON_THE_WAY)?.0);
        }
        let context = config.stage[config.stage_of(trainer.steps_done()).0].context.unwrap_or(64);
        let scores = accuracies(trainer.model(), &tasks, context, EXAMPLES_ON_THE_WAY, config.seed)?;
        let each: Vec<String> =
            scores.iter().map(|score| format!("{} {:.0} %", score.task, 100.0 * score.accuracy)).collect();
        cx.progress().note(&format!("right at {context}: {}", each.join(", ")));
        Ok(1.0 - scores.iter().map(|score| score.accuracy).sum::<f64>() / scores.len().max(1) as f64)
    })?;

    let scored = if held.windows.is_empty() { None } else { Some(held.score(&trainer, usize::MAX)?) };
    let mut evaluation = Evaluation {
        parameters,
        steps: trainer.steps_done(),
        tokens: trainer.tokens_seen(),
        held_out: scored.map(|(bits_per_byte, nll)| HeldOut {
            texts: held_out.iter().map(|(name, _)| name.clone()).collect(),
            window,
            windows: held.windows.len(),
            bits_per_byte,
            perplexity: nll.exp(),
        }),
        tasks: Vec::new(),
        seed: config.seed,
        command: std::env::args().skip(1).fold("cargo xtask".to_string(), |line, word| line + " " + &word),
    };
    if !tasks.is_empty() {
        let lengths: BTreeSet<usize> = config.stage.iter().flat_map(Stage::contexts).collect();
        cx.progress().begin("answering tasks", lengths.len() as u64);
        for context in lengths {
            evaluation.tasks.extend(accuracies(trainer.model(), &tasks, context, EXAMPLES, config.seed)?);
            cx.progress().advance(1);
        }
        cx.progress().end();
    }
    finish(args, trainer, &evaluation)?;
    if args.json {
        return output::json(&evaluation);
    }
    let quality = scored.map_or(String::new(), |(bits, _)| format!(", {bits:.4} bits per byte on the held-out text"));
    output::line(format_args!(
        "trained {} parameters on {} tokens{quality}: {}",
        count(parameters),
        count(evaluation.tokens),
        args.out.display()
    ))
}

/// The rows of a file, of which there must be enough, as long as the stages want them.
fn given_rows(path: &Path, config: &Pretraining, vocabulary: usize) -> Result<Vec<Vec<u32>>> {
    let rows = tokens::rows(path)?;
    let name = path.display();
    let needed: u64 = config.stage.iter().map(|stage| stage.steps() * stage.rows as u64).sum();
    if (rows.len() as u64) < needed {
        return Err(user(format!("{name}: {} rows, but the stages ask for {needed}", rows.len())));
    }
    if let Some(id) = rows.iter().flatten().find(|&&id| id as usize >= vocabulary) {
        return Err(user(format!("{name}: token {id} is outside the vocabulary of {vocabulary}")));
    }
    let length = rows.first().map_or(0, Vec::len);
    match config.stage.iter().find(|stage| stage.length + 1 != length) {
        Some(stage) => {
            let wanted = stage.length + 1;
            Err(user(format!(
                "{name}: rows of {length} tokens; a `length` of {} predictions needs {wanted}",
                stage.length
            )))
        }
        None => Ok(rows),
    }
}

fn bytes_of(row: &[u32]) -> Vec<u8> {
    row.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// Rows in their order.
struct GivenRows {
    config: Pretraining,
    rows: Vec<Vec<u32>>,
}

impl Batches for GivenRows {
    fn rows(&self, step: u64) -> Vec<Row> {
        let (index, before) = self.config.stage_of(step);
        let earlier: u64 = self.config.stage[..index].iter().map(|stage| stage.steps() * stage.rows as u64).sum();
        let count = self.config.stage[index].rows;
        let first = (earlier + (step - before) * count as u64) as usize;
        self.rows[first..first + count].iter().cloned().map(Row::plain).collect()
    }
}

/// Rows of generated tasks.
struct Tasks {
    config: Pretraining,
    /// Of every stage.
    tasks: Vec<Vec<Task>>,
}

impl Batches for Tasks {
    fn rows(&self, step: u64) -> Vec<Row> {
        let (index, _) = self.config.stage_of(step);
        let stage = &self.config.stage[index];
        let contexts = stage.contexts();
        let other = if let TokenizerPart::Tasks { other, .. } = self.config.tokenizer { other } else { 0.0 };
        let row = |i: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
            rng.set_stream(step << 16 | i as u64);
            let context = match contexts[..] {
                [context] => context,
                _ => contexts[(rng.next_u64() % contexts.len() as u64) as usize],
            };
            let fitting: Vec<Task> = self.tasks[index].iter().copied().filter(|task| task.fits(context)).collect();
            let task = fitting[(rng.next_u64() % fitting.len() as u64) as usize];
            let (mut ids, mut weights) = generate_example(task, context, None, &mut rng).sequence(other);
            ids.resize(stage.length + 1, vocabulary::PAD);
            weights.resize(stage.length, 0.0);
            Row { ids, weights: Some(weights), known: Known::Nothing }
        };
        (0..stage.rows).map(row).collect()
    }
}

/// The model before its first step: a checkpoint, or weights that depend on the configuration and the seed alone.
fn initial(
    args: &Pretrain,
    config: &Pretraining,
    from: Option<&ModelFiles>,
    tokenizer: &Tokenizer,
    device_name: DeviceName,
    cx: &Cx,
) -> Result<Decoder> {
    if let Some(from) = from {
        return Ok(Decoder::load_dense(from, &device(device_name)?.autodiff())?);
    }
    let dir = args.out.join("initial");
    if !dir.join("config.json").exists() {
        let (begin, end) = (tokenizer.bos_id().unwrap_or(0), tokenizer.eos_ids().first().copied().unwrap_or(1));
        let model = config.model_json(begin, end);
        random_checkpoint(&model, DType::F32, RandomFormat::DENSE, &dir, u64::MAX, cx)?;
    }
    Ok(Decoder::load_dense(&ModelFiles::open(&dir)?, &device(device_name)?.autodiff())?)
}

/// A text: the windows of every stage, or what it makes of the text.
struct Text {
    config: Pretraining,
    ids: Vec<u32>,
    vocabulary: usize,
    stages: Vec<TokenWindows>,
}

impl Text {
    fn new(config: &Pretraining, ids: Vec<u32>, vocabulary: usize) -> Option<Self> {
        let stages = config.stage.iter().enumerate();
        let stages = stages.map(|(i, stage)| TokenWindows::new(ids.clone(), stage.length, config.seed + i as u64));
        let stages = stages.collect::<Option<_>>()?;
        Some(Self { config: config.clone(), ids, vocabulary, stages })
    }
}

impl Batches for Text {
    fn rows(&self, step: u64) -> Vec<Row> {
        let (index, before) = self.config.stage_of(step);
        let stage = &self.config.stage[index];
        let row = |i: u64| match &stage.repeats {
            None => self.stages[index].window((step - before) * stage.rows as u64 + i),
            Some(repeats) => {
                let number = step << 16 | i;
                Row::plain(repeats.row(&self.ids, self.vocabulary, stage.length + 1, self.config.seed, number))
            }
        };
        (0..stage.rows as u64).map(row).collect()
    }
}

/// A held-out text in windows, each scored alone.
struct Held {
    windows: Vec<Row>,
    /// Bytes of the text of each window.
    bytes: Vec<usize>,
}

impl Held {
    fn new(texts: &[Named], tokenizer: &Tokenizer, window: usize) -> Result<Self> {
        let (mut windows, mut bytes) = (Vec::new(), Vec::new());
        for (name, text) in texts {
            let ids = tokenizer.encode_document(text).map_err(|error| user(format!("{name}: {error}")))?;
            for ids in ids.chunks_exact(window) {
                bytes.push(tokenizer.decode(ids, true).or_user()?.len());
                windows.push(Row::plain(ids.to_vec()));
            }
        }
        Ok(Self { windows, bytes })
    }

    /// Bits per byte, the first token of a window counted like the mean of the others, and nats per token.
    fn score(&self, trainer: &Trainer<Decoder>, limit: usize) -> Result<(f64, f64)> {
        let count = self.windows.len().min(limit);
        let mut nll = 0.0;
        for rows in self.windows[..count].chunks(EVALUATION_ROWS) {
            nll += trainer.evaluate(rows)? * rows.len() as f64;
        }
        let nll = nll / count as f64;
        let tokens: usize = self.windows[..count].iter().map(|row| row.ids.len()).sum();
        let bytes: usize = self.bytes[..count].iter().sum();
        Ok((nll * tokens as f64 / bytes as f64 / std::f64::consts::LN_2, nll))
    }
}

/// Writes the model as a checkpoint, its evaluation and its curve.
fn finish(args: &Pretrain, trainer: Trainer<Decoder>, evaluation: &Evaluation) -> Result<()> {
    let dtype = args.dtype.dtype();
    let weights = args.out.join("model.safetensors");
    if weights.exists() {
        fs::remove_file(&weights).with_context(|| weights.display().to_string())?;
    }
    trainer.into_model().save(&args.out, dtype)?;
    let before = args.from.clone().unwrap_or_else(|| args.out.join("initial")).join("config.json");
    let text = fs::read_to_string(&before).with_context(|| before.display().to_string()).or_user()?;
    let mut config: serde_json::Value = serde_json::from_str(&text)?;
    if args.from.is_none() {
        config["architectures"] = json!(["LlamaForCausalLM"]);
    }
    config["dtype"] = json!(args.dtype.torch_name());
    atomic_write(args.out.join("config.json"), format!("{config:#}\n").as_bytes())?;
    let evaluation = serde_json::to_string_pretty(evaluation)? + "\n";
    atomic_write(args.out.join("evaluation.json"), evaluation.as_bytes())?;
    let lines = run::read_log(&args.out.join("log.jsonl"))?;
    write_curve(&args.out, &lines)
}

fn write_curve(out: &Path, lines: &[run::LogLine]) -> Result<()> {
    match curve::losses(lines)? {
        Some(svg) => Ok(atomic_write(out.join("loss.svg"), svg.as_bytes())?),
        None => Ok(()),
    }
}
