//! What every index over scalar keys can do.

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

    /// Takes `key` out and returns its value.
    fn remove(&mut self, key: &K) -> Option<V>;
}
