//! Decoding asks for no memory once the first token is there.
//!
//! A program of its own, without the harness of tests, whose thread would be counted, too: the allocator counts for all.

use std::alloc::System;
use std::path::Path;

use kindling_core::sampling::{Sampler, SamplingConfig};
use kindling_model::{Decoder, ModelFiles, StepRoom, Wanted};
use kindling_tensor_backend::device::device;
use kindling_tensor_backend::kernels::Arithmetic;
use rayon::prelude::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TOKENS: usize = 40;

/// Allocations while so many tokens are decoded and drawn, after the first of them.
fn allocations(model: &Decoder, sampling: SamplingConfig) -> usize {
    let sampler = Sampler::new(sampling).unwrap();
    let (mut kv, mut room) = (model.new_kv(), StepRoom::default());
    kv.expect(8 + TOKENS);
    let mut history = Vec::with_capacity(8 + TOKENS);
    history.extend([5, 9, 200, 31, 7, 7, 8, 12]);
    model.forward(&[history.clone()], &[], &mut kv, Wanted::LastLogits).unwrap();
    let mut region = None;
    let mut next = 12;
    for position in 0..TOKENS as u64 {
        let logits = model.step(next, &mut kv, &mut room).unwrap().expect("a model that needs no tensors");
        next = sampler.sample(logits, &history, 0, position).unwrap();
        history.push(next);
        region.get_or_insert_with(|| Region::new(ALLOCATOR));
    }
    let change = region.unwrap().change();
    change.allocations + change.reallocations
}

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["tests/fixtures/hf/qwen3", "tests/fixtures/compressed-tensors/w4_sym_g32", "assets/tiny"];
    let drawn = SamplingConfig { temperature: 0.8, top_k: 50, top_p: 0.9, min_p: 0.01, ..Default::default() };
    // A member of the pool, as the driver's main thread is: jobs that come from elsewhere go through a queue that grows.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // A thread asks for some memory of its own when it first looks for work.
    pool.broadcast(|_| (0..1000).into_par_iter().for_each(|i| _ = std::hint::black_box(i)));
    pool.install(|| {
        for folder in folders.map(|name| folder.join(name)) {
            let files = ModelFiles::open(&folder).unwrap();
            let mut model = Decoder::load(&files, &device("flex".parse().unwrap()).unwrap()).unwrap();
            for arithmetic in [Arithmetic::F32, Arithmetic::Int8] {
                model.set_arithmetic(arithmetic);
                for sampling in [SamplingConfig::default(), drawn.clone()] {
                    assert_eq!(allocations(&model, sampling), 0, "{}", folder.display());
                }
            }
        }
    });
}
