//! `report`: pages from the figures of earlier runs.

use anyhow::{Context, Result};

use crate::cli::Report;
use crate::error::OrUser;
use crate::output;
use crate::report::{self, frontier, table};

/// Writes report.html of one run again, or compares several runs on one page.
pub(crate) fn run(args: &Report) -> Result<()> {
    let runs = frontier::collect(&args.dirs).or_user()?;
    if let ([run], [dir]) = (&runs[..], &args.dirs[..])
        && dir.join("report.json").is_file()
    {
        report::write(&run.report, dir)?;
        output::line(table::summary(&run.report, output::width()))?;
        output::line(format_args!("\n{}\n", table::modules(&run.report, output::width())))?;
        return output::line(format_args!("wrote {}", dir.join("report.html").display()));
    }
    for warning in frontier::warnings(&runs) {
        eprintln!("warning: {warning}");
    }
    output::line(frontier::table(&runs, output::width()))?;
    std::fs::write(&args.out, frontier::page(&runs)?)
        .with_context(|| format!("{}: cannot write the page", args.out.display()))?;
    output::line(format_args!("wrote {}", args.out.display()))
}
