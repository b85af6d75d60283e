//! A sorted array in the order of a breadth-first walk over its search tree: the first steps of all searches share
//! cache lines.
//!
//! Source: "Array Layouts for Comparison-Based Searching", arXiv 1509.05053.

use kindling_core::PointIndex;

/// Keys and values by the position of their node; node `i` has the children `2i + 1` and `2i + 2`.
#[derive(Debug, Clone)]
pub struct Eytzinger<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Ord, V> Eytzinger<K, V> {
    /// Of pairs that ascend.
    pub fn from_ascending(pairs: Vec<(K, V)>) -> Self {
        let n = pairs.len();
        // Walking the nodes in order takes the pairs in order.
        let mut order = Vec::with_capacity(n);
        let (mut stack, mut node) = (Vec::new(), 0);
        while node < n || !stack.is_empty() {
            while node < n {
                stack.push(node);
                node = 2 * node + 1;
            }
            if let Some(top) = stack.pop() {
                order.push(top);
                node = 2 * top + 2;
            }
        }
        let mut placed: Vec<(usize, (K, V))> = order.into_iter().zip(pairs).collect();
        placed.sort_unstable_by_key(|pair| pair.0);
        let (keys, values) = placed.into_iter().map(|pair| pair.1).unzip();
        Self { keys, values }
    }
}

impl<K: Ord, V> PointIndex<K, V> for Eytzinger<K, V> {
    fn len(&self) -> usize {
        self.keys.len()
    }

    fn get(&self, key: &K) -> Option<&V> {
        let mut node = 0;
        while node < self.keys.len() {
            node = 2 * node + 1 + usize::from(self.keys[node] < *key);
        }
        // The last step to the left was at the first key that is not smaller.
        let at = ((node + 1) >> ((node + 1).trailing_ones() + 1)).checked_sub(1)?;
        (self.keys[at] == *key).then(|| &self.values[at])
    }

    fn bytes(&self) -> usize {
        self.keys.capacity() * size_of::<K>() + self.values.capacity() * size_of::<V>()
    }
}
