//! `random-checkpoint`: a model's size without its knowledge.

use anyhow::Result;
use kindling_core::Cx;
use kindling_model::ModelError;
use kindling_model::random::{config_of, random_checkpoint};

use crate::cli::RandomCheckpoint;
use crate::error::user;
use crate::report::format::{in_unit, unit};
use crate::{output, progress, signal};

pub(crate) fn run(args: &RandomCheckpoint) -> Result<()> {
    let (shape, dtype) = (args.shape.name(), args.dtype.dtype());
    let config = config_of(&shape, dtype)?;
    let format = args.weights.random();
    let out = args.out.display();
    if args.out.join("config.json").exists() {
        return Err(user(format!("{out} holds a checkpoint already: choose another folder with --out")));
    }
    let cx = Cx::new(args.seed).with_cancel(signal::cancel_flag()?).with_progress(progress::for_stderr());
    let bytes =
        random_checkpoint(&config, dtype, format, &args.out, args.max_shard_size.0, &cx).map_err(
            |error| match error {
                cancelled @ ModelError::Core(kindling_core::Error::Cancelled) => {
                    anyhow::Error::from(cancelled).context("stopped: run the same command again to go on")
                }
                other => other.into(),
            },
        )?;
    output::line(format_args!("wrote {} of random weights, shape {shape}, to {out}", in_unit(bytes, unit(bytes))))
}
