//! Rows of inputs as the kernels read them.

use rayon::prelude::*;

use super::tiles::BLOCK;
use crate::ops::simd::vectorised;

/// How inputs meet codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Inputs become 8-bit codes with a scale for every 32; sums of products are whole numbers. Error: that of rounding the
    /// inputs, half a step of `max |x| / 127` per block.
    #[default]
    Int8,
    /// Inputs stay as they are; error: that of adding in f32.
    F32,
}

/// Rows that are multiplied together: as many accumulators as registers hold.
pub const TOGETHER: usize = 8;

/// Rows of inputs, padded with zeros to whole blocks, in groups of [`TOGETHER`]: within a group the four inputs that meet one
/// word of a weight stand side by side for all its rows.
#[derive(Debug, Clone)]
pub struct Activations {
    /// How they are held.
    pub arithmetic: Arithmetic,
    /// Rows.
    pub rows: usize,
    /// Inputs of a row.
    pub cols: usize,
    /// Of every group, quad by quad, row by row: four codes.
    pub(super) codes: Vec<[i8; 4]>,
    /// Of every group, block by block, row by row: what a code counts.
    pub(super) scales: Vec<f32>,
    /// As `scales`: the sum of the codes of a block, a whole number.
    pub(super) sums: Vec<f32>,
    /// Of every group, input by input, row by row: values of [`Arithmetic::F32`].
    pub(super) values: Vec<f32>,
    /// A row in its order, padded.
    padded: Vec<f32>,
}

impl Activations {
    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// No rows yet.
    pub fn empty() -> Self {
        let (arithmetic, padded) = (Arithmetic::Int8, vec![]);
        Self { arithmetic, rows: 0, cols: 0, codes: vec![], scales: vec![], sums: vec![], values: vec![], padded }
    }

    /// Takes rows `[rows, cols]`; `order` says which input comes at each place, where a weight has its inputs in an order of
    /// its own.
    ///
    /// # Panics
    /// If `x` is not so many rows.
    pub fn new(x: &[f32], rows: usize, cols: usize, order: Option<&[u32]>, arithmetic: Arithmetic) -> Self {
        let mut made = Self::empty();
        made.set(x, rows, cols, order, arithmetic);
        made
    }

    /// As [`new`](Self::new), in the memory of what was held before.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn set(&mut self, x: &[f32], rows: usize, cols: usize, order: Option<&[u32]>, arithmetic: Arithmetic) {
        assert_eq!(x.len(), rows * cols, "inputs");
        (self.arithmetic, self.rows, self.cols) = (arithmetic, rows, cols);
        let blocks = cols.div_ceil(BLOCK);
        // A last group with fewer rows is as narrow as it is: nothing is computed for rows that are not there.
        let places = rows * blocks;
        match arithmetic {
            Arithmetic::Int8 => {
                self.codes.resize(places * BLOCK / 4, [0; 4]);
                self.scales.resize(places, 0.0);
                self.sums.resize(places, 0.0);
            }
            Arithmetic::F32 => self.values.resize(places * BLOCK, 0.0),
        }
        // Groups are apart in every buffer, so threads can fill them.
        let per_group = TOGETHER * blocks;
        let (codes, scales, sums, values) = (&mut self.codes, &mut self.scales, &mut self.sums, &mut self.values);
        let fill = |padded: &mut Vec<f32>, group: usize, mut places: Places<'_>| {
            let first = group * TOGETHER;
            let width = TOGETHER.min(rows - first);
            for row in 0..width {
                let source = &x[(first + row) * cols..][..cols];
                if order.is_none() && cols.is_multiple_of(BLOCK) {
                    places.put(width, row, source.as_chunks().0);
                    continue;
                }
                padded.clear();
                padded.resize(blocks * BLOCK, 0.0);
                match order {
                    None => padded[..cols].copy_from_slice(source),
                    Some(order) => padded.iter_mut().zip(order).for_each(|(x, &i)| *x = source[i as usize]),
                }
                places.put(width, row, padded.as_chunks().0);
            }
        };
        if rows <= TOGETHER {
            let places = match arithmetic {
                Arithmetic::Int8 => Places::Int8 { codes, scales, sums },
                Arithmetic::F32 => Places::F32(values),
            };
            return fill(&mut self.padded, 0, places);
        }
        match arithmetic {
            Arithmetic::Int8 => {
                let codes = codes.par_chunks_mut((per_group * BLOCK / 4).max(1));
                let scales = scales.par_chunks_mut(per_group.max(1));
                let sums = sums.par_chunks_mut(per_group.max(1));
                let groups = codes.zip(scales).zip(sums).enumerate();
                groups.for_each_init(Vec::new, |padded, (group, ((codes, scales), sums))| {
                    fill(padded, group, Places::Int8 { codes, scales, sums });
                });
            }
            Arithmetic::F32 => {
                let groups = values.par_chunks_mut((per_group * BLOCK).max(1)).enumerate();
                groups.for_each_init(Vec::new, |padded, (group, values)| fill(padded, group, Places::F32(values)));
            }
        }
    }

    /// What a kernel sees of rows `first..`: its group begins at a multiple of [`TOGETHER`].
    pub(super) fn group(&self, first: usize) -> Group<'_> {
        let blocks = self.blocks();
        let (width, base) = (TOGETHER.min(self.rows - first), first * blocks);
        let range = base..base + width * blocks;
        let by = |n: usize| range.start * n..range.end * n;
        match self.arithmetic {
            Arithmetic::Int8 => Group {
                width,
                codes: &self.codes[by(BLOCK / 4)],
                scales: &self.scales[range.clone()],
                sums: &self.sums[range],
                values: &[],
            },
            Arithmetic::F32 => Group { width, codes: &[], scales: &[], sums: &[], values: &self.values[by(BLOCK)] },
        }
    }
}

