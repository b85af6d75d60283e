//! Keys and values of one layer in the processor's memory, written where they belong.

use burn::tensor::{Device, Tensor, TensorData};
use kindling_core::{AttendSpec, Error, KvMemory, Result};
use kindling_tensor_backend::ops::host::{self, Rows};

/// `[batch, kv heads, capacity, width]` twice, of which the first `len` positions are taken.
pub(super) struct Memory {
    batch: usize,
    kv_heads: usize,
    capacity: usize,
    pub(super) len: usize,
    keys: Side,
    values: Side,
}

struct Side {
    width: usize,
    held: Vec<f32>,
}

impl Side {
    /// Writes the positions `from..from + tokens` of all `heads`, of which there is room for `capacity` each.
    fn write(&mut self, from: usize, tokens: usize, capacity: usize, new: &[f32]) {
        let (stride, run) = (capacity * self.width, tokens * self.width);
        for (held, new) in self.held.chunks_exact_mut(stride).zip(new.chunks_exact(run)) {
            held[from * self.width..][..run].copy_from_slice(new);
        }
    }

    fn grow(&mut self, heads: usize, len: usize, from: usize, to: usize) {
        let mut held = host::room(heads * to * self.width);
        for (new, old) in held.chunks_exact_mut(to * self.width).zip(self.held.chunks_exact(from * self.width)) {
            new[..len * self.width].copy_from_slice(&old[..len * self.width]);
        }
        self.held = held;
    }

    /// Moves position `from + rows[i]` to `from + i`.
    fn gather(&mut self, from: usize, rows: &[usize], capacity: usize) {
        for held in self.held.chunks_exact_mut(capacity * self.width) {
            for (i, row) in rows.iter().enumerate() {
                let source = (from + row) * self.width;
                held.copy_within(source..source + self.width, (from + i) * self.width);
            }
        }
    }
}

impl Memory {
    /// Takes keys and values `[batch, kv heads, tokens, width]`, with room for `capacity` positions.
    pub(super) fn new(keys: Tensor<4>, values: Tensor<4>, capacity: usize) -> Result<Self> {
        let ([batch, kv_heads, tokens, width], value_width) = (keys.dims(), values.dims()[3]);
        let side = |width: usize| Side { width, held: host::room(batch * kv_heads * capacity * width) };
        let mut made = Self { batch, kv_heads, capacity, len: 0, keys: side(width), values: side(value_width) };
        made.append(keys, values)?;
        debug_assert_eq!(made.len, tokens);
        Ok(made)
    }

    /// `[batch, kv heads]` and the widths of keys and values.
    pub(super) fn shape(&self) -> ([usize; 2], [usize; 2]) {
        ([self.batch, self.kv_heads], [self.keys.width, self.values.width])
    }

    /// Positions that there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `tokens` more.
    fn reserve(&mut self, tokens: usize) {
        let needed = self.len + tokens;
        if needed > self.capacity {
            let to = needed.max(2 * self.capacity).next_multiple_of(16);
            let heads = self.batch * self.kv_heads;
            self.keys.grow(heads, self.len, self.capacity, to);
            self.values.grow(heads, self.len, self.capacity, to);
            self.capacity = to;
        }
    }

    pub(super) fn append(&mut self, keys: Tensor<4>, values: Tensor<4>) -> Result<()> {
        let tokens = keys.dims()[2];
        self.reserve(tokens);
        for (side, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            side.write(self.len, tokens, self.capacity, &to_host(new)?);
        }
        self.len += tokens;
        Ok(())
    }

    /// Attention of the newest positions, a tree if there are `parents`.
    pub(super) fn attend(
        &self,
        queries: Tensor<4>,
        parents: Option<&[Option<usize>]>,
        spec: &AttendSpec,
        device: &Device,
    ) -> Result<Tensor<4>> {
        let [batch, heads, tokens, width] = queries.dims();
        let values = to_host(queries)?;
        let queries =
            Rows::new(&values, [batch, heads, tokens, width], [heads * tokens * width, tokens * width, width]);
        let mut out = vec![0.0; batch * tokens * heads * self.values.width];
        let [keys, values] = self.rows();
        host::attention([&queries, &keys, &values], parents, spec, self.len, &mut Vec::new(), &mut out);
        let out = Tensor::<4>::from_data(TensorData::new(out, [batch, tokens, heads, self.values.width]), device);
        Ok(out.swap_dims(1, 2))
    }

    fn rows(&self) -> [Rows<'_>; 2] {
        [&self.keys, &self.values].map(|side| {
            let head = self.capacity * side.width;
            let shape = [self.batch, self.kv_heads, self.len, side.width];
            Rows::new(&side.held, shape, [self.kv_heads * head, head, side.width])
        })
    }

    /// See [`KvStore::gather`](kindling_core::KvStore::gather).
    pub(super) fn gather(&mut self, from: usize, rows: &[usize]) {
        self.keys.gather(from, rows, self.capacity);
        self.values.gather(from, rows, self.capacity);
        self.len = from + rows.len();
    }

    /// See [`KvStore::in_memory`](kindling_core::KvStore::in_memory).
    pub(super) fn extend(&mut self, tokens: usize) -> Option<KvMemory<'_>> {
        if self.batch != 1 {
            return None;
        }
        self.reserve(tokens);
        self.len += tokens;
        let (kv_heads, capacity, len) = (self.kv_heads, self.capacity, self.len);
        let (keys, values) = (&mut self.keys.held[..], &mut self.values.held[..]);
        Some(KvMemory { keys, values, kv_heads, capacity, len, parents: None })
    }
}

fn to_host(x: Tensor<4>) -> Result<Vec<f32>> {
    let values = x.into_data().convert::<f32>().try_into_vec::<f32>();
    values.map_err(|error| Error::Invalid(format!("keys, values or queries: {error:?}")))
}
