//! Whether a flow takes conflicts away.
//!
//! Source: "NFL: Robust Learned Index via Distribution Transformation", arXiv 2205.11807.

use serde::{Deserialize, Serialize};

use crate::flow::FoldingFlow;
use crate::key::F64;
use crate::line::Conflicts;

/// Slots a key in the test.
const AMPLIFICATION: f64 = 1.5;

/// What the switch test found. [`NflMap`](super::NflMap) also asks whether look-ups get shorter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Switch {
    /// Tail conflict of the keys.
    pub raw: usize,
    /// Tail conflict of where the flow puts them.
    pub flow: usize,
    /// Whether the flow helps: it takes away more than nothing and at least a tenth.
    pub on: bool,
}

impl Switch {
    /// Tests a flow on keys that ascend, given as distances from the smallest.
    pub fn test(offsets: &[f64], flow: &FoldingFlow) -> Self {
        let real = |x: f64| F64::new(x).unwrap_or_default();
        let raw: Vec<F64> = offsets.iter().map(|&x| real(x)).collect();
        let mut z = offsets.to_vec();
        flow.transform_offsets(&mut z);
        let mut z: Vec<F64> = z.into_iter().map(real).collect();
        z.sort_unstable();
        Self::of(Conflicts::of(&raw, AMPLIFICATION).tail, Conflicts::of(&z, AMPLIFICATION).tail)
    }

    fn of(raw: usize, flow: usize) -> Self {
        Self { raw, flow, on: raw > flow && raw - flow >= (0.1 * raw as f64) as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::KeySet;
    use crate::flow::train::{TrainConfig, train};

    #[test]
    fn the_rule() {
        assert!(!Switch::of(3, 3).on && !Switch::of(3, 4).on && Switch::of(4, 3).on);
        assert!(!Switch::of(100, 91).on && Switch::of(100, 90).on && !Switch::of(0, 0).on);
    }

    #[test]
    fn decisions_on_all_sets_are_the_published_ones() {
        // Name, tail conflict with the flow (none where it varies with the seed), decision.
        let published = [
            ("dense", None, false),
            ("uniform", Some(3), false),
            ("normal", Some(3), false),
            ("lognormal", Some(4), true),
            ("zipfgap", Some(3), true),
            ("outliers", None, false),
            ("osm", None, true),
            ("ts", Some(3), true),
            ("longitudes", Some(3), true),
            ("longlat", Some(3), true),
        ];
        for (name, tail, on) in published {
            let mut keys = KeySet::named(name).unwrap().generate(100_000, 42).to_f64();
            keys.dedup();
            let offsets: Vec<f64> = keys.iter().map(|key| key - keys[0]).collect();
            let best = (0..3)
                .map(|seed| {
                    let config = TrainConfig { seed: 1_000_000_003 + seed, ..TrainConfig::default() };
                    train(keys[0], &offsets, &config).unwrap()
                })
                .min_by(|a, b| a.loss.total_cmp(&b.loss));
            let switch = Switch::test(&offsets, &best.unwrap().flow);
            assert_eq!(switch.on, on, "{name}: {switch:?}");
            if let Some(tail) = tail {
                assert!(switch.flow.abs_diff(tail) <= 1, "{name}: {switch:?}");
            }
        }
    }

    #[test]
    fn the_flow_folds_more_than_a_third() {
        let keys = KeySet::named("longitudes").unwrap().generate(100_000, 42).to_f64();
        let offsets: Vec<f64> = keys.iter().map(|key| key - keys[0]).collect();
        let mut z = offsets.clone();
        train(keys[0], &offsets, &TrainConfig::default()).unwrap().flow.transform_offsets(&mut z);
        let descents = z.windows(2).filter(|two| two[0] > two[1]).count();
        assert!(descents > 33_000, "{descents}");
    }
}
