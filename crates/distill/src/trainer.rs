//! One step of training, and the state that a run is taken up from.

use std::collections::HashMap;

use burn::tensor::Tensor;
use kindling_core::{LanguageModel, ParameterMut};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::adamw::{AdamW, Moments};
use crate::batch::{Known, Row};
use crate::error::{DistillError, Result};
use crate::head::{Scored, TeacherStates, chunk_rows, fused_head, head_loss};
use crate::loss::DistillLoss;
use crate::muon::Muon;
use crate::schedule::Schedule;

/// How a step is taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// Rates.
    pub schedule: Schedule,
    /// The optimiser.
    #[serde(default)]
    pub adamw: AdamW,
    /// Moves the hidden matrices in place of AdamW.
    #[serde(default)]
    pub muon: Option<Muon>,
    /// The largest norm of all gradients together; longer ones are scaled down to it.
    #[serde(default)]
    pub clip: Option<f64>,
    /// Rows that run through the model at a time: gradients of a step are sums over its micro-batches. 0: all rows.
    #[serde(default)]
    pub micro_rows: usize,
    /// Micro-batches that run at the same time, each on a thread of its own: on a CPU this beats many threads in one
    /// product. 0 or 1: one after the other. Results are the same.
    #[serde(default)]
    pub workers: usize,
    /// Keep the input of every block only, and run the block again on the way back: memory for time.
    #[serde(default)]
    pub checkpoint_blocks: bool,
    /// Stop when the loss exceeds its running mean by so many nats.
    #[serde(default = "default_spike")]
    pub spike: f64,
}

fn default_spike() -> f64 {
    2.0
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Its number, from 0.
    pub step: u64,
    /// Mean loss per unit of weight.
    pub loss: f64,
    /// Running mean of the losses, decay 0.95.
    pub mean_loss: f64,
    /// Norm of all gradients, before clipping.
    pub gradient_norm: f64,
    /// The rate of the schedule.
    pub rate: f64,
    /// Predictions made.
    pub tokens: u64,
}

/// A tensor of either rank.
#[derive(Debug, Clone)]
enum Values {
    Vector(Tensor<1>),
    Matrix(Tensor<2>),
}

/// Runs a piece of code for whichever rank it is.
macro_rules! each_rank {
    ($values:expr, $x:ident => $body:expr) => {
        match $values {
            Values::Vector($x) => Values::Vector($body),
            Values::Matrix($x) => Values::Matrix($body),
        }
    };
    ($values:expr, $x:ident -> $body:expr) => {
        match $values {
            Values::Vector($x) => $body,
            Values::Matrix($x) => $body,
        }
    };
}

#[derive(Clone)]
enum Means {
    Vector(Moments<1>),
    Matrix(Moments<2>),
    Momentum(Tensor<2>),
}

/// A trained weight, without autodiff, and its optimiser's state.
struct Slot {
    name: String,
    value: Values,
    means: Option<Means>,
    /// 1 where the weight may change, 0 where it stays zero.
    mask: Option<Tensor<2>>,
    /// A matrix between hidden states, not one that embeds or predicts tokens.
    hidden: bool,
}

/// A model of its own and a pool of one thread, in which all its operations run.
struct Worker<M> {
    model: M,
    pool: rayon::ThreadPool,
}

/// Model, optimiser and place in the run.
pub struct Trainer<M: LanguageModel> {
    model: M,
    /// Empty if micro-batches run one after the other.
    workers: Vec<Worker<M>>,
    teacher: Option<Box<dyn LanguageModel>>,
    loss: Box<dyn DistillLoss>,
    options: TrainOptions,
    slots: Vec<Slot>,
    step: u64,
    tokens: u64,
    mean_loss: Option<f64>,
}

