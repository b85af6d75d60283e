//! What every index over scalar keys can do; the standard library's `BTreeMap` among them.

use std::collections::BTreeMap;
use std::ops::Bound;

/// Finds values by key.
pub trait PointIndex<K, V> {
    /// How many keys it holds.
    fn len(&self) -> usize;

    /// Whether it holds no key.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of `key`.
    fn get(&self, key: &K) -> Option<&V>;

    /// The values of `keys`, in their order, into `out`, which is cleared first. An index that can overlap the
    /// memory accesses of several keys does so here.
    fn get_batch<'a>(&'a self, keys: &[K], out: &mut Vec<Option<&'a V>>) {
        out.clear();
        out.extend(keys.iter().map(|key| self.get(key)));
    }

    /// Bytes of memory that keys, values and the structure around them take.
    fn bytes(&self) -> usize;
}

/// An index that knows the order of its keys.
pub trait OrderedIndex<K, V>: PointIndex<K, V> {
    /// Visits up to `limit` pairs with keys from `from` on, in ascending order. Returns how many.
    fn scan(&self, from: &K, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize;
}

/// An index that can change.
pub trait IndexMut<K, V>: PointIndex<K, V> {
    /// Gives `key` a value and returns the one it had.
    fn insert(&mut self, key: K, value: V) -> Option<V>;

    /// Inserts pairs in their order. An index that can overlap the memory accesses of several pairs does so here.
    fn insert_batch(&mut self, pairs: &[(K, V)])
    where
        K: Clone,
        V: Clone,
    {
        for (key, value) in pairs {
            self.insert(key.clone(), value.clone());
        }
    }

    /// Takes `key` out and returns its value.
    fn remove(&mut self, key: &K) -> Option<V>;
}

impl<K: Ord, V> PointIndex<K, V> for BTreeMap<K, V> {
    fn len(&self) -> usize {
        self.len()
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.get(key)
    }

    /// An estimate, as the tree does not tell: leaves of 11 pairs that are three quarters full, each with a header of 16
    /// bytes, and an eighth as many inner nodes with 12 pointers more.
    fn bytes(&self) -> usize {
        let leaf = 11 * size_of::<(K, V)>() + 16;
        let leaves = self.len() * 4 / (11 * 3) + usize::from(!self.is_empty());
        leaves * leaf + leaves / 8 * (leaf + 96)
    }
}

impl<K: Ord, V> OrderedIndex<K, V> for BTreeMap<K, V> {
    fn scan(&self, from: &K, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize {
        let pairs = self.range((Bound::Included(from), Bound::Unbounded)).take(limit);
        pairs.map(|(key, value)| visit(key, value)).count()
    }
}

impl<K: Ord, V> IndexMut<K, V> for BTreeMap<K, V> {
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.insert(key, value)
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        self.remove(key)
    }
}
