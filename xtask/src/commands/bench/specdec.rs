//! `bench specdec`: every drafter against none, prompt by prompt in turn, so that all meet the same machine.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use kindling_core::Cx;
use kindling_core::sampling::{Sampler, SamplingConfig};
use kindling_model::ModelFiles;
use kindling_model::tasks::{Task, generate_example, vocabulary};
use kindling_specdec::planner::Pass;
use kindling_specdec::{Request, Stats};
use kindling_tensor_backend::device::{DeviceName, device};
use rand_chacha::rand_core::Rng;
use serde::Serialize;

use crate::cli::{BenchSpecdec, PromptSet};
use crate::commands::named_model;
use crate::drafting::{Draft, Drafting};
use crate::error::{OrUser, user};
use crate::{output, tokens};

/// A drafter on a kind of prompts.
#[derive(Serialize)]
struct Row {
    set: PromptSet,
    draft: String,
    batch: usize,
    tok_s: f64,
    speedup: f64,
    /// The same by processor time: what other processes do to the clock is not in it. `null` where the system does not tell.
    cpu_speedup: Option<f64>,
    acceptance_length: f64,
    drafted: u64,
    accepted: u64,
    accepted_by_position: Vec<f64>,
    draft_ms: f64,
    verify_ms: f64,
    /// Of a pass that verifies 0, 1, … guesses, over all texts of a batch, at the end of the last text; and of one whose
    /// guesses fork.
    pass_ms: Vec<f64>,
    tree_pass_ms: Vec<f64>,
    /// Texts that are token for token those without drafter, of how many.
    identical: usize,
    texts: usize,
}

/// What one drafter did so far.
#[derive(Default)]
struct Sum {
    seconds: f64,
    cpu: Option<f64>,
    tokens: usize,
    stats: Stats,
    identical: usize,
    texts: usize,
}

pub(crate) fn run(args: &BenchSpecdec, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let files = ModelFiles::open(named_model(&args.model))?;
    let tokenizer = tokens::tokenizer(&files)?;
    let model = Arc::new(crate::commands::load(&files, None, crate::cli::Inputs::Int8, &device)?);
    let text = match &args.text {
        Some(path) => tokenizer.encode(&tokens::text(path)?, false).or_user()?,
        None if args.set == [PromptSet::Quote] => Vec::new(),
        None => return Err(user("a text is needed that prompts are cut from: name it with --text")),
    };
    let needed = args.prompts * args.prompt_tokens;
    if let Some(path) = &args.text
        && text.len() < needed
    {
        return Err(user(format!("{}: {} tokens; {needed} are needed", path.display(), text.len())));
    }
    if args.set.contains(&PromptSet::Quote) {
        let fits = Task::Copy.fits(args.prompt_tokens);
        if model.spec().vocab_size != vocabulary::SIZE || !fits {
            return Err(user(format!(
                "--set quote is for a model of generated tasks, with {} tokens, and prompts of 64 tokens or more; \
                 crates/model/assets/tasks is one",
                vocabulary::SIZE
            )));
        }
    }
    let sampling =
        SamplingConfig { temperature: args.temperature as f32, seed: args.seed, ..SamplingConfig::default() };
    let sampler = Sampler::new(sampling).or_user()?;
    let mut rows = Vec::new();
    for &set in &args.set {
        let prompts =
            prompts(set, args, &text, tokenizer.vocab_size().min(model.spec().vocab_size), tokenizer.bos_id());
        let names: Vec<Draft> =
            std::iter::once(Draft::None).chain(args.draft.iter().filter(|d| **d != Draft::None).cloned()).collect();
        let mut draftings = names
            .iter()
            .map(|draft| Drafting::new(draft, model.clone(), &tokenizer, &device))
            .collect::<Result<Vec<_>>>()?;
        let mut sums: Vec<Sum> = names.iter().map(|_| Sum::default()).collect();
        for (round, group) in prompts.chunks(args.batch).enumerate() {
            let requests: Vec<Request> = group
                .iter()
                .enumerate()
                .map(|(i, prompt)| Request {
                    id: i as u64,
                    prompt: prompt.clone(),
                    sampler: sampler.clone(),
                    max_new_tokens: args.new,
                    ends: Vec::new(),
                })
                .collect();
            let mut plain: Vec<Vec<u32>> = Vec::new();
            for (drafting, sum) in draftings.iter_mut().zip(&mut sums) {
                let mut decoding = None;
                let mut begun = 0;
                let written = drafting.write(&requests, args.max_draft, |_, _| {
                    // The last of the first tokens ends the reading of the prompts.
                    begun += 1;
                    if begun == requests.len() {
                        decoding = Some((Instant::now(), cpu_seconds()));
                    }
                    ControlFlow::Continue(())
                })?;
                let Some((start, cpu)) = decoding else { continue };
                let (seconds, cpu) =
                    (start.elapsed().as_secs_f64(), cpu_seconds().zip(cpu).map(|(now, then)| now - then));
                if plain.is_empty() {
                    plain = written.iter().map(|text| text.tokens.clone()).collect();
                }
                sum.identical += written.iter().zip(&plain).filter(|(text, plain)| text.tokens == **plain).count();
                sum.texts += written.len();
                // The first group warms caches and, for those who measure, the costs.
                if round > 0 || prompts.len() <= args.batch {
                    sum.seconds += seconds;
                    sum.cpu = cpu.map(|cpu| cpu + sum.cpu.unwrap_or(0.0));
                    sum.tokens += written.iter().map(|text| text.tokens.len() - 1).sum::<usize>();
                    written.iter().for_each(|text| add(&mut sum.stats, &text.stats));
                }
            }
        }
        let base = (sums[0].tokens as f64 / sums[0].seconds, sums[0].cpu.map(|cpu| sums[0].tokens as f64 / cpu));
        let context = args.prompt_tokens + args.new;
        rows.extend(names.iter().zip(sums).zip(&draftings).map(|((draft, sum), drafting)| {
            let guesses = if *draft == Draft::None { 0 } else { args.max_draft };
            let ms = |tree| drafting.pass_ms(Pass { batch: args.batch, context, guesses, tree });
            row(set, draft, args.batch, sum, base, [ms(false), ms(true)])
        }));
    }
    if args.json {
        return output::json(&rows);
    }
    let cells = rows.iter().map(|row| {
        [
            format!("{:?}", row.set).to_lowercase(),
            row.draft.clone(),
            format!("{:.1}", row.tok_s),
            format!("{:.2}", row.speedup),
            row.cpu_speedup.map_or("".into(), |speedup| format!("{speedup:.2}")),
            format!("{:.2}", row.acceptance_length),
            format!("{:.2}", row.accepted as f64 / (row.drafted.max(1)) as f64),
            format!("{:.1} %", 100.0 * row.draft_ms / (row.draft_ms + row.verify_ms)),
            row.pass_ms.get(4).map_or("".into(), |with| format!("{:.2}", with / row.pass_ms[0])),
            format!("{}/{}", row.identical, row.texts),
        ]
    });
    output::line(output::table(
        [
            "prompts",
            "draft",
            "tok/s",
            "speed-up",
            "by cpu",
            "tokens/pass",
            "accepted",
            "drafting",
            "pass of 4",
            "same text",
        ],
        cells,
    ))
}

