//! Everything that must pass before a change goes in: cheap checks first, stop at the first failure.
//!
//! The steps share their builds. Features are unified over the packages that a command selects, so every step
//! that compiles the tensor crates selects the whole workspace with the same features.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{methods, tidy};

/// With this variable set, missing cargo tools are installed; without it their steps are skipped.
const INSTALL: &str = "KINDLING_CI_INSTALL";

/// How a step ended when it did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    /// Why it could not run.
    Skipped(String),
}

/// A name and what to do in the root of the workspace.
type Step = (&'static str, fn(&Path) -> Result<Outcome>);

const STEPS: [Step; 12] = [
    ("format", |root| cargo(root, "fmt --all --check", &[])),
    ("tidy", tidy),
    ("clippy", |root| cargo(root, "clippy --workspace --all-targets --locked -- -D warnings", &[])),
    ("core without burn", |root| cargo(root, "check -p kindling-core --no-default-features --locked", &[])),
    ("model without burn", |root| cargo(root, "check -p kindling-model --no-default-features --locked", &[])),
    ("docs", |root| {
        let warnings = [("RUSTDOCFLAGS", "-D warnings")];
        cargo(root, "doc --workspace --no-deps --locked", &warnings)
    }),
    ("tests", |root| cargo(root, "test --workspace --locked", &[])),
    ("benches once", |root| cargo(root, "test --workspace --bench * --locked", &[])),
    ("licences, bans, sources", licences),
    ("advisories", advisories),
    ("fuzz targets", fuzz_targets),
    ("kernels for GPUs", gpu_kernels),
];

/// When the steps began.
static BEGIN: OnceLock<Instant> = OnceLock::new();

/// The last step is not begun later than this: all steps together have 40 minutes.
const LATEST: Duration = Duration::from_secs(27 * 60);

/// Runs all steps. Says on standard error what happens and how long it took.
pub(crate) fn run() -> Result<()> {
    BEGIN.get_or_init(Instant::now);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies inside no workspace")?;
    run_steps(&STEPS, root)
}

fn run_steps(steps: &[Step], root: &Path) -> Result<()> {
    let begin = Instant::now();
    let mut lines = Vec::new();
    for (i, (name, step)) in steps.iter().enumerate() {
        eprintln!("\n[{}/{}] {name}", i + 1, steps.len());
        let begin = Instant::now();
        let outcome = step(root);
        let time = seconds(begin.elapsed());
        lines.push(match &outcome {
            Ok(Outcome::Passed) => format!("{time}  {name}"),
            Ok(Outcome::Skipped(why)) => format!("{time}  {name}: skipped, {why}"),
            Err(_) => format!("{time}  {name}: FAILED"),
        });
        if let Err(error) = outcome {
            eprintln!("\n{}", lines.join("\n"));
            let left = steps.len() - i - 1;
            return Err(error.context(format!("step `{name}` failed ({left} later steps not run)")));
        }
    }
    eprintln!("\n{}\n{}  all", lines.join("\n"), seconds(begin.elapsed()));
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:8.1} s", time.as_secs_f64())
}

