//! The edges of an automaton's states, those of one state together.
//!
//! A state's block has a length that is a power of two. Up to eight edges fill it from its start, one cache line to look
//! through; more are hashed by token within it, at most three quarters full. A block that is full moves to one twice as
//! long, and what it leaves is used again.

/// An edge, by its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) token: u32,
    /// The state it leads to, perhaps with [`SOLID`]. None leads to the root: 0 means that there is no edge here.
    pub(super) to: u32,
}

pub(super) const FREE: Edge = Edge { token: 0, to: 0 };

/// Marks an edge to a state whose longest n-gram is one token longer than that of the state it comes from: to compare
/// the lengths themselves would be one more access to memory.
pub(super) const SOLID: u32 = 1 << 31;

impl Edge {
    pub(super) fn state(self) -> u32 {
        self.to & !SOLID
    }

    pub(super) fn is_solid(self) -> bool {
        self.to & SOLID != 0
    }
}

/// Where the edges of a state begin, and how many they are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Block {
    start: u32,
    edges: u32,
}

/// A block is not hashed up to this length.
const SCANNED: usize = 8;

impl Block {
    fn slots(self) -> usize {
        match self.edges as usize {
            0 => 0,
            edges if edges <= SCANNED => edges.max(2).next_power_of_two(),
            edges => (edges + edges / 3 + 1).next_power_of_two(),
        }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.slots()
    }
}

/// All blocks.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    pub(super) edges: Vec<Edge>,
    /// The starts of blocks that were left, by the logarithm of their length.
    left: Vec<Vec<u32>>,
}

/// The first place in a block, from where `token` belongs, that holds it or is free; `None`: the block is full of others.
fn place(slots: &[Edge], token: u32) -> Option<usize> {
    let (bits, last) = (slots.len().trailing_zeros(), slots.len().wrapping_sub(1));
    // The top bits of the product depend on all bits of the token.
    let start = if slots.len() <= SCANNED { 0 } else { (token.wrapping_mul(0x9e37_79b9) >> (32 - bits)) as usize };
    let mut places = (start..start + slots.len()).map(|at| at & last);
    places.find(|&at| slots[at].to == 0 || slots[at].token == token)
}

impl Pool {
    pub(super) fn bytes(&self) -> usize {
        let left: usize = self.left.iter().map(|starts| starts.capacity() * size_of::<u32>()).sum();
        self.edges.capacity() * size_of::<Edge>() + left
    }

    pub(super) fn clear(&mut self) {
        self.edges.clear();
        self.left.iter_mut().for_each(Vec::clear);
    }

    /// The places of a block, free ones among them.
    pub(super) fn slots(&self, block: Block) -> &[Edge] {
        &self.edges[block.range()]
    }

    /// Where in `edges` the edge of a token is.
    pub(super) fn find(&self, block: Block, token: u32) -> Option<usize> {
        let slots = self.slots(block);
        place(slots, token).filter(|&at| slots[at].to != 0).map(|at| block.start as usize + at)
    }

    /// Adds an edge whose token the block does not have.
    pub(super) fn insert(&mut self, block: &mut Block, edge: Edge) {
        let old = *block;
        block.edges += 1;
        if block.slots() != old.slots() {
            block.start = self.take(block.slots());
            for at in old.range() {
                let moved = std::mem::replace(&mut self.edges[at], FREE);
                self.put(*block, moved);
            }
            if old.edges > 0 {
                self.left[old.slots().ilog2() as usize].push(old.start);
            }
        }
        self.put(*block, edge);
    }

    fn put(&mut self, block: Block, edge: Edge) {
        let slots = &mut self.edges[block.range()];
        if let Some(at) = place(slots, edge.token).filter(|_| edge.to != 0) {
            slots[at] = edge;
        }
    }

    /// A copy of a block, its edges changed.
    pub(super) fn copy(&mut self, block: Block, change: impl Fn(Edge) -> Edge) -> Block {
        if block.edges == 0 {
            return block;
        }
        let start = self.take(block.slots());
        for (i, at) in block.range().enumerate() {
            self.edges[start as usize + i] = change(self.edges[at]);
        }
        Block { start, ..block }
    }

    /// So many free places, a power of two.
    fn take(&mut self, len: usize) -> u32 {
        let class = len.ilog2() as usize;
        if self.left.len() <= class {
            self.left.resize(class + 1, Vec::new());
        }
        self.left[class].pop().unwrap_or_else(|| {
            let start = self.edges.len();
            self.edges.resize(start + len, FREE);
            start as u32
        })
    }
}
