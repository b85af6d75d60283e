//! Pruning methods: which weights of a linear layer go.
//!
//! | method | score of a weight | compared within | needs | source |
//! | --- | --- | --- | --- | --- |
//! | [`magnitude`] | its size | the matrix | nothing | arXiv 1506.02626 |
//! | [`wanda`] | size × norm of its input | the output row | norms | arXiv 2306.11695 |
//! | [`dass`] | size × norm of the MLP neuron it belongs to | the neurons | norms of the down projection | arXiv 2405.01943 |
//! | [`sparsegpt`] | error that the other weights cannot undo | a block of columns | Gram matrix | arXiv 2301.00774 |
//!
//! A stage of a recipe says how much goes: `pattern = "2:4"` keeps 2 of every 4 weights, `sparsity = 0.5`
//! removes half, exactly. [`select`] turns scores into masks for all of them; a score of your own needs a
//! [`ScoreMethod`](kindling_core::ScoreMethod) only, and becomes a method in a [`ScorePruner`].
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use kindling_core::options::Value;
//! use kindling_core::{CompressedWeight, Cx, Layer, LayerShape, Method, Needs, Options, Role, Stats};
//!
//! let mut stats = Stats::new(4, Needs::Norms);
//! stats.add_rows(&[1., 0., 2., 0.5, 0., 1., 1., 0.])?;
//! let shape = LayerShape {
//!     name: "mlp.up_proj".into(), role: Role::Up, unit: 0, site: "mlp.in".into(), rows: 1, cols: 4,
//! };
//! let weight = Tensor::from_floats([[1.0, -0.5, 0.2, 0.8]], &Device::default());
//!
//! let entry = kindling_prune::METHODS.iter().find(|entry| entry.name == "wanda").unwrap();
//! let options = Options::from_iter([("pattern", Value::Text("2:4".into()))]);
//! let Method::Layer(wanda) = (entry.build)(&options)? else { unreachable!() };
//! let pruned = wanda.compress(&Layer { shape, weight, mask: None }, &stats, &Cx::new(0))?;
//!
//! let CompressedWeight::Dense(weight) = pruned.weight else { unreachable!() };
//! // |w|·‖x‖ is [1, 0.5, 0.45, 0.4].
//! assert_eq!(weight.into_data().try_into_vec::<f32>()?, [1.0, -0.5, 0.0, 0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod dass;
mod host;
pub mod magnitude;
pub mod score;
pub mod select;
pub mod sparsegpt;
pub mod wanda;

#[cfg(test)]
mod every_method;
#[cfg(test)]
mod testing;

pub use score::ScorePruner;
pub use select::{Axis, Keys, Per, Selection, Structure};

/// Every pruning method. Recipes, lists, tests and benches derive from it.
pub const METHODS: &[kindling_core::MethodEntry] = &[magnitude::ENTRY, wanda::ENTRY, dass::ENTRY, sparsegpt::ENTRY];
