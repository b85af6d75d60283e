//! A model drafts: a smaller one with the same tokenizer, the compressed target itself, or the target without some layers.
//!
//! It writes a few tokens on its own, greedily or drawn as the target would draw, with a cache of its own that is cut
//! back to the text after every guess. It stops where it is unsure, and guesses more after a round that was accepted
//! whole, fewer after one that was not.
//!
//! Sources: "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192; without layers: "Draft &
//! Verify", arXiv 2309.08168; the schedule of lengths after assisted generation in transformers. Cost: a pass of the
//! drafting model per guessed token.

use kindling_core::draft::{Input, Room};
use kindling_core::sampling::Sampler;
use kindling_core::{Draft, Drafter, DrafterEntry, Error, Result, Target};
use serde::{Deserialize, Serialize};

use crate::verify::{Dice, SeededDice};

/// The list entry.
pub const ENTRY: DrafterEntry = DrafterEntry {
    name: "model",
    summary: "A smaller model, or the target compressed or without some layers, writes ahead.",
    paper: "Speculative decoding, arXiv 2211.17192",
    trees: false,
};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Tokens guessed in the first round.
    pub first: usize,
    /// Tokens guessed at most.
    pub most: usize,
    /// The guess ends after a token that the model gives less probability than this.
    pub unsure: f64,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { first: 4, most: 16, unsure: 0.4 }
    }
}

/// The drafter. The drafting model's text number 0 is its own.
pub struct ModelDrafter<T> {
    model: T,
    /// Logits per row of the target: what the laws of drawn guesses must cover.
    vocab: usize,
    /// Tokens that exist: whatever lies beyond pads the matrix of one of the two models.
    tokens: usize,
    sampler: Sampler,
    request: u64,
    config: ModelConfig,
    text: Vec<u32>,
    length: usize,
    guessed: Vec<u32>,
}

impl<T: Target> ModelDrafter<T> {
    /// A drafter that lets `model` write, for a target of `vocab` logits and a tokenizer of `tokens` tokens, choosing by
    /// `sampler` for `request`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the model or the target knows fewer tokens than the tokenizer: their vocabularies differ.
    pub fn new(
        model: T,
        vocab: usize,
        tokens: usize,
        sampler: Sampler,
        request: u64,
        config: ModelConfig,
    ) -> Result<Self> {
        let drafts = model.vocab_size();
        if drafts < tokens || vocab < tokens {
            return Err(Error::Invalid(format!(
                "the drafting model has {drafts} logits and the target {vocab}, but their tokenizer has {tokens} tokens: \
                 a drafting model must use the target's tokenizer"
            )));
        }
        let length = config.first.max(1);
        Ok(Self { model, vocab, tokens, sampler, request, config, text: Vec::new(), length, guessed: Vec::new() })
    }

    fn rewind(&mut self, len: usize) -> Result<()> {
        if self.model.len(0) > len {
            self.model.keep(0, len, &[])?;
        }
        Ok(())
    }
}

impl<T: Target + Send> Drafter for ModelDrafter<T> {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.rewind(0)?;
        self.text = prompt.to_vec();
        self.length = self.config.first.max(1);
        self.guessed.clear();
        Ok(())
    }

    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        let most = self.length.min(room.depth).min(room.nodes);
        self.guessed.clear();
        let committed = self.text.len();
        let (mut confidence, mut parent) = (1.0f64, None);
        while draft.len() < most {
            let cached = self.model.len(0);
            let logits = self.model.forward(&[Input::chain(0, self.text[cached..].to_vec())], true)?;
            let mut row = logits.values;
            row.truncate(self.tokens);
            let position = self.text.len() as u64;
            let law =
                self.sampler.probabilities(&mut row, &self.text).map_err(|error| Error::Invalid(error.to_string()))?;
            let token = if self.sampler.is_greedy() {
                law.iter().position(|&p| p > 0.0).unwrap_or(0)
            } else {
                SeededDice::new(self.sampler.config().seed, "draft", self.request, position).pick(&law)
            };
            // A greedy law says nothing of how sure the model is; its logits do.
            let sure = match self.sampler.is_greedy() {
                true => kindling_core::sampling::softmax(&row)[token],
                false => law[token],
            };
            confidence *= sure;
            let node = draft.push(parent, token as u32, confidence as f32)?;
            if !self.sampler.is_greedy() {
                let mut law = law;
                law.resize(self.vocab, 0.0);
                draft.drawn_from(parent.map_or(0, |parent| parent + 1), law);
            }
            parent = Some(node);
            self.text.push(token as u32);
            self.guessed.push(token as u32);
            if sure < self.config.unsure {
                break;
            }
        }
        self.text.truncate(committed);
        Ok(())
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<()> {
        let right = self.guessed.iter().zip(tokens).take_while(|(guess, token)| guess == token).count();
        if !self.guessed.is_empty() {
            self.length = if right == self.guessed.len() { self.length + 2 } else { (self.length - 1).max(1) };
            self.length = self.length.min(self.config.most.max(1));
        }
        // What was guessed right stays in the cache; its newest token never got there.
        self.rewind(self.text.len() + right)?;
        self.guessed.clear();
        self.text.extend_from_slice(tokens);
        Ok(())
    }
}
