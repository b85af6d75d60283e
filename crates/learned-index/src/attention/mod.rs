//! Which tokens of a long cache a query attends to: an index over the keys of one attention head.
//!
//! Keys are grouped into cells by k-means. Inside a cell, every key has one coordinate: its component along the direction
//! that the queries of the prompt ask for. So a cell answers "which of your tokens score above θ?" with a range of that
//! coordinate, and "how many?" with the normal law that the coordinates follow, without touching a token. A query then is
//! a product with all centroids, a bisection for θ over the counts, and a few dozen range scans.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | [`KvIndex`]: build, append, select |
//! | [`cells`] | k-means, and what a cell knows about its keys |
//! | [`access`] | how ranges of a cell are read: offsets into an array, or a learned map |
//! | [`selectors`] | slower or simpler ways to choose tokens, to compare with |
//! | `dense` | products of rows |
//!
//! Cells come from RetroInfer (arXiv 2505.02922), pages with bounds from Quest (arXiv 2406.10774), a distance as the key
//! of a one-dimensional index from iDistance (Yu et al., VLDB 2001). The coordinate aligned with the queries, the scaling
//! by the normal law and the bisection over modelled counts are this crate's own.

pub mod access;
pub mod cells;
mod dense;
pub mod selectors;

use std::time::Instant;

use crate::error::{Error, Result};

use crate::raw::prefetch_ahead;
use access::{Access, AccessKind, Place};
use cells::{Aligned, Cells, Normal, Spread};
use dense::dot;

/// Rows of keys that are asked for ahead, and numbers in a cache line.
const AHEAD: usize = 4;
const LINE: usize = 16;

/// How an index is built and asked.
#[derive(Debug, Clone, PartialEq)]
pub struct KvConfig {
    /// Tokens per cell.
    pub cell: usize,
    /// Rounds of k-means.
    pub rounds: usize,
    /// Tokens that are clustered together; all at once gives the best recall and costs the most.
    pub segment: usize,
    /// Cells that a query may visit.
    pub visited: usize,
    /// Appended tokens that wait until they are indexed together.
    pub flush: usize,
    /// Kolmogorov distance between the coordinates of a cell and its normal law from which on the law is fitted anew.
    pub drift: f32,
    /// What the coordinate of a cell is aligned with.
    pub aligned: Aligned,
    /// How ranges are read.
    pub access: AccessKind,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            cell: 64,
            rounds: 10,
            segment: usize::MAX,
            visited: 64,
            flush: 1024,
            drift: 0.2,
            aligned: Aligned::Queries,
            access: AccessKind::Csr,
        }
    }
}

/// A token that a query should attend to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selected {
    /// Position of the token.
    pub token: u32,
    /// Estimated logit `q · (k − mean)`, or the exact one after [`KvIndex::rerank`].
    pub score: f32,
}

/// What a selection cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SelectStats {
    /// Cells whose counts were modelled.
    pub cells: usize,
    /// Ranges read.
    pub ranges: usize,
    /// Tokens selected.
    pub candidates: usize,
}

/// An index over the keys of one attention head.
///
/// ```
/// use kindling_learned_index::attention::{KvConfig, KvIndex};
/// use kindling_learned_index::data::kv::KvSetting;
///
/// let head = KvSetting { tokens: 1024, dim: 16, topics: 20, key_noise: 0.9, query_noise: 0.8, seed: 1 }.generate();
/// let index = KvIndex::build(&head.keys, &head.prefill, 16, KvConfig::default())?;
/// let mut selected = Vec::new();
/// index.select(&head.queries[..16], 100, &mut selected)?;
/// index.rerank(&head.keys, &head.queries[..16], 50, &mut selected)?;
/// assert_eq!(selected.len(), 50);
/// # Ok::<(), kindling_learned_index::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct KvIndex {
    config: KvConfig,
    dim: usize,
    /// Mean of the keys when the index was built, `[dim]`.
    mean: Vec<f32>,
    /// Last queries of the prompt, `[_, dim]`.
    prefill: Vec<f32>,
    cells: Cells,
    access: Access,
    indexed: usize,
    /// Laws of cells that were fitted anew.
    refitted: usize,
    /// Keys that wait, `[_, dim]`.
    tail: Vec<f32>,
}

