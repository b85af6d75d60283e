//! Pairs of answers, of which one is better, as the rows of training steps; and how to choose them among scored answers.
//!
//! Source of the choice: Tunstall et al., "Zephyr", arXiv 2310.16944: the answer with the highest score against a random one
//! of the others. Of equal highest scores the first answer wins, and a pair of equal scores or equal texts is none.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::batch::{Known, Row, permuted};
use crate::error::{DistillError, Result};
use crate::on_policy::gkd::continued;

/// A prompt and two answers, as token ids; answers end with the end token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerPair {
    /// What both answers follow.
    pub prompt: Vec<u32>,
    /// The better answer.
    pub chosen: Vec<u32>,
    /// The worse answer; empty if there is one answer only, which is learnt as it is.
    pub rejected: Vec<u32>,
}

/// Pairs in steps, each seen once per pass in a new order.
#[derive(Debug, Clone)]
pub struct PreferencePairs {
    pairs: Vec<AnswerPair>,
    /// Scores of better and worse answer under the reference, once they are known.
    reference: Vec<[f64; 2]>,
    per_step: usize,
    seed: u64,
}

impl PreferencePairs {
    /// Fits the pairs into `length` tokens: prompts lose their beginning, the same for both answers. Returns how many pairs were
    /// left out because an answer alone is longer, or because both are the same.
    ///
    /// # Errors
    /// No pair is left, or `per_step` is 0.
    pub fn new(pairs: Vec<AnswerPair>, length: usize, per_step: usize, seed: u64) -> Result<(Self, usize)> {
        let given = pairs.len();
        let fitted = |mut pair: AnswerPair| {
            let answer = pair.chosen.len().max(pair.rejected.len());
            let usable = !pair.prompt.is_empty() && !pair.chosen.is_empty() && pair.chosen != pair.rejected;
            if !usable || answer >= length {
                return None;
            }
            let kept = pair.prompt.len().min(length - answer);
            pair.prompt.drain(..pair.prompt.len() - kept);
            Some(pair)
        };
        let pairs: Vec<AnswerPair> = pairs.into_iter().filter_map(fitted).collect();
        if pairs.is_empty() || per_step == 0 {
            return Err(DistillError::Input(format!(
                "none of {given} pairs can be learnt from: prompt and two different answers must fit {length} tokens"
            )));
        }
        let left_out = given - pairs.len();
        Ok((Self { pairs, reference: Vec::new(), per_step, seed }, left_out))
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Never: pairs without a single one are refused.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The rows of every pair by itself, to score them under the reference.
    pub fn each(&self) -> impl Iterator<Item = Vec<Row>> + '_ {
        self.pairs.iter().map(|pair| {
            let length = pair.prompt.len() + pair.chosen.len().max(pair.rejected.len());
            rows_of(pair, length).collect()
        })
    }

    /// Takes the scores of better and worse answers under the reference, in the order of [`each`](Self::each).
    ///
    /// # Errors
    /// There are not as many as pairs.
    pub fn set_reference(&mut self, scores: Vec<[f64; 2]>) -> Result<()> {
        if scores.len() != self.pairs.len() {
            let (found, expected) = (scores.len(), self.pairs.len());
            return Err(DistillError::Input(format!("{found} scores under the reference, expected {expected}")));
        }
        self.reference = scores;
        Ok(())
    }

    /// The rows of a step: better and worse answer by turns if there are scores under the reference, else the better ones
    /// alone. All are filled up to the longest; only answers count.
    pub fn rows(&self, step: u64) -> Vec<Row> {
        let count = self.pairs.len() as u64;
        let first = step * self.per_step as u64;
        let chosen: Vec<usize> = (first..first + self.per_step as u64)
            .map(|n| {
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
                rng.set_stream(n / count);
                permuted(n % count, count, rng.next_u64()) as usize
            })
            .collect();
        let compared = !self.reference.is_empty();
        let size = |&i: &usize| {
            let pair = &self.pairs[i];
            pair.prompt.len() + if compared { pair.chosen.len().max(pair.rejected.len()) } else { pair.chosen.len() }
        };
        let length = chosen.iter().map(size).max().unwrap_or(0);
        let mut rows = Vec::new();
        for i in chosen {
            let both = rows_of(&self.pairs[i], length);
            if compared {
                let scored = both.zip(self.reference[i]);
                rows.extend(scored.map(|(row, score)| Row { known: Known::Answer(vec![score]), ..row }));
            } else {
                rows.extend(both.take(1));
            }
        }
        rows
    }
}

