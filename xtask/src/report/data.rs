//! What a compression run has to say about itself.
//!
//! Everything outside [`Report::measured`] is a function of the inputs: the same checkpoint, recipe,
//! calibration text and seed give the same bytes. Clocks and throughputs live in `measured` alone.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer, Serialize};

/// The version of the layout of `report.json`.
pub(crate) const SCHEMA: u32 = 1;

/// The whole of `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of Kindling.
    pub kindling: String,
    /// The command line.
    pub command: String,
    /// The seed of the run.
    pub seed: u64,
    /// What was compressed.
    pub model: ModelInfo,
    /// The recipe with all defaults filled in, as TOML.
    pub recipe: String,
    /// What the statistics were collected from.
    pub calibration: Calibration,
    /// How the perplexities were measured; absent if they were not.
    pub protocol: Option<Protocol>,
    /// The dense model.
    pub before: Figures,
    /// The compressed model.
    pub after: Figures,
    /// One entry per compressed projection, in the order of the model.
    pub modules: Vec<Module>,
    /// What the user should know although the run went through.
    pub warnings: Vec<String>,
    /// How a second model, compressed by the same recipe, answers long-context tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskFigures>,
    /// What depends on the machine and the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// The model before compression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModelInfo {
    /// Name of the checkpoint folder.
    pub name: String,
    /// Architecture, for example `llama`.
    pub family: String,
    /// Number of parameters, tied ones counted once.
    pub parameters: u64,
    /// Element type on disk, for example `bf16`.
    pub dtype: String,
}

/// The calibration text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calibration {
    /// File name, or `self` for text that the dense model wrote.
    pub source: String,
    /// Hash of the token ids that were used.
    pub sha256: String,
    /// Number of sequences.
    pub sequences: u64,
    /// Tokens per sequence.
    pub length: u64,
    /// Tokens in all.
    pub tokens: u64,
}

/// How a perplexity was measured. Two perplexities compare only under equal protocols.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Protocol {
    /// Name of the text.
    pub text: String,
    /// Hash of the text.
    pub sha256: String,
    /// Tokens per window.
    pub window: u64,
    /// Number of windows.
    pub windows: u64,
    /// Tokens of the text.
    pub tokens: u64,
    /// Tokens that were scored.
    pub scored: u64,
}

impl Protocol {
    /// The protocol in one sentence.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "Perplexity on {}: {} non-overlapping windows of {} tokens, each scored alone on its tokens 1..; {} of {} tokens scored.",
            self.text, self.windows, self.window, self.scored, self.tokens
        )
    }

    /// Whether figures under both protocols may stand in one table.
    pub(crate) fn comparable(&self, other: &Self) -> bool {
        (&self.sha256, self.window) == (&other.sha256, other.window)
    }
}

/// Quality and size of a model. A number that could not be computed is NaN here and `null` in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// `exp(mean_nll)`.
    #[serde(deserialize_with = "number_or_nan")]
    pub perplexity: f64,
    /// Mean negative log-likelihood of a scored token, in nats.
    #[serde(deserialize_with = "number_or_nan")]
    pub mean_nll: f64,
    /// Mean KL(dense ‖ this model) of the next-token distributions over the scored tokens, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_kl: Option<f64>,
    /// Size of the weight files.
    pub bytes_on_disk: u64,
    /// Memory that the loaded weights take.
    pub bytes_resident: u64,
    /// Bits on disk per original weight, grids and masks included.
    pub bits_per_weight: Share,
    /// Fraction of weights that are zero.
    pub sparsity: Share,
}

/// A figure of the projections that the recipe targets, and of the whole model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Share {
    /// Over the targeted projections.
    pub targeted: f64,
    /// Over the whole model.
    pub model: f64,
}

/// Accuracy on a generated long-context task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskFigures {
    /// Its name.
    pub task: String,
    /// Tokens of context.
    pub context: u64,
    /// How many were asked.
    pub examples: u64,
    /// Share of right answers of the dense model.
    pub before: f64,
    /// Share of right answers of the compressed model.
    pub after: f64,
}

