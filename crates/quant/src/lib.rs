//! Quantisation: how few bits the remaining weights need.
//!
//! Each method turns one linear layer into [`Quantized`](kindling_core::Quantized) codes on the same grids
//! ([`grid`]), so that methods differ in which code a weight gets and never in what a code means.
//!
//! | method | module | needs | what it does |
//! | --- | --- | --- | --- |
//! | `rtn` | [`rtn`] | nothing | rounds every weight to the nearest value of its group's grid |
//! | `gptq` | [`gptq`] | the Gram matrix | rounds column after column; later columns make up for earlier errors |
//!
//! Options of every method:
//!
//! | option | default | meaning |
//! | --- | --- | --- |
//! | `bits` | 4 | bits per code, 2 to 8 |
//! | `group_size` | 128 | consecutive inputs of a row that share a scale; 0 or -1: the whole row |
//! | `granularity` | `group` | `tensor`, `channel` or `group`; with the first two `group_size` plays no part |
//! | `symmetric` | false | no zero points: scale `max abs(w) / ((2^bits - 1) / 2)` |
//! | `clip` | `none` | `mse` searches the range of every group that rounds best |
//! | `scale_type` | `f32` | the type scales are rounded to before codes are computed: `f32`, `f16`, `bf16` |
//! | `portable` | false | refuse a layer whose inputs are not a multiple of the group size |
//!
//! `gptq` adds `damping` (0.01), `block_size` (128), `order` (`natural`, `act`, `group-aware`) and
//! `static_groups` (false).
//!
//! Weights that an earlier stage pruned stay exactly zero.
//!
//! ```
//! use kindling_core::{Cx, Layer, LayerShape, Method, Needs, Options, Role, Stats};
//! use kindling_core::{CompressedWeight, options::Value};
//! use burn::tensor::{Device, Tensor};
//!
//! let entry = kindling_quant::METHODS.iter().find(|entry| entry.name == "gptq").unwrap();
//! let options = Options::from_iter([("bits", Value::Int(3)), ("group_size", Value::Int(0))]);
//! let Method::Layer(gptq) = (entry.build)(&options)? else { unreachable!() };
//!
//! let shape = LayerShape {
//!     name: "mlp.up_proj".into(), role: Role::Up, unit: 0, site: "mlp".into(), rows: 2, cols: 3,
//! };
//! let weight = Tensor::from_floats([[0.9, -0.4, 0.3], [-0.2, 0.8, -0.6]], &Device::default());
//! let mut stats = Stats::new(3, Needs::Moments);
//! stats.add_rows(&[1.0, 0.5, 0.0, 0.8, 1.0, 0.3, 0.0, 0.4, 1.0])?;
//!
//! let layer = Layer { shape, weight, mask: None };
//! let compressed = gptq.compress(&layer, &stats, &Cx::new(0))?;
//! let CompressedWeight::Quantized(quantized) = compressed.weight else { unreachable!() };
//! assert!((quantized.value(0, 0) - 0.9).abs() < 0.1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod config;
pub mod gptq;
pub mod grid;
pub mod matrix;
pub mod rtn;

use kindling_core::MethodEntry;

/// Every method of this crate.
pub const METHODS: &[MethodEntry] = &[rtn::ENTRY, gptq::ENTRY];
