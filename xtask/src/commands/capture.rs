//! `capture`: what a teacher says about a text, in a file.

use std::fs::File;
use std::io::{self, BufWriter};

use anyhow::{Context, Result};
use burn::tensor::s;
use kindling_core::{Cx, LanguageModel};
use kindling_distill::TokenWindows;
use kindling_distill::head::chunk_rows;
use kindling_distill::store::{Codec, Manifest, Record, StoreWriter, records};
use kindling_model::checkpoint::atomic::atomic_write_with;
use kindling_model::{Decoder, ModelFiles};
use kindling_tensor_backend::device::{DeviceName, device};
use serde_json::json;

use crate::cli::Capture;
use crate::error::{OrUser, user};
use crate::report::format::{count, in_unit, unit};
use crate::training::texts;
use crate::{output, progress, signal, tokens};

/// Below so many tokens a curve costs more than it saves.
const CURVE_FROM: usize = 25;

pub(crate) fn run(args: &Capture, device_name: DeviceName) -> Result<()> {
    let out = args.out.display();
    if args.out.exists() && !args.force {
        return Err(user(format!("{out} exists: choose another file with --out, or replace it with --force")));
    }
    let files = ModelFiles::open(&args.teacher)?;
    let tokenizer = tokens::tokenizer(&files)?;
    let (read, _) = texts::read(&args.text, &args.hold_out)?;
    let ids = texts::documents(&read, &tokenizer)?;
    let windows = TokenWindows::new(ids, args.length, args.seed)
        .with_context(|| format!("the text is shorter than one row of {} tokens", args.length))
        .or_user()?;
    let all = windows.per_pass() as usize;
    let rows = args.rows.unwrap_or(all);
    if rows > all {
        return Err(user(format!("--rows {rows}: the text has {all} rows of {} tokens", args.length)));
    }
    let teacher = Decoder::load(&files, &device(device_name)?)?;
    let manifest = Manifest {
        codec: codec(args, teacher.vocab_size())?,
        tokenizer: tokenizer.fingerprint().to_string(),
        teacher: args.teacher.display().to_string(),
        temperature: args.temperature,
        length: args.length,
        rows,
    };
    let cx = Cx::new(args.seed).with_cancel(signal::cancel_flag()?).with_progress(progress::for_stderr());
    let per_token = manifest.codec.record_bytes();
    cx.progress().begin("rows", rows as u64);
    // An error of ours travels through the file's own as it is.
    let mut failed = None;
    let written = atomic_write_with(&args.out, |file| {
        fill(file, &manifest, &windows, &teacher, &cx).map_err(|error| match error.downcast::<io::Error>() {
            Ok(error) => error,
            Err(error) => {
                failed = Some(error);
                io::Error::other("the teacher failed")
            }
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    written?;
    cx.progress().end();
    let size = std::fs::metadata(&args.out).with_context(|| out.to_string())?.len();
    if args.json {
        return output::json(&json!({
            "rows": rows, "length": args.length, "tokens": rows * args.length, "bytes": size, "bytes_per_token": per_token,
        }));
    }
    output::line(format_args!(
        "{} tokens, {per_token} bytes each, {} in all: {out}",
        count((rows * args.length) as u64),
        in_unit(size, unit(size))
    ))
}

fn codec(args: &Capture, vocabulary: usize) -> Result<Codec> {
    let k = args.k.min(vocabulary);
    let exact = args.exact.unwrap_or(if k < CURVE_FROM { k } else { 16 });
    if exact > k {
        return Err(user(format!("--exact {exact}: only {k} tokens are kept")));
    }
    if exact == k {
        return Ok(Codec::raw(vocabulary, k));
    }
    let mut codec = Codec { k, exact, ..Codec::recommended(vocabulary) };
    codec.terms.truncate(k - exact);
    Ok(codec)
}

fn fill(file: &mut File, manifest: &Manifest, windows: &TokenWindows, teacher: &Decoder, cx: &Cx) -> Result<()> {
    let mut writer = StoreWriter::new(BufWriter::new(file), manifest.clone()).or_user()?;
    let head = teacher.output()?;
    for row in 0..manifest.rows {
        cx.check()?;
        let ids = windows.window(row as u64).ids;
        let states = teacher.states(std::slice::from_ref(&ids[..manifest.length].to_vec()))?;
        let [_, tokens, hidden] = states.dims();
        let states = states.reshape([tokens, hidden]);
        let chunk = chunk_rows(tokens, teacher.vocab_size(), hidden);
        let mut kept: Vec<Record> = Vec::with_capacity(tokens);
        for start in (0..tokens).step_by(chunk) {
            let rows = states.clone().slice(s![start..(start + chunk).min(tokens), ..]);
            kept.extend(records(head.logits(rows), manifest.codec.k, manifest.temperature).or_user()?);
        }
        writer.push(&ids, &kept).or_user()?;
        cx.progress().advance(1);
    }
    writer.finish().or_user()?;
    Ok(())
}
