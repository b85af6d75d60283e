//! One place of a map, taken or free.

use std::mem;

use super::LearnedMap;
use crate::key::Key;

/// The place of a key.
pub enum Entry<'a, K: Key, V> {
    /// The key is there.
    Occupied(OccupiedEntry<'a, K, V>),
    /// The key is not there.
    Vacant(VacantEntry<'a, K, V>),
}

/// The place of a key that is there.
pub struct OccupiedEntry<'a, K: Key, V> {
    pub(super) map: &'a mut LearnedMap<K, V>,
    pub(super) key: K,
}

/// The place of a key that is not there.
pub struct VacantEntry<'a, K: Key, V> {
    pub(super) map: &'a mut LearnedMap<K, V>,
    pub(super) key: K,
}

const THERE: &str = "an occupied entry's key is in its map";

impl<'a, K: Key, V> Entry<'a, K, V> {
    /// The key.
    pub fn key(&self) -> &K {
        match self {
            Entry::Occupied(entry) => &entry.key,
            Entry::Vacant(entry) => &entry.key,
        }
    }

    /// The value, which is `default` if there was none.
    pub fn or_insert(self, default: V) -> &'a mut V {
        self.or_insert_with(|| default)
    }

    /// The value, which is made by `default` if there was none.
    pub fn or_insert_with(self, default: impl FnOnce() -> V) -> &'a mut V {
        match self {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(default()),
        }
    }

    /// The value, which is made from the key if there was none.
    pub fn or_insert_with_key(self, default: impl FnOnce(&K) -> V) -> &'a mut V {
        let key = *self.key();
        self.or_insert_with(|| default(&key))
    }

    /// The value, which is the default of its type if there was none.
    pub fn or_default(self) -> &'a mut V
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }

    /// Changes the value if there is one.
    #[must_use]
    pub fn and_modify(mut self, change: impl FnOnce(&mut V)) -> Self {
        if let Entry::Occupied(entry) = &mut self {
            change(entry.get_mut());
        }
        self
    }
}

impl<'a, K: Key, V> OccupiedEntry<'a, K, V> {
    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The value.
    pub fn get(&self) -> &V {
        self.map.get(&self.key).expect(THERE)
    }

    /// The value, to change it.
    pub fn get_mut(&mut self) -> &mut V {
        self.map.get_mut(&self.key).expect(THERE)
    }

    /// The value, to change it, for as long as the map is borrowed.
    pub fn into_mut(self) -> &'a mut V {
        self.map.get_mut(&self.key).expect(THERE)
    }

    /// Gives another value; returns the one there was.
    pub fn insert(&mut self, value: V) -> V {
        mem::replace(self.get_mut(), value)
    }

    /// Takes the key out; returns its value.
    pub fn remove(self) -> V {
        self.map.remove(&self.key).expect(THERE)
    }
}

impl<'a, K: Key, V> VacantEntry<'a, K, V> {
    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Gives the key a value.
    pub fn insert(self, value: V) -> &'a mut V {
        self.map.insert(self.key, value);
        self.map.get_mut(&self.key).expect("it was inserted just now")
    }
}
