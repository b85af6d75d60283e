//! The options that all quantisers share, and what they resolve to.

use kindling_core::options::OptionsError;
use kindling_core::{Error, Granularity, LayerShape, Result, ScaleType};
use serde::Deserialize;

use crate::grid::{Clip, GridSpec};

/// Which weights share a scale, as the option `granularity` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// The whole matrix.
    Tensor,
    /// A row: one output channel.
    Channel,
    /// `group_size` consecutive inputs of a row.
    Group,
}

/// The options that every quantiser has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shared {
    /// Bits per code, 2 to 8.
    pub bits: u8,
    /// How many consecutive inputs of a row share a scale; 0 or −1: the whole row.
    pub group_size: i64,
    /// Which weights share a scale; with `tensor` and `channel` the group size plays no part.
    pub granularity: Option<Sharing>,
    /// A grid that is the same on both sides of 0 and stores no zero points.
    pub symmetric: bool,
    /// How the range of a group is chosen.
    pub clip: Clip,
    /// The type scales are rounded to and stored in.
    pub scale_type: Option<ScaleType>,
    /// Refuse a layer that other engines cannot load.
    pub portable: bool,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: 128,
            granularity: None,
            symmetric: false,
            clip: Clip::None,
            scale_type: None,
            portable: false,
        }
    }
}

impl Shared {
    /// Checks the options; `method` is the name that an error begins with.
    pub fn resolve(self, method: &str) -> Result<Target, OptionsError> {
        let Self { bits, group_size, symmetric, clip, portable, .. } = self;
        let refuse = |reason: String| Err(OptionsError(format!("{method}: {reason}")));
        if !(2..=8).contains(&bits) {
            return refuse(format!("`bits` is {bits}, but 2 to 8 are possible"));
        }
        if group_size < -1 {
            return refuse(format!("`group_size` is {group_size}; give a positive size, or 0 for one group per row"));
        }
        let granularity = match (self.granularity, group_size) {
            (Some(Sharing::Tensor), _) => Granularity::Tensor,
            (Some(Sharing::Channel), _) | (None, ..=0) => Granularity::Channel,
            (Some(Sharing::Group), ..=0) => {
                return refuse(format!(
                    "`granularity` is `group` but `group_size` is {group_size}; give a positive size"
                ));
            }
            (Some(Sharing::Group) | None, size) => Granularity::Group(size as usize),
        };
        let scale_type = self.scale_type.unwrap_or(ScaleType::F32);
        Ok(Target { spec: GridSpec { bits, symmetric, clip, scale_type }, granularity, portable })
    }
}

/// Writes a quantiser's config struct: its own options, with their defaults, behind the shared ones.
///
/// One flat struct, because serde cannot combine `flatten` with the refusal of unknown keys.
macro_rules! quantiser_config {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$option_meta:meta])* pub $option:ident: $type:ty = $default:expr,)* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// Bits per code, 2 to 8. Default 4.
            pub bits: u8,
            /// How many consecutive inputs of a row share a scale; 0 or −1: the whole row. Default 128.
            pub group_size: i64,
            /// Which weights share a scale. Default: `group`, or `channel` where `group_size` is 0.
            pub granularity: Option<$crate::config::Sharing>,
            /// A grid that is the same on both sides of 0 and stores no zero points. Default false.
            pub symmetric: bool,
            /// How the range of a group is chosen: `none` or `mse`. Default `none`.
            pub clip: $crate::grid::Clip,
            /// The type scales are rounded to and stored in: `f32`, `f16` or `bf16`. Default `f32`.
            pub scale_type: Option<kindling_core::ScaleType>,
            /// Refuse a layer that other engines cannot load. Default false.
            pub portable: bool,
            $($(#[$option_meta])* pub $option: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                let shared = $crate::config::Shared::default();
                Self {
                    bits: shared.bits,
                    group_size: shared.group_size,
                    granularity: shared.granularity,
                    symmetric: shared.symmetric,
                    clip: shared.clip,
                    scale_type: shared.scale_type,
                    portable: shared.portable,
                    $($option: $default,)*
                }
            }
        }

        impl $name {
            /// The shared options among these.
            pub fn shared(&self) -> $crate::config::Shared {
                $crate::config::Shared {
                    bits: self.bits,
                    group_size: self.group_size,
                    granularity: self.granularity,
                    symmetric: self.symmetric,
                    clip: self.clip,
                    scale_type: self.scale_type,
                    portable: self.portable,
                }
            }
        }
    };
}
pub(crate) use quantiser_config;

/// What a quantiser aims at: the kind of grid and who shares one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The kind of grid.
    pub spec: GridSpec,
    /// Which weights share a grid.
    pub granularity: Granularity,
    /// Whether a shorter last group is refused.
    pub portable: bool,
}

impl Target {
    /// Refuses a layer whose last group would be shorter, if the result must be portable.
    pub fn check(&self, shape: &LayerShape) -> Result<()> {
        match self.ragged(shape.cols) {
            Some(size) if self.portable => Err(Error::layer(
                &shape.name,
                format!(
                    "{} inputs are not a multiple of the group size {size}, which other engines require; \
                     choose a group size that divides the inputs, or `portable = false`",
                    shape.cols
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The group size, where it does not divide the inputs.
    fn ragged(&self, cols: usize) -> Option<usize> {
        match self.granularity {
            Granularity::Group(size) if !cols.is_multiple_of(size) => Some(size),
            _ => None,
        }
    }

    /// What the report should say about the shape of a layer.
    pub(crate) fn notes(&self, cols: usize) -> Vec<String> {
        let note = |size| {
            format!(
                "the last group of a row holds {} of {size} inputs; other engines may refuse this layer",
                cols % size
            )
        };
        self.ragged(cols).map(note).into_iter().collect()
    }

    /// Bits per weight of codes, scales and zero points together.
    pub fn bits_per_weight(&self, rows: usize, cols: usize) -> f64 {
        let scale_bits = if self.spec.scale_type == ScaleType::F32 { 32 } else { 16 };
        let zero_bits = if self.spec.symmetric { 0 } else { self.spec.bits };
        let grids = match self.granularity {
            Granularity::Tensor => 1,
            other => rows * other.groups(cols),
        };
        let per_grid = f64::from(scale_bits + u32::from(zero_bits));
        f64::from(self.spec.bits) + per_grid * grids as f64 / (rows * cols).max(1) as f64
    }
}
