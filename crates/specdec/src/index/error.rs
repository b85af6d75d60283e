//! What can go wrong with an index.

use std::path::{Path, PathBuf};

/// What can go wrong while an index is built or read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The bytes are no index of this version.
    #[error("not an index that this version reads: {0}; build it again")]
    Format(String),
    /// The file is shorter or longer than its header says.
    #[error("the index should have {expected} bytes but has {found}: it was cut or extended; build it again")]
    Length {
        /// Bytes by the header.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A part of the file is not what was written.
    #[error("the {section} of the index was altered since it was written (its checksum differs); build it again")]
    Checksum {
        /// Which part.
        section: String,
    },
    /// The index holds tokens of another tokenizer.
    #[error(
        "the index was built with another tokenizer (hash {found}, the model's is {expected}); build it again with the model's"
    )]
    Tokenizer {
        /// Hash of the model's tokenizer.
        expected: String,
        /// Hash in the index.
        found: String,
    },
    /// The index holds tokens of another vocabulary.
    #[error(
        "the index holds tokens below {found}, the model has {expected} tokens; build it again with the model's tokenizer"
    )]
    Vocabulary {
        /// Tokens of the model.
        expected: usize,
        /// Vocabulary of the index.
        found: usize,
    },
    /// There is nothing to index.
    #[error("the text has no tokens: nothing to index")]
    Empty,
    /// A token is outside the vocabulary.
    #[error("token {token} at place {place} of document {document} is outside the vocabulary of {vocab} tokens")]
    Token {
        /// The token.
        token: u32,
        /// Where in the document, from 0.
        place: usize,
        /// Which document, from 0.
        document: usize,
        /// The vocabulary.
        vocab: usize,
    },
    /// Options that cannot be obeyed.
    #[error("{0}")]
    Options(String),
}

impl IndexError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }
}

impl From<IndexError> for kindling_core::Error {
    fn from(error: IndexError) -> Self {
        Self::Invalid(error.to_string())
    }
}
