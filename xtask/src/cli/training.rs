//! `pretrain`, `capture`, `distill`, `heal`, `align`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kindling_core::options::unknown;
use kindling_distill::Precision;
use kindling_distill::loss::layers::METHODS as LAYER_METHODS;

use super::*;

/// Train a tokenizer and a model from scratch.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask pretrain --config recipes/pretrain/tiny.toml --text books --hold-out last.txt --out ./tiny
  cargo xtask pretrain --config recipes/pretrain/tiny.toml --text books --hold-out last.txt --out ./tiny --resume
  cargo xtask pretrain --config more.toml --from ./tiny --text letters --out ./tiny-letters
  cargo xtask pretrain --config more.toml --from ./tiny --rows rows.safetensors --out ./tiny-more")]
pub(crate) struct Pretrain {
    /// Model, tokenizer and schedule in TOML, see `recipes/pretrain/`.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// A text in UTF-8, or a folder of .txt files; may be given several times. A model of tasks alone needs none.
    #[arg(long, value_name = "PATH")]
    pub(crate) text: Vec<PathBuf>,
    /// The name of a file to keep out of training and to measure on; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) hold_out: Vec<String>,
    /// Go on from this checkpoint, with its tokenizer, instead of from random weights.
    #[arg(long, value_name = "DIR")]
    pub(crate) from: Option<PathBuf>,
    /// In place of --text: a .safetensors file with `input_ids`, rows that are learnt in their order as they are.
    #[arg(long, value_name = "FILE", requires = "from", conflicts_with = "text")]
    pub(crate) rows: Option<PathBuf>,
    /// Folder of the run: checkpoints on the way, the model in the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Type of the weights that are written in the end.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub(crate) dtype: Dtype,
    /// Go on after the last checkpoint.
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Replace what an earlier run left in the folder.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Keep what a teacher says about a text in a file, so that students can learn from it without the teacher.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask capture --teacher ./llama --text books --out llama.store
  cargo xtask distill --teacher-store llama.store --student ./small --out ./taught")]
pub(crate) struct Capture {
    /// Directory of the teacher's checkpoint.
    #[arg(long, value_name = "DIR")]
    pub(crate) teacher: PathBuf,
    /// A text in UTF-8, or a folder of .txt files; may be given several times.
    #[arg(long, value_name = "PATH", required = true)]
    pub(crate) text: Vec<PathBuf>,
    /// The name of a file to leave out; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) hold_out: Vec<String>,
    /// How many likeliest tokens are kept of every position.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub(crate) k: usize,
    /// How many of them keep their probability as it is; the others lie on a curve (default: 16; all, if k is not above
    /// 24).
    #[arg(long, value_name = "N")]
    pub(crate) exact: Option<usize>,
    /// Tokens in a row.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = at_least_two)]
    pub(crate) length: usize,
    /// Rows (default: the whole text).
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) rows: Option<usize>,
    /// Divides the teacher's logits; students must train at the same.
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = positive)]
    pub(crate) temperature: f64,
    /// The file.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Seed of the choice of rows.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Replace the file.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Train a student to say what a teacher says.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask distill --teacher ./llama --student ./small --text books --out ./taught
  cargo xtask distill --teacher ./llama --keep-blocks 0,2,4 --text books --loss reverse-kl --out ./half
  cargo xtask distill --teacher ./llama --student ./small --text books --loss jsd --on-policy 0.5 --out ./taught
  cargo xtask distill --teacher ./llama --student ./small --text books --loss minillm --out ./taught
  cargo xtask distill --teacher ./llama --keep-blocks 0,2,5 --text books --layers states=1 --out ./half
  cargo xtask distill --teacher-store llama.store --student ./small --out ./taught")]
pub(crate) struct Distill {
    /// Directory of the teacher's checkpoint.
    #[arg(long, value_name = "DIR", required_unless_present = "teacher_store")]
    pub(crate) teacher: Option<PathBuf>,
    /// Directory of the student's checkpoint, with the teacher's tokenizer.
    #[arg(long, value_name = "DIR", required_unless_present = "keep_blocks", conflicts_with = "keep_blocks")]
    pub(crate) student: Option<PathBuf>,
    /// Make the student from these blocks of the teacher, counted from 0.
    #[arg(long, value_name = "N", value_delimiter = ',', requires = "teacher")]
    pub(crate) keep_blocks: Vec<usize>,
    /// Forget what the student knows: begin with random weights.
    #[arg(long)]
    pub(crate) from_scratch: bool,
    #[command(flatten)]
    pub(crate) training: Training,
}

