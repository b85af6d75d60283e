//! SparseGPT: goes through the input columns from left to right, removes the weights whose loss would hurt
//! the layer's output least, and lets the columns to the right make up for each of them.
//!
//! Source: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (arXiv 2301.00774).
//! Needs the Gram matrix of the inputs. Cost: a factorisation of `2/3 C³` in f64 and a sweep of `R C²` in
//! f32 for a weight `[R, C]`; memory `2 C²` f64 besides the weight.

use kindling_core::options::OptionsError;
use kindling_core::{
    Compressed, Cx, Error, Family, Layer, LayerMethod, LayerShape, Mask, Method, MethodEntry, NM, Needs, Options,
    Result, Stats,
};
use kindling_tensor_backend::linalg::{self, LinalgError, View, ViewMut, inverse_cholesky_upper, sub_matmul_f32};
use rayon::prelude::*;
use serde::Deserialize;

use crate::select::{drop_lowest, exact_count};
use crate::{Keys, Per, Selection, host};

/// The line of the method list.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "sparsegpt",
    family: Family::Prune,
    summary: "removes weights column by column and lets the later columns make up for the error",
    paper: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (arXiv 2301.00774)",
    needs: Needs::Moments,
    build,
};

/// The keys of a stage with `method = "sparsegpt"`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `"N:M"`: keep N of every M weights along the inputs.
    pub pattern: Option<NM>,
    /// The fraction to remove from every block of columns; exactly one of `pattern` and `sparsity`.
    pub sparsity: Option<f64>,
    /// Columns per block: the weights of a block compete with each other, over all rows. A multiple of M.
    pub block_size: usize,
    /// What is added to the diagonal of the Hessian, as a fraction of its mean.
    pub damping: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { pattern: None, sparsity: None, block_size: 128, damping: 0.01 }
    }
}

fn build(options: &Options) -> Result<Method, OptionsError> {
    let Config { pattern, sparsity, block_size, damping } = options.read("sparsegpt")?;
    let fail = |reason: String| Err(OptionsError(format!("sparsegpt: {reason}")));
    let keys = Keys { pattern, sparsity, ..Keys::default() };
    let selection = keys.selection("sparsegpt", Per::Matrix)?;
    if block_size == 0 {
        return fail("`block_size = 0`: expected at least one column".into());
    }
    if let Some(nm) = pattern.filter(|nm| !block_size.is_multiple_of(nm.of)) {
        return fail(format!("`block_size = {block_size}` is no multiple of {}, which the pattern {nm} needs", nm.of));
    }
    if !(damping.is_finite() && damping >= 0.0) {
        return fail(format!("`damping = {damping}`: expected a number of at least 0, for example 0.01"));
    }
    Ok(Method::Layer(Box::new(SparseGpt { selection, block_size, damping })))
}

/// SparseGPT, configured.
#[derive(Debug, Clone, Copy)]
pub struct SparseGpt {
    /// Who goes: a pattern along the inputs, or a fraction of every block of columns.
    pub selection: Selection,
    /// Columns per block.
    pub block_size: usize,
    /// Fraction of the mean diagonal that is added to the diagonal.
    pub damping: f64,
}

/// The upper triangular `U` with `(H + damping · mean(diag H) · I)⁻¹ = Uᵀ U`, row-major `[n, n]`, for
/// `H = 2/tokens · gram`. A dead input, whose diagonal is zero, counts as one of its own.
pub fn factor(gram: &[f64], n: usize, tokens: u64, damping: f64) -> linalg::Result<Vec<f64>> {
    let scale = 2.0 / tokens.max(1) as f64;
    let mut h: Vec<f64> = gram.iter().map(|g| g * scale).collect();
    let diagonal = || (0..n).map(|j| j * n + j);
    diagonal().filter(|&at| gram[at] == 0.0).for_each(|at| h[at] = 1.0);
    let ridge = damping * diagonal().map(|at| h[at]).sum::<f64>() / n.max(1) as f64;
    diagonal().for_each(|at| h[at] += ridge);
    inverse_cholesky_upper(h, n)
}

/// What the sweep removes, besides what is already gone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Removal {
    /// This fraction of every block of columns, over all rows.
    Fraction(f64),
    /// All but N of every M columns of a row.
    Pattern(NM),
}

/// Rows that one task sweeps: fixed, so that results do not depend on the number of threads.
const SLAB: usize = 64;

