//! RadixSpline: a polygon through ranks, built in one pass, and a table that finds its points by the first bits of a key.
//!
//! Source: "RadixSpline: A Single-Pass Learned Index", arXiv 2004.14541.

use kindling_core::{OrderedIndex, PointIndex};

use super::{lower_bound, visit_from};

/// Pieces up to here are searched one after the other.
const LINEAR: usize = 32;

/// A sorted array under a spline.
#[derive(Debug, Clone)]
pub struct RadixSpline<V> {
    keys: Vec<u64>,
    values: Vec<V>,
    /// Key and rank.
    points: Vec<(u64, f64)>,
    /// The first point whose prefix is at least the position.
    table: Vec<u32>,
    shift: u32,
    error: usize,
}

/// Points of the spline: every rank is within `error` of it.
pub fn spline(keys: &[u64], error: usize) -> Vec<(u64, f64)> {
    let e = error as f64;
    let Some(&first) = keys.first() else { return Vec::new() };
    let mut points = vec![(first, 0.0)];
    let mut base = (first, 0.0);
    // Ends of the cone: key and rank.
    let mut limits: Option<[(u64, f64); 2]> = None;
    let slope = |from: (u64, f64), to: (u64, f64)| (to.1 - from.1) / (to.0 - from.0) as f64;
    for i in 1..keys.len() {
        let (key, rank) = (keys[i], i as f64);
        let own = [(key, rank + e), (key, (rank - e).max(0.0))];
        let Some([upper, lower]) = &mut limits else {
            limits = Some(own);
            continue;
        };
        let here = slope(base, (key, rank));
        if here >= slope(base, *upper) || here <= slope(base, *lower) {
            base = (keys[i - 1], rank - 1.0);
            points.push(base);
            limits = Some(own);
            continue;
        }
        if slope(base, own[0]) < slope(base, *upper) {
            *upper = own[0];
        }
        if slope(base, own[1]) > slope(base, *lower) {
            *lower = own[1];
        }
    }
    if keys.len() > 1 {
        points.push((keys[keys.len() - 1], (keys.len() - 1) as f64));
    }
    points
}

impl<V> RadixSpline<V> {
    /// Of pairs that ascend, with a table of 2^`bits` prefixes.
    pub fn from_ascending(pairs: Vec<(u64, V)>, bits: u32, error: usize) -> Self {
        let (keys, values): (Vec<u64>, Vec<V>) = pairs.into_iter().unzip();
        let points = spline(&keys, error);
        let (first, last) = (keys.first().copied().unwrap_or(0), keys.last().copied().unwrap_or(0));
        let shift = (64 - (last - first).leading_zeros()).saturating_sub(bits);
        let mut table = Vec::new();
        for (i, point) in points.iter().enumerate() {
            let prefix = ((point.0 - first) >> shift) as usize;
            while table.len() <= prefix {
                table.push(i as u32);
            }
        }
        table.push(points.len().saturating_sub(1) as u32);
        Self { keys, values, points, table, shift, error }
    }

    fn lower_bound(&self, key: u64) -> usize {
        let (Some(&first), Some(&last)) = (self.keys.first(), self.keys.last()) else { return 0 };
        if key <= first {
            return 0;
        }
        if key > last {
            return self.keys.len();
        }
        let prefix = ((key - first) >> self.shift) as usize;
        let (begin, end) = (self.table[prefix] as usize, self.table[prefix + 1] as usize);
        let piece = &self.points[begin..=end];
        let at = if piece.len() < LINEAR {
            piece.iter().position(|point| point.0 >= key).unwrap_or(piece.len())
        } else {
            piece.partition_point(|point| point.0 < key)
        };
        let right = self.points[(begin + at).clamp(1, self.points.len() - 1)];
        let left = self.points[(begin + at).clamp(1, self.points.len() - 1) - 1];
        let rank = left.1 + (key - left.0) as f64 * ((right.1 - left.1) / (right.0 - left.0) as f64);
        let begin = (rank as usize).saturating_sub(self.error);
        let end = (rank as usize + self.error + 2).min(self.keys.len());
        begin + lower_bound(&self.keys[begin..end], &key)
    }
}

impl<V> PointIndex<u64, V> for RadixSpline<V> {
    fn len(&self) -> usize {
        self.keys.len()
    }

    fn get(&self, key: &u64) -> Option<&V> {
        let at = self.lower_bound(*key);
        (self.keys.get(at)? == key).then(|| &self.values[at])
    }

    fn bytes(&self) -> usize {
        self.keys.capacity() * 8
            + self.values.capacity() * size_of::<V>()
            + self.points.capacity() * 16
            + self.table.capacity() * 4
    }
}

impl<V> OrderedIndex<u64, V> for RadixSpline<V> {
    fn scan(&self, from: &u64, limit: usize, visit: &mut dyn FnMut(&u64, &V)) -> usize {
        visit_from(&self.keys, &self.values, self.lower_bound(*from), limit, visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares() {
        let keys: Vec<u64> = (0..20).map(|i| i * i).collect();
        assert_eq!(spline(&keys, 1), [(0, 0.0), (9, 3.0), (100, 10.0), (361, 19.0)]);
        assert_eq!(spline(&keys, 2), [(0, 0.0), (49, 7.0), (361, 19.0)]);
    }
}
