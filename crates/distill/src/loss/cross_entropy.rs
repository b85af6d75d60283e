//! `−log q_y`: the next token of the text, or of a teacher's text (sequence-level distillation).
//!
//! Source for the latter: Kim & Rush, "Sequence-Level Knowledge Distillation", arXiv 1606.07947.

use burn::tensor::Tensor;
use kindling_tensor_backend::ops::cross_entropy;

use super::{DistillLoss, Logits, LossEntry};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "cross-entropy",
    summary: "the next token of the text, or of the teacher's text",
    paper: "Sequence-Level Knowledge Distillation, arXiv 1606.07947",
    needs_teacher: false,
    make: |_| Box::new(CrossEntropy),
};

/// Cross-entropy with the labels.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrossEntropy;

impl DistillLoss for CrossEntropy {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn needs_teacher(&self) -> bool {
        false
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        Ok(cross_entropy(logits.student, logits.labels))
    }
}
