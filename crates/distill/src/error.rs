//! The errors of losses, adapters and training.

/// A result with this crate's [`DistillError`].
pub type Result<T, E = DistillError> = std::result::Result<T, E>;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
pub enum DistillError {
    /// Teacher and student choose from different vocabularies.
    #[error(
        "the teacher has {teacher} tokens, the student {student}: distillation by logits needs the same tokenizer; \
         train on text that the teacher writes instead (hard distillation)"
    )]
    Vocabulary {
        /// Rows of the teacher's output matrix.
        teacher: usize,
        /// Rows of the student's.
        student: usize,
    },
    /// A loss that compares with a teacher has none.
    #[error("loss `{0}` compares with a teacher, and there is none: name one, or use `cross-entropy`")]
    NoTeacher(&'static str),
    /// The loss or a gradient stopped being a number.
    #[error(
        "step {step}: {what} is {value}: the run stops before the step is taken; go on from the last checkpoint with a \
         lower rate or clipping"
    )]
    NotFinite {
        /// The step, from 0.
        step: u64,
        /// The loss, or the first bad tensor.
        what: String,
        /// What it was.
        value: f64,
    },
    /// The loss jumped.
    #[error(
        "step {step}: the loss jumped to {loss:.4} from a running mean of {mean:.4}: the run stops before the step is \
         taken; go on from the last checkpoint with a lower rate"
    )]
    Spike {
        /// The step, from 0.
        step: u64,
        /// Its loss.
        loss: f64,
        /// The mean of recent losses.
        mean: f64,
    },
    /// A saved state belongs to another model or run.
    #[error("the saved state does not fit: {0}")]
    State(String),
    /// A store of a teacher's logits cannot be used.
    #[error("store of a teacher's logits: {0}")]
    Store(String),
    /// The model failed.
    #[error(transparent)]
    Core(#[from] kindling_core::Error),
    /// A value cannot be used.
    #[error("{0}")]
    Input(String),
}