/// Where a group of rows is put.
enum Places<'a> {
    Int8 { codes: &'a mut [[i8; 4]], scales: &'a mut [f32], sums: &'a mut [f32] },
    F32(&'a mut [f32]),
}

impl Places<'_> {
    /// Stores one of `width` rows.
    fn put(&mut self, width: usize, row: usize, x: &[[f32; BLOCK]]) {
        match self {
            Places::Int8 { codes, scales, sums } => quantise(x, width, row, codes, scales, sums),
            Places::F32(values) => {
                let places = values[row..].iter_mut().step_by(width);
                places.zip(x.as_flattened()).for_each(|(place, &x)| *place = x);
            }
        }
    }
}

/// Rows that are multiplied together.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) width: usize,
    pub(super) codes: &'a [[i8; 4]],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
    pub(super) values: &'a [f32],
}

impl Group<'_> {
    /// The loads of a kernel reach these ends and no further.
    ///
    /// # Panics
    /// If a buffer is shorter than a matrix of `blocks` is wide.
    pub(super) fn assert_covers(&self, blocks: usize, arithmetic: Arithmetic) {
        let places = blocks * self.width;
        let enough = match arithmetic {
            Arithmetic::Int8 => {
                self.codes.len() >= places * (BLOCK / 4) && self.scales.len() >= places && self.sums.len() >= places
            }
            Arithmetic::F32 => self.values.len() >= places * BLOCK,
        };
        assert!(enough && (1..=TOGETHER).contains(&self.width), "inputs shorter than the matrix is wide");
    }
}

vectorised! {
    /// Of every block codes between −127 and 127, what one of them counts, and their sum: into the places of one of `width` rows.
    fn quantise(
        x: &[[f32; BLOCK]],
        width: usize,
        row: usize,
        codes: &mut [[i8; 4]],
        scales: &mut [f32],
        sums: &mut [f32],
    ) {
        let _ = FMA;
        let scales = scales[row..].iter_mut().step_by(width);
        let sums = sums[row..].iter_mut().step_by(width);
        let blocks = x.iter().zip(codes.chunks_mut(width * BLOCK / 4));
        for (((x, codes), to_scale), to_sum) in blocks.zip(scales).zip(sums) {
            let mut largest = [0.0f32; BLOCK / 2];
            for (i, largest) in largest.iter_mut().enumerate() {
                let (a, b) = (x[i].abs(), x[i + BLOCK / 2].abs());
                *largest = if a > b { a } else { b };
            }
            let scale = largest.iter().fold(0.0f32, |largest, &x| if x > largest { x } else { largest }) / 127.0;
            // Of a block of zeros, and of one so small that its scale is not: zeros.
            let inverse = scale.recip();
            let inverse = if inverse.is_finite() { inverse } else { 0.0 };
            // Adding 1.5 · 2²³ rounds to the nearest whole number, halves to even, and leaves it in the low bits.
            const ROUND: f32 = 12_582_912.0;
            let mut found = [0i8; BLOCK];
            let mut sum = 0;
            for (code, x) in found.iter_mut().zip(x) {
                let whole = ((x * inverse + ROUND).to_bits() as i32) << 9 >> 9;
                *code = whole as i8;
                sum += i32::from(*code);
            }
            (*to_scale, *to_sum) = (scale, sum as f32);
            for (quad, found) in found.as_chunks::<4>().0.iter().enumerate() {
                codes[quad * width + row] = *found;
            }
        }
    }
}
