//! Wanda: a weight matters as much as its magnitude times the norm of the input it multiplies, compared
//! within each output row. The kept weights are not changed.
//!
//! Source: "A Simple and Effective Pruning Approach for Large Language Models" (arXiv 2306.11695). Needs
//! the norms of the inputs. Cost: one pass over the weights and one partial selection per row.

use burn::tensor::{Tensor, TensorData};
use kindling_core::options::OptionsError;
use kindling_core::{
    Compressed, Cx, Family, Layer, LayerMethod, LayerShape, Mask, Method, MethodEntry, NM, Needs, Options, Result,
    ScoreMethod, Stats,
};
use rayon::prelude::*;
use serde::Deserialize;

use crate::{Axis, Keys, Per, ScorePruner, Selection, Structure, host, score, select};

/// The line of the method list.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "wanda",
    family: Family::Prune,
    summary: "removes the smallest products of weight and input norm in each row",
    paper: "A Simple and Effective Pruning Approach for Large Language Models (arXiv 2306.11695)",
    needs: Needs::Norms,
    build,
};

/// The keys of a stage with `method = "wanda"`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `"N:M"`: keep N of every M weights.
    pub pattern: Option<NM>,
    /// The fraction to remove; exactly one of `pattern` and `sparsity`.
    pub sparsity: Option<f64>,
    /// Which weights compete (with `sparsity`). Default: one output row.
    pub per: Option<Per>,
    /// The direction of the groups (with `pattern`). Default: along the inputs.
    pub axis: Option<Axis>,
    /// Remove whole rows or columns (with `sparsity`).
    pub structure: Option<Structure>,
    /// Let rows differ in sparsity: each loses the weights that hold the same share of its score.
    pub variant: bool,
}

fn build(options: &Options) -> Result<Method, OptionsError> {
    let Config { pattern, sparsity, per, axis, structure, variant } = options.read("wanda")?;
    let keys = Keys { pattern, sparsity, per, axis, structure };
    let selection = keys.selection("wanda", Per::Row)?;
    if !variant {
        return Ok(Method::Layer(Box::new(ScorePruner { method: Wanda, selection })));
    }
    match selection {
        Selection::Unstructured { sparsity, per: Per::Row } => Ok(Method::Layer(Box::new(ByShare { sparsity }))),
        _ => Err(OptionsError("wanda: `variant = true` goes with `sparsity` per row only".into())),
    }
}

/// The score `|W_ij| · ‖x_j‖`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanda;

impl ScoreMethod for Wanda {
    fn needs(&self) -> Needs {
        Needs::Norms
    }

    fn score(&self, layer: &Layer, stats: &Stats) -> Result<Tensor<2>> {
        stats.require(&layer.shape.name, Needs::Norms, layer.shape.cols)?;
        let norms: Vec<f32> = stats.norms().into_iter().map(|norm| norm as f32).collect();
        let norms = Tensor::from_data(TensorData::new(norms, [1, layer.shape.cols]), &layer.weight.device());
        Ok(layer.weight.clone().abs() * norms)
    }
}

/// Wanda's variant: every row loses its lowest scores up to a share of the row's total, and the share is
/// the one that gives the wanted sparsity over the matrix.
#[derive(Debug, Clone, Copy)]
pub struct ByShare {
    /// Fraction of the matrix to remove; met within 0.001 where a share of at most 0.8 can.
    pub sparsity: f64,
}

impl LayerMethod for ByShare {
    fn needs(&self) -> Needs {
        Needs::Norms
    }

    fn bits_per_weight(&self, _shape: &LayerShape, dense_bits: f64) -> f64 {
        dense_bits
    }

    fn compress(&self, layer: &Layer, stats: &Stats, cx: &Cx) -> Result<Compressed> {
        cx.check()?;
        let weight = host::values(layer, "weight", &layer.weight)?;
        let (mut scores, mut notes) = score::scores(&Wanda, layer, &weight, stats)?;
        let [rows, cols] = select::prepare(&layer.shape, &mut scores, layer.mask.as_ref())?;
        // A removed weight holds no share of its row's total.
        scores.iter_mut().for_each(|score| *score = score.max(0.0));
        let by_share = Mask::new(rows, cols, keep_by_share(&scores, cols, self.sparsity))?;
        let mask = layer.mask.as_ref().map_or_else(|| Ok(by_share.clone()), |earlier| by_share.and(earlier))?;
        if (mask.sparsity() - self.sparsity).abs() > TOLERANCE {
            notes.push(format!(
                "asked for sparsity {}, the closest common share gives {:.4}",
                self.sparsity,
                mask.sparsity()
            ));
        }
        Ok(host::pruned(layer, weight, mask, notes))
    }
}

const TOLERANCE: f64 = 0.001;

