//! A dense key-value store: every position, in f32, in one growing buffer per layer.

mod memory;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation::softmax, s};
use kindling_core::{AttendSpec, Error, KvMemory, KvStore, Result};
use kindling_tensor_backend::ops::{attention, attention_tree, on_flex, room};

use self::memory::Memory;

/// Queries attended at a time: bounds the scores held in memory.
const QUERY_CHUNK: usize = 128;

/// What a masked score becomes. Finite, so that a row of padding gives numbers instead of NaN.
const MASKED: f32 = -1e30;

/// Keeps all keys and values as they come.
pub struct DenseKv {
    device: Device,
    layers: Vec<Option<Layer>>,
    padding: Vec<usize>,
    /// Positions to make room for at once.
    expected: usize,
}

#[allow(clippy::large_enum_variant, reason = "one per block")]
enum Layer {
    /// What has come so far, `[batch, kv heads, capacity, width]`: what a prompt leaves, and all that other devices and training
    /// need.
    Tensors { keys: Tensor<4>, values: Tensor<4>, len: usize },
    /// On the processor, once there is more to come.
    Memory(Memory),
}

impl Layer {
    fn len(&self) -> usize {
        match self {
            Layer::Tensors { len, .. } => *len,
            Layer::Memory(memory) => memory.len,
        }
    }

    /// `[batch, kv heads]`, the positions that there is room for, and the widths of keys and values.
    fn shape(&self) -> ([usize; 2], usize, [usize; 2]) {
        match self {
            Layer::Tensors { keys, values, .. } => {
                let [batch, heads, capacity, width] = keys.dims();
                ([batch, heads], capacity, [width, values.dims()[3]])
            }
            Layer::Memory(memory) => {
                let (heads, widths) = memory.shape();
                (heads, memory.capacity(), widths)
            }
        }
    }
}

impl DenseKv {
    /// An empty store for a model of `layers` blocks.
    pub fn new(layers: usize, device: &Device) -> Self {
        let layers = (0..layers).map(|_| None).collect();
        Self { device: device.clone(), layers, padding: Vec::new(), expected: 0 }
    }

    /// Says how many positions there will be, so that memory is asked for once. There may be more.
    pub fn expect(&mut self, positions: usize) {
        self.expected = positions;
    }

