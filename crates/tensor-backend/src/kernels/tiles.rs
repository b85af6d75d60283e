//! Codes laid out for registers: a tile is 16 rows, and lane `r` of a 512-bit register always belongs to row `r` of its tile.
//! So no sum ever crosses lanes, and one product of registers serves 16 outputs.
//!
//! A block of 32 inputs of a tile is `bits` registers of 16 words. The word of a row holds `32 / bits` codes: code `4 q + j`
//! lies in byte `j`, `q · bits` bits up, so that shifting a register by `q · bits` and masking leaves the four bytes that
//! meet inputs `4 q … 4 q + 3`. Three bits are two registers of the low two bits and one of the high bits.
//!
//! Four bits of which two of four consecutive codes are the middle of the grid, as 2:4 pruning leaves them, take three
//! registers in place of four: two with the other codes, quad by quad, two to a row, the even quads in the low and the odd
//! ones in the high halves of the bytes; and one with 64 bits for every quad, which tell where of its four places each row's
//! two codes stand.

use half::{bf16, f16};
use kindling_core::pack::code_at;
use rayon::prelude::*;

use super::pages::Pages;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Inputs of a block.
pub const BLOCK: usize = 32;

/// The width of codes of four bits of which two of four are kept.
pub(super) const TWO_OF_FOUR: u8 = 24;

/// Registers of a block.
fn registers_of(width: u8) -> usize {
    if width == TWO_OF_FOUR { 3 } else { usize::from(width) }
}

/// Scales in the type they are stored in, tile by tile, group by group, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum TileScales {
    /// 4 bytes each.
    F32(Vec<f32>),
    /// 2 bytes each.
    F16(Vec<f16>),
    /// 2 bytes each.
    BF16(Vec<bf16>),
}

impl TileScales {
    pub(super) fn get(&self, i: usize) -> f32 {
        match self {
            TileScales::F32(scales) => scales[i],
            TileScales::F16(scales) => scales[i].to_f32(),
            TileScales::BF16(scales) => scales[i].to_f32(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            TileScales::F32(scales) => 4 * scales.len(),
            TileScales::F16(scales) => 2 * scales.len(),
            TileScales::BF16(scales) => 2 * scales.len(),
        }
    }
}

/// A register of codes: aligned, so that loads touch one line of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Register(pub [u32; ROWS]);

/// A matrix `[rows, cols]` of codes with `weight = scale · (code − zero)`.
#[derive(Debug, Clone)]
pub struct Tiles {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Bits as they are held, or [`TWO_OF_FOUR`].
    pub(super) width: u8,
    /// Blocks that share a scale.
    pub(super) blocks_per_group: usize,
    /// `[tiles, blocks, registers of a block]`.
    pub(super) codes: Pages<Register>,
    /// `[tiles, groups, 16]`.
    pub(super) scales: TileScales,
    /// As the scales; `None`: all `2^(bits − 1)` of the original width.
    pub(super) zeros: Option<Vec<u8>>,
    /// The zero point of a symmetric grid.
    pub(super) middle: u8,
    /// Which input stands at each place, where groups are not consecutive.
    pub(super) order: Option<Vec<u32>>,
}

/// What a matrix of codes is made of, row-major.
pub struct Source<'a> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Inputs of a group: whole blocks of 32, or all inputs.
    pub group: usize,
    /// The codes.
    pub codes: Codes<'a>,
    /// The zero point of a row and group; `None`: the middle of the grid.
    pub zero: Option<&'a (dyn Fn(usize, usize) -> u8 + Sync)>,
    /// Which input stands at each place.
    pub order: Option<Vec<u32>>,
}

