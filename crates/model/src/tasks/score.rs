//! How well a model answers.

use std::ops::ControlFlow;

use super::Example;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::generate::{Request, generate};
use crate::sampling::SamplingConfig;
use crate::tasks::vocabulary::SIZE;

/// Answers to examples of one task.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TaskScore {
    /// Examples asked.
    pub examples: usize,
    /// Those with every token of every answer right.
    pub correct: usize,
    /// Sum over examples of the share of right tokens, whatever their order.
    pub recall_sum: f64,
}

impl TaskScore {
    /// The share of examples that are right throughout.
    pub fn exact(&self) -> f64 {
        self.correct as f64 / self.examples.max(1) as f64
    }

    /// The mean share of right tokens.
    pub fn recall(&self) -> f64 {
        self.recall_sum / self.examples.max(1) as f64
    }
}

/// Asks greedily, `batch` examples at a time, exactly as many tokens as each answer has. Later questions follow the
/// answers that the model gave. `each` is called after every batch with the number of examples done.
///
/// # Errors
/// The model has another vocabulary than the tasks.
pub fn score(model: &Decoder, examples: &[Example], batch: usize, mut each: impl FnMut(usize)) -> Result<TaskScore> {
    if model.spec().vocab_size < SIZE {
        let found = model.spec().vocab_size;
        return Err(ModelError::Input(format!(
            "the tasks need a model with their vocabulary of {SIZE} tokens, this one has {found}: train one by recipes/pretrain/tasks.toml"
        )));
    }
    let mut total = TaskScore::default();
    for examples in examples.chunks(batch.max(1)) {
        let mut prompts: Vec<Vec<u32>> = examples.iter().map(|example| example.context.clone()).collect();
        let mut right = vec![(true, 0usize, 0usize); examples.len()];
        let turns = examples.iter().map(|example| example.turns.len()).max().unwrap_or(0);
        for turn in 0..turns {
            let asked: Vec<usize> = (0..examples.len()).filter(|&i| turn < examples[i].turns.len()).collect();
            let requests: Vec<Request> = asked
                .iter()
                .map(|&i| {
                    prompts[i].extend(&examples[i].turns[turn].question);
                    Request {
                        id: i as u64,
                        prompt: prompts[i].clone(),
                        sampling: SamplingConfig { temperature: 0.0, ..SamplingConfig::default() },
                        max_new_tokens: examples[i].turns[turn].answer.len(),
                        eos: Vec::new(),
                        stop: Vec::new(),
                    }
                })
                .collect();
            let answers = generate(model, None, &requests, |_| ControlFlow::Continue(()))?;
            for (&i, answer) in asked.iter().zip(answers) {
                let expected = &examples[i].turns[turn].answer;
                let (all, found, wanted) = &mut right[i];
                *all &= answer.ids == *expected;
                *wanted += expected.len();
                let mut left = expected.clone();
                for id in &answer.ids {
                    if let Some(at) = left.iter().position(|expected| expected == id) {
                        left.swap_remove(at);
                        *found += 1;
                    }
                }
                prompts[i].extend(answer.ids);
            }
        }
        for (all, found, wanted) in right {
            total.examples += 1;
            total.correct += usize::from(all);
            total.recall_sum += found as f64 / wanted.max(1) as f64;
        }
        each(examples.len());
    }
    Ok(total)
}
