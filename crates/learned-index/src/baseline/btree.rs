//! The standard library's `BTreeMap` behind the traits of the indexes: see `kindling_core::index`, which implements them.
//!
//! ```
//! use std::collections::BTreeMap;
//! use kindling_core::PointIndex;
//!
//! let tree = BTreeMap::from([(1u64, 2u64)]);
//! assert_eq!(PointIndex::get(&tree, &1), Some(&2));
//! ```
