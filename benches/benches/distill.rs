//! Distillation: output matrix and loss in chunks against the whole logits, and a teacher's store.
//!
//! Floor of the head: three products of tokens × hidden × vocabulary with the matrix's gradient, two without. Peak memory of
//! both ways is counted by the allocator and stands in the names.

use burn::tensor::{Tensor, TensorData};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_benches::{device, is_smoke_test, normals};
use kindling_core::OutputHead;
use kindling_distill::Known;
use kindling_distill::head::{Scored, TeacherStates, chunk_rows, fused_head};
use kindling_distill::loss::{CrossEntropy, DistillLoss, ForwardKl};
use kindling_distill::store::{Codec, Manifest, Record, StoreReader, StoreWriter};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// MiB that `run` needs beyond what is held before it.
fn peak_of(run: impl FnOnce()) -> f32 {
    let before = ALLOCATOR.current_usage_as_mb();
    ALLOCATOR.reset_peak_usage();
    run();
    ALLOCATOR.peak_usage_as_mb() - before
}

fn matrix(name: &str, rows: usize, cols: usize) -> Tensor<2> {
    Tensor::from_data(TensorData::new(normals(name, rows * cols), [rows, cols]), &device())
}

fn head(criterion: &mut Criterion) {
    let (tokens, hidden, vocabulary) = if is_smoke_test() { (64, 32, 512) } else { (2048, 512, 32_000) };
    let head = OutputHead { matrix: matrix("head", vocabulary, hidden).mul_scalar(0.02), softcap: None };
    let states = matrix("states", tokens, hidden);
    let teacher = TeacherStates { states: matrix("teacher", tokens, hidden), head: head.clone() };
    let labels: Vec<u32> = (0..tokens).map(|t| (t * 7919 % vocabulary) as u32).collect();
    let scored = Scored { labels: &labels, weights: None, normaliser: tokens as f64, known: &Known::Nothing };
    let mut group = criterion.benchmark_group(format!("head of {tokens} tokens, {hidden} to {vocabulary}"));
    group.sample_size(10).throughput(Throughput::Elements(tokens as u64));
    let losses: [(&str, &dyn DistillLoss, Option<&TeacherStates>); 2] =
        [("cross-entropy", &CrossEntropy, None), ("forward-kl", &ForwardKl, Some(&teacher))];
    for (name, loss, teacher) in losses {
        let chunks = [("in chunks", chunk_rows(tokens, vocabulary, hidden)), ("whole", tokens)];
        for (way, chunk) in chunks {
            let run = || {
                fused_head(states.clone(), &head, teacher, &scored, loss, chunk, true).expect("sizes agree");
            };
            // Allocations are the same in every run, so the name is too.
            let id = format!("{name}, {way}, {:.0} MiB at most", peak_of(run));
            group.bench_function(id, |bencher| bencher.iter(run));
        }
    }
    group.finish();
}

fn store(criterion: &mut Criterion) {
    let (vocabulary, length, rows) = if is_smoke_test() { (512, 16, 2) } else { (32_000, 256, 8) };
    let record = |seed: usize| {
        let ids: Vec<u32> = (0..128).map(|i| ((seed * 31 + i * 241) % vocabulary) as u32).collect();
        let log_probs = (0..128).map(|i| -0.4 - 0.9 * f32::ln(1.0 + i as f32) - (seed % 7) as f32 * 0.01).collect();
        Record { ids, log_probs, log_tail: -3.0 }
    };
    let all: Vec<Vec<Record>> = (0..rows).map(|r| (0..length).map(|t| record(r * length + t)).collect()).collect();
    let ids: Vec<u32> = (0..=length as u32).collect();
    for (name, codec) in [("128, curve", Codec::recommended(vocabulary)), ("128, bf16", Codec::raw(vocabulary, 128))] {
        let bytes = codec.record_bytes();
        let tokenizer = "none".to_string();
        let manifest = Manifest { codec, tokenizer, teacher: "none".into(), temperature: 1.0, length, rows };
        let write = || {
            let mut writer = StoreWriter::new(Vec::new(), manifest.clone()).expect("a valid codec");
            all.iter().for_each(|records| writer.push(&ids, records).expect("rows that fit"));
            writer.finish().expect("all rows")
        };
        let reader = StoreReader::new(write()).expect("a whole store");
        let mut group = criterion.benchmark_group(format!("store, {name}: {bytes} bytes a token"));
        group.sample_size(10).throughput(Throughput::Elements((rows * length) as u64));
        group.bench_function("write", |bencher| bencher.iter(write));
        group.bench_function("read", |bencher| {
            bencher.iter(|| (0..rows).map(|row| reader.row(row).expect("a row").1.len()).sum::<usize>());
        });
        group.finish();
    }
}

criterion_group!(benches, head, store);
criterion_main!(benches);
