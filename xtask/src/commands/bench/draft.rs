//! `bench draft`: the corpus index over bytes, and what drafting costs without a model.
//!
//! Two thousand contexts of 64 bytes, evenly spaced in the text that asks; the index in memory; one thread of queries.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter};
use kindling_specdec::context::{Location, SuffixAutomaton};
use kindling_specdec::drafters::infinigram::{Infinigram, InfinigramConfig};
use kindling_specdec::drafters::suffix::{Suffix, SuffixConfig};
use kindling_specdec::index::{BuildOptions, Cursor, Index, IndexBuilder, Next};
use serde::Serialize;

use crate::cli::BenchDraft;
use crate::error::user;
use crate::output;

const CONTEXTS: usize = 2000;
const CONTEXT: usize = 64;
/// Bytes of UTF-8 are below this; the separator is above it.
const VOCAB: usize = 255;

/// Microseconds.
#[derive(Serialize)]
struct Micros {
    median: f64,
    p99: f64,
}

impl Micros {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |share: usize| seconds[(seconds.len() - 1) * share / 100] * 1e6;
        Self { median: at(50), p99: at(99) }
    }
}

#[derive(Serialize)]
struct Measured {
    corpus_bytes: usize,
    build_s: f64,
    build_mb_s: f64,
    index_bytes: usize,
    shards: usize,
    query_us: Micros,
    advance_us: Micros,
    mean_suffix_len: f64,
    automaton_append_ns: f64,
    automaton_counted_append_ns: f64,
    suffix_draft_us: Micros,
    infinigram_draft_us: Micros,
    infinigram_commit_us: Micros,
}

pub(crate) fn run(args: &BenchDraft) -> Result<()> {
    let mut paths: Vec<_> = std::fs::read_dir(&args.corpus)
        .with_context(|| format!("cannot read {}", args.corpus.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    let query = std::fs::read(&args.query).with_context(|| format!("cannot read {}", args.query.display()))?;
    if query.len() < CONTEXT + CONTEXTS {
        return Err(user(format!("{}: at least {} bytes are needed", args.query.display(), CONTEXT + CONTEXTS)));
    }
    let file = std::env::temp_dir().join(format!("kindling-bench-{}.index", std::process::id()));
    let size: u64 = paths.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|file| file.len() + 1).sum();
    let threads = rayon::current_num_threads();
    let shard_tokens = args.shards.map(|shards| (size as usize).div_ceil(shards));

    let start = Instant::now();
    let mut builder =
        IndexBuilder::new(VOCAB, [0; 32], BuildOptions { threads, shard_tokens, ..BuildOptions::default() })?;
    let mut corpus_bytes = 0;
    for path in &paths {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        corpus_bytes += text.len();
        builder.push_bytes(&text).map_err(user)?;
    }
    builder.write(&file).map_err(user)?;
    let build_s = start.elapsed().as_secs_f64();
    let index = Index::open(&file);
    std::fs::remove_file(&file)?;
    let index = Arc::new(index?);

    let step = (query.len() - CONTEXT) / CONTEXTS;
    let tokens =
        |bytes: &[u8]| -> Vec<u32> { bytes.iter().filter(|&&b| usize::from(b) < VOCAB).map(|&b| b.into()).collect() };
    let contexts: Vec<Vec<u32>> = (0..CONTEXTS).map(|i| tokens(&query[i * step..i * step + CONTEXT])).collect();
    let mut next = Next::default();
    let mut ask = |context: &[u32]| {
        let start = Instant::now();
        let found = index.longest(context);
        index.next_into(&found, &mut next);
        (start.elapsed().as_secs_f64(), found.len)
    };
    let _: Vec<_> = contexts.iter().take(200).map(|context| ask(context)).collect();
    let asked: Vec<(f64, usize)> = contexts.iter().map(|context| ask(context)).collect();

    let text = tokens(&query[..query.len().min(200_000)]);
    let mut cursor = Cursor::new(&index, CONTEXT);
    let advance = |&token: &u32| {
        let start = Instant::now();
        cursor.advance(&index, token);
        index.next_into(cursor.longest(), &mut next);
        start.elapsed().as_secs_f64()
    };
    let advanced: Vec<f64> = text.iter().map(advance).collect();

    // The best of some runs over a long text: an interrupted run says nothing about the structure.
    let prompt = &text[..text.len().min(200_000)];
    let append = |depth: usize| {
        let run = |_| {
            let mut automaton = SuffixAutomaton::new(depth);
            let mut location = Location::START;
            let start = Instant::now();
            prompt.iter().for_each(|&token| automaton.append(&mut location, token));
            start.elapsed().as_secs_f64() * 1e9 / prompt.len() as f64
        };
        (0..7).map(run).fold(f64::INFINITY, f64::min)
    };
    let (plain, counted) = (append(0), append(64));
    let (suffix, _) = drafting(&mut Suffix::new(SuffixConfig::default(), None), &text)?;
    let mut infinigram = Infinigram::new(Some(index.clone()), Arc::default(), InfinigramConfig::default());
    let (guess, commit) = drafting(&mut infinigram, &text)?;

    let measured = Measured {
        corpus_bytes,
        build_s,
        build_mb_s: corpus_bytes as f64 / build_s / 1e6,
        index_bytes: index.bytes(),
        shards: index.shard_count(),
        mean_suffix_len: asked.iter().map(|(_, len)| *len as f64).sum::<f64>() / asked.len() as f64,
        query_us: Micros::of(asked.into_iter().map(|(seconds, _)| seconds).collect()),
        advance_us: Micros::of(advanced),
        automaton_append_ns: plain,
        automaton_counted_append_ns: counted,
        suffix_draft_us: Micros::of(suffix),
        infinigram_draft_us: Micros::of(guess),
        infinigram_commit_us: Micros::of(commit),
    };
    if args.json {
        return output::json(&measured);
    }
    let rows = [
        ("build", format!("{:.1} MB/s", measured.build_mb_s)),
        ("index", format!("{:.1} MB in {} shards", measured.index_bytes as f64 / 1e6, measured.shards)),
        ("query", format!("{:.2} µs, p99 {:.2} µs", measured.query_us.median, measured.query_us.p99)),
        ("advance", format!("{:.2} µs, p99 {:.2} µs", measured.advance_us.median, measured.advance_us.p99)),
        ("mean match", format!("{:.2}", measured.mean_suffix_len)),
        ("automaton append", format!("{plain:.0} ns, with counts {counted:.0} ns")),
        ("suffix draft", format!("{:.2} µs", measured.suffix_draft_us.median)),
        ("infinigram draft", format!("{:.2} µs", measured.infinigram_draft_us.median)),
    ];
    output::line(output::table(["what", "measured"], rows.map(|(what, value)| [what.to_string(), value])))
}

/// Seconds of guesses and of commits while a text of 64 KiB goes by, one token at a time.
fn drafting(drafter: &mut dyn Drafter, text: &[u32]) -> Result<(Vec<f64>, Vec<f64>)> {
    let room = Room { nodes: 16, depth: 16, trees: true, batch: 1 };
    let text = &text[..text.len().min(1 << 16)];
    let (prompt, rest) = text.split_at(text.len() / 4);
    drafter.begin(prompt)?;
    let (mut guesses, mut commits) = (Vec::new(), Vec::new());
    let mut draft = Draft::default();
    for token in rest.chunks(1) {
        draft.clear();
        let start = Instant::now();
        drafter.propose(&room, &mut draft)?;
        guesses.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        drafter.commit(token)?;
        commits.push(start.elapsed().as_secs_f64());
    }
    Ok((guesses, commits))
}
