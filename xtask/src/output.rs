//! Everything that goes to standard output goes through here.
//!
//! `println!` panics when the reader has gone (`xtask list | head -1`); these return the error, and the
//! caller of [`crate::error::exit`] leaves quietly.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

/// Prints a line.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Prints the one JSON value of a command.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Rows under headings, without lines around them.
pub(crate) fn table<const COLUMNS: usize>(
    headings: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(headings);
    table.add_rows(rows);
    table
}

/// How wide tables may be: `COLUMNS` where the shell exports it, else a common width.
pub(crate) fn width() -> u16 {
    std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(100)
}
