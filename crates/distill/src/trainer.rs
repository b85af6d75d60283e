//! One step of training, and the state that a run is taken up from.

mod backward;
mod gradients;
mod snapshot;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Tensor, TensorData};
use kindling_core::{LanguageModel, ParameterMut};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::gradients::{Found, Inputs};
pub use self::snapshot::{Place, SavedTensor, Snapshot};
use crate::adamw::{AdamW, Moments};
use crate::batch::{Known, Row};
use crate::error::{DistillError, Result};
use crate::head::{head_loss, row_losses};
use crate::loss::dpo::Preference;
use crate::loss::layers::{LayerLosses, LayerOptions};
use crate::loss::{CrossEntropy, DistillLoss};
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
    /// Losses of what lies before the logits, added to that of the logits.
    #[serde(default)]
    pub layers: LayerOptions,
    /// In what the blocks multiply.
    #[serde(default)]
    pub precision: Precision,
}

/// In what the matrices between hidden states are multiplied. Weights that learn, sums, norms, attention and the loss are f32
/// in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// Weights and what meets them are rounded to bf16, as units for small matrices on GPUs take them. Slower than f32 on a
    /// processor, which has no such units.
    Bf16,
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
    /// What the pairs of answers gave, if it learnt from such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferences: Option<Preferences>,
}

/// Means over the pairs of a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Preferences {
    /// Share of pairs whose better answer gained more over the reference.
    pub accuracy: f64,
    /// Reward of the better answers.
    pub chosen: f64,
    /// Reward of the worse answers.
    pub rejected: f64,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("precision `{name}`: f32 or bf16 is expected")),
        }
    }
}

impl Preferences {
    fn of(pairs: &[Preference]) -> Option<Self> {
        let mean = |value: fn(&Preference) -> f64| pairs.iter().map(value).sum::<f64>() / pairs.len() as f64;
        (!pairs.is_empty()).then(|| Self {
            accuracy: mean(|pair| f64::from(u8::from(pair.correct))),
            chosen: mean(|pair| pair.rewards[0]),
            rejected: mean(|pair| pair.rewards[1]),
        })
    }
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

use each_rank;

impl Values {
    fn matrix(&self) -> Option<&Tensor<2>> {
        match self {
            Values::Matrix(x) => Some(x),
            Values::Vector(_) => None,
        }
    }
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
    layers: Option<LayerLosses>,
    options: TrainOptions,
    slots: Vec<Slot>,
    /// Rounded weights that do not learn, as they were.
    frozen: Vec<(String, Tensor<2>)>,
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
        let layers = LayerLosses::new(options.layers.clone(), &model, teacher.as_deref())?;
        if layers.is_some() && (options.checkpoint_blocks || loss.of_pairs().is_some()) {
            return Err(DistillError::Input(
                "losses of layers read all blocks at once, for texts: leave out the checkpointing of blocks, and pairs"
                    .into(),
            ));
        }
        if options.precision == Precision::Bf16 && !model.device().supports_dtype(DType::BF16) {
            return Err(DistillError::Input("this device does not multiply bf16: train in f32".into()));
        }
        let output = model.output_parameter().to_string();
        let all = model.parameters_mut().into_iter();
        let mut slots: Vec<Slot> = all
            .filter(|(name, _)| trainable(name))
            .map(|(name, parameter)| {
                let value = match parameter {
                    ParameterMut::Vector(x) => Values::Vector(x.clone().inner()),
                    ParameterMut::Matrix(x) => Values::Matrix(x.clone().inner()),
                };
                let hidden = matches!(value, Values::Matrix(_)) && is_hidden(&name, &output);
                Slot { name, value, means: None, mask: None, hidden }
            })
            .collect();
        if slots.is_empty() {
            return Err(DistillError::Input("nothing to train: no parameter was selected".into()));
        }
        if let Some((values, shape)) = layers.as_ref().and_then(LayerLosses::first_map) {
            let map = Tensor::from_data(TensorData::new(values, shape), &model.device().without_autodiff());
            let value = Values::Matrix(map);
            slots.push(Slot { name: MAP.into(), value, means: None, mask: None, hidden: false });
        }
        let mut frozen = Vec::new();
        if options.precision == Precision::Bf16 {
            for (name, parameter) in model.parameters_mut() {
                if let ParameterMut::Matrix(x) = parameter
                    && rounds(&name, &output)
                    && !trainable(&name)
                {
                    frozen.push((name, x.clone()));
                    *x = x.clone().cast(DType::BF16);
                }
            }
            if frozen.is_empty() && !slots.iter().any(|slot| slot.hidden && rounds(&slot.name, &output)) {
                return Err(DistillError::Input(
                    "nothing to round to bf16: the weights of blocks are compressed or lie under adapters; train in f32".into(),
                ));
            }
        }
        let worker = |_| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            let pool = pool.map_err(|error| DistillError::Input(format!("cannot start a worker thread: {error}")))?;
            Ok(Worker { model: model.clone(), pool })
        };
        let count = if options.workers > 1 { options.workers } else { 0 };
        let workers = (0..count).map(worker).collect::<Result<_>>()?;
        Ok(Self { model, workers, teacher, loss, layers, options, slots, frozen, step: 0, tokens: 0, mean_loss: None })
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

