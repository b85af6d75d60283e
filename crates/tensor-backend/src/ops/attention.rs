//! Causal attention with grouped heads, without scores for the whole sequence in memory.
//!
//! A block of queries at a time meets all keys it may see; the backward pass computes the scores anew from the
//! logarithm of each row's sum. Source: Dao et al., "FlashAttention", arXiv 2205.14135 (the recomputation; the tiles
//! here span whole rows, because a CPU's cache holds them).

use burn::tensor::{Bool, Tensor, TensorData, activation::softmax};
use kindling_core::AttendSpec;
use rayon::prelude::*;

use super::few_rows;
use super::rows::Rows;
use super::simd::{LANES, dot, exp, total, vectorised};
use super::tile::{Mat, product};

/// Queries of one head that meet their keys together.
const BLOCK: usize = 64;

/// The plain twin: scores of the whole sequence, a mask, a softmax.
///
/// Queries `[batch, heads, tokens, width]` are the last of the positions of keys `[batch, kv heads, positions, width]`
/// and values `[batch, kv heads, positions, value width]`; `kv heads` divides `heads`.
pub fn attention_reference(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, spec: &AttendSpec) -> Tensor<4> {
    let (tokens, positions) = (q.dims()[2], k.dims()[2]);
    let hidden: Vec<bool> = (positions - tokens..positions)
        .flat_map(|query| {
            let oldest = spec.window.map_or(0, |w| (query + 1).saturating_sub(w));
            (0..positions).map(move |key| key > query || key < oldest)
        })
        .collect();
    masked_reference(q, k, v, hidden, spec)
}

/// Attention in which query `t` of `[batch, heads, tokens, width]` does not see the keys that row `t` of `hidden`
/// `[tokens, positions]` names.
pub(super) fn masked_reference(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    hidden: Vec<bool>,
    spec: &AttendSpec,
) -> Tensor<4> {
    let [batch, heads, tokens, width] = q.dims();
    let ([_, kv_heads, positions, _], [_, _, _, value_width]) = (k.dims(), v.dims());
    let group = heads / kv_heads;
    let rows = q.mul_scalar(spec.scale).reshape([batch, kv_heads, group * tokens, width]);
    let mut scores = rows.matmul(k.swap_dims(2, 3));
    if let Some(cap) = spec.softcap {
        scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
    }
    let mask = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [tokens, positions]), &scores.device());
    let scores = scores.reshape([batch, heads, tokens, positions]);
    let mask = mask.reshape([1, 1, tokens, positions]).expand([batch, heads, tokens, positions]);
    let weights = softmax(scores.mask_fill(mask, -1e30), 3);
    weights.reshape([batch, kv_heads, group * tokens, positions]).matmul(v).reshape([batch, heads, tokens, value_width])
}

/// A block of queries of one group of heads: rows `(head, token)` over keys `first..end`.
#[derive(Clone, Copy)]
struct Block {
    /// The first query's number and its position among the keys.
    token: usize,
    position: usize,
    tokens: usize,
    rows: usize,
    /// Keys that some query of the block sees.
    first: usize,
    end: usize,
    window: usize,
}

impl Block {
    fn keys(&self) -> usize {
        self.end - self.first
    }

    /// The columns that row `row` sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> (usize, usize) {
        let position = self.position + row % self.tokens;
        ((position + 1).saturating_sub(self.window).max(self.first) - self.first, position + 1 - self.first)
    }
}

fn blocks(q: &Rows<'_>, k: &Rows<'_>, group: usize, window: Option<usize>) -> impl Iterator<Item = Block> {
    let (tokens, positions) = (q.shape[2], k.shape[2]);
    let window = window.unwrap_or(usize::MAX);
    (0..tokens).step_by(BLOCK).map(move |token| {
        let count = BLOCK.min(tokens - token);
        let position = positions - tokens + token;
        let first = (position + 1).saturating_sub(window);
        Block { token, position, tokens: count, rows: group * count, first, end: position + count, window }
    })
}

