//! One position: token ids bit by bit, the first log-probabilities as bf16, a curve through the rest, the exact tail.

use kindling_tensor_backend::linalg;
use serde::{Deserialize, Serialize};

use crate::error::{DistillError, Result};

/// Singular values below this are dropped when the curve is fitted.
const SMALLEST: f64 = 1e-5;

/// A function of the index, counted from 0 at the first fitted value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Term {
    /// `t^e`.
    Power(f64),
    /// `√t`.
    Root,
}

impl Term {
    fn at(self, t: f64) -> f64 {
        match self {
            Term::Power(0.0) => 1.0,
            Term::Power(e) => t.powf(e),
            Term::Root => t.sqrt(),
        }
    }
}

/// How a position is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Codec {
    /// Tokens to choose from.
    pub vocabulary: usize,
    /// Tokens kept.
    pub k: usize,
    /// How many of them keep their log-probability as bf16.
    pub exact: usize,
    /// What the curve through the others is a sum of; its coefficients are f32.
    pub terms: Vec<Term>,
}

/// What is known of a position.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The likeliest tokens, best first.
    pub ids: Vec<u32>,
    /// Their log-probabilities.
    pub log_probs: Vec<f32>,
    /// The logarithm of the probability of all others together; −∞ if there are none.
    pub log_tail: f32,
}

impl Codec {
    /// 128 tokens, 16 of them exact, a curve of six terms for the rest.
    pub fn recommended(vocabulary: usize) -> Self {
        let powers = (0..=4).map(|e| Term::Power(f64::from(e)));
        Self {
            vocabulary,
            k: 128.min(vocabulary),
            exact: 16.min(vocabulary),
            terms: powers.chain([Term::Root]).collect(),
        }
    }

    /// Every log-probability as bf16.
    pub fn raw(vocabulary: usize, k: usize) -> Self {
        Self { vocabulary, k, exact: k, terms: Vec::new() }
    }

    fn id_bits(&self) -> usize {
        (usize::BITS - self.vocabulary.saturating_sub(1).leading_zeros()).max(1) as usize
    }

    fn id_bytes(&self) -> usize {
        (self.k * self.id_bits()).div_ceil(8)
    }

    /// Bytes of the tokens and their probabilities.
    pub fn token_bytes(&self) -> usize {
        self.id_bytes() + 2 * self.exact + 4 * self.terms.len()
    }

    /// Bytes of a position: [`token_bytes`](Self::token_bytes) and four for the tail.
    pub fn record_bytes(&self) -> usize {
        self.token_bytes() + 4
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { vocabulary, k, exact, ref terms } = *self;
        if k == 0 || k > vocabulary || exact > k || vocabulary > 1 << 31 {
            return Err(DistillError::Store(format!(
                "a codec keeps {exact} exact values of {k} of {vocabulary} tokens: expected exact <= k <= vocabulary"
            )));
        }
        if (exact < k) == terms.is_empty() || terms.len() > k - exact {
            return Err(DistillError::Store(format!(
                "a curve of {} terms through {} values: expected at least one value a term, and no term without values",
                terms.len(),
                k - exact
            )));
        }
        Ok(())
    }

    /// The terms at every fitted index, row-major `[k − exact, terms]`.
    fn features(&self) -> Vec<f64> {
        (0..self.k - self.exact).flat_map(|t| self.terms.iter().map(move |term| term.at(t as f64))).collect()
    }

    /// The coefficients of the curve nearest to `values`.
    fn fit(&self, values: &[f32]) -> Result<Vec<f32>> {
        let (rows, cols) = (values.len(), self.terms.len());
        if cols == 0 {
            return Ok(Vec::new());
        }
        let svd = linalg::svd(&self.features(), rows, cols).map_err(|error| DistillError::Store(error.to_string()))?;
        let mut coefficients = vec![0.0; cols];
        for (i, &singular) in svd.s.iter().enumerate().filter(|(_, s)| **s > SMALLEST) {
            let along: f64 = (0..rows).map(|r| svd.u[r * svd.s.len() + i] * f64::from(values[r])).sum();
            for (c, coefficient) in coefficients.iter_mut().enumerate() {
                *coefficient += svd.vt[i * cols + c] * along / singular;
            }
        }
        Ok(coefficients.into_iter().map(|c| c as f32).collect())
    }