    /// The model with its present weights, those of blocks rounded where [`Precision`] says so.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Whom it learns from, if the loss asks for a teacher.
    pub fn teacher(&self) -> Option<&dyn LanguageModel> {
        self.teacher.as_deref()
    }

    /// Ends training. No weight is rounded any more.
    pub fn into_model(mut self) -> M {
        self.options.precision = Precision::F32;
        self.release();
        let mut frozen: HashMap<String, Tensor<2>> = self.frozen.drain(..).collect();
        for (name, parameter) in self.model.parameters_mut() {
            if let (ParameterMut::Matrix(place), Some(x)) = (parameter, frozen.remove(&name)) {
                *place = x;
            }
        }
        self.model
    }

    /// Names and sizes of what is trained.
    pub fn trained(&self) -> impl Iterator<Item = (&str, usize)> {
        self.slots.iter().map(|slot| (slot.name.as_str(), each_rank!(&slot.value, x -> x.shape().num_elements())))
    }

    /// Takes one step. On an error the weights are those of before.
    pub fn step(&mut self, rows: &[Row]) -> Result<StepReport> {
        let (length, total) = self.check(rows)?;
        let result = self.gradients(rows, length, total);
        self.release();
        let outcome = self.apply(result?, (rows.len() * length) as u64);
        self.release();
        outcome
    }

    /// Mean loss over rows, without learning from them.
    pub fn evaluate(&self, rows: &[Row]) -> Result<f64> {
        let (length, total) = self.check(rows)?;
        let mut sum = 0.0;
        let map = self.slots.iter().find(|slot| slot.name == MAP).and_then(|slot| slot.value.matrix());
        let map = map.map(|x| Tensor::from_inner(x.clone()));
        for rows in self.micro_batches(rows) {
            let inputs = Inputs::new(rows, length);
            let (states, sides) = self.look(&self.model, &inputs, map.as_ref())?;
            let (states, head) = (flat(states.inner()), self.head(&self.model)?);
            let chunk = self.chunk(&states);
            let (weights, pairs) = self.pair_weights(&states, &head, &inputs, chunk)?.unzip();
            let scored = inputs.scored(weights.as_deref(), total);
            sum += match pairs {
                Some(pairs) => pairs.iter().map(|pair| pair.loss).sum::<f64>() / total,
                None => head_loss(states, &head, sides.teacher.as_ref(), &scored, &*self.loss, chunk)?,
            };
            if let Some(layers) = sides.layers {
                sum += f64::from(layers.into_scalar::<f32>()) * inputs.share(total);
            }
        }
        Ok(sum)
    }

