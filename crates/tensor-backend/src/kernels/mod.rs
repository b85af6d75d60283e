//! Products of activations with integer codes, on the processor: no weight is ever unfolded in memory.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`tiles`] | [`Tiles`]: codes laid out so that every lane of a register is a row of the matrix |
//! | [`activations`] | [`Activations`]: rows of inputs, in f32 or as 8-bit codes per block |
//! | [`lut`] | sums looked up in tables in place of products, for codes of a few bits |
//! | `scalar` | the plain twin: the same sums, one at a time |
//! | `avx512`, `avx2`, `neon` | the same for x86-64 and ARM, chosen at run time; other processors unfold the weight |
//! | `pages` | memory that products read at full speed |
//! | `half_tiles` | [`HalfTiles`]: a dense matrix in bf16 or f16 |
//! | `masked_rows` | [`MaskedRows`]: a pruned matrix, its kept values and a bit for every weight |
//!
//! Two ways to multiply ([`Arithmetic`]): in whole numbers, with inputs rounded to 8 bits per block of 32, exact but for
//! that rounding; or in f32 with the inputs as they are. Sources of the ideas: the CPU kernels of ggml-org/llama.cpp (whole
//! numbers, interleaved rows), Wei et al., "T-MAC", arXiv 2407.00088 (tables in registers).

pub mod activations;
mod columns;
mod half_tiles;
pub mod lut;
mod masked_rows;
pub(crate) mod pages;
pub mod tiles;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod product;
mod scalar;
#[cfg(test)]
mod tests;

pub use activations::{Activations, Arithmetic};
pub use half_tiles::{HalfTiles, HalfType};
pub use masked_rows::{MaskedRows, pay as masked_rows_pay};
pub use product::{has_kernels, has_two_of_four_kernels, product};
pub use tiles::{Codes, Source, TileScales, Tiles};
