//! Losses of a student's logits: one file each. Those of what lies before the logits are in [`layers`].
//!
//! A token loss gives its value and its gradient in closed form, so that the [head](crate::head) can compute both chunk
//! by chunk. Write `p` for the teacher's and `q` for the student's distribution of one token, `z` for the student's
//! logits; every gradient follows from `∂ℓ/∂z_j = q_j (g_j − Σ q_i g_i)` with `g = ∂ℓ/∂q`. Logarithms of probabilities
//! are never taken of probabilities: everything starts from log-softmax in f32.

mod cakld;
mod cross_entropy;
pub mod dpo;
mod forward_kl;
mod hard;
mod jsd;
pub mod layers;
mod minillm;
mod mix;
mod reverse_kl;
mod skewed_kl;
mod skewed_reverse_kl;
mod survey;
mod top_k;
mod total_variation;

use burn::tensor::{Int, Tensor, activation::log_softmax};
use kindling_core::options::unknown;
use serde::{Deserialize, Serialize};

pub use cakld::{Cakld, confidence};
pub use cross_entropy::CrossEntropy;
pub use dpo::Dpo;
pub use forward_kl::ForwardKl;
pub use hard::Hard;
pub use jsd::Jsd;
pub use minillm::MiniLlmLoss;
pub use mix::Mix;
pub use reverse_kl::ReverseKl;
pub use skewed_kl::SkewedForwardKl;
pub use skewed_reverse_kl::SkewedReverseKl;
pub use survey::{Survey, weighted};
pub use top_k::{TopK, kept_and_rest};
pub use total_variation::TotalVariation;

use crate::error::{DistillError, Result};
use crate::on_policy::MiniLlm;

/// A loss that is a sum over tokens.
pub trait DistillLoss: Send + Sync {
    /// The name in recipes and errors.
    fn name(&self) -> &'static str;

    /// Whether [`rows`](Self::rows) reads the teacher's logits.
    fn needs_teacher(&self) -> bool {
        true
    }

    /// The inverse temperature of a loss that compares pairs of rows, see [`dpo`]; `None`: every row stands for itself.
    fn of_pairs(&self) -> Option<f64> {
        None
    }

    /// How the teacher's logits weigh the tokens.
    fn weighting(&self) -> Weighting {
        Weighting::Uniform
    }

    /// The loss of every row `[rows]` and its gradient with respect to the student's logits `[rows, vocabulary]`.
    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)>;
}

/// Some rows of logits, `[rows, vocabulary]`, in f32 and not tracked by autodiff.
#[derive(Debug, Clone)]
pub struct Logits {
    /// Of the model that learns.
    pub student: Tensor<2>,
    /// Of the teacher, if there is one, in the same shape.
    pub teacher: Option<Tensor<2>>,
    /// The next token of every row.
    pub labels: Tensor<1, Int>,
    /// What else is known of every row.
    pub known: KnownRows,
}

impl Logits {
    /// Logits of which nothing else is known.
    pub fn new(student: Tensor<2>, teacher: Option<Tensor<2>>, labels: Tensor<1, Int>) -> Self {
        Self { student, teacher, labels, known: KnownRows::Nothing }
    }
}

/// [`Known`](crate::batch::Known) as tensors.
#[derive(Debug, Clone)]
pub enum KnownRows {
    /// Nothing.
    Nothing,
    /// A teacher's likeliest tokens.
    Kept {
        /// `[rows, k]`.
        ids: Tensor<2, Int>,
        /// Their log-probabilities, `[rows, k]`.
        log_p: Tensor<2>,
        /// The logarithm of what all others have together, `[rows]`.
        log_rest: Tensor<1>,
    },
    /// How the labels were sampled, all `[rows]`.
    Sampled {
        /// Their log-probabilities when they were sampled.
        log_q: Tensor<1>,
        /// Importance weights.
        weight: Tensor<1>,
        /// Advantages.
        advantage: Tensor<1>,
    },
}

/// What a token counts, by the teacher's distribution there. Weights are constants with mean 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// All the same.
    #[default]
    Uniform,
    /// The teacher's highest probability.
    Confidence,
    /// The entropy of the teacher, as a share of the largest possible.
    Entropy,
}

impl Weighting {
    /// The weights of rows before they are brought to mean 1, `[rows]`.
    pub fn of(self, teacher: Tensor<2>) -> Tensor<1> {
        let [rows, vocabulary] = teacher.dims();
        let log_p = log_softmax(teacher, 1);
        match self {
            Weighting::Uniform => Tensor::ones([rows], &log_p.device()),
            Weighting::Confidence => log_p.max_dim(1).exp().reshape([rows]),
            Weighting::Entropy => {
                let entropy = (log_p.clone().exp() * log_p).sum_dim(1).neg();
                entropy.div_scalar((vocabulary as f64).ln().max(1e-9)).reshape([rows])
            }
        }
    }
}

/// A loss by name, with what [`build`] needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossOptions {
    /// One of [`METHODS`].
    pub loss: String,
    /// Divides the logits of teacher and student.
    pub temperature: f64,
    /// Multiply by the squared temperature, so that gradients keep their size when it changes.
    pub temperature_squared: bool,
    /// Of the Jensen-Shannon divergence: `M = β p + (1 − β) q`.
    pub beta: f64,
    /// Of the skewed divergences.
    pub alpha: f64,
    /// Of CAKLD: the share of the reverse divergence.
    pub gamma: f64,
    /// Of the survey's objective: the weight of the forward divergence.
    pub lambda_forward: f64,
    /// Of the survey's objective: the weight of the reverse divergence.
    pub lambda_reverse: f64,
    /// Of the survey's objective: what a token counts.
    pub weighting: Weighting,
    /// The share of cross-entropy with the text in the whole loss, at temperature 1.
    pub cross_entropy: f64,
    /// Of MiniLLM.
    pub minillm: MiniLlm,
    /// Of DPO: how near to the reference the model stays.
    pub dpo_beta: f64,
}

