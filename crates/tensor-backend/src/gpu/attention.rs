//! Attention of a few queries, as decoding has them, over keys and values as they lie in a cache.
//!
//! A cube takes [`UNITS`] positions of one key head for all query heads that share it, and leaves per query head the highest
//! score, the sum of the weights and the weighted values; a second kernel joins what the cubes of a head left. Many cubes
//! read a long cache at once, and nothing is repeated. Source: Dao et al., "Flash-Decoding for long-context inference"
//! (2023) for the split over positions.

use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use kindling_core::AttendSpec;

use super::{UNITS, cubes, highest_of_cube, in_order, room, strided, sum_of_cube, tensor};

/// Up to so many queries; more meet their keys in a general product.
pub(crate) const MOST_TOKENS: usize = 8;
/// A score below every other, finite so that differences are numbers.
const HIDDEN: f32 = -1e30;

/// What the kernels unroll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Heads {
    /// Query heads that share a key head.
    group: u32,
    kv_heads: u32,
    width: u32,
    value_width: u32,
    /// Queries.
    tokens: u32,
    capped: bool,
}

/// Steps between batches, heads and positions.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Strides {
    batch: u32,
    head: u32,
    position: u32,
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "buffers and numbers of one kernel")]
fn parts(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    weighted: &mut [f32],
    highest: &mut [f32],
    sums: &mut [f32],
    k_strides: Strides,
    v_strides: Strides,
    positions: u32,
    window: u32,
    softcap: f32,
    #[comptime] heads: Heads,
    #[comptime] units: u32,
) {
    let unit = UNIT_POS;
    let (split, splits) = (CUBE_POS_X, CUBE_COUNT_X);
    let (pair, token) = (CUBE_POS_Y, CUBE_POS_Z);
    let (batch, kv_head) = (pair / heads.kv_heads, pair % heads.kv_heads);
    let query = positions - heads.tokens + token;
    let oldest = select(query + 1 > window, query + 1 - window, 0u32);
    let position = split * units + unit;
    let seen = position <= query && position >= oldest;
    // A hidden position reads a visible one: its score is not used.
    let read = select(seen, position, query);
    let key = (batch * k_strides.batch + kv_head * k_strides.head + read * k_strides.position) as usize;
    let value = (batch * v_strides.batch + kv_head * v_strides.head) as usize;

    let mut scratch = Shared::<[f32]>::new_slice(units as usize);
    let mut weights = Shared::<[f32]>::new_slice(units as usize);
    #[unroll]
    for g in 0..heads.group {
        let row = (pair * heads.group + g) * heads.tokens + token;
        let mut score = 0.0f32;
        let start = (row * heads.width) as usize;
        for d in 0..heads.width as usize {
            score += q[start + d] * k[key + d];
        }
        if heads.capped {
            score = softcap * f32::tanh(score / softcap);
        }
        score = select(seen, score, HIDDEN);
        let most = highest_of_cube(score, &mut scratch, units);
        let weight = select(seen, f32::exp(score - most), 0.0f32);
        let sum = sum_of_cube(weight, &mut scratch, units);
        weights[unit as usize] = weight;
        sync_cube();
        let place = row * splits + split;
        if unit == 0 {
            highest[place as usize] = most;
            sums[place as usize] = sum;
        }
        let first = split * units;
        let here = select(positions - first < units, positions - first, units);
        let mut d = unit;
        while d < heads.value_width {
            let mut total = 0.0f32;
            for p in 0..here {
                total += weights[p as usize] * v[value + ((first + p) * v_strides.position + d) as usize];
            }
            weighted[(place * heads.value_width + d) as usize] = total;
            d += units;
        }
        sync_cube();
    }
}

/// One cube is one query of one head.
#[cube(launch)]
fn join(
    weighted: &[f32],
    highest: &[f32],
    sums: &[f32],
    out: &mut [f32],
    splits: u32,
    #[comptime] width: u32,
    #[comptime] units: u32,
) {
    let row = CUBE_POS as u32;
    if (row * width) as usize >= out.len() {
        terminate!();
    }
    let first = row * splits;
    let mut most = highest[first as usize];
    for split in 1..splits {
        let other = highest[(first + split) as usize];
        most = select(other > most, other, most);
    }
    let mut d = UNIT_POS;
    while d < width {
        let mut total = 0.0f32;
        let mut sum = 0.0f32;
        for split in 0..splits {
            let place = first + split;
            let factor = f32::exp(highest[place as usize] - most);
            sum += factor * sums[place as usize];
            total += factor * weighted[(place * width + d) as usize];
        }
        out[(row * width + d) as usize] = total / sum;
        d += units;
    }
}

/// See [`crate::ops::attention`]; at most [`MOST_TOKENS`] queries.
pub(crate) fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, spec: &AttendSpec) -> Tensor<4> {
    let ([batch, count, tokens, width], [_, kv_heads, positions, value_width]) = (q.dims(), v.dims());
    let heads = Heads {
        group: (count / kv_heads) as u32,
        kv_heads: kv_heads as u32,
        width: width as u32,
        value_width: value_width as u32,
        tokens: tokens as u32,
        capped: spec.softcap.is_some(),
    };
    let q = in_order(q.mul_scalar(spec.scale));
    let rows_inside = |x: Tensor<4>| {
        let x = strided(x);
        if x.meta.strides()[3] == 1 { x } else { burn_cubecl::kernel::into_contiguous(x) }
    };
    let (k, v) = (rows_inside(k), rows_inside(v));
    let strides = |x: &burn_cubecl::tensor::CubeTensor| {
        let strides = x.meta.strides();
        StridesLaunch::new(strides[0] as u32, strides[1] as u32, strides[2] as u32)
    };
    let (k_strides, v_strides) = (strides(&k), strides(&v));
    let splits = positions.div_ceil(UNITS as usize);
    let rows = batch * count * tokens;
    let client = q.client.clone();
    let weighted = room(&q, [rows, splits, value_width]);
    let (highest, sums) = (room(&q, [rows, splits]), room(&q, [rows, splits]));
    let out = room(&q, [batch, count, tokens, value_width]);
    parts::launch(
        &client,
        CubeCount::Static(splits as u32, (batch * kv_heads) as u32, tokens as u32),
        CubeDim::new_1d(UNITS),
        q.into_buffer_arg(),
        k.into_buffer_arg(),
        v.into_buffer_arg(),
        weighted.clone().into_buffer_arg(),
        highest.clone().into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        k_strides,
        v_strides,
        positions as u32,
        spec.window.map_or(u32::MAX, |window| window.min(u32::MAX as usize) as u32),
        spec.softcap.unwrap_or(1.0) as f32,
        heads,
        UNITS,
    );
    join::launch(
        &client,
        cubes(rows),
        CubeDim::new_1d(UNITS),
        weighted.into_buffer_arg(),
        highest.into_buffer_arg(),
        sums.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        splits as u32,
        value_width as u32,
        UNITS,
    );
    tensor(out)
}
