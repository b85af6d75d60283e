//! Every method of every crate on square layers: what compressing one matrix costs once its statistics are known.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kindling_benches::{is_smoke_test, layer, statistics};
use kindling_core::options::Value;
use kindling_core::{Cx, Family, Method, Options};

fn solve(criterion: &mut Criterion) {
    let sizes: &[usize] = if is_smoke_test() { &[256] } else { &[2048, 4096] };
    let mut group = criterion.benchmark_group("solve");
    group.sample_size(10);
    for &size in sizes {
        let (layer, stats, cx) = (layer(size), statistics(size), Cx::new(1));
        for entry in kindling_prune::METHODS.iter().chain(kindling_quant::METHODS) {
            let options: Options = match entry.family {
                Family::Prune => [("sparsity", Value::Float(0.5))].into_iter().collect(),
                Family::Quantise => [("bits", Value::Int(4)), ("group_size", Value::Int(128))].into_iter().collect(),
            };
            // Methods that act on whole blocks have no square layer to act on.
            if let Ok(Method::Layer(method)) = (entry.build)(&options) {
                group.bench_with_input(BenchmarkId::new(entry.name, size), &size, |bencher, _| {
                    bencher.iter(|| method.compress(&layer, &stats, &cx).expect("a well-formed layer"));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, solve);
criterion_main!(benches);
