//! GPTQ: rounds one input column after another and lets the columns still to come make up for the error,
//! so that the layer's output on the calibration text changes least.
//!
//! Source: *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*, arXiv
//! 2210.17323. The orders: activation order and static groups are its reference implementation's;
//! group-aware order is from *Dual Precision Quantization for Efficient and Accurate Deep Neural Networks
//! Inference*, arXiv 2505.14638.
//!
//! Needs the Gram matrix of the inputs. For O outputs and I inputs: I³/3 multiplications in f64 for the
//! factor, O·I²/2 in f32 for the sweep; on top of the Gram matrix one I×I matrix in f64 and one in f32.

use std::ops::Range;

use kindling_core::options::OptionsError;
use kindling_core::{
    Compressed, CompressedWeight, Cx, Error, Family, Granularity, Layer, LayerMethod, LayerShape, Method, MethodEntry,
    Needs, Quantized, Result, Stats,
};
use kindling_tensor_backend::linalg::{LinalgError, View, ViewMut, inverse_cholesky_upper, sub_matmul_f32};
use rayon::prelude::*;
use serde::Deserialize;

use crate::config::{Target, quantiser_config};
use crate::grid::{Clip, Grid};
use crate::matrix::Matrix;

/// The list entry of this method.
pub const ENTRY: MethodEntry = MethodEntry {
    name: "gptq",
    family: Family::Quantise,
    summary: "rounds column after column; later columns make up for the error of earlier ones",
    paper: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323",
    needs: Needs::Moments,
    build: |options| Ok(Method::Layer(Box::new(Gptq::new(&options.read("gptq")?)?))),
};

/// The order in which columns are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As stored.
    Natural,
    /// Inputs of large second moment first. Groups that are fitted on the way then hold scattered inputs,
    /// and the result has a group index.
    Act,
    /// Groups that hold an input of large second moment first, and within a group such inputs first.
    GroupAware,
}

quantiser_config! {
    /// Options of GPTQ.
    pub struct GptqConfig {
        /// The multiple of the mean diagonal of `H` added to its diagonal. Default 0.01.
        pub damping: f64 = 0.01,
        /// How many columns are rounded between two updates of all later ones. Changes speed alone. Default 128.
        pub block_size: usize = 128,
        /// The order of the columns: `natural`, `act` or `group-aware`. Default `natural`.
        pub order: Order = Order::Natural,
        /// Fit all groups to the original weights, before any error is spread. Default false.
        pub static_groups: bool = false,
    }
}

/// Rounds with second-order compensation.
#[derive(Debug, Clone)]
pub struct Gptq {
    target: Target,
    config: GptqConfig,
}

impl Gptq {
    /// The method with these options; an error if they are out of range.
    pub fn new(config: &GptqConfig) -> Result<Self, OptionsError> {
        let target = config.shared().resolve("gptq")?;
        if !(config.damping.is_finite() && config.damping >= 0.0) {
            return Err(OptionsError(format!("gptq: `damping` is {}, but it is a number from 0 up", config.damping)));
        }
        if config.block_size == 0 {
            return Err(OptionsError("gptq: `block_size` is 0; give a positive number of columns".into()));
        }
        Ok(Self { target, config: config.clone() })
    }

