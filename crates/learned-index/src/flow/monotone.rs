//! A flow that ascends.
//!
//! A sum of soft steps, one for each of some equally filled bins of the keys, so that it follows the distribution of the
//! keys without being trained. It repairs the global shape, not fine clusters: it does less than folding, and keeps the
//! order.
//!
//! In exact arithmetic the sum is strictly increasing; in floating point a neighbour may come out an ulp lower, which
//! would break a map. So [`MonotoneFlow::place`] reads it off a polygon through some of its points, whose pieces are
//! clamped to their ends: that never decreases.
//!
//! Cost: a binary search and one product a key.

use serde::{Deserialize, Serialize};

use super::tanh::tanh;
use crate::error::{Error, Result};

/// Points of the polygon in every bin.
const POINTS: usize = 4;
/// Narrowest bin.
const NARROWEST: f64 = 1e-18;

/// A soft step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// Steepness.
    u: f64,
    /// Shift.
    b: f64,
}

/// A flow as serde stores it, not yet checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    min: f64,
    range: f64,
    steps: Vec<Step>,
    points: Vec<(f64, f64)>,
}

impl TryFrom<Stored> for MonotoneFlow {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self> {
        let Stored { min, range, steps, mut points } = stored;
        let numbers = steps.iter().flat_map(|step| [step.u, step.b]).chain(points.iter().flat_map(|&(x, y)| [x, y]));
        let whole = numbers.chain([min]).all(f64::is_finite) && range > 0.0 && range.is_finite() && !steps.is_empty();
        // A format that rounds numbers may have made two points one.
        points.dedup_by(|next, last| next.0 <= last.0 && next.1 <= last.1);
        if !whole || points.len() < 2 || !points.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1) {
            return Err(Error::Invalid(format!(
                "a monotone flow is finite and has a range, at least one step and two points, and its points ascend; \
                 found a range of {range}, {} steps and {} points",
                steps.len(),
                points.len()
            )));
        }
        Ok(Self { min, range, steps, points })
    }
}

impl From<MonotoneFlow> for Stored {
    fn from(flow: MonotoneFlow) -> Self {
        let MonotoneFlow { min, range, steps, points } = flow;
        Self { min, range, steps, points }
    }
}

/// A strictly increasing function of the key, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct MonotoneFlow {
    min: f64,
    range: f64,
    steps: Vec<Step>,
    /// Points of the polygon: distance from the smallest key, and height; both ascend.
    points: Vec<(f64, f64)>,
}

impl MonotoneFlow {
    /// A flow of `steps` for sorted keys, given as distances from the smallest, `min`.
    ///
    /// # Errors
    /// [`Error::Invalid`] without keys, without a range or without steps.
    pub fn fit(min: f64, offsets: &[f64], steps: usize) -> Result<Self> {
        let range = offsets.last().copied().unwrap_or(0.0);
        if !(range > 0.0 && range.is_finite()) || steps == 0 {
            return Err(Error::Invalid(format!(
                "a monotone flow needs keys with a finite range and at least one step, found {range} and {steps}"
            )));
        }
        let n = offsets.len();
        let x = |rank: usize| offsets[rank.min(n - 1)] / range;
        let edges: Vec<f64> = (0..=steps).map(|h| x(h * n / steps)).collect();
        let medians: Vec<f64> = (0..steps).map(|h| x((2 * h + 1) * n / (2 * steps))).collect();
        let widths = edges.windows(2).map(|two| (two[1] - two[0]).max(NARROWEST));
        let steps = medians.iter().zip(widths).map(|(median, width)| Step { u: 2.0 / width, b: -2.0 / width * median });
        Ok(Self::new(min, range, steps.collect(), &edges))
    }

    fn new(min: f64, range: f64, steps: Vec<Step>, edges: &[f64]) -> Self {
        let mut flow = Self { min, range, steps, points: Vec::new() };
        let inside = edges.windows(2).flat_map(|two| {
            let (begin, end) = (two[0], two[1]);
            (0..POINTS).map(move |i| begin + (end - begin) * i as f64 / POINTS as f64)
        });
        let mut points: Vec<(f64, f64)> = Vec::new();
        for x in inside.chain([1.0]) {
            let point = (x * range, flow.height(x));
            // Equal or an ulp too low: rounding, no information.
            if points.last().is_none_or(|last| point.0 > last.0 && point.1 > last.1) {
                points.push(point);
            }
        }
        // Two make a piece. Keys have a range, so the flow ascends over it, unless rounding ate the rise.
        if let [(x, y)] = points[..] {
            points.push((x + range, y + 1.0));
        }
        flow.points = points;
        flow
    }

