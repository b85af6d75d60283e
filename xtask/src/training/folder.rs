//! Where a training run keeps its state: what it is a function of, and one folder per checkpoint, complete or absent, the
//! last two kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kindling_distill::Snapshot;
use kindling_distill::trainer::{Place, SavedTensor};
use kindling_model::checkpoint::atomic::atomic_write;
use kindling_model::checkpoint::{Checkpoint, DType, OutTensor, Writer, WriterOptions};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{OrUser, user};

const KEPT: usize = 2;
/// Holds everything that the weights of a run are a function of.
const IDENTITY: &str = "run.json";

/// Makes `out` ready for a run: empty, or with an earlier part of the same run and `resume`.
///
/// `identity` names what the run is a function of; another one cannot go on.
pub(crate) fn prepare(out: &Path, identity: &Value, resume: bool, force: bool) -> Result<()> {
    let (dir, path) = (out.display(), out.join(IDENTITY));
    let used = out.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if used && !path.exists() {
        return Err(user(format!("{dir} holds other files: choose another folder with --out")));
    }
    if used && resume {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string()).or_user()?;
        let earlier: Value =
            serde_json::from_str(&text).map_err(|error| user(format!("{}: {error}", path.display())))?;
        let changed = identity.as_object().into_iter().flatten().find(|(key, value)| earlier.get(key) != Some(value));
        return match changed {
            Some((key, _)) => {
                Err(user(format!("{dir} holds a run with another `{key}`: --resume needs the same as before")))
            }
            None => Ok(()),
        };
    }
    if used && !force {
        return Err(user(format!("{dir} holds a run: --resume goes on with it, --force starts anew")));
    }
    if used {
        fs::remove_dir_all(out).with_context(|| dir.to_string()).or_user()?;
    }
    fs::create_dir_all(out).with_context(|| dir.to_string()).or_user()?;
    Ok(atomic_write(path, format!("{identity:#}\n").as_bytes())?)
}

/// Takes back what [`prepare`] did, for a run that ends before it has begun.
pub(crate) fn abandon(out: &Path) {
    // Both fail where there is more to keep, and the error that led here is the one to report.
    let _ = fs::remove_file(out.join(IDENTITY)).and_then(|()| fs::remove_dir(out));
}

/// Hash of texts, for the identity of a run.
pub(crate) fn digest(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.as_ref().len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The checkpoints of a run.
pub(crate) struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    pub(crate) fn new(run: &Path) -> Self {
        Self { dir: run.join("checkpoints") }
    }

    /// Complete checkpoints, oldest first.
    fn complete(&self) -> Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(user(format!("cannot read {}: {error}", self.dir.display()))),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok())
                && path.join("place.json").exists()
            {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes a checkpoint; older ones than the last two go.
    pub(crate) fn write(&self, snapshot: &Snapshot) -> Result<()> {
        let written = self.write_complete(snapshot);
        written.context("a checkpoint could not be written, and --resume goes on from the last one that could")
    }

    fn write_complete(&self, snapshot: &Snapshot) -> Result<()> {
        let dir = self.dir.join(format!("step-{:08}", snapshot.place.step));
        if dir.join("place.json").exists() {
            return Ok(());
        }
        if dir.exists() {
            // The rest of an attempt that was cut off.
            fs::remove_dir_all(&dir)?;
        }
        let tensors = snapshot.tensors.iter();
        let tensors: Vec<OutTensor<'_>> = tensors
            .map(|t| OutTensor::from_f32(t.name.as_str(), DType::F32, &t.shape, &t.values))
            .collect::<Result<_, _>>()?;
        let mut writer = Writer::create(&dir, WriterOptions::default())?;
        writer.write_shard(&tensors)?;
        writer.finish()?;
        // This file is the last: with it the checkpoint is complete.
        atomic_write(dir.join("place.json"), serde_json::to_string(&snapshot.place)?.as_bytes())?;
        let complete = self.complete()?;
        for (_, old) in &complete[..complete.len().saturating_sub(KEPT)] {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        Ok(())
    }

    /// The newest complete checkpoint.
    pub(crate) fn newest(&self) -> Result<Option<Snapshot>> {
        let Some((_, dir)) = self.complete()?.pop() else { return Ok(None) };
        let place: Place = serde_json::from_str(&fs::read_to_string(dir.join("place.json"))?)
            .map_err(|error| user(format!("{}/place.json: {error}", dir.display())))?;
        let file = Checkpoint::open(&dir)?;
        let tensors = file
            .names()
            .map(|name| {
                let shape = file.info(name)?.shape.to_vec();
                Ok(SavedTensor { name: name.to_string(), shape, values: file.tensor_f32(name)? })
            })
            .collect::<Result<_>>()?;
        Ok(Some(Snapshot { tensors, place }))
    }
}
