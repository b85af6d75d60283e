//! From logits to the next token: repetition penalty, temperature, top-k, top-p, min-p, then one draw.
//!
//! The order and the meaning of the processors are those of transformers. A draw depends only on the seed, the
//! request and the position, so a request gives the same text alone, in any batch and after any restart.
//!
//! ```
//! use kindling_core::sampling::{Sampler, SamplingConfig};
//!
//! let sampler = Sampler::new(SamplingConfig { temperature: 0.8, top_p: 0.9, seed: 7, ..Default::default() })?;
//! let logits = [0.1, 2.0, -1.0, 1.5];
//! let once = sampler.sample(&mut logits.clone(), &[], 0, 5)?;
//! assert_eq!(once, sampler.sample(&mut logits.clone(), &[], 0, 5)?);
//! # Ok::<(), kindling_core::sampling::SamplingError>(())
//! ```

use std::cell::RefCell;
use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// What can go wrong between logits and a token.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplingError {
    /// A setting is out of its range.
    #[error("sampling: `{name}` is {value}, but must be {expected}")]
    Config {
        /// The key.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The values it may have.
        expected: &'static str,
    },
    /// A logit is NaN or +infinity.
    #[error("sampling: the logit of token {token} is {value}: the model's weights or activations overflow")]
    NotFinite {
        /// Token id.
        token: usize,
        /// The logit.
        value: f32,
    },
    /// There are no logits, or all are −infinity.
    #[error("sampling: no token left to choose from among {0} logits")]
    Empty(usize),
    /// A token of the history has no logit.
    #[error("sampling: token {token} of the history is outside the vocabulary of {vocab} logits")]
    History {
        /// Token id.
        token: u32,
        /// Number of logits.
        vocab: usize,
    },
}

/// A result with [`SamplingError`].
pub type Result<T, E = SamplingError> = std::result::Result<T, E>;

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Distances between logits are divided by it; 0 chooses the largest logit.
    pub temperature: f32,
    /// Keep the `top_k` largest logits, and those equal to the smallest of them; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities sum to at least this, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one, in [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens already in the text; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Seed of all draws.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingConfig {
    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`SamplingError::Config`] names the first setting out of range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, name, value: f32, expected| {
            let value = f64::from(value);
            if ok { Ok(()) } else { Err(SamplingError::Config { name, value, expected }) }
        };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        check(temperature >= 0.0 && temperature.is_finite(), "temperature", temperature, "0 (greedy) or positive")?;
        check(top_p > 0.0 && top_p <= 1.0, "top_p", top_p, "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&min_p), "min_p", min_p, "between 0 and 1")?;
        let positive = repetition_penalty > 0.0 && repetition_penalty.is_finite();
        check(positive, "repetition_penalty", repetition_penalty, "positive (1: no penalty)")
    }
}

/// Chooses tokens by a [`SamplingConfig`].
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplingConfig,
}

