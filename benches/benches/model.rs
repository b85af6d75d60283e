//! Opening, loading, one block forward.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_benches::{checkpoint, device, is_smoke_test, normals};
use kindling_model::decoder::{ForwardCx, Rotary};
use kindling_model::{DenseKv, ModelFiles};

fn model(criterion: &mut Criterion) {
    let name = if is_smoke_test() { "llama-160m" } else { "tinyllama-1b" };
    let dir = checkpoint(name);
    let mut group = criterion.benchmark_group("checkpoint");
    group.sample_size(20);
    group.bench_function(format!("open/{name}"), |bencher| {
        bencher.iter(|| ModelFiles::open(&dir).expect("written by this bench"));
    });
    let files = ModelFiles::open(&dir).expect("written by this bench");
    let spec = files.spec();
    group.throughput(Throughput::Bytes(2 * spec.block_parameters(0)));
    group.bench_function(format!("load block/{name}"), |bencher| {
        bencher.iter(|| files.block(0, &device()).expect("a complete checkpoint"));
    });
    group.finish();

    let block = files.block(0, &device()).expect("a complete checkpoint");
    let mut group = criterion.benchmark_group("block forward");
    group.sample_size(20);
    for tokens in [1usize, 512] {
        let hidden = spec.hidden_size;
        let x = burn::tensor::TensorData::new(normals("hidden", tokens * hidden), [1, tokens, hidden]);
        let x = burn::tensor::Tensor::<3>::from_data(x, &device());
        let rotary = Rotary::new(&spec.rope, 0, tokens, &[], &device());
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(format!("{name}/{tokens} tokens"), |bencher| {
            bencher.iter(|| {
                let mut kv = DenseKv::new(1, &device());
                let mut cx = ForwardCx { kv: &mut kv, layer: 0, rotary: &rotary, tap: None };
                block.forward(x.clone(), &mut cx).expect("matching shapes").into_data()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, model);
criterion_main!(benches);
