//! Recall and speed of the index of a key/value cache: `attention [TOKENS [DIM]]`, by default 32768 and 128.

use std::hint::black_box;
use std::time::Instant;

use kindling_learned_index::attention::access::AccessKind;
use kindling_learned_index::attention::selectors::{exact, top};
use kindling_learned_index::attention::{KvConfig, KvIndex};
use kindling_learned_index::data::kv::KvSetting;

fn main() -> Result<(), kindling_learned_index::Error> {
    let number = |i: usize, default: usize| std::env::args().nth(i).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (tokens, dim) = (number(1, 32_768), number(2, 128));
    let head = KvSetting { tokens, dim, topics: 200, key_noise: 0.9, query_noise: 0.8, seed: 42 }.generate();
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

/// Seconds a query, of the fastest of ten passes.
fn fastest(queries: &[&[f32]], mut ask: impl FnMut(&[f32])) -> f64 {
    let pass = || {
        let begin = Instant::now();
        queries.iter().for_each(|query| ask(query));
        begin.elapsed().as_secs_f64() / queries.len() as f64
    };
    std::iter::repeat_with(pass).take(10).fold(f64::INFINITY, f64::min)
}
