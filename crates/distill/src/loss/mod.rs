//! Losses of a student's logits: one file each.
//!
//! A token loss gives its value and its gradient in closed form, so that the [head](crate::head) can compute both chunk
//! by chunk. Write `p` for the teacher's and `q` for the student's distribution of one token; every gradient follows from
//! `∂ℓ/∂z_j = q_j (g_j − Σ q_i g_i)` with `g = ∂ℓ/∂q`.

mod cross_entropy;

use burn::tensor::{Int, Tensor};

pub use cross_entropy::CrossEntropy;

use crate::error::Result;

/// A loss that is a sum over tokens.
pub trait TokenLoss: Send + Sync {
    /// The name in recipes and errors.
    fn name(&self) -> &'static str;

    /// Whether [`rows`](Self::rows) reads the teacher's logits.
    fn needs_teacher(&self) -> bool;

    /// The loss of every row `[rows]` and its gradient with respect to the student's logits `[rows, vocabulary]`.
    ///
    /// Logits are f32 and not tracked; the teacher's have the same shape.
    fn rows(&self, student: Tensor<2>, teacher: Option<Tensor<2>>, labels: Tensor<1, Int>)
    -> Result<(Tensor<1>, Tensor<2>)>;
}
