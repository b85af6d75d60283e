//! How a folding flow learns.
//!
//! The loss is the one of the published code: the negative log density of the summed output under a standard normal law,
//! minus the log-determinant of the features' own derivatives. It is a heuristic, not a likelihood, and works. There are
//! ten weights in the usual size, so gradients are written out instead of recorded. Derivatives are kept as logarithms: a
//! saturated unit's would underflow.
//!
//! Source: "NFL: Robust Learned Index via Distribution Transformation", arXiv 2205.11807.

use serde::{Deserialize, Serialize};

use super::folding::{FoldingFlow, MAX_WIDTH, Matrix};
use super::tanh::tanh;
use crate::data::SplitMix64;
use crate::error::{Error, Result};

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Features of a key: 2, or 1 for a flow that does not fold.
    pub features: usize,
    /// Layers, at least 2.
    pub layers: usize,
    /// Units for each feature in the layers between the first and the last: the width is this times the features.
    pub hidden: usize,
    /// Strips that the key range is cut into; between n / 100 and 10 n.
    pub shifts: f64,
    /// Share of the keys in a training subset, which has at least [`TrainConfig::min_subset`].
    pub subset: f64,
    /// Least keys of a subset.
    pub min_subset: usize,
    /// Subsets, one after the other.
    pub subsets: usize,
    /// Most passes over a subset.
    pub epochs: usize,
    /// Whether to leave a subset when an epoch gains less than a hundredth.
    pub stop_early: bool,
    /// Keys per step.
    pub batch: usize,
    /// First learning rate.
    pub rate: f64,
    /// Longest gradient.
    pub clip: f64,
    /// Seed of subsets and first weights.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            features: 2,
            layers: 2,
            hidden: 1,
            shifts: 1e6,
            subset: 0.1,
            min_subset: 10_000,
            subsets: 3,
            epochs: 15,
            stop_early: true,
            batch: 4096,
            rate: 0.1,
            clip: 0.1,
            seed: 1_000_000_003,
        }
    }
}

/// What training ended with.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// The flow.
    pub flow: FoldingFlow,
    /// Mean loss of its best epoch.
    pub loss: f64,
    /// Steps taken.
    pub steps: usize,
}

/// Trains a flow on keys in any order; `offsets` are their distances from the smallest, `mean`.
///
/// # Errors
/// [`Error::Training`] if the keys have no range, the configuration is out of its ranges, or the loss is no number.
pub fn train(mean: f64, offsets: &[f64], config: &TrainConfig) -> Result<Trained> {
    let range = offsets.iter().copied().fold(0.0, f64::max);
    if !(range > 0.0 && range.is_finite()) {
        return Err(Error::Training(format!("expected keys with a finite range, found {range}")));
    }
    let sane = (1..=2).contains(&config.features) && config.layers >= 2 && config.batch > 0 && config.shifts >= 1.0;
    let wide = config.features.saturating_mul(config.hidden);
    if !sane || !(1..=MAX_WIDTH).contains(&wide) {
        return Err(Error::Training(format!(
            "expected 1 or 2 features, at least 2 layers, at least 1 and in all at most {MAX_WIDTH} hidden units, a \
             positive batch and at least one strip"
        )));
    }
    let var = range / config.shifts;
    let d = config.features;
    let mut rng = SplitMix64::new(config.seed);
    let mut network = Network::random((d, config.hidden, config.layers), &mut rng);
    let mut adam = Adam::new(network.values.len(), config.rate);
    let (mut best, mut best_loss, mut best_mean, mut steps) = (network.clone(), f64::INFINITY, f64::INFINITY, 0);
    let size = ((offsets.len() as f64 * config.subset) as usize).max(config.min_subset).min(offsets.len());
    let mut order: Vec<u32> = Vec::new();
    for _ in 0..config.subsets {
        // The first `size` of a shuffle.
        order.clear();
        order.extend(0..u32::try_from(offsets.len()).map_err(|_| Error::Training("more than 2^32 keys".into()))?);
        for i in 0..size {
            order.swap(i, i + rng.below((offsets.len() - i) as u64) as usize);
        }
        let features: Vec<[f64; 2]> =
            order[..size].iter().map(|&i| features_of(offsets[i as usize] / var, d)).collect();
        let mut before = f64::INFINITY;
        for _ in 0..config.epochs {
            let mut sum = 0.0;
            for batch in features.chunks(config.batch) {
                let (loss, gradient) = network.loss(batch);
                if !loss.is_finite() {
                    return Err(Error::Training(format!("the loss became {loss} at step {steps}")));
                }
                adam.step(&mut network.values, gradient, loss, config.clip);
                sum += loss;
                steps += 1;
            }
            if sum < best_loss {
                (best_loss, best_mean) = (sum, sum / features.len().div_ceil(config.batch) as f64);
                best = network.clone();
            }
            if config.stop_early && (sum > before || before - sum < 0.01 * before.abs()) {
                break;
            }
            before = sum;
        }
        network = best.clone();
    }
    Ok(Trained { flow: FoldingFlow::new(mean, var, best.matrices())?, loss: best_mean, steps })
}

