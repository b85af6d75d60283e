//! The PGM-index: the fewest lines that predict every rank to within ε, and lines over those lines.
//!
//! Source: "The PGM-index: a fully-dynamic compressed learned index with provable worst-case bounds" (arXiv 1910.06169);
//! the hulls after O'Rourke, "An on-line algorithm for fitting straight lines between data ranges" (1981).

use std::cmp::Ordering;
use std::hint::select_unpredictable;
use std::ops::{Mul, Sub};

use kindling_core::{OrderedIndex, PointIndex};

use super::visit_from;
use crate::key::{F64, Key};

/// Error of the levels above the first.
const INNER: usize = 4;

/// A line that predicts ranks from `key` on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment<K> {
    /// First key.
    pub key: K,
    /// Ranks per unit.
    pub slope: f64,
    /// Rank predicted at `key`.
    pub intercept: f64,
    /// Smallest slope that would do.
    pub least: f64,
}

/// What hulls are computed with: exact for integers.
pub trait Number: Copy + PartialOrd + Sub<Output = Self> + Mul<Output = Self> {
    /// A rank.
    fn of(rank: i64) -> Self;
    /// Rounded.
    fn to_f64(self) -> f64;
}

impl Number for i128 {
    fn of(rank: i64) -> Self {
        rank.into()
    }

    fn to_f64(self) -> f64 {
        self as f64
    }
}