    /// Quantises one matrix given the statistics of its input; `layer` names it in errors.
    pub fn quantize(&self, layer: &str, mut matrix: Matrix, stats: &Stats) -> Result<Solution> {
        stats.require(layer, Needs::Moments, matrix.cols)?;
        let cols = matrix.cols;
        let mut notes = self.target.notes(cols);
        if stats.tokens == 0 {
            notes.push("no calibration token reached this layer: rounded to nearest with a clip search".into());
            let mut target = self.target;
            target.spec.clip = Clip::Mse;
            return Ok(Solution { quantized: crate::rtn::quantize(&matrix, &target), loss: 0.0, notes });
        }
        let scale = 2.0 / stats.tokens as f64;
        let mut diagonal: Vec<f64> = (0..cols).map(|j| stats.gram[j * cols + j] * scale).collect();
        let dead: Vec<bool> = diagonal.iter().map(|&h| h == 0.0).collect();
        silence(&mut matrix, &mut diagonal, &dead, &mut notes);

        let plan = Plan::new(self.target.granularity, cols, &diagonal, self.config.order, self.config.static_groups);
        let hessian = |row: usize, col: usize| match (row == col, dead[row] || dead[col]) {
            (true, _) => diagonal[row],
            (false, true) => 0.0,
            (false, false) => stats.gram[row * cols + col] * scale,
        };
        let factor = factor(layer, &plan.order, hessian, self.config.damping, &mut notes)?;
        let numerics = |error: LinalgError| Error::Numerics { layer: layer.into(), reason: error.to_string() };
        let sweep = sweep(&matrix, &self.target, &plan, &factor, self.config.block_size).map_err(numerics)?;
        if !sweep.loss.is_finite() {
            let reason = "the compensated weights overflow; raise `damping`".into();
            return Err(Error::Numerics { layer: layer.into(), reason });
        }
        tracing::debug!(layer, loss = sweep.loss, "gptq");
        let index = plan.group_index(self.target.granularity);
        let shape = [matrix.rows, cols];
        let quantized = self.target.spec.assemble(shape, self.target.granularity, sweep.codes, &sweep.grids, index);
        Ok(Solution { quantized, loss: sweep.loss, notes })
    }
}

impl LayerMethod for Gptq {
    fn needs(&self) -> Needs {
        Needs::Moments
    }

    fn check(&self, shape: &LayerShape) -> Result<()> {
        self.target.check(shape)
    }

    fn bits_per_weight(&self, shape: &LayerShape, _dense_bits: f64) -> f64 {
        let scattered = self.config.order == Order::Act && !self.config.static_groups;
        let grouped = matches!(self.target.granularity, Granularity::Group(_));
        let index = if scattered && grouped { 32.0 / shape.rows.max(1) as f64 } else { 0.0 };
        self.target.bits_per_weight(shape.rows, shape.cols) + index
    }

    fn compress(&self, layer: &Layer, stats: &Stats, cx: &Cx) -> Result<Compressed> {
        cx.check()?;
        self.check(&layer.shape)?;
        let mask = layer.mask.clone();
        let solution = self.quantize(&layer.shape.name, Matrix::of(layer)?, stats)?;
        Ok(Compressed { weight: CompressedWeight::Quantized(solution.quantized), mask, notes: solution.notes })
    }
}

/// What GPTQ made of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// The codes and their grids.
    pub quantized: Quantized,
    /// Half of `tr(D H Dᵀ)` for the change of the weights `D` and the damped `H = 2/T · XᵀX`.
    pub loss: f64,
    /// What the report should say.
    pub notes: Vec<String>,
}

/// Inputs that were 0 on every token: their weights become 0 and their `H_jj` becomes 1.
fn silence(matrix: &mut Matrix, diagonal: &mut [f64], dead: &[bool], notes: &mut Vec<String>) {
    let count = dead.iter().filter(|&&dead| dead).count();
    if count == 0 {
        return;
    }
    notes.push(format!(
        "{count} of {} inputs were 0 on every calibration token: their weights are set to 0",
        matrix.cols
    ));
    diagonal.iter_mut().zip(dead).filter(|(_, dead)| **dead).for_each(|(h, _)| *h = 1.0);
    for row in matrix.values.chunks_exact_mut(matrix.cols) {
        row.iter_mut().zip(dead).filter(|(_, dead)| **dead).for_each(|(w, _)| *w = 0.0);
    }
}

