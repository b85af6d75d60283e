//! The errors of loading, running and compressing a model.

use std::path::PathBuf;

/// A result with this crate's [`ModelError`].
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// What can go wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of weights cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// `config.json` does not describe a model of a known family.
    #[error("{dir}: {source}")]
    Config {
        /// The folder of the file.
        dir: PathBuf,
        /// What is wrong with it.
        source: crate::config::ConfigError,
    },
    /// A folder of weights without a configuration.
    #[error("{0}: there is no config.json beside the weights: copy it from where they came from")]
    NoConfig(PathBuf),
    /// The quantisation part of `config.json` or the tensors it describes cannot be used.
    #[error(transparent)]
    CompressedTensors(#[from] crate::compressed_tensors::CompressedTensorsError),
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{dir}: tensor `{tensor}`: config.json asks for shape {expected:?}, the checkpoint has {found:?}")]
    Shape {
        /// The folder of the checkpoint.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the checkpoint.
        found: Vec<usize>,
    },
    /// A trait of the core or a method failed.
    #[error(transparent)]
    Core(#[from] kindling_core::Error),
    /// A weight format failed.
    #[error(transparent)]
    Format(#[from] kindling_tensor_backend::formats::FormatError),
    /// An interrupted run cannot be continued.
    #[error(transparent)]
    State(#[from] crate::compress::StateError),
    /// An input cannot be used.
    #[error("{0}")]
    Input(String),
}

impl ModelError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| ModelError::Io { path, source }
    }
}