impl KvIndex {
    /// Builds the index of `keys`, `[tokens, dim]`. `prefill` are the last queries of the prompt, `[_, dim]`, scaled as
    /// later queries will be; without any, coordinates are aligned with centroids.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a slice is not whole rows, a number is not finite, or the configuration has a zero.
    pub fn build(keys: &[f32], prefill: &[f32], dim: usize, config: KvConfig) -> Result<Self> {
        check_rows("keys", keys, dim)?;
        check_rows("prefill queries", prefill, dim)?;
        if config.cell == 0 || config.segment == 0 || config.visited == 0 || config.flush == 0 {
            return Err(Error::Invalid("cell, segment, visited and flush must be at least 1".into()));
        }
        let n = keys.len() / dim;
        u32::try_from(n).map_err(|_| Error::Invalid(format!("{n} tokens are more than a u32 counts")))?;
        let mean = mean(keys, dim);
        let centred = subtract(keys, &mean);
        let (cells, places) = Cells::build(&centred, prefill, dim, &config);
        let access = Access::new(config.access, places, cells.len());
        let (prefill, tail) = (prefill.to_vec(), Vec::new());
        Ok(Self { config, dim, mean, prefill, cells, access, indexed: n, refitted: 0, tail })
    }

    /// Tokens, those that wait included.
    pub fn len(&self) -> usize {
        self.indexed + self.tail.len() / self.dim
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens from this one on wait to be indexed: attend to all of them.
    pub fn indexed(&self) -> usize {
        self.indexed
    }

    /// The cells.
    pub fn cells(&self) -> &Cells {
        &self.cells
    }

    /// How many times appended tokens made a cell's law be fitted anew.
    pub fn refitted(&self) -> usize {
        self.refitted
    }

    /// Bytes of cells and access structure; keys that wait not counted.
    pub fn bytes(&self) -> usize {
        self.cells.bytes() + self.access.bytes()
    }

    /// Takes new tokens, `[_, dim]`. They wait until [`KvConfig::flush`] have come, then all are indexed: each in the
    /// nearest cell that it is not far outside of, the others in new cells. A cell whose coordinates no longer follow its
    /// normal law, which tells a query how many tokens to expect, or that has four times the tokens it had when the law
    /// was fitted, gets a new one: its tokens move inside its interval of the axis, at the cost of removing and inserting
    /// them.
    ///
    /// # Errors
    /// [`Error::Invalid`] as for [`KvIndex::build`].
    pub fn append(&mut self, keys: &[f32]) -> Result<()> {
        check_rows("keys", keys, self.dim)?;
        self.tail.extend_from_slice(keys);
        if self.tail.len() >= self.config.flush * self.dim {
            let centred = subtract(&std::mem::take(&mut self.tail), &self.mean);
            let first = self.indexed as u32;
            let places = self.cells.add(&centred, first, &self.prefill, &self.config);
            let mut touched: Vec<u32> = places.iter().map(|place| place.cell()).collect();
            touched.sort_unstable();
            touched.dedup();
            self.access.extend(places, self.cells.len());
            touched.into_iter().for_each(|cell| self.adapt(cell));
            self.indexed += centred.len() / self.dim;
        }
        Ok(())
    }

    /// Fits the law of a cell anew if its tokens have drifted away from it and a new one suits them better.
    fn adapt(&mut self, cell: u32) {
        let old = self.cells.spread(cell as usize);
        let mut places = Vec::with_capacity(old.len);
        self.access.range(cell, old.begin, f32::NEG_INFINITY, f32::INFINITY, |token, t| {
            places.push(Place::new(self.cells.y(cell as usize, t), cell, t, token));
        });
        let ts: Vec<f32> = places.iter().map(|place| place.t()).collect();
        if self.cells.refit(cell as usize, &ts, self.config.drift) {
            let moved = |place: &Place| Place { y: self.cells.y(cell as usize, place.t()), ..*place };
            self.access.replace(&places, moved);
            self.refitted += 1;
        }
    }

    /// Forgets the tokens from `len` on, which must not be indexed yet: keep [`KvConfig::flush`] above the length of a
    /// draft that may be taken back.
    ///
    /// # Errors
    /// [`Error::Invalid`] if one of them is indexed, or there are fewer.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len < self.indexed || len > self.len() {
            return Err(Error::Invalid(format!(
                "cannot keep {len} tokens: {} are indexed for good, {} are there",
                self.indexed,
                self.len()
            )));
        }
        self.tail.truncate((len - self.indexed) * self.dim);
        Ok(())
    }

    /// The tokens that score highest with `query`, about `budget` of them, in no order, into `out`, which is cleared
    /// first. The score of the budget's last token is found from the modelled counts, so the number varies by some per
    /// cent.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the query has another width or is not finite.
    pub fn select(&self, query: &[f32], budget: usize, out: &mut Vec<Selected>) -> Result<SelectStats> {
        if query.len() != self.dim {
            return Err(Error::Invalid(format!("expected a query of width {}, found {}", self.dim, query.len())));
        }
        check_rows("query", query, self.dim)?;
        out.clear();
        let visits = self.visits(query);
        let threshold = threshold(&visits, budget);
        let mut stats = SelectStats { cells: visits.len(), ..SelectStats::default() };
        for visit in &visits {
            let begin = out.len();
            let range = visit.range(threshold);
            let emit = |token: u32, t: f32| out.push(Selected { token, score: visit.a + visit.s * t });
            if let Some((from, to)) = range {
                self.access.range(visit.cell, self.cells.y(visit.cell as usize, from), from, to, emit);
            }
            stats.ranges += usize::from(out.len() > begin);
        }
        stats.candidates = out.len();
        Ok(stats)
    }

    /// As [`KvIndex::select`] for the queries of a group that share these keys, `[_, dim]`: each gets its part of the
    /// budget, the union is returned in the order of tokens, with the highest score of each.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the queries are not whole rows, or there is none.
    pub fn select_group(&self, queries: &[f32], budget: usize, out: &mut Vec<Selected>) -> Result<()> {
        check_rows("queries", queries, self.dim)?;
        let group = queries.len() / self.dim;
        if group == 0 {
            return Err(Error::Invalid("expected at least one query".into()));
        }
        let (mut all, mut own) = (Vec::new(), Vec::new());
        for query in queries.chunks_exact(self.dim) {
            self.select(query, budget.div_ceil(group), &mut own)?;
            all.append(&mut own);
        }
        all.sort_unstable_by(|a: &Selected, b| a.token.cmp(&b.token).then(b.score.total_cmp(&a.score)));
        all.dedup_by_key(|selected| selected.token);
        *out = all;
        Ok(())
    }

    /// Replaces estimated scores by exact ones (up to the same constant for all tokens) and keeps the `keep` best.
    /// `keys` are all keys, `[tokens, dim]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `keys` lacks a selected token or the query has another width.
    pub fn rerank(&self, keys: &[f32], query: &[f32], keep: usize, selected: &mut Vec<Selected>) -> Result<()> {
        let (d, rows) = (self.dim, keys.len() / self.dim);
        if query.len() != d || selected.iter().any(|selected| selected.token as usize >= rows) {
            return Err(Error::Invalid(format!(
                "expected a query of width {d} and keys of all selected tokens, found {} and {rows} rows",
                query.len()
            )));
        }
        let shift = dot(query, &self.mean);
        let row = |selected: &Selected| &keys[selected.token as usize * d..][..d];
        dense::each(
            #[inline(always)]
            || {
                for i in 0..selected.len() {
                    // The rows lie anywhere: a few are on their way while one is read.
                    if let Some(next) = selected.get(i + AHEAD) {
                        row(next).iter().step_by(LINE).for_each(|x| prefetch_ahead(x));
                    }
                    selected[i].score = dot(query, row(&selected[i])) - shift;
                }
            },
        );
        if keep < selected.len() {
            selected.select_nth_unstable_by(keep, |a, b| b.score.total_cmp(&a.score).then(a.token.cmp(&b.token)));
            selected.truncate(keep);
        }
        Ok(())
    }

    /// Nanoseconds to find where a range begins, and how many were looked for: the part of a selection that the access
    /// structure answers for. Of the fastest of ten passes over `queries`.
    pub fn time_of_range_starts(&self, queries: &[&[f32]], budget: usize) -> (f64, usize) {
        let mut starts = Vec::new();
        for query in queries.iter().filter(|query| query.len() == self.dim) {
            let visits = self.visits(query);
            let threshold = threshold(&visits, budget);
            let of = |visit: &Visit| Some((visit.cell, visit.range(threshold)?.0));
            starts.extend(visits.iter().filter_map(of).map(|(cell, t)| (cell, self.cells.y(cell as usize, t), t)));
        }
        let pass = || {
            let begin = Instant::now();
            for &(cell, y, t) in &starts {
                // A range of one coordinate: nothing is read but its beginning.
                self.access.range(cell, y, t, t, |token, _| _ = std::hint::black_box(token));
            }
            begin.elapsed().as_nanos() as f64 / starts.len().max(1) as f64
        };
        (std::iter::repeat_with(pass).take(10).fold(f64::INFINITY, f64::min), starts.len())
    }

    /// The cells that may hold the best tokens, in their order.
    fn visits(&self, query: &[f32]) -> Vec<Visit> {
        let cells = &self.cells;
        let mut products = vec![0.0; 2 * cells.len()];
        dense::products(cells.centroids_and_slopes(), query, &mut products);
        // What a token two deviations above the mean of its cell scores.
        let worth = |(cell, two): (usize, &[f32])| {
            let spread = cells.spread(cell);
            (spread.len > 0).then(|| (two[0] + 2.0 * two[1].abs() * spread.deviation, cell as u32))
        };
        let mut best: Vec<(f32, u32)> = products.chunks_exact(2).enumerate().filter_map(worth).collect();
        let kept = self.config.visited;
        if kept < best.len() {
            best.select_nth_unstable_by(kept, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            best.truncate(kept);
        }
        best.sort_unstable_by_key(|(_, cell)| *cell);
        let visit = |(_, cell): (f32, u32)| {
            let at = 2 * cell as usize;
            Visit::new(cell, products[at], products[at + 1], cells.spread(cell as usize))
        };
        best.into_iter().map(visit).collect()
    }
}

