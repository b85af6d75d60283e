//! The driver: wires the crates of Kindling into commands. It alone prints, reads arguments and picks a device.
//!
//! | module | what it does |
//! | --- | --- |
//! | `cli` | what can be typed |
//! | `commands` | one command per file |
//! | `recipe` | reads a recipe and checks it against a model |
//! | `methods` | every method of every crate |
//! | `drafting` | what `--draft` names, and texts written with it |
//! | `tokens` | token ids from texts and files |
//! | `tasks` | accuracies on generated tasks |
//! | `memory` | the most memory that a piece of work took |
//! | `report` | report.json and the page that shows it |
//! | `training` | what the commands that train share |
//! | `tidy`, `ci` | the rules of the workspace, and everything that must pass |
//! | `error`, `output`, `progress`, `signal` | what the user sees, and Ctrl-C |

mod ci;
mod cli;
mod commands;
mod drafting;
mod error;
mod memory;
mod methods;
mod output;
mod progress;
mod recipe;
mod report;
mod signal;
mod tasks;
mod tidy;
mod tokens;
mod training;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, SHORT_HELP};

/// Tensors come and go by the hundred in a pass; the allocator of glibc takes a good part of the time of small models.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Some(command) = cli.command else {
        eprintln!("{SHORT_HELP}");
        return ExitCode::from(error::MISTAKE);
    };
    memory::keep_freed();
    error::guard(move || {
        log_to_stderr();
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        kindling_tensor_backend::device::set_threads(cli.threads.unwrap_or_else(cores))?;
        commands::run(command, cli.device)
    })
}

/// Warnings by default; `RUST_LOG=debug` shows more.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
