//! Attention scores before the softmax: mean squared difference, block by block.
//!
//! Both models need the same number of query heads, and the student's depth must divide the teacher's. A cap on scores and
//! a window are left out of the comparison.

use burn::tensor::Tensor;
use kindling_core::AttentionInputs;

use super::{Compare, Depths, LayerEntry, LayerOptions, causal_scores, mean_squared, same_heads};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LayerEntry = LayerEntry {
    name: "scores",
    summary: "squared difference of attention scores before the softmax, block by block",
    paper: "TinyBERT: Distilling BERT for Natural Language Understanding, arXiv 1909.10351",
    pairs,
    compare: Compare::Attention(compare),
};

fn pairs(depths: Depths, _: &LayerOptions) -> Result<Vec<[usize; 2]>> {
    let step = depths.step(ENTRY.name)?;
    Ok((0..depths.student).map(|i| [i, i * step + step - 1]).collect())
}

fn compare(student: &AttentionInputs, teacher: &AttentionInputs, _: &LayerOptions) -> Result<Tensor<1>> {
    same_heads(ENTRY.name, "query", &student.queries, &teacher.queries)?;
    Ok(attention_scores(causal_scores(student, -10_000.0), causal_scores(teacher, -10_000.0)))
}

/// Mean squared difference of attention scores `[heads, tokens, tokens]`; masked ones (−100 and below) count as 0 on both
/// sides.
pub fn attention_scores(student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
    let open = |x: Tensor<3>| x.clone().mask_fill(x.lower_equal_scalar(-100.0), 0.0);
    mean_squared(open(student), open(teacher))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn masked_scores_do_not_count() {
        let device = Device::default();
        let scores = |rows: [[f32; 2]; 2]| Tensor::<3>::from_data([rows], &device);
        let value = |x: Tensor<1>| x.into_scalar::<f32>();
        let loss = attention_scores(scores([[0.5, 0.0], [0.0, 1.0]]), scores([[1.0, -1.0], [0.0, 2.0]]));
        assert!((value(loss) - 0.5625).abs() < 1e-6);
        let masked = attention_scores(scores([[0.5, -10_000.5], [0.0, 1.0]]), scores([[1.0, -10_000.0], [0.0, 2.0]]));
        assert!((value(masked) - 0.3125).abs() < 1e-6);
    }

    #[test]
    fn the_last_of_every_group_of_blocks() {
        let found = pairs(Depths { student: 4, teacher: 12 }, &LayerOptions::default()).unwrap();
        assert_eq!(found, [[0, 2], [1, 5], [2, 8], [3, 11]]);
    }
}