impl Number for f64 {
    fn of(rank: i64) -> Self {
        rank as f64
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// A key whose distances are known exactly, or as well as a float can.
pub trait Exact: Key {
    /// Type of a distance.
    type Number: Number;

    /// `self − base`.
    fn distance(self, base: Self) -> Self::Number;
}

macro_rules! exact {
    ($($type:ty),*) => {$(
        impl Exact for $type {
            type Number = i128;

            fn distance(self, base: Self) -> i128 {
                i128::from(self) - i128::from(base)
            }
        }
    )*};
}

exact!(u16, u32, u64, i32, i64);

impl Exact for F64 {
    type Number = f64;

    fn distance(self, base: Self) -> f64 {
        self.get() - base.get()
    }
}

#[derive(Debug, Clone, Copy)]
struct Point<N> {
    x: N,
    y: N,
}

/// Whether `b` lies left of the line from `o` to `a` (greater), on it, or right of it.
fn turns_left<N: Number>(o: Point<N>, a: Point<N>, b: Point<N>) -> Option<Ordering> {
    ((a.x - o.x) * (b.y - o.y)).partial_cmp(&((a.y - o.y) * (b.x - o.x)))
}

/// Whether the slope from `a` to `b` is less than that from `c` to `d`; the points of each pair ascend.
fn flatter<N: Number>(a: Point<N>, b: Point<N>, c: Point<N>, d: Point<N>) -> bool {
    (b.y - a.y) * (d.x - c.x) < (d.y - c.y) * (b.x - a.x)
}

fn slope<N: Number>(a: Point<N>, b: Point<N>) -> f64 {
    (b.y - a.y).to_f64() / (b.x - a.x).to_f64()
}

/// The lines that fit the points seen since the segment began.
struct Hull<N> {
    high: Vec<Point<N>>,
    low: Vec<Point<N>>,
    high_from: usize,
    low_from: usize,
    /// Ends of the flattest line (0, 2) and of the steepest (1, 3).
    corners: [Point<N>; 4],
    first: N,
    count: usize,
}

impl<N: Number> Hull<N> {
    fn new(high: Point<N>, low: Point<N>) -> Self {
        let corners = [high, low, low, high];
        Self { high: vec![high], low: vec![low], high_from: 0, low_from: 0, corners, first: high.x, count: 1 }
    }

    /// Takes a point in; false if no line fits any more.
    fn add(&mut self, high: Point<N>, low: Point<N>) -> bool {
        let [r0, r1, r2, r3] = self.corners;
        if self.count == 1 {
            self.corners[2] = low;
            self.corners[3] = high;
            self.high.push(high);
            self.low.push(low);
            self.count = 2;
            return true;
        }
        if flatter(r2, high, r0, r2) || flatter(r1, r3, r3, low) {
            return false;
        }
        if flatter(r1, high, r1, r3) {
            let mut best = self.low_from;
            while best + 1 < self.low.len() && !flatter(self.low[best], high, self.low[best + 1], high) {
                best += 1;
            }
            self.corners[1] = self.low[best];
            self.corners[3] = high;
            self.low_from = best;
            while self.high.len() >= self.high_from + 2
                && turns_left(self.high[self.high.len() - 2], self.high[self.high.len() - 1], high)
                    != Some(Ordering::Greater)
            {
                self.high.pop();
            }
            self.high.push(high);
        }
        if flatter(r0, r2, r0, low) {
            let mut best = self.high_from;
            while best + 1 < self.high.len() && !flatter(self.high[best + 1], low, self.high[best], low) {
                best += 1;
            }
            self.corners[0] = self.high[best];
            self.corners[2] = low;
            self.high_from = best;
            while self.low.len() >= self.low_from + 2
                && turns_left(self.low[self.low.len() - 2], self.low[self.low.len() - 1], low) != Some(Ordering::Less)
            {
                self.low.pop();
            }
            self.low.push(low);
        }
        self.count += 1;
        true
    }

    /// The line through the middle of what is possible.
    fn segment<K>(&self, key: K) -> Segment<K> {
        let [r0, r1, r2, r3] = self.corners;
        if self.count == 1 {
            return Segment { key, slope: 0.0, intercept: (r0.y.to_f64() + r1.y.to_f64()) / 2.0, least: 0.0 };
        }
        // The steepest line: ranks ascend, so the flattest may fall.
        let steepest = slope(r1, r3);
        Segment {
            key,
            slope: steepest,
            intercept: r1.y.to_f64() - steepest * (r1.x - self.first).to_f64(),
            least: slope(r0, r2),
        }
    }
}

/// The fewest segments over ascending keys such that every rank is predicted to within `epsilon`.
///
/// Keys are taken as distances from the first of their segment, so that integers keep all their digits.
pub fn segments<K: Exact>(keys: &[K], epsilon: usize) -> Vec<Segment<K>> {
    let e = epsilon as i64;
    let mut segments = Vec::new();
    let mut begin = 0;
    while begin < keys.len() {
        let first = keys[begin];
        let ends = |i: usize| {
            let (x, rank) = (keys[i].distance(first), (i - begin) as i64);
            (Point { x, y: Number::of(rank + e) }, Point { x, y: Number::of(rank - e) })
        };
        let (high, low) = ends(begin);
        let mut hull = Hull::new(high, low);
        let mut next = begin + 1;
        while next < keys.len() {
            let (high, low) = ends(next);
            // Floats whose distances round to the same number cannot be told apart by a line.
            if high.x <= keys[next - 1].distance(first) || !hull.add(high, low) {
                break;
            }
            next += 1;
        }
        let segment = hull.segment(first);
        segments.push(Segment { intercept: segment.intercept + begin as f64, ..segment });
        begin = next;
    }
    segments
}

/// The segments of the shrinking cone, for comparison: a line through the first point of each.
pub fn cone<K: Key>(keys: &[K], epsilon: usize) -> usize {
    let e = epsilon as f64;
    let (mut count, mut begin) = (0, 0);
    while begin < keys.len() {
        let (mut least, mut most) = (f64::NEG_INFINITY, f64::INFINITY);
        let mut next = begin + 1;
        while next < keys.len() {
            let (x, y) = (keys[next].offset_from(keys[begin]), (next - begin) as f64);
            (least, most) = (least.max((y - e) / x), most.min((y + e) / x));
            if least > most {
                break;
            }
            next += 1;
        }
        count += 1;
        begin = next;
    }
    count
}

/// A sorted array under levels of segments.
#[derive(Debug, Clone)]
pub struct PgmMap<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    index: Pgm<K>,
}

/// The levels of segments over a sorted array that somebody else holds.
#[derive(Debug, Clone)]
pub struct Pgm<K> {
    /// The first level predicts positions of keys, the next ones positions of segments.
    levels: Vec<Level<K>>,
}

#[derive(Debug, Clone)]
struct Level<K> {
    segments: Vec<Segment<K>>,
    /// Largest error, as measured after rounding.
    error: usize,
    /// How many there are below.
    below: usize,
}

impl<K: Exact> Level<K> {
    fn new(keys: &[K], epsilon: usize) -> Self {
        let segments = segments(keys, epsilon);
        let mut level = Self { segments, error: 0, below: keys.len() };
        let mut s = 0;
        for (rank, &key) in keys.iter().enumerate() {
            while s + 1 < level.segments.len() && level.segments[s + 1].key <= key {
                s += 1;
            }
            level.error = level.error.max(level.predict(s, key).abs_diff(rank));
        }
        level
    }

    /// Position of `key` by segment `s`, not beyond where the next begins.
    fn predict(&self, s: usize, key: K) -> usize {
        let segment = &self.segments[s];
        let at = segment.slope * key.offset_from(segment.key) + segment.intercept;
        let end = self.segments.get(s + 1).map_or(self.below as f64, |next| next.intercept);
        at.min(end).max(0.0) as usize
    }
}

impl<K: Exact> Pgm<K> {
    /// Levels over ascending keys, the first with error `epsilon`.
    pub fn new(keys: &[K], epsilon: usize) -> Self {
        let mut levels = vec![Level::new(keys, epsilon)];
        while let Some(top) = levels.last().filter(|level| level.segments.len() > 1) {
            let keys: Vec<K> = top.segments.iter().map(|segment| segment.key).collect();
            levels.push(Level::new(&keys, INNER));
        }
        Self { levels }
    }

    /// Segments of the first level.
    pub fn segments(&self) -> usize {
        self.levels[0].segments.len()
    }

