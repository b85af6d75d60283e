//! What drafters share that copy a stretch of the text: the text, and how a stretch becomes a draft.

use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter, Result};

/// Which stretch to copy.
pub trait Copies {
    /// What followed an earlier place that ends like `text`; empty if there is none.
    fn continuation<'a>(&self, text: &'a [u32]) -> &'a [u32];
}

/// Drafts what its settings find in prompt and output.
#[derive(Debug, Clone, Default)]
pub struct Copying<C> {
    config: C,
    text: Vec<u32>,
}

impl<C> Copying<C> {
    /// A drafter of these settings.
    pub fn new(config: C) -> Self {
        Self { config, text: Vec::new() }
    }
}

impl<C: Copies + Send> Drafter for Copying<C> {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.text = prompt.to_vec();
        Ok(())
    }

    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        let found = self.config.continuation(&self.text);
        *draft = Draft::chain(found.iter().take(room.depth.min(room.nodes)).map(|&token| (token, 0.5)))?;
        Ok(())
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<()> {
        self.text.extend_from_slice(tokens);
        Ok(())
    }
}