/// Train a compressed model for a while, so that it gets back what compression cost.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask heal --model ./llama-3bit --teacher ./llama --text books --out ./adapter
  cargo xtask heal --model ./llama-2-4 --teacher ./llama --adapter none --masked --text books --out ./healed
  cargo xtask eval --model ./llama-3bit --adapter ./adapter --text book.txt")]
pub(crate) struct Heal {
    /// Directory of the compressed checkpoint.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Directory of the model before compression; not needed for the loss `cross-entropy`.
    #[arg(long, value_name = "DIR")]
    pub(crate) teacher: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) adapter: Adapter,
    #[command(flatten)]
    pub(crate) training: Training,
}

/// What learns.
#[derive(Debug, Args)]
pub(crate) struct Adapter {
    /// What learns: an adapter beside the weights, or (none) the weights themselves, which must be dense.
    #[arg(long = "adapter", value_enum, default_value_t = AdapterKind::Lora)]
    pub(crate) kind: AdapterKind,
    /// Rows of the adapter's small matrix.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub(crate) rank: usize,
    /// The correction counts ALPHA / rank.
    #[arg(long, value_name = "X", default_value_t = 16.0, value_parser = positive)]
    pub(crate) alpha: f64,
    /// Ends of module names that get an adapter (default: all projections).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// Pruned weights stay zero.
    #[arg(long)]
    pub(crate) masked: bool,
    /// Add the adapter to the weights in the end and write a whole checkpoint. Quantised weights become dense by it.
    #[arg(long)]
    pub(crate) merge: bool,
}