impl<M: LanguageModel + Clone> Trainer<M> {
    /// Trains the parameters of `model`, which must lie on a device with autodiff, whose names `trainable` accepts.
    ///
    /// # Errors
    /// No parameter is accepted, the device has no autodiff, or teacher and student differ in vocabulary.
    pub fn new(
        mut model: M,
        teacher: Option<Box<dyn LanguageModel>>,
        loss: Box<dyn DistillLoss>,
        options: TrainOptions,
        trainable: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        if !model.device().is_autodiff() {
            return Err(DistillError::Input("the model to train must be loaded on a device with autodiff".into()));
        }
        if let Some(teacher) = &teacher
            && loss.needs_teacher()
            && teacher.vocab_size() != model.vocab_size()
        {
            return Err(DistillError::Vocabulary { teacher: teacher.vocab_size(), student: model.vocab_size() });
        }
        if loss.needs_teacher() && teacher.is_none() {
            return Err(DistillError::NoTeacher(loss.name()));
        }
        let output = model.output_parameter().to_string();
        let all = model.parameters_mut().into_iter();
        let slots: Vec<Slot> = all
            .filter(|(name, _)| trainable(name))
            .map(|(name, parameter)| {
                let value = match parameter {
                    ParameterMut::Vector(x) => Values::Vector(x.clone().inner()),
                    ParameterMut::Matrix(x) => Values::Matrix(x.clone().inner()),
                };
                let hidden = matches!(value, Values::Matrix(_)) && name != output && !name.contains("embed");
                Slot { name, value, means: None, mask: None, hidden }
            })
            .collect();
        if slots.is_empty() {
            return Err(DistillError::Input("nothing to train: no parameter was selected".into()));
        }
        let worker = |_| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            let pool = pool.map_err(|error| DistillError::Input(format!("cannot start a worker thread: {error}")))?;
            Ok(Worker { model: model.clone(), pool })
        };
        let count = if options.workers > 1 { options.workers } else { 0 };
        let workers = (0..count).map(worker).collect::<Result<_>>()?;
        Ok(Self { model, workers, teacher, loss, options, slots, step: 0, tokens: 0, mean_loss: None })
    }

    /// From now on entries of matrices that are zero stay zero, however they are trained: pruned weights stay pruned.
    ///
    /// # Errors
    /// No trained matrix has a zero.
    pub fn keep_zeros(&mut self) -> Result<()> {
        let mut found = false;
        for slot in &mut self.slots {
            if let Values::Matrix(x) = &slot.value {
                let mask = x.clone().not_equal_scalar(0.0).float();
                let [rows, cols] = mask.dims();
                if f64::from(mask.clone().sum().into_scalar::<f32>()) < (rows * cols) as f64 {
                    slot.mask = Some(mask);
                    found = true;
                }
            }
        }
        if found { Ok(()) } else { Err(DistillError::Input("no trained matrix has a zero to keep".into())) }
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Predictions learnt from.
    pub fn tokens_seen(&self) -> u64 {
        self.tokens
    }

    /// The model with its present weights.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Whom it learns from, if the loss asks for a teacher.
    pub fn teacher(&self) -> Option<&dyn LanguageModel> {
        self.teacher.as_deref()
    }

    /// Ends training.
    pub fn into_model(self) -> M {
        self.model
    }

    /// Names and sizes of what is trained.
    pub fn trained(&self) -> impl Iterator<Item = (&str, usize)> {
        self.slots.iter().map(|slot| (slot.name.as_str(), each_rank!(&slot.value, x -> x.shape().num_elements())))
    }

    /// Takes one step. On an error the weights are those of before.
    pub fn step(&mut self, rows: &[Row]) -> Result<StepReport> {
        let (length, total_weight) = check_rows(rows)?;
        let result = self.gradients(rows, length, total_weight);
        self.release();
        let (loss, gradients) = result?;
        let outcome = self.apply(loss, gradients, (rows.len() * length) as u64);
        self.release();
        outcome
    }

    /// Mean loss over rows, without learning from them.
    pub fn evaluate(&self, rows: &[Row]) -> Result<f64> {
        let (length, total_weight) = check_rows(rows)?;
        let mut total = 0.0;
        for rows in self.micro_batches(rows) {
            let (ids, labels, weights, known) = inputs(rows, length);
            let states = flat(self.model.states(&ids)?.inner());
            let teacher = self.teacher_states(&ids)?;
            let scored =
                Scored { labels: &labels, weights: weights.as_deref(), normaliser: total_weight, known: &known };
            let chunk = self.chunk(&states);
            total += head_loss(states, &inner_head(&self.model)?, teacher.as_ref(), &scored, &*self.loss, chunk)?;
        }
        Ok(total)
    }

    /// Rows that run through the model at a time: of one kind, and not more than wanted.
    fn micro_batches<'r>(&self, rows: &'r [Row]) -> impl Iterator<Item = &'r [Row]> + use<'r, M> {
        let most = if self.options.micro_rows == 0 { rows.len() } else { self.options.micro_rows };
        rows.chunk_by(|a, b| a.known.same_kind(&b.known)).flat_map(move |kind| kind.chunks(most.max(1)))
    }

    fn chunk(&self, states: &Tensor<2>) -> usize {
        let [tokens, hidden] = states.dims();
        chunk_rows(tokens, self.model.vocab_size(), hidden)
    }

    fn teacher_states(&self, ids: &[Vec<u32>]) -> Result<Option<TeacherStates>> {
        if !self.loss.needs_teacher() {
            return Ok(None);
        }
        let Some(teacher) = &self.teacher else { return Err(DistillError::NoTeacher(self.loss.name())) };
        Ok(Some(TeacherStates { states: flat(teacher.states(ids)?), head: teacher.output()? }))
    }

    /// Loss of the step and the gradient of every slot.
    fn gradients(&mut self, rows: &[Row], length: usize, total_weight: f64) -> Result<(f64, Vec<Option<Values>>)> {
        let batches: Vec<&[Row]> = self.micro_batches(rows).collect();
        let leaves = |slots: &[Slot]| -> Vec<Values> {
            slots.iter().map(|slot| each_rank!(slot.value.clone(), x => Tensor::from_inner(x).require_grad())).collect()
        };
        let mut loss = 0.0;
        let mut sums: Vec<Option<Values>> = vec![None; self.slots.len()];
        // In the order of the batches, however many run at a time.
        let (step, mut seen) = (self.step, 0);
        let bad = || {
            let broken = |slot: &&Slot| !each_rank!(slot.value.clone(), x -> x.sum().into_scalar::<f32>()).is_finite();
            let found = self.slots.iter().find(broken);
            found
                .map_or("every weight is a number".into(), |slot| format!("the weight `{}` is not a number", slot.name))
        };
        let mut gather = |(part, gradients): (f64, Vec<Option<Values>>), rows: usize| -> Result<()> {
            if !part.is_finite() {
                let what = format!("the loss of rows {seen} to {} of the batch ({})", seen + rows - 1, bad());
                return Err(DistillError::NotFinite { step, what, value: part });
            }
            seen += rows;
            loss += part;
            for (sum, gradient) in sums.iter_mut().zip(gradients) {
                if let Some(gradient) = gradient {
                    add(sum, gradient);
                }
            }
            Ok(())
        };
        if self.workers.is_empty() || batches.len() == 1 {
            let leaves = leaves(&self.slots);
            put(&mut self.model, &self.slots, &leaves);
            for batch in batches {
                gather(self.batch_gradients(&self.model, batch, length, total_weight, &leaves)?, batch.len())?;
            }
            return Ok((loss, sums));
        }
        // Leaves of their own keep the graphs of the workers apart.
        let own: Vec<Vec<Values>> = self.workers.iter().map(|_| leaves(&self.slots)).collect();
        for (worker, leaves) in self.workers.iter_mut().zip(&own) {
            put(&mut worker.model, &self.slots, leaves);
        }
        for wave in batches.chunks(self.workers.len()) {
            let this = &*self;
            let results: Vec<_> = std::thread::scope(|scope| {
                let run = |((batch, worker), leaves): ((&&[Row], &Worker<M>), &Vec<Values>)| {
                    worker.pool.install(|| this.batch_gradients(&worker.model, batch, length, total_weight, leaves))
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
        Ok((loss, sums))
    }

    /// Loss and gradients of one micro-batch.
    fn batch_gradients(
        &self,
        model: &M,
        rows: &[Row],
        length: usize,
        total_weight: f64,
        leaves: &[Values],
    ) -> Result<(f64, Vec<Option<Values>>)> {
        let mut sums: Vec<Option<Values>> = vec![None; leaves.len()];
        let (ids, labels, weights, known) = inputs(rows, length);
        let teacher = self.teacher_states(&ids)?;
        let scored = Scored { labels: &labels, weights: weights.as_deref(), normaliser: total_weight, known: &known };
        let head = inner_head(model)?;
        let output = self.slots.iter().position(|slot| slot.name == model.output_parameter());
        let score = |states: Tensor<3>| {
            let states = flat(states.inner());
            let chunk = self.chunk(&states);
            fused_head(states, &head, teacher.as_ref(), &scored, &*self.loss, chunk, output.is_some())
        };
        let (loss, matrix) = if self.options.checkpoint_blocks {
            backward_by_blocks(model, &ids, leaves, &mut sums, score)?
        } else {
            let states = model.states(&ids)?;
            let found = score(states.clone())?;
            backward(&states, found.states, leaves, &mut sums);
            (found.loss, found.matrix)
        };
        if let (Some(output), Some(matrix)) = (output, matrix) {
            add(&mut sums[output], Values::Matrix(matrix));
        }
        Ok((loss, sums))
    }

    /// Checks, clips, and moves the weights.
    fn apply(&mut self, loss: f64, gradients: Vec<Option<Values>>, tokens: u64) -> Result<StepReport> {
        let step = self.step;
        if let Some(mean) = self.mean_loss
            && loss > mean + self.options.spike
        {
            return Err(DistillError::Spike { step, loss, mean });
        }
        // The operations of one weight after the other, those of different weights side by side.
        let square_of = |gradient: &Option<Values>| {
            let sum = |gradient: Values| each_rank!(gradient, x -> x.square().sum().into_scalar::<f32>());
            gradient.clone().map(|gradient| f64::from(sum(gradient)))
        };
        let each_square: Vec<Option<f64>> = gradients.par_iter().map(square_of).collect();
        let mut squares = 0.0;
        for (slot, square) in self.slots.iter().zip(each_square) {
            let Some(square) = square else { continue };
            if !square.is_finite() {
                let what = format!("the gradient of `{}`", slot.name);
                return Err(DistillError::NotFinite { step, what, value: square });
            }
            squares += square;
        }
        let gradient_norm = squares.sqrt();
        let factor = match self.options.clip {
            Some(clip) if gradient_norm > clip => clip / gradient_norm,
            _ => 1.0,
        };
        let rate = self.options.schedule.rate(step);
        let (adamw, muon) = (self.options.adamw, self.options.muon);
        self.slots.par_iter_mut().zip(gradients).try_for_each(|(slot, gradient)| {
            let Some(gradient) = gradient else { return Ok(()) };
            let gradient = if factor == 1.0 { gradient } else { each_rank!(gradient, x => x.mul_scalar(factor)) };
            slot.advance(gradient, &adamw, muon.as_ref(), rate, step + 1)
        })?;
        self.step += 1;
        self.tokens += tokens;
        let mean_loss = self.mean_loss.map_or(loss, |mean| 0.95 * mean + 0.05 * loss);
        self.mean_loss = Some(mean_loss);
        Ok(StepReport { step, loss, mean_loss, gradient_norm, rate, tokens })
    }

    /// Gives all models the present weights, outside any graph.
    fn release(&mut self) {
        let values: Vec<Values> =
            self.slots.iter().map(|slot| each_rank!(slot.value.clone(), x => Tensor::from_inner(x))).collect();
        put(&mut self.model, &self.slots, &values);
        for worker in &mut self.workers {
            put(&mut worker.model, &self.slots, &values);
        }
    }

    /// Everything that the rest of the run depends on, the data apart.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut tensors = Vec::with_capacity(3 * self.slots.len());
        for slot in &self.slots {
            tensors.push(saved(format!("weight.{}", slot.name), slot.value.clone())?);
            if let Some(means) = &slot.means {
                let (first, second) = match means.clone() {
                    Means::Vector(m) => (Values::Vector(m.first), Some(Values::Vector(m.second))),
                    Means::Matrix(m) => (Values::Matrix(m.first), Some(Values::Matrix(m.second))),
                    Means::Momentum(sum) => (Values::Matrix(sum), None),
                };
                tensors.push(saved(format!("first.{}", slot.name), first)?);
                if let Some(second) = second {
                    tensors.push(saved(format!("second.{}", slot.name), second)?);
                }
            }
        }
        Ok(Snapshot { tensors, place: Place { step: self.step, tokens: self.tokens, mean_loss: self.mean_loss } })
    }

    /// Goes back to a snapshot of a run with the same trained parameters.
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<()> {
        let mut held: HashMap<String, SavedTensor> =
            snapshot.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let device = self.model.device().without_autodiff();
        let mut restored = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let mut take = |kind: &str| -> Result<Option<Values>> {
                let Some(tensor) = held.remove(&format!("{kind}.{}", slot.name)) else { return Ok(None) };
                let expected = each_rank!(&slot.value, x -> x.dims().to_vec());
                if tensor.shape != expected {
                    let (name, found) = (&slot.name, &tensor.shape);
                    return Err(DistillError::State(format!("`{name}` has shape {found:?}, expected {expected:?}")));
                }
                let data = burn::tensor::TensorData::new(tensor.values, tensor.shape);
                Ok(Some(match &slot.value {
                    Values::Vector(_) => Values::Vector(Tensor::from_data(data, &device)),
                    Values::Matrix(_) => Values::Matrix(Tensor::from_data(data, &device)),
                }))
            };
            let Some(value) = take("weight")? else {
                return Err(DistillError::State(format!("`{}` is missing", slot.name)));
            };
            let means = match (take("first")?, take("second")?) {
                (Some(Values::Vector(first)), Some(Values::Vector(second))) => {
                    Some(Means::Vector(Moments { first, second }))
                }
                (Some(Values::Matrix(first)), Some(Values::Matrix(second))) => {
                    Some(Means::Matrix(Moments { first, second }))
                }
                (Some(Values::Matrix(sum)), None) if self.options.muon.is_some() && slot.hidden => {
                    Some(Means::Momentum(sum))
                }
                (None, None) => None,
                _ => return Err(DistillError::State(format!("`{}` has half of its optimiser state", slot.name))),
            };
            restored.push((value, means));
        }
        if let Some(name) = held.keys().min() {
            return Err(DistillError::State(format!("`{name}` belongs to no parameter of this run")));
        }
        for (slot, (value, means)) in self.slots.iter_mut().zip(restored) {
            (slot.value, slot.means) = (value, means);
        }
        let Place { step, tokens, mean_loss } = snapshot.place;
        (self.step, self.tokens, self.mean_loss) = (step, tokens, mean_loss);
        self.release();
        Ok(())
    }
}

impl Slot {
    fn advance(&mut self, gradient: Values, adamw: &AdamW, muon: Option<&Muon>, rate: f64, step: u64) -> Result<()> {
        (self.value, self.means) = match (self.value.clone(), gradient, self.means.take()) {
            (Values::Vector(x), Values::Vector(g), means) => {
                let means = if let Some(Means::Vector(means)) = means { Some(means) } else { None };
                let (x, means) = adamw.step(x, g, means, rate, step);
                (Values::Vector(x), Some(Means::Vector(means)))
            }
            (Values::Matrix(x), Values::Matrix(g), means) => {
                // Without a gradient the means of a pruned weight stay zero, and so does the weight.
                let masked = |x: Tensor<2>| match &self.mask {
                    Some(mask) => x * mask.clone(),
                    None => x,
                };
                let g = masked(g);
                if let Some(muon) = muon.filter(|_| self.hidden) {
                    let momentum = if let Some(Means::Momentum(sum)) = means { Some(sum) } else { None };
                    // Its step mixes entries, so the mask is asked for again.
                    let (x, sum) = muon.step(x, g, momentum, rate);
                    (Values::Matrix(masked(x)), Some(Means::Momentum(sum)))
                } else {
                    let means = if let Some(Means::Matrix(means)) = means { Some(means) } else { None };
                    let (x, means) = adamw.step(x, g, means, rate, step);
                    (Values::Matrix(x), Some(Means::Matrix(means)))
                }
            }
            (_, _, means) => {
                self.means = means;
                return Err(DistillError::Input(format!("`{}`: weight and gradient differ in rank", self.name)));
            }
        };
        Ok(())
    }
}

/// A run's place and tensors, ready to be written to a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Weights and optimiser state.
    pub tensors: Vec<SavedTensor>,
    /// How far the run is.
    pub place: Place,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Steps done.
    pub step: u64,
    /// Predictions learnt from.
    pub tokens: u64,
    /// Running mean of the losses.
    pub mean_loss: Option<f64>,
}