/// A cell under a query: a token at coordinate `t` has the estimated score `a + s · t`.
struct Visit {
    cell: u32,
    a: f32,
    s: f32,
    /// How many tokens; their scores follow a normal law with this mean and this inverse of the deviation.
    tokens: f32,
    mean: f32,
    steepness: f32,
    /// Lowest and highest estimated score.
    ends: (f32, f32),
}

/// Slopes below this are none.
const FLAT: f32 = 1e-9;

impl Visit {
    fn new(cell: u32, a: f32, s: f32, spread: Spread) -> Self {
        let (x, y) = (a + s * spread.min, a + s * spread.max);
        let steepness = 1.0 / (s.abs() * spread.deviation).max(FLAT);
        Self { cell, a, s, tokens: spread.len as f32, mean: a + s * spread.mean, steepness, ends: (x.min(y), x.max(y)) }
    }

    /// Coordinates of the tokens that score at least `threshold`.
    fn range(&self, threshold: f32) -> Option<(f32, f32)> {
        let all = (f32::NEG_INFINITY, f32::INFINITY);
        if self.s.abs() < FLAT || threshold == f32::NEG_INFINITY {
            return (self.a >= threshold).then_some(all);
        }
        let t = (threshold - self.a) / self.s;
        Some(if self.s > 0.0 { (t, all.1) } else { (all.0, t) })
    }
}

