//! Loss and gradients of a step: its rows in micro-batches, with a teacher, layers and pairs of answers where they are asked for.

use burn::tensor::Tensor;
use kindling_core::{LanguageModel, OutputHead};

use super::backward::{add, backward, backward_by_blocks};
use super::{MAP, Precision, Slot, Trainer, Values, Worker, each_rank, flat, put};
use crate::batch::{Known, Row};
use crate::error::{DistillError, Result};
use crate::head::{Scored, TeacherStates, chunk_rows, fused_head, row_losses};
use crate::loss::dpo::{Pair, Preference, preference};
use crate::loss::layers::Side;

/// Loss, gradients of all slots, and what pairs of answers gave.
pub(super) struct Found {
    pub(super) loss: f64,
    pub(super) gradients: Vec<Option<Values>>,
    pub(super) pairs: Vec<Preference>,
}

/// What the student is compared with.
pub(super) struct Sides {
    pub(super) teacher: Option<TeacherStates>,
    pub(super) layers: Option<Tensor<1>>,
}

/// The rows of a micro-batch, one after the other.
pub(super) struct Inputs {
    /// What the model reads.
    pub(super) ids: Vec<Vec<u32>>,
    /// What it should predict.
    labels: Vec<u32>,
    /// What each prediction counts; `None`: 1.
    weights: Option<Vec<f32>>,
    /// What else is known of them.
    known: Known,
}

impl Inputs {
    pub(super) fn new(rows: &[Row], length: usize) -> Self {
        let ids = rows.iter().map(|row| row.ids[..length].to_vec()).collect();
        let labels = rows.iter().flat_map(|row| row.ids[1..].iter().copied()).collect();
        let weighted = rows.iter().any(|row| row.weights.is_some());
        let weight = |row: &Row| row.weights.clone().unwrap_or_else(|| vec![1.0; length]);
        let weights = weighted.then(|| rows.iter().flat_map(weight).collect());
        let mut known = Known::Nothing;
        rows.iter().for_each(|row| known.extend(&row.known));
        Self { ids, labels, weights, known }
    }

    /// What its weights are of those of all; nothing, where none counts.
    pub(super) fn share(&self, total: f64) -> f64 {
        let sum = |weights: &Vec<f32>| weights.iter().map(|&w| f64::from(w)).sum();
        let own = self.weights.as_ref().map_or(self.labels.len() as f64, sum);
        if total > 0.0 { own / total } else { 0.0 }
    }

    /// With `weights` in place of its own, if there are some.
    pub(super) fn scored<'a>(&'a self, weights: Option<&'a [f32]>, normaliser: f64) -> Scored<'a> {
        let weights = weights.or(self.weights.as_deref());
        Scored { labels: &self.labels, weights, normaliser, known: &self.known }
    }
}

impl<M: LanguageModel + Clone> Trainer<M> {
    pub(super) fn chunk(&self, states: &Tensor<2>) -> usize {
        let [tokens, hidden] = states.dims();
        chunk_rows(tokens, self.model.vocab_size(), hidden)
    }

    /// Runs the student, and the teacher where a loss asks for it: the student's states after the last norm, and what they
    /// are compared with.
    pub(super) fn look(&self, model: &M, inputs: &Inputs, map: Option<&Tensor<2>>) -> Result<(Tensor<3>, Sides)> {
        let ids = &inputs.ids;
        let Some(layers) = &self.layers else {
            return Ok((model.states(ids)?, Sides { teacher: self.teacher_side(ids)?, layers: None }));
        };
        let (theirs, seen) = layers.trace(Side::Teacher, self.teacher_or_error()?, ids)?;
        let needed = self.loss.needs_teacher();
        let teacher = if needed { Some(self.with_head(theirs)?) } else { None };
        let (states, own) = layers.trace(Side::Student, model, ids)?;
        let layers = layers.loss(&own, &seen.constant(), map)?;
        Ok((states, Sides { teacher, layers: Some(layers) }))
    }

