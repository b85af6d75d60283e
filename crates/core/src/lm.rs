//! What training asks of a model.

use burn::tensor::{Device, Tensor, s};

use crate::{Error, Result, Tap};

/// The output matrix of a model.
#[derive(Debug, Clone)]
pub struct OutputHead {
    /// `[vocabulary, hidden]`.
    pub matrix: Tensor<2>,
    /// `cap · tanh(logit / cap)`.
    pub softcap: Option<f64>,
}

impl OutputHead {
    /// Logits of states: `[tokens, hidden]` → `[tokens, vocabulary]`.
    pub fn logits(&self, states: Tensor<2>) -> Tensor<2> {
        let logits = states.matmul(self.matrix.clone().transpose());
        match self.softcap {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    }
}

/// What the attention of a block computes with, after norms and positions.
#[derive(Debug, Clone)]
pub struct AttentionInputs {
    /// `[rows, heads, tokens, key width]`.
    pub queries: Tensor<4>,
    /// `[rows, key heads, tokens, key width]`.
    pub keys: Tensor<4>,
    /// `[rows, key heads, tokens, value width]`.
    pub values: Tensor<4>,
    /// Factor on `q · k`.
    pub scale: f64,
}

/// A weight that can be replaced.
#[derive(Debug)]
pub enum ParameterMut<'a> {
    /// A gain or bias.
    Vector(&'a mut Tensor<1>),
    /// A matrix, in whatever orientation the model holds it.
    Matrix(&'a mut Tensor<2>),
}

/// A causal language model, block by block: whole rows of tokens from position 0 on, without a cache.
pub trait LanguageModel: Send + Sync {
    /// How many tokens there are to choose from.
    fn vocab_size(&self) -> usize;

    /// How many blocks there are.
    fn block_count(&self) -> usize;

    /// Where the weights lie.
    fn device(&self) -> Device;

    /// Embeddings of rows of equal length, `[rows, tokens, hidden]`.
    fn embed(&self, ids: &[Vec<u32>]) -> Result<Tensor<3>>;

    /// One block: `[rows, tokens, hidden]` → the same shape.
    fn block(&self, index: usize, x: Tensor<3>, tap: Option<&mut dyn Tap>) -> Result<Tensor<3>>;

    /// As [`block`](Self::block), and what its attention computed with.
    ///
    /// # Errors
    /// The model does not show it.
    fn block_and_attention(&self, index: usize, x: Tensor<3>) -> Result<(Tensor<3>, AttentionInputs)> {
        let _ = (index, x);
        Err(Error::Invalid("this model does not show what its attention computes with".into()))
    }

    /// The norm after the last block.
    fn last_norm(&self, x: Tensor<3>) -> Tensor<3>;

    /// The output matrix, dense. A compressed one is unfolded by every call.
    fn output(&self) -> Result<OutputHead>;

    /// The name of the parameter that the output matrix is: the embedding, where a model ties the two.
    fn output_parameter(&self) -> &'static str;

    /// Every weight that can be trained, with its name in checkpoints, always in the same order.
    ///
    /// Compressed weights are not among them; adapters on them are.
    fn parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)>;

    /// Begins texts that grow token by token.
    ///
    /// Models with a cache use it; one without can fall back on [`Replay`].
    fn decode(&self) -> Box<dyn Decoding + '_>;

    /// Embedding, all blocks and the last norm: states that the output matrix turns into logits.
    fn states(&self, ids: &[Vec<u32>]) -> Result<Tensor<3>> {
        let mut x = self.embed(ids)?;
        for index in 0..self.block_count() {
            x = self.block(index, x, None)?;
        }
        Ok(self.last_norm(x))
    }
}

/// Rows of tokens that grow together.
pub trait Decoding: Send {
    /// Adds `ids`, rows of one length, and returns the logits after the last token of every row, `[rows, vocabulary]`.
    ///
    /// # Errors
    /// The rows differ in length or number, or an id is outside the vocabulary.
    fn advance(&mut self, ids: &[Vec<u32>]) -> Result<Tensor<2>>;
}

/// Decoding without a cache: every step runs all tokens again. The plain twin of every faster way.
pub struct Replay<'a> {
    model: &'a dyn LanguageModel,
    rows: Vec<Vec<u32>>,
}

impl<'a> Replay<'a> {
    /// No tokens yet.
    pub fn new(model: &'a dyn LanguageModel) -> Self {
        Self { model, rows: Vec::new() }
    }
}

impl Decoding for Replay<'_> {
    fn advance(&mut self, ids: &[Vec<u32>]) -> Result<Tensor<2>> {
        if self.rows.is_empty() {
            self.rows = vec![Vec::new(); ids.len()];
        }
        if self.rows.len() != ids.len() {
            return Err(Error::Invalid(format!("{} rows, expected {}", ids.len(), self.rows.len())));
        }
        self.rows.iter_mut().zip(ids).for_each(|(row, more)| row.extend(more));
        let states = self.model.states(&self.rows)?;
        let [rows, tokens, hidden] = states.dims();
        let last = states.slice(s![.., tokens.saturating_sub(1).., ..]).reshape([rows, hidden]);
        Ok(self.model.output()?.logits(last))
    }
}
