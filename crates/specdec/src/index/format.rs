//! The bytes of an index file.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `kdlngram` |
//! | 8..12 | version, 1 |
//! | 12..16 | bytes per token: 1, 2 or 4 |
//! | 16..20 | vocabulary; every token is below it, the separator of documents is the all-ones token above it |
//! | 20..24 | shards |
//! | 24..32 | tokens, separators included |
//! | 32..40 | documents |
//! | 40..44 | tokens that each shard repeats of the next, so that matches up to this length are complete |
//! | 64..96 | SHA-256 that names the tokenizer |
//! | 96..128 | SHA-256 of the header, these 32 bytes zero |
//! | 128.. | for each shard: its suffixes (u64), then offset (u64), length (u64) and checksum (32 bytes) of its text, order and top |
//!
//! Numbers are little-endian, except the tokens of the text: they are big-endian, so that the order of bytes is the order
//! of tokens. Sections begin at multiples of 4096 bytes. A checksum is the SHA-256 of the SHA-256s of each MiB.

use std::ops::Range;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::error::IndexError;

pub(super) const MAGIC: [u8; 8] = *b"kdlngram";
const VERSION: u32 = 1;
const FIXED: usize = 128;
const SECTION: usize = 48;
const SHARD: usize = 8 + 3 * SECTION;
/// Sections begin at multiples of this.
pub(super) const PAGE: usize = 4096;
/// Every so many suffixes, `top` holds the beginning of one.
pub(super) const STRIDE: usize = 32;
/// Bytes of a beginning.
pub(super) const KEY: usize = 16;
/// No file has more shards than this: a header that says so was altered.
const MOST_SHARDS: u32 = 1 << 16;

/// A part of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Section {
    pub(super) bytes: Range<usize>,
    pub(super) checksum: [u8; 32],
}

/// The parts of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ShardParts {
    pub(super) suffixes: usize,
    pub(super) text: Section,
    pub(super) order: Section,
    pub(super) top: Section,
}

impl ShardParts {
    pub(super) fn sections(&self) -> [(&'static str, &Section); 3] {
        [("text", &self.text), ("order", &self.order), ("top", &self.top)]
    }
}

/// What stands in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) width: usize,
    pub(super) vocab: usize,
    pub(super) tokens: u64,
    pub(super) documents: u64,
    pub(super) overlap: usize,
    pub(super) tokenizer: [u8; 32],
    pub(super) shards: Vec<ShardParts>,
}

impl Header {
    /// Bytes of the header of a file with so many shards, up to the first section.
    pub(super) fn bytes(shards: usize) -> usize {
        (FIXED + shards * SHARD).next_multiple_of(PAGE)
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> usize {
        let ends = self.shards.iter().flat_map(|shard| shard.sections().map(|(_, section)| section.bytes.end));
        ends.max().unwrap_or(0).max(Self::bytes(self.shards.len()))
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = vec![0; Self::bytes(self.shards.len())];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(self.width as u32).to_le_bytes());
        put(16, &(self.vocab as u32).to_le_bytes());
        put(20, &(self.shards.len() as u32).to_le_bytes());
        put(24, &self.tokens.to_le_bytes());
        put(32, &self.documents.to_le_bytes());
        put(40, &(self.overlap as u32).to_le_bytes());
        put(64, &self.tokenizer);
        for (i, shard) in self.shards.iter().enumerate() {
            let at = FIXED + i * SHARD;
            put(at, &(shard.suffixes as u64).to_le_bytes());
            for (k, (_, section)) in shard.sections().into_iter().enumerate() {
                let at = at + 8 + k * SECTION;
                put(at, &(section.bytes.start as u64).to_le_bytes());
                put(at + 8, &(section.bytes.len() as u64).to_le_bytes());
                put(at + 16, &section.checksum);
            }
        }
        let digest = Sha256::digest(&out);
        out[96..128].copy_from_slice(&digest);
        out
    }