/// A tensor on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedTensor {
    /// `weight.`, `first.` or `second.` and the parameter's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

fn saved(name: String, values: Values) -> Result<SavedTensor> {
    let (shape, data) = each_rank!(values, x -> (x.dims().to_vec(), x.into_data()));
    let values = data.convert::<f32>().try_to_vec::<f32>();
    let values = values.map_err(|error| DistillError::State(format!("`{name}`: {error:?}")))?;
    Ok(SavedTensor { name, shape, values })
}

/// Gives a model these tensors for its trained parameters.
fn put<M: LanguageModel>(model: &mut M, slots: &[Slot], values: &[Values]) {
    let mut of: HashMap<&str, &Values> = slots.iter().map(|slot| slot.name.as_str()).zip(values).collect();
    for (name, parameter) in model.parameters_mut() {
        match (parameter, of.remove(name.as_str())) {
            (ParameterMut::Vector(place), Some(Values::Vector(x))) => *place = x.clone(),
            (ParameterMut::Matrix(place), Some(Values::Matrix(x))) => *place = x.clone(),
            _ => {}
        }
    }
}

fn inner_head<M: LanguageModel>(model: &M) -> Result<kindling_core::OutputHead> {
    let head = model.output()?;
    Ok(kindling_core::OutputHead { matrix: head.matrix.inner(), softcap: head.softcap })
}

