//! The decoder: one attention, one MLP, one block for every family.
//!
//! [`Decoder`] holds a whole model, [`DecoderBlock`] one block of it: compression works on blocks and never
//! needs the whole.

mod attention;
mod block;
mod ends;
mod experts;
mod host;
mod load;
mod mlp;
mod norm;
mod projection;
mod rotary;
mod stack;
mod train;

use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Int, Tensor, TensorData, s};
use kindling_core::{KvStore, Tap};
use rayon::prelude::*;

pub use block::DecoderBlock;
pub use ends::{Ends, Head};
pub use host::StepRoom;
pub use load::ModelFiles;
pub use norm::RmsNorm;
pub use projection::Projection;
pub use rotary::Rotary;

use self::host::HostDecoder;
use crate::config::Spec;
use crate::error::{ModelError, Result};
use crate::kv::DenseKv;

/// What travels with the activations of one forward pass.
pub struct ForwardCx<'a> {
    /// Keys and values of earlier positions; the new ones are added.
    pub kv: &'a mut dyn KvStore,
    /// The layer of `kv` that the current block uses.
    pub layer: usize,
    /// Sines and cosines of the new positions.
    pub rotary: &'a Rotary,
    /// Sees the input of every projection.
    pub tap: Option<&'a mut dyn Tap>,
}

impl ForwardCx<'_> {
    /// Shows `x` `[batch, tokens, features]` to the tap, if there is one.
    pub(crate) fn tap(&mut self, site: impl FnOnce() -> String, x: &Tensor<3>) -> Result<()> {
        if let Some(tap) = &mut self.tap {
            let [batch, tokens, features] = x.dims();
            tap.tap(&site(), &x.clone().reshape([batch * tokens, features]))?;
        }
        Ok(())
    }
}

/// A whole model in memory.
pub struct Decoder {
    spec: Spec,
    ends: Ends,
    blocks: Vec<DecoderBlock>,
    device: Device,
    /// The angles of the last length that was trained on.
    angles: Mutex<Option<(usize, Rotary)>>,
    /// For a few tokens at a time, once the model is ready to run, where it can do without tensors.
    host: Option<Arc<HostDecoder>>,
    room: Mutex<StepRoom>,
}

/// What a forward pass should return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Logits of every position.
    AllLogits,
    /// Logits of the last position only.
    LastLogits,
}

impl Clone for Decoder {
    /// A second model; weights are shared until one of the two replaces them.
    fn clone(&self) -> Self {
        let (spec, ends, blocks) = (self.spec.clone(), self.ends.clone(), self.blocks.clone());
        Self { host: self.host.clone(), ..Self::of(spec, ends, blocks, &self.device) }
    }
}

impl Decoder {
    fn of(spec: Spec, ends: Ends, blocks: Vec<DecoderBlock>, device: &Device) -> Self {
        let (angles, room) = (Mutex::default(), Mutex::default());
        Self { spec, ends, blocks, device: device.clone(), angles, host: None, room }
    }

    /// Loads every block of a checkpoint as its files hold it: pruned weights stay dense, so that they can be trained.
    pub fn load_dense(files: &ModelFiles, device: &Device) -> Result<Self> {
        let blocks = (0..files.spec().blocks.len()).into_par_iter().map(|i| files.block(i, device));
        let blocks = blocks.collect::<Result<_>>()?;
        Ok(Self::of(files.spec().clone(), files.ends(device)?, blocks, device))
    }

    /// Loads every block of a checkpoint to run it: packed weights are laid out for the device; on the processor pruned ones,
    /// which files hold dense, become sparse again.
    pub fn load(files: &ModelFiles, device: &Device) -> Result<Self> {
        // Block by block: what files hold is let go before all is laid out.
        let block = |i: usize| {
            let mut block = files.block(i, device)?;
            block.repack(device)?;
            block.stack(device);
            Ok(block)
        };
        let blocks = (0..files.spec().blocks.len()).into_par_iter().map(block).collect::<Result<_>>()?;
        let mut ends = files.ends(device)?;
        ends.prepare()?;
        let mut model = Self::of(files.spec().clone(), ends, blocks, device);
        model.host = HostDecoder::of(&model).map(Arc::new);
        Ok(model)
    }

