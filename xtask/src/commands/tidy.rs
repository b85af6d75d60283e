//! `tidy`: the rules of the workspace that the compiler does not see.

use anyhow::Result;

use super::workspace;
use crate::cli::Tidy;
use crate::error::user;
use crate::{methods, output, tidy};

pub(crate) fn run(args: &Tidy) -> Result<()> {
    let methods = methods::all();
    if args.fix && tidy::fix(workspace(), &methods)? {
        output::line("README.md: rewrote the table of methods")?;
    }
    let violations = tidy::check(workspace(), &methods)?;
    for violation in &violations {
        output::line(violation)?;
    }
    match violations.len() {
        0 => output::line("tidy"),
        1 => Err(user("a rule of the workspace is broken: mend the line above")),
        count => Err(user(format!("rules of the workspace are broken in {count} places: mend the lines above"))),
    }
}