/// The order of the columns and who shares a grid. A position is a place in that order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The column at each position.
    pub order: Vec<usize>,
    /// The stored group at each position.
    pub group: Vec<usize>,
    /// Where groups are fitted on the way: position by position the end of the group that starts there, or 0.
    /// None where all groups are fitted before the sweep.
    pub group_end: Option<Vec<usize>>,
}

impl Plan {
    /// The plan for inputs whose second moments are `diagonal`.
    pub fn new(granularity: Granularity, cols: usize, diagonal: &[f64], order: Order, static_groups: bool) -> Self {
        let len = granularity.group_len(cols).max(1);
        let descending = |columns: &mut [usize]| columns.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        let mut columns: Vec<usize> = (0..cols).collect();
        match order {
            Order::Natural => {}
            Order::Act => descending(&mut columns),
            Order::GroupAware => {
                let mut groups: Vec<&mut [usize]> = columns.chunks_mut(len).collect();
                groups.iter_mut().for_each(|group| descending(group));
                groups.sort_by(|a, b| diagonal[b[0]].total_cmp(&diagonal[a[0]]));
                columns = groups.concat();
            }
        }
        // A grid for the whole matrix must be known before its first column.
        if static_groups || granularity == Granularity::Tensor {
            let group = columns.iter().map(|column| column / len).collect();
            return Self { order: columns, group, group_end: None };
        }
        let group: Vec<usize> = match order {
            Order::Act => (0..cols).map(|position| position / len).collect(),
            Order::Natural | Order::GroupAware => columns.iter().map(|column| column / len).collect(),
        };
        let mut end = vec![0; cols];
        let mut start = 0;
        for run in group.chunk_by(|a, b| a == b) {
            end[start] = start + run.len();
            start += run.len();
        }
        Self { order: columns, group, group_end: Some(end) }
    }

    /// The end of the group that is to be fitted at this position.
    fn group_from(&self, position: usize) -> Option<usize> {
        self.group_end.as_ref().map(|end| end[position]).filter(|&end| end > 0)
    }

    /// The group of every column, if groups are not runs of consecutive columns.
    fn group_index(&self, granularity: Granularity) -> Option<Vec<u32>> {
        let Granularity::Group(size) = granularity else { return None };
        let mut index = vec![0; self.order.len()];
        self.order.iter().zip(&self.group).for_each(|(&column, &group)| index[column] = group as u32);
        let consecutive = index.iter().enumerate().all(|(column, &group)| group as usize == column / size);
        (!consecutive).then_some(index)
    }

    /// Cuts the positions into blocks of about `size`. A group is fitted where it starts, from columns that
    /// hold every earlier correction: so no block goes on into a group that it does not hold to the end.
    fn blocks(&self, size: usize) -> Vec<Range<usize>> {
        let cols = self.order.len();
        let whole = |start: usize| self.group_end.as_ref().map_or(cols, |end| end[start]);
        let (mut blocks, mut start) = (Vec::new(), 0);
        while start < cols {
            let mut end = whole(start);
            if end - start > size {
                blocks.extend((start..end).step_by(size).map(|at| at..(at + size).min(end)));
            } else {
                while end < cols && whole(end) - start <= size {
                    end = whole(end);
                }
                blocks.push(start..end);
            }
            start = end;
        }
        blocks
    }
}

