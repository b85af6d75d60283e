//! A four-dimensional tensor in memory, seen as rows.

/// `[batch, heads, tokens, width]` with any strides but the last, which is 1.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub(super) shape: [usize; 4],
    pub(super) values: &'a [f32],
    /// Steps between batches, heads and tokens.
    pub(super) strides: [usize; 3],
}

impl<'a> Rows<'a> {
    /// Values of which batches, heads and tokens are `strides` apart.
    ///
    /// # Panics
    /// If a row lies outside the slice.
    pub fn new(values: &'a [f32], shape: [usize; 4], strides: [usize; 3]) -> Self {
        let last: usize = shape.iter().zip(strides).map(|(n, stride)| n.saturating_sub(1) * stride).sum();
        assert!(shape.contains(&0) || last + shape[3] <= values.len(), "{shape:?} in {} values", values.len());
        Self { shape, values, strides }
    }

    /// Values laid out in order.
    pub(super) fn contiguous(shape: [usize; 4], values: &'a [f32]) -> Self {
        let [_, heads, tokens, width] = shape;
        Self { shape, values, strides: [heads * tokens * width, tokens * width, width] }
    }

    fn start(&self, batch: usize, head: usize, token: usize) -> usize {
        batch * self.strides[0] + head * self.strides[1] + token * self.strides[2]
    }

    /// One head at one token.
    pub(super) fn row(&self, batch: usize, head: usize, token: usize) -> &'a [f32] {
        &self.values[self.start(batch, head, token)..][..self.shape[3]]
    }

    /// Tokens `from..to` of a head: a matrix whose rows are [`token_stride`](Self::token_stride) apart.
    pub(super) fn matrix(&self, batch: usize, head: usize, from: usize, to: usize) -> &'a [f32] {
        if from == to {
            return &[];
        }
        &self.values[self.start(batch, head, from)..self.start(batch, head, to - 1) + self.shape[3]]
    }

    /// Steps from one token to the next.
    pub(super) fn token_stride(&self) -> usize {
        self.strides[2]
    }
}
