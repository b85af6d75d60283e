//! Key sets and query streams that need no download and are the same everywhere.
//!
//! Everything is computed with IEEE additions, multiplications, divisions and square roots only, so that the same seed
//! gives the same bits on every platform. [`checksum`] pins them.
//!
//! | file | what it makes |
//! | --- | --- |
//! | [`sets`] | [`KeySet`]: ten distributions of keys |
//! | [`queries`] | [`queries::Split`], uniform and Zipf reads |
//! | [`kv`] | keys and queries of an attention head |
//! | [`rng`] | [`SplitMix64`] and its draws |

pub mod kv;
pub mod queries;
pub mod rng;
pub mod sets;

pub use rng::SplitMix64;
pub use sets::{KeySet, Keys};

/// FNV-1a over the little-endian bytes of every word.
pub fn checksum(words: impl IntoIterator<Item = u64>) -> u64 {
    let bytes = words.into_iter().flat_map(u64::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