    /// Does to a model of [`load_dense`](Self::load_dense) what [`load`](Self::load) does. Adapters must be there before.
    pub fn prepare(&mut self) -> Result<()> {
        let device = &self.device;
        self.blocks.par_iter_mut().try_for_each(|block| {
            block.repack(device)?;
            block.stack(device);
            Ok::<_, ModelError>(())
        })?;
        self.ends.prepare()?;
        self.host = HostDecoder::of(self).map(Arc::new);
        Ok(())
    }

    /// What the model computes.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Drops all blocks but these, in this order.
    ///
    /// # Errors
    /// There is no such block, or none is named.
    pub fn keep_blocks(&mut self, kept: &[usize]) -> Result<()> {
        let count = self.blocks.len();
        if kept.is_empty() || kept.iter().any(|&i| i >= count) {
            return Err(ModelError::Input(format!("blocks {kept:?}: the model has blocks 0 to {}", count - 1)));
        }
        self.host = None;
        self.blocks = kept.iter().map(|&i| self.blocks[i].clone()).collect();
        self.spec.blocks = kept.iter().map(|&i| self.spec.blocks[i].clone()).collect();
        Ok(())
    }

    /// The blocks, first to last.
    pub fn blocks(&self) -> &[DecoderBlock] {
        &self.blocks
    }

    /// The blocks, to change their weights.
    pub fn blocks_mut(&mut self) -> &mut [DecoderBlock] {
        self.host = None;
        &mut self.blocks
    }

    /// Embedding, last norm and head.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Bytes that all weights hold in memory.
    pub fn bytes(&self) -> usize {
        self.ends.bytes() + self.blocks.iter().map(DecoderBlock::bytes).sum::<usize>()
    }

    /// An empty store of the right size.
    pub fn new_kv(&self) -> DenseKv {
        DenseKv::new(self.blocks.len(), &self.device)
    }

    /// Runs new tokens, rows of equal length, after the positions that `kv` holds.
    ///
    /// A shorter row is padded on the left: `padding[b]` tells how much, counted from position 0 of the store
    /// (empty: none). Returns logits `[batch, tokens or 1, vocabulary]`.
    pub fn forward(
        &self,
        ids: &[Vec<u32>],
        padding: &[usize],
        kv: &mut dyn KvStore,
        wanted: Wanted,
    ) -> Result<Tensor<3>> {
        self.run(ids, padding, kv, wanted, None)
    }

