//! What stands before the first block and after the last: embedding, norm, output matrix.

use burn::tensor::{Device, Tensor};
use kindling_core::{OutputHead, ParameterMut};
use kindling_tensor_backend::formats::{Half, Host, Weight};
use kindling_tensor_backend::kernels::Arithmetic;
use kindling_tensor_backend::ops::{on_flex, product};

use super::{RmsNorm, ids_tensor};
use crate::config::Spec;
use crate::error::{ModelError, Result};
use crate::layers::{EMBEDDING, FINAL_NORM, HEAD};

pub(super) fn scaled(x: Tensor<3>, spec: &Spec) -> Tensor<3> {
    match spec.embedding_scale {
        Some(scale) => x.mul_scalar(scale),
        None => x,
    }
}

/// The table of embeddings.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one per model")]
enum Table {
    Full(Tensor<2>),
    /// In 16 bits, where it has no more digits.
    Half(Half),
}

/// An output matrix of its own.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one per model")]
pub(super) enum OutputMatrix {
    /// A tensor that can be trained.
    Full(Tensor<2>),
    /// Any other format.
    Held(Weight),
}

impl OutputMatrix {
    /// `[vocabulary, hidden]`.
    pub(super) fn to_dense(&self, device: &Device) -> Result<Tensor<2>> {
        match self {
            OutputMatrix::Full(matrix) => Ok(matrix.clone()),
            OutputMatrix::Held(weight) => Ok(weight.to_dense(device)?),
        }
    }

    /// Logits of normed states.
    fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        match self {
            OutputMatrix::Full(matrix) => Ok(times(x, matrix.clone())),
            OutputMatrix::Held(weight) => Ok(weight.forward(x)?),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            OutputMatrix::Full(matrix) => matrix.dims().iter().product::<usize>() * 4,
            OutputMatrix::Held(weight) => weight.bytes(),
        }
    }
}

/// What [`Ends::to_host`] gives.
pub(super) struct HostEnds {
    pub(super) embedding: Host,
    pub(super) norm: (Vec<f32>, f32),
    pub(super) output: Host,
}

/// Embedding and head.
#[derive(Debug, Clone)]
pub struct Ends {
    embedding: Table,
    norm: RmsNorm,
    /// The output matrix where it is not the embedding.
    output: Option<OutputMatrix>,
    softcap: Option<f64>,
    device: Device,
}

impl Ends {
    pub(super) fn new(embedding: Tensor<2>, norm: RmsNorm, output: Option<OutputMatrix>, softcap: Option<f64>) -> Self {
        let device = embedding.device();
        Self { embedding: Table::Full(embedding), norm, output, softcap, device }
    }

    /// Makes the matrices ready to run: on the processor in 16 bits if that loses nothing, a packed one laid out anew.
    pub(super) fn prepare(&mut self) -> Result<()> {
        if let Table::Full(matrix) = &self.embedding
            && let Some(half) = halved(matrix)?
        {
            self.embedding = Table::Half(half);
        }
        let ready = match &self.output {
            Some(OutputMatrix::Full(matrix)) => halved(matrix)?.map(Weight::Half),
            Some(OutputMatrix::Held(weight)) => weight.laid_out(&self.device),
            None => None,
        };
        if let Some(ready) = ready {
            self.output = Some(OutputMatrix::Held(ready));
        }
        Ok(())
    }

    /// How a packed output matrix meets its inputs.
    pub(super) fn set_arithmetic(&mut self, arithmetic: Arithmetic) {
        if let Some(OutputMatrix::Held(weight)) = &mut self.output {
            weight.set_arithmetic(arithmetic);
        }
    }

    /// Logits of normed states, `[batch, tokens, hidden]` → `[batch, tokens, vocabulary]`.
    pub(super) fn logits(&self, normed: Tensor<3>) -> Result<Tensor<3>> {
        let logits = match (&self.output, &self.embedding) {
            (Some(output), _) => output.forward(normed)?,
            (None, Table::Half(half)) => Weight::Half(half.clone()).forward(normed)?,
            (None, Table::Full(matrix)) => times(normed, matrix.clone()),
        };
        Ok(capped(logits, self.softcap))
    }

    /// The norm after the last block.
    pub(super) fn norm(&self, x: Tensor<3>) -> Tensor<3> {
        self.norm.forward(x)
    }

    pub(super) fn embed(&self, ids: &[Vec<u32>], spec: &Spec, device: &Device) -> Result<Tensor<3>> {
        let [rows, tokens] = [ids.len(), ids.first().map_or(0, Vec::len)];
        let x = match &self.embedding {
            Table::Full(matrix) => matrix.clone().select(0, ids_tensor(ids, device).reshape([rows * tokens])),
            Table::Half(half) => half.rows(&ids.concat(), device),
        };
        Ok(scaled(x.reshape([rows, tokens, spec.hidden_size]), spec))
    }

