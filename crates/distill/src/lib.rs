//! Training that heals what compression cut: losses, adapters, and a loop that can be taken up where it stopped.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`trainer`] | [`Trainer`]: steps over any [`LanguageModel`](kindling_core::LanguageModel), and its [`Snapshot`] |
//! | [`batch`] | which tokens a step sees |
//! | [`loss`] | losses of logits with their gradients, and of layers, one file each |
//! | [`head`] | output matrix and loss in chunks |
//! | [`preferences`] | pairs of answers, of which one is better |
//! | [`on_policy`] | texts that the student writes itself: GKD, MiniLLM |
//! | [`store`] | what a teacher said, kept in a file |
//! | [`adamw`], [`muon`], [`schedule`] | the optimisers and their rates |

pub mod adamw;
pub mod batch;
mod error;
pub mod head;
pub mod loss;
pub mod muon;
pub mod on_policy;
pub mod preferences;
pub mod schedule;
pub mod store;
pub mod trainer;

pub use adamw::AdamW;
pub use batch::{Batches, Known, Row, Sampled, TextBatches, TokenWindows};
pub use error::{DistillError, Result};
pub use loss::layers::LayerOptions;
pub use loss::{DistillLoss, Logits};
pub use muon::Muon;
pub use on_policy::{MiniLlm, OnPolicy, Sampling};
pub use preferences::{AnswerPair, PreferencePairs};
pub use schedule::{Decay, Schedule};
pub use trainer::{Precision, Snapshot, StepReport, TrainOptions, Trainer};
