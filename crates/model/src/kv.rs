//! A dense key-value store: every position, in f32, in one growing buffer per layer.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation::softmax, s};
use kindling_core::{AttendSpec, Error, KvStore, Result};
use kindling_tensor_backend::ops::{attention, attention_tree, room};

/// Queries attended at a time: bounds the scores held in memory.
const QUERY_CHUNK: usize = 128;

/// What a masked score becomes. Finite, so that a row of padding gives numbers instead of NaN.
const MASKED: f32 = -1e30;

/// Keeps all keys and values as they come.
pub struct DenseKv {
    device: Device,
    layers: Vec<Option<Layer>>,
    padding: Vec<usize>,
}

struct Layer {
    keys: Tensor<4>,
    values: Tensor<4>,
    len: usize,
}

impl DenseKv {
    /// An empty store for a model of `layers` blocks.
    pub fn new(layers: usize, device: &Device) -> Self {
        Self { device: device.clone(), layers: (0..layers).map(|_| None).collect(), padding: Vec::new() }
    }

    /// Bytes that the buffers hold, spare capacity included.
    pub fn bytes(&self) -> usize {
        let bytes = |t: &Tensor<4>| t.dims().iter().product::<usize>() * 4;
        self.layers.iter().flatten().map(|layer| bytes(&layer.keys) + bytes(&layer.values)).sum()
    }

    /// Bytes of the keys and values of so many positions, which a new token reads.
    pub fn bytes_of(&self, positions: usize) -> usize {
        let of = |t: &Tensor<4>| {
            let [batch, heads, _, width] = t.dims();
            batch * heads * positions * width * 4
        };
        self.layers.iter().flatten().map(|layer| of(&layer.keys) + of(&layer.values)).sum()
    }

    fn layer(&mut self, layer: usize) -> Result<&mut Option<Layer>> {
        let count = self.layers.len();
        self.layers.get_mut(layer).ok_or_else(|| Error::Invalid(format!("layer {layer} of a store of {count} layers")))
    }

    /// Which of `keys` positions from `first` on are hidden from each of the queries at `from..to`.
    fn mask(&self, batch: usize, from: usize, to: usize, first: usize, window: Option<usize>) -> Tensor<4, Bool> {
        let rows = if self.padding.is_empty() { 1 } else { batch };
        let mut hidden = Vec::with_capacity(rows * (to - from) * (to - first));
        for row in 0..rows {
            let padding = self.padding.get(row).copied().unwrap_or(0);
            for query in from..to {
                let oldest = window.map_or(0, |w| (query + 1).saturating_sub(w)).max(padding);
                hidden.extend((first..to).map(|key| key > query || key < oldest));
            }
        }
        Tensor::from_data(TensorData::new(hidden, [rows, 1, to - from, to - first]), &self.device)
    }
}

/// `buffer` with room for `needed` positions, its first `len` kept.
fn grown(buffer: Tensor<4>, len: usize, needed: usize) -> Tensor<4> {
    let [batch, heads, capacity, width] = buffer.dims();
    if needed <= capacity {
        return buffer;
    }
    let capacity = needed.max(2 * capacity).next_multiple_of(16);
    let device = buffer.device();
    let kept = buffer.slice(s![.., .., 0..len, ..]);
    room([batch, heads, capacity, width], &device).slice_assign(s![.., .., 0..len, ..], kept)
}

/// Attention of `queries` over `keys` and `values`; `mask` hides scores.
fn weighed(
    q: Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    mask: Option<Tensor<4, Bool>>,
    spec: &AttendSpec,
) -> Tensor<4> {
    let [batch, heads, tokens, width] = q.dims();
    let [_, kv_heads, positions, value_width] = values.dims();
    // The query heads of a group become rows over their one key head: nothing is repeated.
    let rows = [batch, kv_heads, heads / kv_heads * tokens];
    let q = q.mul_scalar(spec.scale).reshape([rows[0], rows[1], rows[2], width]);
    let mut scores = q.matmul(keys.swap_dims(2, 3));
    if let Some(cap) = spec.softcap {
        scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
    }
    let mut scores = scores.reshape([batch, heads, tokens, positions]);
    if let Some(mask) = mask {
        scores = scores.mask_fill(mask.expand([batch, heads, tokens, positions]), MASKED);
    }
    let weights = softmax(scores, 3).reshape([rows[0], rows[1], rows[2], positions]);
    weights.matmul(values).reshape([batch, heads, tokens, value_width])
}

impl KvStore for DenseKv {
    fn len(&self, layer: usize) -> usize {
        self.layers.get(layer).and_then(Option::as_ref).map_or(0, |layer| layer.len)
    }

