//! Serde: how a map is loaded, its flow, and its pairs. Nodes are not stored, they are built again; nothing is trained again.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::monotone::{Ascending, MonotoneMap};
use super::switch::Switch;
use super::{Folded, Layout, NflConfig, NflMap};
use crate::flow::{FoldingFlow, MonotoneFlow};
use crate::key::Key;
use crate::line::Conflicts;
use crate::map::LearnedMap;
use crate::raw::Tree;

/// Pairs as a map, in whatever order they come.
struct Pairs<F>(F);

impl<K: Serialize, V: Serialize, I: Iterator<Item = (K, V)>, F: Fn() -> I> Serialize for Pairs<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0())
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
        fields.serialize_field("pairs", &Pairs(|| self.iter()))?;
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

impl<K: Key + Serialize, V: Serialize> Serialize for MonotoneMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("MonotoneMap", 6)?;
        fields.serialize_field("steps", &self.steps)?;
        fields.serialize_field("sampled", &self.sampled)?;
        fields.serialize_field("unchecked", &self.unchecked)?;
        fields.serialize_field("base", &self.tree.project.base)?;
        fields.serialize_field("flow", &self.tree.project.flow)?;
        fields.serialize_field("pairs", &Pairs(|| self.iter()))?;
        fields.end()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound = "K: Key + Deserialize<'de>, V: Deserialize<'de>")]
struct StoredMonotone<K: Key, V> {
    steps: usize,
    sampled: Conflicts,
    unchecked: usize,
    base: Option<K>,
    flow: Option<MonotoneFlow>,
    pairs: LearnedMap<K, V>,
}

impl<'de, K: Key + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for MonotoneMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let StoredMonotone { steps, sampled, unchecked, base, flow, pairs } =
            StoredMonotone::deserialize(deserializer)?;
        if steps == 0 {
            return Err(de::Error::custom("a monotone flow needs at least one step, found 0"));
        }
        let tree = Tree::from_sorted(pairs.into_iter().collect(), Ascending { base, flow });
        Ok(Self { tree, steps, sampled, unchecked })
    }
}
