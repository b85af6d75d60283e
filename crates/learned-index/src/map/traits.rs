//! What the standard library asks of a map.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Index;

use super::LearnedMap;
use crate::key::Key;
use crate::raw::cursor::{Iter, IterMut};

/// All pairs of a map in ascending order; they moved into one vector first.
pub struct IntoIter<K, V>(std::vec::IntoIter<(K, V)>);

impl<K, V> Iterator for IntoIter<K, V> {
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<K, V> DoubleEndedIterator for IntoIter<K, V> {
    fn next_back(&mut self) -> Option<(K, V)> {
        self.0.next_back()
    }
}

impl<K, V> ExactSizeIterator for IntoIter<K, V> {}

impl<K: Key, V> IntoIterator for LearnedMap<K, V> {
    type Item = (K, V);
    type IntoIter = IntoIter<K, V>;

    fn into_iter(mut self) -> IntoIter<K, V> {
        IntoIter(self.tree.take_all().into_iter())
    }
}

impl<'a, K: Key, V> IntoIterator for &'a LearnedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<'a, K: Key, V> IntoIterator for &'a mut LearnedMap<K, V> {
    type Item = (&'a K, &'a mut V);
    type IntoIter = IterMut<'a, K, V>;

    fn into_iter(self) -> IterMut<'a, K, V> {
        self.iter_mut()
    }
}

impl<K: Key, V> FromIterator<(K, V)> for LearnedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self::from_unsorted(pairs)
    }
}

impl<K: Key, V, const N: usize> From<[(K, V); N]> for LearnedMap<K, V> {
    fn from(pairs: [(K, V); N]) -> Self {
        Self::from_unsorted(pairs)
    }
}

impl<K: Key, V> Extend<(K, V)> for LearnedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, pairs: I) {
        for (key, value) in pairs {
            self.insert(key, value);
        }
    }
}

impl<'a, K: Key, V: Copy> Extend<(&'a K, &'a V)> for LearnedMap<K, V> {
    fn extend<I: IntoIterator<Item = (&'a K, &'a V)>>(&mut self, pairs: I) {
        self.extend(pairs.into_iter().map(|(key, value)| (*key, *value)));
    }
}

impl<K: Key, V> Default for LearnedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// A clone is built anew: it has the shape of a map made by [`LearnedMap::from_sorted`].
impl<K: Key, V: Clone> Clone for LearnedMap<K, V> {
    fn clone(&self) -> Self {
        Self::from_ascending(self.iter().map(|(key, value)| (*key, value.clone())).collect())
    }
}

impl<K: Key, V: fmt::Debug> fmt::Debug for LearnedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Key, V: PartialEq> PartialEq for LearnedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other)
    }
}

impl<K: Key, V: Eq> Eq for LearnedMap<K, V> {}

impl<K: Key, V: PartialOrd> PartialOrd for LearnedMap<K, V> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.iter().partial_cmp(other)
    }
}

impl<K: Key, V: Ord> Ord for LearnedMap<K, V> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other)
    }
}

impl<K: Key + Hash, V: Hash> Hash for LearnedMap<K, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.len());
        self.iter().for_each(|pair| pair.hash(state));
    }
}

/// # Panics
/// If the key is not there, as any `Index`.
impl<K: Key, V> Index<&K> for LearnedMap<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("no entry found for key")
    }
}