    fn append(&mut self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> Result<()> {
        let slot = self.layer(layer)?;
        let [batch, heads, tokens, _] = keys.dims();
        match slot {
            None => *slot = Some(Layer { keys, values, len: tokens }),
            Some(held) => {
                let [held_batch, held_heads, _, _] = held.keys.dims();
                if [batch, heads] != [held_batch, held_heads] {
                    return Err(Error::Shape {
                        what: "keys to append".into(),
                        expected: vec![held_batch, held_heads],
                        found: vec![batch, heads],
                    });
                }
                let (from, to) = (held.len, held.len + tokens);
                held.keys.inplace(|k| grown(k, from, to).slice_assign(s![.., .., from..to, ..], keys));
                held.values.inplace(|v| grown(v, from, to).slice_assign(s![.., .., from..to, ..], values));
                held.len = to;
            }
        }
        Ok(())
    }

    fn attend(&mut self, layer: usize, queries: Tensor<4>, spec: &AttendSpec) -> Result<Tensor<4>> {
        let Some(held) = self.layers.get(layer).and_then(Option::as_ref) else {
            return Err(Error::Invalid(format!("attention over layer {layer}, which holds nothing")));
        };
        let [batch, heads, tokens, width] = queries.dims();
        let kv_heads = held.values.dims()[1];
        if heads % kv_heads != 0 || tokens > held.len {
            return Err(Error::Shape {
                what: format!("queries over {kv_heads} key heads and {} positions", held.len),
                expected: vec![batch, kv_heads, held.len, width],
                found: queries.dims().to_vec(),
            });
        }
        if self.padding.is_empty() {
            // A slice of everything would still cost a copy on the way back through autodiff.
            let visible = |x: &Tensor<4>| {
                if x.dims()[2] == held.len { x.clone() } else { x.clone().slice(s![.., .., 0..held.len, ..]) }
            };
            return Ok(attention(queries, visible(&held.keys), visible(&held.values), spec));
        }
        let mut parts = Vec::with_capacity(tokens.div_ceil(QUERY_CHUNK));
        for start in (0..tokens).step_by(QUERY_CHUNK) {
            let count = QUERY_CHUNK.min(tokens - start);
            let from = held.len - tokens + start;
            let to = from + count;
            let first = spec.window.map_or(0, |w| (from + 1).saturating_sub(w));
            let keys = held.keys.clone().slice(s![.., .., first..to, ..]);
            let values = held.values.clone().slice(s![.., .., first..to, ..]);
            let queries = queries.clone().slice(s![.., .., start..start + count, ..]);
            let masked = count > 1 || !self.padding.is_empty();
            let mask = masked.then(|| self.mask(batch, from, to, first, spec.window));
            parts.push(weighed(queries, keys, values, mask, spec));
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 2) })
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        for layer in &mut self.layers {
            match layer {
                Some(_) if len == 0 => *layer = None,
                Some(held) => held.len = held.len.min(len),
                None => {}
            }
        }
        Ok(())
    }

    fn takes_trees(&self) -> bool {
        self.padding.is_empty()
    }

    fn attend_tree(
        &mut self,
        layer: usize,
        queries: Tensor<4>,
        parents: &[Option<usize>],
        spec: &AttendSpec,
    ) -> Result<Tensor<4>> {
        if parents.iter().enumerate().all(|(t, parent)| *parent == t.checked_sub(1)) {
            return self.attend(layer, queries, spec);
        }
        let [_, heads, tokens, _] = queries.dims();
        let Some(held) = self.layers.get(layer).and_then(Option::as_ref).filter(|held| held.len >= tokens) else {
            return Err(Error::Invalid(format!("a tree of {tokens} tokens in layer {layer}, which holds fewer")));
        };
        let later = parents.iter().enumerate().any(|(t, parent)| parent.is_some_and(|parent| parent >= t));
        let kv_heads = held.values.dims()[1];
        if parents.len() != tokens || later || heads % kv_heads != 0 || !self.padding.is_empty() {
            return Err(Error::Invalid(format!(
                "{tokens} queries of {heads} heads over {kv_heads}, without padding, need as many parents, each earlier; found {parents:?}"
            )));
        }
        let visible = |x: &Tensor<4>| x.clone().slice(s![.., .., 0..held.len, ..]);
        Ok(attention_tree(queries, visible(&held.keys), visible(&held.values), parents, spec))
    }

    fn gather(&mut self, from: usize, rows: &[usize]) -> Result<()> {
        if rows.iter().enumerate().all(|(i, row)| *row == i) {
            return self.truncate(from + rows.len());
        }
        let len = self.len(0);
        if !rows.is_sorted_by(|a, b| a < b) || rows.last().is_some_and(|&last| from + last >= len) {
            return Err(Error::Invalid(format!(
                "rows {rows:?} after position {from} of {len}: they must ascend and exist"
            )));
        }
        let moved: Vec<i32> = rows.iter().map(|row| (from + row) as i32).collect();
        let moved = Tensor::<1, Int>::from_data(TensorData::new(moved, [rows.len()]), &self.device);
        for held in self.layers.iter_mut().flatten() {
            let to = from + rows.len();
            for buffer in [&mut held.keys, &mut held.values] {
                buffer.inplace(|x| {
                    let kept = x.clone().select(2, moved.clone());
                    x.slice_assign(s![.., .., from..to, ..], kept)
                });
            }
            held.len = to;
        }
        Ok(())
    }

    fn set_padding(&mut self, padding: Vec<usize>) {
        self.padding = if padding.iter().all(|&p| p == 0) { Vec::new() } else { padding };
    }
}
