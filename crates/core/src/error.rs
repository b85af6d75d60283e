//! The errors that methods and plain data can give.

use crate::options::OptionsError;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a layer and its compressed form.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor or buffer has another shape than the operation needs.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor, buffer or layer.
        what: String,
        /// The shape the operation needs.
        expected: Vec<usize>,
        /// The shape that came.
        found: Vec<usize>,
    },
    /// A method was called without the statistics it asked for.
    #[error("layer `{layer}`: the method needs {needs:?} statistics of its input, but they were not collected")]
    MissingStats {
        /// Layer name.
        layer: String,
        /// What the method asked for.
        needs: crate::Needs,
    },
    /// The options do not fit this layer.
    #[error("layer `{layer}`: {reason}")]
    Layer {
        /// Layer name.
        layer: String,
        /// What does not fit, and what would.
        reason: String,
    },
    /// A factorisation or search failed on this layer's numbers.
    #[error("layer `{layer}`: {reason}")]
    Numerics {
        /// Layer name.
        layer: String,
        /// Which step failed and what to change.
        reason: String,
    },
    /// A value is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The options of a method could not be read.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// An [`Error::Layer`] from its parts.
    pub fn layer(layer: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Layer { layer: layer.into(), reason: reason.into() }
    }
}
