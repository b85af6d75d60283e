//! Output matrix, loss and their gradients in chunks of rows, so that the logits of a batch never exist at once.
//!
//! Source: Hsu et al., "Liger Kernel", arXiv 2410.10989 (the chunking); the gradients are written out, so nothing of this
//! takes part in autodiff: the caller sends [`HeadGradients::states`] back through the blocks.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData, s};
use kindling_core::OutputHead;

use crate::batch::Known;
use crate::error::{DistillError, Result};
use crate::loss::{DistillLoss, KnownRows, Logits, Weighting};

/// What one pass over the head gives.
pub struct HeadGradients {
    /// `Σ weight · loss / normaliser`.
    pub loss: f64,
    /// With respect to the states, `[tokens, hidden]`.
    pub states: Tensor<2>,
    /// With respect to the output matrix, `[vocabulary, hidden]`, if it was wanted.
    pub matrix: Option<Tensor<2>>,
}

/// The teacher's side of the same tokens.
pub struct TeacherStates {
    /// `[tokens, teacher's hidden size]`.
    pub states: Tensor<2>,
    /// Its output matrix.
    pub head: OutputHead,
}

/// Tokens whose predictions are scored.
pub struct Scored<'a> {
    /// The next token of every row.
    pub labels: &'a [u32],
    /// What it counts; `None`: 1 each.
    pub weights: Option<&'a [f32]>,
    /// What the sum is divided by: usually the sum of the weights of the whole step.
    pub normaliser: f64,
    /// What else is known of every row.
    pub known: &'a Known,
}

/// Fewer rows would spend most of their time reading the output matrix and writing its gradient.
const FEWEST_ROWS: usize = 256;

/// Rows of a chunk for `tokens` rows: a chunk of logits is about as large as the states of the whole batch, but has
/// 256 rows where there are as many.
pub fn chunk_rows(tokens: usize, vocabulary: usize, hidden: usize) -> usize {
    let balanced = tokens.div_ceil(vocabulary.div_ceil(hidden.max(1)).max(1)).next_power_of_two();
    balanced.max(FEWEST_ROWS).min(tokens.max(1))
}

/// Loss and gradients of `states` `[tokens, hidden]`, `chunk` rows at a time. Tensors must not be tracked by autodiff.
/// A third of the products is for the gradient of the output matrix: leave it out where that does not learn.
///
/// # Errors
/// The teacher has other tokens or another vocabulary, or is missing although the loss needs it.
pub fn fused_head(
    states: Tensor<2>,
    head: &OutputHead,
    teacher: Option<&TeacherStates>,
    scored: &Scored<'_>,
    loss: &dyn DistillLoss,
    chunk: usize,
    want_matrix: bool,
) -> Result<HeadGradients> {
    let ([_, hidden], [vocabulary, _], device) = (states.dims(), head.matrix.dims(), states.device());
    let mut total = 0.0;
    let mut state_parts = Vec::new();
    let mut matrix = want_matrix.then(|| Tensor::<2>::zeros([vocabulary, hidden], &device));
    let factor = scored.factor();
    by_chunks(&states, head, teacher, scored, loss, chunk, |part| {
        let count = part.logits.labels.dims()[0];
        if part.weights.is_some_and(|w| w.iter().all(|&w| w == 0.0)) {
            state_parts.push(Tensor::zeros([count, hidden], &device));
            return Ok(());
        }
        // The slope of the cap is a function of the capped logits.
        let slope = head.softcap.map(|cap| part.logits.student.clone().div_scalar(cap).square().neg().add_scalar(1.0));
        let (losses, mut gradient) = loss.rows(part.logits)?;
        if let Some(slope) = slope {
            gradient = gradient * slope;
        }
        if let Some(weights) = part.weights {
            gradient = gradient * Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [count, 1]), &device);
        }
        total += weighted_sum(&host(losses)?, part.weights);
        state_parts.push(gradient.clone().matmul(head.matrix.clone()).mul_scalar(factor));
        // Taken out, the sum has one owner and is added to in place.
        matrix = matrix.take().map(|sum| sum + gradient.transpose().matmul(part.states));
        Ok(())
    })?;
    let states = if state_parts.is_empty() { states.zeros_like() } else { Tensor::cat(state_parts, 0) };
    Ok(HeadGradients { loss: total * factor, states, matrix: matrix.map(|sum| sum.mul_scalar(factor)) })
}

