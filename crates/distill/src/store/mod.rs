//! What a teacher said, kept in a file: run it once, train any number of students later without it.
//!
//! Of every position the store holds the `k` likeliest tokens, their log-probabilities in a compact [`Codec`], and the
//! logarithm of what all other tokens have together. Records have one size, so any position can be read from a mapped
//! file. Source: arcee-ai/DistillKit (the codec's mathematics; the container and the exact tail are our own).
//!
//! Layout: the eight bytes `KNDLLGT1`, the length of a JSON manifest in 8 bytes, the manifest, then row after row: the token
//! ids, 4 bytes each, and the records of its positions. All numbers are little-endian.

mod capture;
mod codec;

use std::io::Write;

use serde::{Deserialize, Serialize};

pub use capture::records;
pub use codec::{Codec, Record, Term};

use crate::batch::{Known, Row, permuted};
use crate::error::{DistillError, Result};

const MAGIC: &[u8; 8] = b"KNDLLGT1";

/// What a reader must know before it trusts a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// How records are written.
    pub codec: Codec,
    /// Hash of the teacher's tokenizer: students replay the ids of the store, so theirs must be the same.
    pub tokenizer: String,
    /// The teacher.
    pub teacher: String,
    /// Temperature at which the probabilities were taken.
    pub temperature: f64,
    /// Predictions in a row; it has one id more.
    pub length: usize,
    /// How many rows there are.
    pub rows: usize,
}

impl Manifest {
    fn row_bytes(&self) -> usize {
        4 * (self.length + 1) + self.length * self.codec.record_bytes()
    }
}

/// Writes rows in order.
pub struct StoreWriter<W> {
    out: W,
    manifest: Manifest,
    written: usize,
}

impl<W: Write> StoreWriter<W> {
    /// Begins a store.
    ///
    /// # Errors
    /// The codec contradicts itself, or writing fails.
    pub fn new(mut out: W, manifest: Manifest) -> Result<Self> {
        manifest.codec.check()?;
        let text = serde_json::to_vec(&manifest).map_err(|error| DistillError::Store(error.to_string()))?;
        let head = [&MAGIC[..], &(text.len() as u64).to_le_bytes(), &text].concat();
        out.write_all(&head).map_err(write_failed)?;
        Ok(Self { out, manifest, written: 0 })
    }

    /// Adds a row: its ids, one more than there are records.
    pub fn push(&mut self, ids: &[u32], records: &[Record]) -> Result<()> {
        let Manifest { length, rows, .. } = self.manifest;
        if ids.len() != length + 1 || records.len() != length {
            let (a, b) = (ids.len(), records.len());
            return Err(DistillError::Store(format!(
                "a row has {a} ids and {b} records, expected {} and {length}",
                length + 1
            )));
        }
        if self.written == rows {
            return Err(DistillError::Store(format!("all {rows} rows are written already")));
        }
        let mut bytes = Vec::with_capacity(self.manifest.row_bytes());
        ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
        for record in records {
            self.manifest.codec.encode(record, &mut bytes)?;
        }
        self.written += 1;
        self.out.write_all(&bytes).map_err(write_failed)
    }

    /// Ends the store.
    ///
    /// # Errors
    /// Rows are missing.
    pub fn finish(mut self) -> Result<W> {
        if self.written < self.manifest.rows {
            let (written, rows) = (self.written, self.manifest.rows);
            return Err(DistillError::Store(format!("{written} of {rows} rows were written")));
        }
        self.out.flush().map_err(write_failed)?;
        Ok(self.out)
    }
}

fn write_failed(error: std::io::Error) -> DistillError {
    DistillError::Store(format!("cannot be written: {error}"))
}

/// Reads rows of a store in memory, usually a mapped file.
pub struct StoreReader<B> {
    bytes: B,
    manifest: Manifest,
    start: usize,
}

impl<B: AsRef<[u8]>> StoreReader<B> {
    /// Opens a store and checks its size.
    ///
    /// # Errors
    /// It is no store, or it is cut off.
    pub fn new(bytes: B) -> Result<Self> {
        let all = bytes.as_ref();
        let broken = |what: &str| DistillError::Store(what.to_string());
        let Some(rest) = all.strip_prefix(MAGIC) else { return Err(broken("this is no store of a teacher's logits")) };
        let length = rest.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let length = length.and_then(|length| usize::try_from(length).ok()).ok_or_else(|| broken("cut off"))?;
        let text =
            rest.get(8..).and_then(|rest| rest.get(..length)).ok_or_else(|| broken("cut off in its manifest"))?;
        let manifest: Manifest =
            serde_json::from_slice(text).map_err(|error| DistillError::Store(format!("manifest: {error}")))?;
        manifest.codec.check()?;
        let start = MAGIC.len() + 8 + length;
        let expected = manifest.rows.checked_mul(manifest.row_bytes()).and_then(|rows| rows.checked_add(start));
        if expected != Some(all.len()) {
            let expected = expected.map_or("more than can be".into(), |bytes| bytes.to_string());
            return Err(DistillError::Store(format!(
                "{} bytes, expected {expected} for {} rows: the file is damaged or was not finished",
                all.len(),
                manifest.rows
            )));
        }
        Ok(Self { bytes, manifest, start })
    }

