//! What can be typed after `cargo xtask`.

mod bench;
mod training;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kindling_model::checkpoint::DType;
use kindling_model::random::RandomFormat;
use kindling_tensor_backend::device::DeviceName;
use kindling_tensor_backend::kernels::Arithmetic;

pub(crate) use bench::{
    Bench, BenchCommand, BenchDecode, BenchDraft, BenchIndex, BenchLoad, BenchMatmul, BenchPrefill, BenchSpecdec, Peer,
    PromptSet, Subject,
};
pub(crate) use training::{Adapter, AdapterKind, Align, AlignLoss, Capture, Distill, Heal, Pretrain, Training};

use crate::drafting::Draft;

/// Printed when no command is given: what a newcomer needs, and where the rest is.
pub(crate) const SHORT_HELP: &str = "\
Kindling: a checkpoint goes in, a smaller one comes out.

  cargo xtask compress                          try it on the built-in model
  cargo xtask compress --model DIR --out OUT    compress a Hugging Face checkpoint

`cargo xtask list` names the methods a recipe can use; `cargo xtask --help` shows every command.";

/// Compress language models and see what it cost.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Worker threads (default: one per CPU core). Results do not depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = at_least_one, display_order = 900)]
    pub(crate) threads: Option<usize>,
    /// Where to compute; `cargo xtask doctor` lists what is there.
    #[arg(long, global = true, value_name = "NAME", default_value_t = DeviceName::ALL[0], display_order = 900)]
    pub(crate) device: DeviceName,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// One variant per command, in the order of the help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Compress(Compress),
    Eval(Eval),
    Generate(Generate),
    Logits(Logits),
    List(List),
    Inspect(Inspect),
    Verify(Verify),
    Report(Report),
    Pretrain(Pretrain),
    Capture(Capture),
    Distill(Distill),
    Heal(Heal),
    Align(Align),
    RandomCheckpoint(RandomCheckpoint),
    Index(Index),
    Bench(Bench),
    Doctor(Doctor),
    Tidy(Tidy),
    /// Run everything the continuous integration runs, cheapest first.
    Ci,
}

/// Make a checkpoint smaller, block by block, and report what it cost.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask compress
  cargo xtask compress --model ./llama --recipe recipes/dass-2-4.toml --out ./llama-2-4
  cargo xtask compress --model ./llama --calibration books.txt --max-memory 8GiB --out ./small
  cargo xtask compress --model ./llama --out ./small --resume      after Ctrl-C or a crash
  cargo xtask compress --model ./llama --dry-run                   print the plan, write nothing")]
