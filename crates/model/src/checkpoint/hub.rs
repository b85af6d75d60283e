//! Models in the Hugging Face cache: found by id, never downloaded, never changed.
//!
//! The cache keeps `models--org--name/refs/<revision>` (the text of a commit hash) and
//! `models--org--name/snapshots/<commit>/<file>` (links to `blobs`). A blob whose download stopped ends in
//! `.incomplete`.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{CheckpointError, Result};

/// Looks up an environment variable; [`process_env`] is the real one, tests pass a map.
pub type Env<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// The environment of this process.
pub fn process_env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// A model's name on the hub with a revision, `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`, or `name` alone for the few models without an organisation.
    pub repo: String,
    /// A branch, tag or commit hash; `main` if the id names none.
    pub revision: String,
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.revision)
    }
}

impl HubId {
    /// Reads `org/name` or `org/name@revision`; `None` if the text cannot be an id.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let word = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
                && part.bytes().any(|byte| byte != b'.')
                && !part.contains("..")
        };
        let fits = repo.split('/').count() <= 2
            && repo.split('/').all(word)
            && !repo.contains("--")
            && revision.split('/').all(word);
        fits.then(|| HubId { repo: repo.into(), revision: revision.into() })
    }

    /// The folder of the snapshot in the cache that the environment names.
    ///
    /// # Errors
    /// The model or the revision is not in the cache; the error lists what was looked at.
    pub(super) fn snapshot(&self, env: &Env<'_>) -> Result<PathBuf> {
        let not_cached = |reason: String, tried| CheckpointError::NotCached { id: self.clone(), reason, tried };
        let Some(root) = cache_root(env) else {
            let reason = "neither HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME nor HOME is set".to_owned();
            return Err(not_cached(reason, Vec::new()));
        };
        let model = root.join(format!("models--{}", self.repo.replace('/', "--")));
        if !model.is_dir() {
            return Err(not_cached("there is no folder for it".into(), vec![model]));
        }
        let reference = model.join("refs").join(&self.revision);
        let direct = model.join("snapshots").join(&self.revision);
        if let Ok(commit) = fs::read_to_string(&reference) {
            let commit = commit.trim();
            if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                let reason = format!("`{}` holds `{commit}` instead of a commit hash", reference.display());
                return Err(not_cached(reason, vec![reference]));
            }
            let snapshot = model.join("snapshots").join(commit);
            return match snapshot.is_dir() {
                true => Ok(snapshot),
                false => Err(not_cached(format!("the snapshot {commit} is missing"), vec![reference, snapshot])),
            };
        }
        if direct.is_dir() {
            return Ok(direct);
        }
        let mut reason = format!("there is no revision `{}`", self.revision);
        let others = file_names(&model.join("snapshots"));
        if !others.is_empty() {
            reason += &format!(", only the snapshots {} (usable as {}@<hash>)", others.join(", "), self.repo);
        }
        Err(not_cached(reason, vec![reference, direct]))
    }

    /// What an error about a file missing from a snapshot becomes: an unfinished download, with its traces.
    pub(super) fn incomplete(&self, snapshot: &Path, error: CheckpointError) -> CheckpointError {
        let mut reason = match error {
            CheckpointError::MissingShard { shard, .. } => format!("the snapshot lacks the shard `{shard}`"),
            CheckpointError::NoWeights { hint, .. } => {
                format!("the snapshot holds neither model.safetensors.index.json nor model.safetensors{hint}")
            }
            other => return other,
        };
        // snapshots/<commit> lies two folders below the one that holds the blobs.
        let blobs = snapshot.ancestors().nth(2).unwrap_or(snapshot).join("blobs");
        let unfinished: Vec<_> = file_names(&blobs).into_iter().filter(|name| name.ends_with(".incomplete")).collect();
        if !unfinished.is_empty() {
            reason += &format!(", and the download of {} is unfinished", unfinished.join(", "));
        }
        CheckpointError::NotCached { id: self.clone(), reason, tried: vec![snapshot.to_owned()] }
    }
}

/// The root of the cache: the first variable that is set decides, also where its folder does not exist.
fn cache_root(env: &Env<'_>) -> Option<PathBuf> {
    let home = || env("HOME").or_else(|| env("USERPROFILE")).map(PathBuf::from);
    let var = |name: &str, below: &str| {
        let path = PathBuf::from(env(name).filter(|value| !value.is_empty())?);
        let path = match (path.strip_prefix("~"), home()) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path,
        };
        Some(path.join(below))
    };
    var("HF_HUB_CACHE", "")
        .or_else(|| var("HUGGINGFACE_HUB_CACHE", ""))
        .or_else(|| var("HF_HOME", "hub"))
        .or_else(|| var("XDG_CACHE_HOME", "huggingface/hub"))
        .or_else(|| home().map(|home| home.join(".cache/huggingface/hub")))
}

/// The sorted names in a folder; none if it cannot be read.
pub(super) fn file_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_an_optional_revision() {
        let id = |text| HubId::parse(text).map(|id| (id.repo, id.revision));
        let pair = |repo: &str, revision: &str| Some((repo.to_owned(), revision.to_owned()));
        assert_eq!(id("org/name"), pair("org/name", "main"));
        assert_eq!(id("gpt2@refs/pr/1"), pair("gpt2", "refs/pr/1"));
        assert_eq!(id("Org-1/na_me.v2@0a1b"), pair("Org-1/na_me.v2", "0a1b"));
        for bad in ["", "a/b/c", "../x", "/abs/path", "a/..", "a@", "a@../x", "a@/x", "a b", "a--b/c", "./a", "a\\b"] {
            assert_eq!(HubId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_first_variable_that_is_set_decides() {
        let vars = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "~/b", "/home/me/b"),
            ("HF_HOME", "/c", "/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/home/me", "/home/me/.cache/huggingface/hub"),
        ];
        for first in 0..vars.len() {
            let env = |name: &str| {
                vars[first..].iter().find(|(var, ..)| *var == name).map(|(_, value, _)| OsString::from(value))
            };
            assert_eq!(cache_root(&env).unwrap(), Path::new(vars[first].2));
        }
        assert_eq!(cache_root(&|_| None), None);
        assert_eq!(cache_root(&|name| (name == "HF_HOME").then(OsString::new)), None);
    }
}
