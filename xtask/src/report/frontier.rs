//! Many runs side by side: which of them are worth keeping.
//!
//! A run is worth keeping when no other run is at least as small and at least as good, and better in one of
//! both: it is Pareto-optimal. Perplexities compare only under one protocol on one model, so runs that were
//! measured otherwise are still listed, with a warning.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use askama::Template;

use super::chart::{self, Kind, Spot};
use super::data::{Figures, Report, Speed};
use super::format::{UNKNOWN, in_unit, number, percent, unit};
use super::table::{finish, new_table};

/// A report and the folder it came from.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The folder's name.
    pub name: String,
    /// Its report.
    pub report: Report,
}

/// The reports in `dirs` and in the folders directly inside them, in the order of their paths.
pub(crate) fn collect(dirs: &[PathBuf]) -> Result<Vec<Run>> {
    let mut paths = Vec::new();
    for dir in dirs {
        let mut found = false;
        let mut add = |dir: &Path| {
            let path = dir.join("report.json");
            found |= path.is_file();
            if path.is_file() && !paths.contains(&path) {
                paths.push(path);
            }
        };
        add(dir);
        let mut inside: Vec<PathBuf> = std::fs::read_dir(dir)
            .with_context(|| format!("{}: cannot list the folder", dir.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("{}: cannot list the folder", dir.display()))?;
        inside.sort();
        inside.iter().filter(|path| path.is_dir()).for_each(|path| add(path));
        if !found {
            bail!(
                "{}: no report.json here nor in a folder inside; give folders that `compress --out` wrote",
                dir.display()
            );
        }
    }
    let read = |path: PathBuf| {
        let dir = path.parent().unwrap_or(Path::new("."));
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let name =
            dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned());
        Ok(Run { name, report: Report::read(&path)? })
    };
    paths.into_iter().map(read).collect()
}

/// One line of the comparison.
#[derive(Debug, Clone)]
struct Line<'a> {
    name: String,
    kind: Kind,
    report: &'a Report,
    figures: &'a Figures,
    speed: Option<Speed>,
}

const HEADER: [&str; 7] = ["run", "perplexity", "KL", "size on disk", "bits/weight", "sparsity", "decode"];

impl Line<'_> {
    fn cells(&self, unit: (u64, &str)) -> [String; 6] {
        [
            number(self.figures.perplexity),
            self.figures.mean_kl.map_or(UNKNOWN.into(), number),
            in_unit(self.figures.bytes_on_disk, unit),
            number(self.figures.bits_per_weight.model),
            percent(self.figures.sparsity.model),
            self.speed.map_or(UNKNOWN.into(), |speed| format!("{} tok/s", number(speed.decode_tok_s))),
        ]
    }
}

/// Dense models once each and all runs, from the smallest to the largest.
fn lines(runs: &[Run]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for Run { report, .. } in runs {
        let known = lines.iter().any(|line| same_subject(line.report, report));
        if !known {
            let speed = report.measured.as_ref().and_then(|measured| measured.before);
            let name = format!("{} (dense)", report.model.name);
            lines.push(Line { name, kind: Kind::Dense, report, figures: &report.before, speed });
        }
    }
    for Run { name, report } in runs {
        let beaten =
            runs.iter().any(|other| same_subject(&other.report, report) && beats(&other.report.after, &report.after));
        let kind = if beaten || !report.after.perplexity.is_finite() { Kind::Beaten } else { Kind::Optimal };
        let speed = report.measured.as_ref().and_then(|measured| measured.after);
        lines.push(Line { name: name.clone(), kind, report, figures: &report.after, speed });
    }
    lines.sort_by_key(|line| line.figures.bytes_on_disk);
    lines
}

/// Whether the perplexities of both reports compare.
fn same_subject(a: &Report, b: &Report) -> bool {
    let protocols = match (&a.protocol, &b.protocol) {
        (Some(a), Some(b)) => a.comparable(b),
        (a, b) => a.is_none() && b.is_none(),
    };
    protocols && a.model == b.model && a.before.bytes_on_disk == b.before.bytes_on_disk
}

