//! `list`: every method of every crate.

use anyhow::Result;
use kindling_core::{DrafterEntry, MethodEntry, Needs};
use kindling_distill::loss::LossEntry;
use kindling_distill::loss::layers::LayerEntry;
use serde::Serialize;

use crate::cli::List;
use crate::methods::SHELVES;
use crate::output;

/// One method, as `--json` prints it.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    #[serde(rename = "crate")]
    krate: &'static str,
    family: &'static str,
    paper: &'static str,
    needs: &'static str,
    summary: &'static str,
}

pub(crate) fn run(args: &List) -> Result<()> {
    let rows: Vec<Row> =
        SHELVES.iter().flat_map(|shelf| shelf.methods.iter().map(|method| row(shelf.krate, method))).collect();
    let rows = rows.into_iter().chain(kindling_distill::loss::METHODS.iter().map(loss));
    let rows = rows.chain(kindling_distill::loss::layers::METHODS.iter().map(layer_loss));
    let rows: Vec<Row> = rows.chain(kindling_specdec::METHODS.iter().map(drafter)).collect();
    if args.json {
        return output::json(&rows);
    }
    let table = output::table(
        ["method", "family", "needs", "what it does", "source"],
        rows.iter().map(|row| [row.name, row.family, row.needs, row.summary, row.paper].map(Into::into)),
    );
    output::line(table)?;
    output::line(
        "\nneeds: what must be known of a layer's inputs; `nothing` works without calibration data. The losses of `distill` and \
         `heal` need a teacher or a text.",
    )
}

fn loss(entry: &LossEntry) -> Row {
    Row {
        name: entry.name,
        krate: "kindling-distill",
        family: "distillation loss",
        paper: entry.paper,
        needs: if entry.needs_teacher { "teacher" } else { "text" },
        summary: entry.summary,
    }
}

fn layer_loss(entry: &LayerEntry) -> Row {
    Row {
        name: entry.name,
        krate: "kindling-distill",
        family: "loss of layers",
        paper: entry.paper,
        needs: "teacher",
        summary: entry.summary,
    }
}

fn drafter(entry: &DrafterEntry) -> Row {
    Row {
        name: entry.name,
        krate: "kindling-specdec",
        family: "drafter",
        paper: entry.paper,
        needs: "nothing",
        summary: entry.summary,
    }
}

fn row(krate: &'static str, method: &MethodEntry) -> Row {
    Row {
        name: method.name,
        krate,
        family: method.family.name(),
        paper: method.paper,
        needs: match method.needs {
            Needs::Nothing => "nothing",
            Needs::Norms => "norms",
            Needs::Moments => "moments",
        },
        summary: method.summary,
    }
}
