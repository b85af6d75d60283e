//! `generate`: go on from a prompt.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};
use kindling_model::ModelFiles;
use kindling_model::chat::{ChatTemplate, RenderOptions, message};
use kindling_model::generate::{Completion, Event, Growing, Request, generate};
use kindling_model::sampling::{Sampler, SamplingConfig};
use kindling_model::tokenizer::Tokenizer;
use kindling_specdec::Stats;
use kindling_tensor_backend::device::{DeviceName, device};
use serde::Serialize;

use super::named_model;
use crate::cli::Generate;
use crate::drafting::{Draft, Drafting};
use crate::error::{OrUser, user};
use crate::{output, signal, tokens};

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct Generated {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    text: String,
    prefill_tok_s: Option<f64>,
    /// Of the tokens after the first, which the prefill gives; `null` if there are none.
    decode_tok_s: Option<f64>,
    #[serde(flatten)]
    drafting: Option<Guessed>,
}

/// What guessing was worth, as `--json` prints it.
#[derive(Serialize)]
struct Guessed {
    /// Tokens per pass of the model; `null` without a pass after the prompt's.
    acceptance_length: Option<f64>,
    drafted: u64,
    accepted: u64,
    /// The share of guesses at each depth that were right with all before them.
    accepted_by_position: Vec<f64>,
    draft_ms: f64,
    verify_ms: f64,
}

impl Guessed {
    fn of(stats: &Stats) -> Self {
        let share = |&(tried, right): &(u64, u64)| right as f64 / tried.max(1) as f64;
        Self {
            acceptance_length: stats.acceptance_length(),
            drafted: stats.drafted,
            accepted: stats.accepted,
            accepted_by_position: stats.by_position.iter().map(share).collect(),
            draft_ms: stats.draft_seconds * 1e3,
            verify_ms: stats.verify_seconds * 1e3,
        }
    }

    fn line(&self) -> String {
        format!(
            "{:.2} tokens per pass, {} of {} guesses accepted, guessing {:.1} ms, verifying {:.1} ms",
            self.acceptance_length.unwrap_or(1.0),
            self.accepted,
            self.drafted,
            self.draft_ms,
            self.verify_ms
        )
    }
}

pub(crate) fn run(args: &Generate, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let files = ModelFiles::open(named_model(&args.model))?;
    let tokenizer = tokens::tokenizer(&files)?;
    let prompt_ids = prompt(args, &files, &tokenizer)?;
    let sampling = SamplingConfig {
        temperature: args.temperature as f32,
        top_k: args.top_k,
        top_p: args.top_p as f32,
        min_p: args.min_p as f32,
        repetition_penalty: args.repetition_penalty as f32,
        seed: args.seed,
    };
    sampling.validate().or_user()?;
    let request = Request {
        id: 0,
        prompt: prompt_ids.clone(),
        sampling,
        max_new_tokens: args.max_new_tokens,
        eos: if args.ignore_eos { Vec::new() } else { tokenizer.eos_ids().to_vec() },
        stop: args.stop.clone(),
    };

    let model = super::load(&files, args.adapter.as_deref(), args.inputs, &device)?;
    let cancel = signal::cancel_flag()?;
    let mut out = std::io::stdout().lock();
    let (start, mut prefilled, mut unprinted) = (Instant::now(), None, None);
    let mut each = |event: Event| {
        match event {
            Event::Prefilled => prefilled = Some(start.elapsed().as_secs_f64()),
            Event::Text(_, text) if !args.json => {
                unprinted = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
            }
            Event::Text(..) | Event::Step(_) => {}
        }
        let stop = unprinted.is_some() || cancel.load(Ordering::Relaxed);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let (completion, guessed) = if args.draft == Draft::None {
        let completions = generate(&model, Some(&tokenizer), std::slice::from_ref(&request), each)?;
        (completions.into_iter().next().context("one request gives one completion")?, None)
    } else {
        let mut drafting = Drafting::new(&args.draft, Arc::new(model), &tokenizer, &device)?;
        let (completion, stats) = with_guesses(&mut drafting, args.max_draft, &request, &tokenizer, &mut each)?;
        (completion, Some(Guessed::of(&stats)))
    };
    let seconds = start.elapsed().as_secs_f64();
    drop(out);
    if let Some(error) = unprinted {
        return Err(error.into());
    }
    if !args.json {
        output::line("")?;
        return guessed.map_or(Ok(()), |guessed| output::line(guessed.line()));
    }
    let rate = |count: usize, seconds: f64| Some(count as f64 / seconds).filter(|rate| rate.is_finite() && count > 0);
    output::json(&Generated {
        prefill_tok_s: prefilled.and_then(|prefill| rate(prompt_ids.len(), prefill)),
        decode_tok_s: prefilled.and_then(|prefill| rate(completion.ids.len().saturating_sub(1), seconds - prefill)),
        prompt_ids,
        ids: completion.ids,
        text: completion.text,
        drafting: guessed,
    })
}

/// The text of `request`, with a drafter at work.
fn with_guesses(
    drafting: &mut Drafting,
    guesses: usize,
    request: &Request,
    tokenizer: &Tokenizer,
    each: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<(Completion, Stats)> {
    let mut growing = Growing::new(request, Some(tokenizer))?;
    let asked = kindling_specdec::Request {
        id: request.id,
        prompt: request.prompt.clone(),
        sampler: Sampler::new(request.sampling.clone()).or_user()?,
        max_new_tokens: request.max_new_tokens,
        ends: request.eos.clone(),
    };
    let (mut failed, mut first) = (None, true);
    let written = drafting.write(&[asked], guesses, |_, tokens| {
        let mut flow = if std::mem::take(&mut first) { each(Event::Prefilled) } else { ControlFlow::Continue(()) };
        for &token in tokens {
            match growing.push(token) {
                Ok(Some(text)) => {
                    if each(Event::Text(0, text)).is_break() {
                        flow = ControlFlow::Break(());
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            // A stop text may lie before the last of the accepted tokens.
            if growing.finish().is_some() {
                return ControlFlow::Break(());
            }
        }
        if flow.is_continue() { each(Event::Step(1)) } else { flow }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    Ok((growing.into_completion(), written.into_iter().next().unwrap_or_default().stats))
}

/// The ids of the prompt, in the chat template if that is wanted.
fn prompt(args: &Generate, files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => tokens::text(file)?,
        (None, None) => return Err(user("give a text with --prompt or --prompt-file")),
    };
    if !args.chat {
        return tokenizer.encode(&text, true).or_user();
    }
    let template = ChatTemplate::open(files.dir()).or_user()?.ok_or_else(|| {
        user(format!("{} has no chat template: it is no chat model, leave out --chat", files.dir().display()))
    })?;
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let rendered = template.render(&[message("user", &text)], &options).or_user()?;
    // The template writes the special tokens itself.
    tokenizer.encode(&rendered, false).or_user()
}
