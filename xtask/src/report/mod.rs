//! Reports: what a run cost and what it saved, as JSON, as text and as one self-contained page.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `data` | the figures, as `report.json` keeps them |
//! | `format` | numbers as text |
//! | `table` | tables for the terminal |
//! | `chart` | drawings, as SVG that takes its colours from the page |
//! | `html` | `report.html` |
//! | `frontier` | many runs side by side |

pub(crate) mod chart;
pub(crate) mod data;
pub(crate) mod format;
pub(crate) mod frontier;
pub(crate) mod html;
pub(crate) mod table;

use std::path::Path;

use anyhow::{Context, Result};

pub(crate) use data::Report;

/// Writes `report.json` and `report.html` into the folder `dir`.
pub(crate) fn write(report: &Report, dir: &Path) -> Result<()> {
    for (name, text) in [("report.json", report.to_json()?), ("report.html", html::page(report)?)] {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("{}: cannot write the report", path.display()))?;
    }
    Ok(())
}