pub(crate) struct Compress {
    /// Directory of a Hugging Face checkpoint (default: the built-in model).
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Recipe in TOML, see `recipes/` (default: recipes/default.toml).
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    /// Text, JSON lines with a `text` field, or .safetensors with `input_ids`;
    /// `self`: text that the model itself generates.
    #[arg(long, value_name = "FILE|self", default_value = "self")]
    pub(crate) calibration: PathBuf,
    /// How many calibration sequences.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub(crate) windows: usize,
    /// Tokens in each calibration sequence.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = at_least_two)]
    pub(crate) window: usize,
    /// Text to measure perplexity on, before and after: any of the kinds that --calibration takes
    /// (default: the calibration text itself, and the report says so).
    #[arg(long, value_name = "FILE")]
    pub(crate) eval: Option<PathBuf>,
    /// How many windows of it: of 256 tokens, or of --window if that is smaller.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub(crate) eval_windows: usize,
    /// Directory to write (default: target/compressed/MODEL-RECIPE).
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Replace what an earlier run left in the output directory.
    #[arg(long, conflicts_with = "resume")]
    pub(crate) force: bool,
    /// Go on after the last block that an interrupted run finished.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Check everything and print the plan, without computing or writing.
    #[arg(long, conflicts_with = "resume")]
    pub(crate) dry_run: bool,
    /// Refuse to start if the work would need more memory than this, for example 8GiB or 500MB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_memory: Option<Bytes>,
    /// Start a new file before one grows beyond this.
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub(crate) max_shard_size: Bytes,
    /// Seed of every random choice.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure perplexity on a text.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask eval --model ./llama --text wikitext-2.txt
  cargo xtask eval --model ./llama-2-4 --text wikitext-2.txt --window 2048 --json")]
pub(crate) struct Eval {
    /// Directory of a checkpoint, compressed or not.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Directory of an adapter for it, in PEFT's layout.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// How packed weights meet their inputs: rounded to 8 bits per block of 32, or as they are.
    #[arg(long, value_enum, default_value_t = Inputs::F32)]
    pub(crate) inputs: Inputs,
    /// Text in UTF-8. It is tokenised once, then cut into windows; the ragged rest is dropped.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens in each window. Perplexities of different windows cannot be compared.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = at_least_two)]
    pub(crate) window: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Continue a text.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask generate --prompt 'Once upon a time'
  cargo xtask generate --model ./llama --prompt 'Once upon a time' --temperature 0.8 --top-p 0.9
  cargo xtask generate --model ./llama --chat --prompt 'Who wrote Dracula?' --stop '\\n\\n'")]
pub(crate) struct Generate {
    /// Directory of a checkpoint, compressed or not (default: the built-in model).
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Directory of an adapter for it, in PEFT's layout.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// How packed weights meet their inputs: rounded to 8 bits per block of 32, or as they are.
    #[arg(long, value_enum, default_value_t = Inputs::Int8)]
    pub(crate) inputs: Inputs,
    /// The text to continue.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_file", conflicts_with = "prompt_file")]
    pub(crate) prompt: Option<String>,
    /// A file with the text to continue.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Wrap the prompt into the checkpoint's chat template, as one message of the user.
    #[arg(long)]
    pub(crate) chat: bool,
    /// Stop after this many new tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) max_new_tokens: usize,
    /// 0: always the likeliest token; 1: sample as the model says.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) temperature: f64,
    /// Sample among the K likeliest tokens only (0: no limit).
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Sample among the likeliest tokens that together reach this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = fraction)]
    pub(crate) top_p: f64,
    /// Drop tokens less likely than this fraction of the likeliest.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = fraction)]
    pub(crate) min_p: f64,
    /// Above 1: make tokens that already occurred less likely.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    pub(crate) repetition_penalty: f64,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Stop before this text; may be given several times.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    /// Go on after the end-of-text token.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Guess tokens ahead and verify them in one pass; the text stays the same. none, lookup, ngram, suffix, recycling,
    /// infinigram, infinigram:INDEX, rest:INDEX, model:DIR (a smaller model with the same tokenizer), skip:N (this model without
    /// its N middle blocks).
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub(crate) draft: Draft,
    /// Guess at most this many tokens ahead.
    #[arg(long, value_name = "K", default_value_t = 16, value_parser = at_least_one)]
    pub(crate) max_draft: usize,
    /// Print one JSON object at the end instead of streaming text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Build or ask an index of every n-gram of a text, for `generate --draft infinigram:FILE`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask index build --text ./books --tokenizer ./llama --out books.index
  cargo xtask index query --index books.index --tokenizer ./llama 'it was the best of'")]
pub(crate) struct Index {
    #[command(subcommand)]
    pub(crate) command: IndexCommand,
}

/// What to do with an index.
#[derive(Debug, Subcommand)]
pub(crate) enum IndexCommand {
    Build(IndexBuild),
    Query(IndexQuery),
}

/// Index texts.
#[derive(Debug, Args)]
pub(crate) struct IndexBuild {
    /// Text files and folders of .txt files, each file a document.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub(crate) text: Vec<PathBuf>,
    /// Directory of the model whose tokens are indexed (default: the built-in model).
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Parts built side by side and searched one by one (default: one per thread for large texts).
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) shards: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What follows the longest end of a text that the index knows.
#[derive(Debug, Args)]
pub(crate) struct IndexQuery {
    /// The index.
    #[arg(long, value_name = "FILE")]
    pub(crate) index: PathBuf,
    /// Directory of the model whose tokens are indexed (default: the built-in model).
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// The text to continue.
    #[arg(value_name = "TEXT")]
    pub(crate) text: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compute the logits of given token ids: the way to compare with another engine.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cargo xtask logits --model ./llama --input ids.safetensors --output logits.safetensors --hidden")]
pub(crate) struct Logits {
    /// Directory of a checkpoint, compressed or not.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// A .safetensors file with `input_ids` [B, T] of type I64 or I32.
    #[arg(long, value_name = "FILE")]
    pub(crate) input: PathBuf,
    /// The .safetensors file to write: `logits` [B, T, V] in f32.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Also write `hidden.0`, `hidden.1`, …: what enters each block, and what leaves the last.
    #[arg(long)]
    pub(crate) hidden: bool,
}

/// List every compression method.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say what a checkpoint contains: architecture, tensors, formats, bits per weight.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cargo xtask inspect ./llama-2-4")]
pub(crate) struct Inspect {
    /// Directory of a checkpoint, compressed or not.
    #[arg(value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Also count zeros and look for N:M patterns: reads every weight.
    #[arg(long)]
    pub(crate) sparsity: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check that a compressed checkpoint is whole: every shard, tensor and mask, and the logits it gives.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cargo xtask verify ./llama-2-4")]
pub(crate) struct Verify {
    /// Directory that `compress` wrote.
    #[arg(value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write report.html again from report.json; several runs are compared on one page.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask report ./llama-2-4                       its report.html again
  cargo xtask report ./llama-2-4 ./llama-gptq-4bit     both in one table and in frontier.html")]
pub(crate) struct Report {
    /// Directories that `compress` wrote, or that hold such directories.
    #[arg(value_name = "DIR", required = true)]
    pub(crate) dirs: Vec<PathBuf>,
    /// Where to write the comparison of several runs.
    #[arg(long, value_name = "FILE", default_value = "frontier.html")]
    pub(crate) out: PathBuf,
}

/// Write a checkpoint of a known shape with random weights, to try sizes and speeds without a download.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask random-checkpoint --shape llama-160m --dtype bf16 --out ./random-160m
  cargo xtask random-checkpoint --shape llama-1b --format q4 --group 128 --out ./random-1b-q4")]
pub(crate) struct RandomCheckpoint {
    /// Which model's shape.
    #[arg(long, value_enum)]
    pub(crate) shape: Shape,
    /// Type of dense weights and of scales.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) weights: RandomWeights,
    /// Directory to write.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Start a new file before one grows beyond this.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    pub(crate) max_shard_size: Bytes,
}

/// Say what this machine offers: CPU features, devices, measured memory bandwidth and arithmetic rate.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check the rules of the workspace: which crate may depend on, name or contain what.
#[derive(Debug, Args)]
pub(crate) struct Tidy {
    /// Also rewrite what can be derived: the table of methods in the README.
    #[arg(long)]
    pub(crate) fix: bool,
}

/// How random weights are stored.
#[derive(Debug, Clone, Args)]
pub(crate) struct RandomWeights {
    /// Dense; codes of 8, 4, 3 or 2 bits; two of four weights zero; or that with 4-bit codes.
    #[arg(long, value_name = "NAME", default_value = "dense", value_parser = RandomFormat::NAMES)]
    pub(crate) format: String,
    /// Codes that share a scale.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub(crate) group: usize,
}

impl RandomWeights {
    /// As the library calls it.
    pub(crate) fn random(&self) -> RandomFormat {
        RandomFormat::named(&self.format, self.group).expect("the parser takes known names only")
    }
}

/// Shapes that random weights come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// 12 blocks of width 768.
    #[value(name = "llama-160m")]
    Llama160m,
    /// 16 blocks of width 2048, like Llama 3.2 1B but for its vocabulary.
    #[value(name = "llama-1b")]
    Llama1b,
    /// TinyLlama 1.1B: 22 blocks of width 2048.
    #[value(name = "tinyllama-1b")]
    TinyLlama1b,
    /// Llama 3.1 8B: 32 blocks of width 4096.
    #[value(name = "llama-8b")]
    Llama8b,
}

impl Shape {
    /// As it is typed.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

/// What packed weights are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Inputs {
    /// Whole numbers: as fast as the memory gives the weights.
    Int8,
    /// The inputs as they are.
    F32,
}

impl Inputs {
    /// As the kernels call it.
    pub(crate) fn arithmetic(self) -> Arithmetic {
        match self {
            Inputs::Int8 => Arithmetic::Int8,
            Inputs::F32 => Arithmetic::F32,
        }
    }
}

/// Floating-point types of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// As files have it.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => DType::BF16,
        }
    }