    /// Appends a position.
    pub fn encode(&self, record: &Record, out: &mut Vec<u8>) -> Result<()> {
        if record.ids.len() != self.k || record.log_probs.len() != self.k {
            let (a, b) = (record.ids.len(), record.log_probs.len());
            return Err(DistillError::Store(format!("{a} ids and {b} log-probabilities, the codec keeps {}", self.k)));
        }
        if let Some(id) = record.ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            return Err(DistillError::Store(format!("token {id} of a vocabulary of {}", self.vocabulary)));
        }
        pack(&record.ids, self.id_bits(), out);
        for value in &record.log_probs[..self.exact] {
            out.extend(bf16(*value).to_le_bytes());
        }
        for coefficient in self.fit(&record.log_probs[self.exact..])? {
            out.extend(coefficient.to_le_bytes());
        }
        out.extend(record.log_tail.to_le_bytes());
        Ok(())
    }

    pub(super) fn decoder(&self) -> Result<Decoder<'_>> {
        Ok(Decoder { codec: self, features: self.features() })
    }
}

/// A codec with its curve's terms at hand.
pub(super) struct Decoder<'a> {
    codec: &'a Codec,
    features: Vec<f64>,
}

impl Decoder<'_> {
    /// A position; `bytes` has the codec's record size. A curve is shifted so that kept tokens and tail sum to 1.
    pub(super) fn decode(&self, bytes: &[u8]) -> Record {
        let codec = self.codec;
        let (ids, rest) = bytes.split_at(codec.id_bytes());
        let (exact, rest) = rest.split_at(2 * codec.exact);
        let (coefficients, tail) = rest.split_at(4 * codec.terms.len());
        let f32_at = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let mut log_probs: Vec<f32> =
            exact.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).collect();
        let coefficients: Vec<f64> = coefficients.chunks_exact(4).map(|b| f64::from(f32_at(b))).collect();
        if !coefficients.is_empty() {
            let curve = self.features.chunks_exact(coefficients.len());
            log_probs.extend(curve.map(|f| f.iter().zip(&coefficients).map(|(f, c)| f * c).sum::<f64>() as f32));
        }
        Record { ids: unpack(ids, codec.id_bits(), codec.k), log_probs, log_tail: f32_at(tail) }
    }
}

impl Record {
    /// Adds one constant to the log-probabilities, so that they and the tail sum to 1: what a lossy codec has moved would
    /// otherwise make divergences negative.
    pub fn normalise(&mut self) {
        let kept: f64 = self.log_probs.iter().map(|&l| f64::from(l).exp()).sum();
        let wanted = 1.0 - f64::from(self.log_tail).exp();
        if kept > 0.0 && wanted > 0.0 {
            let shift = (wanted / kept).ln() as f32;
            self.log_probs.iter_mut().for_each(|l| *l += shift);
        }
    }
}

/// Round to nearest, ties to even.
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Most significant bit first, filled up to a byte.
fn pack(ids: &[u32], bits: usize, out: &mut Vec<u8>) {
    let (mut buffer, mut held) = (0u64, 0);
    for &id in ids {
        buffer = (buffer << bits) | u64::from(id);
        held += bits;
        while held >= 8 {
            held -= 8;
            out.push((buffer >> held) as u8);
        }
        buffer &= (1 << held) - 1;
    }
    if held > 0 {
        out.push((buffer << (8 - held)) as u8);
    }
}

