//! The losses of a run as an SVG file that stands alone and follows light and dark.

use anyhow::Result;

use super::run::LogLine;
use crate::report::chart;

/// Points that a curve has at most.
const POINTS: usize = 400;

const STYLE: &str = "<style>svg { background: #fff; } .fill-muted { fill: #667; } .stroke-muted { stroke: #667; } \
    .stroke-grid { stroke: #e4e4ea; } .stroke-accent { stroke: #c2410c; } .fill-none { fill: none; } \
    @media (prefers-color-scheme: dark) { svg { background: #16161a; } .fill-muted { fill: #a0a0b0; } \
    .stroke-muted { stroke: #a0a0b0; } .stroke-grid { stroke: #2c2c34; } .stroke-accent { stroke: #fb923c; } }</style>";

/// The running mean of the loss by tokens.
pub(crate) fn losses(lines: &[LogLine]) -> Result<Option<String>> {
    let stride = lines.len().div_ceil(POINTS).max(1);
    let points: Vec<(f64, f64)> =
        lines.iter().skip(stride / 2).step_by(stride).map(|line| (line.tokens as f64 / 1e6, line.mean_loss)).collect();
    let Some(svg) = chart::losses(&points)? else { return Ok(None) };
    let Some(open) = svg.find('>') else { return Ok(None) };
    let (tag, rest) = svg.split_at(open + 1);
    let tag = if tag.contains("xmlns") {
        tag.to_string()
    } else {
        tag.replacen("<svg", "<svg xmlns=\"http://www.w3.org/2000/svg\"", 1)
    };
    Ok(Some(format!("{tag}{STYLE}{rest}\n")))
}
