//! A weighted sum of losses: half cross-entropy and half distillation, for example.

use burn::tensor::Tensor;

use super::{DistillLoss, Logits, Weighting};
use crate::error::{DistillError, Result};

/// Losses with their weights.
pub struct Mix {
    /// The parts; at least one.
    pub parts: Vec<(f64, Box<dyn DistillLoss>)>,
}

impl DistillLoss for Mix {
    fn name(&self) -> &'static str {
        self.parts.first().map_or("mix", |(_, loss)| loss.name())
    }

    fn needs_teacher(&self) -> bool {
        self.parts.iter().any(|(_, loss)| loss.needs_teacher())
    }

    fn weighting(&self) -> Weighting {
        self.parts.iter().map(|(_, loss)| loss.weighting()).find(|&w| w != Weighting::Uniform).unwrap_or_default()
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let mut sum: Option<(Tensor<1>, Tensor<2>)> = None;
        for (weight, part) in &self.parts {
            let (loss, gradient) = part.rows(logits.clone())?;
            let (loss, gradient) = (loss.mul_scalar(*weight), gradient.mul_scalar(*weight));
            sum = Some(match sum {
                None => (loss, gradient),
                Some((l, g)) => (l + loss, g + gradient),
            });
        }
        sum.ok_or_else(|| DistillError::Input("a mixture of no losses".into()))
    }
}
