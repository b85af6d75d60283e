//! MiniLLM: the reverse divergence of whole texts, by policy gradient over texts that student and teacher write together.
//!
//! Source: Gu et al., "MiniLLM", arXiv 2306.08543, and its code, microsoft/LMOps. Where the two differ the defaults follow
//! the code and [`MiniLlm::as_published`] the paper. What a token led to is `r_t = log p(y_t) − log q(y_t)` summed from
//! there on, divided by the number of tokens it is a sum of. The loss itself is [`MiniLlmLoss`](crate::loss::MiniLlmLoss).
//! Differences kept from neither: padding takes no part in whitening, and a token's distance is counted from the token.

use kindling_core::LanguageModel;
use serde::{Deserialize, Serialize};

use super::gkd::continued;
use super::sample::{Continuation, Sampling, sample};
use crate::batch::{Known, Row, Sampled};
use crate::error::{DistillError, Result};

/// How MiniLLM learns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MiniLlm {
    /// The teacher's share in the mixture that texts are drawn from (α).
    pub teacher_share: f64,
    /// Divides the rewards.
    pub reward_divisor: f64,
    /// Rewards beyond ± this are cut.
    pub reward_limit: f64,
    /// What a token one further on counts (γ).
    pub discount: f64,
    /// A token's own reward is part of what it led to.
    pub include_current: bool,
    /// Divide by the number of tokens that are summed.
    pub length_normalised: bool,
    /// Bring the advantages of a batch to mean 0 and variance 1.
    pub whiten: bool,
    /// How far a ratio of probabilities may leave 1.
    pub clip: f64,
    /// Clip ratio times importance weight, not the ratio alone.
    pub clip_product: bool,
    /// Add the exact reverse divergence at every prefix.
    pub single_step: bool,
    /// Weigh it by the importance weights.
    pub weigh_single_step: bool,
}

impl Default for MiniLlm {
    fn default() -> Self {
        Self {
            teacher_share: 0.2,
            reward_divisor: 0.5,
            reward_limit: 100.0,
            discount: 0.95,
            include_current: true,
            length_normalised: true,
            whiten: true,
            clip: 0.2,
            clip_product: true,
            single_step: true,
            weigh_single_step: false,
        }
    }
}

impl MiniLlm {
    /// As the paper writes it, where its code does otherwise.
    pub fn as_published() -> Self {
        Self {
            reward_divisor: 1.0,
            reward_limit: f64::INFINITY,
            discount: 1.0,
            include_current: false,
            whiten: false,
            clip_product: false,
            weigh_single_step: true,
            ..Self::default()
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let shares = [("teacher_share", self.teacher_share), ("discount", self.discount), ("clip", self.clip)];
        if let Some((name, value)) = shares.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return Err(DistillError::Input(format!("minillm: `{name}` = {value}: it lies between 0 and 1")));
        }
        if !(self.reward_divisor > 0.0 && self.reward_limit > 0.0) {
            return Err(DistillError::Input("minillm: `reward_divisor` and `reward_limit` are above 0".into()));
        }
        Ok(())
    }

    /// The importance weight of a token: its probability under the student over that under the mixture.
    pub fn weight(&self, log_p: f64, log_q: f64) -> f64 {
        let (p, q) = (log_p.exp(), log_q.exp());
        let mixed = self.teacher_share * p + (1.0 - self.teacher_share) * q;
        // Both can underflow together; then the exponents decide.
        if mixed > 0.0 {
            q / mixed
        } else {
            1.0 / (self.teacher_share * (log_p - log_q).exp() + 1.0 - self.teacher_share)
        }
    }

    /// What each token of a text led to, before whitening.
    pub fn advantages(&self, log_p: &[f32], log_q: &[f32]) -> Vec<f64> {
        let reward = |(p, q): (&f32, &f32)| {
            ((f64::from(*p) - f64::from(*q)) / self.reward_divisor).clamp(-self.reward_limit, self.reward_limit)
        };
        let rewards: Vec<f64> = log_p.iter().zip(log_q).map(reward).collect();
        let n = rewards.len();
        // One more place: nothing follows the last token.
        let mut sums = vec![0.0; n + 1];
        for t in (0..n).rev() {
            sums[t] = rewards[t] + self.discount * sums[t + 1];
        }
        let skipped = usize::from(!self.include_current);
        let of = |t: usize| {
            let (sum, count) = (sums[t + skipped], n - t - skipped);
            if self.length_normalised && count > 0 { sum / count as f64 } else { sum }
        };
        (0..n).map(of).collect()
    }

    /// Texts after `prompts`, of up to `tokens` tokens, with what training needs to know of each of their tokens.
    ///
    /// # Errors
    /// As [`sample`]; or an option is out of range.
    pub fn rollouts(
        &self,
        student: &dyn LanguageModel,
        teacher: &dyn LanguageModel,
        prompts: &[Vec<u32>],
        tokens: usize,
        sampling: &Sampling,
        stream: u64,
    ) -> Result<Rollouts> {
        self.check()?;
        if sampling.temperature != 1.0 {
            return Err(DistillError::Input(format!(
                "minillm samples at temperature 1, not {}: its weights count on it",
                sampling.temperature
            )));
        }
        let texts = sample(student, Some((teacher, self.teacher_share)), prompts, tokens, sampling, stream)?;
        let mut advantages: Vec<Vec<f64>> =
            texts.iter().map(|text| self.advantages(&text.log_p, &text.log_q)).collect();
        if self.whiten {
            whiten(&mut advantages);
        }
        let reverse_kl = k3(&texts);
        let row = |((prompt, text), advantages): ((&Vec<u32>, Continuation), Vec<f64>)| {
            let length = prompt.len() + tokens;
            let mut row = continued(prompt.clone(), &text.ids, length);
            let mut known = vec![Sampled::default(); length - 1];
            let tokens = text.log_p.iter().zip(&text.log_q).zip(advantages);
            for (place, ((&log_p, &log_q), advantage)) in known[prompt.len() - 1..].iter_mut().zip(tokens) {
                let weight = self.weight(f64::from(log_p), f64::from(log_q)) as f32;
                *place = Sampled { log_q, weight, advantage: advantage as f32 };
            }
            row.known = Known::Sampled(known);
            row
        };
        let rows = prompts.iter().zip(texts).zip(advantages).map(row).collect();
        Ok(Rollouts { rows, reverse_kl })
    }
}

/// Sampled texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollouts {
    /// Ready for [`Trainer::step`](crate::Trainer::step) under [`MiniLlmLoss`](crate::loss::MiniLlmLoss).
    pub rows: Vec<Row>,
    /// An estimate of the divergence per token on the way that these texts took: mean of `e^r − 1 − r`.
    pub reverse_kl: f64,
}

fn k3(texts: &[Continuation]) -> f64 {
    let tokens = texts.iter().flat_map(|text| text.log_p.iter().zip(&text.log_q));
    let count = tokens.clone().count().max(1);
    tokens.map(|(p, q)| f64::from(p - q)).map(|r| r.exp_m1() - r).sum::<f64>() / count as f64
}

/// Mean 0 and variance 1 over all tokens of all texts.
pub fn whiten(advantages: &mut [Vec<f64>]) {
    let count = advantages.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    let mean = advantages.iter().flatten().sum::<f64>() / count;
    let variance = advantages.iter().flatten().map(|a| (a - mean).powi(2)).sum::<f64>() / count;
    let scale = (variance + 1e-8).sqrt().recip();
    advantages.iter_mut().flatten().for_each(|a| *a = (*a - mean) * scale);
}