/// The loss alone, without gradients of states or matrix.
pub fn head_loss(
    states: Tensor<2>,
    head: &OutputHead,
    teacher: Option<&TeacherStates>,
    scored: &Scored<'_>,
    loss: &dyn DistillLoss,
    chunk: usize,
) -> Result<f64> {
    let mut total = 0.0;
    by_chunks(&states, head, teacher, scored, loss, chunk, |part| {
        total += weighted_sum(&host(loss.rows(part.logits)?.0)?, part.weights);
        Ok(())
    })?;
    Ok(total * scored.factor())
}

/// The summed, weighed loss of every stretch of `length` tokens: what the rows of a batch come to, one by one.
pub fn row_losses(
    states: Tensor<2>,
    head: &OutputHead,
    scored: &Scored<'_>,
    loss: &dyn DistillLoss,
    chunk: usize,
    length: usize,
) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; scored.labels.len() / length.max(1)];
    let mut token = 0;
    by_chunks(&states, head, None, scored, loss, chunk, |part| {
        let losses = host(loss.rows(part.logits)?.0)?;
        for (i, loss) in losses.into_iter().enumerate() {
            let weight = part.weights.map_or(1.0, |w| w[i]);
            sums[token / length] += f64::from(weight) * f64::from(loss);
            token += 1;
        }
        Ok(())
    })?;
    Ok(sums)
}

impl Scored<'_> {
    /// What sums are multiplied by; 0 where nothing counts.
    fn factor(&self) -> f64 {
        if self.normaliser > 0.0 { 1.0 / self.normaliser } else { 0.0 }
    }
}

/// Some rows with their logits.
struct Part<'a> {
    states: Tensor<2>,
    logits: Logits,
    weights: Option<&'a [f32]>,
}

