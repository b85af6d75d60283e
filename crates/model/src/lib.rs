//! Models of the Llama kind from Hugging Face checkpoints: read, run, evaluate, compress block by block.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`assets`] | the models that ship with this crate |
//! | [`checkpoint`] | safetensors files: checked, mapped, written shard by shard |
//! | [`config`] | `config.json` of every family → one [`Spec`](config::Spec) |
//! | [`layers`] | names and shapes of a block's tensors |
//! | [`compressed_tensors`] | the `pack-quantized` layout that other engines load |
//! | `tokenizer`, `chat`, `sampling` | text in, text out |
//! | `session` | the model as the target or the drafter of speculative decoding |
//! | `decoder`, `kv` | one attention, one MLP, one block for all families |
//! | `generate`, `evaluate` | decoding; perplexity and divergence |
//! | `adapter` | LoRA and DoRA on any projection, in PEFT's layout |
//! | `tasks` | generated long-context tasks and their scores |
//! | `compress` | the block stream: statistics, methods, shards, resumption |
//! | `random` | checkpoints of a given shape with random weights |
//!
//! With `default-features = false` only the first five remain, and no burn in the dependency tree.
//!
//! ```no_run
//! # #[cfg(feature = "tensor")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kindling_model::{Decoder, ModelFiles, Wanted};
//!
//! let files = ModelFiles::open("path/to/checkpoint")?;
//! let model = Decoder::load(&files, &Default::default())?;
//! let logits = model.forward(&[vec![1, 403, 407]], &[], &mut model.new_kv(), Wanted::LastLogits)?;
//! assert_eq!(logits.dims()[1], 1);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "tensor"))]
//! # fn main() {}
//! ```

pub mod assets;
pub mod checkpoint;
pub mod compressed_tensors;
pub mod config;
pub mod layers;

#[cfg(feature = "tensor")]
pub mod adapter;
#[cfg(feature = "tensor")]
pub mod chat;
#[cfg(feature = "tensor")]
pub mod compress;
#[cfg(feature = "tensor")]
pub mod decoder;
#[cfg(feature = "tensor")]
mod error;
#[cfg(feature = "tensor")]
pub mod evaluate;
#[cfg(feature = "tensor")]
pub mod generate;
#[cfg(feature = "tensor")]
pub mod kv;
#[cfg(feature = "tensor")]
pub mod random;
#[cfg(feature = "tensor")]
pub mod session;
#[cfg(feature = "tensor")]
pub mod tasks;
#[cfg(feature = "tensor")]
pub mod tokenizer;

#[cfg(feature = "tensor")]
pub use decoder::{Decoder, DecoderBlock, ModelFiles, StepRoom, Wanted};
#[cfg(feature = "tensor")]
pub use error::{ModelError, Result};
#[cfg(feature = "tensor")]
pub use kindling_core::sampling;
#[cfg(feature = "tensor")]
pub use kv::DenseKv;
#[cfg(feature = "tensor")]
pub use session::Session;
