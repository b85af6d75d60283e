//! A layer of experts: a router sends each token through a few gated MLPs.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::mlp::GatedMlp;
use super::{ForwardCx, Projection};
use crate::config::ExpertGating;
use crate::error::{ModelError, Result};

/// Router, experts and the expert that every token takes.
#[derive(Debug, Clone)]
pub(super) struct Experts {
    /// Router weight, transposed: `[hidden, experts]`. Never compressed.
    pub(super) router: Tensor<2>,
    /// Joins the scores for the choice only.
    pub(super) correction: Option<Vec<f32>>,
    pub(super) gating: ExpertGating,
    pub(super) top_k: usize,
    pub(super) experts: Vec<GatedMlp>,
    pub(super) shared: Option<GatedMlp>,
}

impl Experts {
    pub(super) fn forward(&self, x: Tensor<3>, cx: &mut ForwardCx<'_>) -> Result<Tensor<3>> {
        let [batch, tokens, hidden] = x.dims();
        let device = x.device();
        let rows = x.clone().reshape([batch * tokens, hidden]);
        let logits = rows.clone().matmul(self.router.clone()).into_data();
        let logits = logits.try_to_vec::<f32>().map_err(|e| ModelError::Input(format!("router scores: {e:?}")))?;
        let mut visitors: Vec<(Vec<i32>, Vec<f32>)> = vec![Default::default(); self.experts.len()];
        for (token, logits) in logits.chunks_exact(self.experts.len()).enumerate() {
            for (expert, weight) in route(logits, self.correction.as_deref(), self.gating, self.top_k) {
                visitors[expert].0.push(token as i32);
                visitors[expert].1.push(weight);
            }
        }
        let mut out = Tensor::<2>::zeros([batch * tokens, hidden], &device);
        for (expert, (tokens, weights)) in self.experts.iter().zip(visitors) {
            if tokens.is_empty() {
                continue;
            }
            let count = tokens.len();
            let index = Tensor::<1, Int>::from_data(TensorData::new(tokens, [count]), &device);
            let weights = Tensor::<2>::from_data(TensorData::new(weights, [count, 1]), &device);
            let visiting = rows.clone().select(0, index.clone()).reshape([1, count, hidden]);
            let y = expert.forward(visiting, cx)?.reshape([count, hidden]) * weights;
            out = out.select_assign(0, index, y, IndexingUpdateOp::Add);
        }
        let out = out.reshape([batch, tokens, hidden]);
        match &self.shared {
            Some(shared) => Ok(out + shared.forward(x, cx)?),
            None => Ok(out),
        }
    }

    pub(super) fn projections_mut(&mut self) -> Vec<&mut Projection> {
        self.experts.iter_mut().chain(&mut self.shared).flat_map(GatedMlp::projections_mut).collect()
    }

    pub(super) fn projections(&self) -> Vec<&Projection> {
        self.experts.iter().chain(&self.shared).flat_map(GatedMlp::projections).collect()
    }
}

/// The experts of one token with their weights, best first; ties go to the lower index.
fn route(logits: &[f32], correction: Option<&[f32]>, gating: ExpertGating, top_k: usize) -> Vec<(usize, f32)> {
    match gating {
        ExpertGating::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
            let chosen = best(&exp, top_k);
            let sum: f32 = chosen.iter().map(|&i| exp[i]).sum();
            chosen.into_iter().map(|i| (i, exp[i] / sum)).collect()
        }
        ExpertGating::SigmoidGroups { groups, top_groups, normalize, scale } => {
            let scores: Vec<f32> = logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect();
            let mut choice = scores.clone();
            if let Some(correction) = correction {
                choice.iter_mut().zip(correction).for_each(|(s, c)| *s += c);
            }
            let size = logits.len() / groups;
            let of_group = |g: usize| -> f32 {
                let group = &choice[g * size..(g + 1) * size];
                best(group, 2.min(size)).into_iter().map(|i| group[i]).sum()
            };
            let group_scores: Vec<f32> = (0..groups).map(of_group).collect();
            let open = best(&group_scores, top_groups);
            for g in (0..groups).filter(|g| !open.contains(g)) {
                choice[g * size..(g + 1) * size].fill(0.0);
            }
            let chosen = best(&choice, top_k);
            let sum: f32 = chosen.iter().map(|&i| scores[i]).sum();
            let factor = scale as f32 / if normalize { sum + 1e-20 } else { 1.0 };
            chosen.into_iter().map(|i| (i, scores[i] * factor)).collect()
        }
    }
}

/// Indices of the `count` largest values, largest first.
fn best(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_router_normalises_the_best() {
        let routes = route(&[0.0, 2.0, 1.0, -1.0], None, ExpertGating::Softmax, 2);
        assert_eq!(routes.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 2]);
        let expected = 1.0 / (1.0 + (-1.0f32).exp());
        assert!((routes[0].1 - expected).abs() < 1e-6 && (routes[0].1 + routes[1].1 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn grouped_router_opens_the_best_groups_and_ignores_the_correction_in_weights() {
        let gating = ExpertGating::SigmoidGroups { groups: 2, top_groups: 1, normalize: true, scale: 2.5 };
        // Without correction group 0 wins; the correction lifts group 1.
        let logits = [1.0, 0.5, 0.9, -3.0];
        assert_eq!(route(&logits, None, gating, 2).iter().map(|r| r.0).collect::<Vec<_>>(), [0, 1]);
        let routes = route(&logits, Some(&[0.0, 0.0, 0.0, 2.0]), gating, 2);
        assert_eq!(routes.iter().map(|r| r.0).collect::<Vec<_>>(), [3, 2]);
        assert!((routes.iter().map(|r| r.1).sum::<f32>() - 2.5).abs() < 1e-6);
        assert!(routes[1].1 > routes[0].1);
    }
}