/// The score that about `budget` tokens reach.
fn threshold(visits: &[Visit], budget: usize) -> f32 {
    if visits.iter().map(|visit| visit.tokens).sum::<f32>() <= budget as f32 {
        return f32::NEG_INFINITY;
    }
    let ends = visits.iter().map(|visit| visit.ends);
    let (mut low, mut high) = ends.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), (x, y)| (l.min(x), h.max(y)));
    let law = Normal::law();
    let mut counts = vec![0.0; visits.len()];
    // Tokens that score at least as much, by the normal laws.
    let mut count = |score: f32| -> f32 {
        dense::each(
            #[inline(always)]
            || {
                for (count, visit) in counts.iter_mut().zip(visits) {
                    *count = visit.tokens * law.below((visit.mean - score) * visit.steepness);
                }
            },
        );
        counts.iter().sum()
    };
    for _ in 0..12 {
        let middle = 0.5 * (low + high);
        *(if count(middle) >= budget as f32 { &mut low } else { &mut high }) = middle;
    }
    low
}

fn check_rows(what: &str, rows: &[f32], dim: usize) -> Result<()> {
    if dim == 0 || !rows.len().is_multiple_of(dim) {
        return Err(Error::Invalid(format!(
            "{what}: expected whole rows of width {dim}, found {} numbers",
            rows.len()
        )));
    }
    match rows.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::Invalid(format!("{what}: row {} holds {}", at / dim, rows[at]))),
        None => Ok(()),
    }
}

fn mean(rows: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let n = (rows.len() / dim).max(1) as f64;
    sums.into_iter().map(|sum| (sum / n) as f32).collect()
}

fn subtract(rows: &[f32], mean: &[f32]) -> Vec<f32> {
    rows.chunks_exact(mean.len()).flat_map(|row| row.iter().zip(mean).map(|(x, m)| x - m)).collect()
}
