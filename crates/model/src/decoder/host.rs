//! A few tokens through the decoder without tensors: what decoding one token after the other runs on the processor.
//!
//! The same kernels in the same order as [`DecoderBlock::forward`](super::DecoderBlock::forward), so the same bits; but from memory to
//! memory that is asked for once. A model of a few million weights spends more time on tensors than on its products.

use kindling_core::{AttendSpec, KvMemory, KvStore};
use kindling_tensor_backend::formats::{Host, MOST_ROWS};
use kindling_tensor_backend::kernels::Activations;
use kindling_tensor_backend::ops::host::{self, Rows};

use super::attention::Inputs;
use super::block::Mlp;
use super::ends::HostEnds;
use super::mlp::GateUp;
use super::rotary::turn;
use super::{Decoder, DecoderBlock, Projection, RmsNorm};
use crate::config::{Activation, AttentionSpec, RopeSpec};
use crate::error::{ModelError, Result};

/// A loaded model that shares its weights with the [`Decoder`] it was made of.
pub(super) struct HostDecoder {
    ends: HostEnds,
    embedding_scale: Option<f32>,
    blocks: Vec<Block>,
    rope: RopeSpec,
    hidden: usize,
    vocabulary: usize,
}

struct Block {
    heads: usize,
    kv_heads: usize,
    width: usize,
    attend: AttendSpec,
    /// One matrix for queries, keys and values, or three.
    inputs: Vec<Linear>,
    head_norms: Option<(Norm, Norm)>,
    output: Linear,
    /// One matrix for gate and up, or two.
    gate_up: Vec<Linear>,
    inner: usize,
    down: Linear,
    attention_input: Option<Norm>,
    attention_output: Option<Norm>,
    mlp_input: Option<Norm>,
    mlp_output: Option<Norm>,
}

struct Norm {
    gain: Vec<f32>,
    eps: f32,
}

struct Linear {
    weight: Host,
    bias: Option<Vec<f32>>,
}

/// The memory of a step: what the first one asked for, later ones use again.
#[derive(Default)]
pub struct StepRoom {
    inputs: Option<Activations>,
    /// The residual stream, and what is normed of it or joins it.
    x: Vec<f32>,
    y: Vec<f32>,
    /// What one projection of several, or a head's norm, gives.
    part: Vec<f32>,
    qkv: Vec<f32>,
    turned: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    inner: Vec<f32>,
    scores: Vec<f32>,
    logits: Vec<f32>,
    /// Of texts of some length: frequencies and a factor.
    frequencies: Option<(usize, Vec<f64>, f64)>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl StepRoom {
    pub(super) fn take_logits(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.logits)
    }
}

impl Norm {
    fn of(norm: &RmsNorm) -> Option<Self> {
        norm.to_host().map(|(gain, eps)| Self { gain, eps })
    }

    /// `Some(None)` where there is no norm.
    fn maybe(norm: &Option<RmsNorm>) -> Option<Option<Self>> {
        norm.as_ref().map_or(Some(None), |norm| Self::of(norm).map(Some))
    }
}

impl Linear {
    fn of(projection: &Projection) -> Option<Self> {
        let bias = match &projection.bias {
            Some(bias) => Some(bias.clone().into_data().try_into_vec::<f32>().ok()?),
            None => None,
        };
        Some(Self { weight: Host::of(&projection.weight)?, bias })
    }

    fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    fn forward(&self, x: &[f32], rows: usize, inputs: &mut Activations, out: &mut [f32]) {
        self.weight.product(x, rows, inputs, out);
        if let Some(bias) = &self.bias {
            out.chunks_exact_mut(bias.len()).for_each(|out| host::add(out, bias));
        }
    }
}

/// Outputs of several projections side by side in every row.
fn side_by_side(
    parts: &[Linear],
    x: &[f32],
    rows: usize,
    inputs: &mut Activations,
    room: &mut Vec<f32>,
    out: &mut Vec<f32>,
) {
    let total: usize = parts.iter().map(Linear::outputs).sum();
    out.resize(rows * total, 0.0);
    if let [one] = parts {
        return one.forward(x, rows, inputs, out);
    }
    let mut first = 0;
    for part in parts {
        let width = part.outputs();
        room.resize(rows * width, 0.0);
        part.forward(x, rows, inputs, room);
        for (out, found) in out.chunks_exact_mut(total).zip(room.chunks_exact(width)) {
            out[first..first + width].copy_from_slice(found);
        }
        first += width;
    }
}

