//! Generalised knowledge distillation: in a share of the steps the student goes on from the prompts itself, and learns what
//! the teacher would have said at every token it wrote.
//!
//! Source: Agarwal et al., "On-Policy Distillation of Language Models", arXiv 2306.13649. The paper's loss is
//! [`Jsd`](crate::loss::Jsd); any token loss will do. Nothing flows back through the sampling. One draw decides for a whole
//! step. Cost: as many decoding steps as a text has tokens, usually most of the time.

use kindling_core::LanguageModel;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::sample::{Sampling, sample};
use crate::batch::{Known, Row};
use crate::error::{DistillError, Result};

/// Whose texts the steps learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnPolicy {
    /// The share of steps on the student's own texts (λ): 0 never, 1 always.
    pub share: f64,
    /// In the other steps the teacher writes the text instead of the data (sequence-level distillation).
    pub teacher_writes: bool,
    /// How many tokens of a row are the prompt; they are never learnt.
    pub prompt: usize,
    /// How texts are drawn.
    pub sampling: Sampling,
}

impl OnPolicy {
    /// The rows of `step`: those of the data with the prompts left out of the loss, or new texts after the same prompts.
    ///
    /// What follows a text's end token counts nothing. The rows depend on the step, the data and the models only.
    ///
    /// # Errors
    /// A row is not longer than the prompt, the share lies outside 0 to 1, or a teacher is wanted and there is none.
    pub fn rows(
        &self,
        step: u64,
        data: Vec<Row>,
        student: &dyn LanguageModel,
        teacher: Option<&dyn LanguageModel>,
    ) -> Result<Vec<Row>> {
        if !(0.0..=1.0).contains(&self.share) {
            return Err(DistillError::Input(format!(
                "a share of {} of the steps: it lies between 0 and 1",
                self.share
            )));
        }
        if self.prompt == 0 || data.iter().any(|row| row.ids.len() <= self.prompt) {
            let shortest = data.iter().map(|row| row.ids.len()).min().unwrap_or(0);
            return Err(DistillError::Input(format!(
                "prompts of {} tokens do not fit rows of {shortest}: at least one token on either side is needed",
                self.prompt
            )));
        }
        let author = match (self.own(step), self.teacher_writes) {
            (true, _) => student,
            (false, true) => teacher.ok_or_else(|| DistillError::Input("there is no teacher to write texts".into()))?,
            (false, false) => return Ok(data.into_iter().map(|row| self.after_prompt(row)).collect()),
        };
        let length = data.first().map_or(0, |row| row.ids.len());
        let prompts: Vec<Vec<u32>> = data.into_iter().map(|row| row.ids[..self.prompt].to_vec()).collect();
        let texts = sample(author, None, &prompts, length - self.prompt, &self.sampling, step)?;
        Ok(prompts.into_iter().zip(texts).map(|(prompt, text)| continued(prompt, &text.ids, length)).collect())
    }

    /// Whether the student writes in this step.
    fn own(&self, step: u64) -> bool {
        let mut rng = ChaCha8Rng::seed_from_u64(self.sampling.seed);
        // A stream that no text uses.
        rng.set_stream(u64::MAX - step);
        // 53 bits in [0, 1): below a share of 0 never, below 1 always.
        ((rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64) < self.share
    }

    fn after_prompt(&self, mut row: Row) -> Row {
        let count = row.ids.len() - 1;
        let weights = row.weights.get_or_insert_with(|| vec![1.0; count]);
        weights[..self.prompt - 1].fill(0.0);
        row
    }
}

/// A row of a prompt and its continuation, filled up to `length` ids; only the continuation counts.
pub(crate) fn continued(prompt: Vec<u32>, text: &[u32], length: usize) -> Row {
    let (begin, end) = (prompt.len() - 1, prompt.len() - 1 + text.len());
    let weights = (0..length - 1).map(|i| if (begin..end).contains(&i) { 1.0 } else { 0.0 }).collect();
    let filler = prompt[0];
    let mut ids = prompt;
    ids.extend(text);
    ids.resize(length, filler);
    Row { ids, weights: Some(weights), known: Known::Nothing }
}
