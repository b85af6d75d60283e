//! K-means, and what a cell knows about its keys.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::KvConfig;
use super::access::Place;
use super::dense::{best_rows, dot, each};

/// A cell with so many times the tokens that its law was fitted to gets a new one.
const GROWN: usize = 4;

/// What the coordinate of a cell is aligned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aligned {
    /// The queries of the prompt that look at the cell.
    Queries,
    /// The centroid.
    Centroid,
}

/// How the coordinates of a cell are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Tokens.
    pub len: usize,
    /// Mean coordinate when the law was fitted.
    pub mean: f32,
    /// Standard deviation when the law was fitted, at least 1e-6.
    pub deviation: f32,
    /// Tokens when the law was fitted.
    pub fitted: usize,
    /// Smallest coordinate.
    pub min: f32,
    /// Largest coordinate.
    pub max: f32,
    /// No key is farther from its estimate.
    pub residual: f32,
    /// 95 of 100 keys were nearer to the centroid when the cell was made.
    pub radius: f32,
    /// Where the interval of the cell begins on the one-dimensional axis …
    pub begin: f64,
    /// … and how long it is: its tokens when it was made.
    pub room: f64,
}

impl Spread {
    /// Kolmogorov distance between ascending coordinates and the normal law of the cell.
    pub fn distance(&self, ts: &[f32]) -> f32 {
        let share = |i: usize| i as f32 / ts.len() as f32;
        let off = |(i, t): (usize, &f32)| {
            let law = normal_cdf((t - self.mean) / self.deviation);
            (law - share(i)).abs().max((share(i + 1) - law).abs())
        };
        ts.iter().enumerate().map(off).fold(0.0, f32::max)
    }
}

/// Cells of keys, all centred.
#[derive(Debug, Clone, Default)]
pub struct Cells {
    dim: usize,
    /// Centroid and slope of every cell, one after the other: a key at coordinate `t` is about `centroid + t · slope`.
    centroids_and_slopes: Vec<f32>,
    /// Directions of the coordinates, `[cells, dim]`.
    directions: Vec<f32>,
    spreads: Vec<Spread>,
}

impl Cells {
    /// Clusters centred keys.
    pub(super) fn build(keys: &[f32], prefill: &[f32], dim: usize, config: &KvConfig) -> (Self, Vec<Place>) {
        let mut cells = Self { dim, ..Self::default() };
        let mut places = Vec::new();
        let rows = config.segment.min(keys.len() / dim).max(1);
        let mut first = 0;
        for segment in keys.chunks(rows * dim) {
            let tokens: Vec<u32> = (first..first + (segment.len() / dim) as u32).collect();
            first += tokens.len() as u32;
            places.extend(cells.cluster(segment, &tokens, prefill, config));
        }
        (cells, places)
    }