vectorised! {
    /// Scores become weights in place; returns the logarithms of the sums.
    fn softmax_rows(scores: &mut [f32], block: Block, softcap: Option<f32>, sums: &mut [f32]) {
        for (row, (scores, log_sum)) in scores.chunks_exact_mut(block.keys()).zip(sums).enumerate() {
            let (from, to) = block.seen(row);
            let (before, rest) = scores.split_at_mut(from);
            let (seen, after) = rest.split_at_mut(to - from);
            before.fill(0.0);
            after.fill(0.0);
            *log_sum = softmax_row::<FMA>(seen, softcap);
        }
    }

    /// Scores become weights again, by the logarithms of their sums.
    fn weights_again(scores: &mut [f32], slopes: &mut [f32], block: Block, softcap: Option<f32>, sums: &[f32]) {
        let keys = block.keys();
        for (row, (scores, log_sum)) in scores.chunks_exact_mut(keys).zip(sums).enumerate() {
            let (from, to) = block.seen(row);
            scores[..from].fill(0.0);
            scores[to..].fill(0.0);
            if let Some(cap) = softcap {
                for (s, slope) in scores[from..to].iter_mut().zip(&mut slopes[row * keys + from..]) {
                    let bent = (*s / cap).tanh();
                    *s = cap * bent;
                    *slope = 1.0 - bent * bent;
                }
            }
            scores[from..to].iter_mut().for_each(|s| *s = exp::<FMA>(*s - log_sum));
        }
    }

    /// `d_scores = weights · (d_weights − delta)`, written over `d_weights`.
    fn scores_gradient(weights: &[f32], d_weights: &mut [f32], slopes: &[f32], deltas: &[f32], keys: usize) {
        for (row, delta) in deltas.iter().enumerate() {
            let at = row * keys;
            for (d, w) in d_weights[at..at + keys].iter_mut().zip(&weights[at..at + keys]) {
                *d = w * (*d - delta);
            }
            if !slopes.is_empty() {
                d_weights[at..at + keys].iter_mut().zip(&slopes[at..at + keys]).for_each(|(d, slope)| *d *= slope);
            }
        }
    }

    fn row_products(a: &[f32], b: &[f32], width: usize, out: &mut [f32]) {
        for ((a, b), out) in a.chunks_exact(width).zip(b.chunks_exact(width)).zip(out) {
            *out = dot::<FMA>(a, b);
        }
    }
}

/// The scores that a query sees become weights in place; returns the logarithm of their sum.
#[inline(always)]
pub(super) fn softmax_row<const FMA: bool>(seen: &mut [f32], softcap: Option<f32>) -> f32 {
    if let Some(cap) = softcap {
        seen.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
    }
    let mut highest = [f32::NEG_INFINITY; LANES];
    let chunks = seen.chunks_exact(LANES);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for i in 0..LANES {
            highest[i] = highest[i].max(chunk[i]);
        }
    }
    let highest = highest.into_iter().fold(tail, f32::max);
    let mut lanes = [0.0_f32; LANES];
    let mut chunks = seen.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            chunk[i] = exp::<FMA>(chunk[i] - highest);
            lanes[i] += chunk[i];
        }
    }
    let mut sum = 0.0;
    for s in chunks.into_remainder() {
        *s = exp::<FMA>(*s - highest);
        sum += *s;
    }
    let sum = sum + total(lanes);
    let inverse = 1.0 / sum;
    seen.iter_mut().for_each(|s| *s *= inverse);
    highest + sum.ln()
}

/// Rows `(head, token)` of a block, side by side, times `factor`.
fn gather(x: &Rows<'_>, batch: usize, first_head: usize, block: &Block, factor: f32, out: &mut [f32]) {
    let width = x.shape[3];
    for (row, out) in out.chunks_exact_mut(width).take(block.rows).enumerate() {
        let (head, token) = (first_head + row / block.tokens, block.token + row % block.tokens);
        out.iter_mut().zip(x.row(batch, head, token)).for_each(|(out, x)| *out = x * factor);
    }
}

/// Rows of a block into `[group, tokens, width]`.
fn scatter(rows: &[f32], block: &Block, tokens: usize, width: usize, out: &mut [f32]) {
    for (head, rows) in rows.chunks_exact(block.tokens * width).enumerate() {
        let at = (head * tokens + block.token) * width;
        out[at..at + rows.len()].copy_from_slice(rows);
    }
}

