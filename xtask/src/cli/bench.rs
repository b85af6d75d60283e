//! `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::*;

/// Measure speed on this machine.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Decode(BenchDecode),
    Prefill(BenchPrefill),
    Load(BenchLoad),
    Matmul(BenchMatmul),
    Index(BenchIndex),
    Draft(BenchDraft),
    Specdec(BenchSpecdec),
}

/// The model that is measured: random weights, written once and kept.
#[derive(Debug, Args)]
pub(crate) struct Subject {
    /// Which model's shape.
    #[arg(long, value_enum, default_value_t = Shape::Llama1b)]
    pub(crate) shape: Shape,
    #[command(flatten)]
    pub(crate) weights: RandomWeights,
    /// How packed weights meet their inputs.
    #[arg(long, value_enum, default_value_t = Inputs::Int8)]
    pub(crate) inputs: Inputs,
    /// Folder of the random checkpoints (default: target/bench).
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// Measurements, after one to warm up.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub(crate) repeats: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Another program, measured in the same run.
#[derive(Debug, Args)]
pub(crate) struct Peer {
    /// Measure this one too, and give the ratio: `llama.cpp` (formats q4 and q8), as benches/peers/llamacpp_speed.py does.
    #[arg(long, value_name = "NAME", value_parser = ["llama.cpp"])]
    pub(crate) peer: Option<String>,
    /// The Python that has the peer installed.
    #[arg(long, value_name = "FILE", default_value = "python3")]
    pub(crate) python: PathBuf,
}

/// Tokens per second, one after the other.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench decode --format q4
  cargo xtask bench decode --format q4 --context 4096 --threads 1 --json
  cargo xtask bench decode --format q4 --peer llama.cpp --python ~/peers/bin/python")]
pub(crate) struct BenchDecode {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Tokens that are read before the first is written.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = at_least_one)]
    pub(crate) context: usize,
    /// Tokens of a measurement.
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = at_least_one)]
    pub(crate) new: usize,
    #[command(flatten)]
    pub(crate) peer: Peer,
}

/// Tokens per second of reading a prompt.
#[derive(Debug, Args)]
pub(crate) struct BenchPrefill {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Tokens of the prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = at_least_two)]
    pub(crate) tokens: usize,
    #[command(flatten)]
    pub(crate) peer: Peer,
}

/// Seconds from files to the first token.
#[derive(Debug, Args)]
pub(crate) struct BenchLoad {
    #[command(flatten)]
    pub(crate) subject: Subject,
}

/// Rates of every projection of a block by itself.
#[derive(Debug, Args)]
pub(crate) struct BenchMatmul {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Rows of inputs; may be given several times.
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [1, 8, 512], value_parser = at_least_one)]
    pub(crate) rows: Vec<usize>,
}

/// The corpus index and the structures of drafting: build rate, latency of queries.
#[derive(Debug, Args)]
pub(crate) struct BenchDraft {
    /// A folder of .txt files to index, as bytes.
    #[arg(long, value_name = "DIR")]
    pub(crate) corpus: PathBuf,
    /// A text whose ends are looked up.
    #[arg(long, value_name = "FILE")]
    pub(crate) query: PathBuf,
    /// Parts of the index (default: one per thread).
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) shards: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Decoding with each drafter against decoding without, on the same prompts in the same run.
#[derive(Debug, Args)]
pub(crate) struct BenchSpecdec {
    /// Directory of a checkpoint (default: the built-in model).
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// A text that neither model nor index has seen: prompts are cut from it.
    /// Not needed for the set `quote` alone.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Drafters, as `generate --draft` takes them.
    #[arg(long, value_name = "HOW", required = true, num_args = 1..)]
    pub(crate) draft: Vec<Draft>,
    /// Kinds of prompts.
    #[arg(long, value_enum, num_args = 1.., default_values_t = [PromptSet::Continue, PromptSet::Copy, PromptSet::Random])]
    pub(crate) set: Vec<PromptSet>,
    /// Prompts of each kind.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub(crate) prompts: usize,
    /// Tokens of each prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 192, value_parser = at_least_two)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to write after each.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_two)]
    pub(crate) new: usize,
    /// Texts written together.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) batch: usize,
    /// Guess at most this many tokens ahead.
    #[arg(long, value_name = "K", default_value_t = 16, value_parser = at_least_one)]
    pub(crate) max_draft: usize,
    /// 0: always the likeliest token; 1: sample as the model says.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = non_negative)]
    pub(crate) temperature: f64,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where prompts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PromptSet {
    /// Passages of the text.
    Continue,
    /// Passages of the text, twice, the second time cut short: the model is led to repeat.
    Copy,
    /// A passage of the text, another one, and the first words of an excerpt from the first, which the model is led to go on with.
    Excerpt,
    /// Random tokens.
    Random,
    /// Contexts with a passage of which the beginning is asked for again, for a model of generated tasks: what it writes stands in
    /// its prompt.
    Quote,
}

/// Look-ups, scans and mixes of reads and inserts, of learned indexes and of what they are to replace.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench index
  cargo xtask bench index --keys osm --n 10000000 --mix 80 --structure afli --structure btree --json")]
pub(crate) struct BenchIndex {
    /// Distribution of the keys: dense, uniform, normal, lognormal, zipfgap, outliers, osm, ts, longitudes or longlat.
    #[arg(long, value_name = "NAME", default_value = "lognormal")]
    pub(crate) keys: String,
    /// How many keys.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub(crate) n: usize,
    /// Reads in per cent (the others insert), `get`, `batch` or `scan` of a loaded index, or `all`.
    #[arg(long, value_name = "R", default_value = "all")]
    pub(crate) mix: String,
    /// Measure only this one; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) structure: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