/// `[rows, tokens, features]` → `[rows · tokens, features]`.
fn flat(x: Tensor<3>) -> Tensor<2> {
    let [rows, tokens, features] = x.dims();
    x.reshape([rows * tokens, features])
}

/// Sends `gradient` of `y` back and adds what arrives at the leaves.
fn backward(
    y: &Tensor<3>,
    gradient: Tensor<2>,
    leaves: &[Values],
    sums: &mut [Option<Values>],
) -> burn::tensor::Gradients {
    // A sum with constant weights has just these weights as its gradient.
    let weights = Tensor::from_inner(gradient.reshape(y.dims()));
    let mut grads = (y.clone() * weights).sum().backward();
    for (leaf, sum) in leaves.iter().zip(sums) {
        let found = match leaf {
            Values::Vector(x) => x.grad_remove(&mut grads).map(Values::Vector),
            Values::Matrix(x) => x.grad_remove(&mut grads).map(Values::Matrix),
        };
        if let Some(found) = found {
            add(sum, found);
        }
    }
    grads
}

/// As [`backward`], and returns the gradient of `x`.
fn backward_to(
    y: &Tensor<3>,
    gradient: Tensor<2>,
    leaves: &[Values],
    sums: &mut [Option<Values>],
    x: &Tensor<3>,
) -> Result<Tensor<3>> {
    let mut grads = backward(y, gradient, leaves, sums);
    x.grad_remove(&mut grads).ok_or_else(|| DistillError::Input("a block does not depend on its input".into()))
}

