//! `eval`: perplexity on a text.

use anyhow::Result;
use kindling_core::Cx;
use kindling_model::ModelFiles;
use kindling_model::evaluate::perplexity;
use kindling_tensor_backend::device::{DeviceName, device};

use crate::cli::Eval;
use crate::error::user;
use crate::report::format::{count, number};
use crate::{output, progress, tokens};

pub(crate) fn run(args: &Eval, device_name: DeviceName) -> Result<()> {
    let device = device(device_name)?;
    let files = ModelFiles::open(&args.model)?;
    let ids = tokens::tokenizer(&files)?.encode_document(&tokens::text(&args.text)?);
    let name = args.text.display();
    let ids = ids.map_err(|error| user(format!("{name}: {error}")))?;
    // A text that is too short is refused before the weights are read.
    kindling_model::evaluate::windows(&ids, args.window).map_err(|error| user(format!("{name}: {error}")))?;

    let cx = Cx::new(0).with_progress(progress::for_stderr());
    let model = super::load(&files, args.adapter.as_deref(), args.inputs, &device)?;
    cx.progress().begin("windows", (ids.len() / args.window) as u64);
    let found = perplexity(&model, &ids, args.window, |windows| cx.progress().advance(windows as u64))?;
    cx.progress().end();
    if args.json {
        return output::json(&found);
    }
    output::line(format_args!(
        "perplexity {} (mean {:.4} nats over {} of {} tokens, windows of {})",
        number(found.perplexity),
        found.mean_nll,
        count(found.scored as u64),
        count(found.tokens as u64),
        args.window
    ))
}
