//! The maps against `BTreeMap`.

mod nfl;
mod ordered;
mod shared;
mod small;
