//! What can be wrong with a checkpoint, each with the file, what was expected, what was found and what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::dtype::DType;
use super::hub::HubId;

/// A result with [`CheckpointError`].
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// What can go wrong when a checkpoint is opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, e.g. `open`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A write met a full disk or a quota.
    #[error(
        "no space left to write `{}` ({source}): free some space or choose another output folder, then run the same command again; finished shards are kept",
        path.display()
    )]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A safetensors header is not valid.
    #[error("`{}`: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// A shard index is not valid.
    #[error("`{}`: {source}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: IndexError,
    },
    /// Neither a path nor the id of a model on the hub.
    #[error(
        "`{what}` is neither an existing file or folder nor a model id: give a folder, a .safetensors file, or `org/name` with an optional `@revision`"
    )]
    NotFound {
        /// What the user gave.
        what: String,
    },
    /// The folder holds no weights this reader understands.
    #[error("`{}` holds neither model.safetensors.index.json nor model.safetensors{hint}", dir.display())]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// What is there instead, and what to do (may be empty).
        hint: String,
    },
    /// A shard named by the index does not exist.
    #[error("`{}` names the shard `{shard}`, which is missing ({tensors} tensors): download the checkpoint again or complete it", index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The shard's file name.
        shard: String,
        /// How many tensors it should hold.
        tensors: usize,
    },
    /// A tensor named by the index is not in its shard.
    #[error("`{}` places tensor `{tensor}` in `{shard}`, which does not hold it: the index and the shards are of different versions, download both again", index.display())]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The shard's file name.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// A model id that is not (completely) in the local cache.
    #[error("model `{id}` is not in the local cache: {reason}; tried {}; download it first, for example with `hf download {}`", paths(tried), id.repo)]
    NotCached {
        /// The id.
        id: HubId,
        /// What is missing.
        reason: String,
        /// The paths that were looked at.
        tried: Vec<PathBuf>,
    },
    /// A tensor does not exist.
    #[error("`{}` has no tensor `{name}`{}", checkpoint.display(), near(similar))]
    NoTensor {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The name asked for.
        name: String,
        /// An existing name that resembles it.
        similar: Option<String>,
    },
    /// A tensor has another type than the operation needs.
    #[error("`{}`: tensor `{name}` has dtype {found}, expected {expected}", path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The types that would do.
        expected: String,
        /// The type in the file.
        found: DType,
    },
    /// A tensor has another shape than the operation needs.
    #[error("`{}`: tensor `{name}` has shape {found:?}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that would do, in words.
        expected: String,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor cannot be written as it was given.
    #[error("cannot write tensor `{name}`: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The output folder and the writer do not fit together.
    #[error("output folder `{}`: {reason}", dir.display())]
    Output {
        /// The folder.
        dir: PathBuf,
        /// What is in the way and what to do.
        reason: String,
    },
}

impl CheckpointError {
    /// An [`CheckpointError::Io`], or [`CheckpointError::DiskFull`] where that is the cause.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = path.to_owned();
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => CheckpointError::DiskFull { path, source },
            _ => CheckpointError::Io { action, path, source },
        }
    }
}

fn paths(tried: &[PathBuf]) -> String {
    tried.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", ")
}

fn near(similar: &Option<String>) -> String {
    similar.as_ref().map_or(String::new(), |name| format!(", did you mean `{name}`?"))
}

/// What can be wrong with a safetensors header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum HeaderError {
    #[error(
        "{0} bytes are too short for a safetensors file, which starts with 8 bytes of header length: the download is incomplete"
    )]
    TooShort(usize),
    #[error(
        "the header claims {length} bytes but the file holds only {available} after its length: not a safetensors file, or an incomplete download"
    )]
    BeyondFile { length: u64, available: usize },
    #[error("the header claims {length} bytes, more than the {limit} this format allows: not a safetensors file")]
    TooLarge { length: u64, limit: usize },
    #[error("the header is not UTF-8 (byte {at}): not a safetensors file")]
    NotUtf8 { at: usize },
    #[error("the header is not a JSON object of tensors ({0}): the file is damaged")]
    Json(String),
    #[error("tensor `{0}` is described twice: the file is damaged, write it again")]
    Duplicate(String),
    #[error("tensor `{name}` has the unknown dtype `{dtype}`; known are {}", dtypes())]
    UnknownDType { name: String, dtype: String },
    #[error("tensor `{name}` has data_offsets [{start}, {end}], which run backwards: the file is damaged")]
    Reversed { name: String, start: u64, end: u64 },
    #[error(
        "tensor `{name}` ends at byte {end} of {available} bytes of data: the download is incomplete, fetch the file again"
    )]
    OutOfRange { name: String, end: u64, available: usize },
    #[error(
        "tensor `{name}` of dtype {dtype} and shape {shape:?} needs {expected} bytes, but its data_offsets hold {found}: the file is damaged"
    )]
    WrongSize { name: String, dtype: DType, shape: Vec<usize>, expected: usize, found: usize },
    #[error(
        "tensor `{name}` of dtype {dtype} has shape {shape:?}, whose size is not a number of bytes that fits into memory: the file is damaged"
    )]
    Overflow { name: String, dtype: DType, shape: Vec<u64> },
    #[error("tensors `{first}` and `{second}` overlap at byte {at} of the data: the file is damaged")]
    Overlap { first: String, second: String, at: usize },
    #[error("bytes {start} to {end} of the data belong to no tensor: the file is damaged")]
    Hole { start: usize, end: usize },
}

fn dtypes() -> String {
    DType::all().map(DType::name).collect::<Vec<_>>().join(", ")
}

/// What can be wrong with a shard index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum IndexError {
    #[error("not a shard index ({0}): expected an object with a `weight_map` from tensor to file name")]
    Json(String),
    #[error("`weight_map` is empty: the index names no tensor")]
    Empty,
    #[error("`weight_map` names tensor `{0}` twice")]
    Duplicate(String),
    #[error(
        "tensor `{tensor}` is placed in `{file}`, which is not a plain file name: only files beside the index are opened"
    )]
    NotAFileName { tensor: String, file: String },
}
