//! AVX-512: a register is a tile's 16 rows.
//!
//! Whole numbers need VNNI: one instruction multiplies the four codes of every row with four inputs and adds them to 16 sums.
//! Per 64 bytes of 4-bit codes that is one load, a shift, two masks and two products, a third of what the memory allows time
//! for; so the time of one row is that of reading the weights. With several rows the unpacked codes are used again.
#![allow(unsafe_code, reason = "loads take pointers")]

use std::arch::x86_64::*;

use super::activations::{Arithmetic, Group, TOGETHER};
use super::tiles::{BLOCK, ROWS, Register, TWO_OF_FOUR, TileScales, Tiles};

/// Whether this processor runs these kernels.
pub(super) fn available(arithmetic: Arithmetic) -> bool {
    let base = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    base && (arithmetic == Arithmetic::F32 || is_x86_feature_detected!("avx512vnni"))
}

/// Whether it also runs those for two of four codes, which need VBMI2.
pub(super) fn available_for_two_of_four(arithmetic: Arithmetic) -> bool {
    available(arithmetic) && is_x86_feature_detected!("avx512vbmi2")
}

/// Whether it runs them on this matrix.
pub(super) fn runs(tiles: &Tiles, arithmetic: Arithmetic) -> bool {
    if tiles.width == TWO_OF_FOUR { available_for_two_of_four(arithmetic) } else { available(arithmetic) }
}

/// As [`scalar::tile`](super::scalar::tile).
///
/// # Panics
/// If the processor does not have the instructions.
pub(super) fn tile(tiles: &Tiles, tile: usize, x: Group<'_>, arithmetic: Arithmetic, out: &mut [[f32; ROWS]]) {
    assert!(runs(tiles, arithmetic), "called without its instructions");
    assert!(out.len() >= x.width && tile < tiles.tiles(), "a tile and its outputs");
    macro_rules! widths {
        ($function:ident, $($constant:literal),+) => {
            // SAFETY: the features were found above, and all buffers were compared with the shape.
            unsafe {
                match x.width {
                    1 => $function::<1, $($constant),+>(tiles, tile, x, out),
                    2 => $function::<2, $($constant),+>(tiles, tile, x, out),
                    3 => $function::<3, $($constant),+>(tiles, tile, x, out),
                    4 => $function::<4, $($constant),+>(tiles, tile, x, out),
                    5 => $function::<5, $($constant),+>(tiles, tile, x, out),
                    6 => $function::<6, $($constant),+>(tiles, tile, x, out),
                    7 => $function::<7, $($constant),+>(tiles, tile, x, out),
                    _ => $function::<TOGETHER, $($constant),+>(tiles, tile, x, out),
                }
            }
        };
    }
    x.assert_covers(tiles.blocks(), arithmetic);
    let one = tiles.blocks_per_group == 1;
    match (arithmetic, tiles.width) {
        (Arithmetic::Int8, TWO_OF_FOUR) if one => widths!(int8_two_of_four, 3, true),
        (Arithmetic::Int8, TWO_OF_FOUR) => widths!(int8_two_of_four, 3, false),
        (Arithmetic::F32, TWO_OF_FOUR) => widths!(float_two_of_four, 3),
        (Arithmetic::Int8, 2) if one => widths!(int8, 2, true),
        (Arithmetic::Int8, 2) => widths!(int8, 2, false),
        (Arithmetic::Int8, 3) if one => widths!(int8, 3, true),
        (Arithmetic::Int8, 3) => widths!(int8, 3, false),
        (Arithmetic::Int8, 4) if one => widths!(int8, 4, true),
        (Arithmetic::Int8, 4) => widths!(int8, 4, false),
        (Arithmetic::Int8, _) if one => widths!(int8, 8, true),
        (Arithmetic::Int8, _) => widths!(int8, 8, false),
        (Arithmetic::F32, 2) => widths!(float, 2),
        (Arithmetic::F32, 3) => widths!(float, 3),
        (Arithmetic::F32, 4) => widths!(float, 4),
        (Arithmetic::F32, _) => widths!(float, 8),
    }
}

/// Bytes of codes ahead of the sums that are asked for: the memory answers later than the processor looks ahead by itself.
const AHEAD: usize = 2048;

