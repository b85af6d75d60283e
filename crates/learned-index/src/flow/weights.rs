//! Flows in files: the text format of the published code, and a binary one that keeps every bit.
//!
//! The text has whitespace between numbers: features, width, layers; mean and scale; then for every layer rows, columns
//! and the entries by rows. Published files keep sixteen decimals, so small weights have lost most of their digits.

use std::fmt::Write;
use std::str::FromStr;

use super::folding::{FoldingFlow, MAX_WIDTH, Matrix};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"KLFLOW\0\x01";
/// Most layers that a file may have.
const MAX_LAYERS: usize = 64;

impl FoldingFlow {
    /// Reads the published text format.
    ///
    /// # Errors
    /// [`Error::Invalid`] that says which number is missing, cannot be read or does not fit.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let [features, width, layers] =
            [next(&mut words, "features")?, next(&mut words, "width")?, next(&mut words, "layers")?];
        check_size(features, width, layers)?;
        let (mean, var) = (next(&mut words, "mean")?, next(&mut words, "scale")?);
        let mut matrices = Vec::new();
        for _ in 0..layers {
            let (rows, columns) = (next(&mut words, "rows")?, next(&mut words, "columns")?);
            check_size(rows, columns, 1)?;
            let entries = (0..rows * columns).map(|_| next(&mut words, "a weight")).collect::<Result<_>>()?;
            matrices.push(Matrix { rows, columns, entries });
        }
        if let Some(word) = words.next() {
            return Err(Error::Invalid(format!("flow: expected the end after {layers} layers, found `{word}`")));
        }
        Self::new(mean, var, matrices)
    }

    /// Writes the published text format, with as many digits as it takes to read the same numbers again.
    pub fn to_text(&self) -> String {
        let width = self.layers().iter().map(|layer| layer.columns).max().unwrap_or(0);
        let mut text = format!("{} {width} {}\n{} {}\n", self.features(), self.layers().len(), self.mean, self.var);
        for layer in self.layers() {
            let entries: Vec<String> = layer.entries.iter().map(f64::to_string).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {}\n{}", layer.rows, layer.columns, entries.join(" "));
        }
        text
    }

    /// The flow in bytes: magic, whether the first feature is raw, layers, mean, scale, then rows, columns and entries
    /// of every layer; all little-endian words.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut put = |word: u64| bytes.extend(word.to_le_bytes());
        put(u64::from(self.raw_first_feature));
        put(self.layers().len() as u64);
        put(self.mean.to_bits());
        put(self.var.to_bits());
        for layer in self.layers() {
            put(layer.rows as u64);
            put(layer.columns as u64);
            layer.entries.iter().for_each(|entry| put(entry.to_bits()));
        }
        bytes
    }

    /// Reads what [`FoldingFlow::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let invalid = |what: &str| Error::Invalid(format!("flow: {what}"));
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| invalid("expected the bytes `KLFLOW`, version 1"))?;
        let (words, left) = rest.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut word = || words.next().ok_or_else(|| invalid("the bytes end early"));
        let raw = word()?;
        let layers = word()? as usize;
        let (mean, var) = (f64::from_bits(word()?), f64::from_bits(word()?));
        check_size(1, 1, layers)?;
        let mut matrices = Vec::new();
        for _ in 0..layers {
            let (rows, columns) = (word()? as usize, word()? as usize);
            check_size(rows, columns, 1)?;
            let entries = (0..rows * columns).map(|_| word().map(f64::from_bits)).collect::<Result<_>>()?;
            matrices.push(Matrix { rows, columns, entries });
        }
        if words.next().is_some() || !left.is_empty() || raw > 1 {
            return Err(invalid("there are bytes too many, or the flag is none"));
        }
        let mut flow = Self::new(mean, var, matrices)?;
        flow.raw_first_feature = raw == 1;
        Ok(flow)
    }
}

fn next<T: FromStr>(words: &mut std::str::SplitWhitespace<'_>, what: &str) -> Result<T> {
    let word = words.next().ok_or_else(|| Error::Invalid(format!("flow: expected {what}, found the end")))?;
    word.parse().map_err(|_| Error::Invalid(format!("flow: expected {what}, found `{word}`")))
}

fn check_size(rows: usize, columns: usize, layers: usize) -> Result<()> {
    let fits = |n: usize| (1..=MAX_WIDTH).contains(&n);
    if fits(rows) && fits(columns) && (1..=MAX_LAYERS).contains(&layers) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "flow: expected sizes between 1 and {MAX_WIDTH}, found {rows} × {columns} in {layers} layers"
    )))
}

#[cfg(test)]
mod tests {
    use super::super::folding::tests::longitudes;
    use super::*;

    const PUBLISHED: &str = "2 2 2\n-180.0000000000000000 0.0036000000000000\n2 2\n0.0000002004125515 0.0000000000008127\n\
        0.0000000000000000 0.0134502091280772\n2 2\n84.1250956621339388 0.0000000071717746\n0.0000000000000000 96.2979266806848813\n";

    #[test]
    fn the_published_text_is_read() {
        let flow = FoldingFlow::from_text(PUBLISHED).unwrap();
        assert!((flow.transform(-73.9857) - 1.036_154).abs() < 1e-6);
        assert_eq!(flow.features(), 2);
    }

    #[test]
    fn both_formats_keep_every_bit() {
        let mut flow = longitudes();
        assert_eq!(FoldingFlow::from_text(&flow.to_text()).unwrap(), flow);
        flow.raw_first_feature = true;
        assert_eq!(FoldingFlow::from_bytes(&flow.to_bytes()).unwrap(), flow);
    }

    #[test]
    fn broken_files_are_errors() {
        for (text, why) in [
            ("", "features"),
            ("2 2 x", "`x`"),
            ("2 2 2\n0 1\n2 2\n1 2 3", "a weight"),
            ("2 2 99999999999", "sizes"),
            ("1 1 1 0 1 1 1 5 6", "`6`"),
            ("1 1 1 0 -1 1 1 5", "scale"),
        ] {
            let error = FoldingFlow::from_text(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let bytes = longitudes().to_bytes();
        for cut in 0..bytes.len() {
            assert!(FoldingFlow::from_bytes(&bytes[..cut]).is_err());
        }
        assert!(FoldingFlow::from_bytes(&[bytes, vec![0]].concat()).is_err());
    }
}