    /// Bytes that the buffers hold, spare capacity included.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(|layer| bytes(layer, layer.shape().1)).sum()
    }

    /// Bytes of the keys and values of so many positions, which a new token reads.
    pub fn bytes_of(&self, positions: usize) -> usize {
        self.layers.iter().flatten().map(|layer| bytes(layer, positions)).sum()
    }

    fn layer(&mut self, layer: usize) -> Result<&mut Option<Layer>> {
        let count = self.layers.len();
        self.layers.get_mut(layer).ok_or_else(|| Error::Invalid(format!("layer {layer} of a store of {count} layers")))
    }

    /// Brings what the layer holds into memory that is written in place, with room for `tokens` more. Nothing happens to an empty
    /// layer, to rows of different lengths, elsewhere than on the processor, and while gradients are wanted.
    fn move_to_memory(&mut self, layer: usize, tokens: usize) -> Result<()> {
        let expected = self.expected;
        if !self.padding.is_empty() {
            return Ok(());
        }
        let slot = self.layer(layer)?;
        if let Some(Layer::Tensors { keys, values, len }) = slot
            && on_flex(keys)
            && on_flex(values)
        {
            let visible = |x: &Tensor<4>| x.clone().slice(s![.., .., 0..*len, ..]);
            let capacity = (*len + tokens).max(2 * *len).max(expected).next_multiple_of(16);
            *slot = Some(Layer::Memory(Memory::new(visible(keys), visible(values), capacity)?));
        }
        Ok(())
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

fn bytes(layer: &Layer, positions: usize) -> usize {
    let ([batch, heads], _, [width, value_width]) = layer.shape();
    4 * batch * heads * positions * (width + value_width)
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
        self.layers.get(layer).and_then(Option::as_ref).map_or(0, Layer::len)
    }

    fn append(&mut self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> Result<()> {
        let [batch, heads, tokens, _] = keys.dims();
        if let Some(held) = self.layer(layer)? {
            let (found, ..) = held.shape();
            if [batch, heads] != found {
                return Err(Error::Shape {
                    what: "keys to append".into(),
                    expected: found.to_vec(),
                    found: vec![batch, heads],
                });
            }
        }
        if on_flex(&keys) && on_flex(&values) {
            self.move_to_memory(layer, tokens)?;
        }
        match self.layer(layer)? {
            slot @ None => *slot = Some(Layer::Tensors { keys, values, len: tokens }),
            Some(Layer::Memory(memory)) => memory.append(keys, values)?,
            Some(Layer::Tensors { keys: held_keys, values: held_values, len }) => {
                let (from, to) = (*len, *len + tokens);
                held_keys.inplace(|k| grown(k, from, to).slice_assign(s![.., .., from..to, ..], keys));
                held_values.inplace(|v| grown(v, from, to).slice_assign(s![.., .., from..to, ..], values));
                *len = to;
            }
        }
        Ok(())
    }

    fn attend(&mut self, layer: usize, queries: Tensor<4>, spec: &AttendSpec) -> Result<Tensor<4>> {
        let Some(held) = self.layers.get(layer).and_then(Option::as_ref) else {
            return Err(Error::Invalid(format!("attention over layer {layer}, which holds nothing")));
        };
        let [batch, heads, tokens, width] = queries.dims();
        let ([held_batch, kv_heads], _, [key_width, _]) = held.shape();
        if batch != held_batch || heads % kv_heads != 0 || tokens > held.len() || width != key_width {
            return Err(Error::Shape {
                what: format!("queries over {kv_heads} key heads and {} positions", held.len()),
                expected: vec![held_batch, kv_heads, held.len(), key_width],
                found: queries.dims().to_vec(),
            });
        }
        let (keys, values, len) = match held {
            Layer::Memory(memory) => return memory.attend(queries, None, spec, &self.device),
            Layer::Tensors { keys, values, len } => (keys, values, *len),
        };
        if self.padding.is_empty() {
            // A slice of everything would still cost a copy on the way back through autodiff.
            let visible = |x: &Tensor<4>| {
                if x.dims()[2] == len { x.clone() } else { x.clone().slice(s![.., .., 0..len, ..]) }
            };
            return Ok(attention(queries, visible(keys), visible(values), spec));
        }
        let mut parts = Vec::with_capacity(tokens.div_ceil(QUERY_CHUNK));
        for start in (0..tokens).step_by(QUERY_CHUNK) {
            let count = QUERY_CHUNK.min(tokens - start);
            let from = len - tokens + start;
            let to = from + count;
            let first = spec.window.map_or(0, |w| (from + 1).saturating_sub(w));
            let keys = keys.clone().slice(s![.., .., first..to, ..]);
            let values = values.clone().slice(s![.., .., first..to, ..]);
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
                Some(Layer::Tensors { len: held, .. }) => *held = len.min(*held),
                Some(Layer::Memory(memory)) => memory.len = len.min(memory.len),
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
        let Some(held) = self.layers.get(layer).and_then(Option::as_ref).filter(|held| held.len() >= tokens) else {
            return Err(Error::Invalid(format!("a tree of {tokens} tokens in layer {layer}, which holds fewer")));
        };
        let later = parents.iter().enumerate().any(|(t, parent)| parent.is_some_and(|parent| parent >= t));
        let ([_, kv_heads], ..) = held.shape();
        if parents.len() != tokens || later || heads % kv_heads != 0 || !self.padding.is_empty() {
            return Err(Error::Invalid(format!(
                "{tokens} queries of {heads} heads over {kv_heads}, without padding, need as many parents, each earlier; found {parents:?}"
            )));
        }
        match held {
            Layer::Memory(memory) => memory.attend(queries, Some(parents), spec, &self.device),
            Layer::Tensors { keys, values, len } => {
                let visible = |x: &Tensor<4>| x.clone().slice(s![.., .., 0..*len, ..]);
                Ok(attention_tree(queries, visible(keys), visible(values), parents, spec))
            }
        }
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
            let (keys, values, len) = match held {
                Layer::Memory(memory) => {
                    memory.gather(from, rows);
                    continue;
                }
                Layer::Tensors { keys, values, len } => (keys, values, len),
            };
            let to = from + rows.len();
            for buffer in [keys, values] {
                buffer.inplace(|x| {
                    let kept = x.clone().select(2, moved.clone());
                    x.slice_assign(s![.., .., from..to, ..], kept)
                });
            }
            *len = to;
        }
        Ok(())
    }

    fn in_memory(&mut self, layer: usize, tokens: usize) -> Option<KvMemory<'_>> {
        self.move_to_memory(layer, tokens).ok()?;
        match self.layers.get_mut(layer)? {
            Some(Layer::Memory(memory)) => memory.extend(tokens),
            _ => None,
        }
    }

    fn set_padding(&mut self, padding: Vec<usize>) {
        self.padding = if padding.iter().all(|&p| p == 0) { Vec::new() } else { padding };
    }
}
