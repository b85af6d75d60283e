//! Drafting without a model: the corpus index, the structures over the text so far, verification.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_core::draft::Room;
use kindling_core::{Cx, Draft, Drafter};
use kindling_specdec::context::{Location, SuffixAutomaton};
use kindling_specdec::drafters::infinigram::{Infinigram, InfinigramConfig};
use kindling_specdec::drafters::suffix::{Suffix, SuffixConfig};
use kindling_specdec::index::{BuildOptions, Cursor, Index, IndexBuilder, suffix_array};
use kindling_specdec::verify::follow;
use rand_chacha::rand_core::Rng;

/// Text that repeats itself as text does: words of a small Zipfian dictionary.
fn text(name: &str, len: usize) -> Vec<u8> {
    let mut rng = Cx::new(1).rng(name);
    let mut words = Cx::new(1).rng("words");
    let words: Vec<Vec<u8>> = (0..2000)
        .map(|_| (0..2 + words.next_u32() % 7).map(|_| b'a' + (words.next_u32() % 26) as u8).collect())
        .collect();
    let mut text = Vec::with_capacity(len + 10);
    while text.len() < len {
        let uniform = f64::from(rng.next_u32()) / f64::from(u32::MAX);
        text.extend(&words[(2000f64.powf(uniform) - 1.0) as usize % 2000]);
        text.push(b' ');
    }
    text.truncate(len);
    text
}

fn draft(criterion: &mut Criterion) {
    let len = if kindling_benches::is_smoke_test() { 50_000 } else { 4_000_000 };
    let (corpus, query) = (text("corpus", len), text("query", 20_000));
    let tokens: Vec<u32> = query.iter().map(|&byte| byte.into()).collect();
    let mut group = criterion.benchmark_group("draft");
    group.sample_size(10);

    group.throughput(Throughput::Bytes(len as u64));
    let build = || {
        let mut builder = IndexBuilder::new(255, [0; 32], BuildOptions::default()).expect("good options");
        builder.push_bytes(&corpus).expect("ASCII");
        builder.into_bytes().expect("there is text")
    };
    group.bench_function("build an index", |bencher| bencher.iter(build));
    group.bench_function("sort suffixes, reference", |bencher| bencher.iter(|| suffix_array(&corpus, 256)));

    let index = Arc::new(Index::read(build()).expect("just built"));
    group.throughput(Throughput::Elements(tokens.len() as u64 / 64));
    group.bench_function("longest match of 64 bytes", |bencher| {
        bencher.iter(|| tokens.chunks_exact(64).map(|context| index.longest(context).len).sum::<usize>());
    });
    group.throughput(Throughput::Elements(tokens.len() as u64));
    group.bench_function("advance by a byte", |bencher| {
        let mut cursor = Cursor::new(&index, 64);
        bencher.iter(|| tokens.iter().for_each(|&token| cursor.advance(&index, token)));
    });
    group.bench_function("append to an automaton", |bencher| {
        bencher.iter(|| {
            let (mut automaton, mut location) = (SuffixAutomaton::new(0), Location::START);
            tokens.iter().for_each(|&token| automaton.append(&mut location, token));
            automaton.bytes()
        });
    });

    let room = Room { nodes: 16, depth: 16, trees: true, batch: 1 };
    // A guess and the token that then comes, while the second half of the text goes by.
    let (prompt, rest) = tokens.split_at(tokens.len() / 2);
    let mut guess = |name: &str, drafter: &mut dyn Drafter| {
        let mut draft = Draft::default();
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let (mut left, mut spent) = (rounds as usize, Duration::ZERO);
                while left > 0 {
                    let now = &rest[..left.min(rest.len())];
                    left -= now.len();
                    drafter.begin(prompt).expect("tokens are read");
                    let start = Instant::now();
                    for token in now {
                        draft.clear();
                        drafter.propose(&room, &mut draft).expect("guesses are made");
                        drafter.commit(&[*token]).expect("tokens are read");
                    }
                    spent += start.elapsed();
                }
                spent
            });
        });
    };
    guess("suffix draft", &mut Suffix::new(SuffixConfig::default(), None));
    let infinigram = |index: Option<&Arc<Index<Vec<u8>>>>| {
        Infinigram::new(index.cloned(), Arc::default(), InfinigramConfig::default())
    };
    guess("infinigram draft from the text", &mut infinigram(None));
    guess("infinigram draft from text and corpus", &mut infinigram(Some(&index)));

    let chain = Draft::chain((0..16).map(|token| (token, 0.5))).expect("a chain");
    group.bench_function("follow 16 guesses", |bencher| {
        bencher.iter(|| follow(&chain, |row, _| Ok(row as u32)).expect("nothing fails"));
    });
    group.finish();
}

criterion_group!(benches, draft);
criterion_main!(benches);
