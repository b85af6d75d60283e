//! Shared inputs of the criterion suite: seeded layers with realistic statistics, and small checkpoints on disk.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use kindling_core::{Cx, Layer, LayerShape, Needs, Role, Stats};
use kindling_model::checkpoint::DType;
use kindling_model::random::{RandomFormat, config_of, random_checkpoint};
use rand_chacha::rand_core::Rng;

/// The device of every bench.
pub fn device() -> Device {
    Device::default()
}

/// Standard normal values from a named stream.
pub fn normals(name: &str, count: usize) -> Vec<f32> {
    let mut rng = Cx::new(1).rng(name);
    let uniform = |word: u32| (word as f32 + 1.0) / 4_294_967_296.0;
    (0..count)
        .map(|_| {
            let word = rng.next_u64();
            let radius = (-2.0 * uniform((word >> 32) as u32).ln()).sqrt();
            radius * (std::f32::consts::TAU * uniform(word as u32)).cos()
        })
        .collect()
}

/// A square layer with a Gaussian weight.
pub fn layer(size: usize) -> Layer {
    let shape = LayerShape {
        name: "self_attn.o_proj".into(),
        role: Role::AttentionOutput,
        unit: 0,
        site: "self_attn.inner".into(),
        rows: size,
        cols: size,
    };
    let weight = TensorData::new(normals("weight", size * size), [size, size]);
    Layer { shape, weight: Tensor::from_data(weight, &device()), mask: None }
}

/// Statistics of twice as many tokens as inputs, neighbouring inputs correlated.
pub fn statistics(size: usize) -> Stats {
    let tokens = 2 * size;
    let mut x = normals("inputs", tokens * size);
    for row in x.chunks_exact_mut(size) {
        for j in 1..size {
            row[j] = 0.6 * row[j - 1] + 0.8 * row[j];
        }
    }
    let mut stats = Stats::new(size, Needs::Moments);
    stats.add_norms(&x);
    kindling_tensor_backend::linalg::xtx(&x, tokens, size, &mut stats.gram).expect("sizes agree");
    stats
}

/// A random checkpoint of a named shape, written once and kept in the target folder.
pub fn checkpoint(shape: &str) -> PathBuf {
    write_once(shape, &config_of(shape, DType::BF16).expect("a known shape"), DType::BF16)
}

/// A random f32 checkpoint of a configuration, written once and kept in the target folder.
pub fn checkpoint_of(name: &str, config: &str) -> PathBuf {
    write_once(name, &serde_json::from_str(config).expect("valid JSON"), DType::F32)
}

fn write_once(name: &str, config: &serde_json::Value, dtype: DType) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench-checkpoints").join(name);
    if !dir.join("config.json").exists() {
        random_checkpoint(config, dtype, RandomFormat::DENSE, &dir, 5_000_000_000, &Cx::new(1))
            .expect("a writable target folder");
    }
    dir
}

/// Whether criterion only checks that benches run: large sizes are left out then.
pub fn is_smoke_test() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}