/// The output `[batch, heads, tokens, value width]` and the logarithms of the sums `[batch, heads, tokens]`.
pub(super) fn forward(q: &Rows<'_>, k: &Rows<'_>, v: &Rows<'_>, spec: &AttendSpec) -> (Vec<f32>, Vec<f32>) {
    let ([batch, heads, tokens, width], [_, kv_heads, ..], value_width) = (q.shape, k.shape, v.shape[3]);
    let group = heads / kv_heads;
    let mut out = vec![0.0; batch * heads * tokens * value_width];
    let mut sums = vec![0.0; batch * heads * tokens];
    out.par_chunks_mut(group * tokens * value_width).zip(sums.par_chunks_mut(group * tokens)).enumerate().for_each(
        |(i, (out, sums))| {
            let (b, kv) = (i / kv_heads, i % kv_heads);
            let rows = group * BLOCK.min(tokens);
            let (mut queries, mut result) = (vec![0.0; rows * width], vec![0.0; rows * value_width]);
            let mut row_sums = vec![0.0; rows];
            let mut scores = Vec::new();
            for block in blocks(q, k, group, spec.window) {
                let (rows, keys) = (block.rows, block.keys());
                gather(q, b, kv * group, &block, spec.scale as f32, &mut queries);
                scores.resize(rows * keys, 0.0);
                let (held, stride) = (k.matrix(b, kv, block.first, block.end), k.token_stride());
                // By their tokens, however many heads share a key: a token gives the same bits alone as beside others.
                let few = tokens <= few_rows::MOST_TOKENS;
                if few {
                    few_rows::dots(&queries[..rows * width], held, stride, width, keys, &mut scores);
                } else {
                    let key_rows = Mat::rows(held, stride).transposed();
                    product([rows, keys, width], Mat::rows(&queries, width), key_rows, &mut scores, false);
                }
                softmax_rows(&mut scores, block, spec.softcap.map(|cap| cap as f32), &mut row_sums[..rows]);
                let (held, stride) = (v.matrix(b, kv, block.first, block.end), v.token_stride());
                if few {
                    few_rows::sums(&scores, held, stride, value_width, keys, &mut result[..rows * value_width]);
                } else {
                    let values = Mat::rows(held, stride);
                    product([rows, value_width, keys], Mat::rows(&scores, keys), values, &mut result, false);
                }
                scatter(&result[..rows * value_width], &block, tokens, value_width, out);
                scatter(&row_sums[..rows], &block, tokens, 1, sums);
            }
        },
    );
    (out, sums)
}

/// One token of one text: queries `[heads, width]`, output `[heads, value width]`. `room` grows to what `positions` need.
pub(super) fn one(
    q: &[f32],
    k: &Rows<'_>,
    v: &Rows<'_>,
    spec: &AttendSpec,
    positions: usize,
    room: &mut Vec<f32>,
    out: &mut [f32],
) {
    let ([_, kv_heads, _, width], value_width) = (k.shape, v.shape[3]);
    let heads = q.len() / width;
    let q = Rows::contiguous([1, heads, 1, width], q);
    let group = heads / kv_heads;
    let Some(block) = blocks(&q, k, group, spec.window).next() else { return };
    let keys = block.keys();
    if room.len() < heads * (width + keys + 1) {
        // Never written here: of what is not needed yet the system gives nothing.
        *room = vec![0.0; heads * (width + keys.max(positions) + 1)];
    }
    let (queries, rest) = room.split_at_mut(heads * width);
    let (sums, scores) = rest.split_at_mut(heads);
    let heads = out.par_chunks_mut(group * value_width).zip(queries.par_chunks_mut(group * width));
    let heads = heads.zip(scores.par_chunks_mut(group * keys).zip(sums.par_chunks_mut(group)));
    heads.enumerate().for_each(|(kv, ((out, queries), (scores, sums)))| {
        gather(&q, 0, kv * group, &block, spec.scale as f32, queries);
        let (held, stride) = (k.matrix(0, kv, block.first, block.end), k.token_stride());
        few_rows::dots(queries, held, stride, width, keys, scores);
        softmax_rows(scores, block, spec.softcap.map(|cap| cap as f32), sums);
        let (held, stride) = (v.matrix(0, kv, block.first, block.end), v.token_stride());
        few_rows::sums(scores, held, stride, value_width, keys, out);
    });
}

