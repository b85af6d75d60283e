//! The product of a few rows with a weight, without packing the weight first.
//!
//! A general product copies the weight into tiles, which pays for many rows; for one or a few, as decoding has them, the
//! copy costs more than the product. Every element of the result is summed in one order, whatever the number of rows: a
//! token's result is the same to the bit, alone or beside others.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::simd::{LANES, mul_add, total, vectorised};

/// Up to this many rows the kernel is faster than a general product.
pub(crate) const MOST_ROWS: usize = 32;
/// Rows and columns whose sums are in registers at a time.
const ROWS: usize = 6;
const COLUMNS: usize = 32;
/// From this many multiplications on the columns are shared among threads.
const SHARED: usize = 1 << 17;

/// The plain twin: `[rows, in] · [in, out]`.
pub fn product_reference(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    x.matmul(weight)
}

/// A weight `[in, out]` in memory.
#[derive(Clone, Copy)]
pub(crate) enum Layout<'a> {
    /// Input by input.
    Inputs(&'a [f32]),
    /// Output by output.
    Outputs(&'a [f32]),
}

/// One row of inputs.
pub(crate) fn row(x: &[f32], weight: Layout<'_>, out: &mut [f32]) {
    let (inputs, outputs) = (x.len(), out.len());
    let block = |(part, sums): (usize, &mut [f32])| {
        let (first, columns) = (part * COLUMNS, sums.len());
        match weight {
            Layout::Inputs(weight) => by_inputs(x, inputs, &weight[first..], outputs, columns, sums),
            Layout::Outputs(weight) => {
                by_outputs(x, inputs, &weight[first * inputs..][..columns * inputs], columns, sums)
            }
        }
    };
    if inputs * outputs < SHARED {
        out.chunks_mut(COLUMNS).enumerate().for_each(block);
    } else {
        out.par_chunks_mut(COLUMNS).with_min_len(4).enumerate().for_each(block);
    }
}

/// `[rows, in] · [in, out]`, row-major.
pub(crate) fn forward(x: &[f32], rows: usize, inputs: usize, outputs: usize, weight: Layout<'_>) -> Vec<f32> {
    let mut out = vec![0.0; rows * outputs];
    if rows == 1 {
        row(x, weight, &mut out);
        return out;
    }
    // Blocks of columns, each with all rows, so that a stretch of the weight is read once.
    let block = |first: usize| {
        let columns = COLUMNS.min(outputs - first);
        let mut sums = vec![0.0; rows * columns];
        match weight {
            Layout::Inputs(weight) => by_inputs(x, inputs, &weight[first..], outputs, columns, &mut sums),
            Layout::Outputs(weight) => {
                by_outputs(x, inputs, &weight[first * inputs..(first + columns) * inputs], columns, &mut sums)
            }
        }
        (first, columns, sums)
    };
    let mut place = |(first, columns, sums): (usize, usize, Vec<f32>)| {
        for (row, sums) in sums.chunks_exact(columns).enumerate() {
            out[row * outputs + first..][..columns].copy_from_slice(sums);
        }
    };
    let starts = (0..outputs).step_by(COLUMNS);
    if rows * inputs * outputs < SHARED {
        starts.map(block).for_each(&mut place);
    } else {
        let starts: Vec<usize> = starts.collect();
        let blocks: Vec<_> = starts.into_par_iter().with_min_len(4).map(block).collect();
        blocks.into_iter().for_each(place);
    }
    out
}

/// Calls `$tile` for stretches of at most [`ROWS`] rows, their number a constant.
macro_rules! by_rows {
    ($rows:expr, $tile:ident, $fma:ident, ($($arg:expr),*)) => {
        let rows = $rows;
        let mut row = 0;
        while row < rows {
            match rows - row {
                1 => $tile::<1, $fma>(row, $($arg),*),
                2 => $tile::<2, $fma>(row, $($arg),*),
                3 => $tile::<3, $fma>(row, $($arg),*),
                4 => $tile::<4, $fma>(row, $($arg),*),
                5 => $tile::<5, $fma>(row, $($arg),*),
                _ => $tile::<ROWS, $fma>(row, $($arg),*),
            }
            row += ROWS.min(rows - row);
        }
    };
}

vectorised! {
    fn by_inputs(x: &[f32], inputs: usize, weight: &[f32], stride: usize, columns: usize, out: &mut [f32]) {
        if columns == COLUMNS {
            by_rows!(x.len() / inputs, wide_tile, FMA, (x, inputs, weight, stride, out));
        } else {
            by_rows!(x.len() / inputs, narrow_tile, FMA, (x, inputs, weight, stride, columns, out));
        }
    }

    fn by_outputs(x: &[f32], inputs: usize, weight: &[f32], columns: usize, out: &mut [f32]) {
        by_rows!(x.len() / inputs, dot_tile, FMA, (x, inputs, weight, columns, out));
    }
}

#[inline(always)]
fn wide_tile<const R: usize, const FMA: bool>(
    row: usize,
    x: &[f32],
    inputs: usize,
    weight: &[f32],
    stride: usize,
    out: &mut [f32],
) {
    let x: [&[f32]; R] = std::array::from_fn(|r| &x[(row + r) * inputs..][..inputs]);
    let mut sums = [[0.0_f32; COLUMNS]; R];
    for input in 0..inputs {
        let weight = &weight[input * stride..][..COLUMNS];
        for r in 0..R {
            let x = x[r][input];
            for j in 0..COLUMNS {
                sums[r][j] = mul_add::<FMA>(x, weight[j], sums[r][j]);
            }
        }
    }
    for r in 0..R {
        out[(row + r) * COLUMNS..][..COLUMNS].copy_from_slice(&sums[r]);
    }
}

/// The last columns, in the same order of additions.
#[inline(always)]
fn narrow_tile<const R: usize, const FMA: bool>(
    row: usize,
    x: &[f32],
    inputs: usize,
    weight: &[f32],
    stride: usize,
    columns: usize,
    out: &mut [f32],
) {
    for r in row..row + R {
        let sums = &mut out[r * columns..][..columns];
        sums.fill(0.0);
        for (input, x) in x[r * inputs..][..inputs].iter().enumerate() {
            for (sum, weight) in sums.iter_mut().zip(&weight[input * stride..][..columns]) {
                *sum = mul_add::<FMA>(*x, *weight, *sum);
            }
        }
    }
}

#[inline(always)]
fn dot_tile<const R: usize, const FMA: bool>(
    row: usize,
    x: &[f32],
    inputs: usize,
    weight: &[f32],
    columns: usize,
    out: &mut [f32],
) {
    let x: [&[f32]; R] = std::array::from_fn(|r| &x[(row + r) * inputs..][..inputs]);
    let whole = inputs - inputs % LANES;
    for (column, weight) in weight.chunks_exact(inputs).enumerate() {
        let mut sums = [[0.0_f32; LANES]; R];
        for at in (0..whole).step_by(LANES) {
            let weight = &weight[at..][..LANES];
            for r in 0..R {
                let x = &x[r][at..][..LANES];
                for i in 0..LANES {
                    sums[r][i] = mul_add::<FMA>(x[i], weight[i], sums[r][i]);
                }
            }
        }
        for r in 0..R {
            let tail: f32 = x[r][whole..].iter().zip(&weight[whole..]).map(|(x, w)| x * w).sum();
            out[(row + r) * columns + column] = total(sums[r]) + tail;
        }
    }
}
