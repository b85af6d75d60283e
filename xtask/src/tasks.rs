//! Accuracies on generated tasks.

use anyhow::Result;
use kindling_model::Decoder;
use kindling_model::tasks::{Task, generate_example, score};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

/// Prompts that are answered together.
const TOGETHER: usize = 20;
/// Keeps the examples of evaluations apart from those of training.
const HELD_OUT: u64 = 0x6865_6c64_6f75_7421;

/// One task at one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Accuracy {
    /// Its name.
    pub task: String,
    /// Tokens of context.
    pub context: usize,
    /// How many were asked.
    pub examples: usize,
    /// The share of right answers; for tasks whose answers have several parts the mean share of right parts.
    pub accuracy: f64,
    /// The share of answers right throughout.
    pub exact: f64,
}

/// Asks every task that has questions and fits; a tenth of the examples has its evidence in each tenth of the context.
pub(crate) fn accuracies(
    model: &Decoder,
    tasks: &[Task],
    context: usize,
    examples: usize,
    seed: u64,
) -> Result<Vec<Accuracy>> {
    let asked = tasks.iter().filter(|task| task.asks() && task.fits(context));
    asked
        .map(|&task| {
            let example = |i: usize| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed ^ HELD_OUT);
                rng.set_stream(i as u64);
                generate_example(task, context, Some(i % 10), &mut rng)
            };
            let examples: Vec<_> = (0..examples).map(example).collect();
            let found = score(model, &examples, TOGETHER, |_| {})?;
            let accuracy = if task.counts_recall() { found.recall() } else { found.exact() };
            Ok(Accuracy { task: task.to_string(), context, examples: found.examples, accuracy, exact: found.exact() })
        })
        .collect()
}
