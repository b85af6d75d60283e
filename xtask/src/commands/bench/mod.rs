//! `bench`: speed on this machine, one measurement per file.

mod draft;
mod index;
mod specdec;

use anyhow::Result;
use kindling_tensor_backend::device::DeviceName;

use crate::cli::{Bench, BenchCommand};

pub(crate) fn run(args: &Bench, device: DeviceName) -> Result<()> {
    match &args.command {
        BenchCommand::Index(args) => index::run(args),
        BenchCommand::Draft(args) => draft::run(args),
        BenchCommand::Specdec(args) => specdec::run(args, device),
    }
}
