//! Safetensors checkpoints: opened lazily, checked at the door, written shard by shard.
//!
//! A [`Checkpoint`] maps its shards into memory and reads nothing but their headers until a tensor is asked for, so
//! opening a model costs the same at any size. A [`Writer`] takes one finished shard after another and can be
//! continued after an interruption; nothing it leaves behind looks like a model before [`Writer::finish`].
//!
//! | file | what it knows |
//! | --- | --- |
//! | `header` | the safetensors header: every check, its text, its layout on disk |
//! | `index` | `model.safetensors.index.json` |
//! | `hub` | the layout of the Hugging Face cache (read only, offline) |
//! | `reader`, `fingerprint` | [`Checkpoint`] |
//! | `writer`, [`atomic`] | [`Writer`], whole-or-nothing files |
//! | `dtype` | [`DType`] and conversions of little-endian bytes |
//! | `mmap` | the one `unsafe` function of this crate |

pub mod atomic;
mod dtype;
mod error;
mod fingerprint;
mod header;
mod hub;
mod index;
mod mmap;
mod reader;
mod writer;

pub use dtype::{DType, decode_f32, decode_i32, decode_i64, decode_u32, encode_f32};
pub use error::{CheckpointError, HeaderError, IndexError, Result};
pub use header::{Header, TensorEntry};
pub use hub::{Env, HubId, process_env};
pub use index::{INDEX_FILE, ShardIndex};
pub use mmap::MappedFile;
pub use reader::{Checkpoint, SINGLE_FILE, TensorInfo, TensorView};
pub use writer::{OutTensor, ShardInfo, Writer, WriterOptions};
