//! Serde: how the map is loaded, its flow, and its pairs. Nodes are not stored, they are built again; nothing is trained again.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::switch::Switch;
use super::{Folded, Layout, NflConfig, NflMap};
use crate::flow::FoldingFlow;
use crate::key::Key;
use crate::map::LearnedMap;
use crate::raw::Tree;

/// The pairs of a map as a map, in whatever order they lie.
struct Pairs<'a, K: Key, V>(&'a NflMap<K, V>);

impl<K: Key + Serialize, V: Serialize> Serialize for Pairs<'_, K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

impl<K: Key + Serialize, V: Serialize> Serialize for NflMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let folded = match &self.layout {
            Layout::Plain(_) => None,
            Layout::Folded(tree) => Some((&tree.project.base, &tree.project.flow)),
        };
        let mut fields = serializer.serialize_struct("NflMap", 6)?;
        fields.serialize_field("config", &self.config)?;
        fields.serialize_field("switch", &self.switch)?;
        fields.serialize_field("sampled", &self.sampled)?;
        fields.serialize_field("unchecked", &self.unchecked)?;
        fields.serialize_field("folded", &folded)?;
        fields.serialize_field("pairs", &Pairs(self))?;
        fields.end()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound = "K: Key + Deserialize<'de>, V: Deserialize<'de>")]
struct Stored<K: Key, V> {
    config: NflConfig,
    switch: Option<Switch>,
    sampled: usize,
    unchecked: usize,
    folded: Option<(K, FoldingFlow)>,
    pairs: LearnedMap<K, V>,
}

impl<'de, K: Key + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for NflMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Stored { config, switch, sampled, unchecked, folded, pairs } = Stored::deserialize(deserializer)?;
        let layout = match folded {
            Some((base, flow)) if !pairs.is_empty() => {
                Layout::Folded(Tree::from_sorted(pairs.into_iter().collect(), Folded { base, flow }))
            }
            _ => Layout::Plain(pairs),
        };
        Ok(Self { layout, config, switch, sampled, unchecked })
    }
}
