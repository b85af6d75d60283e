//! What a compression method is.
//!
//! Three levels, so that most methods are one short pure function: a [`ScoreMethod`] only scores weights
//! (selection is written once), a [`LayerMethod`] turns one linear layer into a compressed one, a
//! [`BlockMethod`] sees several layers of a decoder block together.

use burn::tensor::Tensor;

use crate::options::OptionsError;
use crate::{Cx, LayerShape, Mask, Needs, Options, Quantized, Result, Stats};

/// One linear layer as a method sees it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Name, role and size.
    pub shape: LayerShape,
    /// The weight `[rows, cols]` in f32, as earlier stages left it.
    pub weight: Tensor<2>,
    /// The weights that earlier stages removed. They must stay zero.
    pub mask: Option<Mask>,
}

/// The projections of one decoder block with the statistics of their inputs.
#[derive(Debug)]
pub struct Block<'a> {
    /// The layers that a stage targets.
    pub layers: Vec<Layer>,
    /// Statistics by site.
    pub stats: Vec<(&'a str, &'a Stats)>,
}

impl Block<'_> {
    /// The statistics of the input of `layer`; an error if nobody collected them.
    pub fn stats_of(&self, layer: &LayerShape) -> Result<&Stats> {
        self.stats
            .iter()
            .find(|(site, _)| *site == layer.site)
            .map(|(_, stats)| *stats)
            .ok_or_else(|| crate::Error::layer(&layer.name, format!("no statistics for the site `{}`", layer.site)))
    }
}

/// The numbers that replace a weight.
#[derive(Debug, Clone)]
pub enum CompressedWeight {
    /// Floating point, with zeros where pruned; `[rows, cols]` in f32.
    Dense(Tensor<2>),
    /// Integer codes.
    Quantized(Quantized),
}

/// What a method made of a layer.
#[derive(Debug, Clone)]
pub struct Compressed {
    /// The new weight.
    pub weight: CompressedWeight,
    /// The weights that are gone, with those of earlier stages.
    pub mask: Option<Mask>,
    /// What the report should say: a fallback taken, damping raised, a ragged group.
    pub notes: Vec<String>,
}

/// One linear layer and the statistics of its input → one compressed weight.
pub trait LayerMethod: Send + Sync {
    /// What must be known of the inputs.
    fn needs(&self) -> Needs;

    /// Refuses a layer that the options do not fit, before any work is done.
    fn check(&self, shape: &LayerShape) -> Result<()> {
        let _ = shape;
        Ok(())
    }

    /// Bits per weight that the result will take on disk (16 for a dense half-precision weight).
    fn bits_per_weight(&self, shape: &LayerShape, dense_bits: f64) -> f64;

    /// Compresses one layer.
    fn compress(&self, layer: &Layer, stats: &Stats, cx: &Cx) -> Result<Compressed>;
}

/// Pruning by score: the method says how much each weight matters; who goes is decided elsewhere.
pub trait ScoreMethod: Send + Sync {
    /// What must be known of the inputs.
    fn needs(&self) -> Needs;

    /// The importance of every weight, `[rows, cols]`, finite and at least zero.
    fn score(&self, layer: &Layer, stats: &Stats) -> Result<Tensor<2>>;
}

/// Several layers of a block together.
pub trait BlockMethod: Send + Sync {
    /// What must be known of the input of this layer.
    fn needs(&self, shape: &LayerShape) -> Needs;

    /// Refuses a set of targets that the options do not fit, before any work is done.
    fn check(&self, shapes: &[LayerShape]) -> Result<()> {
        let _ = shapes;
        Ok(())
    }

    /// Bits per weight that the result will take on disk.
    fn bits_per_weight(&self, shape: &LayerShape, dense_bits: f64) -> f64;

    /// Compresses the layers, in the order they came.
    fn compress(&self, block: &Block<'_>, cx: &Cx) -> Result<Vec<Compressed>>;
}

/// A configured method.
pub enum Method {
    /// Layer by layer.
    Layer(Box<dyn LayerMethod>),
    /// Block by block.
    Block(Box<dyn BlockMethod>),
}

impl Method {
    /// What must be known of the input of this layer.
    pub fn needs(&self, shape: &LayerShape) -> Needs {
        match self {
            Method::Layer(method) => method.needs(),
            Method::Block(method) => method.needs(shape),
        }
    }

    /// Refuses targets that the options do not fit.
    pub fn check(&self, shapes: &[LayerShape]) -> Result<()> {
        match self {
            Method::Layer(method) => shapes.iter().try_for_each(|shape| method.check(shape)),
            Method::Block(method) => method.check(shapes),
        }
    }

    /// Bits per weight that the result will take on disk.
    pub fn bits_per_weight(&self, shape: &LayerShape, dense_bits: f64) -> f64 {
        match self {
            Method::Layer(method) => method.bits_per_weight(shape, dense_bits),
            Method::Block(method) => method.bits_per_weight(shape, dense_bits),
        }
    }
}

/// What a method is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Removes weights.
    Prune,
    /// Rounds weights.
    Quantise,
}

impl Family {
    /// The name that lists print.
    pub fn name(self) -> &'static str {
        match self {
            Family::Prune => "prune",
            Family::Quantise => "quantise",
        }
    }
}

/// One line of a crate's `METHODS` list. Recipes, tables, tests and benches derive from it.
pub struct MethodEntry {
    /// The name a recipe uses.
    pub name: &'static str,
    /// What it is for.
    pub family: Family,
    /// One sentence: what it does.
    pub summary: &'static str,
    /// Title and arXiv id of the source, or where the method is folklore.
    pub paper: &'static str,
    /// What it needs of the inputs, at most.
    pub needs: Needs,
    /// Reads the options of a stage.
    pub build: fn(&Options) -> std::result::Result<Method, OptionsError>,
}
