//! What may happen to the output folder. Nothing is ever removed that does not look like the result of a run.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kindling_model::compress::WORK_DIR;

use crate::cli::Compress;
use crate::error::user;

/// What there is, and so what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Folder {
    /// Nothing to lose: begin.
    Fresh,
    /// An earlier run that the user wants gone: clear it, then begin.
    Replace,
    /// An interrupted run: go on.
    Resume,
    /// A run that was interrupted after its last step: nothing is left to do.
    Finished,
}

impl Folder {
    /// Looks, and refuses what must not be touched; changes nothing. `inputs` are what the run reads.
    pub(super) fn look(out: &Path, inputs: &[PathBuf], args: &Compress) -> Result<Self> {
        let dir = out.display();
        if out.exists() && !out.is_dir() {
            return Err(user(format!("{dir} is a file: name a folder with --out")));
        }
        let names = names(out)?;
        let has = |name: &str| names.iter().any(|there| there == name);
        let state = is_interrupted(out);
        if args.resume {
            return match (state, has("report.json")) {
                (true, _) => Ok(Folder::Resume),
                (false, true) => Ok(Folder::Finished),
                // Stopped before its first step: there is nothing to go on from, and nothing to lose.
                (false, false) if names == [WORK_DIR] => Ok(Folder::Fresh),
                (false, false) => Err(user(format!(
                    "{dir}: there is no interrupted run to resume; leave out --resume, or check --out"
                ))),
            };
        }
        if names.is_empty() {
            return Ok(Folder::Fresh);
        }
        if !args.force {
            let hint = if state { ", --resume to go on with the interrupted run" } else { "" };
            return Err(user(format!(
                "{dir} exists and is not empty: choose another folder with --out, --force to replace it{hint}"
            )));
        }
        let weights = || names.iter().any(|name| name.ends_with(".safetensors"));
        if !(has(WORK_DIR) || has("report.json") || has("config.json") && weights()) {
            return Err(user(format!(
                "{dir} does not look like the result of a run, so --force does not clear it: choose another folder \
                 with --out"
            )));
        }
        if let Some(input) = inputs.iter().find(|input| inside(input, out)) {
            return Err(user(format!(
                "{dir} holds {}, which this run reads, so --force does not clear it: choose another folder with --out",
                input.display()
            )));
        }
        Ok(Folder::Replace)
    }

    /// Makes room.
    pub(super) fn prepare(self, out: &Path) -> Result<()> {
        if self == Folder::Replace {
            std::fs::remove_dir_all(out).with_context(|| format!("cannot clear {}", out.display()))?;
        }
        Ok(())
    }
}

/// Whether the folder holds a run that can go on.
pub(super) fn is_interrupted(out: &Path) -> bool {
    out.join(WORK_DIR).join("state.json").is_file()
}

/// Removes what only an unfinished run needs. What says that the run is unfinished goes first, so that a kill at any
/// moment leaves a folder that is either resumable or finished.
pub(super) fn finish(out: &Path) -> Result<()> {
    let work = out.join(WORK_DIR);
    let gone = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let removed =
        gone(std::fs::remove_file(work.join("state.json"))).and_then(|()| gone(std::fs::remove_dir_all(&work)));
    removed.with_context(|| format!("cannot remove {}", work.display()))
}

/// The names in a folder; none if it does not exist.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot list the folder", dir.display())),
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("{}: cannot list the folder", dir.display()))
}

/// Whether `path` exists and is `dir` or lies within it.
fn inside(path: &Path, dir: &Path) -> bool {
    matches!((path.canonicalize(), dir.canonicalize()), (Ok(path), Ok(dir)) if path.starts_with(&dir))
}
