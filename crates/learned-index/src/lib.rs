//! Ordered maps that learn the distribution of their keys.

pub mod attention;
pub mod baseline;
pub mod data;
mod error;
pub mod file;
pub mod flow;
mod key;
pub mod line;
mod map;
pub mod measure;
pub mod nfl;
mod raw;
pub mod reference;
pub mod snapshot;

pub use error::{Error, Result};
pub use file::{MappedMap, Plain};
pub use key::{F64, Key};
pub use map::{IntoIter, LearnedMap, entry};
pub use nfl::monotone::MonotoneMap;
pub use nfl::{NflConfig, NflMap};
pub use raw::Shape;
pub use raw::cursor::{Iter, IterMut};
pub use snapshot::{SharedMap, Snapshot};
