//! A cheap identity of a checkpoint: what a resumed run compares to know that its input is still the same.

use std::fmt::Write as _;
use std::fs;

use sha2::{Digest, Sha256};

use super::error::{CheckpointError, Result};
use super::reader::Checkpoint;

/// How much of both ends of every shard enters the fingerprint.
const SAMPLE: usize = 64 * 1024;

impl Checkpoint {
    /// SHA-256 in hexadecimal over names, types, shapes and places of all tensors, the size and both ends of every
    /// shard, and `config.json`.
    ///
    /// Reads at most 128 KiB of each shard, so an edit in the middle of a tensor that keeps the size goes unnoticed.
    ///
    /// # Errors
    /// `config.json` exists but cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        // Every field goes in with its length, so that no two lists of fields run together to the same bytes.
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        put(b"kindling checkpoint 1");
        for (name, shard, entry) in self.entries() {
            put(name.as_bytes());
            put(entry.dtype.name().as_bytes());
            let shape: Vec<u8> = entry.shape.iter().flat_map(|&dim| (dim as u64).to_le_bytes()).collect();
            put(&shape);
            put(shard.name.as_bytes());
            put(&(entry.start as u64).to_le_bytes());
            put(&(entry.end as u64).to_le_bytes());
        }
        for shard in self.shards() {
            let bytes = shard.bytes();
            put(shard.name.as_bytes());
            put(&(bytes.len() as u64).to_le_bytes());
            put(&bytes[..SAMPLE.min(bytes.len())]);
            put(&bytes[bytes.len().saturating_sub(SAMPLE)..]);
        }
        let config = self.dir().join("config.json");
        match fs::read(&config) {
            Ok(bytes) => put(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => put(b""),
            Err(error) => return Err(CheckpointError::io("read", &config, error)),
        }
        let mut hex = String::new();
        for byte in hash.finalize() {
            let _ = write!(hex, "{byte:02x}");
        }
        Ok(hex)
    }
}