impl Sampler {
    /// A sampler of `config`.
    ///
    /// # Errors
    /// [`SamplingError::Config`] if a setting is out of range.
    pub fn new(config: SamplingConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config })
    }

    /// The settings.
    pub fn config(&self) -> &SamplingConfig {
        &self.config
    }

    /// Whether the largest logit is chosen.
    pub fn is_greedy(&self) -> bool {
        self.config.temperature == 0.0
    }

    /// The next token of `request` at `position`, from the `logits` (`[vocab]`) of the last one. `history` is the text
    /// so far, prompt included. The logits are left as the processors changed them.
    ///
    /// # Errors
    /// [`SamplingError`] if a logit is NaN or +infinity, if none is above −infinity, or if the history names a token
    /// that has no logit.
    pub fn sample(&self, logits: &mut [f32], history: &[u32], request: u64, position: u64) -> Result<u32> {
        SCRATCH.with_borrow_mut(|scratch| {
            self.process_with(logits, history, scratch)?;
            if self.is_greedy() {
                return argmax(logits);
            }
            softmax_into(logits, &mut scratch.probabilities);
            Ok(draw(&scratch.probabilities, uniform(&mut self.rng(request, position))))
        })
    }

    /// Applies the processors: dropped tokens become −infinity. A greedy sampler applies the repetition penalty only.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn process(&self, logits: &mut [f32], history: &[u32]) -> Result<()> {
        SCRATCH.with_borrow_mut(|scratch| self.process_with(logits, history, scratch))
    }

    fn process_with(&self, logits: &mut [f32], history: &[u32], scratch: &mut Scratch) -> Result<()> {
        check_logits(logits)?;
        penalise(logits, history, self.config.repetition_penalty, &mut scratch.seen)?;
        if !self.is_greedy() {
            scale(logits, self.config.temperature);
            keep_top_k(logits, self.config.top_k, &mut scratch.sorted);
            keep_top_p(logits, self.config.top_p, scratch);
            keep_min_p(logits, self.config.min_p, &mut scratch.probabilities);
        }
        Ok(())
    }

    /// The probabilities (`[vocab]`, summing to 1) that a draw follows; a greedy sampler puts all on one token.
    /// Speculative decoding compares these between drafter and target.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn probabilities(&self, logits: &mut [f32], history: &[u32]) -> Result<Vec<f64>> {
        self.process(logits, history)?;
        if self.is_greedy() {
            let best = argmax(logits)? as usize;
            return Ok((0..logits.len()).map(|token| if token == best { 1.0 } else { 0.0 }).collect());
        }
        Ok(softmax(logits))
    }

    /// The random stream of one position of one request: eight 64-bit numbers that no other position uses.
    pub fn rng(&self, request: u64, position: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(request);
        // One ChaCha block is 16 words.
        rng.set_word_pos(u128::from(position) * 16);
        rng
    }
}

/// The token with the largest logit, the lowest id among equals.
///
/// # Errors
/// [`SamplingError`] if a logit is NaN or +infinity, or if none is above −infinity.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    let largest = check_logits(logits)?;
    let best = logits.iter().position(|&logit| logit == largest);
    best.map(|token| token as u32).ok_or(SamplingError::Empty(0))
}

/// Probabilities of `logits`, computed in f64. At least one logit must be finite.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let mut weights = Vec::new();
    softmax_into(logits, &mut weights);
    weights
}

fn softmax_into(logits: &[f32], weights: &mut Vec<f64>) {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    weights.clear();
    weights.extend(logits.iter().map(|&logit| (f64::from(logit) - largest).exp()));
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
}

/// What choosing a token writes on the way. One for each thread: a token is chosen in every step, and asks for no memory.
#[derive(Default)]
struct Scratch {
    probabilities: Vec<f64>,
    sorted: Vec<f32>,
    order: Vec<u32>,
    seen: Vec<bool>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The token at `point` in [0, 1) of the cumulative `probabilities`, in order of ids. Never one of probability 0.
pub fn draw(probabilities: &[f64], point: f64) -> u32 {
    let mut below = 0.0;
    let mut last = 0;
    for (token, &probability) in probabilities.iter().enumerate().filter(|(_, probability)| **probability > 0.0) {
        below += probability;
        last = token;
        if point < below {
            break;
        }
    }
    last as u32
}

/// A number in [0, 1) with 53 random bits.
pub fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The largest logit.
fn check_logits(logits: &[f32]) -> Result<f32> {
    // Side by side, so that the compiler takes a register for all: this runs for every token that is written or guessed.
    const LANES: usize = 16;
    let (mut largest, mut sound) = ([f32::NEG_INFINITY; LANES], [true; LANES]);
    let mut see = |lane: usize, logit: f32| {
        largest[lane] = if logit > largest[lane] { logit } else { largest[lane] };
        // False for NaN, too.
        sound[lane] &= logit < f32::INFINITY;
    };
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        (0..LANES).for_each(|lane| see(lane, chunk[lane]));
    }
    rest.iter().enumerate().for_each(|(lane, &logit)| see(lane, logit));
    if !sound.iter().all(|&sound| sound)
        && let Some(token) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY)
    {
        return Err(SamplingError::NotFinite { token, value: logits[token] });
    }
    match largest.into_iter().fold(f32::NEG_INFINITY, f32::max) {
        f32::NEG_INFINITY => Err(SamplingError::Empty(logits.len())),
        largest => Ok(largest),
    }
}

