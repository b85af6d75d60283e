//! Losses of states and attention inside a model: what its layers compute, not only what it says. One file each.
//!
//! They are chains of tensor operations, so that autodiff gives their gradients; each is a mean over tokens, summed over the
//! pairs of layers that it compares. Attention has one score for every pair of tokens: keep rows short (512 and below).

mod attention;
mod relations;
mod scores;
mod states;

use std::collections::BTreeMap;

use burn::tensor::{Bool, Tensor, TensorData, activation::log_softmax};
use kindling_core::options::unknown;
use kindling_core::{AttentionInputs, LanguageModel};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{DistillError, Result};
use crate::trainer::flat;

pub use relations::relation_heads;
pub use scores::attention_scores;
pub use states::mapped_states;

/// Every loss of layers.
pub const METHODS: &[LayerEntry] = &[states::ENTRY, scores::ENTRY, attention::ENTRY, relations::ENTRY];

/// A loss of layers that can be asked for by name.
pub struct LayerEntry {
    /// The name.
    pub name: &'static str,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// Which layers of student and teacher it compares.
    pairs: fn(Depths, &LayerOptions) -> Result<Vec<[usize; 2]>>,
    compare: Compare,
}

/// What a loss compares: student, teacher.
#[derive(Clone, Copy)]
enum Compare {
    /// States `[tokens, features]` of one width; layer 0 is the embedding.
    States(fn(Tensor<2>, Tensor<2>) -> Tensor<1>),
    /// What the attention of a block computes with.
    Attention(fn(&AttentionInputs, &AttentionInputs, &LayerOptions) -> Result<Tensor<1>>),
}

/// Which losses of layers are added to the loss of the logits, and what they count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LayerOptions {
    /// What each counts, by its name in [`METHODS`].
    pub weights: BTreeMap<String, f64>,
    /// Of `relations`: how many heads the features are cut into, in both models.
    pub relation_heads: usize,
    /// Of `attention` and `relations`: the teacher's block to learn from, from 0; `None`: the last one.
    pub teacher_block: Option<usize>,
    /// Of the linear map that `states` learns where widths differ.
    pub seed: u64,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self { weights: BTreeMap::new(), relation_heads: 8, teacher_block: None, seed: 0 }
    }
}

/// How many blocks the models have.
#[derive(Debug, Clone, Copy)]
struct Depths {
    student: usize,
    teacher: usize,
}

impl Depths {
    /// How many of the teacher's blocks one of the student's stands for.
    fn step(self, name: &str) -> Result<usize> {
        let Self { student, teacher } = self;
        if student == 0 || !teacher.is_multiple_of(student) {
            return Err(DistillError::Input(format!(
                "layer loss `{name}`: the student's {student} blocks do not divide the teacher's {teacher}: choose a depth that \
                 does, or `relations`, which compares one block"
            )));
        }
        Ok(teacher / student)
    }

    fn teacher_block(self, options: &LayerOptions) -> Result<usize> {
        match options.teacher_block {
            Some(block) if block >= self.teacher => Err(DistillError::Input(format!(
                "the teacher has {} blocks, counted from 0: there is no block {block} to learn from",
                self.teacher
            ))),
            Some(block) => Ok(block),
            None => Ok(self.teacher - 1),
        }
    }
}

/// The losses of a run, for two models.
pub struct LayerLosses {
    parts: Vec<Part>,
    options: LayerOptions,
    /// Hidden sizes of student and teacher.
    widths: [usize; 2],
}

struct Part {
    weight: f64,
    pairs: Vec<[usize; 2]>,
    compare: Compare,
}

/// Which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Student = 0,
    Teacher = 1,
}

/// What was seen on the way through a model, where a loss asks for it.
pub(crate) struct Trace {
    states: Vec<Option<Tensor<2>>>,
    attention: Vec<Option<AttentionInputs>>,
}

impl LayerLosses {
    /// The losses that the options name; `None` if they name none.
    ///
    /// # Errors
    /// A name is unknown, a weight is not a positive number, or the depths do not fit.
    pub fn new(
        options: LayerOptions,
        student: &dyn LanguageModel,
        teacher: Option<&dyn LanguageModel>,
    ) -> Result<Option<Self>> {
        let mut parts = Vec::new();
        let known = || METHODS.iter().map(|entry| entry.name).collect::<Vec<_>>();
        if let Some((name, weight)) = options.weights.iter().find(|&(_, &weight)| !(weight > 0.0 && weight.is_finite()))
        {
            return Err(DistillError::Input(format!(
                "layer loss `{name}` counts {weight}: a number above 0 is needed"
            )));
        }
        if options.weights.is_empty() {
            return Ok(None);
        }
        let Some(teacher) = teacher else { return Err(DistillError::NoTeacher("layers")) };
        let depths = Depths { student: student.block_count(), teacher: teacher.block_count() };
        for (name, &weight) in &options.weights {
            let Some(entry) = METHODS.iter().find(|entry| entry.name == name) else {
                return Err(DistillError::Input(unknown("layer loss", name, &known())));
            };
            parts.push(Part { weight, pairs: (entry.pairs)(depths, &options)?, compare: entry.compare });
        }
        let width = |model: &dyn LanguageModel| Ok::<_, DistillError>(model.output()?.matrix.dims()[1]);
        let widths = [width(student)?, width(teacher)?];
        Ok(Some(Self { parts, options, widths }))
    }

