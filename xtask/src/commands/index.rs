//! `index`: build an index of every n-gram of a text, or ask one.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use kindling_model::ModelFiles;
use kindling_model::tokenizer::Tokenizer;
use kindling_specdec::index::{BuildOptions, IndexBuilder};
use serde::Serialize;

use super::named_model;
use crate::cli::{Index, IndexBuild, IndexCommand, IndexQuery};
use crate::drafting::{hash, open_index};
use crate::error::user;
use crate::training::texts;
use crate::{output, tokens};

pub(crate) fn run(args: &Index) -> Result<()> {
    match &args.command {
        IndexCommand::Build(args) => build(args),
        IndexCommand::Query(args) => query(args),
    }
}

/// A finished index, as `--json` prints it.
#[derive(Serialize)]
struct Built {
    documents: usize,
    tokens: usize,
    text_bytes: usize,
    index_bytes: u64,
    tokenize_s: f64,
    build_s: f64,
}

fn build(args: &IndexBuild) -> Result<()> {
    let tokenizer = tokenizer(&args.tokenizer)?;
    let (documents, _) = texts::read(&args.text, &[])?;
    let start = Instant::now();
    let mut ids = Vec::with_capacity(documents.len());
    for (name, text) in &documents {
        ids.push(tokenizer.encode(text, false).map_err(|error| user(format!("{name}: {error}")))?);
    }
    let tokenize_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let total: usize = ids.iter().map(|ids| ids.len() + 1).sum();
    let threads = rayon::current_num_threads();
    let options =
        BuildOptions { threads, shard_tokens: args.shards.map(|n| total.div_ceil(n)), ..BuildOptions::default() };
    let fail = |error: kindling_specdec::IndexError| user(error);
    let mut builder = IndexBuilder::new(tokenizer.vocab_size(), hash(&tokenizer), options).map_err(fail)?;
    ids.iter().try_for_each(|ids| builder.push(ids)).map_err(fail)?;
    let tokens = builder.tokens();
    builder.write(&args.out).map_err(fail)?;
    let built = Built {
        documents: documents.len(),
        tokens,
        text_bytes: documents.iter().map(|(_, text)| text.len()).sum(),
        index_bytes: std::fs::metadata(&args.out)?.len(),
        tokenize_s,
        build_s: start.elapsed().as_secs_f64(),
    };
    if args.json {
        return output::json(&built);
    }
    output::line(format!(
        "{}: {} documents, {} tokens, {:.1} MB; tokenised in {:.1} s, indexed in {:.1} s",
        args.out.display(),
        built.documents,
        built.tokens,
        built.index_bytes as f64 / 1e6,
        built.tokenize_s,
        built.build_s
    ))
}

/// An answer, as `--json` prints it.
#[derive(Serialize)]
struct Answer {
    tokens: Vec<u32>,
    matched: usize,
    count: u64,
    ends: u64,
    next: Vec<NextToken>,
}

#[derive(Serialize)]
struct NextToken {
    token: u32,
    text: String,
    count: u64,
    probability: f64,
}

fn query(args: &IndexQuery) -> Result<()> {
    let tokenizer = tokenizer(&args.tokenizer)?;
    let index = open_index(&args.index, &tokenizer)?;
    let ids = tokenizer.encode(&args.text, false).map_err(user)?;
    let found = index.longest(&ids);
    let next = index.next(&found);
    let mut tokens = Vec::with_capacity(next.tokens.len());
    for ((token, probability), (_, count)) in next.shares().zip(&next.tokens) {
        tokens.push(NextToken {
            token,
            text: tokenizer.decode(&[token], false).map_err(user)?,
            count: *count,
            probability,
        });
    }
    tokens.sort_by_key(|token| std::cmp::Reverse(token.count));
    let answer = Answer { matched: found.len, count: found.count(), ends: next.ends, next: tokens, tokens: ids };
    if args.json {
        return output::json(&answer);
    }
    let known = tokenizer.decode(&answer.tokens[answer.tokens.len() - answer.matched..], false).map_err(user)?;
    output::line(format!(
        "{} of {} tokens known, {} times: {known:?}",
        answer.matched,
        answer.tokens.len(),
        answer.count
    ))?;
    let rows = answer.next.iter().take(20);
    let rows =
        rows.map(|next| [format!("{:?}", next.text), next.count.to_string(), format!("{:.4}", next.probability)]);
    output::line(output::table(["next", "count", "probability"], rows))
}

fn tokenizer(model: &Option<PathBuf>) -> Result<Tokenizer> {
    tokens::tokenizer(&ModelFiles::open(named_model(model))?)
}
