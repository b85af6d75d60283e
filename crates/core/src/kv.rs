//! What attention remembers.

use burn::tensor::Tensor;

use crate::Result;

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

    /// The first `padding[b]` positions of row `b` are padding: no query sees them. Set before the first append.
    fn set_padding(&mut self, padding: Vec<usize>);
}
