//! Look-up tables: codes of a few bits as bit planes, whose sums with inputs are looked up in place of multiplied.
//!
//! Of every four inputs `x` there is a table of the 16 sums `½ Σ ± x`, rounded to 8 bits with one scale for every 32 inputs. Four
//! bits of a plane, one for each input, are a place in it. With `B = ±1` for a bit of 1 or 0, a code is
//! `Σ 2^p ½ (B + 1)`, so that
//!
//! `Σ (code − zero) · x = Σ 2^p (½ Σ B · x) + (½ (2^bits − 1) − zero) Σ x`.
//!
//! Error: half a step of a table for each look-up, which counts as much as its plane. The work grows with the bits; that of
//! [`tiles`](super::tiles) with the inputs. As measured (`docs/speed.md`) the latter is faster at every width with VNNI, and no slower
//! with AVX2 but for 3 bits from the cache, so no format asks for this kernel. Sources: Park et al., "LUT-GEMM", arXiv 2206.09557;
//! Wei et al., "T-MAC", arXiv 2407.00088.
//!
//! A block of 32 inputs of a tile of 16 rows is 64 bytes for each plane: in turn 16 bytes, one for each row, with places in tables
//! 0 (low half of the byte) and 2 (high half), in 1 and 3, in 4 and 6, in 5 and 7. So the tables that an instruction needs lie side
//! by side, too.

use rayon::prelude::*;

use super::pages::Pages;
use super::tiles::{BLOCK, ROWS, Register, TWO_OF_FOUR, Tiles};
use crate::ops::simd::vectorised;

/// Bytes of weights that a thread takes at a time at least.
const PART: usize = 1 << 16;
/// Inputs of a table.
const CHUNK: usize = 4;
/// Sums of a table.
const SUMS: usize = 1 << CHUNK;
/// Rows of inputs that meet a tile in turn.
const TOGETHER: usize = 4;

/// A matrix of codes as bit planes.
#[derive(Debug, Clone)]
pub struct Planes {
    /// Shape, scales and zero points; no codes.
    grid: Tiles,
    /// `[tiles, blocks, bits]`.
    planes: Pages<Register>,
}

impl Planes {
    /// Lays out codes of up to four bits; `None` for wider ones, for those of which half are pruned, and for inputs in an order
    /// of their own.
    pub fn new(tiles: &Tiles) -> Option<Self> {
        let bits = usize::from(tiles.width);
        if tiles.width == TWO_OF_FOUR || bits > 4 || tiles.order.is_some() {
            return None;
        }
        let mut planes = Pages::<Register>::zeroed(tiles.tiles() * tiles.blocks() * bits);
        planes.par_chunks_mut((tiles.blocks() * bits).max(1)).enumerate().for_each(|(tile, planes)| {
            for (block, planes) in planes.chunks_mut(bits).enumerate() {
                for lane in 0..ROWS.min(tiles.rows - tile * ROWS) {
                    for i in 0..BLOCK.min(tiles.cols - block * BLOCK) {
                        let code = u32::from(tiles.code(tile * ROWS + lane, block * BLOCK + i));
                        let (byte, shift) = place(lane, i / CHUNK);
                        for (p, plane) in planes.iter_mut().enumerate() {
                            bytemuck::bytes_of_mut(plane)[byte] |= ((code >> p & 1) << (shift + i % CHUNK)) as u8;
                        }
                    }
                }
            }
        });
        Some(Self { grid: tiles.clone_without_codes(), planes })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.grid.shape()
    }

    /// Bytes in memory, padding included.
    pub fn bytes(&self) -> usize {
        self.grid.bytes() + size_of_val(&self.planes[..])
    }

    fn bits(&self) -> usize {
        usize::from(self.grid.width)
    }

    fn tile(&self, tile: usize) -> &[Register] {
        let size = self.grid.blocks() * self.bits();
        &self.planes[tile * size..][..size]
    }

    /// What the sum of a block's inputs counts: the zero point, less what the planes leave out.
    fn zero(&self, row: usize, group: usize) -> f32 {
        f32::from(self.grid.zero(row, group)) - 0.5 * ((1 << self.bits()) - 1) as f32
    }
}

/// The byte of a plane, and the bit of it, at which a row's place in a table begins.
fn place(lane: usize, chunk: usize) -> (usize, usize) {
    (32 * (chunk / 4) + 16 * (chunk % 2) + lane, 4 * (chunk / 2 % 2))
}

/// The eight tables of a block.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Tables([[i8; SUMS]; BLOCK / CHUNK]);

