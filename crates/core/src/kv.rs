//! What attention remembers.

use burn::tensor::Tensor;

use crate::{Error, Result};

/// How scores become weights.
#[derive(Debug, Clone, PartialEq)]
pub struct AttendSpec {
    /// Factor on `q · k`.
    pub scale: f64,
    /// `cap · tanh(score / cap)` before the softmax.
    pub softcap: Option<f64>,
    /// A query sees only this many most recent positions, itself included.
    pub window: Option<usize>,
}

/// Keys and values of a layer where they lie, in f32: `[kv heads, capacity, width]` each.
pub struct KvMemory<'a> {
    /// All keys.
    pub keys: &'a mut [f32],
    /// All values.
    pub values: &'a mut [f32],
    /// Heads of keys, and of values.
    pub kv_heads: usize,
    /// Positions that there is room for.
    pub capacity: usize,
    /// Positions that are taken, those to be written included.
    pub len: usize,
    /// Of which tree the new positions are the nodes, as [`KvStore::attend_tree`] takes it; `None`: of a chain.
    pub parents: Option<&'a [Option<usize>]>,
}

/// Keys and values of every layer, and attention over them.
///
/// Shapes: queries `[batch, heads, tokens, key width]`, keys `[batch, kv heads, tokens, key width]`, values
/// `[batch, kv heads, tokens, value width]`; `heads` is a multiple of `kv heads` and consecutive query heads
/// share a key head. All rows of a batch advance together; a shorter row is padded on the left, see
/// [`KvStore::set_padding`].
pub trait KvStore: Send {
    /// How many positions `layer` holds.
    fn len(&self, layer: usize) -> usize;

    /// Appends the keys and values of new positions to `layer`.
    fn append(&mut self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> Result<()>;

    /// Attention of the newest positions over all that `layer` holds, causally: query `t` of `n` sees every
    /// position up to `len − n + t`. Returns `[batch, heads, tokens, value width]`.
    fn attend(&mut self, layer: usize, queries: Tensor<4>, spec: &AttendSpec) -> Result<Tensor<4>>;

    /// Forgets every position from `len` on, in every layer.
    fn truncate(&mut self, len: usize) -> Result<()>;

    /// Whether [`attend_tree`](Self::attend_tree) and [`gather`](Self::gather) do all that they describe.
    fn takes_trees(&self) -> bool {
        false
    }

    /// As [`attend`](Self::attend), where the newest positions are a tree: `parents[t]` is the earlier one among them that
    /// position `t` follows; `None`: it follows all older positions. A query sees these, its ancestors and itself; a
    /// window counts along that path.
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
        Err(Error::Invalid("this cache does not attend over trees of tokens: draft chains".into()))
    }

    /// Of the positions from `from` on, keeps `from + rows[0]`, `from + rows[1]`, …, ascending, and no others, in every
    /// layer.
    fn gather(&mut self, from: usize, rows: &[usize]) -> Result<()> {
        if rows.iter().enumerate().all(|(i, row)| *row == i) {
            return self.truncate(from + rows.len());
        }
        Err(Error::Invalid("this cache does not drop positions between others: draft chains".into()))
    }

    /// Appends `tokens` positions to `layer` whose keys and values the caller writes where they belong. `None`, and nothing is
    /// changed, where the store does not hold those of one text, as they are, in the processor's memory: then
    /// [`append`](Self::append) and [`attend`](Self::attend) do it.
    fn in_memory(&mut self, layer: usize, tokens: usize) -> Option<KvMemory<'_>> {
        let _ = (layer, tokens);
        None
    }

    /// The first `padding[b]` positions of row `b` are padding: no query sees them. Set before the first append.
    fn set_padding(&mut self, padding: Vec<usize>);
}
