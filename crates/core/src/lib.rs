//! The vocabulary of Kindling: what a compression method is, what it may ask for, what it returns.
//!
//! This crate holds traits, plain data and errors. It reads no file, names no device and contains no
//! method, so every other crate can depend on it and a user can implement a method of their own
//! against it alone.
//!
//! | module | what it defines |
//! | --- | --- |
//! | [`cx`] | [`Cx`]: seeded randomness, cancellation, progress |
//! | [`draft`] | [`Drafter`], [`Draft`] trees, and the [`Target`] that verifies them |
//! | [`index`] | [`PointIndex`], [`OrderedIndex`], [`IndexMut`]: ordered maps over scalar keys |
//! | [`options`] | [`Options`]: the untyped keys of a recipe stage, read with serde |
//! | [`pack`] | dense bit streams of codes |
//! | [`pattern`] | [`NM`] patterns and [`Mask`]s |
//! | [`quantized`] | [`Quantized`]: integer codes with their grid |
//! | [`sampling`] | from logits to the next token |
//! | [`shape`] | [`Role`] and [`LayerShape`] of a projection |
//! | [`stats`] | [`Stats`] of a layer's inputs, and [`Needs`] |
//! | [`method`] | [`LayerMethod`], [`ScoreMethod`], [`BlockMethod`], the [`MethodEntry`] list (feature `tensor`) |
//! | [`kv`] | [`KvStore`]: what attention remembers (feature `tensor`) |
//! | [`lm`] | [`LanguageModel`]: what training asks of a model (feature `tensor`) |
//! | [`tap`] | [`Tap`]: a look at activations on their way (feature `tensor`) |
//!
//! Without the default feature `tensor` there is no burn in the dependency tree.

pub mod cx;
pub mod draft;
pub mod error;
pub mod index;
#[cfg(feature = "tensor")]
pub mod kv;
#[cfg(feature = "tensor")]
pub mod lm;
#[cfg(feature = "tensor")]
pub mod method;
pub mod options;
pub mod pack;
pub mod pattern;
pub mod quantized;
pub mod sampling;
pub mod shape;
pub mod stats;
#[cfg(feature = "tensor")]
pub mod tap;

pub use cx::{Cx, Progress};
pub use draft::{Draft, Drafter, DrafterEntry, Target};
pub use error::{Error, Result};
pub use index::{IndexMut, OrderedIndex, PointIndex};
#[cfg(feature = "tensor")]
pub use kv::{AttendSpec, KvMemory, KvStore};
#[cfg(feature = "tensor")]
pub use lm::{AttentionInputs, Decoding, LanguageModel, OutputHead, ParameterMut, Replay};
#[cfg(feature = "tensor")]
pub use method::{
    Block, BlockMethod, Compressed, CompressedWeight, Family, Layer, LayerMethod, Method, MethodEntry, ScoreMethod,
};
pub use options::Options;
pub use pattern::{Mask, NM};
pub use quantized::{Granularity, Quantized, ScaleType};
pub use shape::{LayerShape, Role};
pub use stats::{Needs, Stats};
#[cfg(feature = "tensor")]
pub use tap::Tap;
