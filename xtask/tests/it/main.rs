//! Runs the binary as a user does: exit statuses, and what goes to which stream.

mod cli;

use std::process::{Command, Output};

/// What a run of the binary left.
struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

/// Runs `xtask` with these arguments from the root of the workspace.
fn xtask(arguments: &[&str]) -> Run {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).current_dir(root).output();
    let Output { status, stdout, stderr } = output.expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Run { status: status.code().expect("not killed"), stdout: text(stdout), stderr: text(stderr) }
}

impl Run {
    /// Asserts a mistake of the user told in one line on stderr, with nothing on stdout; returns the line.
    #[track_caller]
    fn mistake(self) -> String {
        assert_eq!((self.status, self.stdout.as_str()), (2, ""), "{}", self.stderr);
        let line = self.stderr.trim_end();
        assert!(!line.contains('\n'), "more than one line: {line}");
        line.strip_prefix("error: ").unwrap_or_else(|| panic!("{line}")).to_string()
    }
}
