//! The maps against `BTreeMap`.

mod ordered;
