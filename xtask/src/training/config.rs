//! The file that describes a training run from scratch.

use std::path::Path;

use anyhow::Result;
use kindling_distill::{AdamW, Decay, Muon, Precision};
use kindling_model::tasks::Task;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::repeats::Repeats;
use crate::error::user;

/// Everything but the text and the output folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pretraining {
    /// Of weights, order and tasks.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// As in `config.json`; the size of the vocabulary comes from the tokenizer. Left out if the run goes on from a
    /// checkpoint.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub model: serde_json::Map<String, serde_json::Value>,
    /// What the tokenizer learns.
    #[serde(default)]
    pub tokenizer: TokenizerPart,
    /// How it learns.
    pub train: TrainPart,
    /// One after the other.
    pub stage: Vec<Stage>,
}

/// What the tokenizer learns from the text, or that the model speaks the language of the tasks alone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub(crate) enum TokenizerPart {
    Learnt {
        vocab_size: usize,
    },
    Tasks {
        /// The tasks that are mixed in equal parts.
        tasks: Vec<String>,
        /// What predicting a token outside the answers counts.
        #[serde(default = "default_other")]
        other: f32,
    },
    /// Nothing: the checkpoint that the run goes on from has one.
    #[default]
    Given,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainPart {
    /// The highest learning rate.
    pub rate: f64,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup: u64,
    #[serde(default)]
    pub decay: Decay,
    /// The rate at the end as a share of the highest.
    #[serde(default = "default_last")]
    pub last: f64,
    #[serde(default)]
    pub adamw: AdamW,
    /// Moves the hidden matrices in place of AdamW.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<Muon>,
    #[serde(default)]
    pub clip: Option<f64>,
    /// Rows that run through the model at a time.
    #[serde(default = "one")]
    pub micro_rows: usize,
    #[serde(default)]
    pub checkpoint_blocks: bool,
    /// Stop when the loss exceeds its running mean by so many nats; stages that differ in kind need room.
    #[serde(default = "default_spike")]
    pub spike: f64,
    /// Steps between two looks at the held-out text; 0: at the end only.
    #[serde(default)]
    pub evaluate_every: u64,
    /// Steps between two checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// In what the blocks multiply.
    #[serde(default, skip_serializing_if = "is_f32")]
    pub precision: Precision,
    /// Evaluations without a better one after which the run ends; 0: never.
    #[serde(default)]
    pub patience: u64,
}

/// A part of a run with rows of one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stage {
    /// Tokens to predict in this stage.
    pub tokens: u64,
    /// Predictions in a row.
    pub length: usize,
    /// Rows of a step.
    pub rows: usize,
    /// Tokens of context of a task; a row has room for question and answer behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Contexts that rows have in place of it, each as often: what was learnt at one length is soon forgotten at another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shorter: Vec<usize>,
    /// The tasks of this stage, in place of those of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Rows that say again what stands in them, in place of the text as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<Repeats>,
}

impl Stage {
    /// The contexts of its rows; none for a text.
    pub(crate) fn contexts(&self) -> Vec<usize> {
        self.context.into_iter().chain(self.shorter.iter().copied()).collect()
    }

    /// Whole steps, at least one.
    pub(crate) fn steps(&self) -> u64 {
        (self.tokens / (self.rows * self.length).max(1) as u64).max(1)
    }
}

/// Left out of what identifies a run, as before there was a choice.
fn is_f32(precision: &Precision) -> bool {
    *precision == Precision::F32
}
fn default_other() -> f32 {
    0.1
}
fn default_seed() -> u64 {
    42
}
fn default_last() -> f64 {
    0.05
}
fn one() -> usize {
    1
}
fn default_spike() -> f64 {
    2.0
}
fn default_checkpoint_every() -> u64 {
    200
}