/// Where codes come from.
#[derive(Clone, Copy)]
pub enum Codes<'a> {
    /// The code of a row and place.
    Function(&'a (dyn Fn(usize, usize) -> u8 + Sync)),
    /// Bit streams as [`kindling_core::pack`] writes them, a row from a new word on.
    Words(&'a [u32]),
}

impl Tiles {
    /// The widths that have a layout; codes of other widths are held in the next wider one.
    pub fn width_of(bits: u8) -> u8 {
        match bits {
            0..=2 => 2,
            3 => 3,
            4 => 4,
            _ => 8,
        }
    }

    /// Lays out a matrix. `scales` are `[tiles, groups, 16]`, zero for rows beyond the last.
    ///
    /// # Panics
    /// If groups are not whole blocks, or the numbers of scales do not fit.
    pub fn new(source: &Source<'_>, scales: TileScales) -> Self {
        let Source { rows, cols, bits, group, .. } = *source;
        assert!(group >= cols || group.is_multiple_of(BLOCK), "groups of whole blocks");
        let (tiles, blocks) = (rows.div_ceil(ROWS), cols.div_ceil(BLOCK));
        let blocks_per_group = if group >= cols { blocks.max(1) } else { group / BLOCK };
        let groups = blocks.div_ceil(blocks_per_group);
        let count = match &scales {
            TileScales::F32(scales) => scales.len(),
            TileScales::F16(scales) => scales.len(),
            TileScales::BF16(scales) => scales.len(),
        };
        assert_eq!(count, tiles * groups * ROWS, "scales");
        let width = Self::width_of(bits);
        let mut codes = Pages::<Register>::zeroed(tiles * blocks * registers_of(width));
        codes.par_chunks_mut((blocks * registers_of(width)).max(1)).enumerate().for_each(|(tile, registers)| {
            for lane in 0..ROWS.min(rows - tile * ROWS) {
                let row = tile * ROWS + lane;
                match source.codes {
                    Codes::Words(words) if width == bits && bits != 3 => {
                        let per_row = (cols * usize::from(bits)).div_ceil(32);
                        let words = words[row * per_row..][..per_row].iter();
                        words.zip(&mut *registers).for_each(|(&word, register)| register.0[lane] = spread(word, bits));
                    }
                    Codes::Words(words) => {
                        let per_row = (cols * usize::from(bits)).div_ceil(32);
                        let words = &words[row * per_row..][..per_row];
                        for place in 0..cols {
                            let registers = &mut registers[place / BLOCK * registers_of(width)..];
                            put(registers, width, lane, place % BLOCK, code_at(words, bits, place));
                        }
                    }
                    Codes::Function(code) => {
                        for place in 0..cols {
                            let registers = &mut registers[place / BLOCK * registers_of(width)..];
                            put(registers, width, lane, place % BLOCK, code(row, place));
                        }
                    }
                }
            }
        });
        let zeros = source.zero.map(|zero| {
            let at = |i: usize| (i / (groups * ROWS) * ROWS + i % ROWS, i / ROWS % groups);
            (0..tiles * groups * ROWS)
                .map(|i| {
                    let (row, group) = at(i);
                    if row < rows { zero(row, group) } else { 0 }
                })
                .collect()
        });
        let middle = 1u8 << (bits - 1);
        Self { rows, cols, width, blocks_per_group, codes, scales, zeros, middle, order: source.order.clone() }
    }

    /// The rows of all `parts`, one after the other; `None` where they do not fit together.
    pub fn stacked(parts: &[&Tiles]) -> Option<Self> {
        let (first, last) = (*parts.first()?, parts.len() - 1);
        let like_first = |part: &&Tiles| {
            (part.cols, part.width, part.blocks_per_group, part.middle)
                == (first.cols, first.width, first.blocks_per_group, first.middle)
                && part.order == first.order
                && part.zeros.is_some() == first.zeros.is_some()
        };
        let whole = parts[..last].iter().all(|part| part.rows.is_multiple_of(ROWS));
        if !whole || !parts.iter().all(like_first) {
            return None;
        }
        let (mut scales, mut zeros) = (first.scales.clone(), first.zeros.clone());
        for part in &parts[1..] {
            match (&mut scales, &part.scales) {
                (TileScales::F32(all), TileScales::F32(more)) => all.extend_from_slice(more),
                (TileScales::F16(all), TileScales::F16(more)) => all.extend_from_slice(more),
                (TileScales::BF16(all), TileScales::BF16(more)) => all.extend_from_slice(more),
                _ => return None,
            }
            if let (Some(all), Some(more)) = (&mut zeros, &part.zeros) {
                all.extend_from_slice(more);
            }
        }
        let codes: Vec<&[Register]> = parts.iter().map(|part| &part.codes[..]).collect();
        let rows = parts.iter().map(|part| part.rows).sum();
        let (cols, width, blocks_per_group, middle) = (first.cols, first.width, first.blocks_per_group, first.middle);
        let (codes, order) = (Pages::joined(&codes), first.order.clone());
        Some(Self { rows, cols, width, blocks_per_group, codes, scales, zeros, middle, order })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bits of a code as it is held.
    pub fn bits(&self) -> u8 {
        if self.width == TWO_OF_FOUR { 4 } else { self.width }
    }

    /// The same matrix without the half of its codes that is the middle of the grid; `None` where fewer than two of four
    /// consecutive codes are, or the grid is not of four bits around one middle.
    pub fn two_of_four(&self) -> Option<Self> {
        if self.width != 4 || self.zeros.is_some() {
            return None;
        }
        let kept = |codes: &[u8]| codes.iter().filter(|&&code| code != self.middle).count() <= 2;
        let fits = |row: usize| {
            (0..self.blocks()).all(|block| {
                let codes = codes_of::<4>(&self.tile(row / ROWS)[4 * block..][..4], row % ROWS);
                codes[..BLOCK.min(self.cols - block * BLOCK)].chunks(4).all(kept)
            })
        };
        if !(0..self.rows).into_par_iter().all(fits) {
            return None;
        }
        let (wide, narrow) = (4, registers_of(TWO_OF_FOUR));
        let mut codes = Pages::<Register>::zeroed(self.codes.len() / wide * narrow);
        let blocks = codes.par_chunks_mut(narrow).zip(self.codes.par_chunks(wide)).enumerate();
        blocks.for_each(|(i, (registers, dense))| {
            let inputs = BLOCK.min(self.cols - i % self.blocks() * BLOCK);
            for lane in 0..ROWS {
                let mut codes = codes_of::<4>(dense, lane);
                // What lies beyond the matrix is nothing to keep.
                codes[inputs..].fill(self.middle);
                if i / self.blocks() * ROWS + lane >= self.rows {
                    codes.fill(self.middle);
                }
                for (quad, codes) in codes.chunks(4).enumerate() {
                    put_two(registers, lane, quad, codes, self.middle);
                }
            }
        });
        Some(Self { width: TWO_OF_FOUR, codes, ..self.clone_without_codes() })
    }

    pub(super) fn clone_without_codes(&self) -> Self {
        let (scales, zeros, order) = (self.scales.clone(), self.zeros.clone(), self.order.clone());
        Self { codes: Pages::zeroed(0), scales, zeros, order, ..*self }
    }

    /// Bytes in memory, padding included.
    pub fn bytes(&self) -> usize {
        self.codes.len() * size_of::<Register>()
            + self.scales.bytes()
            + self.zeros.as_ref().map_or(0, Vec::len)
            + self.order.as_ref().map_or(0, |order| 4 * order.len())
    }

    /// Which input stands at each place; `None`: they are in order.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    pub(super) fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    pub(super) fn groups(&self) -> usize {
        self.blocks().div_ceil(self.blocks_per_group)
    }

    /// Tiles of 16 rows.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// The registers of a tile.
    pub(super) fn tile(&self, tile: usize) -> &[Register] {
        let size = self.blocks() * registers_of(self.width);
        &self.codes[tile * size..][..size]
    }

    /// The code of a place: the plain way to read what [`Tiles::new`] laid out.
    pub(super) fn code(&self, row: usize, place: usize) -> u8 {
        let registers = &self.tile(row / ROWS)[place / BLOCK * registers_of(self.width)..];
        if self.width == TWO_OF_FOUR {
            return get_of_two(registers, row % ROWS, place % BLOCK, self.middle);
        }
        get(registers, self.width, row % ROWS, place % BLOCK)
    }

    pub(super) fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales.get((row / ROWS * self.groups() + group) * ROWS + row % ROWS)
    }

    pub(super) fn zero(&self, row: usize, group: usize) -> u8 {
        let at = (row / ROWS * self.groups() + group) * ROWS + row % ROWS;
        self.zeros.as_ref().map_or(self.middle, |zeros| zeros[at])
    }

    /// One weight, by its place.
    pub(super) fn weight(&self, row: usize, place: usize) -> f32 {
        let group = place / BLOCK / self.blocks_per_group;
        self.scale(row, group) * (f32::from(self.code(row, place)) - f32::from(self.zero(row, group)))
    }

    /// All weights `[rows, cols]`, inputs in their own order.
    pub fn to_host(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        values.par_chunks_mut(self.cols.max(1)).enumerate().for_each(|(row, values)| match &self.order {
            None => self.unfold_row(row, values),
            Some(order) => order.iter().enumerate().for_each(|(at, &i)| values[i as usize] = self.weight(row, at)),
        });
        values
    }

    /// A row whose inputs stand in their own order.
    fn unfold_row(&self, row: usize, values: &mut [f32]) {
        let (width, lane) = (registers_of(self.width), row % ROWS);
        let per_group = self.blocks_per_group * BLOCK;
        let registers = self.tile(row / ROWS);
        for (group, values) in values.chunks_mut(per_group).enumerate() {
            let (scale, zero) = (self.scale(row, group), f32::from(self.zero(row, group)));
            for (block, values) in values.chunks_mut(BLOCK).enumerate() {
                let registers = &registers[(group * self.blocks_per_group + block) * width..][..width];
                let codes = match self.width {
                    2 => codes_of::<2>(registers, lane),
                    4 => codes_of::<4>(registers, lane),
                    8 => codes_of::<8>(registers, lane),
                    TWO_OF_FOUR => std::array::from_fn(|i| get_of_two(registers, lane, i, self.middle)),
                    _ => std::array::from_fn(|i| get(registers, self.width, lane, i)),
                };
                values.iter_mut().zip(codes).for_each(|(value, code)| *value = scale * (f32::from(code) - zero));
            }
        }
    }
}