/// Where the numbers of a tile begin.
struct Start<'a> {
    codes: *const Register,
    /// Of the type that `scales` says, 16 to a group.
    first_scale: usize,
    scales: &'a TileScales,
    /// 16 to a group.
    zeros: Option<*const u8>,
    middle: f32,
}

impl<'a> Start<'a> {
    fn of(tiles: &'a Tiles, tile: usize) -> Self {
        let first_scale = tile * tiles.groups() * ROWS;
        Self {
            codes: tiles.tile(tile).as_ptr(),
            first_scale,
            scales: &tiles.scales,
            zeros: tiles.zeros.as_ref().map(|zeros| zeros[first_scale..].as_ptr()),
            middle: f32::from(tiles.middle),
        }
    }

    /// The zero points of a group.
    ///
    /// # Safety
    /// The tile has the group.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn zero(&self, group: usize) -> __m512 {
        match self.zeros {
            // SAFETY: 16 zero points to a group.
            Some(zeros) => unsafe {
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.add(group * ROWS).cast())))
            },
            None => _mm512_set1_ps(self.middle),
        }
    }
}

/// The scales of a group. A macro: the compiler does not inline a function of three arms into the loop, and a call spills
/// every sum.
macro_rules! scale {
    ($start:expr, $group:expr) => {{
        let at = $start.first_scale + $group * ROWS;
        match $start.scales {
            TileScales::F32(scales) => _mm512_loadu_ps(scales.as_ptr().add(at)),
            TileScales::F16(scales) => _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().add(at).cast())),
            TileScales::BF16(scales) => {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(scales.as_ptr().add(at).cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
        }
    }};
}

/// The four codes of quad `quad` of the block at `registers`, as bytes.
///
/// # Safety
/// The block has its `BITS` registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quad<const BITS: usize>(registers: *const Register, quad: usize) -> __m512i {
    // SAFETY: registers are aligned, and those asked for below are the block's.
    let load = |i: usize| unsafe { _mm512_load_si512(registers.add(i).cast()) };
    let masked = |register: __m512i, bits: usize, step: usize| {
        let shifted = _mm512_srl_epi32(register, _mm_cvtsi32_si128((step * bits) as i32));
        _mm512_and_si512(shifted, _mm512_set1_epi8(((1u32 << bits) - 1) as i8))
    };
    match BITS {
        8 => load(quad),
        3 => {
            let (low, high) = (masked(load(quad / 4), 2, quad % 4), masked(load(2), 1, quad));
            _mm512_or_si512(low, _mm512_slli_epi32::<2>(high))
        }
        _ => masked(load(quad * BITS / 8), BITS, quad % (8 / BITS)),
    }
}

/// As [`quad`] for the three registers of two of four codes; the others are the middle of the grid.
///
/// # Safety
/// The block has its three registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
unsafe fn quad_of_two<const REGISTERS: usize>(registers: *const Register, quad: usize) -> __m512i {
    let bytes = registers.cast::<u8>();
    // SAFETY: 128 bytes of codes, of which two quads share 32, and eight masks of 64 bits.
    let (codes, mask) =
        unsafe { (_mm256_load_si256(bytes.add(quad / 2 * 32).cast()), *bytes.add(128).cast::<u64>().add(quad)) };
    let codes = if quad.is_multiple_of(2) { codes } else { _mm256_srli_epi16::<4>(codes) };
    let codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    _mm512_mask_expand_epi8(_mm512_set1_epi8(8), mask, _mm512_castsi256_si512(codes))
}

/// Asks for the registers of a block that comes later.
#[inline]
#[target_feature(enable = "avx512f")]
fn ask<const BITS: usize>(registers: *const Register) {
    for register in 0..BITS {
        let ahead = registers.wrapping_add(AHEAD / size_of::<Register>() + register);
        // A hint: it reads nothing, wherever it points.
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
    }
}

/// Asks for the lines of the cache of places that will be written.
pub(super) fn ask_to_write(places: &[f32]) {
    for line in places.chunks(ROWS) {
        // SAFETY: a hint that every x86-64 knows: it changes nothing.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
    }
}

