//! `bench`: speed on this machine, one subject per file.

mod index;

use anyhow::Result;

use crate::cli::Bench;

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Index(args) => index::run(args),
    }
}