    /// As `config.json` spells it.
    pub(crate) fn torch_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        }
    }
}

/// A number of bytes, written `2GiB`, `500MB` or `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1u64,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            "kib" | "k" => 1 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            "tib" | "t" => 1 << 40,
            _ => return Err("expected a number with B, KB, MB, GB, KiB, MiB or GiB, for example 2GiB".into()),
        };
        let number: f64 = number.parse().map_err(|_| "expected a size such as 2GiB or 500MB".to_string())?;
        let bytes = number * unit as f64;
        if bytes < 1.0 {
            return Err("expected a size above zero, for example 2GiB".into());
        }
        Ok(Self(bytes as u64))
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    at_least(1, text)
}

fn at_least_two(text: &str) -> Result<usize, String> {
    at_least(2, text)
}

fn at_least(least: usize, text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= least => Ok(number),
        _ => Err(format!("expected a whole number of at least {least}")),
    }
}

fn number(text: &str, allowed: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if f64::is_finite(number) && allowed(number) => Ok(number),
        _ => Err(format!("expected {expected}")),
    }
}

fn non_negative(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "a number of at least 0")
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

fn fraction(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        let bytes = |text: &str| text.parse::<Bytes>().map(|b| b.0);
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("500MB"), Ok(500_000_000));
        assert_eq!(bytes("1.5 kib"), Ok(1536));
        assert_eq!(bytes("4096"), Ok(4096));
        for bad in ["", "GiB", "2 apples", "-1GB", "0", "1.2.3MB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn global_flags_may_follow_the_command() {
        let cli = Cli::try_parse_from(["xtask", "compress", "--threads", "2", "--device", "ndarray"]).unwrap();
        assert_eq!((cli.threads, cli.device), (Some(2), DeviceName::ALL[1]));
        let Some(Command::Compress(compress)) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!((compress.seed, compress.window, compress.calibration), (42, 256, PathBuf::from("self")));
    }

    #[test]
    fn contradictions_and_nonsense_are_refused() {
        let refused = |line: &str| {
            let words = std::iter::once("xtask").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        };
        refused("compress --force --resume");
        refused("compress --dry-run --resume");
        refused("compress --threads 0");
        refused("compress --windows 0");
        refused("eval --model d --text f --window 1");
        refused("generate --model d");
        refused("generate --prompt a --prompt-file b");
        refused("generate --prompt a --top-p 1.5");
        refused("generate --prompt a --temperature -1");
        refused("generate --prompt a --repetition-penalty 0");
        refused("random-checkpoint --shape llama-2b --out d");
        refused("report");
    }
}
