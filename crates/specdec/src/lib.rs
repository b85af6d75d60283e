//! Speculative decoding: guess several tokens, verify them in one pass of the target, never change the text.
//!
//! A pass of a language model over five tokens takes little longer than over one. Whoever can guess what it will say
//! lets it say several tokens at once. The guesses here come from what was read and written before, and from a corpus;
//! the target judges them, so the text is the one it would have written alone.
//!
//! | part | what it does |
//! | --- | --- |
//! | [`generate`](generate()) | the loop, for one text or a batch: guess, verify, keep what was right |
//! | [`verify`] | which guesses stay: exact, whatever was guessed |
//! | [`drafters`] | who guesses, one file each |
//! | [`index`] | every n-gram of a corpus, in one mapped file |
//! | [`context`] | every n-gram of the text so far |
//! | [`calibration`] | from counts to probabilities, learned while decoding |
//! | [`Learned`] | any drafter with confidences that can be relied on |
//! | [`planner`] | how much to verify, by measured times |
//!
//! The target is anything that implements [`Target`](kindling_core::Target): logits for a tree of tokens, and a cache
//! that can drop some. Nothing here depends on a tensor library.
//!
//! ```
//! use std::ops::ControlFlow;
//! use kindling_core::draft::{Input, Logits};
//! use kindling_core::sampling::{Sampler, SamplingConfig};
//! use kindling_core::{Drafter, Result, Target};
//! use kindling_specdec::{CostModel, Limits, Request, drafters::lookup::Lookup, generate};
//!
//! /// Counts to nine, over and over.
//! struct Counter { len: usize }
//!
//! impl Target for Counter {
//!     fn vocab_size(&self) -> usize { 10 }
//!     fn len(&self, _: usize) -> usize { self.len }
//!     fn takes_trees(&self) -> bool { false }
//!     fn forward(&mut self, inputs: &[Input], last_only: bool) -> Result<Logits> {
//!         let tokens = &inputs[0].tokens;
//!         self.len += tokens.len();
//!         let wanted = if last_only { &tokens[tokens.len() - 1..] } else { &tokens[..] };
//!         let row = |&token: &u32| (0..10).map(move |next| if next == (token + 1) % 10 { 1.0 } else { 0.0 });
//!         Ok(Logits { values: wanted.iter().flat_map(row).collect(), vocab: 10 })
//!     }
//!     fn keep(&mut self, _: usize, from: usize, rows: &[usize]) -> Result<()> {
//!         self.len = from + rows.len();
//!         Ok(())
//!     }
//! }
//!
//! let request = Request {
//!     id: 0,
//!     prompt: vec![7],
//!     sampler: Sampler::new(SamplingConfig::default()).unwrap(),
//!     max_new_tokens: 100,
//!     ends: vec![],
//! };
//! let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Lookup::default())];
//! let limits = Limits { guesses: 8, tokens: 10 };
//! let each = |_, _: &[u32]| ControlFlow::Continue(());
//! let written = generate(&mut Counter { len: 0 }, &[request], &mut drafters, &limits, &mut CostModel::default(), each)?;
//! assert_eq!(written[0].tokens[..5], [8, 9, 0, 1, 2]);
//! assert!(written[0].stats.acceptance_length().unwrap() > 3.0);
//! # Ok::<(), kindling_core::Error>(())
//! ```

pub mod calibration;
pub mod context;
pub mod drafters;
pub mod generate;
pub mod index;
mod learned;
pub mod planner;
pub mod verify;

pub use calibration::Calibration;
pub use drafters::METHODS;
pub use generate::{Limits, Request, Stats, Written, generate};
pub use index::{Index, IndexBuilder, IndexError};
pub use learned::Learned;
pub use planner::CostModel;
