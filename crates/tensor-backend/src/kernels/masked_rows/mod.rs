//! A pruned matrix in bf16, f16 or f32: one bit per weight says whether it is kept, and the kept values follow each other.
//! With half of the weights pruned that is 9 bits a weight in place of 16.
//!
//! Four rows are a tile. For every 32 inputs, a *word*, each row of a tile has a mask of 32 bits, and the values of all four
//! follow those of the words before, row by row: a tile is read in one go from front to back, whatever its rows keep. A few
//! rows of inputs meet values that are expanded in registers; for many, stretches of the matrix are unfolded into a buffer that
//! stays in the cache.
//!
//! Of 16-bit values the two halves of a word take turns: bits `2 c` and `2 c + 1` of a mask are inputs `c` and `16 + c`. So
//! neighbours after expansion are the halves of one lane, and each is widened by one instruction.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kept;

use half::{bf16, f16};
use rayon::prelude::*;

use self::kept::Kept;
use super::columns::{Columns, Stretch};
use super::pages::Pages;
use crate::ops::simd::{LANES, mul_add, vectorised};
use crate::ops::tile::{Mat, product};

/// Bytes of weights that a thread takes at a time at least.
const PART: usize = 1 << 16;
/// From so many bytes, times rows, on threads share the work: below, waking them takes longer.
const SHARED: usize = 1 << 19;
/// Up to so many rows of inputs reading the matrix takes longer than multiplying it.
const FEW_ROWS: usize = 32;
/// Tiles that are unfolded at a time where there are more.
const SLAB: usize = 24;
/// Up to so large a share of kept values one row of inputs meets them sooner than all values in 16 bits, as measured.
const MOST_KEPT: f64 = 0.55;
/// Rows of a tile.
const ROWS: usize = 4;
/// Inputs that share a mask.
const WORD: usize = 32;
/// Values beyond the last: kernels load whole registers.
const MARGIN: usize = 64 / size_of::<u16>();

/// The masks of a word.
type Masks = [u32; ROWS];

/// A tile as kernels take it.
#[derive(Clone, Copy)]
struct Tile<'a, T> {
    masks: &'a [Masks],
    /// Those that the masks keep, and a margin.
    values: &'a [T],
    /// Inputs: those of the masks but for the last ones.
    cols: usize,
}

/// `[rows, cols]`.
#[derive(Debug, Clone)]
pub struct MaskedRows {
    rows: usize,
    cols: usize,
    /// `[tiles, words]`; nothing is kept beyond the last row and the last input.
    masks: Pages<Masks>,
    /// The first value of every tile, and the end.
    starts: Vec<usize>,
    values: Values,
}

/// Kept values, and as many zeros after them as a kernel may load.
#[derive(Debug, Clone)]
enum Values {
    BF16(Pages<bf16>),
    F16(Pages<f16>),
    F32(Pages<f32>),
}

/// Calls generic code with the values of whichever type.
macro_rules! with_values {
    ($of:expr, $values:ident => $body:expr) => {
        match $of {
            Values::BF16($values) => $body,
            Values::F16($values) => $body,
            Values::F32($values) => $body,
        }
    };
}