    /// Runs tokens of several texts as one row, each at its place `(position, length of its text)`, and gives the logits
    /// `[wanted, vocabulary]` after the tokens at `wanted`, row after row. `kv` knows which token belongs to which text.
    pub(crate) fn forward_at(
        &self,
        ids: Vec<u32>,
        places: &[(usize, usize)],
        kv: &mut dyn KvStore,
        wanted: &[usize],
    ) -> Result<Vec<f32>> {
        let ids = [ids];
        let tokens = check_rows(&ids, self.spec.vocab_size)?;
        if let Some(logits) = self.without_tensors(&ids[0], places, kv, wanted)? {
            return Ok(logits);
        }
        let rotary = Rotary::at(&self.spec.rope, places, &self.device);
        let mut x = self.ends.embed(&ids, &self.spec, &self.device)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, &mut ForwardCx { kv, layer, rotary: &rotary, tap: None })?;
        }
        if wanted.len() < tokens {
            let rows: Vec<i32> = wanted.iter().map(|&row| row as i32).collect();
            x = x.select(1, Tensor::<1, Int>::from_data(TensorData::new(rows, [wanted.len()]), &self.device));
        }
        to_host(self.ends.logits(self.ends.norm(x))?)
    }

    /// As [`Decoder::forward`] over a fresh store, with the input of every block and the normed output of the last:
    /// `hidden[k]` `[batch, tokens, features]`.
    pub fn forward_with_hidden(&self, ids: &[Vec<u32>]) -> Result<(Tensor<3>, Vec<Tensor<3>>)> {
        let mut hidden = Vec::with_capacity(self.blocks.len() + 1);
        let logits = self.run(ids, &[], &mut self.new_kv(), Wanted::AllLogits, Some(&mut hidden))?;
        Ok((logits, hidden))
    }

    /// Logits `[wanted, vocabulary]`, where the model, the device and the store can do without tensors on the way.
    fn without_tensors(
        &self,
        ids: &[u32],
        places: &[(usize, usize)],
        kv: &mut dyn KvStore,
        wanted: &[usize],
    ) -> Result<Option<Vec<f32>>> {
        let Some(host) = &self.host else { return Ok(None) };
        // Whoever comes second at the same time asks for memory anew.
        let (mut own, mut held) = (StepRoom::default(), self.room.try_lock());
        let room = held.as_deref_mut().unwrap_or(&mut own);
        Ok(host.forward(ids, places, kv, wanted, room)?.is_some().then(|| room.take_logits()))
    }

    fn run(
        &self,
        ids: &[Vec<u32>],
        padding: &[usize],
        kv: &mut dyn KvStore,
        wanted: Wanted,
        mut hidden: Option<&mut Vec<Tensor<3>>>,
    ) -> Result<Tensor<3>> {
        let tokens = check_rows(ids, self.spec.vocab_size)?;
        let start = kv.len(0);
        if start == 0 {
            kv.set_padding(padding.to_vec());
        }
        if let ([row], true, None) = (ids, padding.is_empty(), &hidden) {
            let places: Vec<(usize, usize)> = (start..start + tokens).map(|at| (at, start + tokens)).collect();
            let rows: Vec<usize> = (if wanted == Wanted::LastLogits { tokens - 1 } else { 0 }..tokens).collect();
            if let Some(logits) = self.without_tensors(row, &places, kv, &rows)? {
                let shape = [1, rows.len(), self.spec.vocab_size];
                return Ok(Tensor::from_data(TensorData::new(logits, shape), &self.device));
            }
        }
        let rotary = Rotary::new(&self.spec.rope, start, tokens, padding, &self.device);
        let mut x = self.ends.embed(ids, &self.spec, &self.device)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            if let Some(hidden) = &mut hidden {
                hidden.push(x.clone());
            }
            x = block.forward(x, &mut ForwardCx { kv, layer, rotary: &rotary, tap: None })?;
        }
        if wanted == Wanted::LastLogits {
            x = x.slice(s![.., tokens - 1..tokens, ..]);
        }
        let x = self.ends.norm(x);
        if let Some(hidden) = hidden {
            hidden.push(x.clone());
        }
        self.ends.logits(x)
    }
}

/// The common length of the rows; an error if there is none, or an id is not in the vocabulary.
pub(crate) fn check_rows(ids: &[Vec<u32>], vocab: usize) -> Result<usize> {
    let tokens = ids.first().map_or(0, Vec::len);
    if tokens == 0 || ids.iter().any(|row| row.len() != tokens) {
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        return Err(ModelError::Input(format!("token ids: expected rows of one length above 0, found {lengths:?}")));
    }
    match ids.iter().flatten().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(ModelError::Input(format!("token id {id} is outside the vocabulary of {vocab}"))),
        None => Ok(tokens),
    }
}

/// All values, row after row.
pub(crate) fn to_host(logits: Tensor<3>) -> Result<Vec<f32>> {
    let values = logits.into_data().try_into_vec::<f32>();
    values.map_err(|error| ModelError::Input(format!("logits: {error:?}")))
}

/// Rows of ids as one tensor.
pub(crate) fn ids_tensor(ids: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let flat: Vec<i32> = ids.iter().flatten().map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(flat, [ids.len(), ids.first().map_or(0, Vec::len)]), device)
}