/// Defines the two kernels over one way to read codes, `BITS` registers to a block.
macro_rules! kernels {
    ($quad:ident: $int8:ident with $features_int8:literal, $float:ident with $features:literal) => {
        /// Sums in whole numbers.
        ///
        /// # Safety
        /// Inputs cover the matrix, and the tile exists.
        #[target_feature(enable = $features_int8)]
        unsafe fn $int8<const N: usize, const BITS: usize, const ONE: bool>(
            tiles: &Tiles,
            tile: usize,
            x: Group<'_>,
            out: &mut [[f32; ROWS]],
        ) {
            // Of groups of one block the compiler keeps every sum in a register.
            let per_group = if ONE { 1 } else { tiles.blocks_per_group };
            let (blocks, groups) = (tiles.blocks(), tiles.groups());
            let start = Start::of(tiles, tile);
            let (codes, x_scales, x_sums) = (x.codes.as_ptr(), x.scales.as_ptr(), x.sums.as_ptr());
            let mut totals = [_mm512_setzero_ps(); N];
            for group in 0..groups {
                // SAFETY: groups and blocks stay below those of the tile, which has 16 scales to a group; the inputs have `N` rows of
                // as many blocks.
                unsafe {
                    let (scale, zero) = (scale!(start, group), start.zero(group));
                    let mut sums = [_mm512_setzero_ps(); N];
                    let end = if ONE { group + 1 } else { ((group + 1) * per_group).min(blocks) };
                    for block in group * per_group..end {
                        let registers = start.codes.add(block * BITS);
                        if N == 1 {
                            ask::<BITS>(registers);
                        }
                        let codes = codes.add(block * N * (BLOCK / 4)).cast::<i32>();
                        let mut dots = [_mm512_setzero_si512(); N];
                        for q in 0..BLOCK / 4 {
                            let weights = $quad::<BITS>(registers, q);
                            for row in 0..N {
                                let inputs = _mm512_set1_epi32(codes.add(q * N + row).read_unaligned());
                                dots[row] = _mm512_dpbusd_epi32(dots[row], weights, inputs);
                            }
                        }
                        for row in 0..N {
                            let dot = _mm512_cvtepi32_ps(dots[row]);
                            // Both below 2²⁴: exact.
                            let dot = _mm512_fnmadd_ps(zero, _mm512_set1_ps(*x_sums.add(block * N + row)), dot);
                            sums[row] = _mm512_fmadd_ps(dot, _mm512_set1_ps(*x_scales.add(block * N + row)), sums[row]);
                        }
                    }
                    for row in 0..N {
                        totals[row] = _mm512_fmadd_ps(sums[row], scale, totals[row]);
                    }
                }
            }
            for (total, out) in totals.iter().zip(out) {
                // SAFETY: 64 bytes of the array.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *total) };
            }
        }

        /// Sums in f32.
        ///
        /// # Safety
        /// Inputs cover the matrix, and the tile exists.
        #[target_feature(enable = $features)]
        unsafe fn $float<const N: usize, const BITS: usize>(
            tiles: &Tiles,
            tile: usize,
            x: Group<'_>,
            out: &mut [[f32; ROWS]],
        ) {
            let (blocks, groups, per_group) = (tiles.blocks(), tiles.groups(), tiles.blocks_per_group);
            let start = Start::of(tiles, tile);
            let values = x.values.as_ptr();
            let mut totals = [_mm512_setzero_ps(); N];
            for group in 0..groups {
                // SAFETY: as above.
                unsafe {
                    let (scale, zero) = (scale!(start, group), start.zero(group));
                    let mut sums = [_mm512_setzero_ps(); N];
                    for block in group * per_group..((group + 1) * per_group).min(blocks) {
                        let registers = start.codes.add(block * BITS);
                        let values = values.add(block * N * BLOCK);
                        for q in 0..BLOCK / 4 {
                            let mut codes = $quad::<BITS>(registers, q);
                            for i in 4 * q..4 * q + 4 {
                                let code = _mm512_cvtepi32_ps(_mm512_and_si512(codes, _mm512_set1_epi32(255)));
                                codes = _mm512_srli_epi32::<8>(codes);
                                let weight = _mm512_sub_ps(code, zero);
                                for row in 0..N {
                                    sums[row] =
                                        _mm512_fmadd_ps(weight, _mm512_set1_ps(*values.add(i * N + row)), sums[row]);
                                }
                            }
                        }
                    }
                    for row in 0..N {
                        totals[row] = _mm512_fmadd_ps(sums[row], scale, totals[row]);
                    }
                }
            }
            for (total, out) in totals.iter().zip(out) {
                // SAFETY: 64 bytes of the array.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *total) };
            }
        }
    };
}
kernels!(quad: int8 with "avx512f,avx512bw,avx512vnni", float with "avx512f,avx512bw");
kernels!(
    quad_of_two: int8_two_of_four with "avx512f,avx512bw,avx512vnni,avx512vbmi2",
    float_two_of_four with "avx512f,avx512bw,avx512vbmi2"
);

