//! Products with packed weights, 2048 × 2048, over so many matrices that none stays in the cache.
//!
//! Floor of one row: the bytes of the weights over the memory's bandwidth (`doctor`). Floor of many rows: two operations a
//! weight and row at the rate of the 8-bit product, 64 a cycle and core with AVX-512 VNNI.

use std::hint::black_box;

use burn::tensor::{Tensor, TensorData};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use kindling_benches::{device, is_smoke_test, normals};
use kindling_tensor_backend::kernels::{
    Activations, Arithmetic, Codes, HalfTiles, MaskedRows, Source, TileScales, Tiles, lut, product,
};

fn size() -> usize {
    if is_smoke_test() { 64 } else { 2048 }
}

/// Matrices of 4 bits that exceed a cache of 64 MiB.
fn count() -> usize {
    if is_smoke_test() { 2 } else { 64 }
}

fn tiles(bits: u8, group: usize) -> Tiles {
    let size = size();
    let code = |row: usize, i: usize| ((row * 31 + i * 17) % (1 << bits)) as u8;
    let codes = Codes::Function(&code);
    let source = Source { rows: size, cols: size, bits, group, codes, zero: None, order: None };
    let scales = (0..size * size / group).map(|i| f16::from_f32(0.01 + (i % 7) as f32 * 1e-3)).collect();
    Tiles::new(&source, TileScales::F16(scales))
}

/// Values that bf16 holds.
fn values(size: usize) -> Vec<f32> {
    normals("w", size * size).iter().map(|w| bf16::from_f32(*w).to_f32()).collect()
}

/// Ways to prune [`values`]: of so many neighbours, or of a row, this share.
const PRUNED: [(&str, usize, f64); 6] = [
    ("2:4", 4, 0.5),
    ("4:8", 8, 0.5),
    ("25 %", usize::MAX, 0.25),
    ("50 %", usize::MAX, 0.5),
    ("70 %", usize::MAX, 0.7),
    ("90 %", usize::MAX, 0.9),
];

fn pruned(size: usize, of: usize, share: f64) -> MaskedRows {
    let (of, mut values) = (of.min(size), values(size));
    let chances = normals("zeros", size * size);
    for (values, chances) in values.chunks_mut(of).zip(chances.chunks(of)) {
        let mut order: Vec<usize> = (0..of).collect();
        order.sort_unstable_by(|&a, &b| chances[a].total_cmp(&chances[b]));
        order[..(of as f64 * share) as usize].iter().for_each(|&i| values[i] = 0.0);
    }
    MaskedRows::new(&values, size, size)
}

fn one_row(criterion: &mut Criterion) {
    let (size, count) = (size(), count());
    let x = normals("x", size);
    let mut out = vec![0.0; size];
    let mut group = criterion.benchmark_group("one row");
    for (bits, per_scale) in [(4, 32), (4, 64), (8, 32), (3, 64), (2, 64)] {
        let all = vec![tiles(bits, per_scale); count];
        group.throughput(Throughput::Bytes(all[0].bytes() as u64));
        for arithmetic in [Arithmetic::Int8, Arithmetic::F32] {
            let mut at = 0;
            group.bench_function(format!("{bits} bits, groups of {per_scale}, {arithmetic:?}"), |bencher| {
                bencher.iter(|| {
                    let x = Activations::new(&x, 1, size, None, arithmetic);
                    product(&all[at % count], &x, &mut out);
                    at += 1;
                });
            });
        }
    }
    #[cfg(feature = "candle")]
    candle::one_row(&mut group, &x, count);
    let values = values(size);
    let all = vec![HalfTiles::exactly(&values, size, size).expect("rounded to bf16"); count];
    group.throughput(Throughput::Bytes(all[0].bytes() as u64));
    let mut at = 0;
    for rows in [1, 4] {
        let (x, mut out) = (normals("x", rows * size), vec![0.0; rows * size]);
        group.bench_function(format!("bf16, {rows} at a time"), |bencher| {
            bencher.iter(|| {
                at += 1;
                all[at % count].product(&x, rows, &mut out);
            });
        });
    }
    drop(all);
    for (name, of, share) in PRUNED {
        let all = vec![pruned(size, of, share); count];
        group.throughput(Throughput::Bytes(all[0].bytes() as u64));
        for rows in [1, 4] {
            let (x, mut out) = (normals("x", rows * size), vec![0.0; rows * size]);
            group.bench_function(format!("bf16, {name} pruned, {rows} at a time"), |bencher| {
                bencher.iter(|| {
                    at += 1;
                    all[at % count].product(&x, rows, &mut out);
                });
            });
        }
    }
    let dense = Tensor::<2>::from_data(TensorData::new(values, [size, size]), &device());
    let all: Vec<Tensor<2>> = (0..count).map(|i| dense.clone().mul_scalar(1.0 + i as f32)).collect();
    let row = Tensor::<2>::from_data(TensorData::new(x.clone(), [1, size]), &device());
    group.throughput(Throughput::Bytes(4 * (size * size) as u64));
    group.bench_function("f32, burn", |bencher| {
        bencher.iter(|| {
            at += 1;
            black_box(row.clone().matmul(all[at % count].clone()).into_data())
        });
    });
    group.finish();
}

