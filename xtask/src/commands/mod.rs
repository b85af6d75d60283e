//! One command per file.

mod doctor;
mod list;
mod report;
mod tidy;

use std::path::Path;

use anyhow::{Result, bail};
use kindling_tensor_backend::device::DeviceName;

use crate::cli::Command;

/// Runs a command on this device.
pub(crate) fn run(command: Command, device: DeviceName) -> Result<()> {
    match command {
        Command::List(args) => list::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        other => bail!("not wired yet: {other:?} on {device}"),
    }
}

/// The root of the workspace that this program was built from.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the driver is a folder of the workspace")
}