/// One unit of size for all lines, which are sorted.
fn common_unit(lines: &[Line<'_>]) -> (u64, &'static str) {
    unit(lines.first().map_or(0, |line| line.figures.bytes_on_disk))
}

fn beats(a: &Figures, b: &Figures) -> bool {
    let no_worse = a.bytes_on_disk <= b.bytes_on_disk && a.perplexity <= b.perplexity;
    no_worse && (a.bytes_on_disk < b.bytes_on_disk || a.perplexity < b.perplexity)
}

/// What keeps the runs from being compared as they stand.
pub(crate) fn warnings(runs: &[Run]) -> Vec<String> {
    let Some(first) = runs.first() else { return Vec::new() };
    let other = runs.iter().filter(|run| !same_subject(&first.report, &run.report));
    other
        .map(|run| {
            format!(
                "`{}` was measured on another model, text or window than `{}`: their perplexities do not compare",
                run.name, first.name
            )
        })
        .collect()
}

/// The comparison as a table at most `width` columns wide; `*` marks the Pareto-optimal runs.
pub(crate) fn table(runs: &[Run], width: u16) -> String {
    let mut header = vec![""];
    header.extend(HEADER);
    let mut table = new_table(width, &header);
    let lines = lines(runs);
    let unit = common_unit(&lines);
    for line in &lines {
        let mark = if line.kind == Kind::Optimal { "*" } else { "" };
        table.add_row([mark.to_string(), line.name.clone()].into_iter().chain(line.cells(unit)));
    }
    finish(table, &[2, 3, 4, 5, 6, 7])
}

#[derive(Template)]
#[template(path = "frontier.html")]
struct Page {
    runs: Vec<HtmlRow>,
    compressed: usize,
    warnings: Vec<String>,
    protocols: Vec<String>,
    chart: Option<String>,
    unit: &'static str,
    header: [&'static str; 7],
}

struct HtmlRow {
    name: String,
    class: &'static str,
    cells: [String; 6],
}

/// The text of `frontier.html`: the map of size and perplexity, and the table.
pub(crate) fn page(runs: &[Run]) -> Result<String> {
    let lines = lines(runs);
    let unit = common_unit(&lines);
    let spots: Vec<Spot> = lines
        .iter()
        .map(|line| Spot {
            label: line.name.clone(),
            bytes: line.figures.bytes_on_disk,
            perplexity: line.figures.perplexity,
            kind: line.kind,
        })
        .collect();
    let mut protocols: Vec<String> =
        runs.iter().filter_map(|run| Some(run.report.protocol.as_ref()?.sentence())).collect();
    protocols.dedup();
    let row = |line: &Line<'_>| HtmlRow {
        name: line.name.clone(),
        class: match line.kind {
            Kind::Optimal => "optimal",
            Kind::Dense => "dense",
            Kind::Beaten => "beaten",
        },
        cells: line.cells(unit),
    };
    let chart = chart::frontier(&spots)?;
    let page = Page {
        runs: lines.iter().map(row).collect(),
        compressed: runs.len(),
        warnings: warnings(runs),
        protocols,
        unit: chart.as_ref().map_or("", |chart| chart.unit),
        chart: chart.map(|chart| chart.svg),
        header: HEADER,
    };
    page.render().context("the comparison cannot be rendered as HTML")
}

#[cfg(test)]
mod tests {
    use super::super::data::example;
    use super::*;

    fn runs() -> Vec<Run> {
        let figures = [
            ("gptq-w4", 209_920, 6.07),
            ("gptq-w3", 171_008, 7.31),
            ("rtn-w3", 171_008, 9.64),
            ("rtn-w4", 209_920, 6.58),
            ("awq-w4", 212_992, 6.11),
            ("wanda-2-4-w4", 158_720, 8.92),
            ("rtn-w2", 132_096, 161.4),
            ("gptq-w8", 331_776, 5.75),
            ("magnitude-50", 560_128, 14.2),
        ];
        let run = |(name, size, perplexity): (&str, u64, f64)| {
            let mut report = example();
            report.after.bytes_on_disk = size;
            report.after.perplexity = perplexity;
            report.after.bits_per_weight.model = size as f64 * 8.0 / report.model.parameters as f64;
            Run { name: name.into(), report }
        };
        figures.map(run).into()
    }

    fn kinds(runs: &[Run]) -> Vec<(String, Kind)> {
        lines(runs).into_iter().map(|line| (line.name, line.kind)).collect()
    }

    #[test]
    fn only_unbeaten_runs_are_optimal() {
        let kinds = kinds(&runs());
        let optimal: Vec<&str> = kinds.iter().filter(|k| k.1 == Kind::Optimal).map(|k| k.0.as_str()).collect();
        assert_eq!(optimal, ["rtn-w2", "wanda-2-4-w4", "gptq-w3", "gptq-w4", "gptq-w8"]);
        assert_eq!(kinds.last().unwrap(), &("stories260K (dense)".to_string(), Kind::Dense));
        assert_eq!(kinds.len(), 10);
    }

    #[test]
    fn equal_runs_do_not_beat_each_other_and_lost_ones_are_never_optimal() {
        let mut runs = [runs()[0].clone(), runs()[0].clone()];
        assert!(kinds(&runs).iter().filter(|k| k.1 == Kind::Optimal).count() == 2);
        runs[1].report.after.perplexity = f64::NAN;
        runs[1].report.after.bytes_on_disk = 1;
        assert_eq!(kinds(&runs)[0].1, Kind::Beaten);
    }

    #[test]
    fn other_protocols_are_warned_about_and_do_not_beat() {
        let mut runs = vec![runs()[0].clone(), runs()[3].clone()];
        assert!(warnings(&runs).is_empty());
        if let Some(protocol) = &mut runs[1].report.protocol {
            protocol.window = 512;
        }
        assert_eq!(warnings(&runs).len(), 1);
        assert_eq!(kinds(&runs).iter().filter(|k| k.1 == Kind::Optimal).count(), 2);
    }

    #[test]
    fn folders_are_searched_one_level_deep() {
        let root = tempfile::tempdir().unwrap();
        let put = |dir: &str| {
            let dir = root.path().join(dir);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("report.json"), example().to_json().unwrap()).unwrap();
            dir
        };
        let [b, _, _] = ["runs/b", "runs/a", "runs/deep/er"].map(put);
        let names =
            |dirs: &[PathBuf]| -> Vec<String> { collect(dirs).unwrap().into_iter().map(|run| run.name).collect() };
        assert_eq!(names(&[root.path().join("runs")]), ["a", "b"]);
        assert_eq!(names(&[b.clone(), root.path().join("runs")]), ["b", "a"]);
        let error = collect(&[root.path().to_path_buf()]).unwrap_err().to_string();
        assert!(error.contains("no report.json"), "{error}");
    }

    #[test]
    fn the_page_names_every_run() {
        let page = page(&runs()).unwrap();
        assert!(runs().iter().all(|run| page.contains(&format!("<th scope=\"row\">{}</th>", run.name))));
        assert_eq!(page.matches("<tr class=\"optimal\">").count(), 5);
        assert_eq!(page.matches("<circle").count(), 10);
    }

    #[test]
    fn the_table_marks_what_is_optimal() {
        insta::assert_snapshot!(table(&runs(), 100), @r"
         run            perplexity       KL   size on disk   bits/weight   sparsity        decode
    ──────────────────────────────────────────────────────────────────────────────────────────────
     *   rtn-w2              161.4   0.0487      132.10 kB          4.06     32.1 %    1093 tok/s
     *   wanda-2-4-w4         8.92   0.0487      158.72 kB          4.88     32.1 %    1093 tok/s
     *   gptq-w3              7.31   0.0487      171.01 kB          5.26     32.1 %    1093 tok/s
         rtn-w3               9.64   0.0487      171.01 kB          5.26     32.1 %    1093 tok/s
     *   gptq-w4              6.07   0.0487      209.92 kB          6.46     32.1 %    1093 tok/s
         rtn-w4               6.58   0.0487      209.92 kB          6.46     32.1 %    1093 tok/s
         awq-w4               6.11   0.0487      212.99 kB          6.55     32.1 %    1093 tok/s
     *   gptq-w8              5.75   0.0487      331.78 kB         10.21     32.1 %    1093 tok/s
         magnitude-50        14.20   0.0487      560.13 kB         17.23     32.1 %    1093 tok/s
         stories260K          5.74        –     1040.13 kB         32.00      0.0 %   812.0 tok/s
         (dense)
    ");
    }
}