/// Tables against products, out of the cache and in it.
fn look_ups(criterion: &mut Criterion) {
    let size = size();
    let x = normals("x", size);
    let mut out = vec![0.0; size];
    for (name, count) in [("look-ups, one row", count()), ("look-ups, one row, in the cache", 1)] {
        let mut group = criterion.benchmark_group(name);
        for bits in [2, 3, 4] {
            let tiles = vec![tiles(bits, 64); count];
            let planes = vec![lut::Planes::new(&tiles[0]).expect("a few bits"); count];
            group.throughput(Throughput::Bytes(tiles[0].bytes() as u64));
            let mut at = 0;
            group.bench_function(format!("{bits} bits, products"), |bencher| {
                bencher.iter(|| {
                    at += 1;
                    product(&tiles[at % count], &Activations::new(&x, 1, size, None, Arithmetic::Int8), &mut out);
                });
            });
            group.bench_function(format!("{bits} bits, tables"), |bencher| {
                bencher.iter(|| {
                    at += 1;
                    lut::product(&planes[at % count], &lut::Lookups::new(&x, 1, size), &mut out);
                });
            });
        }
        group.finish();
    }
}

fn many_rows(criterion: &mut Criterion) {
    let size = size();
    let rows = if is_smoke_test() { 3 } else { 512 };
    let x = normals("x", rows * size);
    let mut out = vec![0.0; rows * size];
    let mut group = criterion.benchmark_group(format!("{rows} rows"));
    group.sample_size(20).throughput(Throughput::Elements((2 * rows * size * size) as u64));
    for (bits, per_scale) in [(4, 32), (4, 64), (8, 32), (3, 64), (2, 64)] {
        let weight = tiles(bits, per_scale);
        group.bench_function(format!("{bits} bits, groups of {per_scale}, Int8"), |bencher| {
            bencher.iter(|| {
                let x = Activations::new(&x, rows, size, None, Arithmetic::Int8);
                product(&weight, &x, &mut out);
            });
        });
    }
    #[cfg(feature = "candle")]
    candle::many_rows(&mut group, &x, rows);
    let half = HalfTiles::exactly(&values(size), size, size).expect("rounded to bf16");
    group.bench_function("bf16", |bencher| bencher.iter(|| half.product(&x, rows, &mut out)));
    for (name, of, share) in PRUNED {
        let weight = pruned(size, of, share);
        group.bench_function(format!("bf16, {name} pruned"), |bencher| {
            bencher.iter(|| weight.product(&x, rows, &mut out));
        });
    }
    let matrix = |name: &str, rows: usize| {
        Tensor::<2>::from_data(TensorData::new(normals(name, rows * size), [rows, size]), &device())
    };
    let (x, w) = (matrix("x", rows), matrix("w", size));
    group.bench_function("f32, burn", |bencher| bencher.iter(|| black_box(x.clone().matmul(w.clone()).into_data())));
    group.finish();
}

/// The same products by candle, whose blocks of 32 codes have one f16 scale like groups of 32 here.
#[cfg(feature = "candle")]
mod candle {
    use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
    use candle_core::{Device, Module, Tensor};
    use criterion::measurement::WallTime;
    use criterion::{BenchmarkGroup, Throughput};

    use super::{black_box, normals, size};

    const TYPES: [GgmlDType; 2] = [GgmlDType::Q4_0, GgmlDType::Q8_0];

    fn weight(dtype: GgmlDType) -> (QMatMul, u64) {
        let values = normals("w", size() * size());
        let dense = Tensor::from_vec(values, (size(), size()), &Device::Cpu).expect("as many values");
        let codes = QTensor::quantize(&dense, dtype).expect("whole blocks");
        let bytes = codes.storage_size_in_bytes() as u64;
        (QMatMul::from_qtensor(codes).expect("a type for products"), bytes)
    }

    fn inputs(x: &[f32], rows: usize) -> Tensor {
        Tensor::from_slice(x, (rows, size()), &Device::Cpu).expect("as many values")
    }

    pub(super) fn one_row(group: &mut BenchmarkGroup<'_, WallTime>, x: &[f32], count: usize) {
        let x = inputs(x, 1);
        for dtype in TYPES {
            let (all, bytes): (Vec<_>, Vec<_>) = (0..count).map(|_| weight(dtype)).unzip();
            group.throughput(Throughput::Bytes(bytes[0]));
            let mut at = 0;
            group.bench_function(format!("candle, {dtype:?}"), |bencher| {
                bencher.iter(|| {
                    at += 1;
                    black_box(all[at % count].forward(&x).expect("shapes fit"))
                });
            });
        }
    }

    pub(super) fn many_rows(group: &mut BenchmarkGroup<'_, WallTime>, x: &[f32], rows: usize) {
        let x = inputs(x, rows);
        for dtype in TYPES {
            let (weight, _) = weight(dtype);
            group.bench_function(format!("candle, {dtype:?}"), |bencher| {
                bencher.iter(|| black_box(weight.forward(&x).expect("shapes fit")));
            });
        }
    }
}

criterion_group!(benches, one_row, look_ups, many_rows);
criterion_main!(benches);
