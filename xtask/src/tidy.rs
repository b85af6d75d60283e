//! The invariants of the workspace that the compiler does not see, each one small function.
//!
//! | file | what it checks |
//! | --- | --- |
//! | `manifests` | who may depend on whom, and that lints are inherited |
//! | `sources` | `unsafe`, backends, printing, length, leftovers, documentation |
//! | `methods` | one method, one file, one entry, one line in the README |
//! | `workspace` | reads all that, with comments and strings told apart from code |

mod manifests;
mod methods;
mod sources;
mod workspace;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use kindling_core::MethodEntry;

use workspace::Workspace;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// File, relative to the root of the workspace.
    pub(crate) path: String,
    /// Line, from 1, where there is one to point at.
    pub(crate) line: Option<usize>,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Violation {
    fn at(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.into(), line: Some(line), message: message.into() }
    }

    fn of(path: &str, message: impl Into<String>) -> Self {
        Self { path: path.into(), line: None, message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.message),
            None => write!(f, "{}: {}", self.path, self.message),
        }
    }
}

/// All broken invariants of the workspace at `root`, whose crates list `entries`; sorted by place.
pub(crate) fn check(root: &Path, entries: &[&MethodEntry]) -> Result<Vec<Violation>> {
    let workspace = Workspace::read(root)?;
    let mut found = Vec::new();
    for krate in &workspace.crates {
        found.extend(manifests::arrows_point_one_way(krate));
        found.extend(manifests::core_stays_small(krate));
        found.extend(manifests::lints_are_inherited(krate));
        found.extend(sources::root_is_documented(krate));
        found.extend(methods::list_matches_files(krate));
        for source in &krate.sources {
            found.extend(sources::unsafe_stays_home(source));
            found.extend(sources::backends_stay_home(source));
            found.extend(sources::only_the_driver_prints(source));
            found.extend(sources::length_has_a_reason(source));
            found.extend(sources::nothing_is_left_over(source));
        }
    }
    found.extend(methods::readme_is_current(workspace.readme.as_deref(), entries));
    found.sort();
    Ok(found)
}

/// Rewrites what can be derived, the method table of the README. Whether something changed.
pub(crate) fn fix(root: &Path, entries: &[&MethodEntry]) -> Result<bool> {
    let path = root.join("README.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let Some(current) = methods::with_table(&text, entries) else { return Ok(false) };
    if current == text {
        return Ok(false);
    }
    std::fs::write(&path, current).with_context(|| format!("{}: cannot write", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let found = check(root, &crate::methods::all()).unwrap();
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }

    #[test]
    fn a_made_up_workspace_is_read_checked_and_fixed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "crates/prune/Cargo.toml",
            "[package]\nname = \"kindling-prune\"\n[dependencies]\nkindling-quant = \"1\"\n",
        );
        write("crates/prune/src/lib.rs", "//! Docs.\nfn f() { println!(); }\n");
        write("crates/prune/target/lib.rs", "not looked at");
        write("README.md", "# Title\n\n<!-- methods:begin -->\nold\n<!-- methods:end -->\n\nMore.\n");

        let found: Vec<String> = check(dir.path(), &[]).unwrap().iter().map(ToString::to_string).collect();
        let begins =
            ["README.md:3: ", "crates/prune/Cargo.toml: ", "crates/prune/Cargo.toml: ", "crates/prune/src/lib.rs:2: "];
        assert_eq!(found.len(), begins.len(), "{found:?}");
        assert!(found.iter().zip(begins).all(|(line, begin)| line.starts_with(begin)), "{found:?}");

        assert!(fix(dir.path(), &[]).unwrap());
        assert!(!fix(dir.path(), &[]).unwrap());
        assert!(check(dir.path(), &[]).unwrap().iter().all(|violation| violation.path != "README.md"));
    }
}