/// `U` with `H⁻¹ = Uᵀ U`, in the order of the plan, row-major f32. Where the damped `H` is not positive definite in
/// floating point, the damping is raised, then small diagonal values are, and a note says so.
fn factor(
    layer: &str,
    order: &[usize],
    hessian: impl Fn(usize, usize) -> f64 + Sync,
    damping: f64,
    notes: &mut Vec<String>,
) -> Result<Vec<f32>> {
    let cols = order.len();
    let diagonal: Vec<f64> = order.iter().map(|&column| hessian(column, column)).collect();
    let mean = diagonal.iter().map(|h| h.max(0.0)).sum::<f64>() / cols.max(1) as f64;
    let largest = diagonal.iter().fold(0.0, |a: f64, &b| a.max(b));
    let raised = |times: i32| if damping == 0.0 && times > 0 { 0.001 } else { damping } * 10f64.powi(times);
    let attempts = (0..4).map(|times| (raised(times), 0.0)).chain((0..6).map(|k| (raised(3), 10f64.powi(k - 6))));
    for (damping_now, floor) in attempts {
        let mut h = vec![0.0; cols * cols];
        h.par_chunks_mut(cols.max(1)).enumerate().for_each(|(i, row)| {
            row.iter_mut().zip(order).for_each(|(h, &column)| *h = hessian(order[i], column));
            row[i] = row[i].max(floor * largest) + damping_now * mean;
        });
        match inverse_cholesky_upper(h, cols) {
            Ok(u) => {
                if floor > 0.0 {
                    notes.push(format!(
                        "H was not positive definite: damping raised to {damping_now}, its diagonal to at least \
                         {floor:e} of its largest value"
                    ));
                } else if damping_now != damping {
                    notes.push(format!("H was not positive definite: damping raised to {damping_now}"));
                }
                return Ok(u.into_par_iter().map(|u| u as f32).collect());
            }
            Err(LinalgError::NotPositiveDefinite { .. }) => {}
            Err(error) => return Err(Error::Numerics { layer: layer.into(), reason: error.to_string() }),
        }
    }
    let reason = "H cannot be factorised at any damping; calibrate with more text, or use `rtn`".into();
    Err(Error::Numerics { layer: layer.into(), reason })
}

/// Rows that one task works on: fixed, so that results do not depend on the number of threads.
const SLAB: usize = 128;

/// Rows that go through a block together: enough to hide the latency of one weight's divisions, few enough for
/// their part of the block to stay in the first-level cache.
const TILE: usize = 8;

/// What a sweep gives: codes in the natural order of columns.
struct Sweep {
    codes: Vec<u8>,
    grids: Vec<Grid>,
    loss: f64,
}

/// Rounds all columns in the order of the plan. Rows are independent given `u`.
fn sweep(matrix: &Matrix, target: &Target, plan: &Plan, u: &[f32], block_size: usize) -> Result<Sweep, LinalgError> {
    let Matrix { rows, cols, values, mask } = matrix;
    let groups = target.granularity.groups(*cols);
    let blocks = plan.blocks(block_size);
    let fitted = plan.group_end.is_none().then(|| target.spec.fit_matrix(values, *cols, target.granularity));
    let tensor = target.granularity == Granularity::Tensor;
    let mut codes = vec![0; rows * cols];
    let mut grids = match &fitted {
        Some(fitted) if tensor => vec![fitted[0]; *rows],
        Some(fitted) => fitted.clone(),
        None => vec![Grid { scale: 1.0, zero: 0.0, max: 0.0 }; rows * groups],
    };
    let len = (SLAB * cols).max(1);
    let losses: Vec<f64> = codes
        .par_chunks_mut(len)
        .zip(grids.par_chunks_mut((SLAB * groups).max(1)))
        .zip(values.par_chunks(len))
        .enumerate()
        .map(|(slab, ((codes, grids), values))| {
            let keep = mask.as_ref().map(|mask| &mask.as_slice()[slab * len..][..values.len()]);
            Slab::new(values, keep, codes, grids, groups, plan).run(target, plan, &blocks, u)
        })
        .collect::<Result<_, _>>()?;
    if let (Some(fitted), true) = (fitted, tensor) {
        grids = fitted;
    }
    Ok(Sweep { codes, grids, loss: losses.iter().sum() })
}

/// Some rows on their way through the sweep.
struct Slab<'a> {
    cols: usize,
    groups: usize,
    /// Weights in the order of the plan, corrected up to the current block.
    weights: Vec<f32>,
    /// Which weights may differ from 0, in the order of the plan.
    keep: Option<Vec<bool>>,
    codes: &'a mut [u8],
    grids: &'a mut [Grid],
}