impl Block {
    fn of(block: &DecoderBlock) -> Option<Self> {
        let AttentionSpec::Grouped { heads, kv_heads, head_dim, scale, softcap, .. } = block.attention.spec else {
            return None;
        };
        let (inputs, norms) = match &block.attention.inputs {
            Inputs::Separate { query, key, value, norms } => (vec![query, key, value], norms),
            Inputs::Fused { qkv, norms } => (vec![qkv], norms),
            Inputs::Latent { .. } => return None,
        };
        let Mlp::Gated(mlp) = &block.mlp else { return None };
        let Activation::Silu = mlp.activation else { return None };
        let gate_up = match &mlp.inputs {
            GateUp::Separate { gate, up } => vec![gate, up],
            GateUp::Fused(both) => vec![both],
        };
        let all = |list: Vec<&Projection>| list.into_iter().map(Linear::of).collect::<Option<Vec<_>>>();
        let head_norms = match norms {
            Some((query, key)) => Some((Norm::of(query)?, Norm::of(key)?)),
            None => None,
        };
        let down = Linear::of(&mlp.down)?;
        Some(Self {
            heads,
            kv_heads,
            width: head_dim,
            attend: AttendSpec { scale, softcap, window: block.attention.window },
            inputs: all(inputs)?,
            head_norms,
            output: Linear::of(&block.attention.output)?,
            gate_up: all(gate_up)?,
            inner: down.weight.shape()[1],
            down,
            attention_input: Norm::maybe(&block.attention_input)?,
            attention_output: Norm::maybe(&block.attention_output)?,
            mlp_input: Norm::maybe(&block.mlp_input)?,
            mlp_output: Norm::maybe(&block.mlp_output)?,
        })
    }

    /// Whether keys and values have the shapes of this block.
    fn fits(&self, kv: &KvMemory<'_>) -> bool {
        let values = self.kv_heads * kv.capacity * self.width;
        kv.kv_heads == self.kv_heads && kv.keys.len() == values && kv.values.len() == values
    }

    /// Rows of the residual stream in `room.x`, whose keys and values go where `kv` has room for them.
    fn forward(&self, rows: usize, kv: KvMemory<'_>, room: &mut StepRoom) {
        let StepRoom { inputs, x, y, part, qkv, turned, attended, gate_up, inner, scores, cos, sin, .. } = room;
        let inputs = inputs.get_or_insert_with(Activations::empty);
        let (width, queries, keys) = (self.width, self.heads * self.width, self.kv_heads * self.width);

        normed(&self.attention_input, x, y);
        side_by_side(&self.inputs, y, rows, inputs, part, qkv);
        turned.resize(rows * queries, 0.0);
        let (half, total, first) = (cos.len() / rows, queries + 2 * keys, kv.len - rows);
        part.resize(queries.max(keys), 0.0);
        for (row, qkv) in qkv.chunks_exact_mut(total).enumerate() {
            let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
            let (q, rest) = qkv.split_at_mut(queries);
            let (k, v) = rest.split_at_mut(keys);
            if let Some((q_norm, k_norm)) = &self.head_norms {
                for (x, norm) in [(&mut *q, q_norm), (&mut *k, k_norm)] {
                    let part = &mut part[..x.len()];
                    host::rms_norm(x, &norm.gain, norm.eps, part);
                    x.copy_from_slice(part);
                }
            }
            host::rotary(q, width, cos, sin, &mut turned[row * queries..][..queries]);
            for head in 0..self.kv_heads {
                let (from, to) = (head * width, (head * kv.capacity + first + row) * width);
                host::rotary(&k[from..from + width], width, cos, sin, &mut kv.keys[to..to + width]);
                kv.values[to..to + width].copy_from_slice(&v[from..from + width]);
            }
        }
        let held = |values| {
            let head = kv.capacity * width;
            Rows::new(values, [1, self.kv_heads, kv.len, width], [self.kv_heads * head, head, width])
        };
        let (keys, values) = (held(&*kv.keys), held(&*kv.values));
        let q = Rows::new(turned, [1, self.heads, rows, width], [rows * queries, width, queries]);
        attended.resize(rows * queries, 0.0);
        host::attention([&q, &keys, &values], kv.parents, &self.attend, kv.capacity, scores, attended);
        self.output.forward(attended, rows, inputs, y);
        joined(&self.attention_output, y, part, x);

        normed(&self.mlp_input, x, y);
        side_by_side(&self.gate_up, y, rows, inputs, part, gate_up);
        inner.resize(rows * self.inner, 0.0);
        for (both, inner) in gate_up.chunks_exact(2 * self.inner).zip(inner.chunks_exact_mut(self.inner)) {
            let (gate, up) = both.split_at(self.inner);
            host::swiglu(gate, up, inner);
        }
        self.down.forward(inner, rows, inputs, y);
        joined(&self.mlp_output, y, part, x);
    }
}

fn normed(norm: &Option<Norm>, x: &[f32], y: &mut [f32]) {
    match norm {
        Some(norm) => host::rms_norm(x, &norm.gain, norm.eps, y),
        None => y.copy_from_slice(x),
    }
}

/// Adds `y`, normed, to the residual stream.
fn joined(norm: &Option<Norm>, y: &[f32], room: &mut Vec<f32>, x: &mut [f32]) {
    let added = match norm {
        Some(norm) => {
            room.resize(y.len(), 0.0);
            host::rms_norm(y, &norm.gain, norm.eps, room);
            &room[..]
        }
        None => y,
    };
    host::add(x, added);
}