/// Better and worse answer after the prompt, filled up to `length` ids.
fn rows_of(pair: &AnswerPair, length: usize) -> impl Iterator<Item = Row> + '_ {
    [&pair.chosen, &pair.rejected].into_iter().map(move |answer| {
        continued(pair.prompt.clone(), &answer[..answer.len().min(length - pair.prompt.len())], length)
    })
}

/// The better and the worse of scored answers: indices into `answers`, each a text and its score.
///
/// `None` if all scores, or both texts, are equal, or there are fewer than two answers.
pub fn choose(answers: &[(String, f64)], seed: u64, number: u64) -> Option<[usize; 2]> {
    if answers.len() < 2 || answers.iter().any(|(_, score)| !score.is_finite()) {
        return None;
    }
    let best = (1..answers.len()).fold(0, |best, i| if answers[i].1 > answers[best].1 { i } else { best });
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    let other = (rng.next_u64() % (answers.len() as u64 - 1)) as usize;
    let other = if other >= best { other + 1 } else { other };
    let ((better, high), (worse, low)) = (&answers[best], &answers[other]);
    (high != low && better != worse).then_some([best, other])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(prompt: usize, chosen: usize, rejected: usize) -> AnswerPair {
        let ids = |from: u32, count: usize| (from..from + count as u32).collect();
        AnswerPair { prompt: ids(100, prompt), chosen: ids(200, chosen), rejected: ids(300, rejected) }
    }

    #[test]
    fn prompts_are_cut_alike_and_long_answers_left_out() {
        let (pairs, left_out) =
            PreferencePairs::new(vec![pair(9, 3, 5), pair(2, 10, 1), pair(4, 2, 2)], 8, 2, 0).unwrap();
        assert_eq!((pairs.len(), left_out), (2, 1));
        let rows: Vec<Vec<Row>> = pairs.each().collect();
        assert_eq!(rows[0][0].ids, [106, 107, 108, 200, 201, 202, 106, 106]);
        assert_eq!(rows[0][1].ids, [106, 107, 108, 300, 301, 302, 303, 304]);
        assert_eq!(rows[0][0].weights.as_deref().unwrap(), [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(rows[1][0].ids.len(), 6);
        assert!(PreferencePairs::new(vec![pair(2, 9, 1)], 8, 1, 0).is_err());
        let same = AnswerPair { rejected: vec![200], ..pair(3, 1, 0) };
        assert!(PreferencePairs::new(vec![same], 8, 1, 0).is_err());
    }

    #[test]
    fn a_pass_shows_every_pair_once() {
        let (mut pairs, _) = PreferencePairs::new((1..7).map(|n| pair(n, 2, 3)).collect(), 20, 2, 5).unwrap();
        assert!(pairs.set_reference(vec![[0.0; 2]; 5]).is_err());
        pairs.set_reference((0..6).map(|i| [f64::from(i), -f64::from(i)]).collect()).unwrap();
        let mut seen = Vec::new();
        for step in 0..3 {
            let rows = pairs.rows(step);
            assert_eq!(rows.len(), 4);
            assert!(rows.windows(2).all(|w| w[0].ids.len() == w[1].ids.len()));
            for both in rows.chunks(2) {
                let [Known::Answer(better), Known::Answer(worse)] = [&both[0].known, &both[1].known] else {
                    panic!("answers are expected")
                };
                assert_eq!(better[0], -worse[0]);
                seen.push(better[0]);
            }
        }
        seen.sort_by(f64::total_cmp);
        assert_eq!(seen, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn the_best_answer_against_one_of_the_others() {
        let answers = |scores: &[f64]| -> Vec<(String, f64)> {
            scores.iter().enumerate().map(|(i, &score)| (format!("answer {i}"), score)).collect()
        };
        let mut worse = Vec::new();
        for number in 0..50 {
            let [best, other] = choose(&answers(&[2.0, 5.0, 5.0, 1.0]), 3, number).unwrap_or([1, 2]);
            assert_eq!(best, 1);
            worse.push(other);
        }
        worse.sort_unstable();
        worse.dedup();
        assert_eq!(worse, [0, 2, 3]);
        assert_eq!(choose(&answers(&[4.0, 4.0]), 0, 0), None);
        assert_eq!(choose(&answers(&[4.0]), 0, 0), None);
        assert_eq!(choose(&[("same".into(), 1.0), ("same".into(), 2.0)], 0, 0), None);
        assert_eq!(choose(&answers(&[1.0, f64::NAN]), 0, 0), None);
    }
}
