//! What can go wrong.

use std::path::PathBuf;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What this crate complains about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key is not a number.
    #[error("a key is NaN, which has no place in an order; leave it out or map it to a number")]
    NotANumber,
    /// Pairs that should ascend do not.
    #[error("the pair at position {at} does not come after the one before it; sort by key and remove duplicates")]
    NotSorted {
        /// Position of the first pair that is not larger than its predecessor.
        at: usize,
    },
    /// An argument is outside its range.
    #[error("{0}")]
    Invalid(String),
    /// A flow could not be trained.
    #[error("the flow did not train: {0}")]
    Training(String),
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Format { path: path.into(), reason: reason.into() }
    }
}