    /// The flow at a key, by its formula.
    pub fn transform(&self, key: f64) -> f64 {
        self.height((key - self.min) / self.range)
    }

    fn height(&self, x: f64) -> f64 {
        let sum: f64 = self.steps.iter().map(|step| 0.5 * (1.0 + tanh(step.u * x + step.b))).sum();
        sum / self.steps.len() as f64
    }

    /// The flow at a distance from the smallest key, by its polygon: never decreases, by no bit. The first and the last
    /// piece go on beyond the keys, so that keys out there have places of their own.
    #[inline]
    pub fn place(&self, offset: f64) -> f64 {
        let after = self.points.partition_point(|point| point.0 <= offset).clamp(1, self.points.len() - 1);
        let ((x0, y0), (x1, y1)) = (self.points[after - 1], self.points[after]);
        let y = y0 + (offset - x0) * ((y1 - y0) / (x1 - x0));
        // Rounding must not pass a corner.
        if offset < x0 {
            y.min(y0)
        } else if offset > x1 {
            y.max(y1)
        } else {
            y.max(y0).min(y1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::KeySet;
    use crate::key::F64;
    use crate::line::Conflicts;

    #[test]
    fn the_worked_example() {
        let medians = [0.05, 0.2, 0.45, 0.8];
        let widths = [0.1, 0.2, 0.3, 0.4];
        let steps = medians.iter().zip(widths).map(|(m, w)| Step { u: 2.0 / w, b: -2.0 / w * m }).collect();
        let flow = MonotoneFlow::new(0.0, 1.0, steps, &[0.0, 0.1, 0.3, 0.6, 1.0]);
        let expected = [(0.0, 0.034_999), (0.05, 0.138_196), (0.2, 0.383_611), (0.5, 0.676_427), (1.0, 0.970_036)];
        for (x, z) in expected {
            assert!((flow.transform(x) - z).abs() < 1e-6, "{x}: {}", flow.transform(x));
            assert!((flow.place(x) - z).abs() < 0.01);
        }
    }

    #[test]
    fn conflicts_shrink_as_published() {
        // Name, tail conflict raw, and with 8, 64 and 512 steps.
        let published = [
            ("lognormal", [253, 4, 3, 3]),
            ("longitudes", [25, 19, 12, 4]),
            ("longlat", [327, 122, 57, 9]),
            ("osm", [3289, 3288, 34, 6]),
            ("zipfgap", [13, 13, 9, 7]),
        ];
        for (name, tails) in published {
            let mut keys = KeySet::named(name).unwrap().generate(100_000, 42).to_f64();
            keys.dedup();
            let offsets: Vec<f64> = keys.iter().map(|key| key - keys[0]).collect();
            for (steps, tail) in [8, 64, 512].into_iter().zip(&tails[1..]) {
                let flow = MonotoneFlow::fit(keys[0], &offsets, steps).unwrap();
                let mut z: Vec<F64> = keys.iter().map(|&key| F64::new(flow.transform(key)).unwrap()).collect();
                z.sort_unstable();
                let found = Conflicts::of(&z, 1.5).tail;
                // Sums of tanh in another order move a key across an edge here and there, and more of them where keys
                // lie in the last bits of a step: 36 for osm with 64 steps.
                let room = if (name, steps) == ("osm", 64) { 2 } else { 1 + tail / 50 };
                assert!(found.abs_diff(*tail) <= room, "{name}, {steps} steps: {found}, published {tail}");
            }
        }
    }

    #[test]
    fn places_never_descend() {
        for set in KeySet::ALL {
            let keys = set.generate(20_000, 42).to_f64();
            let offsets: Vec<f64> = keys.iter().map(|key| key - keys[0]).collect();
            let flow = MonotoneFlow::fit(keys[0], &offsets, 64).unwrap();
            let probes = offsets.iter().flat_map(|&x| [x.next_down(), x, x.next_up(), x + x * 1e-9]);
            let mut probes: Vec<f64> = probes.chain([-1.0, f64::INFINITY, 0.0]).collect();
            probes.sort_by(f64::total_cmp);
            assert!(probes.iter().map(|&x| flow.place(x)).collect::<Vec<_>>().is_sorted(), "{}", set.name);
        }
        assert!(MonotoneFlow::fit(0.0, &[], 8).is_err() && MonotoneFlow::fit(0.0, &[0.0, 1.0], 0).is_err());
    }
}
