//! Perplexity, and divergence from a reference model.
//!
//! Protocol: a text is tokenised once with its beginning-of-text token and cut into consecutive, non-overlapping
//! windows; the rest is dropped. Each window is scored alone, on its tokens from the second on. The mean is taken over
//! all scored tokens. Figures at different window lengths cannot be compared.

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax, s};
use serde::{Deserialize, Serialize};

use crate::decoder::{Decoder, Wanted};
use crate::error::{ModelError, Result};

/// Elements of logits computed at a time: bounds memory for large vocabularies.
const LOGITS_AT_A_TIME: usize = 1 << 24;

/// A perplexity with the numbers behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Mean negative log-likelihood in nats per scored token.
    pub mean_nll: f64,
    /// Tokens scored.
    pub scored: usize,
    /// Tokens of the text, the dropped rest included.
    pub tokens: usize,
}

impl Perplexity {
    /// From the sum of negative log-likelihoods.
    pub fn from_sum(nll: f64, scored: usize, tokens: usize) -> Self {
        let mean_nll = nll / scored as f64;
        Self { perplexity: mean_nll.exp(), mean_nll, scored, tokens }
    }
}

/// Cuts ids into windows of `window` tokens and drops the rest.
pub fn windows(ids: &[u32], window: usize) -> Result<Vec<Vec<u32>>> {
    if window < 2 {
        return Err(ModelError::Input(format!("a window of {window} tokens scores nothing: at least 2 are needed")));
    }
    let windows: Vec<Vec<u32>> = ids.chunks_exact(window).map(<[u32]>::to_vec).collect();
    if windows.is_empty() {
        return Err(ModelError::Input(format!(
            "the text has {} tokens, fewer than one window of {window}: give a longer text or a smaller window",
            ids.len()
        )));
    }
    Ok(windows)
}

/// Perplexity of a text of token ids. `each` is called after every batch with the number of windows done.
pub fn perplexity(model: &Decoder, ids: &[u32], window: usize, mut each: impl FnMut(usize)) -> Result<Perplexity> {
    let windows = windows(ids, window)?;
    let batch = (LOGITS_AT_A_TIME / (window * model.spec().vocab_size)).clamp(1, 8);
    let mut nll = 0.0;
    for rows in windows.chunks(batch) {
        let logits = model.forward(rows, &[], &mut model.new_kv(), Wanted::AllLogits)?;
        nll += nll_sum(logits, rows)?;
        each(rows.len());
    }
    Ok(Perplexity::from_sum(nll, windows.len() * (window - 1), ids.len()))
}

/// Log-probabilities of the next token at every position but the last, `[rows, tokens − 1, vocabulary]`.
fn log_probs(logits: Tensor<3>) -> Tensor<3> {
    let tokens = logits.dims()[1];
    log_softmax(logits.slice(s![.., 0..tokens - 1, ..]), 2)
}

/// `Σ −log p(next token)` over rows of equal length, `logits` `[rows, tokens, vocabulary]`.
pub(crate) fn nll_sum(logits: Tensor<3>, rows: &[Vec<u32>]) -> Result<f64> {
    let [count, tokens, _] = logits.dims();
    let device = logits.device();
    let next: Vec<i32> = rows.iter().flat_map(|row| row[1..].iter().map(|&id| id as i32)).collect();
    let next = Tensor::<3, Int>::from_data(TensorData::new(next, [count, tokens - 1, 1]), &device);
    sum_f64(log_probs(logits).gather(2, next)).map(|sum| -sum)
}

/// `Σ KL(reference ‖ other)` over the scored positions of two sets of logits.
pub(crate) fn kl_sum(reference: Tensor<3>, other: Tensor<3>) -> Result<f64> {
    let (reference, other) = (log_probs(reference), log_probs(other));
    sum_f64((reference.clone().exp() * (reference - other)).sum_dim(2))
}

fn sum_f64(values: Tensor<3>) -> Result<f64> {
    let values = values.into_data().try_to_vec::<f32>();
    let values = values.map_err(|error| ModelError::Input(format!("scores could not be read back: {error:?}")))?;
    Ok(values.into_iter().map(f64::from).sum())
}