/// Tables of rows of inputs, padded with zeros to whole blocks.
#[derive(Debug, Clone)]
pub struct Lookups {
    rows: usize,
    cols: usize,
    /// `[rows, blocks]`.
    tables: Vec<Tables>,
    /// What a step of a block's tables counts.
    scales: Vec<f32>,
    /// Sums of a block's inputs.
    sums: Vec<f32>,
}

impl Lookups {
    /// Takes rows `[rows, cols]`.
    ///
    /// # Panics
    /// If there are not as many inputs.
    pub fn new(x: &[f32], rows: usize, cols: usize) -> Self {
        assert_eq!(x.len(), rows * cols, "inputs");
        let blocks = cols.div_ceil(BLOCK);
        let mut tables = vec![Tables([[0; SUMS]; BLOCK / CHUNK]); rows * blocks];
        let (mut scales, mut sums) = (vec![0.0; rows * blocks], vec![0.0; rows * blocks]);
        let places = tables.par_chunks_mut(blocks.max(1)).zip(scales.par_chunks_mut(blocks.max(1)));
        let places = places.zip(sums.par_chunks_mut(blocks.max(1))).zip(x.par_chunks(cols.max(1)));
        places.for_each(|(((tables, scales), sums), x)| tabulate(x, tables, scales, sums));
        Self { rows, cols, tables, scales, sums }
    }
}

vectorised! {
    fn tabulate(x: &[f32], tables: &mut [Tables], scales: &mut [f32], sums: &mut [f32]) {
        let _ = FMA;
        const HALVES: [[f32; SUMS]; CHUNK] = {
            let mut halves = [[-0.5; SUMS]; CHUNK];
            let mut place = 0;
            while place < CHUNK * SUMS {
                if (place % SUMS) >> (place / SUMS) & 1 == 1 {
                    halves[place / SUMS][place % SUMS] = 0.5;
                }
                place += 1;
            }
            halves
        };
        let blocks = tables.iter_mut().zip(scales).zip(sums);
        for (((tables, scale), sum), x) in blocks.zip(x.chunks(BLOCK)) {
            let mut block = [0.0; BLOCK];
            block[..x.len()].copy_from_slice(x);
            let chunks = block.as_chunks::<CHUNK>().0;
            // No sum of a table exceeds half of the sum of sizes.
            let largest = |largest: f32, x: &[f32; CHUNK]| {
                let size = 0.5 * ((x[0].abs() + x[1].abs()) + (x[2].abs() + x[3].abs()));
                if size > largest { size } else { largest }
            };
            *scale = chunks.iter().fold(0.0, largest) / 127.0;
            *sum = chunks.iter().map(|x| (x[0] + x[1]) + (x[2] + x[3])).sum();
            // Of a block of zeros, and of one so small that its scale is not: zeros.
            let inverse = scale.recip();
            let inverse = if inverse.is_finite() { inverse } else { 0.0 };
            // Adding 1.5 · 2²³ rounds to the nearest whole number, halves to even, and leaves it in the low bits.
            const ROUND: f32 = 12_582_912.0;
            for (table, x) in tables.0.iter_mut().zip(chunks) {
                for (place, entry) in table.iter_mut().enumerate() {
                    let low = HALVES[0][place] * x[0] + HALVES[1][place] * x[1];
                    let high = HALVES[2][place] * x[2] + HALVES[3][place] * x[3];
                    *entry = ((low + high) * inverse + ROUND).to_bits() as i8;
                }
            }
        }
    }
}

/// Outputs `[rows of x, rows of W]`. The result does not depend on the number of threads, and that of a row not on the others.
///
/// # Panics
/// If `x` and the matrix differ in width, or `out` in size.
pub fn product(planes: &Planes, x: &Lookups, out: &mut [f32]) {
    let [outputs, inputs] = planes.shape();
    assert_eq!((x.cols, out.len()), (inputs, x.rows * outputs), "a product of {} × {inputs} with {outputs}", x.rows);
    if out.is_empty() {
        return;
    }
    let per_part = PART.div_ceil((planes.bytes() / planes.grid.tiles()).max(1));
    // Part by part, so that threads write apart; put in order below.
    let rows = per_part * ROWS;
    let multiply = |part: usize, sums: &mut [f32]| {
        let outputs = sums.len() / x.rows;
        for place in (0..outputs).step_by(ROWS) {
            for first in (0..x.rows).step_by(TOGETHER) {
                let mut found = [[0.0; ROWS]; TOGETHER];
                tile(planes, part * per_part + place / ROWS, x, first, &mut found);
                for (row, found) in (first..x.rows).zip(&found) {
                    let there = ROWS.min(outputs - place);
                    sums[row * outputs + place..][..there].copy_from_slice(&found[..there]);
                }
            }
        }
    };
    if x.rows == 1 {
        return out.par_chunks_mut(rows).enumerate().for_each(|(part, out)| multiply(part, out));
    }
    let mut parts = vec![0.0; out.len()];
    parts.par_chunks_mut(x.rows * rows).enumerate().for_each(|(part, out)| multiply(part, out));
    out.par_chunks_mut(outputs).enumerate().for_each(|(row, out)| {
        for (part, out) in parts.chunks(x.rows * rows).zip(out.chunks_mut(rows)) {
            out.copy_from_slice(&part[row * out.len()..][..out.len()]);
        }
    });
}

