//! The decoder as training sees it: whole rows, no cache, and every weight within reach.

use burn::tensor::{Device, Tensor};
use kindling_core::{AttendSpec, AttentionInputs, Decoding, KvStore, LanguageModel, OutputHead, ParameterMut, Tap};
use kindling_tensor_backend::formats::Weight;

use super::attention::{Inputs, LatentQuery};
use super::block::{DecoderBlock, Mlp};
use super::{Decoder, ForwardCx, Projection, RmsNorm, Rotary, Wanted, check_rows};
use crate::checkpoint::{DType, OutTensor, Writer, WriterOptions};
use crate::config::{BlockNorms, MlpSpec};
use crate::error::{ModelError, Result};
use crate::kv::DenseKv;
use crate::layers::{EMBEDDING, HEAD, block_prefix};

impl LanguageModel for Decoder {
    fn vocab_size(&self) -> usize {
        self.spec.vocab_size
    }

    fn block_count(&self) -> usize {
        self.blocks.len()
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn embed(&self, ids: &[Vec<u32>]) -> kindling_core::Result<Tensor<3>> {
        check_rows(ids, self.spec.vocab_size).map_err(into_core)?;
        self.ends.embed(ids, &self.spec, &self.device).map_err(into_core)
    }

    fn block(&self, index: usize, x: Tensor<3>, tap: Option<&mut dyn Tap>) -> kindling_core::Result<Tensor<3>> {
        self.run_block(index, x, &mut DenseKv::new(1, &self.device), tap)
    }

    fn block_and_attention(&self, index: usize, x: Tensor<3>) -> kindling_core::Result<(Tensor<3>, AttentionInputs)> {
        let mut kv = Shown { kv: DenseKv::new(1, &self.device), heads: None, queries: None };
        let y = self.run_block(index, x, &mut kv, None)?;
        match (kv.heads, kv.queries) {
            (Some((keys, values)), Some((queries, scale))) => Ok((y, AttentionInputs { queries, keys, values, scale })),
            _ => Err(kindling_core::Error::Invalid(format!("block {index} has no attention"))),
        }
    }

    fn last_norm(&self, x: Tensor<3>) -> Tensor<3> {
        self.ends.norm(x)
    }

    fn output(&self) -> kindling_core::Result<OutputHead> {
        Ok(self.ends.head().map_err(into_core)?.output().clone())
    }

    fn output_parameter(&self) -> &'static str {
        if self.spec.tied { EMBEDDING } else { HEAD }
    }

    /// The router of an expert layer is not among them: its choice is made on the host.
    fn parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        self.host = None;
        let mut list = self.ends.parameters_mut();
        for (i, (block, spec)) in self.blocks.iter_mut().zip(&self.spec.blocks).enumerate() {
            block.parameters_mut(&block_prefix(i), &spec.norms, &mut list);
        }
        list
    }

    fn decode(&self) -> Box<dyn Decoding + '_> {
        Box::new(Cached { model: self, kv: self.new_kv() })
    }
}

/// A store that keeps in sight what passes through it.
struct Shown {
    kv: DenseKv,
    heads: Option<(Tensor<4>, Tensor<4>)>,
    queries: Option<(Tensor<4>, f64)>,
}

impl KvStore for Shown {
    fn len(&self, layer: usize) -> usize {
        self.kv.len(layer)
    }

    fn append(&mut self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> kindling_core::Result<()> {
        self.heads = Some((keys.clone(), values.clone()));
        self.kv.append(layer, keys, values)
    }

    fn attend(&mut self, layer: usize, queries: Tensor<4>, spec: &AttendSpec) -> kindling_core::Result<Tensor<4>> {
        self.queries = Some((queries.clone(), spec.scale));
        self.kv.attend(layer, queries, spec)
    }

    fn truncate(&mut self, len: usize) -> kindling_core::Result<()> {
        self.kv.truncate(len)
    }

    fn set_padding(&mut self, padding: Vec<usize>) {
        self.kv.set_padding(padding);
    }
}

/// Decoding over a store of keys and values.
struct Cached<'a> {
    model: &'a Decoder,
    kv: DenseKv,
}

impl Decoding for Cached<'_> {
    fn advance(&mut self, ids: &[Vec<u32>]) -> kindling_core::Result<Tensor<2>> {
        let logits = self.model.forward(ids, &[], &mut self.kv, Wanted::LastLogits).map_err(into_core)?;
        let [rows, _, vocabulary] = logits.dims();
        Ok(logits.reshape([rows, vocabulary]))
    }
}

fn into_core(error: ModelError) -> kindling_core::Error {
    match error {
        ModelError::Core(error) => error,
        other => kindling_core::Error::Invalid(other.to_string()),
    }
}

impl Decoder {
    fn run_block(
        &self,
        index: usize,
        x: Tensor<3>,
        kv: &mut dyn KvStore,
        tap: Option<&mut dyn Tap>,
    ) -> kindling_core::Result<Tensor<3>> {
        let rotary = self.angles_for(x.dims()[1]);
        let mut cx = ForwardCx { kv, layer: 0, rotary: &rotary, tap: None };
        if let Some(tap) = tap {
            cx.tap = Some(tap);
        }
        self.blocks[index].forward(x, &mut cx).map_err(into_core)
    }

    fn angles_for(&self, tokens: usize) -> Rotary {
        let mut held = self.angles.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*held {
            Some((length, rotary)) if *length == tokens => rotary.clone(),
            _ => {
                let rotary = Rotary::new(&self.spec.rope, 0, tokens, &[], &self.device);
                *held = Some((tokens, rotary.clone()));
                rotary
            }
        }
    }