    /// Makes cells of keys, whose tokens are given.
    fn cluster(&mut self, keys: &[f32], tokens: &[u32], prefill: &[f32], config: &KvConfig) -> Vec<Place> {
        let d = self.dim;
        let centroids = k_means(keys, d, (tokens.len() / config.cell).max(1), config.rounds);
        let owner = nearest(&centroids, keys, d);
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); centroids.len() / d];
        owner.iter().enumerate().for_each(|(i, &cell)| members[cell as usize].push(i));
        let mut places = Vec::with_capacity(tokens.len());
        for (centroid, members) in centroids.chunks_exact(d).zip(members) {
            let row = |i: usize| &keys[i * d..][..d];
            let cell =
                self.push(centroid, &members.iter().map(|&i| row(i)).collect::<Vec<_>>(), prefill, config.aligned);
            for &i in &members {
                let t = self.coordinate(cell, row(i));
                places.push(Place::new(self.y(cell, t), cell as u32, t, tokens[i]));
            }
        }
        places
    }

    /// Adds a cell around a centroid; returns its number.
    fn push(&mut self, centroid: &[f32], rows: &[&[f32]], prefill: &[f32], aligned: Aligned) -> usize {
        let d = self.dim;
        let direction = direction(centroid, prefill, aligned);
        let difference = |row: &[f32]| -> Vec<f32> { row.iter().zip(centroid).map(|(x, c)| x - c).collect() };
        let rests: Vec<Vec<f32>> = rows.iter().map(|row| difference(row)).collect();
        let ts: Vec<f32> = rests.iter().map(|rest| dot(rest, &direction)).collect();
        let squares: f64 = ts.iter().map(|&t| f64::from(t) * f64::from(t)).sum();
        let mut slope = vec![0.0f32; d];
        if squares > 0.0 {
            for (i, slope) in slope.iter_mut().enumerate() {
                let sum: f64 = rests.iter().zip(&ts).map(|(rest, &t)| f64::from(rest[i]) * f64::from(t)).sum();
                *slope = (sum / squares) as f32;
            }
        }
        let mut spread = spread(&ts);
        spread.residual = rests.iter().zip(&ts).map(|(rest, &t)| residual(rest, &slope, t)).fold(0.0, f32::max);
        let mut radii: Vec<f32> = rests.iter().map(|rest| dot(rest, rest).sqrt()).collect();
        radii.sort_unstable_by(f32::total_cmp);
        spread.radius = radii.get((radii.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0);
        spread.begin = self.spreads.last().map_or(0.0, |last| last.begin + last.room);
        self.spreads.push(spread);
        self.directions.extend(direction);
        self.centroids_and_slopes.extend_from_slice(centroid);
        self.centroids_and_slopes.extend(slope);
        self.spreads.len() - 1
    }

    /// Puts new keys into cells. `first` is the token of the first.
    pub(super) fn add(&mut self, keys: &[f32], first: u32, prefill: &[f32], config: &KvConfig) -> Vec<Place> {
        let d = self.dim;
        let centroids: Vec<f32> = (0..self.len()).flat_map(|j| self.centroid(j).to_vec()).collect();
        let owner = if centroids.is_empty() { vec![0; keys.len() / d] } else { nearest(&centroids, keys, d) };
        let (mut places, mut far, mut far_tokens) = (Vec::new(), Vec::new(), Vec::new());
        for ((row, cell), token) in keys.chunks_exact(d).zip(owner).zip(first..) {
            let cell = cell as usize;
            let rest: Vec<f32> = match self.spreads.get(cell) {
                Some(_) => row.iter().zip(self.centroid(cell)).map(|(x, c)| x - c).collect(),
                None => vec![f32::INFINITY],
            };
            if self.spreads.is_empty() || dot(&rest, &rest).sqrt() > 1.5 * self.spreads[cell].radius {
                far.extend_from_slice(row);
                far_tokens.push(token);
                continue;
            }
            let t = self.coordinate(cell, row);
            let off = residual(&rest, self.slope(cell), t);
            let spread = &mut self.spreads[cell];
            spread.len += 1;
            (spread.min, spread.max) = (spread.min.min(t), spread.max.max(t));
            spread.residual = spread.residual.max(off);
            places.push(Place::new(self.y(cell, t), cell as u32, t, token));
        }
        if !far.is_empty() {
            places.extend(self.cluster(&far, &far_tokens, prefill, config));
        }
        places
    }

    /// Fits the law of a cell to its coordinates, which ascend, if they lie farther than `drift` from it or are
    /// [`GROWN`] times as many, and the new law is nearer. Returns whether it did. The interval of the cell stays.
    pub(super) fn refit(&mut self, cell: usize, ts: &[f32], drift: f32) -> bool {
        let old = self.spreads[cell];
        let distance = old.distance(ts);
        if distance <= drift && ts.len() < GROWN * old.fitted.max(1) {
            return false;
        }
        let Spread { mean, deviation, fitted, .. } = spread(ts);
        let new = Spread { mean, deviation, fitted, ..old };
        let better = new.distance(ts) < distance;
        if better {
            self.spreads[cell] = new;
        }
        better
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.spreads.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spreads.is_empty()
    }

    /// Centroid of a cell.
    pub fn centroid(&self, cell: usize) -> &[f32] {
        &self.centroids_and_slopes[2 * cell * self.dim..][..self.dim]
    }

    /// What a step of the coordinate adds to a key, on average.
    pub fn slope(&self, cell: usize) -> &[f32] {
        &self.centroids_and_slopes[(2 * cell + 1) * self.dim..][..self.dim]
    }

    pub(super) fn centroids_and_slopes(&self) -> &[f32] {
        &self.centroids_and_slopes
    }

    /// How the coordinates of a cell are spread.
    pub fn spread(&self, cell: usize) -> Spread {
        self.spreads[cell]
    }

    /// Coordinate of a centred key in a cell.
    pub fn coordinate(&self, cell: usize, key: &[f32]) -> f32 {
        let direction = &self.directions[cell * self.dim..][..self.dim];
        let rest: Vec<f32> = key.iter().zip(self.centroid(cell)).map(|(x, c)| x - c).collect();
        dot(&rest, direction)
    }

    /// Where a coordinate of a cell lies on the axis of all cells. Cells have intervals of their own; inside, the normal
    /// law makes the places even.
    pub fn y(&self, cell: usize, t: f32) -> f64 {
        let spread = &self.spreads[cell];
        spread.begin + spread.room * f64::from(normal_cdf((t - spread.mean) / spread.deviation))
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.centroids_and_slopes.capacity() + self.directions.capacity())
            + self.spreads.capacity() * size_of::<Spread>()
    }
}

/// The direction in which a cell's tokens differ for the queries that look at it; a unit vector.
fn direction(centroid: &[f32], prefill: &[f32], aligned: Aligned) -> Vec<f32> {
    let d = centroid.len();
    let mut sum = vec![0.0f64; d];
    if aligned == Aligned::Queries && !prefill.is_empty() {
        let logits: Vec<f32> = prefill.chunks_exact(d).map(|query| dot(query, centroid)).collect();
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for (query, logit) in prefill.chunks_exact(d).zip(logits) {
            let weight = f64::from(logit - most).exp();
            sum.iter_mut().zip(query).for_each(|(sum, q)| *sum += weight * f64::from(*q));
        }
    } else {
        sum.iter_mut().zip(centroid).for_each(|(sum, c)| *sum = f64::from(*c));
    }
    let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        return sum.into_iter().map(|x| (x / norm) as f32).collect();
    }
    let mut first = vec![0.0; d];
    first[0] = 1.0;
    first
}

