//! `report.html`: the whole report on one page without scripts or outside resources.

use anyhow::{Context, Result};
use askama::Template;

use super::chart::{self, Chart};
use super::data::Report;
use super::format::{UNKNOWN, seconds};
use super::table::{self, Row};

/// The filters of the templates.
#[expect(unreachable_pub, reason = "what `filter_fn` generates is more public than what it annotates")]
mod filters {
    use askama::{Result, Values};

    use super::super::format;

    #[askama::filter_fn]
    pub(super) fn number(value: &f64, _: &dyn Values) -> Result<String> {
        Ok(format::number(*value))
    }

    #[askama::filter_fn]
    pub(super) fn count(value: &u64, _: &dyn Values) -> Result<String> {
        Ok(format::count(*value))
    }

    #[askama::filter_fn]
    pub(super) fn percent(value: &f64, _: &dyn Values) -> Result<String> {
        Ok(format::percent(*value))
    }

    #[askama::filter_fn]
    pub(super) fn seconds(value: &f64, _: &dyn Values) -> Result<String> {
        Ok(format::seconds(*value))
    }
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    report: &'a Report,
    headline: String,
    cards: Vec<Row>,
    rows: Vec<Row>,
    chart: Option<Chart>,
    series: usize,
    notes: bool,
}

impl Page<'_> {
    fn begins_block(&self, index: &usize) -> bool {
        let modules = &self.report.modules;
        *index > 0 && modules[*index].block != modules[*index - 1].block
    }

    fn time(&self, index: &usize) -> String {
        self.report.module_seconds(*index).map_or(UNKNOWN.into(), seconds)
    }
}

/// The measures that open the page.
const CARDS: [&str; 4] = ["Size on disk", "Perplexity", "Bits per weight", "Decode, batch 1"];

/// The headline with breaks only after `:` and `,`, so that no figure loses its unit.
fn whole_figures(headline: &str) -> String {
    headline.replace(' ', "\u{a0}").replace(":\u{a0}", ": ").replace(",\u{a0}", ", ")
}

/// The text of `report.html`.
pub(crate) fn page(report: &Report) -> Result<String> {
    let rows = table::rows(report);
    let page = Page {
        headline: whole_figures(&report.headline()),
        cards: rows.iter().filter(|row| CARDS.contains(&row.label)).cloned().collect(),
        rows,
        chart: chart::errors(report)?,
        series: chart::SERIES,
        notes: report.modules.iter().any(|module| !module.notes.is_empty()),
        report,
    };
    page.render().context("the report cannot be rendered as HTML")
}

#[cfg(test)]
mod tests {
    use super::super::data::example;
    use super::*;

    #[test]
    fn the_page_stands_alone() {
        let page = page(&example()).unwrap();
        assert!(page.contains("<title>stories260K: 1.04 MB → 0.21 MB, perplexity 5.74 → 6.07</title>"), "{page}");
        for outside in ["<script", "<link", "<img", "@import", "url(", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        // The only address is the name of the SVG namespace, which nothing loads.
        assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
        assert_eq!(page.matches("<tr").count(), page.matches("</tr>").count());
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let mut report = example();
        report.model.name = "<script>alert(1)</script>".into();
        report.warnings = vec!["<img src=x onerror=alert(1)>".into()];
        report.recipe = "</code><script>".into();
        report.modules[0].name = "mlp.<b>".into();
        let page = page(&report).unwrap();
        for raw in ["<script", "<img", "<b>)", "mlp.<b>", "><b></li>"] {
            assert!(!page.contains(raw), "{raw}");
        }
    }

    #[test]
    fn what_was_not_measured_is_not_shown() {
        let mut report = example();
        report.protocol = None;
        report.measured = None;
        report.modules.clear();
        report.warnings.clear();
        let page = page(&report).unwrap();
        for absent in ["Perplexity", "Decode", "Projections", "Error by block", "class=\"warnings\"", "NaN"] {
            assert!(!page.contains(absent), "{absent}");
        }
    }

    #[test]
    fn equal_reports_give_equal_pages() {
        assert_eq!(page(&example()).unwrap(), page(&example()).unwrap());
    }
}
