//! Operations of a decoder that would otherwise cost several passes over memory.
//!
//! Each has a plain twin made of tensor operations (`*_reference`), which every device runs, and a kernel for Flex in
//! f32; both take part in autodiff. GPUs have kernels for inference. What they are for:
//!
//! | operation | instead of |
//! | --- | --- |
//! | [`rms_norm`] | six passes |
//! | [`swiglu`] | three passes |
//! | [`rotary`] | seven passes and a concatenation |
//! | [`attention`] | scores `[heads, tokens, tokens]` in memory |
//! | [`attention_tree`] | a mask, and three passes over the scores |
//! | [`product`] | packing a weight for a few rows |
//! | [`cross_entropy`] | six passes over `[tokens, vocabulary]` |
//!
//! [`host`] has those of a decoder's forward pass without tensors around them.
// Without Flex the kernels have no caller, without autodiff their gradients have none.
#![cfg_attr(not(all(feature = "flex", feature = "autodiff")), allow(dead_code))]

mod attention;
mod cross_entropy;
pub(crate) mod few_rows;
#[cfg(feature = "flex")]
mod flex;
pub mod host;
pub(crate) mod product;
mod rms_norm;
mod rotary;
mod rows;
pub(crate) mod simd;
mod swiglu;
#[cfg(all(test, feature = "flex", feature = "autodiff"))]
mod tests;
pub(crate) mod tile;
mod tree;

use burn::tensor::{Device, Int, Tensor, TensorData};
use kindling_core::AttendSpec;

#[cfg(feature = "cube")]
use crate::gpu;

pub use attention::attention_reference;
pub use cross_entropy::cross_entropy_reference;
#[cfg(feature = "flex")]
pub use flex::HostMatrix;
pub use product::product_reference;
pub use rms_norm::rms_norm_reference;
pub use rotary::rotary_reference;
pub use swiglu::swiglu_reference;
pub use tree::attention_tree_reference;

/// `x / sqrt(mean(x²) + eps) · gain` over the last dimension; `gain` is `[features]`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, eps: f64) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::has_kernels(&x) && flex::has_kernels(&gain) {
        return flex::rms_norm(x, gain, eps);
    }
    #[cfg(feature = "cube")]
    if gpu::has_kernels(&x) && gpu::has_kernels(&gain) {
        return gpu::rms_norm(x, gain, eps);
    }
    rms_norm_reference(x, gain, eps)
}

/// Whether `x` is an f32 tensor of Flex outside autodiff, whose memory kernels may read.
pub fn on_flex<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "flex")]
    return flex::has_kernels(x) && !flex::is_tracked(x);
    #[cfg(not(feature = "flex"))]
    {
        let _ = x;
        false
    }
}

/// Zeros `shape` that are written and read often, as the buffers of a cache are: on the processor in large pages.
pub fn room(shape: [usize; 4], device: &Device) -> Tensor<4> {
    let on_processor = on_flex(&Tensor::<1>::empty([1], device));
    if !on_processor {
        return Tensor::zeros(shape, device);
    }
    let zeros = crate::kernels::pages::untouched_zeros(shape.iter().product());
    Tensor::from_data(TensorData::new(zeros, shape), device)
}

/// Whether tensors on `device` meet the kernels for GPUs.
pub fn on_gpu(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return gpu::has_kernels(&Tensor::<1>::empty([1], device));
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        false
    }
}

/// `silu(gate) · up`.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::has_kernels(&gate) && flex::has_kernels(&up) {
        return flex::swiglu(gate, up);
    }
    #[cfg(feature = "cube")]
    if gpu::has_kernels(&gate) && gpu::has_kernels(&up) {
        return gpu::swiglu(gate, up);
    }
    swiglu_reference(gate, up)
}

/// Turns `x` `[batch, heads, tokens, width]` by angles with cosines and sines `[batch or 1, 1, tokens, half]`:
/// dimension `i < half` together with `i + half`; dimensions from `2 · half` on stay.
///
/// No gradient flows to the angles.
pub fn rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::has_kernels(&x) && flex::has_kernels(&cos) && flex::has_kernels(&sin) {
        return flex::rotary(x, cos, sin);
    }
    #[cfg(feature = "cube")]
    if gpu::has_kernels(&x) && gpu::has_kernels(&cos) && gpu::has_kernels(&sin) {
        return gpu::rotary(x, cos, sin);
    }
    rotary_reference(x, cos, sin)
}

/// Causal attention of queries `[batch, heads, tokens, width]` at the last of the positions of keys
/// `[batch, kv heads, positions, width]` and values `[batch, kv heads, positions, value width]`.
///
/// `kv heads` divides `heads`, and consecutive query heads share a key head. Returns
/// `[batch, heads, tokens, value width]`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, spec: &AttendSpec) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if flex::has_kernels(&q) && flex::has_kernels(&k) && flex::has_kernels(&v) {
        return flex::attention(q, k, v, spec);
    }
    #[cfg(feature = "cube")]
    if q.dims()[2] <= gpu::MOST_TOKENS && gpu::has_kernels(&q) && gpu::has_kernels(&k) && gpu::has_kernels(&v) {
        return gpu::attention(q, k, v, spec);
    }
    attention_reference(q, k, v, spec)
}

/// Attention of the newest positions of a text as a tree: `parents[t]` is the earlier of them that position `t` follows, `None`
/// the older text. Shapes as in [`attention`], one parent a token.
pub fn attention_tree(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    parents: &[Option<usize>],
    spec: &AttendSpec,
) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if on_flex(&q) && on_flex(&k) && on_flex(&v) {
        return flex::attention_tree(q, k, v, parents, spec);
    }
    attention_tree_reference(q, k, v, parents, spec)
}

/// Loss `−log q_label` of every row `[rows]`, and its gradient with respect to the logits, `q − onehot(label)`,
/// `[rows, vocabulary]`, which takes the place of the logits. No part of autodiff.
pub fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> (Tensor<1>, Tensor<2>) {
    #[cfg(feature = "flex")]
    if flex::has_kernels(&logits) && !flex::is_tracked(&logits) {
        return flex::cross_entropy(logits, labels);
    }
    cross_entropy_reference(logits, labels)
}

/// `[rows, in] · [in, out]`. A few rows that autodiff does not track meet the weight as it lies, and each row gives the
/// same alone as beside others; everything else is a general product.
pub fn product(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    {
        let fits = x.dims()[0] <= product::MOST_ROWS && x.dims()[1] == weight.dims()[0] && x.dims()[1] > 0;
        let plain = |x: &Tensor<2>| flex::has_kernels(x) && !flex::is_tracked(x);
        if fits && plain(&x) && plain(&weight) {
            return flex::product(x, weight);
        }
    }
    product_reference(x, weight)
}
