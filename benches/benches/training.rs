//! A step of training on the shape of a small grouped-query Llama (3.9M parameters, 8 blocks, 512 tokens).
//!
//! Floor: 6 floating-point operations per weight and token, and 3.5 times the attention of a forward pass, at the rate of
//! the matrix product (see `doctor`).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_benches::{checkpoint_of, device, is_smoke_test};
use kindling_distill::loss::CrossEntropy;
use kindling_distill::{AdamW, Decay, LayerOptions, Precision, Row, Schedule, TrainOptions, Trainer};
use kindling_model::{Decoder, ModelFiles};

const LENGTH: usize = 512;

fn options(micro_rows: usize, workers: usize, checkpoint_blocks: bool) -> TrainOptions {
    let schedule = Schedule { peak: 1e-3, warmup: 10, decay: Decay::Constant, last: 1.0, steps: 1000 };
    let adamw = AdamW::default();
    TrainOptions {
        schedule,
        adamw,
        muon: None,
        clip: Some(1.0),
        micro_rows,
        workers,
        checkpoint_blocks,
        spike: 100.0,
        layers: LayerOptions::default(),
        precision: Precision::F32,
    }
}

fn rows(count: usize, vocabulary: usize) -> Vec<Row> {
    let row = |i: usize| (0..=LENGTH).map(|t| ((t * 31 + i * 977) % vocabulary) as u32).collect();
    (0..count).map(|i| Row::plain(row(i))).collect()
}

fn training(criterion: &mut Criterion) {
    let dir = checkpoint_of(
        "small-llama",
        r#"{"model_type": "llama", "vocab_size": 4096, "hidden_size": 192, "intermediate_size": 512,
            "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
            "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": true, "initializer_range": 0.02, "torch_dtype": "float32"}"#,
    );
    let files = ModelFiles::open(dir).expect("written by this bench");
    let mut group = criterion.benchmark_group("training step");
    group.sample_size(10);
    let (count, variants): (usize, &[(&str, usize, usize, bool)]) = if is_smoke_test() {
        (1, &[("all rows", 0, 1, false)])
    } else {
        let plain = [("all rows", 0, 1, false), ("micro-batches of 4", 4, 1, false)];
        let workers =
            [("2 workers, 4 rows", 4, 2, false), ("2 workers, 2 rows", 2, 2, false), ("2 workers, 1 row", 1, 2, false)];
        (16, &[plain[0], plain[1], workers[0], workers[1], workers[2], ("blocks again", 4, 2, true)])
    };
    for (name, micro_rows, workers, checkpoint_blocks) in variants {
        let model = Decoder::load_dense(&files, &device().autodiff()).expect("a complete checkpoint");
        let rows = rows(count, files.spec().vocab_size);
        let options = options(*micro_rows, *workers, *checkpoint_blocks);
        let mut trainer = Trainer::new(model, None, Box::new(CrossEntropy), options, &|_| true).expect("trainable");
        group.throughput(Throughput::Elements((count * LENGTH) as u64));
        group.bench_function(*name, |bencher| bencher.iter(|| trainer.step(&rows).expect("finite")));
    }
    group.finish();
}

criterion_group!(benches, training);
criterion_main!(benches);