impl MaskedRows {
    /// Takes a row-major matrix; the kept values are in bf16, or else in f16, if that holds all of them exactly. A negative
    /// zero counts, and comes back, as zero.
    ///
    /// # Panics
    /// If there are not `rows · cols` values.
    pub fn new(values: &[f32], rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "values");
        if values.par_chunks(PART).all(bf16::holds) {
            Self::of(values, rows, cols, Values::BF16)
        } else if values.par_chunks(PART).all(f16::holds) {
            Self::of(values, rows, cols, Values::F16)
        } else {
            Self::of(values, rows, cols, Values::F32)
        }
    }

    fn of<T: Kept>(source: &[f32], rows: usize, cols: usize, held: fn(Pages<T>) -> Values) -> Self {
        let words = cols.div_ceil(WORD);
        let mut masks = Pages::<Masks>::zeroed(rows.div_ceil(ROWS) * words);
        let sources = || source.par_chunks((ROWS * cols).max(1));
        masks.par_chunks_mut(words.max(1)).zip(sources()).for_each(|(masks, rows)| {
            for (j, row) in rows.chunks(cols).enumerate() {
                for (masks, inputs) in masks.iter_mut().zip(row.chunks(WORD)) {
                    let kept = |bit: usize| inputs.get(T::input(bit)).is_some_and(|&value| value != 0.0);
                    masks[j] = (0..WORD).fold(0, |mask, bit| mask | u32::from(kept(bit)) << bit);
                }
            }
        });
        let mut starts = vec![0];
        let mut end = 0;
        starts.extend(masks.chunks(words.max(1)).map(|masks| {
            end += masks.as_flattened().iter().map(|mask| mask.count_ones() as usize).sum::<usize>();
            end
        }));
        let mut values = Pages::<T>::zeroed(end + MARGIN);
        let mut rest = &mut values[..];
        let parts: Vec<&mut [T]> = starts
            .windows(2)
            .map(|ends| rest.split_off_mut(..ends[1] - ends[0]).expect("as many values as bits"))
            .collect();
        let tiles = parts.into_par_iter().zip(masks.par_chunks(words.max(1))).zip(sources());
        tiles.for_each(|((values, masks), rows)| {
            let kept = kept_inputs::<T>(masks);
            values.iter_mut().zip(kept).for_each(|(value, (j, input))| *value = T::narrow(rows[j * cols + input]));
        });
        Self { rows, cols, masks, starts, values: held(values) }
    }

    /// The rows of all `parts`, one after the other; `None` where they differ in width or type, or one but the last ends
    /// within a tile.
    pub fn stacked(parts: &[&Self]) -> Option<Self> {
        let (first, last) = (*parts.first()?, parts.len() - 1);
        if parts.iter().any(|part| part.cols != first.cols)
            || parts[..last].iter().any(|part| !part.rows.is_multiple_of(ROWS))
        {
            return None;
        }
        macro_rules! joined {
            ($kind:ident) => {{
                let margin = [bytemuck::Zeroable::zeroed(); MARGIN];
                let mut all = Vec::with_capacity(parts.len() + 1);
                for part in parts {
                    let Values::$kind(values) = &part.values else { return None };
                    all.push(&values[..values.len() - MARGIN]);
                }
                all.push(&margin);
                Values::$kind(Pages::joined(&all))
            }};
        }
        let values = match first.values {
            Values::BF16(_) => joined!(BF16),
            Values::F16(_) => joined!(F16),
            Values::F32(_) => joined!(F32),
        };
        let masks: Vec<&[Masks]> = parts.iter().map(|part| &part.masks[..]).collect();
        let mut starts = vec![0];
        for part in parts {
            let before = starts[starts.len() - 1];
            starts.extend(part.starts[1..].iter().map(|start| before + start));
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Some(Self { rows, cols: first.cols, masks: Pages::joined(&masks), starts, values })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The type of the kept values: `bf16`, `f16` or `f32`.
    pub fn kind(&self) -> &'static str {
        match self.values {
            Values::BF16(_) => "bf16",
            Values::F16(_) => "f16",
            Values::F32(_) => "f32",
        }
    }

    /// How many values are kept.
    pub fn kept(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.masks[..])
            + size_of_val(&self.starts[..])
            + with_values!(&self.values, values => size_of_val(&values[..]))
    }

    /// All values in f32.
    pub fn to_host(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let tiles = out.par_chunks_mut((ROWS * self.cols).max(1)).enumerate();
        with_values!(&self.values, values => tiles.for_each(|(tile, out)| {
            unfold(self.tile(values, tile), out);
        }));
        out
    }

    /// A tile; `values` are those of the matrix.
    fn tile<'a, T>(&'a self, values: &'a [T], tile: usize) -> Tile<'a, T> {
        let words = self.cols.div_ceil(WORD);
        let values = &values[self.starts[tile]..self.starts[tile + 1] + MARGIN];
        Tile { masks: &self.masks[tile * words..][..words], values, cols: self.cols }
    }

    /// `x · Wᵀ`: `[n, in]` to `[n, out]`. The result does not depend on the number of threads, and a row of few gives the same
    /// in any number of them.
    ///
    /// # Panics
    /// If `x` is not `n` rows of inputs, or `out` not `n` rows of outputs.
    pub fn product(&self, x: &[f32], n: usize, out: &mut [f32]) {
        assert_eq!([x.len(), out.len()], [n * self.cols, n * self.rows], "inputs and outputs");
        if out.is_empty() || self.cols == 0 {
            return out.fill(0.0);
        }
        let tile_bytes = (self.bytes() / (self.starts.len() - 1)).max(1);
        let many = n > FEW_ROWS;
        // Kernels for few rows read whole words.
        let width = self.cols.next_multiple_of(WORD);
        let mut padded = Vec::new();
        let x = if many || width == self.cols {
            x
        } else {
            padded.resize(n * width, 0.0);
            padded
                .chunks_mut(width)
                .zip(x.chunks(self.cols))
                .for_each(|(padded, x)| padded[..x.len()].copy_from_slice(x));
            &padded
        };
        let tiles = if many { SLAB } else { PART.div_ceil(n * tile_bytes) };
        let shared = many || n * self.bytes() >= SHARED;
        Columns::share(out, n, tiles * ROWS, shared, |part, columns| {
            if many { self.many(part * tiles, x, n, columns) } else { self.few(part * tiles, x, columns) }
        });
    }

    /// Outputs of the tiles from `first` on.
    fn many(&self, first: usize, x: &[f32], n: usize, mut out: Stretch<'_>) {
        let (rows, cols) = (out.width(), self.cols);
        let mut weights = vec![0.0; rows * cols];
        with_values!(&self.values, values => for (tile, weights) in (first..).zip(weights.chunks_mut(ROWS * cols)) {
            unfold(self.tile(values, tile), weights);
        });
        let mut sums = vec![0.0; n * rows];
        product([n, rows, cols], Mat::rows(x, cols), Mat::rows(&weights, cols).transposed(), &mut sums, false);
        sums.chunks_exact(rows).enumerate().for_each(|(row, sums)| out.row(row, 0).copy_from_slice(sums));
    }

    /// As [`many`](Self::many), of inputs padded to whole words.
    fn few(&self, first: usize, x: &[f32], mut out: Stretch<'_>) {
        let mut room = Vec::new();
        for place in (0..out.width()).step_by(ROWS) {
            let tile = first + place / ROWS;
            let put = |row: usize, sums: &[f32]| {
                let out = out.row(row, place);
                let there = ROWS.min(out.len());
                out[..there].copy_from_slice(&sums[..there]);
            };
            with_values!(&self.values, values => few(self.tile(values, tile), x, &mut room, put));
        }
    }
}

