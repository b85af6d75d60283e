//! Runs the binary as a user does: exit statuses, and what goes to which stream.

mod cli;
mod compression;
mod fixtures;
mod interruptions;
mod mistakes;
mod models;
mod reproduction;
mod speculation;
mod training;

use std::process::{Command, Output};

/// What a run of the binary left.
struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

/// Runs `xtask` with these arguments from the root of the workspace.
fn xtask(arguments: &[&str]) -> Run {
    Run::of(command(arguments).output().expect("the binary starts"))
}

/// `xtask` with these arguments, not yet started.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

impl Run {
    fn of(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Self { status: status.code().expect("not killed"), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Asserts success; returns standard output.
    #[track_caller]
    fn success(self) -> String {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self.stdout
    }

    /// Asserts success; returns the one JSON value on standard output.
    #[track_caller]
    fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.success()).expect("one JSON value")
    }

    /// Asserts a mistake of the user told in one line on stderr, with nothing on stdout; returns the line.
    #[track_caller]
    fn mistake(self) -> String {
        assert_eq!((self.status, self.stdout.as_str()), (2, ""), "{}", self.stderr);
        let line = self.stderr.trim_end();
        assert!(!line.contains('\n'), "more than one line: {line}");
        line.strip_prefix("error: ").unwrap_or_else(|| panic!("{line}")).to_string()
    }

    /// As [`Run::mistake`], after lines of progress and warnings.
    #[track_caller]
    fn late_mistake(mut self) -> String {
        self.stderr = self.stderr.lines().last().unwrap_or_default().into();
        self.mistake()
    }
}