    fn teacher_or_error(&self) -> Result<&dyn LanguageModel> {
        self.teacher.as_deref().ok_or(DistillError::NoTeacher(self.loss.name()))
    }

    /// What the teacher makes of the same tokens, if the loss of the logits asks.
    fn teacher_side(&self, ids: &[Vec<u32>]) -> Result<Option<TeacherStates>> {
        if !self.loss.needs_teacher() {
            return Ok(None);
        }
        self.with_head(self.teacher_or_error()?.states(ids)?).map(Some)
    }

    fn with_head(&self, states: Tensor<3>) -> Result<TeacherStates> {
        Ok(TeacherStates { states: flat(states), head: self.teacher_or_error()?.output()? })
    }

    /// What every token counts in a loss of pairs, which follows from what whole answers score, and what the pairs gave.
    pub(super) fn pair_weights(
        &self,
        states: &Tensor<2>,
        head: &OutputHead,
        inputs: &Inputs,
        chunk: usize,
    ) -> Result<Option<(Vec<f32>, Vec<Preference>)>> {
        let (Some(beta), Known::Answer(reference)) = (self.loss.of_pairs(), &inputs.known) else {
            return Ok(None);
        };
        let length = inputs.labels.len() / inputs.ids.len();
        let losses = row_losses(states.clone(), head, &inputs.scored(None, 1.0), &*self.loss, chunk, length)?;
        let mut weights = inputs.weights.clone().unwrap_or_else(|| vec![1.0; inputs.labels.len()]);
        let mut pairs = Vec::with_capacity(losses.len() / 2);
        for (i, (loss, reference)) in losses.chunks_exact(2).zip(reference.chunks_exact(2)).enumerate() {
            let pair = preference(
                Pair {
                    chosen: -loss[0],
                    rejected: -loss[1],
                    reference_chosen: reference[0],
                    reference_rejected: reference[1],
                },
                beta,
            );
            // A token's loss is minus its part of the score.
            let rows = weights[2 * i * length..2 * (i + 1) * length].chunks_exact_mut(length);
            for (row, factor) in rows.zip([-pair.slope, pair.slope]) {
                row.iter_mut().for_each(|weight| *weight *= factor as f32);
            }
            pairs.push(pair);
        }
        Ok(Some((weights, pairs)))
    }

    pub(super) fn head(&self, model: &M) -> Result<OutputHead> {
        let head = model.output()?;
        Ok(OutputHead { matrix: head.matrix.inner(), softcap: head.softcap })
    }