fn features_of(x: f64, features: usize) -> [f64; 2] {
    if features == 1 { [x, 0.0] } else { [x.floor(), x - x.floor()] }
}

/// Free weights of a flow. Layers have a block of units for each of `d` features (one unit in the last), which sees the
/// blocks of its own and earlier features before; all weights are positive.
#[derive(Debug, Clone)]
struct Network {
    d: usize,
    hidden: usize,
    layers: usize,
    /// Layer by layer, row by row: logarithms of directions, one for each unit that the row sees, then the logarithm of
    /// the length.
    values: Vec<f64>,
}

/// What one row of a layer is made of.
struct Row {
    /// Position of its first value.
    at: usize,
    /// The first unit of its own feature among those it sees, which end with the last such unit.
    own: usize,
    weights: Vec<f64>,
    logs: Vec<f64>,
    /// Squares of the unit direction.
    shares: Vec<f64>,
}

impl Network {
    fn random((d, hidden, layers): (usize, usize, usize), rng: &mut SplitMix64) -> Self {
        let mut network = Self { d, hidden, layers, values: Vec::new() };
        for layer in 0..layers {
            let (_, units) = network.units(layer);
            for row in 0..d * units {
                let sees = network.sees(layer, row).1;
                // Xavier over the inputs that this row may see, and the outputs of its block.
                let bound = (6.0 / (sees + units) as f64).sqrt();
                network.values.extend((0..sees).map(|_| (2.0 * rng.f64() - 1.0) * bound));
                network.values.push((1.0 - rng.f64()).ln());
            }
        }
        network
    }

    /// Units of a feature before a layer and after it.
    fn units(&self, layer: usize) -> (usize, usize) {
        (if layer == 0 { 1 } else { self.hidden }, if layer + 1 == self.layers { 1 } else { self.hidden })
    }

    /// The first unit of a row's own feature, and how many units it sees.
    fn sees(&self, layer: usize, row: usize) -> (usize, usize) {
        let (before, after) = self.units(layer);
        (row / after * before, (row / after + 1) * before)
    }

    fn rows(&self) -> Vec<Vec<Row>> {
        let mut at = 0;
        let mut row = |layer: usize, row: usize| {
            let (own, sees) = self.sees(layer, row);
            let directions = &self.values[at..at + sees];
            let square: f64 = directions.iter().map(|v| (2.0 * v).exp()).sum();
            let length = self.values[at + sees] - 0.5 * square.ln();
            let logs: Vec<f64> = directions.iter().map(|v| v + length).collect();
            let row = Row {
                at,
                own,
                weights: logs.iter().map(|log| log.exp()).collect(),
                shares: directions.iter().map(|v| (2.0 * v).exp() / square).collect(),
                logs,
            };
            at += sees + 1;
            row
        };
        (0..self.layers).map(|l| (0..self.d * self.units(l).1).map(|i| row(l, i)).collect()).collect()
    }

    /// Inputs × outputs, as flows store them.
    fn matrices(&self) -> Vec<Matrix> {
        let matrix = |(layer, rows): (usize, &Vec<Row>)| {
            let inputs = self.d * self.units(layer).0;
            let weight = |input: usize| rows.iter().map(move |row| row.weights.get(input).copied().unwrap_or(0.0));
            Matrix { rows: inputs, columns: rows.len(), entries: (0..inputs).flat_map(weight).collect() }
        };
        self.rows().iter().enumerate().map(matrix).collect()
    }