/// Checks, weighs the tokens, and hands out the rows `chunk` at a time.
fn by_chunks(
    states: &Tensor<2>,
    head: &OutputHead,
    teacher: Option<&TeacherStates>,
    scored: &Scored<'_>,
    loss: &dyn DistillLoss,
    chunk: usize,
    mut each: impl FnMut(Part<'_>) -> Result<()>,
) -> Result<()> {
    let ([tokens, _], [vocabulary, _], device) = (states.dims(), head.matrix.dims(), states.device());
    check(tokens, vocabulary, teacher, scored, loss)?;
    let own = token_weights(teacher, scored, loss, chunk)?;
    let weights = own.as_deref().or(scored.weights);
    for start in (0..tokens).step_by(chunk.max(1)) {
        let end = (start + chunk.max(1)).min(tokens);
        let rows = states.clone().slice(s![start..end, ..]);
        let ids: Vec<i32> = scored.labels[start..end].iter().map(|&id| id as i32).collect();
        let logits = Logits {
            student: head.logits(rows.clone()),
            teacher: teacher.map(|t| t.head.logits(t.states.clone().slice(s![start..end, ..]))),
            labels: Tensor::from_data(TensorData::new(ids, [end - start]), &device),
            known: known_rows(scored.known, start..end, &device),
        };
        each(Part { states: rows, logits, weights: weights.map(|w| &w[start..end]) })?;
    }
    Ok(())
}

/// Some rows of what is known, as tensors.
fn known_rows(known: &Known, rows: Range<usize>, device: &Device) -> KnownRows {
    let column = |values: Vec<f32>| Tensor::<1>::from_data(TensorData::new(values, [rows.len()]), device);
    match known {
        Known::Nothing | Known::Answer(_) => KnownRows::Nothing,
        Known::Kept(records) => {
            let records = &records[rows.clone()];
            let shape = [records.len(), records.first().map_or(0, |record| record.ids.len())];
            let ids: Vec<i32> = records.iter().flat_map(|record| record.ids.iter().map(|&id| id as i32)).collect();
            let log_p: Vec<f32> = records.iter().flat_map(|record| record.log_probs.iter().copied()).collect();
            KnownRows::Kept {
                ids: Tensor::from_data(TensorData::new(ids, shape), device),
                log_p: Tensor::from_data(TensorData::new(log_p, shape), device),
                log_rest: column(records.iter().map(|record| record.log_tail).collect()),
            }
        }
        Known::Sampled(tokens) => {
            let tokens = &tokens[rows.clone()];
            KnownRows::Sampled {
                log_q: column(tokens.iter().map(|token| token.log_q).collect()),
                weight: column(tokens.iter().map(|token| token.weight).collect()),
                advantage: column(tokens.iter().map(|token| token.advantage).collect()),
            }
        }
    }
}

fn weighted_sum(losses: &[f32], weights: Option<&[f32]>) -> f64 {
    match weights {
        Some(weights) => losses.iter().zip(weights).map(|(l, w)| f64::from(*l) * f64::from(*w)).sum(),
        None => losses.iter().map(|&l| f64::from(l)).sum(),
    }
}

/// What the tokens count if the loss weighs them by the teacher: given weights times the teacher's, whose mean over the
/// given ones is 1 within these tokens. `None`: the given weights stand.
fn token_weights(
    teacher: Option<&TeacherStates>,
    scored: &Scored<'_>,
    loss: &dyn DistillLoss,
    chunk: usize,
) -> Result<Option<Vec<f32>>> {
    let (Some(teacher), false) = (teacher, loss.weighting() == Weighting::Uniform) else { return Ok(None) };
    let [tokens, _] = teacher.states.dims();
    let mut weights = Vec::with_capacity(tokens);
    for start in (0..tokens).step_by(chunk.max(1)) {
        let end = (start + chunk.max(1)).min(tokens);
        let logits = teacher.head.logits(teacher.states.clone().slice(s![start..end, ..]));
        weights.extend(host(loss.weighting().of(logits))?);
    }
    let given = |i: usize| scored.weights.map_or(1.0, |w| w[i]);
    let sum: f64 = weights.iter().enumerate().map(|(i, &w)| f64::from(w * given(i))).sum();
    let count: f64 = (0..tokens).map(|i| f64::from(given(i))).sum();
    let factor = if sum > 0.0 { (count / sum) as f32 } else { 0.0 };
    weights.iter_mut().enumerate().for_each(|(i, w)| *w *= factor * given(i));
    Ok(Some(weights))
}

fn check(
    tokens: usize,
    vocabulary: usize,
    teacher: Option<&TeacherStates>,
    scored: &Scored<'_>,
    loss: &dyn DistillLoss,
) -> Result<()> {
    let counts = [scored.labels.len(), scored.weights.map_or(tokens, <[f32]>::len)];
    if counts != [tokens, tokens] {
        return Err(DistillError::Input(format!(
            "{tokens} states, but {} labels and {} weights",
            counts[0], counts[1]
        )));
    }
    if let Some(count) = scored.known.count()
        && count != tokens
    {
        return Err(DistillError::Input(format!("{tokens} states, but something is known of {count}")));
    }
    if let Known::Kept(records) = scored.known {
        let k = records.first().map_or(0, |record| record.ids.len());
        if records.iter().any(|record| record.ids.len() != k || record.log_probs.len() != k) {
            return Err(DistillError::Input(format!("records of one length are needed, {k} tokens as in the first")));
        }
        if let Some(&id) = records.iter().flat_map(|record| &record.ids).find(|&&id| id as usize >= vocabulary) {
            return Err(DistillError::Input(format!("a kept token {id} is outside the vocabulary of {vocabulary}")));
        }
    }
    if let Some(&id) = scored.labels.iter().find(|&&id| id as usize >= vocabulary) {
        return Err(DistillError::Input(format!("label {id} is outside the vocabulary of {vocabulary}")));
    }
    match teacher {
        Some(teacher) => {
            let ([rows, _], [size, _]) = (teacher.states.dims(), teacher.head.matrix.dims());
            if rows != tokens {
                return Err(DistillError::Input(format!("the teacher has {rows} states, the student {tokens}")));
            }
            if size != vocabulary {
                return Err(DistillError::Vocabulary { teacher: size, student: vocabulary });
            }
        }
        None if loss.needs_teacher() => return Err(DistillError::NoTeacher(loss.name())),
        None => {}
    }
    Ok(())
}

fn host(x: Tensor<1>) -> Result<Vec<f32>> {
    let data = x.into_data().convert::<f32>().try_to_vec::<f32>();
    data.map_err(|error| DistillError::Input(format!("losses could not be read back: {error:?}")))
}
