//! `x · Wᵀ` over all tiles and rows, on the threads of the current pool.

use rayon::prelude::*;

use super::activations::{Activations, Arithmetic, TOGETHER};
use super::columns::Columns;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar;
use super::tiles::{ROWS, Tiles};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avx512::Unfolded};

/// Bytes of weights that a thread takes at a time at least.
const PART: usize = 1 << 16;
/// From so many bytes, times rows, on threads share the work: below, waking them takes longer.
const SHARED: usize = 1 << 20;
/// Rows of inputs that a thread takes at a time where there are many: their codes stay in the caches.
const ROWS_OF_PART: usize = 256;
/// Tiles whose outputs are put in place together, a few lines of the cache to a row.
const SIDE: usize = 4;

/// Outputs `[rows of x, rows of W]`. The result does not depend on the number of threads.
///
/// # Panics
/// If `x` and the matrix differ in width, or `out` in size.
pub fn product(tiles: &Tiles, x: &Activations, out: &mut [f32]) {
    let [outputs, inputs] = tiles.shape();
    assert_eq!((x.cols, out.len()), (inputs, x.rows * outputs), "a product of {} × {inputs} with {outputs}", x.rows);
    if out.is_empty() {
        return;
    }
    if x.rows <= TOGETHER {
        // Tiles meet all rows at once.
        let shared = x.rows * tiles.bytes() >= SHARED;
        return Columns::share(out, x.rows, tiles_of_part(tiles, x.rows) * ROWS, shared, |part, mut columns| {
            let first = part * tiles_of_part(tiles, x.rows);
            let mut found = [[0.0; ROWS]; TOGETHER];
            for i in 0..columns.width().div_ceil(ROWS) {
                one(tiles, first + i, x, 0, &mut found);
                found.iter().take(x.rows).enumerate().for_each(|(row, found)| put(columns.row(row, i * ROWS), found));
            }
        });
    }
    let many = Many::new(tiles, x);
    if x.rows >= ROWS_OF_PART / 4 * rayon::current_num_threads() {
        // Many rows: their inputs stay in a core's cache while the weights pass by.
        let rows = ROWS_OF_PART.min(x.rows.div_ceil(rayon::current_num_threads()).next_multiple_of(TOGETHER));
        out.par_chunks_mut(rows * outputs).enumerate().for_each(|(part, out)| {
            let mut found = [[[0.0; ROWS]; TOGETHER]; SIDE];
            let mut rooms: [Room<'_>; SIDE] = std::array::from_fn(|_| many.room());
            for first in (0..tiles.tiles()).step_by(SIDE) {
                let side = SIDE.min(tiles.tiles() - first);
                for (i, room) in rooms[..side].iter_mut().enumerate() {
                    many.unfold(room, first + i);
                }
                for (group, out) in out.chunks_mut(TOGETHER * outputs).enumerate() {
                    let places = first * ROWS..((first + side) * ROWS).min(outputs);
                    out.chunks_mut(outputs).for_each(|out| ask(&out[places.clone()]));
                    for (i, room) in rooms[..side].iter().enumerate() {
                        many.multiply(room, first + i, part * rows + group * TOGETHER, &mut found[i]);
                    }
                    for (row, out) in out.chunks_mut(outputs).enumerate() {
                        let found = found[..side].iter().enumerate();
                        found.for_each(|(i, found)| put(&mut out[(first + i) * ROWS..], &found[row]));
                    }
                }
            }
        });
        return;
    }
    let per_part = tiles_of_part(tiles, x.rows);
    Columns::share(out, x.rows, per_part * ROWS, true, |part, mut columns| {
        let (mut unfolded, mut found) = (many.room(), [[0.0; ROWS]; TOGETHER]);
        for i in 0..columns.width().div_ceil(ROWS) {
            many.unfold(&mut unfolded, part * per_part + i);
            for first in (0..x.rows).step_by(TOGETHER) {
                many.multiply(&unfolded, part * per_part + i, first, &mut found);
                let rows = TOGETHER.min(x.rows - first);
                found[..rows]
                    .iter()
                    .enumerate()
                    .for_each(|(row, found)| put(columns.row(first + row, i * ROWS), found));
            }
        }
    });
}

/// Tiles that a thread takes at a time: [`PART`] bytes of weights, fewer where more rows meet them.
fn tiles_of_part(tiles: &Tiles, rows: usize) -> usize {
    let tile_bytes = (tiles.bytes() / tiles.tiles()).max(1);
    (PART / rows).div_ceil(tile_bytes).max(1)
}

#[cfg(target_arch = "x86_64")]
type Room<'a> = Option<Unfolded<'a>>;
#[cfg(not(target_arch = "x86_64"))]
type Room<'a> = std::marker::PhantomData<&'a ()>;

/// More than one row of inputs: where there are more than are multiplied together, and a kernel for it, tiles are unfolded.
struct Many<'a> {
    tiles: &'a Tiles,
    x: &'a Activations,
    /// Of every block of the inputs, if tiles are unfolded.
    #[cfg(target_arch = "x86_64")]
    starts: Vec<i32>,
}

