//! Maps in files: sorted pairs under a checksum.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `KLINDEX` and the version, 1 |
//! | 4, 4 | codes of the types of keys and values |
//! | 8 | number of pairs |
//! | 8 | checksum of all other bytes |
//! | 32 | zeros |
//! | … | the keys, then, from the next multiple of 8, the values; little-endian |
//!
//! Lines are not stored: they are drawn anew when a file is opened, which reads all of it once anyway to check it.

use std::fs::File;
use std::io::Write;
use std::marker::PhantomData;
use std::path::Path;

use crate::baseline::pgm::{Exact, Pgm};
use crate::error::{Error, Result};
use crate::key::{F64, Key};
use crate::map::LearnedMap;
use crate::raw::map::map;

const MAGIC: [u8; 8] = *b"KLINDEX\x01";
const HEADER: usize = 64;
/// Where the checksum stands.
const CHECKSUM: usize = 24;
/// Error of the lines over a mapped file.
const EPSILON: usize = 16;

/// What can stand in a file.
pub trait Plain: Copy {
    /// Tells types apart; never reused.
    const CODE: u32;
    /// Bytes of a value.
    const BYTES: usize;

    /// Appends the value.
    fn write(self, out: &mut Vec<u8>);

    /// Reads a value from [`Plain::BYTES`] bytes; `None` if there is no such value.
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! plain {
    ($($type:ty = $code:literal),*) => {$(
        impl Plain for $type {
            const CODE: u32 = $code;
            const BYTES: usize = size_of::<$type>();

            fn write(self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}

plain!(u32 = 1, u64 = 2, i32 = 3, i64 = 4, f32 = 5, f64 = 6);

impl Plain for F64 {
    const CODE: u32 = 7;
    const BYTES: usize = 8;

    fn write(self, out: &mut Vec<u8>) {
        self.get().write(out);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        F64::new(f64::read(bytes)?).ok()
    }
}

/// Four sums side by side over words; finds any change of a byte and nearly any other.
fn checksum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(PRIME).rotate_left(29);
    let mut sums = [1u64, 2, 3, 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = mix(*sum, u64::from_le_bytes(*word));
        }
    }
    let tail = rest.iter().fold(bytes.len() as u64, |sum, byte| mix(sum, u64::from(*byte)));
    sums.into_iter().fold(tail, mix)
}

/// Of all bytes but the checksum itself.
fn checksum_of_file(bytes: &[u8]) -> u64 {
    checksum(&bytes[..CHECKSUM]) ^ checksum(&bytes[CHECKSUM + 8..]).rotate_left(1)
}

impl<K: Key + Plain, V: Plain> LearnedMap<K, V> {
    /// Writes the map to a file, which is whole or absent: it gets its name when all bytes are on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut bytes = Vec::with_capacity(HEADER + 8 + self.len() * (K::BYTES + V::BYTES));
        bytes.extend(MAGIC);
        bytes.extend(K::CODE.to_le_bytes());
        bytes.extend(V::CODE.to_le_bytes());
        bytes.extend((self.len() as u64).to_le_bytes());
        bytes.resize(HEADER, 0);
        self.keys().for_each(|key| key.write(&mut bytes));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        self.values().for_each(|value| value.write(&mut bytes));
        let sum = checksum_of_file(&bytes);
        bytes[CHECKSUM..CHECKSUM + 8].copy_from_slice(&sum.to_le_bytes());

        let name = path.file_name().ok_or_else(|| Error::format(path, "expected the name of a file"))?;
        let mut temporary = name.to_os_string();
        temporary.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            Error::io(path)(error)
        })
    }

    /// Reads a map from a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not whole and unchanged, or holds other types.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let pairs = Pairs::<K, V>::check(&bytes, path)?;
        let value = |i: usize| pairs.value(&bytes, i).ok_or_else(|| Error::format(path, format!("value {i} is none")));
        let all = pairs.keys.iter().enumerate().map(|(i, &key)| Ok((key, value(i)?)));
        Ok(Self::from_ascending(all.collect::<Result<_>>()?))
    }
}

/// The keys of a checked file, and where its values are.
struct Pairs<K, V> {
    keys: Vec<K>,
    values: usize,
    marker: PhantomData<V>,
}

impl<K: Key + Plain, V: Plain> Pairs<K, V> {
    fn check(bytes: &[u8], path: &Path) -> Result<Self> {
        let fail = |reason: String| Err(Error::format(path, reason));
        if bytes.len() < HEADER || bytes[..8] != MAGIC {
            return fail("not an index of this version: expected it to begin with `KLINDEX`, version 1".into());
        }
        let word = |at: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| bytes[at + i]));
        let codes = (word(8) as u32, (word(8) >> 32) as u32);
        if codes != (K::CODE, V::CODE) {
            return fail(format!(
                "expected keys of type {} and values of type {}, found {} and {}",
                K::CODE,
                V::CODE,
                codes.0,
                codes.1
            ));
        }
        let n = word(16);
        let values =
            usize::try_from(n).ok().and_then(|n| n.checked_mul(K::BYTES)?.checked_add(HEADER + 7)).map(|n| n / 8 * 8);
        let end = values.and_then(|values| values.checked_add((n as usize).checked_mul(V::BYTES)?));
        let Some((values, _)) = values.zip(end).filter(|(_, end)| *end == bytes.len()) else {
            return fail(format!("{n} pairs do not take {} bytes: the file was cut short or changed", bytes.len()));
        };
        if checksum_of_file(bytes) != word(CHECKSUM) {
            return fail("the checksum differs: the file was changed; write it again".into());
        }
        let keys = bytes[HEADER..][..n as usize * K::BYTES].chunks_exact(K::BYTES).map(K::read);
        match keys.collect::<Option<Vec<K>>>().filter(|keys| keys.is_sorted_by(|a, b| a < b)) {
            Some(keys) => Ok(Self { keys, values, marker: PhantomData }),
            None => fail("the keys do not ascend".into()),
        }
    }

    fn value(&self, bytes: &[u8], i: usize) -> Option<V> {
        V::read(bytes.get(self.values + i * V::BYTES..)?.get(..V::BYTES)?)
    }
}