/// The codes of a lane's block.
fn codes_of<const BITS: usize>(registers: &[Register], lane: usize) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for (register, codes) in registers.iter().zip(codes.chunks_mut(32 / BITS)) {
        let word = register.0[lane];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (word >> (8 * (i % 4) + BITS * (i / 4))) as u8 & (((1u32 << BITS) - 1) as u8);
        }
    }
    codes
}

/// A word of consecutive codes as a tile has it: code `4 q + j` in byte `j`, `q · bits` bits up.
fn spread(word: u32, bits: u8) -> u32 {
    match bits {
        // Nibbles of the two halves in turn.
        4 => {
            let apart = |half: u32| {
                let bytes = (half | half << 8) & 0x00ff_00ff;
                (bytes | bytes << 4) & 0x0f0f_0f0f
            };
            apart(word & 0xffff) | apart(word >> 16) << 4
        }
        // Rows and columns of a 4 × 4 matrix of two bits change places.
        2 => {
            let t = (word ^ word >> 6) & 0x00cc_00cc;
            let word = word ^ t ^ t << 6;
            let t = (word ^ word >> 12) & 0x0000_f0f0;
            word ^ t ^ t << 12
        }
        _ => word,
    }
}

/// Where a code of a width lies: register, bit of the word.
fn spot(width: u8, i: usize) -> (usize, u32) {
    let (per_word, bits) = (32 / usize::from(width), u32::from(width));
    let (word, i) = (i / per_word, i % per_word);
    (word, 8 * (i % 4) as u32 + bits * (i / 4) as u32)
}