fn penalise(logits: &mut [f32], history: &[u32], penalty: f32, seen: &mut Vec<bool>) -> Result<()> {
    if penalty == 1.0 {
        return Ok(());
    }
    // A token is penalised once, however often it occurred.
    seen.clear();
    seen.resize(logits.len(), false);
    for &token in history {
        let vocab = logits.len();
        let logit = logits.get_mut(token as usize).ok_or(SamplingError::History { token, vocab })?;
        if !std::mem::replace(&mut seen[token as usize], true) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
    Ok(())
}

fn scale(logits: &mut [f32], temperature: f32) {
    if temperature == 1.0 {
        return;
    }
    // Shifting first changes no probability, and keeps tiny temperatures from overflowing to +infinity.
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|logit| *logit = (*logit - largest) / temperature);
}

fn keep_top_k(logits: &mut [f32], k: usize, sorted: &mut Vec<f32>) {
    if k == 0 || k >= logits.len() {
        return;
    }
    sorted.clear();
    sorted.extend_from_slice(logits);
    let (_, &mut smallest, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    drop_where(logits, |_, logit| logit < smallest);
}

fn keep_top_p(logits: &mut [f32], p: f32, Scratch { probabilities, order, .. }: &mut Scratch) {
    if p >= 1.0 {
        return;
    }
    softmax_into(logits, probabilities);
    order.clear();
    order.extend(0..logits.len() as u32);
    order.sort_unstable_by(|&a, &b| match logits[b as usize].total_cmp(&logits[a as usize]) {
        Ordering::Equal => a.cmp(&b),
        other => other,
    });
    let mut above = 0.0;
    for token in order.iter().map(|&token| token as usize) {
        if above >= f64::from(p) {
            logits[token] = f32::NEG_INFINITY;
        }
        above += probabilities[token];
    }
}

fn keep_min_p(logits: &mut [f32], fraction: f32, probabilities: &mut Vec<f64>) {
    if fraction == 0.0 {
        return;
    }
    softmax_into(logits, probabilities);
    let largest = probabilities.iter().copied().fold(0.0, f64::max);
    drop_where(logits, |token, _| probabilities[token] < f64::from(fraction) * largest);
}

fn drop_where(logits: &mut [f32], drop: impl Fn(usize, f32) -> bool) {
    for (token, logit) in logits.iter_mut().enumerate() {
        if drop(token, *logit) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OUT: f32 = f32::NEG_INFINITY;

    fn sampler(change: impl FnOnce(&mut SamplingConfig)) -> Sampler {
        let mut config = SamplingConfig { temperature: 1.0, ..Default::default() };
        change(&mut config);
        Sampler::new(config).unwrap()
    }

    fn processed(sampler: &Sampler, logits: &[f32], history: &[u32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        sampler.process(&mut logits, history).unwrap();
        logits
    }

    /// Logits whose softmax is 0.4, 0.1, 0.3, 0.2.
    fn four() -> Vec<f32> {
        [0.4f32, 0.1, 0.3, 0.2].map(f32::ln).to_vec()
    }

    fn kept(logits: &[f32]) -> Vec<usize> {
        (0..logits.len()).filter(|&token| logits[token] > OUT).collect()
    }

    #[test]
    fn the_penalty_moves_each_seen_logit_towards_less_once() {
        let sampler = sampler(|config| config.repetition_penalty = 2.0);
        assert_eq!(processed(&sampler, &[3.0, -1.0, 4.0, 0.0], &[0, 1, 0, 3]), [1.5, -2.0, 4.0, 0.0]);
    }

    #[test]
    fn temperature_divides_the_distances() {
        let sampler = sampler(|config| config.temperature = 0.5);
        assert_eq!(processed(&sampler, &[1.0, -2.0, 0.25], &[]), [0.0, -6.0, -1.5]);
    }

    #[test]
    fn a_tiny_temperature_does_not_overflow() {
        let sampler = sampler(|config| config.temperature = f32::MIN_POSITIVE);
        assert_eq!(sampler.probabilities(&mut [900.0, 1000.0, -1000.0], &[]).unwrap(), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn top_k_keeps_ties_with_the_kth() {
        let logits = [1.0, 5.0, 3.0, 3.0, 2.0];
        assert_eq!(processed(&sampler(|config| config.top_k = 1), &logits, &[]), [OUT, 5.0, OUT, OUT, OUT]);
        assert_eq!(processed(&sampler(|config| config.top_k = 2), &logits, &[]), [OUT, 5.0, 3.0, 3.0, OUT]);
        assert_eq!(processed(&sampler(|config| config.top_k = 9), &logits, &[]), logits);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        for (p, expected) in [(0.01, vec![0]), (0.39, vec![0]), (0.41, vec![0, 2]), (0.75, vec![0, 2, 3])] {
            let logits = processed(&sampler(|config| config.top_p = p), &four(), &[]);
            assert_eq!(kept(&logits), expected, "top_p {p}");
        }
        let ties = processed(&sampler(|config| config.top_p = 0.4), &[0.0; 4], &[]);
        assert_eq!(kept(&ties), [0, 1], "equal tokens leave from the highest id down");
    }

    #[test]
    fn min_p_keeps_a_fraction_of_the_best() {
        for (p, expected) in [(0.2, vec![0, 1, 2, 3]), (0.3, vec![0, 2, 3]), (0.6, vec![0, 2]), (1.0, vec![0])] {
            let logits = processed(&sampler(|config| config.min_p = p), &four(), &[]);
            assert_eq!(kept(&logits), expected, "min_p {p}");
        }
    }

    #[test]
    fn processors_run_in_the_order_of_transformers() {
        // Temperature 0.5 squares the probabilities to 16 : 1 : 9 : 4 of 30. top_k leaves 16 : 9 : 4 of 29,
        // so that top_p 0.85 keeps 16 and 9 (25 / 29 = 0.86); without top_k first it would keep all three.
        let sampler = sampler(|config| {
            config.temperature = 0.5;
            config.top_k = 3;
            config.top_p = 0.85;
        });
        let probabilities = sampler.probabilities(&mut four(), &[]).unwrap();
        for (found, expected) in probabilities.iter().zip([0.64, 0.0, 0.36, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{probabilities:?}");
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals_after_the_penalty() {
        let greedy = Sampler::new(SamplingConfig::default()).unwrap();
        assert_eq!(greedy.sample(&mut [1.0, 7.0, 7.0], &[1], 3, 9), Ok(1));
        let config = SamplingConfig { repetition_penalty: 1.5, ..Default::default() };
        assert_eq!(Sampler::new(config).unwrap().sample(&mut [1.0, 7.0, 7.0], &[1], 3, 9), Ok(2));
        assert_eq!(greedy.probabilities(&mut [1.0, 7.0, 7.0], &[]).unwrap(), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn bad_logits_are_errors() {
        let greedy = Sampler::new(SamplingConfig::default()).unwrap();
        let nan = greedy.sample(&mut [1.0, f32::NAN], &[], 0, 0).unwrap_err();
        assert_eq!(
            nan.to_string(),
            "sampling: the logit of token 1 is NaN: the model's weights or activations overflow"
        );
        assert_eq!(argmax(&[OUT, OUT]), Err(SamplingError::Empty(2)));
        assert_eq!(argmax(&[]), Err(SamplingError::Empty(0)));
        let penalty = sampler(|config| config.repetition_penalty = 1.1);
        let outside = penalty.sample(&mut [1.0, 2.0], &[2], 0, 0);
        assert_eq!(outside, Err(SamplingError::History { token: 2, vocab: 2 }));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let message = |change: fn(&mut SamplingConfig)| {
            let mut config = SamplingConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            message(|config| config.temperature = -1.0),
            "sampling: `temperature` is -1, but must be 0 (greedy) or positive"
        );
        assert!(message(|config| config.temperature = f32::NAN).contains("`temperature` is NaN"));
        assert!(message(|config| config.top_p = 0.0).contains("above 0 and at most 1"));
        assert!(message(|config| config.min_p = 1.5).contains("between 0 and 1"));
        assert!(message(|config| config.repetition_penalty = 0.0).contains("positive (1: no penalty)"));
        let unknown = serde_json::from_str::<SamplingConfig>(r#"{"top_n": 3}"#).unwrap_err();
        assert!(unknown.to_string().contains("top_n"), "{unknown}");
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let sampler = sampler(|config| config.seed = 11);
        let mut counts = [0u32; 4];
        let draws = 20_000u32;
        for position in 0..u64::from(draws) {
            counts[sampler.sample(&mut four(), &[], position % 7, position).unwrap() as usize] += 1;
        }
        let chi_square: f64 = counts
            .iter()
            .zip([0.4, 0.1, 0.3, 0.2])
            .map(|(&count, probability)| {
                let expected = probability * f64::from(draws);
                (f64::from(count) - expected).powi(2) / expected
            })
            .sum();
        // The 99.9th percentile with three degrees of freedom.
        assert!(chi_square < 16.27, "{counts:?} gives {chi_square}");
    }

    #[test]
    fn a_draw_depends_on_seed_request_and_position_only() {
        let sampler = sampler(|config| config.seed = 5);
        let text = |requests: &[u64]| -> Vec<Vec<u32>> {
            let mut texts = vec![Vec::new(); requests.len()];
            for position in 0..32 {
                for (text, &request) in texts.iter_mut().zip(requests) {
                    let logits = &mut [0.0; 50];
                    text.push(sampler.sample(logits, &[], request, position).unwrap());
                }
            }
            texts
        };
        let batch = text(&[4, 9, 2]);
        assert_eq!(text(&[9])[0], batch[1]);
        assert_eq!(text(&[2, 4]), [batch[2].clone(), batch[0].clone()]);
        assert_ne!(batch[0], batch[1]);
        let other = Sampler::new(SamplingConfig { seed: 6, ..sampler.config().clone() }).unwrap();
        let drawn: Vec<u32> = (0..32).map(|at| other.sample(&mut [0.0; 50], &[], 4, at).unwrap()).collect();
        assert_ne!(drawn, batch[0]);
    }

    #[test]
    fn a_draw_never_lands_on_probability_zero() {
        assert_eq!(draw(&[0.0, 0.5, 0.5, 0.0], 0.0), 1);
        assert_eq!(draw(&[0.0, 0.5, 0.5, 0.0], 0.5), 2);
        // Sums of probabilities may end below 1: the last possible token takes the rest.
        assert_eq!(draw(&[0.3, 0.3, 0.3, 0.0], 0.999), 2);
    }

    proptest! {
        #[test]
        fn what_is_drawn_was_kept(
            logits in prop::collection::vec(-20.0f32..20.0, 1..60),
            temperature in 0.05f32..3.0,
            top_k in 0usize..70,
            top_p in 0.01f32..=1.0,
            min_p in 0.0f32..=1.0,
            seed: u64,
        ) {
            let config = SamplingConfig { temperature, top_k, top_p, min_p, repetition_penalty: 1.2, seed };
            let sampler = Sampler::new(config).unwrap();
            let mut changed = logits.clone();
            let token = sampler.sample(&mut changed, &[0], 1, 2).unwrap() as usize;
            let kept = kept(&changed);
            prop_assert!(kept.contains(&token));
            if top_k > 0 {
                let smallest = kept.iter().map(|&at| changed[at]).fold(f32::INFINITY, f32::min);
                prop_assert!(kept.iter().filter(|&&at| changed[at] > smallest).count() < top_k);
            }
            // The largest logit after the penalty always stays.
            let mut penalised = logits;
            penalise(&mut penalised, &[0], 1.2, &mut Vec::new()).unwrap();
            prop_assert!(changed[argmax(&penalised).unwrap() as usize] > OUT);
            let total: f64 = softmax(&changed).iter().sum();
            prop_assert!((total - 1.0).abs() < 1e-9);
        }
    }
}
