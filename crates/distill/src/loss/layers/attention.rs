//! What the last block attends to, and how its values relate: divergence of the student's distributions from the teacher's.
//!
//! Both models need the same numbers of query and key heads; widths and depths may differ.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use kindling_core::AttentionInputs;

use super::{
    Compare, LayerEntry, LayerOptions, causal_scores, folded, last_block, relation_divergence, relations, same_heads,
};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LayerEntry = LayerEntry {
    name: "attention",
    summary: "divergence of the last block's attention and of how its values relate",
    paper: "MiniLM: Deep Self-Attention Distillation, arXiv 2002.10957",
    pairs: last_block,
    compare: Compare::Attention(compare),
};

fn compare(student: &AttentionInputs, teacher: &AttentionInputs, _: &LayerOptions) -> Result<Tensor<1>> {
    same_heads(ENTRY.name, "query", &student.queries, &teacher.queries)?;
    same_heads(ENTRY.name, "key", &student.values, &teacher.values)?;
    let weights = |side: &AttentionInputs| log_softmax(causal_scores(side, -1e30), 2);
    let values = |side: &AttentionInputs| relations(folded(side.values.clone()), true);
    Ok(relation_divergence(weights(student), weights(teacher)) + relation_divergence(values(student), values(teacher)))
}