/// What happened to one projection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Module {
    /// Index of the decoder block.
    pub block: usize,
    /// Name within the block, for example `mlp.down_proj`.
    pub name: String,
    /// The methods of the stages that touched it, in order.
    pub methods: Vec<String>,
    /// How it is stored, for example `int4 g128` or `2:4`.
    pub format: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `‖XW − XŴ‖ / ‖XW‖` over the calibration tokens.
    #[serde(deserialize_with = "number_or_nan")]
    pub error: f64,
    /// Calibration tokens that reached it.
    pub tokens_seen: u64,
    /// Fallbacks taken, damping raised, ragged groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What depends on the machine and the moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Processor and device, for example `AMD EPYC 9V74, 2 threads, flex`.
    pub machine: String,
    /// Wall-clock seconds of the run.
    pub seconds: f64,
    /// The most memory the run held, in bytes, pages of mapped files not counted; absent where it cannot be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Speed of the dense model; absent if it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Speed>,
    /// Speed of the compressed model; absent if it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Speed>,
    /// Seconds per entry of [`Report::modules`]; shorter or empty where unknown.
    #[serde(default)]
    pub module_seconds: Vec<f64>,
}

/// Tokens per second at batch size 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Speed {
    /// While reading the prompt.
    pub prefill_tok_s: f64,
    /// While writing.
    pub decode_tok_s: f64,
}

impl Report {
    /// Reads a `report.json`. A file of another layout is an error that names the file and both versions.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            schema: u32,
        }
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{}: cannot read the report", path.display()))?;
        let Versioned { schema } = serde_json::from_str(&text)
            .with_context(|| format!("{}: not a report: expected JSON with the key `schema`", path.display()))?;
        if schema != SCHEMA {
            bail!(
                "{}: report of layout {schema}, but this version reads layout {SCHEMA}; compress again or use the version that wrote it",
                path.display()
            );
        }
        serde_json::from_str(&text).with_context(|| format!("{}: incomplete or damaged report", path.display()))
    }

    /// The text of `report.json`: indented, with a final newline.
    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).context("the report cannot be written as JSON")? + "\n")
    }

    /// The run in one line: size and, where known, perplexity before and after.
    pub(crate) fn headline(&self) -> String {
        use super::format::{bytes_pair, number};
        let (before, after) = bytes_pair(self.before.bytes_on_disk, self.after.bytes_on_disk);
        let mut line = format!("{}: {before} → {after}", self.model.name);
        if self.protocol.is_some() {
            line += &format!(", perplexity {} → {}", number(self.before.perplexity), number(self.after.perplexity));
        }
        line
    }

    /// Seconds spent on module `index`, where known.
    pub(crate) fn module_seconds(&self, index: usize) -> Option<f64> {
        self.measured.as_ref()?.module_seconds.get(index).copied()
    }
}

fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A report of plausible numbers for the tests of the renderers.
#[cfg(test)]
pub(super) fn example() -> Report {
    let shapes = [
        ("self_attn.q_proj", 64, 64, 0.041),
        ("self_attn.k_proj", 32, 64, 0.038),
        ("self_attn.v_proj", 32, 64, 0.062),
        ("self_attn.o_proj", 64, 64, 0.071),
        ("mlp.gate_proj", 172, 64, 0.118),
        ("mlp.up_proj", 172, 64, 0.124),
        ("mlp.down_proj", 64, 172, 0.139),
    ];
    let modules: Vec<Module> = (0..5)
        .flat_map(|block| {
            shapes.map(|(name, rows, cols, error)| {
                let mlp = name.starts_with("mlp");
                Module {
                    block,
                    name: name.into(),
                    methods: if mlp { vec!["wanda".into(), "gptq".into()] } else { vec!["gptq".into()] },
                    format: if mlp { "int4 g64 2:4".into() } else { "int4 g64".into() },
                    rows,
                    cols,
                    error: (error * (1.0 + 0.22 * block as f64) * 1e4).round() / 1e4,
                    tokens_seen: 32768,
                    notes: if mlp && cols == 172 {
                        vec!["the last group of a row has 44 inputs".into()]
                    } else {
                        vec![]
                    },
                }
            })
        })
        .collect();
    Report {
        schema: SCHEMA,
        kindling: "0.1.0".into(),
        command: "cargo xtask compress --model stories260K --recipe default.toml".into(),
        seed: 42,
        model: ModelInfo {
            name: "stories260K".into(),
            family: "llama".into(),
            parameters: 260_032,
            dtype: "f32".into(),
        },
        recipe: "[[stage]]\nmethod = \"wanda\"\npattern = \"2:4\"\ntargets = [\"mlp.*\"]\n\n[[stage]]\nmethod = \"gptq\"\nbits = 4\ngroup_size = 64\n".into(),
        calibration: Calibration {
            source: "tinystories.txt".into(),
            sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
            sequences: 128,
            length: 256,
            tokens: 32768,
        },
        protocol: Some(Protocol {
            text: "tinystories-valid.txt".into(),
            sha256: "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae".into(),
            window: 256,
            windows: 50,
            tokens: 12_950,
            scored: 12_750,
        }),
        before: Figures {
            perplexity: 5.7402,
            mean_nll: 1.7475,
            mean_kl: None,
            bytes_on_disk: 1_040_128,
            bytes_resident: 1_040_128,
            bits_per_weight: Share { targeted: 32.0, model: 32.0 },
            sparsity: Share { targeted: 0.0, model: 0.0 },
        },
        after: Figures {
            perplexity: 6.0671,
            mean_nll: 1.8029,
            mean_kl: Some(0.0487),
            bytes_on_disk: 209_920,
            bytes_resident: 221_184,
            bits_per_weight: Share { targeted: 4.41, model: 6.46 },
            sparsity: Share { targeted: 0.366, model: 0.321 },
        },
        measured: Some(Measured {
            machine: "AMD EPYC 9V74, 2 threads, flex".into(),
            seconds: 14.2,
            peak_memory: Some(24_000_000),
            before: Some(Speed { prefill_tok_s: 5210.0, decode_tok_s: 812.0 }),
            after: Some(Speed { prefill_tok_s: 4987.0, decode_tok_s: 1093.0 }),
            module_seconds: (0..modules.len()).map(|i| (5 + i % 7) as f64 / 100.0).collect(),
        }),
        modules,
        warnings: vec!["`lm_head` is tied to the embedding and stays dense".into()],
        tasks: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let report = example();
        std::fs::write(&path, report.to_json().unwrap()).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
    }

    #[test]
    fn what_is_not_a_number_is_null_and_comes_back() {
        let mut report = example();
        report.after.perplexity = f64::NAN;
        report.modules[0].error = f64::INFINITY;
        let text = report.to_json().unwrap();
        assert!(text.contains("\"perplexity\": null"), "{text}");
        let back: Report = serde_json::from_str(&text).unwrap();
        assert!(back.after.perplexity.is_nan() && back.modules[0].error.is_nan());
    }

    #[test]
    fn only_the_section_measured_depends_on_the_machine() {
        let mut report = example();
        report.measured = None;
        let text = report.to_json().unwrap();
        assert!(!text.contains("seconds") && !text.contains("tok_s") && !text.contains("machine"), "{text}");
    }

    #[test]
    fn other_layouts_and_damage_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", Report::read(&path).unwrap_err())
        };
        assert!(error("{\"schema\": 7}").contains("layout 7"));
        assert!(error("{}").contains("`schema`"));
        assert!(error("{\"schema\": 1}").contains("incomplete"));
        assert!(error("{\"schema\": 1}").contains("report.json"));
    }

    #[test]
    fn the_headline_uses_one_unit() {
        let mut report = example();
        assert_eq!(report.headline(), "stories260K: 1.04 MB → 0.21 MB, perplexity 5.74 → 6.07");
        report.protocol = None;
        assert_eq!(report.headline(), "stories260K: 1.04 MB → 0.21 MB");
    }
}
