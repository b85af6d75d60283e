//! Learning rates over the steps of a run.

use serde::{Deserialize, Serialize};

/// How the rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
    /// Not at all.
    Constant,
    /// Not until this share of the steps is done, then in a straight line: a run can be made longer without another
    /// beginning.
    Late(f64),
}

/// Linear warm-up from 0, then a decay to `last · peak` at the last step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// Steps of warm-up: step `i` has `(i + 1) / warmup` of the rate.
    pub warmup: u64,
    /// How it falls.
    pub decay: Decay,
    /// The rate at the end as a share of the peak.
    pub last: f64,
    /// Steps of the whole run.
    pub steps: u64,
}

impl Schedule {
    /// The rate of a step, counted from 0. The decay runs over the whole run, under the warm-up too.
    ///
    /// ```
    /// use kindling_distill::schedule::{Decay, Schedule};
    /// let schedule = Schedule { peak: 1.0, warmup: 10, decay: Decay::Linear, last: 0.0, steps: 100 };
    /// assert_eq!(schedule.rate(0), 0.1);
    /// assert_eq!(schedule.rate(50), 0.5);
    /// ```
    pub fn rate(&self, step: u64) -> f64 {
        let warm = if self.warmup == 0 { 1.0 } else { ((step + 1) as f64 / self.warmup as f64).min(1.0) };
        let done = (step as f64 / self.steps.max(1) as f64).min(1.0);
        let left = match self.decay {
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Decay::Linear => 1.0 - done,
            Decay::Constant => 1.0,
            Decay::Late(kept) => ((1.0 - done) / (1.0 - kept).max(f64::MIN_POSITIVE)).min(1.0),
        };
        self.peak * warm * (self.last + (1.0 - self.last) * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_starts_high_halves_in_the_middle_and_ends_at_the_last_share() {
        let s = Schedule { peak: 2.0, warmup: 0, decay: Decay::Cosine, last: 0.1, steps: 100 };
        assert!((s.rate(0) - 2.0).abs() < 1e-12);
        assert!((s.rate(50) - 1.1).abs() < 1e-12);
        assert!((s.rate(100) - 0.2).abs() < 1e-12 && (s.rate(500) - 0.2).abs() < 1e-12);
        let constant = Schedule { decay: Decay::Constant, warmup: 4, ..s };
        assert_eq!([0, 1, 3, 99].map(|i| constant.rate(i)), [0.5, 1.0, 2.0, 2.0]);
        let late = Schedule { decay: Decay::Late(0.8), last: 0.0, ..s };
        for (step, rate) in [(0, 2.0), (79, 2.0), (80, 2.0), (90, 1.0), (100, 0.0)] {
            assert!((late.rate(step) - rate).abs() < 1e-12, "{step}");
        }
    }
}
