//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::error::IndexError;

/// The name of the index file.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// A parsed shard index. Every file name in it is a plain name of a file beside the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// Tensor name to file name.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Parses the JSON text of an index and checks names; no file is looked at.
    ///
    /// # Errors
    /// No `weight_map`, an empty one, a tensor named twice, or a file name with folders in it.
    pub fn parse(json: &str) -> Result<Self, IndexError> {
        #[derive(Deserialize)]
        struct Raw {
            weight_map: Pairs<String>,
        }
        let raw: Raw = serde_json::from_str(json).map_err(|error| IndexError::Json(error.to_string()))?;
        if raw.weight_map.0.is_empty() {
            return Err(IndexError::Empty);
        }
        let mut weight_map = BTreeMap::new();
        for (tensor, file) in raw.weight_map.0 {
            if !is_plain_file_name(&file) {
                return Err(IndexError::NotAFileName { tensor, file });
            }
            if weight_map.contains_key(&tensor) {
                return Err(IndexError::Duplicate(tensor));
            }
            weight_map.insert(tensor, file);
        }
        Ok(ShardIndex { weight_map })
    }

    /// The shards by name, each with its tensors.
    pub fn shards(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut shards = BTreeMap::<_, Vec<_>>::new();
        for (tensor, file) in &self.weight_map {
            shards.entry(file.as_str()).or_default().push(tensor.as_str());
        }
        shards
    }

    /// The JSON text, with the bytes of all tensors as `total_size`.
    pub fn to_json(&self, total_size: u64) -> String {
        #[derive(Serialize)]
        struct Metadata {
            total_size: u64,
        }
        #[derive(Serialize)]
        struct Index<'a> {
            metadata: Metadata,
            weight_map: &'a BTreeMap<String, String>,
        }
        let index = Index { metadata: Metadata { total_size }, weight_map: &self.weight_map };
        serde_json::to_string_pretty(&index).expect("strings and numbers always serialise") + "\n"
    }
}

/// Backslashes and colons are refused on every system, so that an index is equally safe wherever it is read.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    plain && !name.contains(['/', '\\', ':', '\0'])
}

/// A JSON object in its order of appearance, with repeated keys kept (a map type would silently drop them).
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value().map_err(|error| de::Error::custom(format!("`{key}`: {error}")))?;
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shard_index_lists_its_shards() {
        let index = ShardIndex::parse(
            r#"{"metadata":{"total_size":12},"weight_map":{"b":"2.safetensors","a":"1.safetensors","c":"2.safetensors"}}"#,
        )
        .unwrap();
        let shards: Vec<_> = index.shards().into_iter().collect();
        assert_eq!(shards, [("1.safetensors", vec!["a"]), ("2.safetensors", vec!["b", "c"])]);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = |json: &str| ShardIndex::parse(json).unwrap_err().to_string();
        assert_eq!(
            error("{}"),
            "not a shard index (missing field `weight_map` at line 1 column 2): expected an object with a `weight_map` \
             from tensor to file name"
        );
        assert!(error(r#"{"weight_map":{"a":1}}"#).contains("`a`: invalid type: integer `1`"));
        assert_eq!(error(r#"{"weight_map":{}}"#), "`weight_map` is empty: the index names no tensor");
        assert_eq!(error(r#"{"weight_map":{"a":"x","a":"y"}}"#), "`weight_map` names tensor `a` twice");
        for file in ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b", "C:x", "x/", "./x", "x\\u0000"] {
            assert_eq!(
                error(&format!(r#"{{"weight_map":{{"a":"{file}"}}}}"#)),
                format!(
                    "tensor `a` is placed in `{}`, which is not a plain file name: only files beside the index are opened",
                    file.replace("\\\\", "\\").replace("\\u0000", "\0")
                )
            );
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(weight_map in prop::collection::btree_map(".{1,20}", "[a-z]{1,9}\\.safetensors", 1..9)) {
            let index = ShardIndex { weight_map };
            let json = index.to_json(7);
            prop_assert_eq!(ShardIndex::parse(&json).unwrap(), index.clone());
            prop_assert_eq!(index.shards().values().map(Vec::len).sum::<usize>(), index.weight_map.len());
        }

        #[test]
        fn accepted_names_stay_in_the_folder(file in "[./a\\\\:]{0,6}") {
            if is_plain_file_name(&file) {
                let joined = Path::new("/base").join(&file);
                prop_assert_eq!(joined.parent(), Some(Path::new("/base")));
                prop_assert_eq!(joined.file_name().unwrap().to_str(), Some(file.as_str()));
            }
        }
    }
}