    /// Loss of the step and the gradient of every slot.
    pub(super) fn gradients(&mut self, rows: &[Row], length: usize, total: f64) -> Result<Found> {
        let batches: Vec<&[Row]> = self.micro_batches(rows).collect();
        let leaves = |slots: &[Slot]| -> Vec<Values> {
            slots.iter().map(|slot| each_rank!(slot.value.clone(), x => Tensor::from_inner(x).require_grad())).collect()
        };
        let mut all = Found { loss: 0.0, gradients: vec![None; self.slots.len()], pairs: Vec::new() };
        // In the order of the batches, however many run at a time.
        let (step, mut seen) = (self.step, 0);
        let bad = || {
            let broken = |slot: &&Slot| !each_rank!(slot.value.clone(), x -> x.sum().into_scalar::<f32>()).is_finite();
            let found = self.slots.iter().find(broken);
            found
                .map_or("every weight is a number".into(), |slot| format!("the weight `{}` is not a number", slot.name))
        };
        let mut gather = |part: Found, rows: usize| -> Result<()> {
            if !part.loss.is_finite() {
                let what = format!("the loss of rows {seen} to {} of the batch ({})", seen + rows - 1, bad());
                return Err(DistillError::NotFinite { step, what, value: part.loss });
            }
            seen += rows;
            all.loss += part.loss;
            all.pairs.extend(part.pairs);
            for (sum, gradient) in all.gradients.iter_mut().zip(part.gradients) {
                if let Some(gradient) = gradient {
                    add(sum, gradient);
                }
            }
            Ok(())
        };
        let bf16 = self.options.precision == Precision::Bf16;
        if self.workers.is_empty() || batches.len() == 1 {
            let leaves = leaves(&self.slots);
            for batch in batches {
                // Anew for every batch: what is rounded is part of its graph, and a graph is run back once.
                put(&mut self.model, &self.slots, &leaves, bf16);
                gather(self.batch_gradients(&self.model, batch, length, total, &leaves)?, batch.len())?;
            }
            return Ok(all);
        }
        // Leaves of their own keep the graphs of the workers apart.
        let own: Vec<Vec<Values>> = self.workers.iter().map(|_| leaves(&self.slots)).collect();
        for wave in batches.chunks(self.workers.len()) {
            for (worker, leaves) in self.workers.iter_mut().zip(&own) {
                put(&mut worker.model, &self.slots, leaves, bf16);
            }
            let this = &*self;
            let results: Vec<_> = std::thread::scope(|scope| {
                let run = |((batch, worker), leaves): ((&&[Row], &Worker<M>), &Vec<Values>)| {
                    worker.pool.install(|| this.batch_gradients(&worker.model, batch, length, total, leaves))
                };
                let started: Vec<_> =
                    wave.iter().zip(&self.workers).zip(&own).map(|job| scope.spawn(move || run(job))).collect();
                started.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
            });
            for (result, batch) in results.into_iter().zip(wave) {
                match result {
                    Ok(result) => gather(result?, batch.len())?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        }
        Ok(all)
    }

    /// Loss and gradients of one micro-batch.
    fn batch_gradients(&self, model: &M, rows: &[Row], length: usize, total: f64, leaves: &[Values]) -> Result<Found> {
        let mut gradients: Vec<Option<Values>> = vec![None; leaves.len()];
        let inputs = Inputs::new(rows, length);
        let head = self.head(model)?;
        let slot = |wanted: &str| self.slots.iter().position(|slot| slot.name == wanted);
        let output = slot(model.output_parameter());
        let mut pairs = None;
        let mut score = |states: Tensor<3>, teacher: Option<&TeacherStates>| {
            let states = flat(states.inner());
            let chunk = self.chunk(&states);
            let (weights, found) = self.pair_weights(&states, &head, &inputs, chunk)?.unzip();
            pairs = found;
            let scored = inputs.scored(weights.as_deref(), total);
            fused_head(states, &head, teacher, &scored, &*self.loss, chunk, output.is_some())
        };
        let (mut loss, matrix) = if self.options.checkpoint_blocks {
            let teacher = self.teacher_side(&inputs.ids)?;
            let score = |states| score(states, teacher.as_ref());
            backward_by_blocks(model, &inputs.ids, leaves, &mut gradients, score)?
        } else {
            let map = slot(MAP).and_then(|place| leaves[place].matrix());
            let (states, sides) = self.look(model, &inputs, map)?;
            let found = score(states.clone(), sides.teacher.as_ref())?;
            // A mean over the tokens of this batch, which are a part of all.
            let layers = sides.layers.map(|layers| layers.mul_scalar(inputs.share(total)));
            let added = layers.as_ref().map_or(0.0, |layers| f64::from(layers.clone().into_scalar::<f32>()));
            backward(&states, found.states, layers, leaves, &mut gradients);
            (found.loss + added, found.matrix)
        };
        if let Some(pairs) = &pairs {
            // What the weighed tokens come to has the gradient of the loss, not its value.
            loss = pairs.iter().map(|pair| pair.loss).sum::<f64>() / total;
        }
        if let (Some(output), Some(matrix)) = (output, matrix) {
            add(&mut gradients[output], Values::Matrix(matrix));
        }
        Ok(Found { loss, gradients, pairs: pairs.unwrap_or_default() })
    }
}
