//! `bench index`: every index over scalar keys in one table.

use anyhow::Result;
use kindling_learned_index::data::KeySet;
use kindling_learned_index::measure::{self, Mix, Row, STRUCTURES};
use serde::Serialize;

use crate::cli::BenchIndex;
use crate::error::user;
use crate::output;

/// Of everything that is generated.
const SEED: u64 = 42;
/// The set `outliers` has 21 of them.
const FEWEST: usize = 32;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    keys: &'static str,
    n: usize,
    seed: u64,
    /// Of the keys, as `kindling_learned_index::data::checksum` computes it.
    checksum: String,
    cpu: String,
    rows: Vec<Row>,
}

pub(crate) fn run(args: &BenchIndex) -> Result<()> {
    let names = || KeySet::ALL.iter().map(|set| set.name).collect::<Vec<_>>().join(", ");
    let set = KeySet::named(&args.keys)
        .ok_or_else(|| user(format!("--keys {}: no such set; there are {}", args.keys, names())))?;
    if args.n < FEWEST {
        return Err(user(format!("--n {}: give at least {FEWEST} keys", args.n)));
    }
    let mixes = match args.mix.as_str() {
        "all" => Mix::ALL.to_vec(),
        mix => vec![Mix::parse(mix).ok_or_else(|| {
            user(format!("--mix {mix}: expected the reads in per cent, `get`, `batch`, `scan` or `all`"))
        })?],
    };
    for structure in &args.structure {
        if !STRUCTURES.contains(&structure.as_str()) {
            return Err(user(format!("--structure {structure}: there are {}", STRUCTURES.join(", "))));
        }
    }
    let structures: Vec<&str> = match &args.structure[..] {
        [] => STRUCTURES.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };

    eprintln!("{} keys of `{}`: {}", args.n, set.name, set.summary);
    let keys = set.generate(args.n, SEED);
    let mut rows = Vec::new();
    measure::run(&keys, &structures, &mixes, |row| {
        eprintln!("{} under {}: {:.1} ns", row.structure, row.mix, row.ns_per_op);
        rows.push(row);
    });
    if args.json {
        let checksum = format!("{:016x}", keys.checksum());
        let cpu = crate::commands::doctor::cpu();
        return output::json(&Report { keys: set.name, n: args.n, seed: SEED, checksum, cpu, rows });
    }
    let cells = |row: &Row| {
        let ns = |ns: f64| if ns > 0.0 { format!("{ns:.1}") } else { String::new() };
        [
            row.structure.to_string() + if row.flow { " (flow on)" } else { "" },
            row.mix.clone(),
            ns(row.ns_per_op),
            ns(row.best_ns),
            ns(row.p99_ns),
            ns(row.p999_ns),
            format!("{:.1}", row.bytes_per_key),
            format!("{:.3}", row.build_s),
        ]
    };
    let headings = ["structure", "mix", "ns/op", "quiet ns/op", "p99 ns", "p99.9 ns", "bytes/key", "build s"];
    output::line(output::table(headings, rows.iter().map(cells)))
}
