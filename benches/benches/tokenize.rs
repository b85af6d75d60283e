//! Tokenising a document.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_model::tokenizer::Tokenizer;

/// A byte-level tokenizer without merges, built in place: the suite needs no file of anybody's.
const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":"a","continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"vocab":{"a":0,"b":1,"c":2,"d":3,"e":4,"Ġ":5,"Ġa":6,"be":7},"merges":["Ġ a","b e"]}}"#;

fn tokenize(criterion: &mut Criterion) {
    let dir = std::env::temp_dir().join("kindling-bench-tokenizer");
    std::fs::create_dir_all(&dir).expect("a writable temporary folder");
    std::fs::write(dir.join("tokenizer.json"), TOKENIZER).expect("a writable temporary folder");
    let tokenizer = Tokenizer::open(&dir).expect("a well-formed tokenizer");
    let text = "a bed be a cab add a bead be bad dead ace\n".repeat(2500);
    let mut group = criterion.benchmark_group("tokenize");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.sample_size(20);
    group.bench_function("100 kB", |bencher| {
        bencher.iter(|| tokenizer.encode(&text, true).expect("known characters"));
    });
    group.finish();
}

criterion_group!(benches, tokenize);
criterion_main!(benches);
