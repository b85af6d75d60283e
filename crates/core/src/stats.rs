//! What a layer's inputs are reduced to before a method acts.

use crate::{Error, Result};

/// What a method must know of a layer's inputs. Each kind includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Needs {
    /// Nothing: the method is data-free.
    Nothing,
    /// Per input: `Σ x`, `Σ x²`, `max |x|`.
    Norms,
    /// Also the Gram matrix `XᵀX`.
    Moments,
}

/// Raw sums over all calibration tokens that reached one layer input of `width` features.
///
/// Sums, not means: shards merge by addition. f32 within a batch, f64 across batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    width: usize,
    /// Token positions seen.
    pub tokens: u64,
    /// `Σ_t x[t, j]`; empty unless asked for.
    pub sum: Vec<f64>,
    /// `Σ_t x[t, j]²`; empty unless asked for.
    pub sum_sq: Vec<f64>,
    /// `max_t |x[t, j]|`; empty unless asked for.
    pub max_abs: Vec<f32>,
    /// `Σ_t x[t, i] · x[t, j]`, row-major `[width, width]`; empty unless asked for.
    pub gram: Vec<f64>,
}

impl Stats {
    /// Empty sums for an input of `width` features.
    pub fn new(width: usize, needs: Needs) -> Self {
        let norms = if needs >= Needs::Norms { width } else { 0 };
        let moments = if needs >= Needs::Moments { width * width } else { 0 };
        Self {
            width,
            tokens: 0,
            sum: vec![0.0; norms],
            sum_sq: vec![0.0; norms],
            max_abs: vec![0.0; norms],
            gram: vec![0.0; moments],
        }
    }

    /// The number of input features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// What was collected.
    pub fn has(&self) -> Needs {
        match (self.sum_sq.is_empty(), self.gram.is_empty()) {
            (_, false) => Needs::Moments,
            (false, true) => Needs::Norms,
            (true, true) => Needs::Nothing,
        }
    }

    /// An error unless at least `needs` was collected for an input of `width` features.
    pub fn require(&self, layer: &str, needs: Needs, width: usize) -> Result<()> {
        if self.has() < needs {
            return Err(Error::MissingStats { layer: layer.into(), needs });
        }
        if needs > Needs::Nothing && self.width != width {
            return Err(Error::Shape {
                what: format!("statistics of layer `{layer}`"),
                expected: vec![width],
                found: vec![self.width],
            });
        }
        Ok(())
    }

    /// Adds a row-major batch `[tokens, width]` on the host. The plain twin of a device accumulation.
    pub fn add_rows(&mut self, rows: &[f32]) -> Result<()> {
        if self.width == 0 || !rows.len().is_multiple_of(self.width) {
            return Err(Error::Shape {
                what: "batch of layer inputs".into(),
                expected: vec![rows.len().div_ceil(self.width.max(1)), self.width],
                found: vec![rows.len()],
            });
        }
        self.add_norms(rows);
        if self.has() >= Needs::Moments {
            for row in rows.chunks_exact(self.width) {
                for (i, gram_row) in self.gram.chunks_exact_mut(self.width).enumerate() {
                    let xi = f64::from(row[i]);
                    gram_row.iter_mut().zip(row).for_each(|(g, &xj)| *g += xi * f64::from(xj));
                }
            }
        }
        Ok(())
    }

    /// Adds a batch to everything but the Gram matrix, for callers that have a faster way to that.
    pub fn add_norms(&mut self, rows: &[f32]) {
        let norms = self.has() >= Needs::Norms;
        for row in rows.chunks_exact(self.width) {
            self.tokens += 1;
            if norms {
                for (j, &x) in row.iter().enumerate() {
                    self.sum[j] += f64::from(x);
                    self.sum_sq[j] += f64::from(x) * f64::from(x);
                    self.max_abs[j] = self.max_abs[j].max(x.abs());
                }
            }
        }
    }

    /// Adds the sums of another shard of the text. Merge shards in a fixed order: f64 addition is not associative.
    pub fn merge(&mut self, other: &Stats) -> Result<()> {
        if self.width != other.width || self.has() != other.has() {
            return Err(Error::Shape {
                what: "statistics to merge".into(),
                expected: vec![self.width, self.gram.len()],
                found: vec![other.width, other.gram.len()],
            });
        }
        self.tokens += other.tokens;
        let add = |to: &mut [f64], from: &[f64]| to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        add(&mut self.sum, &other.sum);
        add(&mut self.sum_sq, &other.sum_sq);
        add(&mut self.gram, &other.gram);
        self.max_abs.iter_mut().zip(&other.max_abs).for_each(|(a, b)| *a = a.max(*b));
        Ok(())
    }

    /// `‖x_j‖₂` of every input feature.
    pub fn norms(&self) -> Vec<f64> {
        self.sum_sq.iter().map(|s| s.sqrt()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_merge_to_the_whole() {
        let rows = [1.0, -2.0, 3.0, 0.5, -4.0, 0.25];
        let mut whole = Stats::new(2, Needs::Moments);
        whole.add_rows(&rows).unwrap();
        let mut first = Stats::new(2, Needs::Moments);
        first.add_rows(&rows[..2]).unwrap();
        let mut rest = Stats::new(2, Needs::Moments);
        rest.add_rows(&rows[2..]).unwrap();
        first.merge(&rest).unwrap();
        assert_eq!(first, whole);
        assert_eq!(whole.tokens, 3);
        assert_eq!(whole.sum_sq, [26.0, 4.3125]);
        assert_eq!(whole.gram[1], -2.0 + 1.5 - 1.0);
        assert_eq!(whole.max_abs, [4.0, 2.0]);
    }

    #[test]
    fn missing_and_misshapen_statistics_are_errors() {
        let stats = Stats::new(4, Needs::Norms);
        assert!(stats.require("q", Needs::Norms, 4).is_ok());
        assert!(matches!(stats.require("q", Needs::Moments, 4), Err(Error::MissingStats { .. })));
        assert!(matches!(stats.require("q", Needs::Norms, 8), Err(Error::Shape { .. })));
        assert!(Stats::new(4, Needs::Norms).add_rows(&[0.0; 5]).is_err());
    }
}
