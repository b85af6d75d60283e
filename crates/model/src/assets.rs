//! The models that ship with the source of this crate: small enough for a demonstration, and really trained.

use std::path::PathBuf;

/// The folder of a text model: a grouped-query Llama trained on public-domain novels. Its `evaluation.json` tells how well.
pub fn tiny() -> PathBuf {
    folder("tiny")
}

/// The folder of a model that answers [generated long-context tasks](crate::tasks).
pub fn tasks() -> PathBuf {
    folder("tasks")
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}