    /// Embedding, last norm and output matrix without tensors, where all three can do so.
    pub(super) fn to_host(&self) -> Option<HostEnds> {
        let full = |matrix: &Tensor<2>| Host::of_matrix(matrix);
        let embedding = match &self.embedding {
            Table::Full(matrix) => full(matrix)?,
            Table::Half(half) => Host::of(&Weight::Half(half.clone()))?,
        };
        let output = match &self.output {
            None => embedding.clone(),
            Some(OutputMatrix::Full(matrix)) => full(matrix)?,
            Some(OutputMatrix::Held(weight)) => Host::of(weight)?,
        };
        // Tensors cap logits by another tangent.
        self.softcap.is_none().then_some(())?;
        Some(HostEnds { embedding, norm: self.norm.to_host()?, output })
    }

    /// Last norm and output matrix, dense.
    ///
    /// # Errors
    /// A format that cannot be unfolded.
    pub fn head(&self) -> Result<Head> {
        let matrix = match (&self.output, &self.embedding) {
            (Some(output), _) => output.to_dense(&self.device)?,
            (None, Table::Full(matrix)) => matrix.clone(),
            (None, Table::Half(half)) => half.to_dense(&self.device),
        };
        Ok(Head { norm: self.norm.clone(), output: OutputHead { matrix, softcap: self.softcap } })
    }

    /// Embedding, norm and, if it is dense, the output matrix, all in f32.
    pub(super) fn parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        if let Table::Half(half) = &self.embedding {
            self.embedding = Table::Full(half.to_dense(&self.device));
        }
        if let Some(OutputMatrix::Held(Weight::Half(half))) = &self.output {
            self.output = Some(OutputMatrix::Full(half.to_dense(&self.device)));
        }
        let mut list = Vec::with_capacity(3);
        if let Table::Full(matrix) = &mut self.embedding {
            list.push((EMBEDDING.to_string(), ParameterMut::Matrix(matrix)));
        }
        list.push((FINAL_NORM.to_string(), ParameterMut::Vector(self.norm.gain_mut())));
        if let Some(OutputMatrix::Full(matrix)) = &mut self.output {
            list.push((HEAD.to_string(), ParameterMut::Matrix(matrix)));
        }
        list
    }

    /// Bytes in memory; a matrix that is both embedding and head counts once.
    pub fn bytes(&self) -> usize {
        let full = |matrix: &Tensor<2>| matrix.dims().iter().product::<usize>() * 4;
        let embedding = match &self.embedding {
            Table::Full(matrix) => full(matrix),
            Table::Half(half) => half.bytes(),
        };
        embedding + self.norm.bytes() + self.output.as_ref().map_or(0, OutputMatrix::bytes)
    }

    /// Bytes that a pass reads of the output matrix.
    pub fn output_bytes(&self) -> usize {
        match (&self.output, &self.embedding) {
            (Some(output), _) => output.bytes(),
            (None, Table::Half(half)) => half.bytes(),
            (None, Table::Full(matrix)) => matrix.dims().iter().product::<usize>() * 4,
        }
    }
}

/// A matrix in 16 bits; `None` if it needs more, or lies where only tensors can reach it.
fn halved(matrix: &Tensor<2>) -> Result<Option<Half>> {
    if !on_flex(matrix) {
        return Ok(None);
    }
    let [rows, cols] = matrix.dims();
    let values = matrix.clone().into_data().try_to_vec::<f32>();
    let values = values.map_err(|error| ModelError::Input(format!("embedding or output matrix: {error:?}")))?;
    Ok(Half::exactly(&values, rows, cols))
}

/// `x [batch, tokens, hidden]` by `matrix [vocabulary, hidden]`.
fn times(x: Tensor<3>, matrix: Tensor<2>) -> Tensor<3> {
    let ([batch, tokens, hidden], [vocabulary, _]) = (x.dims(), matrix.dims());
    product(x.reshape([batch * tokens, hidden]), matrix.transpose()).reshape([batch, tokens, vocabulary])
}

fn capped(logits: Tensor<3>, softcap: Option<f64>) -> Tensor<3> {
    match softcap {
        Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        None => logits,
    }
}

/// Last norm and output matrix.
#[derive(Debug, Clone)]
pub struct Head {
    norm: RmsNorm,
    output: OutputHead,
}

impl Head {
    pub(super) fn new(norm: RmsNorm, output: OutputHead) -> Self {
        Self { norm, output }
    }

    /// The norm before the output matrix.
    pub fn norm(&self, x: Tensor<3>) -> Tensor<3> {
        self.norm.forward(x)
    }

    /// The output matrix.
    pub fn output(&self) -> &OutputHead {
        &self.output
    }

    /// Logits of normed states: `[batch, tokens, hidden]` → `[batch, tokens, vocabulary]`.
    pub fn logits(&self, x: Tensor<3>) -> Tensor<3> {
        capped(times(x, self.output.matrix.clone()), self.output.softcap)
    }
}