impl Pretraining {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path, from: Option<&Path>) -> Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| user(format!("cannot read {name}: {error}")))?;
        let config: Self = toml::from_str(&text).map_err(|error| user(format!("{name}: {error}")))?;
        if config.stage.is_empty() {
            return Err(user(format!("{name}: at least one [[stage]] is needed")));
        }
        if config.stage.iter().any(|stage| stage.length == 0 || stage.rows == 0 || stage.tokens == 0) {
            return Err(user(format!("{name}: `tokens`, `length` and `rows` of a stage must be above 0")));
        }
        if config.train.micro_rows == 0 || config.train.checkpoint_every == 0 {
            return Err(user(format!("{name}: `micro_rows` and `checkpoint_every` must be above 0")));
        }
        if let Decay::Late(share) = config.train.decay
            && !(0.0..=1.0).contains(&share)
        {
            return Err(user(format!(
                "{name}: `decay`: late after {share} of the steps: a share between 0 and 1 is needed"
            )));
        }
        let given = config.tokenizer == TokenizerPart::Given;
        match from {
            Some(from) if !config.model.is_empty() || matches!(config.tokenizer, TokenizerPart::Learnt { .. }) => {
                let from = from.display();
                return Err(user(format!("{name}: leave out [model] and [tokenizer]: both come from --from {from}")));
            }
            Some(_) => {}
            None if given => {
                return Err(user(format!("{name}: [tokenizer] is missing: vocab_size = 4096, for example")));
            }
            None => {
                kindling_model::config::parse(&config.model_json(0, 1).to_string()).map_err(|error| {
                    user(format!("{name}: [model]: {}", error.to_string().trim_start_matches("config.json: ")))
                })?;
            }
        }
        let stage_tasks = config.stage_tasks().map_err(|error| user(format!("{name}: {error}")))?;
        let with_tasks = matches!(config.tokenizer, TokenizerPart::Tasks { .. });
        for (i, stage) in config.stage.iter().enumerate() {
            if let Some(repeats) = stage.repeats {
                let fits = if with_tasks { Err("`repeats` is for text".into()) } else { repeats.check(stage.length) };
                fits.map_err(|error| user(format!("{name}: stage {}: {error}", i + 1)))?;
            }
            match stage.context {
                Some(context) if with_tasks => {
                    if let Some(short) = stage
                        .shorter
                        .iter()
                        .find(|&&short| short >= context || !stage_tasks[i].iter().any(|task| task.fits(short)))
                    {
                        let i = i + 1;
                        return Err(user(format!(
                            "{name}: stage {i}: `shorter`: {short}: below {context}, and enough for a task, is needed"
                        )));
                    }
                    let fitting = stage_tasks[i].iter().filter(|task| task.fits(context));
                    let Some(room) = fitting.map(|task| task.room()).max() else {
                        return Err(user(format!("{name}: stage {}: no task fits a context of {context}", i + 1)));
                    };
                    if stage.length + 1 < context + room {
                        let needed = context + room - 1;
                        return Err(user(format!(
                            "{name}: stage {}: `length` must be {needed} or more for a context of {context}",
                            i + 1
                        )));
                    }
                }
                None if with_tasks => return Err(user(format!("{name}: stage {}: tasks need a `context`", i + 1))),
                Some(_) if !with_tasks => {
                    return Err(user(format!("{name}: stage {}: `context` is for tasks", i + 1)));
                }
                _ => {}
            }
        }
        Ok(config)
    }

    /// The `config.json` of the model before its first step.
    pub(crate) fn model_json(&self, begin: u32, end: u32) -> serde_json::Value {
        let vocabulary = match self.tokenizer {
            TokenizerPart::Learnt { vocab_size } => vocab_size,
            TokenizerPart::Tasks { .. } | TokenizerPart::Given => kindling_model::tasks::vocabulary::SIZE,
        };
        let mut model = self.model.clone();
        model.entry("model_type").or_insert(json!("llama"));
        model.entry("initializer_range").or_insert(json!(0.02));
        model.insert("vocab_size".into(), json!(vocabulary));
        model.insert("bos_token_id".into(), json!(begin));
        model.insert("eos_token_id".into(), json!(end));
        model.insert("dtype".into(), json!("float32"));
        model.into()
    }

    /// The tasks of every stage: its own, or those of the run.
    pub(crate) fn stage_tasks(&self) -> Result<Vec<Vec<Task>>, String> {
        let all = self.task_list()?;
        let own = |stage: &Stage| stage.tasks.iter().map(|name| name.parse()).collect();
        let tasks = |stage: &Stage| if stage.tasks.is_empty() { Ok(all.clone()) } else { own(stage) };
        self.stage.iter().map(tasks).collect()
    }

    /// The tasks to learn; empty for a text.
    pub(crate) fn task_list(&self) -> Result<Vec<Task>, String> {
        match &self.tokenizer {
            TokenizerPart::Learnt { .. } | TokenizerPart::Given => Ok(Vec::new()),
            TokenizerPart::Tasks { tasks, .. } if tasks.is_empty() => Err("`tasks` is empty".into()),
            TokenizerPart::Tasks { tasks, .. } => tasks.iter().map(|name| name.parse()).collect(),
        }
    }

    /// Steps of the whole run.
    pub(crate) fn steps(&self) -> u64 {
        self.stage.iter().map(Stage::steps).sum()
    }

    /// The stage of a step, and the steps of the stages before.
    pub(crate) fn stage_of(&self, step: u64) -> (usize, u64) {
        let mut before = 0;
        for (i, stage) in self.stage.iter().enumerate() {
            if step < before + stage.steps() {
                return (i, before);
            }
            before += stage.steps();
        }
        (self.stage.len() - 1, before - self.stage[self.stage.len() - 1].steps())
    }
}
