//! A sorted array and binary search.

use kindling_core::{OrderedIndex, PointIndex};

use super::{lower_bound, visit_from};

/// Keys and values in two arrays.
#[derive(Debug, Clone)]
pub struct SortedArray<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Ord, V> SortedArray<K, V> {
    /// Of pairs that ascend.
    pub fn from_ascending(pairs: Vec<(K, V)>) -> Self {
        let (keys, values) = pairs.into_iter().unzip();
        Self { keys, values }
    }
}

impl<K: Ord, V> PointIndex<K, V> for SortedArray<K, V> {
    fn len(&self) -> usize {
        self.keys.len()
    }

    fn get(&self, key: &K) -> Option<&V> {
        let at = lower_bound(&self.keys, key);
        (self.keys.get(at)? == key).then(|| &self.values[at])
    }

    fn bytes(&self) -> usize {
        self.keys.capacity() * size_of::<K>() + self.values.capacity() * size_of::<V>()
    }
}

impl<K: Ord, V> OrderedIndex<K, V> for SortedArray<K, V> {
    fn scan(&self, from: &K, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize {
        visit_from(&self.keys, &self.values, lower_bound(&self.keys, from), limit, visit)
    }
}
