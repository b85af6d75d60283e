//! The maps against `BTreeMap`.

mod nfl;
mod ordered;