/// Prunes the row-major `weight` `[rows, cols]` in place, within `keep`, and returns `½ tr(ΔW H ΔWᵀ)`.
///
/// `factor` is `U` `[cols, cols]` with `H⁻¹ = Uᵀ U`. Weights whose flag in `keep` is already false are
/// removed too; the flags of those removed here are cleared. `Removal::Fraction(0.0)` applies a given mask.
///
/// # Panics
/// If `keep` or `factor` is too short, or the M of a pattern does not divide both `cols` and `block_size`.
pub fn sweep(
    weight: &mut [f32],
    keep: &mut [bool],
    cols: usize,
    factor: &[f32],
    removal: Removal,
    block_size: usize,
) -> linalg::Result<f64> {
    let rows = weight.len() / cols.max(1);
    let mut losses = vec![0.0; rows];
    for start in (0..cols).step_by(block_size.max(1)) {
        let end = (start + block_size).min(cols);
        if let Removal::Fraction(sparsity) = removal {
            choose_in_block(weight, keep, cols, factor, start..end, sparsity);
        }
        let pattern = if let Removal::Pattern(nm) = removal { Some(nm) } else { None };
        let width = end - start;
        let slabs = weight.par_chunks_mut(SLAB * cols).zip(keep.par_chunks_mut(SLAB * cols));
        slabs.zip(losses.par_chunks_mut(SLAB)).try_for_each_init(
            || (vec![0.0; SLAB * width], Vec::new()),
            |(errors, scratch), ((weight, keep), losses)| {
                let lines = weight.chunks_exact_mut(cols).zip(keep.chunks_exact_mut(cols));
                for ((line, errors), loss) in lines.zip(errors.chunks_exact_mut(width)).zip(losses.iter_mut()) {
                    let (weight, keep) = (&mut line.0[start..end], &mut line.1[start..end]);
                    let upper = &factor[start * cols + start..];
                    *loss += sweep_row(weight, keep, upper, cols, pattern, errors, scratch);
                }
                if end == cols {
                    return Ok(());
                }
                let rows = losses.len();
                sub_matmul_f32(
                    ViewMut::new(&mut weight[end..], rows, cols - end, cols)?,
                    View::new(errors, rows, width, width)?,
                    View::new(&factor[start * cols + end..], width, cols - end, cols)?,
                )
            },
        )?;
    }
    Ok(losses.iter().sum())
}

/// Clears the flags of the fraction of a block of columns that is cheapest to remove, over all rows.
fn choose_in_block(
    weight: &[f32],
    keep: &mut [bool],
    cols: usize,
    factor: &[f32],
    block: std::ops::Range<usize>,
    sparsity: f64,
) {
    let width = block.len();
    let count = exact_count(weight.len() / cols * width, sparsity);
    if count == 0 {
        return;
    }
    let inverse: Vec<f32> = block.clone().map(|j| 1.0 / factor[j * cols + j]).collect();
    let mut costs = vec![0.0; weight.len() / cols * width];
    let lines = weight.par_chunks_exact(cols).zip(keep.par_chunks_exact(cols));
    costs.par_chunks_exact_mut(width).zip(lines).for_each(|(costs, (weight, keep))| {
        let line = weight[block.clone()].iter().zip(&keep[block.clone()]).zip(&inverse);
        for (cost, ((&w, &keep), &inverse)) in costs.iter_mut().zip(line) {
            *cost = if keep { (w * inverse).powi(2) } else { f32::NEG_INFINITY };
        }
    });
    let mut chosen = vec![true; costs.len()];
    drop_lowest(&costs, count, &mut Vec::new(), &mut chosen);
    for (keep, chosen) in keep.chunks_exact_mut(cols).zip(chosen.chunks_exact(width)) {
        keep[block.clone()].copy_from_slice(chosen);
    }
}

/// Sweeps the part of one row that lies in a block. `upper` starts at the block's first diagonal value of
/// the factor and has rows `stride` apart; `errors` receives what later columns have to make up for.
fn sweep_row(
    weight: &mut [f32],
    keep: &mut [bool],
    upper: &[f32],
    stride: usize,
    pattern: Option<NM>,
    errors: &mut [f32],
    scratch: &mut Vec<f32>,
) -> f64 {
    let mut loss = 0.0;
    for j in 0..weight.len() {
        if let Some(nm) = pattern.filter(|nm| j % nm.of == 0) {
            choose_in_group(&weight[j..j + nm.of], &mut keep[j..j + nm.of], nm, upper, j, stride, scratch);
        }
        errors[j] = 0.0;
        if keep[j] || weight[j] == 0.0 {
            continue;
        }
        let (diagonal, later) = upper[j * stride + j..j * stride + weight.len()].split_first().expect("a diagonal");
        let error = weight[j] / diagonal;
        weight[j] = 0.0;
        errors[j] = error;
        loss += 0.5 * f64::from(error) * f64::from(error);
        weight[j + 1..].iter_mut().zip(later).for_each(|(w, u)| *w -= error * u);
    }
    loss
}

