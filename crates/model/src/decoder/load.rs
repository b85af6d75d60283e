//! From files to blocks: which tensors a block reads and how their formats become weights.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use kindling_core::OutputHead;
use kindling_tensor_backend::formats::{Dense, Packed, Scales, Weight};

use super::attention::{Attention, Inputs, LatentQuery};
use super::block::{DecoderBlock, Mlp};
use super::ends::{Ends, Head, OutputMatrix, scaled};
use super::experts::Experts;
use super::mlp::{GateUp, GatedMlp};
use super::{Projection, RmsNorm};
use crate::checkpoint::{Checkpoint, DType};
use crate::compressed_tensors::{CompressedTensorsError, PackedCodes, QuantizationConfig, Scheme, decode_packed};
use crate::config::{self, AttentionSpec, ExpertGating, MlpSpec, QkNorm, Spec};
use crate::error::{ModelError, Result};
use crate::layers::{
    BlockProjection, EMBEDDING, FINAL_NORM, HEAD, block_prefix, projections_of_block, tensors_of_block,
};

/// A checkpoint with its configuration: everything needed to load any part of the model.
pub struct ModelFiles {
    checkpoint: Checkpoint,
    spec: Spec,
    config: serde_json::Value,
    quantization: Option<QuantizationConfig>,
}