impl<'a> Slab<'a> {
    fn new(
        values: &[f32],
        keep: Option<&[bool]>,
        codes: &'a mut [u8],
        grids: &'a mut [Grid],
        groups: usize,
        plan: &Plan,
    ) -> Self {
        let cols = plan.order.len();
        let weights = values.chunks_exact(cols).flat_map(|row| plan.order.iter().map(|&column| row[column]));
        let keep = keep
            .map(|keep| keep.chunks_exact(cols).flat_map(|row| plan.order.iter().map(|&column| row[column])).collect());
        Self { cols, groups, weights: weights.collect(), keep, codes, grids }
    }

    /// Rounds all blocks and gives the loss.
    fn run(mut self, target: &Target, plan: &Plan, blocks: &[Range<usize>], u: &[f32]) -> Result<f64, LinalgError> {
        let rows = self.weights.len() / self.cols;
        let widest = blocks.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let (mut panel, mut errors) = (vec![0.0; TILE * widest], vec![0.0; rows * widest]);
        let (mut corner, mut group) = (Vec::new(), Vec::new());
        let mut loss = 0.0;
        for block in blocks {
            let width = block.len();
            // The rows of U are a power of two apart as often as not, and would evict one another from the cache.
            corner.clear();
            block.clone().for_each(|row| corner.extend_from_slice(&u[row * self.cols..][block.clone()]));
            let errors = &mut errors[..rows * width];
            for (tile, errors) in errors.chunks_mut(TILE * width).enumerate() {
                let first = tile * TILE;
                let panel = &mut panel[..errors.len()];
                let weights = self.weights[first * self.cols..].chunks_exact(self.cols);
                panel.chunks_exact_mut(width).zip(weights).for_each(|(p, w)| p.copy_from_slice(&w[block.clone()]));
                for position in block.clone() {
                    if let Some(end) = plan.group_from(position) {
                        for (row, panel) in panel.chunks_exact(width).enumerate() {
                            self.group_weights(first + row, panel, block, position..end, &mut group);
                            let at = (first + row) * self.groups + plan.group[position];
                            self.grids[at] = target.spec.fit(&group);
                        }
                    }
                    let at = position - block.start;
                    self.round_column(plan, position, first, &corner[at * width..][..width], at, panel, errors);
                }
            }
            // Each error is (w − ŵ)/U_jj, and its share of the loss is half its square.
            loss += errors.iter().map(|&e| 0.5 * f64::from(e) * f64::from(e)).sum::<f64>();
            self.update_after(block, errors, u, rows)?;
        }
        Ok(loss)
    }

    /// The current weights of a group, 0 where pruned; up to the end of the block they are in the panel.
    fn group_weights(
        &self,
        row: usize,
        panel: &[f32],
        block: &Range<usize>,
        positions: Range<usize>,
        group: &mut Vec<f32>,
    ) {
        let inside = positions.end.min(block.end);
        group.clear();
        group.extend_from_slice(&panel[positions.start - block.start..inside - block.start]);
        group.extend_from_slice(&self.weights[row * self.cols..][inside..positions.end]);
        if let Some(keep) = &self.keep {
            let keep = &keep[row * self.cols..][positions];
            group.iter_mut().zip(keep).filter(|(_, keep)| !**keep).for_each(|(w, _)| *w = 0.0);
        }
    }