/// Forward with the inputs of blocks kept only; then block by block back.
fn backward_by_blocks(
    model: &dyn LanguageModel,
    ids: &[Vec<u32>],
    leaves: &[Values],
    sums: &mut [Option<Values>],
    score: impl FnOnce(Tensor<3>) -> Result<crate::head::HeadGradients>,
) -> Result<(f64, Option<Tensor<2>>)> {
    let embedded = model.embed(ids)?;
    let mut inputs = vec![embedded.clone().inner()];
    for index in 0..model.block_count() {
        let x = Tensor::from_inner(inputs[index].clone());
        inputs.push(model.block(index, x, None)?.inner());
    }
    let leaf = |x: &Tensor<3>| Tensor::from_inner(x.clone()).require_grad();
    let last = leaf(&inputs[model.block_count()]);
    let states = model.last_norm(last.clone());
    let found = score(states.clone())?;
    let mut gradient = backward_to(&states, found.states, leaves, sums, &last)?;
    for index in (0..model.block_count()).rev() {
        let x = leaf(&inputs[index]);
        let y = model.block(index, x.clone(), None)?;
        gradient = backward_to(&y, flat(gradient), leaves, sums, &x)?;
    }
    if embedded.is_tracked() {
        backward(&embedded, flat(gradient), leaves, sums);
    }
    Ok((found.loss, found.matrix))
}

