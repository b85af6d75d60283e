//! Ordered maps that learn the distribution of their keys.

pub mod data;
mod error;
mod key;

pub use error::{Error, Result};
pub use key::{F64, Key};
