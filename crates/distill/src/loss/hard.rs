//! `−log q_y` with `y` the teacher's likeliest token: its decision without its doubts.
//!
//! The limit of soft cross-entropy for a teacher's temperature towards 0. Of equal logits the lowest id wins.

use burn::tensor::Tensor;
use kindling_tensor_backend::ops::cross_entropy;

use super::{DistillLoss, Logits, LossEntry};
use crate::error::{DistillError, Result};

/// What lists show.
pub(super) const ENTRY: LossEntry = LossEntry {
    name: "hard",
    summary: "the teacher's likeliest token",
    paper: "Distilling the Knowledge in a Neural Network, arXiv 1503.02531",
    needs_teacher: true,
    make: |_| Box::new(Hard),
};

/// Cross-entropy with the teacher's likeliest token.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hard;

impl DistillLoss for Hard {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let teacher = logits.teacher.ok_or(DistillError::NoTeacher(ENTRY.name))?;
        let [rows, _] = teacher.dims();
        Ok(cross_entropy(logits.student, teacher.argmax(1).reshape([rows])))
    }
}