impl Default for LossOptions {
    fn default() -> Self {
        Self {
            loss: "forward-kl".into(),
            temperature: 1.0,
            temperature_squared: true,
            beta: 0.5,
            alpha: 0.1,
            gamma: 0.5,
            lambda_forward: 1.0,
            lambda_reverse: 0.0,
            weighting: Weighting::Uniform,
            cross_entropy: 0.0,
            minillm: MiniLlm::default(),
            dpo_beta: 0.1,
        }
    }
}

/// A loss that can be asked for by name.
pub struct LossEntry {
    /// The name.
    pub name: &'static str,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// Whether it compares with a teacher.
    pub needs_teacher: bool,
    make: fn(&LossOptions) -> Box<dyn DistillLoss>,
}

/// Every token loss.
pub const METHODS: &[LossEntry] = &[
    cross_entropy::ENTRY,
    hard::ENTRY,
    forward_kl::ENTRY,
    reverse_kl::ENTRY,
    jsd::ENTRY,
    skewed_kl::ENTRY,
    skewed_reverse_kl::ENTRY,
    total_variation::ENTRY,
    survey::ENTRY,
    cakld::ENTRY,
    top_k::ENTRY,
    minillm::ENTRY,
    dpo::ENTRY,
];

/// The loss that the options describe.
///
/// # Errors
/// The name is unknown, or a number is outside its range.
pub fn build(options: &LossOptions) -> Result<Box<dyn DistillLoss>> {
    let Some(entry) = METHODS.iter().find(|entry| entry.name == options.loss) else {
        let known: Vec<&str> = METHODS.iter().map(|entry| entry.name).collect();
        return Err(DistillError::Input(unknown("loss", &options.loss, &known)));
    };
    for (name, value) in [
        ("beta", options.beta),
        ("alpha", options.alpha),
        ("gamma", options.gamma),
        ("cross_entropy", options.cross_entropy),
    ] {
        if !(0.0..=1.0).contains(&value) {
            return Err(DistillError::Input(format!("`{name}` = {value}: it lies between 0 and 1")));
        }
    }
    if !(options.temperature > 0.0 && options.temperature.is_finite()) {
        return Err(DistillError::Input(format!("`temperature` = {}: it is above 0", options.temperature)));
    }
    if !(options.dpo_beta > 0.0 && options.dpo_beta.is_finite()) {
        return Err(DistillError::Input(format!("`dpo_beta` = {}: it is above 0", options.dpo_beta)));
    }
    options.minillm.check()?;
    let loss = (entry.make)(options);
    if [cross_entropy::ENTRY.name, dpo::ENTRY.name].contains(&entry.name) {
        return Ok(loss);
    }
    let loss: Box<dyn DistillLoss> = if options.temperature == 1.0 {
        loss
    } else {
        Box::new(Tempered { loss, temperature: options.temperature, squared: options.temperature_squared })
    };
    let share = options.cross_entropy;
    Ok(if share == 0.0 {
        loss
    } else {
        Box::new(Mix { parts: vec![(1.0 - share, loss), (share, Box::new(CrossEntropy))] })
    })
}

/// A loss at a temperature.
pub struct Tempered {
    /// The loss.
    pub loss: Box<dyn DistillLoss>,
    /// Divides all logits.
    pub temperature: f64,
    /// Multiply by its square.
    pub squared: bool,
}

impl DistillLoss for Tempered {
    fn name(&self) -> &'static str {
        self.loss.name()
    }

    fn needs_teacher(&self) -> bool {
        self.loss.needs_teacher()
    }

    fn weighting(&self) -> Weighting {
        self.loss.weighting()
    }

    fn rows(&self, logits: Logits) -> Result<(Tensor<1>, Tensor<2>)> {
        let t = self.temperature;
        let (student, teacher) = (logits.student.div_scalar(t), logits.teacher.map(|z| z.div_scalar(t)));
        let (loss, gradient) = self.loss.rows(Logits { student, teacher, ..logits })?;
        let factor = if self.squared { t * t } else { 1.0 };
        // The chain rule gives one division.
        Ok((loss.mul_scalar(factor), gradient.mul_scalar(factor / t)))
    }
}

/// The logarithms of both distributions, `[rows, vocabulary]`: teacher, student.
fn log_distributions(name: &'static str, logits: Logits) -> Result<[Tensor<2>; 2]> {
    let teacher = logits.teacher.ok_or(DistillError::NoTeacher(name))?;
    Ok([log_softmax(teacher, 1), log_softmax(logits.student, 1)])
}

/// Sums over the vocabulary, `[rows, 1]` → `[rows]`.
fn column(x: Tensor<2>) -> Tensor<1> {
    let [rows, _] = x.dims();
    x.reshape([rows])
}

/// `q (g − Σ q g)`: the gradient with respect to logits from that with respect to probabilities.
fn through_softmax(q: Tensor<2>, g: Tensor<2>) -> Tensor<2> {
    let mean = (q.clone() * g.clone()).sum_dim(1);
    q * (g - mean)
}

/// `ln(e^a + e^b)`.
fn log_add(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let high = a.clone().max_pair(b.clone());
    let low = a.min_pair(b);
    high.clone() + (low - high).exp().log1p()
}

#[cfg(test)]
mod tests;