    /// Bytes of all levels.
    pub fn bytes(&self) -> usize {
        self.levels.iter().map(|level| level.segments.capacity() * size_of::<Segment<K>>()).sum()
    }

    /// The first position of `keys`, which the index was built on, that holds no smaller key.
    pub fn lower_bound(&self, keys: &[K], key: &K) -> usize {
        self.lower_bound_by(keys.len(), |at| keys[at], key)
    }

    /// As [`Pgm::lower_bound`], over `n` keys that `at` gives by position.
    pub fn lower_bound_by(&self, n: usize, at: impl Fn(usize) -> K, key: &K) -> usize {
        let key_at = at;
        if n == 0 || *key <= key_at(0) {
            return 0;
        }
        if *key > key_at(n - 1) {
            return n;
        }
        let mut s = 0;
        for two in self.levels.windows(2).rev() {
            let (below, level) = (&two[0].segments, &two[1]);
            let at = level.predict(s, *key);
            s = at.saturating_sub(level.error + 1).min(below.len() - 1);
            while s + 1 < below.len() && below[s + 1].key <= *key {
                s += 1;
            }
        }
        let level = &self.levels[0];
        let at = level.predict(s, *key);
        let mut begin = at.saturating_sub(level.error).min(n);
        let mut size = (at + level.error + 2).min(n) - begin;
        while size > 0 {
            let half = size / 2;
            let smaller = key_at(begin + half) < *key;
            begin = select_unpredictable(smaller, begin + half + 1, begin);
            size = if smaller { size - half - 1 } else { half };
        }
        begin
    }
}

impl<K: Exact, V> PgmMap<K, V> {
    /// Of pairs that ascend.
    pub fn from_ascending(pairs: Vec<(K, V)>, epsilon: usize) -> Self {
        let (keys, values): (Vec<K>, Vec<V>) = pairs.into_iter().unzip();
        let index = Pgm::new(&keys, epsilon);
        Self { keys, values, index }
    }

    /// The lines.
    pub fn index(&self) -> &Pgm<K> {
        &self.index
    }
}

impl<K: Exact, V> PointIndex<K, V> for PgmMap<K, V> {
    fn len(&self) -> usize {
        self.keys.len()
    }

    fn get(&self, key: &K) -> Option<&V> {
        let at = self.index.lower_bound(&self.keys, key);
        (self.keys.get(at)? == key).then(|| &self.values[at])
    }

    fn bytes(&self) -> usize {
        self.keys.capacity() * size_of::<K>() + self.values.capacity() * size_of::<V>() + self.index.bytes()
    }
}

impl<K: Exact, V> OrderedIndex<K, V> for PgmMap<K, V> {
    fn scan(&self, from: &K, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize {
        visit_from(&self.keys, &self.values, self.index.lower_bound(&self.keys, from), limit, visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{KeySet, Keys};

    #[test]
    fn squares() {
        let keys: Vec<u64> = (0..20).map(|i| i * i).collect();
        let found = |epsilon| segments(&keys, epsilon);
        let one = found(1);
        assert_eq!(one.iter().map(|s| s.key).collect::<Vec<_>>(), [0, 81]);
        assert_eq!(one[0].slope, 0.125);
        let two = found(2);
        assert_eq!(two.iter().map(|s| s.key).collect::<Vec<_>>(), [0, 289]);
        assert_eq!(two[0].slope, 0.0625);
        let four = found(4);
        assert_eq!(four.len(), 1);
        assert!((four[0].least - 0.031_250).abs() < 1e-6 && (four[0].slope - 0.063_973).abs() < 1e-6, "{four:?}");
        assert_eq!([1, 2, 4].map(|epsilon| cone(&keys, epsilon)), [3, 2, 1]);
    }

    #[test]
    fn segments_of_all_sets_are_the_published_ones() {
        // Name, optimal segments at 32 and 1024, cone at 32.
        let published = [
            ("dense", 1, 1, 1),
            ("uniform", 27, 1, 35),
            ("normal", 45, 6, 57),
            ("lognormal", 57, 8, 69),
            ("zipfgap", 301, 10, 395),
            ("outliers", 103, 4, 140),
            ("osm", 333, 26, 395),
            ("ts", 107, 9, 125),
            ("longitudes", 193, 16, 229),
            ("longlat", 320, 18, 374),
        ];
        fn counts<K: Exact>(keys: &[K]) -> (usize, usize, usize) {
            let fits = |epsilon: usize| {
                let level = Level::new(keys, epsilon);
                assert!(level.error <= epsilon + 1, "{epsilon}: {}", level.error);
                level.segments.len()
            };
            (fits(32), fits(1024), cone(keys, 32))
        }
        for (name, fine, coarse, cones) in published {
            let found = match KeySet::named(name).unwrap().generate(100_000, 42) {
                Keys::U64(keys) => counts(&keys),
                Keys::F64(keys) => counts(&keys),
            };
            assert_eq!(found, (fine, coarse, cones), "{name}");
        }
    }
}
