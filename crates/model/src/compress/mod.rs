//! Compression block by block: one block in memory, whatever the size of the model.
//!
//! [`compress`] streams a checkpoint: for every block it runs the calibration text through the block as compressed so
//! far, gathers statistics, lets each stage act, writes the block, and runs the text through the result. Activations
//! live in files, so memory holds one block, its statistics and a batch.
//!
//! | file | what it does |
//! | --- | --- |
//! | `calibration` | token windows to calibrate and evaluate on |
//! | `stage` | [`Stage`]: a method with its targets |
//! | `collect` | statistics and samples through a [`Tap`](kindling_core::Tap) |
//! | `stream` | activations in files |
//! | `state` | what is needed to go on after an interruption |
//! | `output` | finished blocks → the shards, config and companions of a checkpoint |
//! | `forecast` | peak memory and size before the work starts |
//! | `run` | the loop |

mod calibration;
mod collect;
mod forecast;
mod output;
mod run;
mod stage;
mod state;
mod stream;

pub use calibration::{CalibrationSet, TokenWindows};
pub use forecast::{Forecast, forecast};
pub use output::WORK_DIR;
pub use run::{CompressOptions, Outcome, Probe, compress};
pub use stage::{Stage, resolve_targets};
pub use state::{LayerRecord, StateError};
