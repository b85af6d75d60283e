//! Other programs, run as scripts of `benches/peers`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use kindling_model::ModelFiles;
use serde::{Deserialize, Serialize};

use super::subject::Runs;
use crate::cli::{Peer, Subject};
use crate::commands::workspace;
use crate::error::user;

/// What a peer reached, in tokens per second.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PeerRuns {
    pub(super) name: String,
    pub(super) tok_s: Runs,
    /// Ours by theirs.
    pub(super) ratio: f64,
}

#[derive(Deserialize)]
struct Printed {
    tok_s: Vec<f64>,
}

/// Runs the peer that was asked for; `work` are the arguments that say what it does.
pub(super) fn run(
    peer: &Peer,
    subject: &Subject,
    files: &ModelFiles,
    work: &[String],
    ours: f64,
) -> Result<Option<PeerRuns>> {
    let Some(name) = &peer.peer else { return Ok(None) };
    if !["q4", "q8"].contains(&subject.weights.format.as_str()) {
        return Err(user(format!("{name} has the formats q4 and q8, not {}", subject.weights.format)));
    }
    let script = workspace().join("benches/peers/llamacpp_speed.py");
    let output = Command::new(&peer.python)
        .arg(&script)
        .arg("--config")
        .arg(files.dir().join("config.json"))
        .args(["--format", &subject.weights.format])
        .args(["--threads", &rayon::current_num_threads().to_string()])
        .args(["--repeats", &subject.repeats.to_string()])
        .args(work)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| {
            user(format!("{}: {error}: name the Python of the peer with --python", peer.python.display()))
        })?;
    if !output.status.success() {
        return Err(user(format!("{} ended with {}: its head says what it needs", script.display(), output.status)));
    }
    let printed: Printed = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{} printed: {}", script.display(), String::from_utf8_lossy(&output.stdout)))?;
    if printed.tok_s.is_empty() {
        return Err(user(format!("{} measured nothing", script.display())));
    }
    let tok_s = Runs::of(printed.tok_s);
    let ratio = ours / tok_s.mean;
    Ok(Some(PeerRuns { name: name.clone(), tok_s, ratio }))
}

/// Its line in a table.
pub(super) fn line(peer: &Option<PeerRuns>) -> Option<[String; 2]> {
    peer.as_ref().map(|peer| [peer.name.clone(), format!("{}; ratio {:.2}", peer.tok_s.show("tok/s"), peer.ratio)])
}