    /// Refuses a student with another tokenizer or vocabulary.
    pub fn check_student(&self, tokenizer: &str, vocabulary: usize) -> Result<()> {
        if vocabulary != self.manifest.codec.vocabulary {
            return Err(DistillError::Vocabulary { teacher: self.manifest.codec.vocabulary, student: vocabulary });
        }
        if tokenizer != self.manifest.tokenizer {
            return Err(DistillError::Store(format!(
                "made with another tokenizer ({}, the student has {tokenizer}): its ids would mean other words",
                self.manifest.tokenizer
            )));
        }
        Ok(())
    }

    /// How it was made.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The ids and records of row `i`.
    pub fn row(&self, i: usize) -> Result<(Vec<u32>, Vec<Record>)> {
        let Manifest { length, rows, codec, .. } = &self.manifest;
        if i >= *rows {
            return Err(DistillError::Store(format!("row {i} of {rows}")));
        }
        let size = self.manifest.row_bytes();
        let bytes = &self.bytes.as_ref()[self.start + i * size..][..size];
        let (ids, records) = bytes.split_at(4 * (length + 1));
        let ids = ids.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let decoder = codec.decoder()?;
        Ok((ids, records.chunks_exact(codec.record_bytes()).map(|bytes| decoder.decode(bytes)).collect()))
    }
}

/// Rows of a store, each seen once per pass in a new order.
pub struct StoreBatches<B> {
    /// The store.
    pub store: StoreReader<B>,
    /// Rows of a step.
    pub rows: usize,
    /// Of the order.
    pub seed: u64,
}

impl<B: AsRef<[u8]>> StoreBatches<B> {
    /// The rows of `step`, with what the teacher said about them.
    ///
    /// # Errors
    /// The store has no rows, or its codec cannot be read.
    pub fn rows(&self, step: u64) -> Result<Vec<Row>> {
        let count = self.store.manifest().rows as u64;
        if count == 0 {
            return Err(DistillError::Store("it has no rows".into()));
        }
        let first = step * self.rows as u64;
        let row = |n: u64| {
            let (pass, position) = (n / count, n % count);
            let key = self.seed.wrapping_add(pass.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let (ids, records) = self.store.row(permuted(position, count, key) as usize)?;
            Ok(Row { ids, weights: None, known: Known::Kept(records) })
        };
        (first..first + self.rows as u64).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let codec = Codec { vocabulary: 300, k: 4, exact: 2, terms: vec![Term::Power(0.0), Term::Power(1.0)] };
        Manifest { codec, tokenizer: "abc".into(), teacher: "t".into(), temperature: 1.0, length: 3, rows: 2 }
    }

    fn record(shift: f32) -> Record {
        Record {
            ids: vec![5, 299, 17, 0],
            log_probs: vec![-0.5 - shift, -1.5 - shift, -2.5 - shift, -3.0 - shift],
            log_tail: -2.0,
        }
    }

    fn store() -> Vec<u8> {
        let mut writer = StoreWriter::new(Vec::new(), manifest()).unwrap();
        for row in 0..2 {
            let records: Vec<Record> = (0..3).map(|i| record((row * 3 + i) as f32 * 0.25)).collect();
            writer.push(&[row as u32, 1, 2, 3], &records).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn rows_come_back() {
        let reader = StoreReader::new(store()).unwrap();
        let (ids, records) = reader.row(1).unwrap();
        assert_eq!(ids, [1, 1, 2, 3]);
        let expected = record(4.0 * 0.25);
        assert_eq!((&records[1].ids, records[1].log_tail), (&expected.ids, expected.log_tail));
        assert_eq!(records[1].log_probs[..2], expected.log_probs[..2]);
        assert!((records[1].log_probs[3] - expected.log_probs[3]).abs() < 1e-5);
        assert!(reader.row(2).is_err());
    }

    #[test]
    fn every_pass_shows_every_row() {
        let batches = StoreBatches { store: StoreReader::new(store()).unwrap(), rows: 2, seed: 3 };
        for step in 0..20 {
            let rows = batches.rows(step).unwrap();
            let mut firsts: Vec<u32> = rows.iter().map(|row| row.ids[0]).collect();
            firsts.sort_unstable();
            assert_eq!(firsts, [0, 1]);
            assert!(rows.iter().all(|row| matches!(&row.known, Known::Kept(records) if records.len() == 3)));
        }
    }

    #[test]
    fn damage_and_strangers_are_refused() {
        let whole = store();
        for cut in [0, 4, 12, 40, whole.len() - 1] {
            assert!(StoreReader::new(&whole[..cut]).is_err(), "{cut}");
        }
        let reader = StoreReader::new(&whole).unwrap();
        assert!(reader.check_student("abc", 300).is_ok());
        assert!(matches!(reader.check_student("abc", 301), Err(DistillError::Vocabulary { .. })));
        assert!(reader.check_student("other", 300).unwrap_err().to_string().contains("another tokenizer"));
        let mut writer = StoreWriter::new(Vec::new(), manifest()).unwrap();
        assert!(writer.push(&[1], &[]).is_err());
        assert!(writer.finish().unwrap_err().to_string().contains("0 of 2 rows"));
    }
}