/// Whether one row of inputs meets so large a share of kept values (0 to 1) sooner than all of them in 16 bits, by the kernels of
/// this processor. Without kernels it never does.
pub fn pay(kept: f64) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        (avx512::available() || avx2::available()) && kept <= MOST_KEPT
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = kept;
        false
    }
}

/// Row and input of every value of a tile, in order.
fn kept_inputs<T: Kept>(masks: &[Masks]) -> impl Iterator<Item = (usize, usize)> {
    let masks = masks
        .iter()
        .enumerate()
        .flat_map(|(word, masks)| masks.iter().enumerate().map(move |(j, mask)| (word, j, mask)));
    masks.flat_map(|(word, j, mask)| {
        let kept = (0..WORD).filter(move |bit| mask >> bit & 1 == 1);
        kept.map(move |bit| (j, word * WORD + T::input(bit)))
    })
}

/// Writes the rows of a tile that `out [rows, cols]` has room for.
fn unfold<T: Kept>(tile: Tile<'_, T>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::available() {
            return avx512::unfold(tile, out);
        }
        if avx2::available() {
            return avx2::unfold(tile, out);
        }
    }
    unfold_plain(tile, out);
}

/// The plain twin.
fn unfold_plain<T: Kept>(tile: Tile<'_, T>, out: &mut [f32]) {
    out.fill(0.0);
    let kept = tile.values.iter().zip(kept_inputs::<T>(tile.masks));
    kept.for_each(|(value, (j, input))| out[j * tile.cols + input] = value.wide());
}

/// Goes through the words of the rows that `out [rows, cols]` has room for: `expand` is told how many values come before and
/// which there are.
#[inline(always)]
fn by_words<T>(tile: Tile<'_, T>, out: &mut [f32], mut expand: impl FnMut(usize, u32, &mut [f32; WORD])) {
    let mut before = 0;
    for (word, masks) in tile.masks.iter().enumerate() {
        for (row, &mask) in out.chunks_mut(tile.cols).zip(masks) {
            let row = &mut row[word * WORD..];
            match row.first_chunk_mut() {
                Some(row) => expand(before, mask, row),
                None => {
                    let mut found = [0.0; WORD];
                    expand(before, mask, &mut found);
                    row.copy_from_slice(&found[..row.len()]);
                }
            }
            before += mask.count_ones() as usize;
        }
    }
}

