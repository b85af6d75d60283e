//! `bench`: speed on this machine, one measurement per file.

mod decode;
mod draft;
mod index;
mod load;
mod matmul;
mod peer;
mod prefill;
mod specdec;
mod subject;

use anyhow::Result;
use kindling_tensor_backend::device::DeviceName;

use crate::cli::{Bench, BenchCommand};

pub(crate) fn run(args: &Bench, device: DeviceName) -> Result<()> {
    match &args.command {
        BenchCommand::Decode(args) => decode::run(args, device),
        BenchCommand::Prefill(args) => prefill::run(args, device),
        BenchCommand::Load(args) => load::run(args, device),
        BenchCommand::Matmul(args) => matmul::run(args, device),
        BenchCommand::Index(args) => index::run(args),
        BenchCommand::Draft(args) => draft::run(args),
        BenchCommand::Specdec(args) => specdec::run(args, device),
    }
}
