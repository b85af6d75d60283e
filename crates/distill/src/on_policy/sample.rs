//! Texts that a model goes on with, many together.

use burn::tensor::Tensor;
use kindling_core::LanguageModel;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{DistillError, Result};

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0: always the likeliest token.
    pub temperature: f64,
    /// Tokens that end a text. They belong to it.
    pub end: Vec<u32>,
    /// Of all draws.
    pub seed: u64,
}

impl Sampling {
    fn check(&self) -> Result<()> {
        if self.temperature >= 0.0 && self.temperature.is_finite() {
            return Ok(());
        }
        Err(DistillError::Input(format!("sampling at temperature {}: it is 0 or above", self.temperature)))
    }
}

/// What followed a prompt.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Continuation {
    /// The new tokens, an end token included.
    pub ids: Vec<u32>,
    /// Their log-probabilities under the model, at temperature 1.
    pub log_q: Vec<f32>,
    /// Their log-probabilities under the teacher, at temperature 1; empty without one.
    pub log_p: Vec<f32>,
}

/// Lets `model` go on from prompts of one length, up to `tokens` tokens each.
///
/// With a teacher and its share `α` every token comes from the mixture `α p + (1 − α) q` of the two distributions. `stream`
/// names the random numbers: the same stream gives the same texts, whatever is sampled beside them.
///
/// # Errors
/// The prompts differ in length, or the models in vocabulary.
pub fn sample(
    model: &dyn LanguageModel,
    teacher: Option<(&dyn LanguageModel, f64)>,
    prompts: &[Vec<u32>],
    tokens: usize,
    sampling: &Sampling,
    stream: u64,
) -> Result<Vec<Continuation>> {
    sampling.check()?;
    let vocabulary = model.vocab_size();
    if let Some((teacher, _)) = teacher
        && teacher.vocab_size() != vocabulary
    {
        return Err(DistillError::Vocabulary { teacher: teacher.vocab_size(), student: vocabulary });
    }
    let mut rows = vec![Continuation::default(); prompts.len()];
    let mut generators: Vec<ChaCha8Rng> = (0..prompts.len())
        .map(|row| {
            let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
            rng.set_stream(stream << 20 | row as u64);
            rng
        })
        .collect();
    let mut own = model.decode();
    let mut theirs = teacher.map(|(teacher, share)| (teacher.decode(), share));
    let mut next = prompts.to_vec();
    let mut open = vec![true; prompts.len()];
    for _ in 0..tokens {
        if prompts.is_empty() || !open.contains(&true) {
            break;
        }
        let logits = host(own.advance(&next)?)?;
        let of_teacher = match &mut theirs {
            Some((decoding, share)) => Some((host(decoding.advance(&next)?)?, *share)),
            None => None,
        };
        for (i, row) in rows.iter_mut().enumerate() {
            if !open[i] {
                // A finished row keeps its place; what follows is not read.
                next[i] = vec![prompts[i][0]];
                continue;
            }
            let range = i * vocabulary..(i + 1) * vocabulary;
            let teacher = of_teacher.as_ref().map(|(logits, share)| (&logits[range.clone()], *share));
            let id = row.draw(&logits[range.clone()], teacher, sampling.temperature, &mut generators[i]);
            open[i] = !sampling.end.contains(&id);
            next[i] = vec![id];
        }
    }
    Ok(rows)
}

impl Continuation {
    /// Draws a token and adds it.
    fn draw(&mut self, logits: &[f32], teacher: Option<(&[f32], f64)>, temperature: f64, rng: &mut ChaCha8Rng) -> u32 {
        let mut mixed = probabilities(logits, temperature);
        if let Some((logits, share)) = teacher {
            let theirs = probabilities(logits, temperature);
            mixed.iter_mut().zip(theirs).for_each(|(q, p)| *q = share * p + (1.0 - share) * *q);
        }
        let id = choose(&mixed, rng);
        self.ids.push(id as u32);
        self.log_q.push(log_probability(logits, id) as f32);
        if let Some((logits, _)) = teacher {
            self.log_p.push(log_probability(logits, id) as f32);
        }
        id as u32
    }
}

fn log_sum(logits: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    top + logits.map(|z| (z - top).exp()).sum::<f64>().ln()
}

/// The logarithm of a token's probability.
fn log_probability(logits: &[f32], id: usize) -> f64 {
    f64::from(logits[id]) - log_sum(logits.iter().map(|&z| f64::from(z)))
}

/// The distribution at a temperature; at 0 all of it lies on the likeliest token, of equal ones on the first.
fn probabilities(logits: &[f32], temperature: f64) -> Vec<f64> {
    if temperature == 0.0 {
        let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        return (0..logits.len()).map(|i| if i == best { 1.0 } else { 0.0 }).collect();
    }
    let scaled = logits.iter().map(|&z| f64::from(z) / temperature);
    let sum = log_sum(scaled.clone());
    scaled.map(|z| (z - sum).exp()).collect()
}

/// A token with these probabilities.
fn choose(probabilities: &[f64], rng: &mut ChaCha8Rng) -> usize {
    // 53 random bits, as a double holds.
    let mut left = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * probabilities.iter().sum::<f64>();
    let mut last = 0;
    for (i, &p) in probabilities.iter().enumerate().filter(|&(_, &p)| p > 0.0) {
        last = i;
        left -= p;
        if left < 0.0 {
            break;
        }
    }
    last
}

fn host(x: Tensor<2>) -> Result<Vec<f32>> {
    let data = x.into_data().convert::<f32>().try_to_vec::<f32>();
    data.map_err(|error| DistillError::Input(format!("logits could not be read back: {error:?}")))
}
