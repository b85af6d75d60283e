//! What is needed to go on after an interruption.
//!
//! A block is finished when its part is on disk and `state.json` names the next one; both appear by renaming, so a kill
//! at any moment leaves the last finished block.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::atomic::atomic_write;
use crate::compressed_tensors::Scheme;
use crate::error::{ModelError, Result};

/// What became of one projection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The block.
    pub block: usize,
    /// Name within the block.
    pub name: String,
    /// The stages that acted, in order; empty: left as it was.
    pub methods: Vec<String>,
    /// The format it is stored in.
    pub format: String,
    /// How it is quantised, if it is.
    pub scheme: Option<Scheme>,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `‖XW − XŴ‖ / ‖XW‖` over up to 512 evenly spaced calibration tokens; `None` if no token reached it.
    pub error: Option<f64>,
    /// Calibration tokens that reached it.
    pub tokens: u64,
    /// Weights that are not zero.
    pub nonzero: u64,
    /// Bytes on disk: codes, scales, zero points or floats.
    pub bytes: u64,
    /// Seconds spent in its methods.
    pub seconds: f64,
    /// Fallbacks and oddities.
    pub notes: Vec<String>,
}

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is nothing to go on from.
    #[error("{0}: no interrupted run to go on from; start it without --resume")]
    Absent(PathBuf),
    /// The file is not a state.
    #[error("{path}: not a state of this version ({reason}); start again with --force")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The run was another one.
    #[error(
        "{path}: the interrupted run differs in {what} (it had {before}, now {now}); give the same arguments, or start again with --force"
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
        /// In the interrupted run.
        before: String,
        /// In this run.
        now: String,
    },
}

/// What two runs must share for one to go on where the other stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) version: String,
    pub(super) checkpoint: String,
    pub(super) recipe: String,
    pub(super) calibration: String,
    pub(super) evaluation: String,
    pub(super) seed: u64,
    pub(super) device: String,
}

impl Identity {
    fn parts(&self) -> [(&'static str, String); 7] {
        [
            ("version", self.version.clone()),
            ("checkpoint", self.checkpoint.clone()),
            ("recipe", self.recipe.clone()),
            ("calibration text", self.calibration.clone()),
            ("evaluation text", self.evaluation.clone()),
            ("seed", self.seed.to_string()),
            ("device", self.device.clone()),
        ]
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) identity: Identity,
    /// The first block that is not finished.
    pub(super) next_block: usize,
    pub(super) records: Vec<LayerRecord>,
}

/// The text form of a hash, short enough for a message.
pub(super) fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl State {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, next_block: 0, records: Vec::new() }
    }

    pub(super) fn path(work: &Path) -> PathBuf {
        work.join("state.json")
    }

    pub(super) fn save(&self, work: &Path) -> Result<()> {
        let path = Self::path(work);
        let json =
            serde_json::to_vec_pretty(self).map_err(|error| ModelError::Input(format!("state of the run: {error}")))?;
        Ok(atomic_write(&path, &json)?)
    }

    /// The state of an interrupted run, if it is the same run.
    pub(super) fn load(work: &Path, identity: &Identity) -> Result<Self, StateError> {
        let path = Self::path(work);
        let Ok(text) = std::fs::read_to_string(&path) else {
            return Err(StateError::Absent(work.to_path_buf()));
        };
        let state: State = serde_json::from_str(&text)
            .map_err(|error| StateError::Unreadable { path: path.clone(), reason: error.to_string() })?;
        let differing = state.identity.parts().into_iter().zip(identity.parts()).find(|(a, b)| a.1 != b.1);
        match differing {
            None => Ok(state),
            Some(((what, before), (_, now))) => Err(StateError::Mismatch { path, what: what.into(), before, now }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_run_is_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity {
            version: "1".into(),
            checkpoint: "c".into(),
            recipe: "r".into(),
            calibration: "t".into(),
            evaluation: "e".into(),
            seed: 1,
            device: "flex".into(),
        };
        assert!(matches!(State::load(dir.path(), &identity), Err(StateError::Absent(_))));
        State { next_block: 3, ..State::new(identity.clone()) }.save(dir.path()).unwrap();
        assert_eq!(State::load(dir.path(), &identity).unwrap().next_block, 3);
        let error = State::load(dir.path(), &Identity { seed: 2, ..identity.clone() }).unwrap_err();
        assert!(error.to_string().contains("differs in seed (it had 1, now 2)"), "{error}");
        std::fs::write(State::path(dir.path()), "{").unwrap();
        assert!(matches!(State::load(dir.path(), &identity), Err(StateError::Unreadable { .. })));
    }
}