/// A tile whose codes are unfolded to bytes, for many rows of inputs: unfolding costs as much as four rows, and a product with
/// bytes is little more than its multiplications.
///
/// Of whole numbers only. The zero points are in the sums from the start: `Σ (code − zero) · x = −zero · Σ x + Σ code · x`.
pub(super) struct Unfolded<'a> {
    tiles: &'a Tiles,
    /// Eight registers to a block.
    codes: Vec<Register>,
    /// Of every group.
    scales: Vec<[f32; ROWS]>,
    /// As the scales; empty where all are the middle of the grid.
    zeros: Vec<[i32; ROWS]>,
}

impl<'a> Unfolded<'a> {
    /// Room for a tile; `None` without the instructions.
    pub(super) fn new(tiles: &'a Tiles, arithmetic: Arithmetic) -> Option<Self> {
        (arithmetic == Arithmetic::Int8 && runs(tiles, arithmetic)).then(|| Self {
            tiles,
            codes: vec![Register::default(); tiles.blocks() * (BLOCK / 4)],
            scales: vec![[0.0; ROWS]; tiles.groups()],
            zeros: if tiles.zeros.is_some() { vec![[0; ROWS]; tiles.groups()] } else { vec![] },
        })
    }

    /// What the sums of a block start with, where its inputs' codes sum to `sum`, but for the zero points of rows.
    pub(super) fn start(tiles: &Tiles, sum: f32) -> i32 {
        let zero = if tiles.zeros.is_some() { 1 } else { i32::from(tiles.middle) };
        -zero * sum as i32
    }

    /// Unfolds a tile.
    pub(super) fn unfold(&mut self, tile: usize) {
        assert!(tile < self.tiles.tiles(), "a tile");
        // SAFETY: `new` found the features.
        unsafe {
            match self.tiles.width {
                TWO_OF_FOUR => self.unfold_two_of_four(tile),
                2 => self.unfold_width::<2>(tile),
                3 => self.unfold_width::<3>(tile),
                4 => self.unfold_width::<4>(tile),
                _ => self.unfold_width::<8>(tile),
            }
            self.unfold_groups(tile);
        }
    }