    /// Mean loss of a batch, and its gradient.
    fn loss(&self, batch: &[[f64; 2]]) -> (f64, Vec<f64>) {
        let (d, last) = (self.d, self.layers - 1);
        let rows = self.rows();
        let mut loss = 0.0;
        // Derivatives of the loss by the logarithm of every weight, summed over the batch, where its value lies.
        let mut by_log_weight = vec![0.0; self.values.len()];
        let width = d * self.hidden;
        // Units before every layer and at the end, logarithms of their derivatives by their features, and these without
        // the factor of their own tanh.
        let mut values = vec![vec![0.0f64; width]; self.layers + 1];
        let mut slopes = values.clone();
        let mut sums = values.clone();
        let (mut by_value, mut by_slope) = (vec![0.0f64; width], vec![0.0f64; width]);
        let (mut next_value, mut next_slope) = (by_value.clone(), by_slope.clone());
        for features in batch {
            values[0][..d].copy_from_slice(&features[..d]);
            for (l, layer) in rows.iter().enumerate() {
                for (i, row) in layer.iter().enumerate() {
                    let sum: f64 = row.weights.iter().zip(&values[l]).map(|(weight, value)| weight * value).sum();
                    let slope = log_sum(row, &slopes[l]);
                    sums[l + 1][i] = slope;
                    // ln sech² = 2 (ln 2 − p − ln(1 + e^(−2p))), for p of any size.
                    let bend = || 2.0 * (std::f64::consts::LN_2 - sum - (-2.0 * sum).exp().ln_1p());
                    (values[l + 1][i], slopes[l + 1][i]) =
                        if l < last { (tanh(sum), slope + bend()) } else { (sum, slope) };
                }
            }
            let z: f64 = values[self.layers][..d].iter().sum();
            loss += 0.5 * z * z - slopes[self.layers][..d].iter().sum::<f64>();
            by_value[..d].fill(z);
            by_slope[..d].fill(-1.0);
            for (l, layer) in rows.iter().enumerate().rev() {
                next_value.fill(0.0);
                next_slope.fill(0.0);
                for (i, row) in layer.iter().enumerate() {
                    let t = values[l + 1][i];
                    let by_sum =
                        if l < last { by_value[i] * (1.0 - t * t) - 2.0 * t * by_slope[i] } else { by_value[i] };
                    for (j, weight) in row.weights.iter().enumerate() {
                        by_log_weight[row.at + j] += by_sum * weight * values[l][j];
                        next_value[j] += by_sum * weight;
                    }
                    for j in row.own..row.weights.len() {
                        let share = if row.own + 1 == row.weights.len() {
                            1.0
                        } else {
                            (row.logs[j] + slopes[l][j] - sums[l + 1][i]).exp()
                        };
                        by_log_weight[row.at + j] += by_slope[i] * share;
                        next_slope[j] += by_slope[i] * share;
                    }
                }
                std::mem::swap(&mut by_value, &mut next_value);
                std::mem::swap(&mut by_slope, &mut next_slope);
            }
        }
        let n = batch.len() as f64;
        let mut gradient = vec![0.0; self.values.len()];
        for row in rows.iter().flatten() {
            let sees = row.weights.len();
            let total = by_log_weight[row.at..row.at + sees].iter().sum::<f64>() / n;
            for (j, share) in row.shares.iter().enumerate() {
                gradient[row.at + j] = by_log_weight[row.at + j] / n - share * total;
            }
            gradient[row.at + sees] = total;
        }
        (loss / n + 0.5 * (2.0 * std::f64::consts::PI).ln(), gradient)
    }
}

/// Logarithm of the sum of a row's own units' derivatives, weighted.
fn log_sum(row: &Row, slopes: &[f64]) -> f64 {
    let term = |j: usize| row.logs[j] + slopes[j];
    let own = row.own..row.logs.len();
    if own.len() == 1 {
        return term(row.own);
    }
    let most = own.clone().map(term).fold(f64::NEG_INFINITY, f64::max);
    most + own.map(|j| (term(j) - most).exp()).sum::<f64>().ln()
}

/// Adam with the largest second moment so far, and a rate that halves when the loss stays.
struct Adam {
    rate: f64,
    step: i32,
    first: Vec<f64>,
    second: Vec<f64>,
    largest: Vec<f64>,
    best: f64,
    waited: usize,
}

impl Adam {
    fn new(n: usize, rate: f64) -> Self {
        let zeros = || vec![0.0; n];
        Self { rate, step: 0, first: zeros(), second: zeros(), largest: zeros(), best: f64::INFINITY, waited: 0 }
    }

