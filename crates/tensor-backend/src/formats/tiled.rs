//! Packed codes laid out for the processor's kernels: what a model runs with once it is loaded.
//!
//! The values are those of [`Packed`], bit for bit. Only the places differ: see [`kernels::tiles`](crate::kernels::tiles).

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use kindling_core::quantized::Granularity;

use super::packed::{Packed, Scales};
use super::{by_rows, order_of, to_tensor};
use crate::kernels::tiles::{BLOCK, ROWS};
use crate::kernels::{
    Activations, Arithmetic, Codes, Source, TileScales, Tiles, has_kernels, has_two_of_four_kernels, product,
};

/// From so many rows on f32 products go through the dense weight.
const DENSE_FROM: usize = 64;

/// A quantised weight in tiles of 16 rows.
#[derive(Debug, Clone)]
pub struct Tiled {
    tiles: Arc<Tiles>,
    arithmetic: Arithmetic,
    name: String,
}

impl Tiled {
    /// The name in files, of which there are none: files hold [`Packed`].
    pub const CODE: &str = "tiled";

    /// Lays out a packed weight. `None` for groups that are not whole blocks of 32 inputs, and for a matrix without rows or
    /// inputs.
    pub fn from_packed(packed: &Packed, arithmetic: Arithmetic) -> Option<Self> {
        let [rows, cols] = packed.shape();
        let group = packed.granularity().group_len(cols);
        if rows == 0 || cols == 0 || group < cols && !group.is_multiple_of(BLOCK) {
            return None;
        }
        let order = match (packed.group_index(), packed.granularity()) {
            (Some(index), Granularity::Group(size)) => Some(order_of(index, size)?),
            _ => None,
        };
        let groups = cols.div_ceil(group);
        let whole_matrix = packed.granularity() == Granularity::Tensor;
        let place = |row: usize, group: usize| if whole_matrix { 0 } else { row * groups + group };
        let zeros = packed.zeros();
        let zero = |row: usize, group: usize| zeros.map_or(0, |zeros| zeros[place(row, group)]);
        let words = packed.words();
        let per_row = words.len() / rows;
        let moved = |row: usize, at: usize| {
            let input = order.as_ref().map_or(at, |order| order[at] as usize);
            kindling_core::pack::code_at(&words[row * per_row..][..per_row], packed.bits(), input)
        };
        let source = Source {
            rows,
            cols,
            bits: packed.bits(),
            group,
            codes: if order.is_some() { Codes::Function(&moved) } else { Codes::Words(words) },
            zero: if zeros.is_some() { Some(&zero) } else { None },
            order: order.clone(),
        };
        let scales = scales_of(packed.scales(), rows, groups, place);
        let tiles = Tiles::new(&source, scales);
        // Pruned codes are read in three quarters of the bytes.
        let pruned = if has_two_of_four_kernels(Arithmetic::Int8) { tiles.two_of_four() } else { None };
        let name = if pruned.is_some() { format!("2:4 {}", packed.format_name()) } else { packed.format_name() };
        Some(Self { tiles: Arc::new(pruned.unwrap_or(tiles)), arithmetic, name })
    }

    /// The kernel's matrix.
    pub(super) fn held(&self) -> &Arc<Tiles> {
        &self.tiles
    }

    /// Whether there are kernels for it on this processor.
    pub(super) fn has_kernels(&self) -> bool {
        has_kernels(self.arithmetic)
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.tiles.shape()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.tiles.bytes()
    }

    /// The name of the packed format, and how it multiplies.
    pub fn format_name(&self) -> String {
        match self.arithmetic {
            Arithmetic::Int8 => format!("{}, 8-bit inputs", self.name),
            Arithmetic::F32 => self.name.clone(),
        }
    }

    /// How inputs meet codes.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Chooses how inputs meet codes.
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) {
        self.arithmetic = arithmetic;
    }

    /// All values as an f32 tensor `[out, in]`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        let [rows, cols] = self.shape();
        to_tensor(self.tiles.to_host(), rows, cols, device)
    }

    /// One matrix of several with the same inputs, the outputs of the first before those of the next.
    ///
    /// `None` where they differ in width, groups, scales or order of inputs, or where one but the last ends within a tile.
    pub fn stacked(parts: &[&Self]) -> Option<Self> {
        let tiles: Vec<&Tiles> = parts.iter().map(|part| &*part.tiles).collect();
        let first = parts.first()?;
        let tiles = Tiles::stacked(&tiles)?;
        Some(Self { tiles: Arc::new(tiles), arithmetic: first.arithmetic, name: first.name.clone() })
    }

    /// Whether the kernels are the best way for these activations. In f32 many rows go faster through the dense product:
    /// unfolding the weight is a small part of it then.
    pub(super) fn takes(&self, x: &Tensor<3>) -> bool {
        crate::ops::on_flex(x)
            && (self.arithmetic == Arithmetic::Int8 || x.dims()[0] * x.dims()[1] < DENSE_FROM)
            && has_kernels(self.arithmetic)
    }

    /// `x · Wᵀ` on the processor: `[batch, tokens, in]` to `[batch, tokens, out]`.
    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [outputs, inputs] = self.shape();
        by_rows(x, outputs, |x, rows, out| {
            product(&self.tiles, &Activations::new(x, rows, inputs, self.tiles.order(), self.arithmetic), out);
        })
    }
}

/// Scales as tiles have them, zero beyond the last row.
fn scales_of(scales: &Scales, rows: usize, groups: usize, place: impl Fn(usize, usize) -> usize) -> TileScales {
    fn laid_out<T: Copy>(
        scales: &[T],
        none: T,
        rows: usize,
        groups: usize,
        place: impl Fn(usize, usize) -> usize,
    ) -> Vec<T> {
        let mut out = vec![none; rows.next_multiple_of(ROWS) * groups];
        for row in 0..rows {
            for group in 0..groups {
                out[(row / ROWS * groups + group) * ROWS + row % ROWS] = scales[place(row, group)];
            }
        }
        out
    }
    match scales {
        Scales::F32(scales) => TileScales::F32(laid_out(scales, 0.0, rows, groups, place)),
        Scales::F16(scales) => TileScales::F16(laid_out(scales, half::f16::ZERO, rows, groups, place)),
        Scales::BF16(scales) => TileScales::BF16(laid_out(scales, half::bf16::ZERO, rows, groups, place)),
    }
}