/// Keeps, in each row of `cols` scores, all but the longest ascending prefix whose sum is at most a share
/// of the row's total; the share is bisected in [0, 0.8] until the overall sparsity fits.
pub fn keep_by_share(scores: &[f32], cols: usize, sparsity: f64) -> Vec<bool> {
    let cols = cols.max(1);
    let orders: Vec<Vec<u32>> = scores
        .par_chunks(cols)
        .map(|row| {
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            order.sort_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]));
            order
        })
        .collect();
    let counts = |share: f64| -> Vec<usize> {
        let count = |(row, order): (&[f32], &Vec<u32>)| {
            let ascending = || order.iter().map(|&at| f64::from(row[at as usize]));
            let limit = share * ascending().sum::<f64>();
            let mut sum = 0.0;
            ascending()
                .take_while(|score| {
                    sum += score;
                    sum <= limit
                })
                .count()
        };
        scores.par_chunks(cols).zip(&orders).map(count).collect()
    };
    let (mut low, mut high, mut share) = (0.0, 0.8, 0.4);
    let counts = loop {
        let counts = counts(share);
        let reached = counts.iter().sum::<usize>() as f64 / scores.len().max(1) as f64;
        if (reached - sparsity).abs() <= TOLERANCE || high - low < TOLERANCE {
            break counts;
        }
        if reached > sparsity {
            high = share
        } else {
            low = share
        }
        share = (low + high) / 2.0;
    };
    let mut keep = vec![true; scores.len()];
    for ((keep, order), count) in keep.chunks_mut(cols).zip(&orders).zip(counts) {
        order[..count].iter().for_each(|&at| keep[at as usize] = false);
    }
    keep
}

#[cfg(test)]
mod tests {
    use kindling_core::options::Value;

    use super::*;
    use crate::testing::{Random, W, X, build, close, dense, digits, error, flags, layer, prune, shape, stats};
    use crate::testing::{text, try_prune, worked};

    const HALF: &[(&str, Value)] = &[("sparsity", Value::Float(0.5))];

    #[test]
    fn worked_example() {
        let stats = stats(&X, 4);
        let expected = [2.645751, 1.322876, 0.8, 1.058301, 0.793725, 2.381176, 4.8, 0.132288];
        let scores = Wanda.score(&worked(), &stats).unwrap().into_data().try_into_vec::<f32>().unwrap();
        scores.iter().zip(expected).for_each(|(&score, expected)| close(score.into(), expected, 1e-6));
        let pruned = prune("wanda", HALF, &worked(), &stats);
        assert_eq!(digits(&pruned), "11000110");
        close(error(&X, &W, &dense(&pruned), 4), 3.7075, 1e-6);
    }

    #[test]
    fn what_leaves_the_mask_alone() {
        let mut random = Random(1);
        let (w, x) = (random.normals(6 * 16), random.tokens(40, 16));
        let mask = |w: &[f32], x: &[f32]| {
            digits(&prune("wanda", HALF, &layer(shape(kindling_core::Role::Query, 6, 16), w), &stats(x, 16)))
        };
        let plain = mask(&w, &x);
        assert!(plain.as_bytes().chunks(16).all(|row| row.iter().filter(|&&c| c == b'0').count() == 8));
        // Feature 3 times 4 and its column by 4; row 2 times 8. Powers of two: exact.
        let scaled_x: Vec<f32> = x.iter().enumerate().map(|(i, x)| if i % 16 == 3 { x * 4.0 } else { *x }).collect();
        let scaled_w: Vec<f32> = w.iter().enumerate().map(|(i, w)| if i % 16 == 3 { w / 4.0 } else { *w }).collect();
        assert_eq!(mask(&scaled_w, &scaled_x), plain);
        let row_scaled: Vec<f32> = w.iter().enumerate().map(|(i, w)| if i / 16 == 2 { w * 8.0 } else { *w }).collect();
        assert_eq!(mask(&row_scaled, &x), plain);
        // Inputs of equal norm: magnitude per row.
        let ones = vec![1.0; 3 * 16];
        let options = [HALF[0].clone(), ("per", text("row"))];
        let by_size =
            prune("magnitude", &options, &layer(shape(kindling_core::Role::Query, 6, 16), &w), &stats(&ones, 16));
        assert_eq!(mask(&w, &ones), digits(&by_size));
    }

    #[test]
    fn unseen_layers_fall_back_and_bad_statistics_do_not() {
        let unseen = prune("wanda", HALF, &worked(), &Stats::new(4, Needs::Norms));
        assert_eq!((digits(&unseen).as_str(), unseen.notes.len()), ("10010110", 1));
        let nan = try_prune("wanda", HALF, &worked(), &stats(&[f32::NAN, 1., 1., 1.], 4)).unwrap_err();
        assert!(nan.to_string().contains("layer `AttentionOutput`"), "{nan}");
        assert!(try_prune("wanda", HALF, &worked(), &Stats::new(4, Needs::Nothing)).is_err());
        assert!(try_prune("wanda", HALF, &worked(), &Stats::new(5, Needs::Norms)).is_err());
    }

    #[test]
    fn the_variant_shares_out_the_loss() {
        // A share of 0.4 takes 1 of the even row (1 ≤ 1.6) and 3 of the uneven one (0.3 ≤ 4).
        let scores = [1., 1., 1., 1., 0.1, 9.7, 0.1, 0.1];
        assert_eq!(flags(&keep_by_share(&scores, 4, 0.5)), "01110100");
        assert_eq!(flags(&keep_by_share(&[5., 5.], 2, 0.0)), "11", "none if the first exceeds the share");
        let mut random = Random(3);
        let target = layer(shape(kindling_core::Role::Query, 40, 50), &random.normals(2000));
        let options = [HALF[0].clone(), ("variant", Value::Bool(true))];
        let pruned = prune("wanda", &options, &target, &stats(&random.tokens(64, 50), 50));
        close(pruned.mask.unwrap().sparsity(), 0.5, 0.003);
        let message = build("wanda", &[("pattern", text("2:4")), ("variant", Value::Bool(true))]).err().unwrap();
        assert!(message.contains("variant"), "{message}");
    }
}
