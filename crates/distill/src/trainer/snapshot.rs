//! The state that a run is taken up from, as plain data.

use std::collections::HashMap;

use burn::tensor::{Tensor, TensorData};
use kindling_core::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{Means, Trainer, Values, each_rank};
use crate::adamw::Moments;
use crate::error::{DistillError, Result};

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

impl<M: LanguageModel + Clone> Trainer<M> {
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
                let data = TensorData::new(tensor.values, tensor.shape);
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