fn spread(ts: &[f32]) -> Spread {
    let n = ts.len().max(1) as f64;
    let mean = ts.iter().map(|&t| f64::from(t)).sum::<f64>() / n;
    let variance = ts.iter().map(|&t| (f64::from(t) - mean).powi(2)).sum::<f64>() / n;
    let ends = ts.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &t| (low.min(t), high.max(t)));
    Spread {
        len: ts.len(),
        mean: mean as f32,
        deviation: (variance.sqrt() as f32).max(1e-6),
        fitted: ts.len(),
        min: ends.0,
        max: ends.1,
        residual: 0.0,
        radius: 0.0,
        begin: 0.0,
        room: ts.len() as f64,
    }
}

fn residual(rest: &[f32], slope: &[f32], t: f32) -> f32 {
    rest.iter().zip(slope).map(|(r, g)| (r - g * t).powi(2)).sum::<f32>().sqrt()
}

/// Centroids `[count, dim]`, from evenly spaced rows on.
pub(super) fn k_means(rows: &[f32], dim: usize, count: usize, rounds: usize) -> Vec<f32> {
    let n = rows.len() / dim;
    let start = |i: usize| if count > 1 { i * (n - 1) / (count - 1) } else { 0 };
    let mut centroids: Vec<f32> = (0..count).flat_map(|i| rows[start(i) * dim..][..dim].to_vec()).collect();
    for _ in 0..rounds {
        let owner = nearest(&centroids, rows, dim);
        let (mut sums, mut sizes) = (vec![0.0f64; count * dim], vec![0usize; count]);
        for (row, cell) in rows.chunks_exact(dim).zip(owner) {
            sizes[cell as usize] += 1;
            let sum = &mut sums[cell as usize * dim..][..dim];
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        for ((centroid, sum), &size) in centroids.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(&sizes) {
            if size > 0 {
                centroid.iter_mut().zip(sum).for_each(|(c, sum)| *c = (sum / size as f64) as f32);
            }
        }
    }
    centroids
}

/// The nearest centroid of every row.
fn nearest(centroids: &[f32], rows: &[f32], dim: usize) -> Vec<u32> {
    let halves: Vec<f32> = each(|| centroids.chunks_exact(dim).map(|c| 0.5 * dot(c, c)).collect());
    best_rows(centroids, &halves, rows, dim)
}

/// Pieces of the polygon that stands for the normal law, from −[`FAR`] to [`FAR`].
const PIECES: usize = 1024;
const FAR: f32 = 6.0;

/// Standard normal distribution function, to 5e-6. A polygon whose pieces are clamped to their ends: it never decreases,
/// by no bit, so that places keep the order of coordinates.
///
/// Source of the points: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.17.
pub(super) struct Normal([f32; PIECES + 1]);

static NORMAL: LazyLock<Normal> = LazyLock::new(|| {
    let mut points = std::array::from_fn(|i| {
        let x = (i as f64 / PIECES as f64 * 2.0 - 1.0) * f64::from(FAR);
        let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
        let p =
            t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
        let tail = 0.398_942_280_401_432_7 * (-0.5 * x * x).exp() * p;
        (if x > 0.0 { 1.0 - tail } else { tail }) as f32
    });
    (points[0], points[PIECES]) = (0.0, 1.0);
    Normal(points)
});

impl Normal {
    pub(super) fn law() -> &'static Self {
        &NORMAL
    }

    /// How likely a number up to `x` is.
    #[inline(always)]
    pub(super) fn below(&self, x: f32) -> f32 {
        let at = (x.clamp(-FAR, FAR) + FAR) * (PIECES as f32 / (2.0 * FAR));
        let i = (at as u32).min(PIECES as u32 - 1);
        let (low, high) = (self.0[i as usize], self.0[i as usize + 1]);
        (low + (at - i as f32) * (high - low)).min(high)
    }
}

/// [`Normal::below`] of the one law there is.
pub(super) fn normal_cdf(x: f32) -> f32 {
    Normal::law().below(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_law() {
        for (x, p) in [(0.0, 0.5), (1.0, 0.841_345), (-1.96, 0.024_998), (3.0, 0.998_65)] {
            assert!((normal_cdf(x) - p).abs() < 5e-6, "{x}");
        }
        let around_zero = (-2_000_000..2_000_000).map(|i| normal_cdf(i as f32 * 1e-9));
        let all = (0..1_000_000).map(|i| normal_cdf(-7.0 + i as f32 * 1.4e-5));
        assert!(around_zero.is_sorted() && all.is_sorted());
        assert_eq!((normal_cdf(f32::NEG_INFINITY), normal_cdf(f32::INFINITY)), (0.0, 1.0));
    }
}