fn unpack(bytes: &[u8], bits: usize, count: usize) -> Vec<u32> {
    let (mut buffer, mut held, mut bytes) = (0u64, 0, bytes.iter());
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        while held < bits {
            buffer = (buffer << 8) | u64::from(*bytes.next().unwrap_or(&0));
            held += 8;
        }
        held -= bits;
        ids.push((buffer >> held) as u32);
        buffer &= (1 << held) - 1;
    }
    ids
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_bit_by_bit() {
        let packed = |ids: &[u32], bits| {
            let mut out = Vec::new();
            pack(ids, bits, &mut out);
            out
        };
        assert_eq!(packed(&[5, 300, 17], 9), [2, 203, 2, 32]);
        assert_eq!(packed(&[128_009, 7], 17), [0xfa, 0x04, 0x80, 0x01, 0xc0]);
    }

    #[test]
    fn bytes_for_real_vocabularies() {
        for (vocabulary, recommended, raw_64, raw_128) in
            [(32_000, 296, 248, 496), (50_257, 312, 256, 512), (128_256, 328, 264, 528), (151_936, 344, 272, 544)]
        {
            assert_eq!(Codec::recommended(vocabulary).token_bytes(), recommended);
            assert_eq!(Codec::raw(vocabulary, 64).token_bytes(), raw_64);
            assert_eq!(Codec::raw(vocabulary, 128).token_bytes(), raw_128);
        }
        let terms = vec![Term::Power(0.0), Term::Power(1.0), Term::Root];
        let budget = Codec { vocabulary: 32_000, k: 50, exact: 1, terms };
        assert_eq!(budget.token_bytes(), 108);
    }

    #[test]
    fn the_curve_of_worked_numbers() {
        let codec =
            Codec { vocabulary: 300, k: 8, exact: 2, terms: vec![Term::Power(0.0), Term::Power(1.0), Term::Root] };
        let log_probs = vec![-0.8, -1.6, -2.3, -2.9, -3.2, -3.6, -3.7, -4.1];
        let fitted = codec.fit(&log_probs[2..]).unwrap();
        for (found, expected) in fitted.iter().zip([-2.301923, -0.159266, -0.429412]) {
            assert!((found - expected).abs() < 2e-6, "{fitted:?}");
        }
        let mut bytes = Vec::new();
        let record = Record { ids: (0..8).collect(), log_probs: log_probs.clone(), log_tail: -1.0 };
        codec.encode(&record, &mut bytes).unwrap();
        assert_eq!(bytes.len(), codec.record_bytes());
        assert_eq!(bytes[9..13], [0x4d, 0xbf, 0xcd, 0xbf]);
        let back = codec.decoder().unwrap().decode(&bytes);
        assert_eq!(back.ids, record.ids);
        let curve = [-2.301923, -2.890601, -3.227735, -3.523484, -3.797811, -4.058447];
        for (found, expected) in back.log_probs[2..].iter().zip(curve) {
            assert!((found - expected).abs() < 2e-6, "{:?}", back.log_probs);
        }
        let largest = back.log_probs[2..].iter().zip(&log_probs[2..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!((largest - 0.097811).abs() < 2e-6);
    }

    #[test]
    fn contradictions_are_refused() {
        let codec = |k, exact, terms: usize| Codec { vocabulary: 10, k, exact, terms: vec![Term::Power(1.0); terms] };
        assert!(codec(4, 4, 0).check().is_ok() && codec(4, 2, 2).check().is_ok());
        for bad in [codec(0, 0, 0), codec(11, 11, 0), codec(4, 5, 0), codec(4, 2, 0), codec(4, 4, 1), codec(4, 3, 2)] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let record = Record { ids: vec![10], log_probs: vec![0.0], log_tail: -1.0 };
        assert!(codec(1, 1, 0).encode(&record, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_shift_makes_the_sum_one() {
        let mut record = Record { ids: vec![0, 1], log_probs: vec![-1.0, -1.2], log_tail: (0.25f32).ln() };
        record.normalise();
        let sum: f32 = record.log_probs.iter().map(|l| l.exp()).sum();
        assert!((sum - 0.75).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn ids_come_back(bits in 1usize..32, seed in any::<u64>(), count in 0usize..40) {
            let id = |i: usize| ((seed.rotate_left(i as u32 * 7) >> 3) & ((1 << bits) - 1)) as u32;
            let ids: Vec<u32> = (0..count).map(id).collect();
            let mut bytes = Vec::new();
            pack(&ids, bits, &mut bytes);
            prop_assert_eq!(bytes.len(), (count * bits).div_ceil(8));
            prop_assert_eq!(unpack(&bytes, bits, count), ids);
        }
    }
}
