//! Recall and speed of the index of a key/value cache: `attention [TOKENS [DIM [SEED]]]`, by default 32768, 128 and 42; or
//! `attention settings`: the recall of four selectors in all settings and with five seeds.

use std::hint::black_box;
use std::time::Instant;

use kindling_learned_index::attention::access::AccessKind;
use kindling_learned_index::attention::cells::Aligned;
use kindling_learned_index::attention::selectors::{QuestPages, estimated, exact, top};
use kindling_learned_index::attention::{KvConfig, KvIndex};
use kindling_learned_index::data::kv::{KvData, KvSetting};

fn main() -> Result<(), kindling_learned_index::Error> {
    if std::env::args().nth(1).is_some_and(|word| word == "settings") {
        return settings();
    }
    let number = |i: usize, default: usize| std::env::args().nth(i).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (tokens, dim) = (number(1, 32_768), number(2, 128));
    let head =
        KvSetting { tokens, dim, topics: 200, key_noise: 0.9, query_noise: 0.8, seed: number(3, 42) as u64 }.generate();
    let queries: Vec<&[f32]> = head.queries.chunks_exact(dim).collect();
    let best: Vec<Vec<u32>> = queries.iter().map(|query| top(&exact(&head.keys, query), 100)).collect();
    let dense = fastest(&queries, |query| _ = black_box(exact(&head.keys, query)));
    println!("{tokens} tokens of {dim}: exact scores {:.1} us a query", dense * 1e6);
    for access in [AccessKind::Csr, AccessKind::Learned] {
        let begin = Instant::now();
        let index = KvIndex::build(&head.keys, &head.prefill, dim, KvConfig { access, ..KvConfig::default() })?;
        let built = begin.elapsed().as_secs_f64();
        println!("{access:?}: built in {built:.2} s, {:.1} bytes a token", index.bytes() as f64 / tokens as f64);
        for budget in [tokens / 100, tokens / 50, tokens / 20, tokens / 10] {
            let (mut selected, mut found, mut candidates, mut ranges) = (Vec::new(), 0, 0, 0);
            for (query, best) in queries.iter().zip(&best) {
                let stats = index.select(query, budget, &mut selected)?;
                candidates += stats.candidates;
                ranges += stats.ranges;
                found += best.iter().filter(|token| selected.iter().any(|s| s.token == **token)).count();
            }
            let n = queries.len() as f64;
            let select = fastest(&queries, |query| _ = index.select(query, budget, &mut selected));
            let both = fastest(&queries, |query| {
                _ = index.select(query, budget, &mut selected);
                _ = index.rerank(&head.keys, query, budget, &mut selected);
            });
            println!(
                "  budget {budget}: recall@100 {:.3}, candidates {:.0}, ranges {:.1}, select {:.1} us, with exact scores {:.1} us, {:.1} x exact",
                found as f64 / n / 100.0,
                candidates as f64 / n,
                ranges as f64 / n,
                select * 1e6,
                both * 1e6,
                dense / both
            );
        }
        let (per_start, starts) = index.time_of_range_starts(&queries, tokens / 50);
        println!("  {per_start:.1} ns a range start ({starts} starts)");
    }
    Ok(())
}

/// Recall at a hundredth and a fiftieth of the tokens of the four selectors, all cells scored.
fn settings() -> Result<(), kindling_learned_index::Error> {
    let setting = |tokens, dim, topics, (key_noise, query_noise), seed| KvSetting {
        tokens,
        dim,
        topics,
        key_noise,
        query_noise,
        seed,
    };
    let first = (42..47).map(|seed| setting(32_768, 128, 200, (0.9, 0.8), seed));
    let others = [
        setting(8192, 64, 200, (0.9, 0.8), 42),
        setting(8192, 64, 0, (1.5, 1.5), 42),
        setting(16_384, 64, 200, (0.9, 0.8), 42),
        setting(16_384, 64, 200, (0.9, 0.8), 43),
        setting(16_384, 128, 100, (1.2, 1.0), 42),
        setting(16_384, 64, 0, (1.5, 1.5), 42),
    ];
    println!("recall@100 at 1 % and 2 %: query-aligned, centroid-aligned, cells only, Quest");
    for setting in first.chain(others) {
        let KvSetting { tokens, dim, topics, key_noise, query_noise, seed } = setting;
        let data = setting.generate();
        let aligned =
            |aligned| KvIndex::build(&data.keys, &data.prefill, dim, KvConfig { aligned, ..KvConfig::default() });
        let (queries, centroid) = (aligned(Aligned::Queries)?, aligned(Aligned::Centroid)?);
        let quest = QuestPages::new(&data.keys, dim, 16);
        let recalls = [100, 50].map(|share| {
            let budget = (tokens + share / 2) / share;
            [
                recall(&data, |q| top(&estimated(&queries, q, true), budget)),
                recall(&data, |q| top(&estimated(&centroid, q, true), budget)),
                recall(&data, |q| top(&estimated(&queries, q, false), budget)),
                recall(&data, |q| top(&quest.scores(q), budget)),
            ]
        });
        let ordered = recalls.iter().all(|four| four.windows(2).all(|two| two[0] > two[1]));
        let [one, two] = recalls.map(|four| four.map(|x| format!("{x:.3}")).join(" "));
        println!(
            "{tokens:5} {dim:3} {topics:3} {key_noise}/{query_noise} seed {seed}: {one} | {two} {}",
            if ordered { "in order" } else { "NOT in order" }
        );
    }
    Ok(())
}

/// Mean share of the exact top 100 among the tokens that `choose` gives.
fn recall(data: &KvData, mut choose: impl FnMut(&[f32]) -> Vec<u32>) -> f64 {
    let queries = data.queries.chunks_exact(data.dim);
    let n = queries.len() as f64;
    let found = queries.map(|query| {
        let chosen = choose(query);
        top(&exact(&data.keys, query), 100).iter().filter(|token| chosen.contains(token)).count() as f64
    });
    found.sum::<f64>() / n / 100.0
}

/// Seconds a query, of the fastest of ten passes.
fn fastest(queries: &[&[f32]], mut ask: impl FnMut(&[f32])) -> f64 {
    let pass = || {
        let begin = Instant::now();
        queries.iter().for_each(|query| ask(query));
        begin.elapsed().as_secs_f64() / queries.len() as f64
    };
    std::iter::repeat_with(pass).take(10).fold(f64::INFINITY, f64::min)
}
