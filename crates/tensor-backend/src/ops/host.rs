//! The operations of a decoder from memory to memory, without tensors: what a token costs beside its products.
//!
//! Each is the kernel that tensors meet on Flex, so results have the same bits. Nothing is allocated for one token.

use kindling_core::AttendSpec;

pub use super::rows::Rows;
use super::simd::vectorised;
use super::{
    attention as attention_kernel, rms_norm as norm_kernel, rotary as rotary_kernel, swiglu as swiglu_kernel, tree,
};

/// Zeros that are written and read often, as the buffers of a cache are: in large pages. None of it is touched here.
pub fn room(len: usize) -> Vec<f32> {
    crate::kernels::pages::untouched_zeros(len)
}

/// See [`rms_norm`](super::rms_norm): rows as wide as `gain`.
///
/// # Panics
/// If `x` and `y` differ in length.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "rows to norm");
    norm_kernel::forward_rows(x, gain, eps, y);
}

/// Adds `y` to `x`.
///
/// # Panics
/// If they differ in length.
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "rows to add");
    add_all(x, y);
}

vectorised! {
    fn add_all(x: &mut [f32], y: &[f32]) {
        let _ = FMA;
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}

/// See [`swiglu`](super::swiglu).
///
/// # Panics
/// If the slices differ in length.
pub fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == up.len() && up.len() == y.len(), "gate and up");
    swiglu_kernel::forward_chunk(gate, up, y);
}

/// See [`rotary`](super::rotary): heads of `width` at one position, whose cosines and sines are given.
///
/// # Panics
/// If `x` and `y` differ in length, or a head is narrower than what turns.
pub fn rotary(x: &[f32], width: usize, cos: &[f32], sin: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len() && cos.len() == sin.len() && 2 * cos.len() <= width, "heads to turn");
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        rotary_kernel::turn(x, cos, sin, 1.0, y);
    }
}

/// See [`attention`](super::attention) and, with `parents`, [`attention_tree`](super::attention_tree). `out` is
/// `[batch, tokens, heads, value width]`. For one token memory is asked for once, for so many `positions`, and kept in `room`.
///
/// # Panics
/// If heads are no multiple of key heads, or a shape does not fit.
pub fn attention(
    [q, k, v]: [&Rows<'_>; 3],
    parents: Option<&[Option<usize>]>,
    spec: &AttendSpec,
    positions: usize,
    room: &mut Vec<f32>,
    out: &mut [f32],
) {
    let ([batch, heads, tokens, width], value_width) = (q.shape, v.shape[3]);
    let fits = k.shape[1] > 0 && heads.is_multiple_of(k.shape[1]) && k.shape[2] >= tokens && k.shape[3] == width;
    assert!(fits && k.shape[..3] == v.shape[..3], "queries {:?}, keys {:?}, values {:?}", q.shape, k.shape, v.shape);
    assert_eq!(out.len(), batch * heads * tokens * value_width, "output of attention");
    if out.is_empty() {
        return;
    }
    if batch == 1 && tokens == 1 && q.strides[1] == width {
        return attention_kernel::one(&q.values[..heads * width], k, v, spec, positions, room, out);
    }
    let heads_first = match parents {
        None => attention_kernel::forward(q, k, v, spec).0,
        Some(parents) => tree::forward(q, k, v, parents, spec),
    };
    out.copy_from_slice(&attention_kernel::tokens_first(&heads_first, [batch, heads, tokens, value_width]));
}
