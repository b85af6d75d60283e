//! What a store keeps of a teacher's logits.

use burn::tensor::Tensor;

use super::Record;
use crate::error::{DistillError, Result};

/// The `k` likeliest tokens of every row of logits `[rows, vocabulary]` at a temperature, best first (of equal ones the
/// lowest id), their log-probabilities, and the exact logarithm of what all others have together.
///
/// # Errors
/// `k` is 0 or exceeds the vocabulary, the temperature is not above 0, or a logit is not a number.
pub fn records(logits: Tensor<2>, k: usize, temperature: f64) -> Result<Vec<Record>> {
    let [_, vocabulary] = logits.dims();
    if k == 0 || k > vocabulary {
        return Err(DistillError::Store(format!("{k} of {vocabulary} tokens: expected 1 to {vocabulary}")));
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(DistillError::Store(format!("temperature {temperature}: it is above 0")));
    }
    let logits = logits.into_data().convert::<f32>().try_to_vec::<f32>();
    let logits = logits.map_err(|error| DistillError::Store(format!("logits could not be read back: {error:?}")))?;
    if logits.iter().any(|z| z.is_nan()) {
        return Err(DistillError::Store("a logit of the teacher is not a number".into()));
    }
    Ok(logits.chunks_exact(vocabulary).map(|row| record(row, k, temperature)).collect())
}

fn record(logits: &[f32], k: usize, temperature: f64) -> Record {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, better);
    }
    let (kept, others) = order.split_at_mut(k);
    kept.sort_unstable_by(better);
    let scaled = |id: &u32| f64::from(logits[*id as usize]) / temperature;
    // The best one is the largest of all, so no exponential overflows.
    let top = scaled(&kept[0]);
    let sum = |ids: &[u32]| ids.iter().map(|id| (scaled(id) - top).exp()).sum::<f64>();
    let (of_kept, of_others) = (sum(kept), sum(others));
    // Over the others themselves: 1 minus the kept would lose a small rest.
    let whole = (of_kept + of_others).ln();
    Record {
        log_probs: kept.iter().map(|id| (scaled(id) - top - whole) as f32).collect(),
        log_tail: (of_others.ln() - whole) as f32,
        ids: kept.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn rows(values: &[f32], vocabulary: usize) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / vocabulary, vocabulary]), &Device::default())
    }

    #[test]
    fn worked_numbers() {
        let teacher = [2.0, 1.0, 0.5, -1.0, -2.0];
        let found = records(rows(&teacher, 5), 2, 1.0).unwrap().remove(0);
        assert_eq!(found.ids, [0, 1]);
        assert!((found.log_tail.exp() - 0.175535).abs() < 1e-6, "{}", found.log_tail.exp());
        let warm = records(rows(&teacher, 5), 2, 2.0).unwrap().remove(0);
        for (found, expected) in warm.log_probs.iter().zip([0.410280, 0.248847]) {
            assert!((found.exp() - expected).abs() < 1e-6);
        }
        assert!((warm.log_tail.exp() - 0.340873).abs() < 1e-6);
        let all = records(rows(&teacher, 5), 5, 1.0).unwrap().remove(0);
        assert_eq!((all.ids, all.log_tail), (vec![0, 1, 2, 3, 4], f32::NEG_INFINITY));
    }

    #[test]
    fn ties_small_rests_and_mistakes() {
        let found = records(rows(&[1.0, 3.0, 3.0, 1.0, 3.0, 1.0], 6), 4, 1.0).unwrap().remove(0);
        assert_eq!(found.ids, [1, 2, 4, 0]);
        // A rest of e^-40 is far below what 1 minus the kept could tell.
        let found = records(rows(&[0.0, -40.0, 0.0, -1000.0], 4), 2, 1.0).unwrap().remove(0);
        assert!((found.log_tail + 40.0 + 2f32.ln()).abs() < 1e-5, "{}", found.log_tail);
        assert!(records(rows(&[0.0, 1.0], 2), 3, 1.0).is_err());
        assert!(records(rows(&[0.0, 1.0], 2), 1, 0.0).is_err());
        assert!(records(rows(&[0.0, f32::NAN], 2), 1, 1.0).is_err());
    }
}
