//! What a tree looks like.

use serde::{Deserialize, Serialize};

use super::bucket::Buckets;
use super::node::{Kind, Node};
use super::tree::{Project, Tree};

/// What a tree looks like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Keys.
    pub len: usize,
    /// Nodes that place keys by a line.
    pub model_nodes: usize,
    /// Tables of children, above keys that no line carries.
    pub fans: usize,
    /// Small sorted arrays, and large ones of keys with one coordinate.
    pub flat_nodes: usize,
    /// Buckets of all model nodes.
    pub buckets: usize,
    /// Keys in the bucket where they belong; the others flowed on, or lie in flat nodes.
    pub in_place: usize,
    /// `depths[d]`: keys whose look-up passes `d + 1` nodes.
    pub depths: Vec<usize>,
    /// Bytes of nodes, tables and states of buckets.
    pub model_bytes: usize,
    /// Bytes of pairs, their free room included.
    pub data_bytes: usize,
    /// Bytes of all memory that the tree holds.
    pub total_bytes: usize,
}

impl Shape {
    /// Nodes that a look-up of a present key passes, on average.
    pub fn mean_depth(&self) -> f64 {
        let sum: usize = self.depths.iter().enumerate().map(|(d, keys)| (d + 1) * keys).sum();
        sum as f64 / self.len.max(1) as f64
    }
}

impl<K: Copy + Ord, V, P: Project<K>> Tree<K, V, P> {
    /// What the tree looks like.
    pub(crate) fn shape(&self) -> Shape {
        let mut shape = Shape { len: self.root.len, total_bytes: self.bytes(), ..Shape::default() };
        // SAFETY: the root is a node of this tree.
        unsafe { self.describe(&self.root, 0, &mut shape) };
        shape
    }

    /// # Safety
    /// `node` is a node of this tree.
    unsafe fn describe(&self, node: &Node<P::C>, depth: usize, shape: &mut Shape) {
        let mut at_depth = |keys: usize| {
            shape.depths.resize(shape.depths.len().max(depth + 1), 0);
            shape.depths[depth] += keys;
        };
        let room = node.room as usize;
        // SAFETY: invariants 1 and 2.
        unsafe {
            match node.kind {
                Kind::Flat => {
                    at_depth(node.len);
                    shape.flat_nodes += 1;
                    shape.data_bytes += room * size_of::<(K, V)>();
                }
                Kind::Fan => {
                    shape.fans += 1;
                    shape.model_bytes += room * size_of::<Node<P::C>>() + node.words() * size_of::<u64>();
                    for i in 0..room {
                        self.describe(&*node.data.cast::<Node<P::C>>().add(i), depth + 1, shape);
                    }
                }
                Kind::Model => {
                    let buckets = Buckets::<K, V>::of(node);
                    shape.model_nodes += 1;
                    shape.buckets += room;
                    shape.model_bytes += room;
                    shape.data_bytes += room * Buckets::<K, V>::PER * size_of::<(K, V)>();
                    for i in 0..room {
                        let state = buckets.state(i);
                        if state.is_child() {
                            shape.model_bytes += size_of::<Node<P::C>>();
                            self.describe(&*buckets.child(i), depth + 1, shape);
                            continue;
                        }
                        shape.depths.resize(shape.depths.len().max(depth + 1), 0);
                        shape.depths[depth] += state.len();
                        let in_place =
                            |j: &usize| node.place(self.project.project(&(*buckets.pairs(i).add(*j)).0)) == i;
                        shape.in_place += (0..state.len()).filter(in_place).count();
                    }
                }
            }
        }
    }
}