    /// The values `[student's width, teacher's width]` with which the map of states begins, row by row, if one is needed:
    /// uniform within `±1/√width`.
    pub(crate) fn first_map(&self) -> Option<(Vec<f32>, [usize; 2])> {
        let [student, teacher] = self.widths;
        let compared = self.parts.iter().any(|part| matches!(part.compare, Compare::States(_)));
        if !compared || student == teacher {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
        let bound = (student as f32).sqrt().recip();
        let value = |_| (rng.next_u32() as f32 / 4_294_967_296.0 * 2.0 - 1.0) * bound;
        Some(((0..student * teacher).map(value).collect(), self.widths))
    }

    /// Runs a model and keeps what the losses read: the states after the last norm, and the trace.
    pub(crate) fn trace(&self, side: Side, model: &dyn LanguageModel, ids: &[Vec<u32>]) -> Result<(Tensor<3>, Trace)> {
        let side = side as usize;
        let count = model.block_count();
        let mut trace = Trace { states: vec![None; count + 1], attention: vec![None; count] };
        let asked = |wanted: fn(&Compare) -> bool, layer: usize| {
            let of = |part: &Part| wanted(&part.compare) && part.pairs.iter().any(|pair| pair[side] == layer);
            self.parts.iter().any(of)
        };
        let states_of = |layer| asked(|compare| matches!(compare, Compare::States(_)), layer);
        let attention_of = |layer| asked(|compare| matches!(compare, Compare::Attention(_)), layer);
        let mut x = model.embed(ids)?;
        for index in 0..count {
            trace.states[index] = states_of(index).then(|| flat(x.clone()));
            if attention_of(index) {
                let (y, seen) = model.block_and_attention(index, x)?;
                trace.attention[index] = Some(seen);
                x = y;
            } else {
                x = model.block(index, x, None)?;
            }
        }
        trace.states[count] = states_of(count).then(|| flat(x.clone()));
        Ok((model.last_norm(x), trace))
    }

    /// The weighed sum of all losses. The teacher's trace must lie on the student's device, untracked.
    pub(crate) fn loss(&self, student: &Trace, teacher: &Trace, map: Option<&Tensor<2>>) -> Result<Tensor<1>> {
        let missing = || DistillError::Input("a layer was compared that was not looked at".into());
        let mut sum: Option<Tensor<1>> = None;
        for part in &self.parts {
            for &[own, other] in &part.pairs {
                let term = match part.compare {
                    Compare::States(compare) => {
                        let own = student.states[own].clone().ok_or_else(missing)?;
                        let other = teacher.states[other].clone().ok_or_else(missing)?;
                        let own = match map {
                            Some(map) => own.matmul(map.clone()),
                            None => own,
                        };
                        compare(own, other)
                    }
                    Compare::Attention(compare) => {
                        let own = student.attention[own].as_ref().ok_or_else(missing)?;
                        let other = teacher.attention[other].as_ref().ok_or_else(missing)?;
                        compare(own, other, &self.options)?
                    }
                };
                let term = term.mul_scalar(part.weight);
                sum = Some(match sum {
                    Some(sum) => sum + term,
                    None => term,
                });
            }
        }
        sum.ok_or_else(missing)
    }
}

impl Trace {
    /// The same as constants for a graph.
    pub(crate) fn constant(self) -> Self {
        let attention = |seen: AttentionInputs| AttentionInputs {
            queries: Tensor::from_inner(seen.queries),
            keys: Tensor::from_inner(seen.keys),
            values: Tensor::from_inner(seen.values),
            scale: seen.scale,
        };
        Self {
            states: self.states.into_iter().map(|x| x.map(Tensor::from_inner)).collect(),
            attention: self.attention.into_iter().map(|seen| seen.map(attention)).collect(),
        }
    }
}

/// The student's last block, and the teacher's that the options name.
fn last_block(depths: Depths, options: &LayerOptions) -> Result<Vec<[usize; 2]>> {
    Ok(vec![[depths.student - 1, depths.teacher_block(options)?]])
}

/// Mean squared difference of two tensors of one shape.
pub fn mean_squared<const D: usize>(student: Tensor<D>, teacher: Tensor<D>) -> Tensor<1> {
    (student - teacher).square().mean()
}

/// How tokens relate: `log softmax(X Xᵀ / √width)` of every head, `[heads, tokens, width]` → `[heads, tokens, tokens]`; a
/// token sees itself and those before it if `causal`.
pub fn relations(x: Tensor<3>, causal: bool) -> Tensor<3> {
    let [_, _, width] = x.dims();
    let scores = x.clone().matmul(x.swap_dims(1, 2)).div_scalar((width as f64).sqrt());
    log_softmax(if causal { without_later(scores, -1e30) } else { scores }, 2)
}

/// Mean over heads and tokens of the divergence of the student's relations from the teacher's, both logarithms
/// `[heads, tokens, tokens]`. Widths may differ, heads and tokens not.
pub fn relation_divergence(student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
    let [heads, tokens, _] = teacher.dims();
    // What is masked has probability 0 and a logarithm of −10³⁰: the product is 0.
    (teacher.clone().exp() * (teacher - student)).sum().div_scalar((heads * tokens) as f64)
}

/// The scores of every query with every key not after it, `[rows · heads, tokens, tokens]`; others are `masked`.
fn causal_scores(seen: &AttentionInputs, masked: f64) -> Tensor<3> {
    let [rows, heads, tokens, width] = seen.queries.dims();
    let kv_heads = seen.keys.dims()[1];
    // Consecutive query heads share a key head.
    let queries = seen.queries.clone().reshape([rows * kv_heads, heads / kv_heads * tokens, width]);
    let scores = queries.matmul(folded(seen.keys.clone()).swap_dims(1, 2)).mul_scalar(seen.scale);
    without_later(scores.reshape([rows * heads, tokens, tokens]), masked)
}

/// `[rows, heads, tokens, width]` → `[rows · heads, tokens, width]`.
fn folded(x: Tensor<4>) -> Tensor<3> {
    let [rows, heads, tokens, width] = x.dims();
    x.reshape([rows * heads, tokens, width])
}

fn without_later(scores: Tensor<3>, masked: f64) -> Tensor<3> {
    let [heads, tokens, _] = scores.dims();
    let later: Vec<bool> = (0..tokens).flat_map(|i| (0..tokens).map(move |j| j > i)).collect();
    let mask = Tensor::<2, Bool>::from_data(TensorData::new(later, [tokens, tokens]), &scores.device());
    scores.mask_fill(mask.reshape([1, tokens, tokens]).expand([heads, tokens, tokens]), masked)
}

fn same_heads(name: &str, what: &str, student: &Tensor<4>, teacher: &Tensor<4>) -> Result<()> {
    let (own, other) = (student.dims()[1], teacher.dims()[1]);
    if own == other {
        return Ok(());
    }
    Err(DistillError::Input(format!(
        "layer loss `{name}`: the student has {own} {what} heads, the teacher {other}: use `relations`, which cuts heads anew"
    )))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn value(x: Tensor<1>) -> f32 {
        x.into_scalar::<f32>()
    }

    #[test]
    fn relations_of_values() {
        let device = Device::default();
        let teacher = Tensor::<3>::from_data([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], &device);
        let student = Tensor::<3>::from_data([[[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]], &device);
        let rows = relations(teacher.clone(), false).exp().into_data().try_to_vec::<f32>().unwrap();
        for (found, expected) in rows.iter().zip([0.401112, 0.197776, 0.401112, 0.197776, 0.401112, 0.401112]) {
            assert!((found - expected).abs() < 1e-6);
        }
        let loss = relation_divergence(relations(student.clone(), false), relations(teacher.clone(), false));
        assert!((value(loss) - 0.048025).abs() < 1e-6);
        // Turning all values by one rotation changes no relation.
        let turn = Tensor::<3>::from_data([[[0.6, -0.8], [0.8, 0.6]]], &device);
        let turned = relations(student.clone().matmul(turn), true);
        assert!(value(relation_divergence(turned, relations(student.clone(), true))).abs() < 1e-6);
        // The first token sees itself alone.
        let causal = relations(student, true).exp().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(causal[..3], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn query_heads_share_keys_in_order() {
        let device = Device::default();
        let of = |values: Vec<f32>, heads| Tensor::<1>::from_data(values.as_slice(), &device).reshape([1, heads, 1, 1]);
        let seen = AttentionInputs {
            queries: of(vec![1.0, 2.0, 3.0, 4.0], 4),
            keys: of(vec![10.0, 100.0], 2),
            values: of(vec![0.0, 0.0], 2),
            scale: 0.5,
        };
        let scores = causal_scores(&seen, -1e30).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(scores, [5.0, 10.0, 150.0, 200.0]);
    }
}
