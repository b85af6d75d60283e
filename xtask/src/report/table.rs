//! The report on a terminal: plain text, no colours, as wide as it is told.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::data::{Figures, Report, Share};
use super::format::{UNKNOWN, bytes_pair, change, count, number, percent, seconds, times};

/// One measure before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// What is measured, with its unit.
    pub label: &'static str,
    /// Of the dense model.
    pub before: String,
    /// Of the compressed model.
    pub after: String,
    /// How the second compares with the first.
    pub change: String,
}

/// The comparison of both models, measure by measure: what the terminal and the page both show.
pub(crate) fn rows(report: &Report) -> Vec<Row> {
    let Report { before, after, .. } = report;
    let mut rows = Vec::new();
    let mut row =
        |label, before: String, after: String, change: String| rows.push(Row { label, before, after, change });

    if report.protocol.is_some() {
        let change = change(before.perplexity, after.perplexity);
        row("Perplexity", number(before.perplexity), number(after.perplexity), change);
        let more = after.mean_nll - before.mean_nll;
        let more = if more.is_finite() { format!("{more:+.4}") } else { UNKNOWN.into() };
        row("Mean NLL", nats(before.mean_nll), nats(after.mean_nll), more);
    }
    if let Some(kl) = after.mean_kl {
        row("Mean KL from the dense model", String::new(), nats(kl), String::new());
    }

    let mut size = |label, of: fn(&Figures) -> u64| {
        let (large, small) = bytes_pair(of(before), of(after));
        row(label, large, small, smaller(of(before) as f64, of(after) as f64));
    };
    size("Size on disk", |figures| figures.bytes_on_disk);
    size("Weights in memory", |figures| figures.bytes_resident);

    let mut share = |label, show: fn(f64) -> String, of: fn(&Figures) -> Share, part: fn(Share) -> f64| {
        row(label, show(part(of(before))), show(part(of(after))), String::new());
    };
    share("Bits per weight", number, |f| f.bits_per_weight, |s| s.model);
    share("… of the targeted projections", number, |f| f.bits_per_weight, |s| s.targeted);
    share("Sparsity", percent, |f| f.sparsity, |s| s.model);
    share("… of the targeted projections", percent, |f| f.sparsity, |s| s.targeted);

    if let Some(measured) = &report.measured {
        let (before, after) = (measured.before, measured.after);
        let speed = |value: Option<f64>| value.map_or(UNKNOWN.into(), |v| format!("{} tok/s", number(v)));
        let mut speeds = |label, before: Option<f64>, after: Option<f64>| {
            if before.is_some() || after.is_some() {
                let ratio = before.zip(after).map_or(UNKNOWN.into(), |(a, b)| times(b / a));
                row(label, speed(before), speed(after), ratio);
            }
        };
        speeds("Prefill, batch 1", before.map(|s| s.prefill_tok_s), after.map(|s| s.prefill_tok_s));
        speeds("Decode, batch 1", before.map(|s| s.decode_tok_s), after.map(|s| s.decode_tok_s));
    }
    rows
}

fn nats(value: f64) -> String {
    if value.is_finite() { format!("{value:.4} nats") } else { UNKNOWN.into() }
}

fn smaller(before: f64, after: f64) -> String {
    if after <= before {
        format!("{} smaller", times(before / after))
    } else {
        format!("{} larger", times(after / before))
    }
}

/// The comparison as a table at most `width` columns wide.
pub(crate) fn summary(report: &Report, width: u16) -> String {
    let mut table = new_table(width, &["", "before", "after", "change"]);
    for row in rows(report) {
        table.add_row([row.label.into(), row.before, row.after, row.change]);
    }
    finish(table, &[1, 2, 3])
}

/// The tasks as a table at most `width` columns wide.
pub(crate) fn tasks(report: &Report, width: u16) -> String {
    let mut table = new_table(width, &["task", "context", "examples", "before", "after"]);
    for row in &report.tasks {
        let (before, after) = (percent(row.before), percent(row.after));
        table.add_row([row.task.clone(), count(row.context), count(row.examples), before, after]);
    }
    finish(table, &[1, 2, 3, 4])
}

/// The compressed projections as a table at most `width` columns wide.
pub(crate) fn modules(report: &Report, width: u16) -> String {
    let mut header = vec!["block", "module", "method", "format", "shape", "error", "tokens", "time"];
    let notes = report.modules.iter().any(|module| !module.notes.is_empty());
    if notes {
        header.push("notes");
    }
    let mut table = new_table(width, &header);
    for (i, module) in report.modules.iter().enumerate() {
        let mut row = vec![
            module.block.to_string(),
            module.name.clone(),
            module.methods.join(" + "),
            module.format.clone(),
            format!("{}×{}", module.rows, module.cols),
            number(module.error),
            count(module.tokens_seen),
            report.module_seconds(i).map_or(UNKNOWN.into(), seconds),
        ];
        if notes {
            row.push(module.notes.join("; "));
        }
        table.add_row(row);
    }
    finish(table, &[0, 4, 5, 6, 7])
}