    #[allow(clippy::needless_range_loop, reason = "a loop of so many turns that the compiler unrolls it")]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn unfold_width<const BITS: usize>(&mut self, tile: usize) {
        let blocks = self.tiles.tile(tile).chunks_exact(BITS);
        for (bytes, block) in self.codes.as_chunks_mut::<{ BLOCK / 4 }>().0.iter_mut().zip(blocks) {
            for i in 0..BLOCK / 4 {
                // SAFETY: the block has its registers, and a register is 64 aligned bytes.
                unsafe { _mm512_store_si512(bytes[i].0.as_mut_ptr().cast(), quad::<BITS>(block.as_ptr(), i)) };
            }
        }
    }

    #[allow(clippy::needless_range_loop, reason = "a loop of so many turns that the compiler unrolls it")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
    fn unfold_two_of_four(&mut self, tile: usize) {
        let blocks = self.tiles.tile(tile).chunks_exact(3);
        for (bytes, block) in self.codes.as_chunks_mut::<{ BLOCK / 4 }>().0.iter_mut().zip(blocks) {
            for i in 0..BLOCK / 4 {
                // SAFETY: as above.
                unsafe { _mm512_store_si512(bytes[i].0.as_mut_ptr().cast(), quad_of_two::<3>(block.as_ptr(), i)) };
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn unfold_groups(&mut self, tile: usize) {
        let start = Start::of(self.tiles, tile);
        for (group, scales) in self.scales.iter_mut().enumerate() {
            // SAFETY: 16 scales to a group; 64 bytes of the array.
            unsafe { _mm512_storeu_ps(scales.as_mut_ptr(), scale!(start, group)) };
        }
        for (group, zeros) in self.zeros.iter_mut().enumerate() {
            // SAFETY: 16 zero points to a group; 64 bytes of the array.
            unsafe {
                _mm512_storeu_si512(zeros.as_mut_ptr().cast(), _mm512_cvtps_epi32(start.zero(group)));
            }
        }
    }

    /// As [`tile`], of the one that was unfolded; `starts` are those of the inputs' blocks.
    pub(super) fn multiply(&self, x: Group<'_>, starts: &[i32], out: &mut [[f32; ROWS]]) {
        let places = self.tiles.blocks() * x.width;
        assert!(starts.len() >= places && out.len() >= x.width, "inputs and outputs of the group");
        x.assert_covers(self.tiles.blocks(), Arithmetic::Int8);
        macro_rules! widths {
            ($one:literal, $zeros:literal) => {
                // SAFETY: `new` found the features, and all buffers were compared with the shape.
                unsafe {
                    match x.width {
                        1 => self.rows::<1, $one, $zeros>(x, starts, out),
                        2 => self.rows::<2, $one, $zeros>(x, starts, out),
                        3 => self.rows::<3, $one, $zeros>(x, starts, out),
                        4 => self.rows::<4, $one, $zeros>(x, starts, out),
                        5 => self.rows::<5, $one, $zeros>(x, starts, out),
                        6 => self.rows::<6, $one, $zeros>(x, starts, out),
                        7 => self.rows::<7, $one, $zeros>(x, starts, out),
                        _ => self.rows::<TOGETHER, $one, $zeros>(x, starts, out),
                    }
                }
            };
        }
        match (self.tiles.blocks_per_group == 1, !self.zeros.is_empty()) {
            (true, false) => widths!(true, false),
            (true, true) => widths!(true, true),
            (false, false) => widths!(false, false),
            (false, true) => widths!(false, true),
        }
    }

    /// # Safety
    /// Inputs and `starts` cover the matrix.
    #[allow(clippy::needless_range_loop, reason = "rows are places in several arrays")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn rows<const N: usize, const ONE: bool, const ZEROS: bool>(
        &self,
        x: Group<'_>,
        starts: &[i32],
        out: &mut [[f32; ROWS]],
    ) {
        let blocks = self.tiles.blocks();
        // Of groups of one block the compiler keeps every sum in a register.
        let per_group = if ONE { 1 } else { self.tiles.blocks_per_group };
        let (codes, x_scales, starts) = (x.codes.as_ptr(), x.scales.as_ptr(), starts.as_ptr());
        let mut totals = [_mm512_setzero_ps(); N];
        for group in 0..self.scales.len() {
            let mut sums = [_mm512_setzero_ps(); N];
            let end = if ONE { group + 1 } else { ((group + 1) * per_group).min(blocks) };
            // SAFETY: groups and blocks stay below those of the tile, which was unfolded whole; the inputs have `N` rows of as many
            // blocks.
            unsafe {
                for block in group * per_group..end {
                    let weights = self.codes.as_ptr().add(block * (BLOCK / 4));
                    let codes = codes.add(block * N * (BLOCK / 4)).cast::<i32>();
                    let mut dots = [_mm512_setzero_si512(); N];
                    for row in 0..N {
                        dots[row] = _mm512_set1_epi32(*starts.add(block * N + row));
                        if ZEROS {
                            // Both fit in 16 bits; the upper half of a zero point is nothing, and leaves out that of the start.
                            let zero = _mm512_loadu_si512(self.zeros.as_ptr().add(group).cast());
                            dots[row] = _mm512_madd_epi16(zero, dots[row]);
                        }
                    }
                    for q in 0..BLOCK / 4 {
                        let weights = _mm512_load_si512(weights.add(q).cast());
                        for row in 0..N {
                            let inputs = _mm512_set1_epi32(codes.add(q * N + row).read_unaligned());
                            dots[row] = _mm512_dpbusd_epi32(dots[row], weights, inputs);
                        }
                    }
                    for row in 0..N {
                        let scale = _mm512_set1_ps(*x_scales.add(block * N + row));
                        sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[row]), scale, sums[row]);
                    }
                }
                let scale = _mm512_loadu_ps(self.scales.as_ptr().add(group).cast());
                for row in 0..N {
                    totals[row] = _mm512_fmadd_ps(sums[row], scale, totals[row]);
                }
            }
        }
        for (total, out) in totals.iter().zip(out) {
            // SAFETY: 64 bytes of the array.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *total) };
        }
    }
}