/// Clears the flags of the M − N weights of a group that are cheapest to remove, with their current values.
fn choose_in_group(
    weight: &[f32],
    keep: &mut [bool],
    nm: NM,
    upper: &[f32],
    first: usize,
    stride: usize,
    scratch: &mut Vec<f32>,
) {
    let mut costs = [0.0; 256];
    for (k, (cost, w)) in costs.iter_mut().zip(weight).enumerate() {
        let diagonal = upper[(first + k) * stride + first + k];
        *cost = if keep[k] { (w / diagonal).powi(2) } else { f32::NEG_INFINITY };
    }
    drop_lowest(&costs[..nm.of], nm.of - nm.keep, scratch, keep);
}

/// The plain twin of [`sweep`] for a given mask: one column at a time, in f64, without blocks. Returns the
/// new weight `[rows, cols]` and the loss.
pub fn reference(weight: &[f64], cols: usize, factor: &[f64], keep: &[bool]) -> (Vec<f64>, f64) {
    let mut weight = weight.to_vec();
    let mut loss = 0.0;
    for (row, keep) in weight.chunks_exact_mut(cols).zip(keep.chunks_exact(cols)) {
        for j in (0..cols).filter(|&j| !keep[j]) {
            let error = row[j] / factor[j * cols + j];
            (j..cols).for_each(|k| row[k] -= error * factor[j * cols + k]);
            row[j] = 0.0;
            loss += 0.5 * error * error;
        }
    }
    (weight, loss)
}

impl SparseGpt {
    /// The factor with the least damping of `damping`, ×10, ×100, ×1000 that makes it exist.
    fn factor(&self, layer: &LayerShape, stats: &Stats, notes: &mut Vec<String>) -> Result<Vec<f32>> {
        let numerics = |reason: String| Error::Numerics { layer: layer.name.clone(), reason };
        let mut damping = self.damping;
        for _ in 0..4 {
            match factor(&stats.gram, layer.cols, stats.tokens, damping) {
                Ok(factor) => {
                    if damping > self.damping {
                        notes.push(format!("damping raised from {} to {damping} to factor the Hessian", self.damping));
                    }
                    return Ok(factor.into_iter().map(|u| u as f32).collect());
                }
                Err(LinalgError::NotPositiveDefinite { .. }) => damping = (damping * 10.0).max(1e-3),
                Err(other) => return Err(numerics(format!("factoring the Hessian: {other}"))),
            }
        }
        Err(numerics(format!(
            "the Hessian of its inputs has no Cholesky factor even with damping {}; \
             calibrate on more and more varied text, or raise `damping`",
            damping / 10.0
        )))
    }
}

impl LayerMethod for SparseGpt {
    fn needs(&self) -> Needs {
        Needs::Moments
    }

    fn check(&self, shape: &LayerShape) -> Result<()> {
        self.selection.check(shape)
    }

    fn bits_per_weight(&self, _shape: &LayerShape, dense_bits: f64) -> f64 {
        dense_bits
    }

    fn compress(&self, layer: &Layer, stats: &Stats, cx: &Cx) -> Result<Compressed> {
        cx.check()?;
        let shape = &layer.shape;
        self.check(shape)?;
        stats.require(&shape.name, Needs::Moments, shape.cols)?;
        let mut weight = host::values(layer, "weight", &layer.weight)?;
        if stats.tokens == 0 {
            let mask = self.selection.select(shape, host::magnitudes(&weight), layer.mask.as_ref())?;
            return Ok(host::pruned(layer, weight, mask, vec![host::UNSEEN.into()]));
        }
        let mut notes = Vec::new();
        let mut keep = host::kept(layer)?;
        let dead: Vec<usize> = (0..shape.cols).filter(|&j| stats.gram[j * shape.cols + j] == 0.0).collect();
        if !dead.is_empty() {
            notes.push(format!("{} of {} inputs are always zero: their weights are removed", dead.len(), shape.cols));
        }
        for (weight, keep) in weight.chunks_exact_mut(shape.cols).zip(keep.chunks_exact_mut(shape.cols)) {
            dead.iter().for_each(|&j| (weight[j], keep[j]) = (0.0, false));
        }
        let factor = self.factor(shape, stats, &mut notes)?;
        cx.check()?;
        let removal = match self.selection {
            Selection::Pattern { nm, .. } => Removal::Pattern(nm),
            other => Removal::Fraction(other.sparsity()),
        };
        let numerics = |reason: String| Error::Numerics { layer: shape.name.clone(), reason };
        let loss = sweep(&mut weight, &mut keep, shape.cols, &factor, removal, self.block_size)
            .map_err(|error| numerics(error.to_string()))?;
        if !(loss.is_finite() && weight.iter().all(|w| w.is_finite())) {
            return Err(numerics("the sweep overflowed: the weights hold NaN, infinite or huge values".into()));
        }
        tracing::debug!(layer = shape.name, loss, "swept");
        Ok(host::pruned(layer, weight, Mask::new(shape.rows, shape.cols, keep)?, notes))
    }
}

#[cfg(test)]
mod tests;