/// A file of pairs, read where it lies.
///
/// Opening reads the file once, to check it and to draw lines over its keys; look-ups touch the pages they need.
pub struct MappedMap<K, V> {
    bytes: memmap2::Mmap,
    lines: Pgm<K>,
    len: usize,
    values: usize,
    marker: PhantomData<V>,
}

impl<K: Exact + Plain, V: Plain> MappedMap<K, V> {
    /// Maps a file that [`LearnedMap::save`] wrote. Nobody may change it while it is mapped: what a change would do to
    /// later answers cannot be known. (Replacing it by renaming another over it, as `save` does, is no such change.)
    ///
    /// # Errors
    /// As [`LearnedMap::load`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() == 0 {
            return Err(Error::format(path, "not an index: the file is empty"));
        }
        let bytes = map(&file).map_err(Error::io(path))?;
        let Pairs { keys, values, .. } = Pairs::<K, V>::check(&bytes, path)?;
        Ok(Self { lines: Pgm::new(&keys, EPSILON), len: keys.len(), values, bytes, marker: PhantomData })
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<V> {
        let at = self.lower_bound(key);
        (at < self.len && self.key(at)? == *key).then(|| self.value(at)).flatten()
    }

    /// The pairs from `from` on, in ascending order.
    pub fn range_from(&self, from: &K) -> impl Iterator<Item = (K, V)> + '_ {
        (self.lower_bound(from)..self.len).map_while(|at| self.key(at).zip(self.value(at)))
    }

    fn lower_bound(&self, key: &K) -> usize {
        // Keys were read before: each of them is one.
        self.lines.lower_bound_by(self.len, |at| self.key(at).unwrap_or(*key), key)
    }

    fn key(&self, at: usize) -> Option<K> {
        K::read(self.bytes.get(HEADER + at * K::BYTES..)?.get(..K::BYTES)?)
    }

    fn value(&self, at: usize) -> Option<V> {
        V::read(self.bytes.get(self.values + at * V::BYTES..)?.get(..V::BYTES)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{KeySet, Keys};

    #[test]
    fn files_give_back_what_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        for set in KeySet::ALL {
            let Keys::U64(keys) = set.generate(5000, 42) else { continue };
            let map: LearnedMap<u64, u32> = keys.iter().copied().zip(0..).collect();
            map.save(&path).unwrap();
            assert_eq!(LearnedMap::<u64, u32>::load(&path).unwrap(), map);
            let mapped = MappedMap::<u64, u32>::open(&path).unwrap();
            assert_eq!(mapped.len(), map.len());
            for &key in &keys {
                assert_eq!(mapped.get(&key), map.get(&key).copied());
                assert_eq!(mapped.get(&(key + 1)), map.get(&(key + 1)).copied());
            }
            assert!(mapped.range_from(&keys[100]).take(50).eq(map.range(keys[100]..).take(50).map(|(k, v)| (*k, *v))));
        }
        let Keys::F64(keys) = KeySet::named("longitudes").unwrap().generate(2000, 42) else { panic!("reals") };
        let map: LearnedMap<F64, f64> = keys.iter().map(|key| (*key, key.get())).collect();
        map.save(&path).unwrap();
        let mapped = MappedMap::<F64, f64>::open(&path).unwrap();
        assert!(keys.iter().all(|key| mapped.get(key) == Some(key.get())));
        LearnedMap::<u64, u64>::new().save(&path).unwrap();
        assert!(MappedMap::<u64, u64>::open(&path).unwrap().get(&1).is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_change_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let map: LearnedMap<u32, u64> = (0..37).map(|i| (i * i, u64::from(i))).collect();
        map.save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let loaded = LearnedMap::<u32, u64>::load(&path).err().map(|error| error.to_string());
            assert!(MappedMap::<u32, u64>::open(&path).is_err());
            assert!(loaded.is_some_and(|message| message.contains("map: ")));
        };
        for at in 0..whole.len() {
            for bit in [0, 7] {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                refused(&changed);
            }
            refused(&whole[..at]);
        }
        refused(&[whole.clone(), vec![0]].concat());
        std::fs::write(&path, &whole).unwrap();
        assert!(LearnedMap::<u64, u64>::load(&path).unwrap_err().to_string().contains("type 2"));
        assert!(matches!(MappedMap::<u32, u64>::open(dir.path().join("none")), Err(Error::Io { .. })));
    }
}