/// Outputs of a tile for up to [`TOGETHER`] rows of inputs from `first` on.
fn tile(planes: &Planes, tile: usize, x: &Lookups, first: usize, out: &mut [[f32; ROWS]; TOGETHER]) {
    #[cfg(target_arch = "x86_64")]
    if avx2::available() {
        return avx2::tile(planes, tile, x, first, out);
    }
    tile_plain(planes, tile, x, first, out);
}

/// The plain twin: the same sums in the same order.
fn tile_plain(planes: &Planes, tile: usize, x: &Lookups, first: usize, out: &mut [[f32; ROWS]; TOGETHER]) {
    let (grid, bits) = (&planes.grid, planes.bits());
    let registers = planes.tile(tile);
    for (row, out) in (first..x.rows).zip(out) {
        for (lane, out) in out.iter_mut().enumerate().take(grid.rows - tile * ROWS) {
            let mut total = 0.0f32;
            for group in 0..grid.groups() {
                let zero = planes.zero(tile * ROWS + lane, group);
                let mut sum = 0.0f32;
                for block in
                    (group * grid.blocks_per_group..).take(grid.blocks_per_group).take_while(|&b| b < grid.blocks())
                {
                    let at = row * grid.blocks() + block;
                    let looked_up = |plane: &Register, chunk: usize| {
                        let (byte, shift) = place(lane, chunk);
                        let place = bytemuck::bytes_of(plane)[byte] >> shift & 15;
                        i32::from(x.tables[at].0[chunk][usize::from(place)])
                    };
                    let plane = |p: usize| -> i32 {
                        let plane = &registers[block * bits + p];
                        (0..BLOCK / CHUNK).map(|chunk| looked_up(plane, chunk)).sum::<i32>() << p
                    };
                    let dot: i32 = (0..bits).map(plane).sum();
                    sum = (dot as f32).mul_add(x.scales[at], sum);
                    sum = (-zero).mul_add(x.sums[at], sum);
                }
                total = sum.mul_add(grid.scale(tile * ROWS + lane, group), total);
            }
            *out = total;
        }
    }
}

/// Each half of a register is looked up in a table of its own.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "loads take pointers")]
mod avx2 {
    use std::arch::x86_64::*;

    pub(super) use super::super::avx2::available;
    use super::super::avx2::grid;
    use super::*;

    /// As [`tile_plain`].
    ///
    /// # Panics
    /// If the processor does not have the instructions, or there is no such tile or row.
    pub(super) fn tile(planes: &Planes, tile: usize, x: &Lookups, first: usize, out: &mut [[f32; ROWS]; TOGETHER]) {
        let blocks = planes.grid.blocks();
        assert!(available() && tile < planes.grid.tiles() && first < x.rows, "instructions, tile and row");
        let places = [x.tables.len(), x.scales.len(), x.sums.len()];
        assert_eq!(places, [x.rows * blocks; 3], "as many tables as blocks");
        for (row, out) in (first..x.rows).zip(out) {
            // SAFETY: the features were found above, and all buffers were compared with the shape.
            unsafe {
                match planes.bits() {
                    2 => sums::<2>(planes, tile, x, row, out),
                    3 => sums::<3>(planes, tile, x, row, out),
                    _ => sums::<4>(planes, tile, x, row, out),
                }
            }
        }
    }

