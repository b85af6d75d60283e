//! Where the rows of a step come from: a text, what the student writes, or a store of what a teacher said.

use anyhow::Result;
use kindling_core::LanguageModel;
use kindling_distill::store::StoreBatches;
use kindling_distill::{Batches, MiniLlm, OnPolicy, Row, Sampling, TextBatches, Trainer};
use kindling_model::Decoder;
use kindling_model::checkpoint::MappedFile;

use crate::error::OrUser;

/// Gives every step its rows.
pub(crate) enum Source {
    /// A text as it stands.
    Text(TextBatches),
    /// A text, or continuations of its beginnings.
    OnPolicy(TextBatches, OnPolicy),
    /// Texts of student and teacher together, and the text beside them.
    MiniLlm(Rolling),
    /// A store.
    Store(StoreBatches<MappedFile>),
}

/// What MiniLLM learns from for some steps before it samples anew.
pub(crate) struct Rolling {
    pub text: TextBatches,
    pub options: MiniLlm,
    pub sampling: Sampling,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Texts that are sampled together; a multiple of the rows of a step.
    pub texts: usize,
    /// How often they are gone through.
    pub epochs: u64,
    pub held: Vec<Row>,
}

impl Source {
    /// Steps that share what was sampled before them.
    pub(crate) fn group(&self) -> u64 {
        match self {
            Source::MiniLlm(rolling) => rolling.group(),
            _ => 1,
        }
    }

    /// The rows of a step.
    pub(crate) fn rows(&mut self, step: u64, trainer: &Trainer<Decoder>) -> Result<Vec<Row>> {
        match self {
            Source::Text(text) => Ok(text.rows(step)),
            Source::OnPolicy(text, policy) => {
                policy.rows(step, text.rows(step), trainer.model(), trainer.teacher()).or_user()
            }
            Source::MiniLlm(rolling) => rolling.rows(step, trainer),
            Source::Store(store) => store.rows(step).or_user(),
        }
    }
}

impl Rolling {
    fn group(&self) -> u64 {
        self.epochs * (self.texts / self.text.rows).max(1) as u64
    }

    fn rows(&mut self, step: u64, trainer: &Trainer<Decoder>) -> Result<Vec<Row>> {
        let per_epoch = (self.texts / self.text.rows).max(1);
        let place = (step % self.group()) as usize % per_epoch;
        if step.is_multiple_of(self.group()) {
            self.sample(step / self.group(), trainer)?;
        }
        let mut rows: Vec<Row> = self.held[place * self.text.rows..][..self.text.rows].to_vec();
        rows.extend(self.text.rows(step));
        Ok(rows)
    }

    fn sample(&mut self, round: u64, trainer: &Trainer<Decoder>) -> Result<()> {
        let teacher = trainer.teacher().expect("the loss was built with a teacher");
        let many = TextBatches { text: self.text.text.clone(), rows: self.texts };
        let rows = many.rows(round);
        let length = rows.first().map_or(0, |row| row.ids.len());
        let prompts: Vec<Vec<u32>> = rows.into_iter().map(|row| row.ids[..self.prompt].to_vec()).collect();
        self.held.clear();
        // A step's rows at a time: the caches of two models are alive meanwhile.
        for (i, prompts) in prompts.chunks(self.text.rows).enumerate() {
            let stream = round << 12 | i as u64;
            let model: &dyn LanguageModel = trainer.model();
            let texts = self
                .options
                .rollouts(model, teacher, prompts, length - self.prompt, &self.sampling, stream)
                .or_user()?;
            self.held.extend(texts.rows);
        }
        Ok(())
    }
}