fn add(sum: &mut Option<Values>, more: Values) {
    *sum = Some(match (sum.take(), more) {
        (Some(Values::Vector(a)), Values::Vector(b)) => Values::Vector(a + b),
        (Some(Values::Matrix(a)), Values::Matrix(b)) => Values::Matrix(a + b),
        (_, more) => more,
    });
}

/// Predictions per row and the sum of all weights.
fn check_rows(rows: &[Row]) -> Result<(usize, f64)> {
    let length = rows.first().map_or(0, |row| row.ids.len());
    if length < 2 || rows.iter().any(|row| row.ids.len() != length) {
        let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
        return Err(DistillError::Input(format!("rows of one length above 1 are needed, found {lengths:?}")));
    }
    let mut total = 0.0;
    for row in rows {
        if let Some(count) = row.known.count()
            && count != length - 1
        {
            return Err(DistillError::Input(format!("something is known of {count} of {} predictions", length - 1)));
        }
        match &row.weights {
            Some(weights) if weights.len() != length - 1 => {
                let found = weights.len();
                return Err(DistillError::Input(format!(
                    "a row of {length} tokens has {found} weights, not {}",
                    length - 1
                )));
            }
            Some(weights) => total += weights.iter().map(|&w| f64::from(w)).sum::<f64>(),
            None => total += (length - 1) as f64,
        }
    }
    Ok((length - 1, total))
}

type Inputs = (Vec<Vec<u32>>, Vec<u32>, Option<Vec<f32>>, Known);

/// What the model reads, what it should predict, what each prediction counts, and what else is known of it.
fn inputs(rows: &[Row], length: usize) -> Inputs {
    let ids = rows.iter().map(|row| row.ids[..length].to_vec()).collect();
    let labels = rows.iter().flat_map(|row| row.ids[1..].iter().copied()).collect();
    let weighted = rows.iter().any(|row| row.weights.is_some());
    let weights = weighted
        .then(|| rows.iter().flat_map(|row| row.weights.clone().unwrap_or_else(|| vec![1.0; length])).collect());
    let mut known = Known::Nothing;
    rows.iter().for_each(|row| known.extend(&row.known));
    (ids, labels, weights, known)
}

#[cfg(test)]
mod tests;