    /// # Safety
    /// The inputs have the row, as wide as the matrix, and the tile exists.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sums<const BITS: usize>(planes: &Planes, tile: usize, x: &Lookups, row: usize, out: &mut [f32; ROWS]) {
        let (blocks, groups, per_group) = (planes.grid.blocks(), planes.grid.groups(), planes.grid.blocks_per_group);
        let registers = planes.tile(tile).as_ptr();
        let left_out = _mm256_set1_ps(0.5 * ((1 << BITS) - 1) as f32);
        let places = _mm256_set1_epi8(15);
        let at = row * blocks;
        let (tables, scales, sums_of) = (x.tables[at..].as_ptr(), x.scales[at..].as_ptr(), x.sums[at..].as_ptr());
        let mut totals = [_mm256_setzero_ps(); 2];
        for group in 0..groups {
            // SAFETY: groups and blocks stay below those of the tile, which has 16 scales to a group; the row of inputs has as many
            // blocks.
            unsafe {
                let first = (tile * groups + group) * ROWS;
                let grids = [grid(&planes.grid, first), grid(&planes.grid, first + 8)];
                let zeros = [_mm256_sub_ps(grids[0].1, left_out), _mm256_sub_ps(grids[1].1, left_out)];
                let mut sums = [_mm256_setzero_ps(); 2];
                for block in group * per_group..((group + 1) * per_group).min(blocks) {
                    // In 16 bits: no more than 8 · 15 · 127. Of each half of the rows those of even and of odd tables.
                    let mut dots = [_mm256_setzero_si256(); 2];
                    for half in 0..2 {
                        let table = tables.add(block).cast::<__m256i>().add(2 * half);
                        let (even, odd) = (_mm256_load_si256(table), _mm256_load_si256(table.add(1)));
                        for p in 0..BITS {
                            let plane = registers.add(block * BITS + p).cast::<__m256i>().add(half);
                            let plane = _mm256_load_si256(plane);
                            let low = _mm256_and_si256(plane, places);
                            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(plane), places);
                            let (low, high) = (_mm256_shuffle_epi8(even, low), _mm256_shuffle_epi8(odd, high));
                            let counts = _mm256_set1_epi8(1 << p);
                            let pairs = [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)];
                            for i in 0..2 {
                                dots[i] = _mm256_add_epi16(dots[i], _mm256_maddubs_epi16(counts, pairs[i]));
                            }
                        }
                    }
                    let (scale, sum) = (_mm256_set1_ps(*scales.add(block)), _mm256_set1_ps(*sums_of.add(block)));
                    for i in 0..2 {
                        let dot =
                            _mm_add_epi16(_mm256_castsi256_si128(dots[i]), _mm256_extracti128_si256::<1>(dots[i]));
                        let dot = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(dot));
                        sums[i] = _mm256_fmadd_ps(dot, scale, sums[i]);
                        sums[i] = _mm256_fnmadd_ps(zeros[i], sum, sums[i]);
                    }
                }
                for i in 0..2 {
                    totals[i] = _mm256_fmadd_ps(sums[i], grids[i].0, totals[i]);
                }
            }
        }
        // SAFETY: the array has room for both registers.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), totals[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), totals[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tiles::{Codes, Source, TileScales};
    use super::*;

    fn tiles(rows: usize, cols: usize, bits: u8, group: usize, zeros: bool) -> Tiles {
        let group = if group == 0 { cols } else { group };
        let code = move |row: usize, i: usize| ((row * 31 + i * 17 + row * i % 7) % (1 << bits)) as u8;
        let zero = move |row: usize, group: usize| ((row * 5 + group * 3) % (1 << bits)) as u8;
        let scales =
            (0..rows.next_multiple_of(ROWS) * cols.div_ceil(group)).map(|i| 0.01 + (i % 7) as f32 * 1e-3).collect();
        let zero = if zeros { Some(&zero as &(dyn Fn(usize, usize) -> u8 + Sync)) } else { None };
        let source = Source { rows, cols, bits, group, codes: Codes::Function(&code), zero, order: None };
        Tiles::new(&source, TileScales::F32(scales))
    }

    #[test]
    fn tables_and_sums_are_worked_numbers() {
        // Sums of ± x, twice those of a table.
        let x = [1.0f32, -2.0, 0.5, 3.0];
        let sums = [-2.5, -0.5, -6.5, -4.5, -1.5, 0.5, -5.5, -3.5, 3.5, 5.5, -0.5, 1.5, 4.5, 6.5, 0.5, 2.5f32];
        let lookups = Lookups::new(&x, 1, 4);
        assert_eq!((lookups.scales[0], lookups.sums[0]), (0.5 * 6.5 / 127.0, 2.5));
        assert_eq!(lookups.tables[0].0[0], sums.map(|sum| (sum * 127.0 / 6.5).round() as i8));
        // Planes 13 and 6 with ½ and a zero point of 1: ¼ · 6.5 + ½ · −5.5 + ¼ · 2.5.
        let code = |_: usize, i: usize| [1, 2, 3, 1][i];
        fn source(codes: Codes<'_>) -> Source<'_> {
            Source { rows: 1, cols: 4, bits: 2, group: 4, codes, zero: Some(&|_, _| 1), order: None }
        }
        let half = || TileScales::F32([[0.5].as_slice(), &[0.0; ROWS - 1]].concat());
        let planes = Planes::new(&Tiles::new(&source(Codes::Function(&code)), half())).unwrap();
        assert_eq!(planes.planes[0].0[0] & 15, 13);
        assert_eq!(planes.planes[1].0[0] & 15, 6);
        let mut out = [0.0];
        product(&planes, &lookups, &mut out);
        assert!((out[0] + 0.5).abs() <= (0.25 + 0.5) * lookups.scales[0], "{}", out[0]);
        // Codes 0 to 3 are −½, 0, ½ and 1.
        for (code, expected) in [-0.5, 0.0, 0.5, 1.0f32].into_iter().enumerate() {
            let code = move |_: usize, i: usize| if i == 0 { code as u8 } else { 1 };
            let planes = Planes::new(&Tiles::new(&source(Codes::Function(&code)), half())).unwrap();
            product(&planes, &Lookups::new(&[1.0, 0.0, 0.0, 0.0], 1, 4), &mut out);
            assert!((out[0] - expected).abs() <= 1e-6, "{}", out[0]);
        }
    }

    #[test]
    fn threads_and_other_rows_do_not_change_a_bit() {
        let (outputs, inputs) = if cfg!(miri) { (20, 70) } else { (1000, 256) };
        let planes = Planes::new(&tiles(outputs, inputs, 2, 64, true)).unwrap();
        let x: Vec<f32> = (0..5 * inputs).map(|i| ((i * 53 % 97) as f32 - 48.0) / 29.0).collect();
        let with = |threads: usize, rows: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; rows * outputs];
            pool.install(|| product(&planes, &Lookups::new(&x[..rows * inputs], rows, inputs), &mut out));
            out
        };
        assert_eq!(with(1, 5), with(3, 5));
        assert_eq!(with(1, 1), with(1, 5)[..outputs]);
    }

    #[test]
    fn what_has_no_planes_is_refused() {
        assert!(Planes::new(&tiles(3, 40, 8, 0, false)).is_none());
        let mut moved = tiles(3, 40, 2, 0, false);
        moved.order = Some((0..40).rev().collect());
        assert!(Planes::new(&moved).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 48 }) })]
        #[test]
        fn look_ups_are_products(
            outputs in 1usize..70, inputs in 1usize..200, bits in 1u8..=4, wide in 0usize..3, zeros: bool, rows in 1usize..12,
        ) {
            let tiles = tiles(outputs, inputs, bits, [0, 32, 64][wide], zeros);
            let planes = Planes::new(&tiles).unwrap();
            let x: Vec<f32> = (0..rows * inputs).map(|i| ((i * 53 % 97) as f32 - 48.0) / 29.0).collect();
            let lookups = Lookups::new(&x, rows, inputs);
            let mut out = vec![f32::NAN; rows * outputs];
            product(&planes, &lookups, &mut out);
            for (at, row) in (0..tiles.tiles()).flat_map(|tile| (0..rows).step_by(TOGETHER).map(move |row| (tile, row))) {
                let mut plain = [[0.0; ROWS]; TOGETHER];
                tile_plain(&planes, at, &lookups, row, &mut plain);
                for (row, plain) in (row..rows).zip(plain) {
                    let there = ROWS.min(outputs - at * ROWS);
                    prop_assert_eq!(&out[row * outputs + at * ROWS..][..there], &plain[..there]);
                }
            }
            let weights = tiles.to_host();
            for (i, found) in out.iter().enumerate() {
                let (row, output) = (i / outputs, i % outputs);
                let x = &x[row * inputs..][..inputs];
                let (mut exact, mut size, mut bound) = (0.0, 0.0, 0.0);
                for (block, x) in x.chunks(BLOCK).enumerate() {
                    let group = block / tiles.blocks_per_group;
                    for (i, &x) in x.iter().enumerate() {
                        let term = f64::from(weights[output * inputs + block * BLOCK + i]) * f64::from(x);
                        exact += term;
                        // Rounding in f32: of the planes and of what they leave out.
                        size += f64::from(tiles.scale(output, group)) * f64::from(x.abs()) * 32.0;
                    }
                    // Every look-up is off by half a step at most, and counts as much as its plane.
                    let steps = 0.5 * 8.0 * f64::from((1 << tiles.width) - 1);
                    bound += steps * f64::from(tiles.scale(output, group) * lookups.scales[row * lookups.cols.div_ceil(BLOCK) + block]);
                }
                prop_assert!((f64::from(*found) - exact).abs() <= 1.001 * bound + 1e-6 * size, "{found} {exact} {bound}");
            }
        }
    }
}