/// Runs `cargo` with blank-separated arguments in `dir`.
fn cargo(dir: &Path, arguments: &str, variables: &[(&str, &str)]) -> Result<Outcome> {
    eprintln!("cargo {arguments}");
    let status = command(dir, arguments).envs(variables.iter().copied()).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo {arguments}` in {}: {status}", dir.display());
    }
    Ok(Outcome::Passed)
}

fn command(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments.split_whitespace()).current_dir(dir);
    command
}

fn tidy(root: &Path) -> Result<Outcome> {
    let violations = tidy::check(root, &methods::all())?;
    violations.iter().for_each(|violation| eprintln!("{violation}"));
    if !violations.is_empty() {
        bail!("{} broken invariants; `cargo xtask tidy` lists them", violations.len());
    }
    Ok(Outcome::Passed)
}

/// Runs `then` if the cargo subcommand `tool` is there or may be installed.
fn with_tool(root: &Path, tool: &str, then: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
    with_tool_or(root, tool, std::env::var_os(INSTALL).is_some(), then)
}

fn with_tool_or(root: &Path, tool: &str, install: bool, then: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
    let present = command(root, &format!("{tool} --version")).output().is_ok_and(|output| output.status.success());
    if !present && !install {
        return Ok(Outcome::Skipped(format!("cargo-{tool} is not installed (with {INSTALL}=1 it would be)")));
    }
    if !present {
        // An unoptimised tool is built several times faster and runs for a second.
        cargo(root, &format!("install cargo-{tool} --locked --debug"), &[])?;
    }
    then()
}

fn licences(root: &Path) -> Result<Outcome> {
    with_tool(root, "deny", || {
        // The whole lock file is checked, other platforms included: their crates must be there, too.
        cargo(root, "fetch --locked", &[])?;
        cargo(root, "deny --offline check licenses bans sources", &[])
    })
}

/// Known holes in dependencies. The list of them comes over the network; where there is none, this is skipped.
fn advisories(root: &Path) -> Result<Outcome> {
    with_tool(root, "deny", || {
        if let Err(error) = cargo(root, "deny fetch db", &[]) {
            return Ok(Outcome::Skipped(format!("the advisory database cannot be fetched ({error})")));
        }
        cargo(root, "deny --offline check advisories", &[])
    })
}

/// Fuzz targets must at least build. They need unstable compiler flags, hence the variable.
fn fuzz_targets(root: &Path) -> Result<Outcome> {
    with_tool(root, "fuzz", || {
        for krate in ["crates/model", "crates/learned-index", "crates/specdec"] {
            cargo(&root.join(krate), "fuzz build", &[("RUSTC_BOOTSTRAP", "1")])?;
        }
        Ok(Outcome::Passed)
    })
}

/// The kernels for GPUs on whatever Vulkan finds, a driver in software included. They compile burn once more, hence last.
fn gpu_kernels(root: &Path) -> Result<Outcome> {
    if BEGIN.get().is_some_and(|begin| begin.elapsed() > LATEST) {
        return Ok(Outcome::Skipped(format!("{} minutes are gone, and it takes eight more", LATEST.as_secs() / 60)));
    }
    let driver = || Path::new("/usr/share/vulkan/icd.d").read_dir().is_ok_and(|mut drivers| drivers.next().is_some());
    if !driver() {
        if std::env::var_os(INSTALL).is_none() {
            return Ok(Outcome::Skipped(format!(
                "there is no Vulkan driver (with {INSTALL}=1 mesa's would be installed)"
            )));
        }
        for arguments in ["update -qq", "install -y -qq mesa-vulkan-drivers"] {
            let mut apt = Command::new("apt-get");
            apt.args(arguments.split_whitespace()).env("DEBIAN_FRONTEND", "noninteractive");
            if !apt.status().is_ok_and(|status| status.success()) {
                return Ok(Outcome::Skipped(format!("there is no Vulkan driver, and `apt-get {arguments}` failed")));
            }
        }
    }
    let packages = "-p kindling-tensor-backend -p kindling-model --features kindling-tensor-backend/webgpu";
    cargo(root, &format!("test --profile swift {packages} --lib --tests --locked gpu"), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stops_and_is_named() {
        fn fine(root: &Path) -> Result<Outcome> {
            cargo(root, "--version", &[])
        }
        fn skipped(_: &Path) -> Result<Outcome> {
            Ok(Outcome::Skipped("no reason".into()))
        }
        fn broken(root: &Path) -> Result<Outcome> {
            cargo(root, "no-such-command", &[])
        }
        fn never(_: &Path) -> Result<Outcome> {
            panic!("ran after a failure")
        }
        let root = std::env::current_dir().unwrap();
        assert!(run_steps(&[("a", fine), ("b", skipped)], &root).is_ok());
        let error = run_steps(&[("a", fine), ("b", broken), ("c", never)], &root).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("step `b` failed (1 later steps not run)") && error.contains("no-such-command"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_tool_skips_its_step() {
        let outcome =
            with_tool_or(Path::new("."), "surely-not-there", false, || panic!("ran without its tool")).unwrap();
        assert!(matches!(outcome, Outcome::Skipped(why) if why.contains("cargo-surely-not-there")));
    }
}
