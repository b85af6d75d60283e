//! The model that ships with the source of this crate: small enough for a demonstration, and really trained.

use std::path::PathBuf;

/// The folder of a text model: a grouped-query Llama trained on public-domain novels. Its `evaluation.json` tells how well.
pub fn tiny() -> PathBuf {
    folder("tiny")
}

/// The folder of a model that answers generated long-context tasks (module `tasks`), where this version ships one.
pub fn tasks() -> Option<PathBuf> {
    let folder = folder("tasks");
    folder.join("config.json").exists().then_some(folder)
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}
