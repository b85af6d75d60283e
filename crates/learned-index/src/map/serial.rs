//! Serde: a map of pairs in ascending order. Nodes are not stored, they are built again.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::LearnedMap;
use crate::key::Key;

impl<K: Key + Serialize, V: Serialize> Serialize for LearnedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de, K: Key + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for LearnedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

struct Pairs<K, V>(PhantomData<(K, V)>);

impl<'de, K: Key + Deserialize<'de>, V: Deserialize<'de>> Visitor<'de> for Pairs<K, V> {
    type Value = LearnedMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        // What a file claims about its length is no reason to allocate it.
        let mut pairs = Vec::with_capacity(map.size_hint().unwrap_or(0).min(1 << 16));
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(LearnedMap::from_unsorted(pairs))
    }
}