    /// Rounds column `at` of the panel, whose rows start at `first`, and corrects the later ones. A pruned
    /// weight goes to 0 whatever earlier columns have added to it: the remaining weights make up for that too.
    #[inline]
    #[allow(clippy::too_many_arguments)] // the inner loop of the sweep: everything is a slice of something larger
    fn round_column(
        &mut self,
        plan: &Plan,
        position: usize,
        first: usize,
        u: &[f32],
        at: usize,
        panel: &mut [f32],
        errors: &mut [f32],
    ) {
        let (group, column) = (plan.group[position], plan.order[position]);
        let width = u.len();
        // Two loops: in the first the rows' chains of divisions overlap, in the second there is no chain.
        for (row, (panel, errors)) in panel.chunks_exact(width).zip(errors.chunks_exact_mut(width)).enumerate() {
            let row = first + row;
            let grid = self.grids[row * self.groups + group];
            let kept = self.keep.as_ref().is_none_or(|keep| keep[row * self.cols + position]);
            let code = grid.code(if kept { panel[at] } else { 0.0 });
            self.codes[row * self.cols + column] = code;
            errors[at] = (panel[at] - grid.value(code)) / u[at];
        }
        // From a multiple of 8 on: U is 0 left of its diagonal, and whole vectors are faster.
        let from = at & !7;
        for (panel, errors) in panel.chunks_exact_mut(width).zip(errors.chunks_exact(width)) {
            let error = errors[at];
            panel[from..].iter_mut().zip(&u[from..]).for_each(|(w, &u)| *w -= error * u);
        }
    }

    /// Corrects all columns behind the block at once.
    fn update_after(
        &mut self,
        block: &Range<usize>,
        errors: &[f32],
        u: &[f32],
        rows: usize,
    ) -> Result<(), LinalgError> {
        let (cols, width, behind) = (self.cols, block.len(), self.cols - block.end);
        if behind == 0 {
            return Ok(());
        }
        sub_matmul_f32(
            ViewMut::new(&mut self.weights[block.end..], rows, behind, cols)?,
            View::new(errors, rows, width, width)?,
            View::new(&u[block.start * cols + block.end..], width, behind, cols)?,
        )
    }
}

/// The plain twin of the sweep: one column at a time over the whole matrix, in f64 but for the grids.
///
/// `u` is the factor in the order of the plan. Also gives the value that each weight had when it was rounded,
/// by column: where it lies on a tie between two codes, the twins may differ from there on.
pub fn reference(matrix: &Matrix, target: &Target, plan: &Plan, u: &[f64]) -> (Quantized, Vec<f64>) {
    let (cols, groups) = (matrix.cols, target.granularity.groups(matrix.cols));
    let kept = |row: usize, column: usize| matrix.mask.as_ref().is_none_or(|mask| mask.row(row)[column]);
    let mut weights: Vec<f64> = matrix.values.iter().map(|&w| f64::from(w)).collect();
    let mut codes = vec![0; weights.len()];
    let mut grids = target.spec.fit_matrix(&matrix.values, cols, target.granularity);
    for row in 0..matrix.rows {
        for (position, (&column, &group)) in plan.order.iter().zip(&plan.group).enumerate() {
            let at = if target.granularity == Granularity::Tensor { 0 } else { row * groups + group };
            if plan.group_end.is_some() && (position == 0 || plan.group[position - 1] != group) {
                let members = plan.order.iter().zip(&plan.group).filter(|(_, g)| **g == group);
                let current =
                    |(&c, _): (&usize, &usize)| if kept(row, c) { weights[row * cols + c] as f32 } else { 0.0 };
                grids[at] = target.spec.fit(&members.map(current).collect::<Vec<_>>());
            }
            let w = weights[row * cols + column];
            let code = grids[at].code(if kept(row, column) { w as f32 } else { 0.0 });
            codes[row * cols + column] = code;
            let error = (w - f64::from(grids[at].value(code))) / u[position * cols + position];
            for (later, &column) in plan.order.iter().enumerate().skip(position + 1) {
                weights[row * cols + column] -= error * u[position * cols + later];
            }
        }
    }
    let index = plan.group_index(target.granularity);
    let shape = [matrix.rows, cols];
    (target.spec.assemble(shape, target.granularity, codes, &grids, index), weights)
}

#[cfg(test)]
mod tests;