/// Puts a quad of a lane of which at most two codes are not `middle`. Two are always kept: the place of a code follows from
/// the number of those before.
fn put_two(registers: &mut [Register], lane: usize, quad: usize, codes: &[u8], middle: u8) {
    let mut kept: Vec<usize> = (0..4).filter(|&j| codes[j] != middle).collect();
    kept.extend((0..4).filter(|&j| codes[j] == middle).take(2 - kept.len()));
    kept.sort_unstable();
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(registers);
    for (rank, &j) in kept.iter().enumerate() {
        bytes[32 * (quad / 2) + 2 * lane + rank] |= codes[j] << (4 * (quad % 2));
        let bit = 4 * lane + j;
        bytes[128 + 8 * quad + bit / 8] |= 1 << (bit % 8);
    }
}

/// The plain way to read what [`put_two`] put.
fn get_of_two(registers: &[Register], lane: usize, i: usize, middle: u8) -> u8 {
    let (quad, j) = (i / 4, i % 4);
    let bytes: &[u8] = bytemuck::cast_slice(registers);
    let mask = bytes[128 + 8 * quad + lane / 2] >> (4 * (lane % 2)) & 15;
    if mask >> j & 1 == 0 {
        return middle;
    }
    let rank = (mask & ((1 << j) - 1)).count_ones() as usize;
    bytes[32 * (quad / 2) + 2 * lane + rank] >> (4 * (quad % 2)) & 15
}

fn put(registers: &mut [Register], width: u8, lane: usize, i: usize, code: u8) {
    if width == 3 {
        let (word, bit) = spot(2, i);
        registers[word].0[lane] |= u32::from(code & 3) << bit;
        registers[2].0[lane] |= u32::from(code >> 2) << spot(1, i).1;
    } else {
        let (word, bit) = spot(width, i);
        registers[word].0[lane] |= u32::from(code) << bit;
    }
}

fn get(registers: &[Register], width: u8, lane: usize, i: usize) -> u8 {
    if width == 3 {
        let (word, bit) = spot(2, i);
        let low = registers[word].0[lane] >> bit & 3;
        return (low | (registers[2].0[lane] >> spot(1, i).1 & 1) << 2) as u8;
    }
    let (word, bit) = spot(width, i);
    (registers[word].0[lane] >> bit) as u8 & (((1u32 << width) - 1) as u8)
}