    fn step(&mut self, values: &mut [f64], mut gradient: Vec<f64>, loss: f64, clip: f64) {
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        if norm > clip {
            gradient.iter_mut().for_each(|g| *g *= clip / norm);
        }
        self.step += 1;
        let (c1, c2) = (1.0 - 0.9f64.powi(self.step), 1.0 - 0.999f64.powi(self.step));
        for (i, g) in gradient.into_iter().enumerate() {
            self.first[i] = 0.9 * self.first[i] + 0.1 * g;
            self.second[i] = 0.999 * self.second[i] + 0.001 * g * g;
            self.largest[i] = self.largest[i].max(self.second[i]);
            values[i] -= self.rate / c1 * self.first[i] / ((self.largest[i] / c2).sqrt() + 1e-8);
        }
        if loss < self.best - 1e-4 {
            (self.best, self.waited) = (loss, 0);
        } else {
            self.waited += 1;
            if self.waited > 2000 {
                (self.rate, self.waited) = ((0.5 * self.rate).max(5e-4), 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::KeySet;

    fn example() -> Network {
        let (g, h) = ([0.5f64.ln(), 0.8f64.ln()], [1.5f64.ln(), 0.6f64.ln()]);
        Network { d: 2, hidden: 1, layers: 2, values: vec![0.2, g[0], -1.0, 0.1, g[1], -0.3, h[0], 0.4, 0.0, h[1]] }
    }

    const FEATURES: [[f64; 2]; 3] = [[0.0, 0.25], [3.0, 0.5], [7.0, 0.75]];

    #[test]
    fn weights_and_loss_of_the_worked_example() {
        let network = example();
        let matrices = network.matrices();
        let expected = [[0.5, 0.252_666, 0.0, 0.759_052], [1.5, 0.498_388, 0.0, 0.334_080]];
        for (matrix, expected) in matrices.iter().zip(expected) {
            for (a, b) in matrix.entries.iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "{matrices:?}");
            }
        }
        assert!((network.loss(&FEATURES).0 - 8.118_239).abs() < 1e-6);
        let z = [0.062_646, 2.080_638, 2.322_659];
        let logdet = [-1.695_539, -4.455_069, -10.583_433];
        for ((features, z), logdet) in FEATURES.iter().zip(z).zip(logdet) {
            let expected: f64 = 0.5 * z * z + 0.5 * (2.0 * std::f64::consts::PI).ln() - logdet;
            assert!((network.loss(&[*features]).0 - expected).abs() < 3e-6);
        }
    }

    #[test]
    fn gradients_are_differences() {
        let mut rng = SplitMix64::new(3);
        let wide = [(2, 3, 3), (2, 2, 2), (1, 4, 3)].map(|size| Network::random(size, &mut rng));
        for mut network in wide.into_iter().chain([example()]) {
            let gradient = network.loss(&FEATURES).1;
            for (i, expected) in gradient.iter().enumerate() {
                let at = |network: &mut Network, x: f64| {
                    network.values[i] += x;
                    let loss = network.loss(&FEATURES).0;
                    network.values[i] -= x;
                    loss
                };
                let slope = (at(&mut network, 1e-5) - at(&mut network, -1e-5)) / 2e-5;
                assert!((slope - expected).abs() < 1e-7 * slope.abs().max(1.0), "{i}: {slope} {expected}");
            }
        }
    }

    #[test]
    fn the_log_determinant_is_that_of_differences() {
        let mut rng = SplitMix64::new(8);
        for size in [(2, 1, 2), (2, 3, 2), (2, 2, 4)] {
            let network = Network::random(size, &mut rng);
            let matrices = network.matrices();
            let outputs = |features: [f64; 2]| {
                let mut values = features.to_vec();
                for (l, matrix) in matrices.iter().enumerate() {
                    let sum = |column: usize| -> f64 {
                        (0..matrix.rows).map(|row| values[row] * matrix.entries[row * matrix.columns + column]).sum()
                    };
                    let bend = |sum: f64| if l + 1 < matrices.len() { tanh(sum) } else { sum };
                    values = (0..matrix.columns).map(sum).map(bend).collect();
                }
                values
            };
            for features in FEATURES {
                let slope = |feature: usize| {
                    let at = |x: f64| {
                        let mut features = features;
                        features[feature] += x;
                        outputs(features)[feature]
                    };
                    (at(1e-5) - at(-1e-5)) / 2e-5
                };
                let z: f64 = outputs(features).iter().sum();
                let logdet = slope(0).ln() + slope(1).ln();
                let expected = 0.5 * z * z + 0.5 * (2.0 * std::f64::consts::PI).ln() - logdet;
                let loss = network.loss(&[features]).0;
                assert!((loss - expected).abs() < 1e-5, "{size:?}: {loss} {expected}");
            }
        }
    }

    #[test]
    fn more_hidden_units_fit_at_least_as_well() {
        let keys = KeySet::named("lognormal").unwrap().generate(20_000, 42).to_f64();
        let offsets: Vec<f64> = keys.iter().map(|key| key - keys[0]).collect();
        let loss = |hidden: usize| {
            let trained = train(keys[0], &offsets, &TrainConfig { hidden, ..TrainConfig::default() }).unwrap();
            assert_eq!(trained.flow.layers()[0].columns, 2 * hidden);
            assert!(keys.iter().all(|&key| trained.flow.transform(key).is_finite()));
            trained.loss
        };
        let (one, four) = (loss(1), loss(4));
        assert!(four < one + 0.05, "{one} {four}");
        assert!(train(0.0, &offsets, &TrainConfig { hidden: 33, ..TrainConfig::default() }).is_err());
    }

    /// Products of the diagonal weights: what the flow multiplies whole parts (times `shifts`) and fractions with.
    fn factors(flow: &FoldingFlow, shifts: f64) -> (f64, f64) {
        let [first, last] = flow.layers() else { panic!("two layers") };
        (first.entries[0] * last.entries[0] * shifts, first.entries[3] * last.entries[3])
    }

    #[test]
    fn uniform_keys_lead_to_the_moment_equations() {
        let keys = KeySet::named("uniform").unwrap().generate(100_000, 42).to_f64();
        let offsets: Vec<f64> = keys.iter().map(|key| key - keys[0]).collect();
        for seed in [1, 2] {
            let trained = train(keys[0], &offsets, &TrainConfig { seed, ..TrainConfig::default() }).unwrap();
            let (a, b) = factors(&trained.flow, 1e6);
            assert!((a / 1.3093 - 1.0).abs() < 0.2 && (b / 1.3093 - 1.0).abs() < 0.2, "{a} {b} {}", trained.loss);
            let long = TrainConfig { seed, epochs: 100, stop_early: false, ..TrainConfig::default() };
            let trained = train(keys[0], &offsets, &long).unwrap();
            let (a, b) = factors(&trained.flow, 1e6);
            assert!((a / 1.3093 - 1.0).abs() < 0.03 && (b / 1.3093 - 1.0).abs() < 0.03, "{a} {b}");
            // Over all keys; the loss of the best epoch, of a subset and chosen for being low, lies below it.
            let loss = loss_of(&trained.flow, &offsets, 1e6);
            assert!((loss - 15.1948).abs() < 0.002 && trained.loss < loss, "{loss} {}", trained.loss);
        }
    }

    /// Mean loss of a flow of two features over keys.
    fn loss_of(flow: &FoldingFlow, offsets: &[f64], shifts: f64) -> f64 {
        let mut values = Vec::new();
        for matrix in flow.layers() {
            for row in 0..2 {
                let weights: Vec<f64> = (0..=row).map(|input| matrix.entries[2 * input + row]).collect();
                values.extend(weights.iter().map(|weight| weight.ln()));
                values.push(weights.iter().map(|weight| weight * weight).sum::<f64>().sqrt().ln());
            }
        }
        let network = Network { d: 2, hidden: 1, layers: flow.layers().len(), values };
        let var = offsets.iter().copied().fold(0.0, f64::max) / shifts;
        let features: Vec<[f64; 2]> = offsets.iter().map(|&offset| features_of(offset / var, 2)).collect();
        network.loss(&features).0
    }

    #[test]
    fn one_feature_does_not_fold() {
        let keys = KeySet::named("lognormal").unwrap().generate(20_000, 42).to_f64();
        let offsets: Vec<f64> = keys.iter().map(|key| key - keys[0]).collect();
        let config = TrainConfig { features: 1, shifts: 100.0, ..TrainConfig::default() };
        let flow = train(keys[0], &offsets, &config).unwrap().flow;
        assert!(keys.iter().map(|&key| flow.transform(key)).collect::<Vec<_>>().is_sorted());
    }

    #[test]
    fn keys_without_a_range_are_an_error() {
        assert!(train(0.0, &[], &TrainConfig::default()).is_err());
        assert!(train(0.0, &[0.0, 0.0], &TrainConfig::default()).is_err());
        assert!(train(0.0, &[0.0, 1.0], &TrainConfig { features: 3, ..TrainConfig::default() }).is_err());
    }
}