/// Teach a model which of two answers is better, or (--loss cross-entropy) to answer like the better ones.
#[derive(Debug, Args)]
#[command(after_help = "\
A line of --pairs is one of
  {\"prompt\": \"…\", \"chosen\": \"…\", \"rejected\": \"…\"}
  {\"prompt\": \"…\", \"answers\": [{\"text\": \"…\", \"score\": 8.5}, …]}    the best one against a random other
  {\"prompt\": \"…\", \"chosen\": \"…\"}                             for --loss cross-entropy
A prompt may be a list of messages ({\"role\", \"content\"}) for a model with a chat template.

Examples:
  cargo xtask align --model ./llama --pairs answers.jsonl --loss cross-entropy --adapter none --out ./taught
  cargo xtask align --model ./taught --pairs answers.jsonl --beta 0.1 --merge --out ./aligned")]
pub(crate) struct Align {
    /// Directory of the checkpoint; as it is, it is the reference that the model is kept near.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Prompts and answers, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) pairs: PathBuf,
    /// What is learnt: which answer is better (direct preference optimisation), or the better one as it is.
    #[arg(long, value_enum, default_value_t = AlignLoss::Dpo)]
    pub(crate) loss: AlignLoss,
    /// How near to the reference the model stays: larger is nearer.
    #[arg(long, value_name = "X", default_value_t = 0.1, value_parser = positive)]
    pub(crate) beta: f64,
    #[command(flatten)]
    pub(crate) adapter: Adapter,
    /// How often all pairs are gone through.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) epochs: usize,
    /// Pairs in a step.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub(crate) pairs_per_step: usize,
    /// Pairs that run through the model at a time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) micro_pairs: usize,
    /// Tokens of prompt and answer at most: prompts lose their beginning, and longer answers are left out.
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = at_least_two)]
    pub(crate) length: usize,
    /// The highest learning rate.
    #[arg(long, value_name = "X", default_value_t = 5e-5, value_parser = positive)]
    pub(crate) rate: f64,
    /// The share of steps until it is reached.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = fraction)]
    pub(crate) warmup: f64,
    #[command(flatten)]
    pub(crate) run: TrainingRun,
}

/// What `align` learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AlignLoss {
    /// The better of two answers.
    Dpo,
    /// The better answer as it is.
    CrossEntropy,
}

/// `states=0.5`, or a name alone that counts 1.
fn layer_loss(text: &str) -> Result<(String, f64), String> {
    let (name, weight) = text.split_once('=').unwrap_or((text, "1"));
    let known = LAYER_METHODS.iter().map(|entry| entry.name).collect::<Vec<_>>();
    if !known.contains(&name) {
        return Err(unknown("layer loss", name, &known));
    }
    match weight.parse::<f64>() {
        Ok(weight) if weight > 0.0 && weight.is_finite() => Ok((name.to_string(), weight)),
        _ => Err(format!("`{weight}` is no weight: a number above 0 is needed, as in {name}=1")),
    }
}

/// What learns in `heal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdapterKind {
    /// Low rank.
    Lora,
    /// Low rank and the norms of rows.
    Dora,
    /// The weights themselves.
    None,
}

/// How `distill` and `heal` train.
#[derive(Debug, Args)]
pub(crate) struct Training {
    /// A text in UTF-8, or a folder of .txt files; may be given several times.
    #[arg(long, value_name = "PATH", required_unless_present = "teacher_store")]
    pub(crate) text: Vec<PathBuf>,
    /// What `capture` kept of the teacher, in place of text and teacher.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "on_policy", "teacher_writes"])]
    pub(crate) teacher_store: Option<PathBuf>,
    /// The share of steps on texts that the student writes after the first tokens of the rows.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = fraction)]
    pub(crate) on_policy: f64,
    /// In the other steps the teacher writes what follows, in place of the text.
    #[arg(long)]
    pub(crate) teacher_writes: bool,
    /// Tokens of a row that texts are written after (default: a quarter of the row).
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub(crate) prompt_tokens: Option<usize>,
    /// How boldly texts are written: divides the logits, 0 takes the likeliest token. `minillm` needs 1.
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = non_negative)]
    pub(crate) writing_temperature: f64,
    /// Of `minillm`: texts that are written at a time; a multiple of --rows.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub(crate) texts: usize,
    /// Of `minillm`: how often they are gone through.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    pub(crate) epochs: usize,
    /// Of `minillm`: the teacher's share in the mixture that writes.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = fraction)]
    pub(crate) teacher_share: f64,
    /// The name of a file to keep out of training; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) hold_out: Vec<String>,
    /// Text to measure perplexity on, before and after.
    #[arg(long, value_name = "FILE")]
    pub(crate) eval: Option<PathBuf>,
    /// How many windows of 256 tokens of it.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub(crate) eval_windows: usize,
    /// The loss; `cargo xtask list` names all.
    #[arg(long, value_name = "NAME", default_value = "forward-kl")]
    pub(crate) loss: String,
    /// Divides the logits of both models.
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = positive)]
    pub(crate) temperature: f64,
    /// The share of cross-entropy with the text.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = fraction)]
    pub(crate) cross_entropy: f64,
    /// Of `jsd`: the teacher's share in the mixture.
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = fraction)]
    pub(crate) beta: f64,
    /// Of the skewed divergences: the share of the other side.
    #[arg(long, value_name = "X", default_value_t = 0.1, value_parser = fraction)]
    pub(crate) skew: f64,
    /// Of `cakld`: the share of the reverse divergence.
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = fraction)]
    pub(crate) gamma: f64,
    /// Compare layers, too: names and what each counts, as states=1,relations=0.5; `cargo xtask list` names all.
    #[arg(long, value_name = "NAME=WEIGHT", value_delimiter = ',', value_parser = layer_loss)]
    pub(crate) layers: Vec<(String, f64)>,
    /// Of the layer loss `relations`: heads that the features of both models are cut into.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub(crate) relation_heads: usize,
    /// Of the layer losses `attention` and `relations`: the teacher's block, from 0 (default: the last one).
    #[arg(long, value_name = "N")]
    pub(crate) teacher_block: Option<usize>,
    /// Steps.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = at_least_one)]
    pub(crate) steps: usize,
    /// Rows in a step.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub(crate) rows: usize,
    /// Tokens in a row.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = at_least_two)]
    pub(crate) length: usize,
    /// Rows that run through the model at a time.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    pub(crate) micro_rows: usize,
    /// The highest learning rate.
    #[arg(long, value_name = "X", default_value_t = 1e-3, value_parser = positive)]
    pub(crate) rate: f64,
    /// Steps until it is reached.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) warmup: u64,
    #[command(flatten)]
    pub(crate) run: TrainingRun,
}

/// What `distill`, `heal` and `align` share: how a step is taken, and where the run lives.
#[derive(Debug, Args)]
pub(crate) struct TrainingRun {
    /// Longer gradients are scaled down to this norm.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    pub(crate) clip: f64,
    /// Keep the inputs of blocks only and run them again on the way back: memory for time.
    #[arg(long)]
    pub(crate) checkpoint_blocks: bool,
    /// In what the blocks multiply, f32 or bf16 (faster on GPUs with units for it); weights and sums are f32 in any case.
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// Folder of the run: checkpoints on the way, the result in the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seed of every random choice.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Go on after the last checkpoint.
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Replace what an earlier run left in the folder.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
