//! Calibration and evaluation windows, from files or from the model itself.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Result;
use burn::tensor::Device;
use kindling_core::Cx;
use kindling_model::compress::{CalibrationSet, TokenWindows};
use kindling_model::generate::{Event, Request, generate};
use kindling_model::sampling::SamplingConfig;
use kindling_model::{Decoder, ModelError, ModelFiles};

use crate::cli::Compress;
use crate::error::user;
use crate::tokens::{self, Tokens};

/// The name of the calibration text that the model writes itself.
const SELF: &str = "self";
/// Texts that the model writes at a time.
const TOGETHER: usize = 32;
/// Tokens in an evaluation window: figures at one length can be compared.
const EVALUATION_WINDOW: usize = 256;

/// What a run reads.
pub(super) struct Texts {
    pub(super) set: CalibrationSet,
    /// What the report must say about them.
    pub(super) warnings: Vec<String>,
}

/// Reads, or lets the model write, everything.
pub(super) fn read(args: &Compress, files: &ModelFiles, device: &Device, cx: &Cx) -> Result<Texts> {
    let source = name_of(&args.calibration);
    let own = args.calibration.as_os_str() == SELF;
    let tokens = if own {
        Tokens::Rows(written_by_the_model(args, files, device, cx)?)
    } else {
        tokens::read(&args.calibration, files)?
    };
    let calibration = match &tokens {
        Tokens::Rows(rows) => TokenWindows::from_rows(&source, rows.clone())?,
        Tokens::Text(ids) => {
            within(&args.calibration, TokenWindows::sampled(&source, ids, args.window, args.windows, cx))?
        }
    };
    let mut warnings = Vec::new();
    if !own && matches!(tokens, Tokens::Text(_)) && calibration.rows.len() < args.windows {
        let (rows, wanted) = (calibration.rows.len(), args.windows);
        warnings.push(format!("{source} has {rows} windows of {} tokens, {wanted} were wanted", args.window));
    }
    let evaluation = match &args.eval {
        Some(path) => evaluation(args, path, name_of(path), &tokens::read(path, files)?)?,
        None => {
            let kind = if own { "text that the dense model wrote" } else { "the calibration text itself" };
            warnings.push(format!("the perplexities are of {kind}: --eval FILE measures on another text"));
            evaluation(args, &args.calibration, format!("{source} (in-sample)"), &tokens)?
        }
    };
    Ok(Texts { set: CalibrationSet { calibration, evaluation: Some(evaluation) }, warnings })
}

/// Windows of the size that `read` will give, without content: enough for a forecast. Rows of files are read.
pub(super) fn placeholder(args: &Compress, files: &ModelFiles) -> Result<CalibrationSet> {
    let blank = |count: usize, window: usize| TokenWindows::from_rows("", vec![vec![0; window]; count]);
    let shape = |path: &Path, count: usize, window: usize, limit: usize| -> Result<TokenWindows> {
        if path.as_os_str() != SELF && path.extension().is_some_and(|extension| extension == "safetensors") {
            let mut rows = tokens::rows(path)?;
            rows.truncate(limit);
            return Ok(TokenWindows::from_rows("", rows)?);
        }
        if path.as_os_str() != SELF {
            // Mistakes in the text should show before the work, and before a plan that could not be carried out.
            tokens::text(path)?;
            tokens::tokenizer(files)?;
        }
        Ok(blank(count.min(limit), window)?)
    };
    let calibration = shape(&args.calibration, args.windows, args.window, usize::MAX)?;
    let (path, count) = match &args.eval {
        Some(path) => (path, args.eval_windows),
        None => (&args.calibration, args.eval_windows),
    };
    let evaluation = Some(shape(path, count, evaluation_window(args), args.eval_windows)?);
    Ok(CalibrationSet { calibration, evaluation })
}

fn evaluation_window(args: &Compress) -> usize {
    args.window.min(EVALUATION_WINDOW)
}

fn evaluation(args: &Compress, path: &Path, source: String, tokens: &Tokens) -> Result<TokenWindows> {
    match tokens {
        Tokens::Text(ids) => {
            within(path, TokenWindows::consecutive(source, ids, evaluation_window(args), args.eval_windows))
        }
        Tokens::Rows(rows) => {
            let rows: Vec<Vec<u32>> = rows.iter().take(args.eval_windows).cloned().collect();
            within(path, TokenWindows::from_rows(source, rows))
        }
    }
}

/// A complaint about the content of a file, with its name.
fn within(path: &Path, windows: Result<TokenWindows, ModelError>) -> Result<TokenWindows> {
    windows.map_err(|error| user(format!("{}: {error}", path.display())))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Texts that the dense model samples at temperature 1, each from the beginning-of-text token on. A text that ends
/// early goes on with whatever the model says next, as packed training texts do.
fn written_by_the_model(args: &Compress, files: &ModelFiles, device: &Device, cx: &Cx) -> Result<Vec<Vec<u32>>> {
    let spec = files.spec();
    let Some(first) = spec.bos.or(spec.eos.first().copied()) else {
        return Err(user(
            "config.json names no token that begins a text, so the model cannot write its own calibration text: give \
             one with --calibration FILE",
        ));
    };
    let model = Decoder::load(files, device)?;
    let request = |id: usize| Request {
        id: id as u64,
        prompt: vec![first],
        sampling: SamplingConfig { temperature: 1.0, seed: args.seed, ..SamplingConfig::default() },
        max_new_tokens: args.window - 1,
        eos: Vec::new(),
        stop: Vec::new(),
    };
    let batches = args.windows.div_ceil(TOGETHER);
    cx.progress().begin("calibration text by the model", (batches * (args.window - 1)) as u64);
    let mut rows = Vec::with_capacity(args.windows);
    for batch in 0..batches {
        let ids = batch * TOGETHER..((batch + 1) * TOGETHER).min(args.windows);
        let requests: Vec<Request> = ids.map(request).collect();
        let texts = generate(&model, None, &requests, |event| {
            if let Event::Step(_) = event {
                cx.progress().advance(1);
            }
            if cx.check().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        cx.check().map_err(ModelError::from)?;
        rows.extend(texts.into_iter().map(|text| [vec![first], text.ids].concat()));
    }
    cx.progress().end();
    Ok(rows)
}