/// Gives `put` the sums of a tile's rows with every row of `x`, which is padded to whole words, and the number of that row. `room`
/// is scratch.
fn few<T: Kept>(tile: Tile<'_, T>, x: &[f32], room: &mut Vec<f32>, mut put: impl FnMut(usize, &[f32])) {
    let width = tile.masks.len() * WORD;
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::available() {
            let mut first = 0;
            while first * width < x.len() {
                let (sums, together) = avx512::few(tile, &x[first * width..]);
                sums.chunks(ROWS).take(together).enumerate().for_each(|(row, sums)| put(first + row, sums));
                first += together;
            }
            return;
        }
        if avx2::available() {
            return x.chunks_exact(width).enumerate().for_each(|(row, x)| put(row, &avx2::one(tile, x)));
        }
    }
    room.resize(ROWS * tile.cols, 0.0);
    unfold_plain(tile, room);
    x.chunks_exact(width).enumerate().for_each(|(row, x)| put(row, &dots(room, &x[..tile.cols])));
}

vectorised! {
    /// Sums of products of a tile's rows with `x`, in the order of the kernels.
    fn dots(weights: &[f32], x: &[f32]) -> [f32; ROWS] {
        let mut sums = [[0.0f32; LANES]; ROWS];
        let rows: [&[f32]; ROWS] = std::array::from_fn(|j| &weights[j * x.len()..][..x.len()]);
        let whole = x.len() - x.len() % LANES;
        for at in (0..whole).step_by(LANES) {
            let x = &x[at..][..LANES];
            for j in 0..ROWS {
                let row = &rows[j][at..][..LANES];
                for i in 0..LANES {
                    sums[j][i] = mul_add::<FMA>(row[i], x[i], sums[j][i]);
                }
            }
        }
        for (row, sums) in rows.iter().zip(&mut sums) {
            for (sum, (weight, x)) in sums.iter_mut().zip(row[whole..].iter().zip(&x[whole..])) {
                *sum = mul_add::<FMA>(*weight, *x, *sum);
            }
        }
        sums.map(across)
    }
}