/// One rule below the header, nothing else.
const RULED: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

pub(super) fn new_table(width: u16, header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(RULED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width)
        .set_header(header.iter().copied());
    table
}

pub(super) fn finish(mut table: Table, right: &[usize]) -> String {
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::super::data::example;
    use super::*;

    #[test]
    fn the_comparison_reads_well() {
        insta::assert_snapshot!(summary(&example(), 100), @r"
                                          before         after          change
    ───────────────────────────────────────────────────────────────────────────
     Perplexity                             5.74          6.07          +5.7 %
     Mean NLL                        1.7475 nats   1.8029 nats         +0.0554
     Mean KL from the dense model                  0.0487 nats
     Size on disk                        1.04 MB       0.21 MB   4.95× smaller
     Weights in memory                   1.04 MB       0.22 MB   4.70× smaller
     Bits per weight                       32.00          6.46
     … of the targeted projections         32.00          4.41
     Sparsity                              0.0 %        32.1 %
     … of the targeted projections         0.0 %        36.6 %
     Prefill, batch 1                 5210 tok/s    4987 tok/s          0.957×
     Decode, batch 1                 812.0 tok/s    1093 tok/s           1.35×
    ");
    }

    #[test]
    fn a_narrow_terminal_wraps_and_nothing_is_wider() {
        let table = summary(&example(), 60);
        assert!(table.lines().all(|line| line.chars().count() <= 60), "{table}");
        insta::assert_snapshot!(table, @r"
                           before         after          change
    ────────────────────────────────────────────────────────────
     Perplexity              5.74          6.07          +5.7 %
     Mean NLL         1.7475 nats   1.8029 nats         +0.0554
     Mean KL from                   0.0487 nats
     the dense
     model
     Size on disk         1.04 MB       0.21 MB   4.95× smaller
     Weights in           1.04 MB       0.22 MB   4.70× smaller
     memory
     Bits per               32.00          6.46
     weight
     … of the               32.00          4.41
     targeted
     projections
     Sparsity               0.0 %        32.1 %
     … of the               0.0 %        36.6 %
     targeted
     projections
     Prefill, batch    5210 tok/s    4987 tok/s          0.957×
     1
     Decode, batch    812.0 tok/s    1093 tok/s           1.35×
     1
    ");
    }

    #[test]
    fn the_projections_read_well() {
        let mut report = example();
        report.modules.truncate(7);
        insta::assert_snapshot!(modules(&report, 120), @r"
     block   module             method         format          shape    error   tokens     time   notes
    ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
         0   self_attn.q_proj   gptq           int4 g64        64×64   0.0410   32 768   0.05 s
         0   self_attn.k_proj   gptq           int4 g64        32×64   0.0380   32 768   0.06 s
         0   self_attn.v_proj   gptq           int4 g64        32×64   0.0620   32 768   0.07 s
         0   self_attn.o_proj   gptq           int4 g64        64×64   0.0710   32 768   0.08 s
         0   mlp.gate_proj      wanda + gptq   int4 g64 2:4   172×64    0.118   32 768   0.09 s
         0   mlp.up_proj        wanda + gptq   int4 g64 2:4   172×64    0.124   32 768   0.10 s
         0   mlp.down_proj      wanda + gptq   int4 g64 2:4   64×172    0.139   32 768   0.11 s   the last group of a row
                                                                                                  has 44 inputs
    ");
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let mut report = example();
        report.measured = None;
        report.protocol = None;
        report.after.mean_kl = None;
        report.modules.iter_mut().for_each(|module| module.notes.clear());
        insta::assert_snapshot!(summary(&report, 100), @r"
                                      before     after          change
    ───────────────────────────────────────────────────────────────────
     Size on disk                    1.04 MB   0.21 MB   4.95× smaller
     Weights in memory               1.04 MB   0.22 MB   4.70× smaller
     Bits per weight                   32.00      6.46
     … of the targeted projections     32.00      4.41
     Sparsity                          0.0 %    32.1 %
     … of the targeted projections     0.0 %    36.6 %
    ");
        let modules = modules(&report, 120);
        assert!(!modules.contains("notes") && modules.contains(UNKNOWN), "{modules}");
    }
}