impl HostDecoder {
    /// `None` where a weight, a layer or a function has no form without tensors.
    pub(super) fn of(model: &Decoder) -> Option<Self> {
        let (spec, blocks) = (&model.spec, model.blocks.iter());
        Some(Self {
            ends: model.ends.to_host()?,
            embedding_scale: spec.embedding_scale.map(|scale| scale as f32),
            blocks: blocks.map(Block::of).collect::<Option<_>>()?,
            rope: spec.rope.clone(),
            hidden: spec.hidden_size,
            vocabulary: spec.vocab_size,
        })
    }

    /// Logits `[wanted, vocabulary]` after the tokens at `wanted`, all of one text, each at a place `(position, length of its text)`.
    ///
    /// `None`, and nothing has changed, where there are too many tokens, or `kv` is not in memory.
    pub(super) fn forward<'a>(
        &self,
        ids: &[u32],
        places: &[(usize, usize)],
        kv: &mut dyn KvStore,
        wanted: &[usize],
        room: &'a mut StepRoom,
    ) -> Result<Option<&'a mut [f32]>> {
        let (rows, hidden) = (ids.len(), self.hidden);
        if rows == 0 || rows > MOST_ROWS {
            return Ok(None);
        }
        let before = kv.len(0);
        for (layer, block) in self.blocks.iter().enumerate() {
            let memory = match kv.in_memory(layer, rows) {
                None if layer == 0 => return Ok(None),
                memory => memory.filter(|memory| block.fits(memory)),
            };
            let Some(memory) = memory else {
                kv.truncate(before)?;
                return Err(ModelError::Input(format!("layer {layer} of the cache is not of this model")));
            };
            if layer == 0 {
                self.begin(ids, places, room)?;
            }
            block.forward(rows, memory, room);
        }
        let StepRoom { inputs, x, y, part, logits, .. } = room;
        part.resize(wanted.len() * hidden, 0.0);
        for (part, &row) in part.chunks_exact_mut(hidden).zip(wanted) {
            part.copy_from_slice(&x[row * hidden..][..hidden]);
        }
        y.resize(wanted.len() * hidden, 0.0);
        let (gain, eps) = &self.ends.norm;
        host::rms_norm(part, gain, *eps, y);
        if logits.len() != wanted.len() * self.vocabulary {
            *logits = vec![0.0; wanted.len() * self.vocabulary];
        }
        let inputs = inputs.get_or_insert_with(Activations::empty);
        self.ends.output.product(y, wanted.len(), inputs, logits);
        Ok(Some(logits))
    }

    /// Embeddings, and the angles of all places.
    fn begin(&self, ids: &[u32], places: &[(usize, usize)], room: &mut StepRoom) -> Result<()> {
        let StepRoom { x, y, frequencies, cos, sin, .. } = room;
        x.resize(ids.len() * self.hidden, 0.0);
        y.resize(ids.len() * self.hidden, 0.0);
        for (x, &id) in x.chunks_exact_mut(self.hidden).zip(ids) {
            if !self.ends.embedding.row(id as usize, x) {
                return Err(ModelError::Input("the embedding is packed or pruned".into()));
            }
            if let Some(scale) = self.embedding_scale {
                x.iter_mut().for_each(|x| *x *= scale);
            }
        }
        cos.clear();
        sin.clear();
        for &(position, len) in places {
            let class = self.rope.length_class(len);
            if frequencies.as_ref().is_none_or(|(known, ..)| *known != class) {
                let (found, factor) = self.rope.frequencies(len);
                *frequencies = Some((class, found, factor));
            }
            if let Some((_, frequencies, factor)) = frequencies {
                turn(position, frequencies, *factor, cos, sin);
            }
        }
        Ok(())
    }
}

impl Decoder {
    /// One token after the positions that `kv` holds: its logits `[vocabulary]`, in the memory of `room`. After the first call
    /// with a store that [expects](crate::DenseKv::expect) so many positions, nothing is allocated.
    ///
    /// `None`, and nothing has changed, where the model, the device or the store needs tensors, and before the first prompt:
    /// [`forward`](Self::forward) does it everywhere, with the same bits.
    ///
    /// # Errors
    /// An id that is not in the vocabulary.
    pub fn step<'a>(&self, id: u32, kv: &mut dyn KvStore, room: &'a mut StepRoom) -> Result<Option<&'a mut [f32]>> {
        let Some(host) = &self.host else { return Ok(None) };
        if id as usize >= self.spec.vocab_size {
            return Err(ModelError::Input(format!(
                "token id {id} is outside the vocabulary of {}",
                self.spec.vocab_size
            )));
        }
        let position = kv.len(0);
        host.forward(&[id], &[(position, position + 1)], kv, &[0], room)
    }
}