/// The sum of all lanes, in the order of [`few_rows`](crate::ops::few_rows).
#[inline]
fn across(lanes: [f32; LANES]) -> f32 {
    let four = |i: usize| (lanes[i] + lanes[i + 2]) + (lanes[i + 1] + lanes[i + 3]);
    (four(0) + four(8)) + (four(4) + four(12))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(weight: &MaskedRows, x: &[f32], n: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; n * weight.rows];
        weight.product(x, n, &mut out);
        out
    }

    /// Rows, inputs and rows of inputs; Miri is slow.
    const MOST: [usize; 3] = if cfg!(miri) { [10, 70, 34] } else { [120, 300, 40] };

    /// Of every 100 values `zeros` are none.
    fn matrix(rows: usize, cols: usize, zeros: usize, kind: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.5) / 31.0;
        let rounded = |x: f32| match kind {
            0 => bf16::from_f32(x).to_f32(),
            1 => f16::from_f32(x).to_f32(),
            _ => x,
        };
        (0..rows * cols).map(|i| if i * 7919 % 103 * 100 < zeros * 103 { 0.0 } else { rounded(value(i)) }).collect()
    }

    fn padded(x: &[f32], cols: usize) -> Vec<f32> {
        x.chunks(cols).flat_map(|x| [x, &vec![0.0; cols.next_multiple_of(WORD) - cols]].concat()).collect()
    }

    fn inputs(n: usize, cols: usize) -> Vec<f32> {
        (0..n * cols).map(|i| ((i * 53 % 97) as f32 - 48.0) / 29.0).collect()
    }

    /// The same bits from every way to unfold a tile and to multiply with it.
    fn check_kernels<T: Kept>(masked: &MaskedRows, values: &[T], x: &[f32]) {
        let cols = masked.cols;
        for tile in 0..masked.starts.len() - 1 {
            let tile = masked.tile(values, tile);
            let mut plain = vec![f32::NAN; ROWS * cols];
            unfold_plain(tile, &mut plain);
            let mut found = vec![f32::NAN; ROWS * cols];
            unfold(tile, &mut found);
            assert_eq!(found, plain, "unfolded");
            let expected = |row: usize| dots(&plain, &x[row * cols..][..cols]);
            few(tile, &padded(x, cols), &mut vec![], |row, sums| assert_eq!(sums, expected(row), "row {row}"));
            #[cfg(target_arch = "x86_64")]
            if avx2::available() {
                found.fill(f32::NAN);
                avx2::unfold(tile, &mut found);
                assert_eq!(found, plain, "unfolded by AVX2");
                for (row, x) in x.chunks(cols).enumerate() {
                    assert_eq!(avx2::one(tile, &padded(x, cols)), expected(row), "AVX2");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 48 }) })]
        #[test]
        fn products_are_those_of_f64(
            rows in 1..MOST[0], cols in 1..MOST[1], zeros in 0usize..=100, kind in 0usize..3,
            n in prop_oneof![1usize..9, FEW_ROWS - 2..MOST[2]],
        ) {
            let weights = matrix(rows, cols, zeros, kind);
            let masked = MaskedRows::new(&weights, rows, cols);
            prop_assert_eq!(&masked.to_host(), &weights);
            let x = inputs(n, cols);
            with_values!(&masked.values, values => check_kernels(&masked, values, &x));
            let found = times(&masked, &x, n);
            for (i, found) in found.iter().enumerate() {
                let (w, x) = (&weights[i % rows * cols..][..cols], &x[i / rows * cols..][..cols]);
                let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                let size: f64 = terms.clone().map(f64::abs).sum();
                prop_assert!((f64::from(*found) - terms.sum::<f64>()).abs() <= 1e-6 * size);
            }
            if n <= FEW_ROWS {
                let one = times(&masked, &x[(n - 1) * cols..], 1);
                prop_assert_eq!(&found[(n - 1) * rows..], &one[..], "a row alone");
            }
        }
    }

    #[test]
    fn layout_and_size_are_pinned() {
        // Inputs 0, 1 and 16 of row 0, input 33 of row 4.
        let mut weights = vec![0.0; 5 * 34];
        (weights[0], weights[1], weights[16], weights[4 * 34 + 33], weights[2]) = (1.0, 2.0, 3.0, 4.0, -0.0);
        let masked = MaskedRows::new(&weights, 5, 34);
        assert_eq!(masked.masks[..], [[0b111, 0, 0, 0], [0; 4], [0; 4], [0b100, 0, 0, 0]]);
        assert_eq!((&masked.starts[..], masked.kind()), (&[0, 3, 4][..], "bf16"));
        let Values::BF16(values) = &masked.values else { panic!("bf16") };
        assert_eq!(values[..4], [1.0, 3.0, 2.0, 4.0].map(bf16::from_f32));
        assert_eq!(masked.bytes(), 4 * 16 + 3 * 8 + (4 + MARGIN) * 2);
        // A digit more than bf16 has, one more than f16 has.
        let with = |value: f32| MaskedRows::new(&[value, 0.0], 1, 2);
        assert_eq!((with(1.0 + 1.0 / 1024.0).kind(), with(1.0 + 1.0 / 2048.0).kind()), ("f16", "f32"));
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(times(&MaskedRows::new(&[], 0, 7), &[0.0; 7], 1), [0.0f32; 0]);
        assert_eq!(times(&MaskedRows::new(&[], 3, 0), &[], 2), [0.0; 6]);
        assert_eq!(times(&MaskedRows::new(&[0.0; 15], 5, 3), &[1.0; 6], 2), [0.0; 10]);
        assert!(times(&MaskedRows::new(&[1.0], 1, 1), &[], 0).is_empty());
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (rows, cols) = if cfg!(miri) { (9, 33) } else { (1000, 256) };
        let masked = MaskedRows::new(&matrix(rows, cols, 50, 0), rows, cols);
        for n in [1, 5, 40] {
            let x = inputs(n, cols);
            let with = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| times(&masked, &x, n))
            };
            assert_eq!(with(1), with(3), "{n} rows");
        }
    }

    #[test]
    fn parts_are_stacked_if_they_are_alike() {
        let part = |rows: usize, kind: usize| MaskedRows::new(&matrix(rows, 70, 50, kind), rows, 70);
        let both = MaskedRows::stacked(&[&part(8, 0), &part(5, 0)]).unwrap();
        assert_eq!(both.shape(), [13, 70]);
        assert_eq!(both.to_host(), [part(8, 0).to_host(), part(5, 0).to_host()].concat());
        let x = inputs(3, 70);
        let (found, last) = (times(&both, &x, 3), times(&part(5, 0), &x, 3));
        assert_eq!(found[2 * 13 + 8..], last[2 * 5..]);
        assert!(MaskedRows::stacked(&[&part(5, 0), &part(8, 0)]).is_none(), "a tile that is not full");
        assert!(MaskedRows::stacked(&[&part(8, 0), &part(8, 1)]).is_none(), "two types");
        assert!(MaskedRows::stacked(&[&part(8, 0), &MaskedRows::new(&[1.0], 1, 1)]).is_none(), "two widths");
    }
}