fn row(
    set: PromptSet,
    draft: &Draft,
    batch: usize,
    sum: Sum,
    base: (f64, Option<f64>),
    [pass_ms, tree_pass_ms]: [Vec<f64>; 2],
) -> Row {
    let rate = sum.tokens as f64 / sum.seconds;
    let share = |&(tried, right): &(u64, u64)| right as f64 / tried.max(1) as f64;
    Row {
        set,
        draft: draft.to_string(),
        batch,
        tok_s: rate,
        speedup: rate / base.0,
        cpu_speedup: sum.cpu.zip(base.1).map(|(cpu, base)| sum.tokens as f64 / cpu / base),
        acceptance_length: sum.stats.acceptance_length().unwrap_or(1.0),
        drafted: sum.stats.drafted,
        accepted: sum.stats.accepted,
        accepted_by_position: sum.stats.by_position.iter().map(share).collect(),
        draft_ms: sum.stats.draft_seconds * 1e3,
        verify_ms: sum.stats.verify_seconds * 1e3,
        pass_ms,
        tree_pass_ms,
        identical: sum.identical,
        texts: sum.texts,
    }
}

fn add(sum: &mut Stats, stats: &Stats) {
    sum.rounds += stats.rounds;
    sum.emitted += stats.emitted;
    sum.drafted += stats.drafted;
    sum.accepted += stats.accepted;
    sum.draft_seconds += stats.draft_seconds;
    sum.verify_seconds += stats.verify_seconds;
    sum.by_position.resize(sum.by_position.len().max(stats.by_position.len()), (0, 0));
    for ((tried, right), (more, also)) in sum.by_position.iter_mut().zip(&stats.by_position) {
        *tried += more;
        *right += also;
    }
}

/// Processor time of all threads so far, where the system tells it to the nanosecond.
fn cpu_seconds() -> Option<f64> {
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split_whitespace().next()?.parse::<f64>().ok()?;
    }
    Some(nanoseconds / 1e9)
}

/// Tokens of an excerpt that stand in a prompt.
const EXCERPT: usize = 16;

/// Prompts of a kind, evenly spaced in the text.
fn prompts(set: PromptSet, args: &BenchSpecdec, text: &[u32], vocab: usize, bos: Option<u32>) -> Vec<Vec<u32>> {
    let step = text.len().saturating_sub(args.prompt_tokens) / args.prompts.max(1);
    let mut rng = Cx::new(args.seed).rng("prompts");
    (0..args.prompts)
        .map(|i| {
            let passage = || &text[i * step..i * step + args.prompt_tokens];
            let body: Vec<u32> = match set {
                PromptSet::Continue => passage().to_vec(),
                PromptSet::Copy => {
                    let once = &passage()[..2 * args.prompt_tokens / 3];
                    [once, &once[..args.prompt_tokens / 3]].concat()
                }
                PromptSet::Excerpt => {
                    let (passage, other) = passage().split_at(3 * args.prompt_tokens / 4);
                    // Where as many tokens follow as are written, if the passage is long enough for it.
                    let places = passage.len().saturating_sub(args.new + EXCERPT).max(1);
                    let start = rng.next_u32() as usize % places;
                    let excerpt = &passage[start..passage.len().min(start + EXCERPT)];
                    [passage, &other[excerpt.len().min(other.len())..], excerpt].concat()
                }
                PromptSet::Quote => {
                    let example = generate_example(Task::Copy, args.prompt_tokens, None, &mut rng);
                    return example.context.into_iter().chain(example.turns[0].question.iter().copied()).collect();
                }
                PromptSet::Random => (0..args.prompt_tokens).map(|_| rng.next_u32() % vocab as u32).collect(),
            };
            bos.into_iter().chain(body).collect()
        })
        .collect()
}