/// Gradients of queries, keys and values, each in the order of [`forward`]'s output.
pub(super) fn backward(
    [q, k, v]: [&Rows<'_>; 3],
    out: &Rows<'_>,
    sums: &[f32],
    d_out: &Rows<'_>,
    spec: &AttendSpec,
) -> [Vec<f32>; 3] {
    let ([batch, heads, tokens, width], [_, kv_heads, positions, _], value_width) = (q.shape, k.shape, v.shape[3]);
    let group = heads / kv_heads;
    let mut dq = vec![0.0; batch * heads * tokens * width];
    let mut dk = vec![0.0; batch * kv_heads * positions * width];
    let mut dv = vec![0.0; batch * kv_heads * positions * value_width];
    let softcap = spec.softcap.map(|cap| cap as f32);
    let per_group = dq
        .par_chunks_mut(group * tokens * width)
        .zip(dk.par_chunks_mut(positions * width))
        .zip(dv.par_chunks_mut(positions * value_width))
        .zip(sums.par_chunks(group * tokens));
    per_group.enumerate().for_each(|(i, (((dq, dk), dv), sums))| {
        let (b, kv) = (i / kv_heads, i % kv_heads);
        let rows = group * BLOCK.min(tokens);
        let (mut queries, mut d_queries) = (vec![0.0; rows * width], vec![0.0; rows * width]);
        let (mut results, mut d_results) = (vec![0.0; rows * value_width], vec![0.0; rows * value_width]);
        let (mut row_sums, mut deltas) = (vec![0.0; rows], vec![0.0; rows]);
        let (mut weights, mut d_weights, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for block in blocks(q, k, group, spec.window) {
            let (rows, keys) = (block.rows, block.keys());
            gather(q, b, kv * group, &block, spec.scale as f32, &mut queries);
            gather(out, b, kv * group, &block, 1.0, &mut results);
            gather(d_out, b, kv * group, &block, 1.0, &mut d_results);
            let sums = Rows::contiguous([1, group, tokens, 1], sums);
            gather(&sums, 0, 0, &block, 1.0, &mut row_sums);
            row_products(&results, &d_results, value_width, &mut deltas[..rows]);

            weights.resize(rows * keys, 0.0);
            d_weights.resize(rows * keys, 0.0);
            slopes.resize(if softcap.is_some() { rows * keys } else { 0 }, 0.0);
            let key_rows = Mat::rows(k.matrix(b, kv, block.first, block.end), k.token_stride());
            let value_rows = Mat::rows(v.matrix(b, kv, block.first, block.end), v.token_stride());
            let (query_rows, d_rows) = (Mat::rows(&queries, width), Mat::rows(&d_results, value_width));
            product([rows, keys, width], query_rows, key_rows.transposed(), &mut weights, false);
            weights_again(&mut weights, &mut slopes, block, softcap, &row_sums[..rows]);
            product([rows, keys, value_width], d_rows, value_rows.transposed(), &mut d_weights, false);

            let weight_rows = Mat::rows(&weights, keys).transposed();
            let dv = &mut dv[block.first * value_width..block.end * value_width];
            product([keys, value_width, rows], weight_rows, d_rows, dv, true);
            scores_gradient(&weights, &mut d_weights, &slopes, &deltas[..rows], keys);

            let d_scores = Mat::rows(&d_weights, keys);
            product([rows, width, keys], d_scores, key_rows, &mut d_queries, false);
            d_queries[..rows * width].iter_mut().for_each(|d| *d *= spec.scale as f32);
            scatter(&d_queries[..rows * width], &block, tokens, width, dq);
            // The queries carry the scale already.
            let dk = &mut dk[block.first * width..block.end * width];
            product([keys, width, rows], d_scores.transposed(), query_rows, dk, true);
        }
    });
    [dq, dk, dv]
}

/// `[batch, heads, tokens, width]` in memory becomes `[batch, tokens, heads, width]`, the order of the projections.
pub(super) fn tokens_first(x: &[f32], [batch, heads, tokens, width]: [usize; 4]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let x = Rows::contiguous([batch, heads, tokens, width], x);
    y.par_chunks_mut(heads * width).with_min_len(64).enumerate().for_each(|(i, y)| {
        for (head, y) in y.chunks_exact_mut(width).enumerate() {
            y.copy_from_slice(x.row(i / tokens, head, i % tokens));
        }
    });
    y
}
