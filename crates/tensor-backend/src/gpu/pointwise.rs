//! Operations that pass once over their input: the same sums as their plain twins in `ops`.

use burn::backend::TensorMetadata;
use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::{calculate_cube_count_elemwise, prelude::*};

use super::{UNITS, cubes, in_order, room, sum_of_cube, tensor};

/// One cube is one row.
#[cube(launch)]
fn norm_rows(x: &[f32], gain: &[f32], out: &mut [f32], eps: f32, #[comptime] width: usize, #[comptime] units: u32) {
    let start = CUBE_POS * width;
    if start >= out.len() {
        terminate!();
    }
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let value = x[start + i];
        sum += value * value;
        i += units as usize;
    }
    let mut parts = Shared::<[f32]>::new_slice(units as usize);
    let mean = sum_of_cube(sum, &mut parts, units) / f32::cast_from(width as u32);
    let scale = 1.0f32 / f32::sqrt(mean + eps);
    let mut i = UNIT_POS as usize;
    while i < width {
        out[start + i] = x[start + i] * scale * gain[i];
        i += units as usize;
    }
}

/// See [`crate::ops::rms_norm`].
pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, eps: f64) -> Tensor<D> {
    let (x, gain) = (in_order(x), in_order(gain));
    let (shape, width) = (x.shape(), gain.shape()[0]);
    let rows = shape.num_elements() / width.max(1);
    let out = room(&x, shape);
    if rows > 0 {
        let client = x.client.clone();
        norm_rows::launch(
            &client,
            cubes(rows),
            CubeDim::new_1d(UNITS),
            x.into_buffer_arg(),
            gain.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            eps as f32,
            width,
            UNITS,
        );
    }
    tensor(out)
}

#[cube(launch)]
fn gated(gate: &[f32], up: &[f32], out: &mut [f32]) {
    if ABSOLUTE_POS < out.len() {
        let gate = gate[ABSOLUTE_POS];
        out[ABSOLUTE_POS] = gate * up[ABSOLUTE_POS] / (1.0f32 + f32::exp(-gate));
    }
}

/// See [`crate::ops::swiglu`].
pub(crate) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    let (gate, up) = (in_order(gate), in_order(up));
    let out = room(&gate, gate.shape());
    let (client, units) = (gate.client.clone(), out.shape().num_elements());
    if units > 0 {
        let dim = CubeDim::new_1d(UNITS);
        gated::launch(
            &client,
            calculate_cube_count_elemwise(&client, units, dim),
            dim,
            gate.into_buffer_arg(),
            up.into_buffer_arg(),
            out.clone().into_buffer_arg(),
        );
    }
    tensor(out)
}

/// One unit is one dimension of one head at one token; those beyond the pairs only move.
#[cube(launch)]
fn turn(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
    heads: u32,
    tokens: u32,
    own: u32,
    #[comptime] half: u32,
    #[comptime] width: u32,
) {
    if ABSOLUTE_POS < out.len() {
        let at = ABSOLUTE_POS as u32;
        let dimension = at % width;
        let row = at / width;
        let token = row % tokens;
        let batch = row / tokens / heads;
        if dimension >= 2 * half {
            out[ABSOLUTE_POS] = x[ABSOLUTE_POS];
        } else {
            let pair = dimension % half;
            let angle = ((batch * own + token) * half + pair) as usize;
            let first = x[(row * width + pair) as usize];
            let second = x[(row * width + pair + half) as usize];
            if dimension < half {
                out[ABSOLUTE_POS] = first * cos[angle] - second * sin[angle];
            } else {
                out[ABSOLUTE_POS] = second * cos[angle] + first * sin[angle];
            }
        }
    }
}

/// See [`crate::ops::rotary`].
pub(crate) fn rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let [rows, _, tokens, half] = cos.dims();
    let [_, heads, _, width] = x.dims();
    // One table for the batch, or one for each of its rows.
    let own = if rows > 1 { tokens } else { 0 };
    let (x, cos, sin) = (in_order(x), in_order(cos), in_order(sin));
    let out = room(&x, x.shape());
    let (client, units) = (x.client.clone(), out.shape().num_elements());
    if units > 0 {
        let dim = CubeDim::new_1d(UNITS);
        turn::launch(
            &client,
            calculate_cube_count_elemwise(&client, units, dim),
            dim,
            x.into_buffer_arg(),
            cos.into_buffer_arg(),
            sin.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            heads as u32,
            tokens as u32,
            own as u32,
            half as u32,
            width as u32,
        );
    }
    tensor(out)
}
