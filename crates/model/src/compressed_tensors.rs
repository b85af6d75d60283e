//! The `pack-quantized` layout of compressed-tensors, which vLLM, SGLang and transformers load.
//!
//! Integer weights only: `weight_packed` holds unsigned codes as a dense bit stream along the inputs, `weight_scale`
//! the scales in the type of the dense weights, `weight_zero_point` the zero points packed along the outputs. The
//! `quantization_config` of `config.json` says which modules are stored so: [`QuantizationConfig`] reads it,
//! [`config_json`] writes it, [`decode`] and [`encode`] convert one module.

mod codec;
mod config;
mod targets;

use kindling_core::{Granularity, Quantized};
use serde::{Deserialize, Serialize};

use crate::checkpoint::CheckpointError;

pub use codec::{PackedCodes, decode, decode_packed, encode};
pub use config::{QuantizationConfig, config_json};

/// How the weight of one module is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scheme {
    /// Bits per code, 1 to 8.
    pub bits: u8,
    /// Whether every zero point is the middle of the range and none is stored.
    pub symmetric: bool,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// In which order the inputs were quantised.
    pub actorder: ActOrder,
}

/// In which order the inputs of a matrix were quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActOrder {
    /// As they come.
    None,
    /// By activation, with groups of consecutive inputs: a reader sees no difference to [`ActOrder::None`].
    Weight,
    /// By activation, with groups along that order: `weight_g_idx` gives the group of each input.
    Group,
}

impl Scheme {
    /// The scheme a matrix was quantised by.
    pub fn of(quantized: &Quantized) -> Self {
        Scheme {
            bits: quantized.bits,
            symmetric: quantized.zeros.is_none(),
            granularity: quantized.granularity,
            actorder: if quantized.group_index.is_some() { ActOrder::Group } else { ActOrder::None },
        }
    }
}

/// What cannot be read as compressed-tensors `pack-quantized`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressedTensorsError {
    /// The configuration is not what the schema allows.
    #[error("quantization_config: `{key}`: {reason}")]
    Config {
        /// Where in the object, e.g. `config_groups.group_0.weights`.
        key: String,
        /// What is expected and what is there.
        reason: String,
    },
    /// The configuration is valid, but of a kind that is not implemented.
    #[error(
        "quantization_config: {what} is not supported; this reader takes integer weights in `pack-quantized` without quantised activations: use the dense checkpoint"
    )]
    Unsupported {
        /// The kind, with its name in the file.
        what: String,
    },
    /// A tensor is missing, or of another type or shape.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tensors of a module contradict each other or the configuration.
    #[error("module `{module}`: {reason}")]
    Module {
        /// The module's name.
        module: String,
        /// What is wrong.
        reason: String,
    },
}
