//! Who guesses. One drafter, one file, one entry in [`METHODS`].

pub mod copying;
pub mod infinigram;
pub mod lookup;
pub mod model;
pub mod ngram;
pub mod recycling;
pub mod rest;
pub mod suffix;

use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter, DrafterEntry, Result};

/// Every drafter. Lists, tests and benches derive from it.
pub const METHODS: &[DrafterEntry] =
    &[lookup::ENTRY, ngram::ENTRY, suffix::ENTRY, rest::ENTRY, recycling::ENTRY, infinigram::ENTRY, model::ENTRY];

/// Guesses nothing: plain decoding.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl Drafter for Nothing {
    fn begin(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }
    fn propose(&mut self, _: &Room, _: &mut Draft) -> Result<()> {
        Ok(())
    }
    fn commit(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }
}