impl<'a> Many<'a> {
    fn new(tiles: &'a Tiles, x: &'a Activations) -> Self {
        Self {
            tiles,
            x,
            #[cfg(target_arch = "x86_64")]
            starts: x.sums.iter().map(|&sum| Unfolded::start(tiles, sum)).collect(),
        }
    }

    /// Room for an unfolded tile.
    fn room(&self) -> Room<'a> {
        #[cfg(target_arch = "x86_64")]
        return (self.x.rows > TOGETHER).then(|| Unfolded::new(self.tiles, self.x.arithmetic)).flatten();
        #[cfg(not(target_arch = "x86_64"))]
        std::marker::PhantomData
    }

    fn unfold(&self, room: &mut Room<'a>, tile: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(room) = room {
            room.unfold(tile);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (room, tile);
    }

    /// Outputs of the tile for the rows from `first` on, which is a multiple of [`TOGETHER`].
    fn multiply(&self, room: &Room<'a>, tile: usize, first: usize, out: &mut [[f32; ROWS]]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(room) = room {
            return room.multiply(self.x.group(first), &self.starts[first * self.x.blocks()..], out);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = room;
        one(self.tiles, tile, self.x, first, out);
    }
}

/// Asks for memory that is about to be written: rows lie far apart, and the processor would wait for every line.
fn ask(places: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    avx512::ask_to_write(places);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = places;
}

/// Puts the outputs of a tile in place; the last tile may reach beyond the row.
fn put(out: &mut [f32], found: &[f32; ROWS]) {
    // Of a size that the compiler knows: the move of a register in place of a call.
    match out.first_chunk_mut::<ROWS>() {
        Some(out) => *out = *found,
        None => out.copy_from_slice(&found[..out.len()]),
    }
}

fn one(tiles: &Tiles, tile: usize, x: &Activations, first: usize, out: &mut [[f32; ROWS]]) {
    let (group, arithmetic) = (x.group(first), x.arithmetic);
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::runs(tiles, arithmetic) {
            return avx512::tile(tiles, tile, group, arithmetic, out);
        }
        if avx2::runs(tiles) {
            return avx2::tile(tiles, tile, group, arithmetic, out);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if neon::runs(tiles) {
        return neon::tile(tiles, tile, group, arithmetic, out);
    }
    scalar::tile(tiles, tile, group, arithmetic, out);
}

/// As [`has_kernels`], for [`Tiles::two_of_four`].
pub fn has_two_of_four_kernels(arithmetic: Arithmetic) -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::available_for_two_of_four(arithmetic);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = arithmetic;
        false
    }
}

/// Whether rows are multiplied by kernels made for this processor.
pub fn has_kernels(arithmetic: Arithmetic) -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::available(arithmetic) || avx2::available();
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = arithmetic;
        cfg!(target_arch = "aarch64")
    }
}