    /// The summed log-probability of every row's counted tokens.
    ///
    /// # Errors
    /// The rows differ in length.
    pub fn scores(&self, rows: &[Row]) -> Result<Vec<f64>> {
        let (length, _) = check_rows(rows)?;
        let mut scores = Vec::with_capacity(rows.len());
        for rows in self.micro_batches(rows) {
            let inputs = Inputs::new(rows, length);
            let (states, head) = (flat(self.model.states(&inputs.ids)?.inner()), self.head(&self.model)?);
            let scored = inputs.scored(None, 1.0);
            let chunk = self.chunk(&states);
            scores
                .extend(row_losses(states, &head, &scored, &CrossEntropy, chunk, length)?.into_iter().map(|sum| -sum));
        }
        Ok(scores)
    }

    /// Predictions per row, and what sums are divided by: the weights of all rows, or the number of pairs.
    fn check(&self, rows: &[Row]) -> Result<(usize, f64)> {
        let (length, total) = check_rows(rows)?;
        if self.loss.of_pairs().is_none() {
            return Ok((length, total));
        }
        let answers = rows.iter().all(|row| matches!(&row.known, Known::Answer(scores) if scores.len() == 1));
        if !answers || rows.len() % 2 == 1 {
            return Err(DistillError::Input(format!(
                "loss `{}` compares pairs of answers with their scores under a reference: better and worse answer by turns",
                self.loss.name()
            )));
        }
        Ok((length, (rows.len() / 2) as f64))
    }

    /// Rows that run through the model at a time: of one kind, and not more than wanted.
    fn micro_batches<'r>(&self, rows: &'r [Row]) -> impl Iterator<Item = &'r [Row]> + use<'r, M> {
        let most = if self.options.micro_rows == 0 { rows.len() } else { self.options.micro_rows };
        let most = if self.loss.of_pairs().is_some() { most.next_multiple_of(2) } else { most };
        rows.chunk_by(|a, b| a.known.same_kind(&b.known)).flat_map(move |kind| kind.chunks(most.max(1)))
    }

    /// Checks, clips, and moves the weights.
    fn apply(&mut self, found: Found, tokens: u64) -> Result<StepReport> {
        let Found { loss, gradients, pairs } = found;
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
        Ok(StepReport { step, loss, mean_loss, gradient_norm, rate, tokens, preferences: Preferences::of(&pairs) })
    }

    /// Gives all models the present weights, outside any graph.
    fn release(&mut self) {
        let values: Vec<Values> =
            self.slots.iter().map(|slot| each_rank!(slot.value.clone(), x => Tensor::from_inner(x))).collect();
        let bf16 = self.options.precision == Precision::Bf16;
        put(&mut self.model, &self.slots, &values, bf16);
        for worker in &mut self.workers {
            put(&mut worker.model, &self.slots, &values, bf16);
        }
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

/// The name under which the map of the layer loss `states` is kept.
const MAP: &str = "layers.map";

/// Gives a model these tensors for its trained parameters; matrices of blocks rounded if `bf16`.
fn put<M: LanguageModel>(model: &mut M, slots: &[Slot], values: &[Values], bf16: bool) {
    let mut of: HashMap<&str, &Values> = slots.iter().map(|slot| slot.name.as_str()).zip(values).collect();
    let output = model.output_parameter();
    for (name, parameter) in model.parameters_mut() {
        match (parameter, of.remove(name.as_str())) {
            (ParameterMut::Vector(place), Some(Values::Vector(x))) => *place = x.clone(),
            (ParameterMut::Matrix(place), Some(Values::Matrix(x))) => {
                let rounded = bf16 && rounds(&name, output);
                *place = if rounded { x.clone().cast(DType::BF16) } else { x.clone() };
            }
            _ => {}
        }
    }
}

/// Whether a matrix lies between hidden states: it neither embeds nor predicts tokens.
fn is_hidden(name: &str, output: &str) -> bool {
    name != output && !name.contains("embed")
}

/// Whether a matrix is rounded in mixed precision: those of blocks, but not adapters, which are small.
fn rounds(name: &str, output: &str) -> bool {
    is_hidden(name, output) && !name.contains(".lora_")
}

/// `[rows, tokens, features]` → `[rows · tokens, features]`.
pub(crate) fn flat(x: Tensor<3>) -> Tensor<2> {
    let [rows, tokens, features] = x.dims();
    x.reshape([rows * tokens, features])
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

#[cfg(test)]
mod tests;
