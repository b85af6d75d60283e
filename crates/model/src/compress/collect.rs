//! Statistics and samples of layer inputs, gathered through a tap.

use std::collections::BTreeMap;

use burn::tensor::{Element, Tensor};
use kindling_core::{Error, Needs, Result, Stats, Tap};
use kindling_tensor_backend::linalg;

/// Rows kept of every site to measure the error of its layers.
pub(super) const SAMPLE_ROWS: usize = 512;

/// The values of a tensor on the host, in f32.
pub(super) fn host_values<const D: usize>(x: Tensor<D>) -> crate::error::Result<Vec<f32>> {
    let data = x.into_data().convert::<f32>();
    data.try_to_vec::<f32>().map_err(|error| {
        crate::error::ModelError::Input(format!("values of type {:?} could not be read back: {error:?}", f32::dtype()))
    })
}

/// What one site has seen.
pub(super) struct Seen {
    /// The sums that the methods asked for.
    pub(super) stats: Stats,
    /// Evenly spaced rows, row-major; empty unless samples were asked for.
    pub(super) samples: Vec<f32>,
}

/// Gathers what each site needs while batches run through a block.
pub(super) struct Collector {
    needs: BTreeMap<String, Needs>,
    seen: BTreeMap<String, Seen>,
    /// Every how many rows one is kept; 0: none.
    stride: usize,
}

impl Collector {
    /// `needs` by site. With `sample_of` tokens in all, about [`SAMPLE_ROWS`] rows of each site are kept.
    pub(super) fn new(needs: BTreeMap<String, Needs>, sample_of: Option<usize>) -> Self {
        let stride = sample_of.map_or(0, |tokens| tokens.div_ceil(SAMPLE_ROWS).max(1));
        Self { needs, seen: BTreeMap::new(), stride }
    }

    /// What was seen, by site. A site that no token reached is absent.
    pub(super) fn finish(self) -> BTreeMap<String, Seen> {
        self.seen
    }
}

impl Tap for Collector {
    fn tap(&mut self, site: &str, x: &Tensor<2>) -> Result<()> {
        let Some(&needs) = self.needs.get(site) else {
            return Ok(());
        };
        let [tokens, width] = x.dims();
        let values = host_values(x.clone()).map_err(|error| Error::Invalid(error.to_string()))?;
        let seen = self
            .seen
            .entry(site.to_string())
            .or_insert_with(|| Seen { stats: Stats::new(width, needs), samples: Vec::new() });
        if self.stride > 0 {
            let before = seen.stats.tokens as usize;
            let first = before.next_multiple_of(self.stride) - before;
            for row in (first..tokens).step_by(self.stride) {
                seen.samples.extend_from_slice(&values[row * width..(row + 1) * width]);
            }
        }
        seen.stats.add_norms(&values);
        if needs >= Needs::Moments {
            // f32 within the batch, f64 across batches.
            linalg::xtx(&values, tokens, width, &mut seen.stats.gram)
                .map_err(|error| Error::Invalid(error.to_string()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn batches_give_the_sums_of_the_plain_twin_and_evenly_spaced_samples() {
        let rows: Vec<f32> = (0..1200 * 3).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let needs = BTreeMap::from([("a".to_string(), Needs::Moments)]);
        let mut collector = Collector::new(needs, Some(1200));
        for part in [0..500, 500..1200] {
            let data = TensorData::new(rows[part.start * 3..part.end * 3].to_vec(), [part.len(), 3]);
            let x = Tensor::<2>::from_data(data, &Default::default());
            collector.tap("a", &x).unwrap();
            collector.tap("b", &x).unwrap();
        }
        let seen = collector.finish();
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["a"]);
        let mut plain = Stats::new(3, Needs::Moments);
        plain.add_rows(&rows).unwrap();
        assert_eq!(seen["a"].stats.tokens, plain.tokens);
        for (a, b) in seen["a"].stats.gram.iter().zip(&plain.gram) {
            assert!((a - b).abs() <= 1e-4 * plain.gram[0], "{a} {b}");
        }
        let expected: Vec<f32> = (0..1200).step_by(3).flat_map(|r| rows[r * 3..r * 3 + 3].to_vec()).collect();
        assert_eq!(seen["a"].samples, expected);
    }
}
