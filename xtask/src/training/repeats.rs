//! Rows in which text stands again: a small model learns to look back from these long before it would from text as it is.
//!
//! Olsson et al., "In-context Learning and Induction Heads", arXiv 2209.11895, describe what is learnt; what no text can foretell,
//! random tokens, is where nothing else helps.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Rows that repeat themselves, of one of two kinds, made of passages of `[least, most]` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Repeats {
    /// One passage again and again; short ones are as frequent as long ones are on a logarithmic scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<[usize; 2]>,
    /// One passage, then parts of what stands before, every other one with something new behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quotes: Option<[usize; 2]>,
    /// The share of passages whose tokens are drawn, half of them from the vocabulary and half from the text, in place of
    /// passages of the text.
    #[serde(default)]
    pub random: f64,
}

/// Tokens of a part that stands again, and of what is put behind one.
const PART: [usize; 2] = [16, 100];
const BETWEEN: [usize; 2] = [4, 60];

impl Repeats {
    /// What is wrong with the numbers for rows of `length` predictions.
    pub(crate) fn check(&self, length: usize) -> Result<(), String> {
        let ((Some([least, most]), None) | (None, Some([least, most]))) = (self.period, self.quotes) else {
            return Err("`repeats`: one of `period` and `quotes` is needed".into());
        };
        if least == 0 || least > most || most > length {
            return Err(format!(
                "`repeats`: passages of [{least}, {most}] tokens: 1 to the {length} of a row are possible"
            ));
        }
        if !(0.0..=1.0).contains(&self.random) {
            return Err(format!("`repeats`: `random` is {}: a share between 0 and 1 is needed", self.random));
        }
        Ok(())
    }

    /// `tokens` tokens; the same for the same seed and number.
    ///
    /// The text is as long as the longest passage at least.
    pub(crate) fn row(&self, text: &[u32], vocabulary: usize, tokens: usize, seed: u64, number: u64) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        let mut source = Source { rng, text, vocabulary, random: self.random };
        let mut row = Vec::with_capacity(tokens + PART[1] + BETWEEN[1]);
        if let Some([least, most]) = self.period {
            let length = (least as f64 * (most as f64 / least as f64).powf(source.share())).round() as usize;
            let passage = source.passage(length.clamp(least, most));
            let start = source.below(passage.len());
            row.extend(passage.iter().cycle().skip(start).take(tokens));
        }
        if let Some(range) = self.quotes {
            let length = source.within(range);
            row.extend(source.passage(length));
            while row.len() < tokens {
                let part = source.within(PART).min(row.len());
                let start = source.below(row.len() - part + 1);
                row.extend_from_within(start..start + part);
                if source.below(2) == 0 {
                    let length = source.within(BETWEEN).min(text.len());
                    row.extend(source.passage(length));
                }
            }
        }
        row.truncate(tokens);
        row
    }
}

/// Where passages come from.
struct Source<'a> {
    rng: ChaCha8Rng,
    text: &'a [u32],
    vocabulary: usize,
    random: f64,
}

impl Source<'_> {
    /// Between 0 and 1.
    fn share(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.rng.next_u64() % end.max(1) as u64) as usize
    }

    fn within(&mut self, [least, most]: [usize; 2]) -> usize {
        least + self.below(most - least + 1)
    }

    fn passage(&mut self, length: usize) -> Vec<u32> {
        if self.share() >= self.random {
            let start = self.below(self.text.len() - length + 1);
            return self.text[start..start + length].to_vec();
        }
        let of_text = self.below(2) == 0;
        let token = |_| {
            let i = self.below(if of_text { self.text.len() } else { self.vocabulary });
            if of_text { self.text[i] } else { i as u32 }
        };
        (0..length).map(token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Vec<u32> {
        (0..500).map(|i| i * 7 % 100).collect()
    }

    #[test]
    fn a_period_stands_again_and_again() {
        for (number, random) in [(0, 0.0), (1, 1.0), (2, 0.5)] {
            let repeats = Repeats { period: Some([5, 9]), quotes: None, random };
            let row = repeats.row(&text(), 100, 64, 7, number);
            assert_eq!(row.len(), 64);
            assert!((5..=9).any(|period| (period..64).all(|i| row[i] == row[i - period])), "{row:?}");
            assert_eq!(row, repeats.row(&text(), 100, 64, 7, number), "the same row again");
        }
    }

    #[test]
    fn quotes_are_parts_of_what_stands_before() {
        let repeats = Repeats { period: None, quotes: Some([60, 60]), random: 1.0 };
        let row = repeats.row(&text(), 1 << 30, 200, 7, 0);
        // Of numbers from so large a vocabulary none comes twice by chance; the first part follows the passage at once.
        let start = row[..60].iter().position(|&id| id == row[60]).expect("the first token of a quote");
        let quoted = (60..76).all(|at| row[at] == row[start + at - 60]);
        assert!(row.len() == 200 && quoted, "{row:?}");
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let check = |period, quotes, random| Repeats { period, quotes, random }.check(100);
        assert!(check(Some([3, 40]), None, 0.5).is_ok());
        for (period, quotes, random) in [
            (None, None, 0.0),
            (Some([3, 4]), Some([3, 4]), 0.0),
            (Some([0, 4]), None, 0.0),
            (None, Some([5, 4]), 0.0),
            (None, Some([5, 101]), 0.0),
            (Some([3, 4]), None, 1.5),
        ] {
            assert!(check(period, quotes, random).is_err(), "{period:?}, {quotes:?}, {random}");
        }
    }
}
