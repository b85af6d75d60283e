//! Numerical normalizing flows: functions of one number, made of a few positive weights, that spread crowded keys.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`folding`] | [`FoldingFlow`]: lays strips of the key range over each other; for point look-ups |
//! | [`monotone`] | [`MonotoneFlow`]: ascends with the key; for ranges |
//! | [`train`] | how a folding flow learns, with its own gradients |
//! | [`weights`] | the published text format and a binary one that keeps every bit |
//! | `tanh` | the one function that must not round twice |

pub mod folding;
pub mod monotone;
mod tanh;
pub mod train;
pub mod weights;

pub use folding::FoldingFlow;
pub use monotone::MonotoneFlow;
pub use train::TrainConfig;