    /// Gives every matrix Gaussian values of standard deviation 0.02 and every gain 1, as before any training.
    pub fn randomize(&mut self, cx: &kindling_core::Cx) {
        for (name, parameter) in self.parameters_mut() {
            match parameter {
                ParameterMut::Vector(x) => {
                    *x = if name.ends_with("bias") { x.zeros_like() } else { x.ones_like() };
                }
                ParameterMut::Matrix(x) => {
                    let values = crate::random::normals(x.shape().num_elements(), 0.02, &mut cx.rng(&name));
                    *x = Tensor::from_data(burn::tensor::TensorData::new(values, x.dims()), &x.device());
                }
            }
        }
    }

    /// Writes all weights as a checkpoint of one part into `dir`, which must not hold one; returns its bytes.
    ///
    /// Compressed weights are refused: they are written by the run that compresses.
    pub fn save(&mut self, dir: &std::path::Path, dtype: DType) -> Result<u64> {
        let offset = if self.spec.norm.unit_offset { 1.0 } else { 0.0 };
        let expected = self.spec.blocks.len() * self.blocks[0].projections().len();
        let dense = self.blocks.iter().flat_map(DecoderBlock::projections);
        let dense = dense.filter(|p| matches!(p.weight, Weight::Dense(_))).count();
        if dense < expected {
            let compressed = expected - dense;
            return Err(ModelError::Input(format!(
                "{compressed} of {expected} weights are compressed: only a dense model is saved"
            )));
        }
        if self.spec.blocks.iter().any(|block| matches!(block.mlp, MlpSpec::Experts { .. })) {
            return Err(ModelError::Input(
                "a model with expert layers cannot be saved: its routers are not trained".into(),
            ));
        }
        let mut tensors = Vec::new();
        for (name, parameter) in self.parameters_mut() {
            let (shape, data) = match parameter {
                ParameterMut::Vector(x) => (
                    x.dims().to_vec(),
                    x.clone().add_scalar(if name.ends_with("norm.weight") { -offset } else { 0.0 }).into_data(),
                ),
                ParameterMut::Matrix(x) => {
                    let x = if is_projection(&name) { x.clone().transpose() } else { x.clone() };
                    (x.dims().to_vec(), x.into_data())
                }
            };
            let values = data.convert::<f32>().try_to_vec::<f32>();
            let values = values.map_err(|error| ModelError::Input(format!("{name}: {error:?}")))?;
            tensors.push(OutTensor::from_f32(name, dtype, &shape, &values)?);
        }
        let mut writer = Writer::create(dir, WriterOptions::default())?;
        writer.write_shard(&tensors)?;
        Ok(writer.finish()?)
    }
}

/// Whether a matrix is held transposed: all are but the two at the ends.
fn is_projection(name: &str) -> bool {
    name != EMBEDDING && name != HEAD
}

impl DecoderBlock {
    fn parameters_mut<'a>(&'a mut self, prefix: &str, norms: &BlockNorms, list: &mut Vec<(String, ParameterMut<'a>)>) {
        let mut norm = |name: &str, norm: &'a mut RmsNorm| {
            list.push((format!("{prefix}{name}.weight"), ParameterMut::Vector(norm.gain_mut())));
        };
        for (name, held) in [
            (norms.attention_input, &mut self.attention_input),
            (norms.attention_output, &mut self.attention_output),
            (norms.mlp_input, &mut self.mlp_input),
            (norms.mlp_output, &mut self.mlp_output),
        ] {
            if let (Some(name), Some(held)) = (name, held) {
                norm(name, held);
            }
        }
        let mut projections = Vec::new();
        match &mut self.attention.inputs {
            Inputs::Separate { query, key, value, norms } => {
                projections.extend([query, key, value]);
                if let Some((query, key)) = norms {
                    norm("self_attn.q_norm", query);
                    norm("self_attn.k_norm", key);
                }
            }
            Inputs::Fused { qkv, norms } => {
                projections.push(qkv);
                if let Some((query, key)) = norms {
                    norm("self_attn.q_norm", query);
                    norm("self_attn.k_norm", key);
                }
            }
            Inputs::Latent { query, down, norm: latent, up } => {
                match query {
                    LatentQuery::Full(full) => projections.push(full),
                    LatentQuery::Factored { down, norm: latent, up } => {
                        projections.extend([down, up]);
                        norm("self_attn.q_a_layernorm", latent);
                    }
                }
                projections.extend([down, up]);
                norm("self_attn.kv_a_layernorm", latent);
            }
        }
        projections.push(&mut self.attention.output);
        projections.extend(match &mut self.mlp {
            Mlp::Gated(mlp) => mlp.projections_mut(),
            Mlp::Experts(experts) => experts.projections_mut(),
        });
        for Projection { shape, weight, bias } in projections {
            let name = format!("{prefix}{}", shape.name);
            match weight {
                Weight::Dense(dense) => {
                    list.push((format!("{name}.weight"), ParameterMut::Matrix(dense.transposed_mut())));
                }
                Weight::Adapted(adapted) => {
                    let (a, b, magnitude) = adapted.parts_mut();
                    list.push((format!("{name}.lora_A.weight"), ParameterMut::Matrix(a)));
                    list.push((format!("{name}.lora_B.weight"), ParameterMut::Matrix(b)));
                    if let Some(magnitude) = magnitude {
                        list.push((format!("{name}.lora_magnitude_vector"), ParameterMut::Vector(magnitude)));
                    }
                }
                _ => {}
            }
            if let Some(bias) = bias {
                list.push((format!("{name}.bias"), ParameterMut::Vector(bias)));
            }
        }
    }
}
