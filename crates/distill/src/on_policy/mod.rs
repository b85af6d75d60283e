//! Learning from what the student writes: the mistakes it makes are the ones it is corrected on.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`sample`](mod@sample) | texts that a model, or a model mixed with its teacher, goes on with |
//! | [`gkd`] | a share of the steps on the student's own texts, under any token loss |
//! | [`minillm`] | the reverse divergence of whole texts by policy gradient |

pub mod gkd;
pub mod minillm;
pub mod sample;

pub use gkd::OnPolicy;
pub use minillm::{MiniLlm, Rollouts};
pub use sample::{Continuation, Sampling, sample};

#[cfg(test)]
mod tests;
