//! The maps against `BTreeMap`.

mod monotone;
mod nfl;
mod ordered;
mod shared;
mod small;
