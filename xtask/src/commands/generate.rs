//! `generate`: go on from a prompt.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};
use kindling_model::ModelFiles;
use kindling_model::chat::{ChatTemplate, RenderOptions, message};
use kindling_model::generate::{Event, Request, generate};
use kindling_model::sampling::SamplingConfig;
use kindling_model::tokenizer::Tokenizer;
use kindling_tensor_backend::device::{DeviceName, device};
use serde::Serialize;

use super::named_model;
use crate::cli::Generate;
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
    let mut completions = generate(&model, Some(&tokenizer), std::slice::from_ref(&request), |event| {
        match event {
            Event::Prefilled => prefilled = Some(start.elapsed().as_secs_f64()),
            Event::Text(_, text) if !args.json => {
                unprinted = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
            }
            Event::Text(..) | Event::Step(_) => {}
        }
        let stop = unprinted.is_some() || cancel.load(Ordering::Relaxed);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    drop(out);
    if let Some(error) = unprinted {
        return Err(error.into());
    }
    if !args.json {
        return output::line("");
    }
    let completion = completions.pop().context("one request gives one completion")?;
    let rate = |count: usize, seconds: f64| Some(count as f64 / seconds).filter(|rate| rate.is_finite() && count > 0);
    output::json(&Generated {
        prefill_tok_s: prefilled.and_then(|prefill| rate(prompt_ids.len(), prefill)),
        decode_tok_s: prefilled.and_then(|prefill| rate(completion.ids.len().saturating_sub(1), seconds - prefill)),
        prompt_ids,
        ids: completion.ids,
        text: completion.text,
    })
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