    /// Reads a header and checks that everything in it is possible. The sections themselves are not looked at.
    pub(super) fn read(file: &[u8]) -> Result<Self, IndexError> {
        let bad = |what: String| IndexError::Format(what);
        let fixed = file.get(..FIXED).ok_or_else(|| bad(format!("{} bytes are too few", file.len())))?;
        if fixed[..8] != MAGIC {
            return Err(bad(format!("it begins with {:?}, expected {:?}", &fixed[..8], MAGIC)));
        }
        let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
        let hash_at = |at: usize| -> [u8; 32] { file[at..at + 32].try_into().expect("32 bytes") };
        if u32_at(8) != VERSION {
            return Err(bad(format!("it is of version {}, expected {VERSION}", u32_at(8))));
        }
        let count = u32_at(20);
        if count == 0 || count > MOST_SHARDS {
            return Err(bad(format!("it has {count} shards, expected 1 to {MOST_SHARDS}")));
        }
        let bytes = Self::bytes(count as usize);
        let header =
            file.get(..bytes).ok_or(IndexError::Length { expected: bytes as u64, found: file.len() as u64 })?;
        let mut plain = header.to_vec();
        plain[96..128].fill(0);
        if Sha256::digest(&plain)[..] != file[96..128] {
            return Err(IndexError::Checksum { section: "header".into() });
        }

        let (width, vocab) = (u32_at(12) as usize, u32_at(16) as usize);
        if !matches!(width, 1 | 2 | 4) || vocab == 0 || vocab > separator(width) as usize {
            return Err(bad(format!("{vocab} tokens of {width} bytes")));
        }
        let section = |at: usize, what: &str| -> Result<Section, IndexError> {
            let (start, len) = (u64_at(at), u64_at(at + 8));
            let end = start.checked_add(len).filter(|&end| usize::try_from(end).is_ok());
            match end {
                Some(end) if start % PAGE as u64 == 0 && start >= bytes as u64 => {
                    Ok(Section { bytes: start as usize..end as usize, checksum: hash_at(at + 16) })
                }
                _ => Err(bad(format!("the {what} cannot be {len} bytes at {start}"))),
            }
        };
        let mut shards = Vec::with_capacity(count as usize);
        for i in 0..count as usize {
            let at = FIXED + i * SHARD;
            let parts = ShardParts {
                suffixes: usize::try_from(u64_at(at)).unwrap_or(usize::MAX),
                text: section(at + 8, "text")?,
                order: section(at + 8 + SECTION, "order")?,
                top: section(at + 8 + 2 * SECTION, "top")?,
            };
            let top = parts.suffixes.div_ceil(STRIDE).checked_mul(KEY);
            let fits = parts.suffixes.checked_mul(4) == Some(parts.order.bytes.len())
                && top == Some(parts.top.bytes.len())
                && parts.text.bytes.len().is_multiple_of(width)
                && parts.text.bytes.len() / width >= parts.suffixes;
            if !fits {
                return Err(bad(format!("the parts of shard {} do not fit together", i + 1)));
            }
            shards.push(parts);
        }
        let header = Self {
            width,
            vocab,
            tokens: u64_at(24),
            documents: u64_at(32),
            overlap: u32_at(40) as usize,
            tokenizer: hash_at(64),
            shards,
        };
        let expected = header.file_bytes();
        if file.len() != expected {
            return Err(IndexError::Length { expected: expected as u64, found: file.len() as u64 });
        }
        Ok(header)
    }
}

/// The token between documents.
pub(super) fn separator(width: usize) -> u32 {
    u32::MAX >> (32 - 8 * width)
}

/// Bytes per token of a vocabulary, the separator included.
pub(super) fn width_of(vocab: usize) -> usize {
    [1, 2].into_iter().find(|&width| vocab <= separator(width) as usize).unwrap_or(4)
}

/// The checksum of a section.
pub(super) fn checksum(bytes: &[u8]) -> [u8; 32] {
    let parts: Vec<[u8; 32]> = bytes.par_chunks(1 << 20).map(|part| Sha256::digest(part).into()).collect();
    Sha256::digest(parts.concat()).into()
}

/// A hash as text.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