impl ModelFiles {
    /// Opens a folder, or `org/name[@revision]` in the local Hugging Face cache. Reads no weight.
    ///
    /// Every tensor that the configuration asks for must be there with the right shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let checkpoint = Checkpoint::open(path.as_ref())?;
        let dir = checkpoint.dir().to_path_buf();
        let path = dir.join("config.json");
        if !path.exists() {
            return Err(ModelError::NoConfig(dir));
        }
        let text = std::fs::read_to_string(&path).map_err(ModelError::io(&path))?;
        let spec = config::parse(&text).map_err(|source| ModelError::Config { dir: dir.clone(), source })?;
        let config: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| ModelError::Config { dir, source: config::ConfigError::Json(error.to_string()) })?;
        let quantization =
            config.get("quantization_config").filter(|q| !q.is_null()).map(QuantizationConfig::parse).transpose()?;
        let files = Self { checkpoint, spec, config, quantization };
        files.check_tensors()?;
        Ok(files)
    }

    /// What the model computes.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The weights.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The whole `config.json`.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// The folder of `config.json`.
    pub fn dir(&self) -> PathBuf {
        self.checkpoint.dir().to_path_buf()
    }

    /// How quantised layers are stored; `None` for a dense checkpoint.
    pub fn quantization(&self) -> Option<&QuantizationConfig> {
        self.quantization.as_ref()
    }

    /// The type of the weights: what the projections of block 0 are stored in.
    pub fn dtype(&self) -> DType {
        let first = projections_of_block(&self.spec, 0)
            .into_iter()
            .find_map(|p| self.checkpoint.info(&format!("{}{}.weight", block_prefix(0), p.shape.name)).ok());
        first.map(|info| info.dtype).or(self.spec.dtype).unwrap_or(DType::F32)
    }

    fn check_tensors(&self) -> Result<()> {
        let check = |name: &str, expected: &[usize]| {
            let info = self.checkpoint.info(name)?;
            if info.shape == expected {
                return Ok(());
            }
            Err(ModelError::Shape {
                dir: self.dir(),
                tensor: name.into(),
                expected: expected.to_vec(),
                found: info.shape.to_vec(),
            })
        };
        let spec = &self.spec;
        check(EMBEDDING, &[spec.vocab_size, spec.hidden_size])?;
        check(FINAL_NORM, &[spec.hidden_size])?;
        if !spec.tied && self.scheme(HEAD.trim_end_matches(".weight")).is_none() {
            check(HEAD, &[spec.vocab_size, spec.hidden_size])?;
        }
        for i in 0..spec.blocks.len() {
            let prefix = block_prefix(i);
            for tensor in tensors_of_block(spec, i) {
                let name = format!("{prefix}{}", tensor.name);
                let module = name.strip_suffix(".weight").filter(|module| self.scheme(module).is_some());
                if module.is_none_or(|_| tensor.shape.len() != 2) {
                    check(&name, &tensor.shape)?;
                }
            }
        }
        Ok(())
    }

    fn scheme(&self, module: &str) -> Option<crate::compressed_tensors::Scheme> {
        self.quantization.as_ref().and_then(|config| config.scheme_for(module))
    }

    /// Values of a one-dimensional tensor of block `prefix`.
    fn vector(&self, name: &str, device: &Device) -> Result<Tensor<1>> {
        let values = self.checkpoint.tensor_f32(name)?;
        let len = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [len]), device))
    }

    /// A projection; its weight in the format it is stored in.
    fn projection(&self, prefix: &str, wanted: BlockProjection, device: &Device) -> Result<Projection> {
        let module = format!("{prefix}{}", wanted.shape.name);
        let (rows, cols) = (wanted.shape.rows, wanted.shape.cols);
        let weight = match self.scheme(&module) {
            Some(scheme) => Weight::Packed(self.packed(&module, &scheme, rows, cols)?),
            None => Weight::Dense(Dense::from_host(
                rows,
                cols,
                self.checkpoint.tensor_f32(&format!("{module}.weight"))?,
                device,
            )?),
        };
        let bias = wanted.bias.then(|| self.vector(&format!("{module}.bias"), device)).transpose()?;
        Ok(Projection { shape: wanted.shape, weight, bias })
    }

    /// Loads block `i` in the formats of its files.
    pub fn block(&self, i: usize, device: &Device) -> Result<DecoderBlock> {
        let prefix = block_prefix(i);
        let block = &self.spec.blocks[i];
        let mut projections = projections_of_block(&self.spec, i).into_iter();
        let mut next = || match projections.next() {
            Some(wanted) => self.projection(&prefix, wanted, device),
            None => Err(ModelError::Input(format!("block {i}: fewer projections than its parts need"))),
        };
        let norm = |name: &str| -> Result<RmsNorm> {
            Ok(RmsNorm::new(self.vector(&format!("{prefix}{name}.weight"), device)?, self.spec.norm))
        };
        let maybe_norm = |name: Option<&str>| name.map(norm).transpose();

        let inputs = match &block.attention {
            AttentionSpec::Grouped { fused, qk_norm, .. } => {
                let norms = match qk_norm {
                    QkNorm::None => None,
                    _ => Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?)),
                };
                if *fused {
                    Inputs::Fused { qkv: next()?, norms }
                } else {
                    Inputs::Separate { query: next()?, key: next()?, value: next()?, norms }
                }
            }
            AttentionSpec::Latent { q_rank, .. } => {
                let query = match q_rank {
                    None => LatentQuery::Full(next()?),
                    Some(_) => {
                        LatentQuery::Factored { down: next()?, norm: norm("self_attn.q_a_layernorm")?, up: next()? }
                    }
                };
                Inputs::Latent { query, down: next()?, norm: norm("self_attn.kv_a_layernorm")?, up: next()? }
            }
        };
        let attention = Attention { spec: block.attention.clone(), window: block.window, inputs, output: next()? };

        let mlp = match &block.mlp {
            MlpSpec::Gated { fused, activation, .. } => {
                let inputs =
                    if *fused { GateUp::Fused(next()?) } else { GateUp::Separate { gate: next()?, up: next()? } };
                Mlp::Gated(GatedMlp { inputs, down: next()?, activation: *activation })
            }
            MlpSpec::Experts { count, top_k, shared_inner, activation, gating, names, .. } => {
                let mut expert = || -> Result<GatedMlp> {
                    let inputs = GateUp::Separate { gate: next()?, up: next()? };
                    Ok(GatedMlp { inputs, down: next()?, activation: *activation })
                };
                let experts = (0..*count).map(|_| expert()).collect::<Result<_>>()?;
                let shared = shared_inner.map(|_| expert()).transpose()?;
                let router = self.checkpoint.tensor_f32(&format!("{prefix}{}.gate.weight", names.module))?;
                let router = TensorData::new(router, [*count, self.spec.hidden_size]);
                let correction = match gating {
                    ExpertGating::Softmax => None,
                    ExpertGating::SigmoidGroups { .. } => Some(
                        self.checkpoint
                            .tensor_f32(&format!("{prefix}{}.gate.e_score_correction_bias", names.module))?,
                    ),
                };
                Mlp::Experts(Experts {
                    router: Tensor::<2>::from_data(router, device).transpose(),
                    correction,
                    gating: *gating,
                    top_k: *top_k,
                    experts,
                    shared,
                })
            }
        };
        let norms = block.norms;
        Ok(DecoderBlock {
            attention,
            mlp,
            attention_input: maybe_norm(norms.attention_input)?,
            attention_output: maybe_norm(norms.attention_output)?,
            mlp_input: maybe_norm(norms.mlp_input)?,
            mlp_output: maybe_norm(norms.mlp_output)?,
        })
    }

    /// Loads embedding, last norm and head.
    pub fn ends(&self, device: &Device) -> Result<Ends> {
        let (norm, softcap) = (self.last_norm(device)?, self.spec.logit_softcap);
        let output = if self.spec.tied { None } else { Some(self.output_matrix(device)?) };
        Ok(Ends::new(self.end_matrix(EMBEDDING, device)?, norm, output, softcap))
    }

    /// Loads the last norm and the head, without the embedding where that is another matrix.
    pub fn head(&self, device: &Device) -> Result<Head> {
        let matrix = if self.spec.tied {
            self.end_matrix(EMBEDDING, device)?
        } else {
            self.output_matrix(device)?.to_dense(device)?
        };
        Ok(Head::new(self.last_norm(device)?, OutputHead { matrix, softcap: self.spec.logit_softcap }))
    }

    fn end_matrix(&self, name: &str, device: &Device) -> Result<Tensor<2>> {
        let shape = [self.spec.vocab_size, self.spec.hidden_size];
        Ok(Tensor::from_data(TensorData::new(self.checkpoint.tensor_f32(name)?, shape), device))
    }

    /// The output matrix where it is not the embedding: as dense as the embedding, or packed like any projection.
    fn output_matrix(&self, device: &Device) -> Result<OutputMatrix> {
        let module = HEAD.trim_end_matches(".weight");
        Ok(match self.scheme(module) {
            Some(scheme) => {
                let packed = self.packed(module, &scheme, self.spec.vocab_size, self.spec.hidden_size)?;
                OutputMatrix::Held(Weight::Packed(packed))
            }
            None => OutputMatrix::Full(self.end_matrix(HEAD, device)?),
        })
    }

    /// The packed weight of a module, which must have this shape.
    fn packed(&self, module: &str, scheme: &Scheme, rows: usize, cols: usize) -> Result<Packed> {
        let found = decode_packed(&self.checkpoint, module, scheme)?;
        if [found.rows, found.cols] != [rows, cols] {
            return Err(ModelError::Shape {
                dir: self.dir(),
                tensor: format!("{module}.weight_packed"),
                expected: vec![rows, cols],
                found: vec![found.rows, found.cols],
            });
        }
        let PackedCodes { bits, granularity, words, scale_type, scales, zeros, group_index, .. } = found;
        let broken = |reason: String| CompressedTensorsError::Module { module: module.to_owned(), reason };
        let scales = Scales::new(&scales, scale_type)
            .ok_or_else(|| broken("`weight_scale` holds values that its own type does not".into()))?;
        let packed = Packed::from_words([rows, cols], bits, granularity, words, scales, zeros, group_index);
        Ok(packed.map_err(|error| broken(error.to_string()))?)
    }

    fn last_norm(&self, device: &Device) -> Result<RmsNorm> {
        Ok(RmsNorm::new(self.vector(FINAL_NORM, device)?, self.spec.norm))
    }

    /// Embeddings of rows of ids, `[rows, tokens, hidden]`, without loading the rest of the table.
    pub fn embed(&self, ids: &[Vec<u32>], device: &Device) -> Result<Tensor<3>> {
        let tokens = super::check_rows(ids, self.spec.vocab_size)?;
        let mut values = Vec::with_capacity(ids.len() * tokens * self.spec.hidden_size);
        for &id in ids.iter().flatten() {
            values.extend(self.checkpoint.rows_f32(EMBEDDING, id as usize..id as usize + 1)?);
        }
        let x = Tensor::from_data(TensorData::new(values, [ids.len(), tokens, self.spec.hidden_size]), device);
        Ok(scaled(x, &self.spec))
    }
}
