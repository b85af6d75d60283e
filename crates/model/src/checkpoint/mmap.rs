//! Mapping a file into memory: the only `unsafe` code of this crate.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use super::error::{CheckpointError, Result};

/// A whole file in memory, read-only, shared with every process that maps it.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps `path`.
    ///
    /// # Errors
    /// The file cannot be opened or mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        map(path.as_ref()).map(Self)
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a whole file, read-only.
///
/// # Errors
/// The file cannot be opened.
#[allow(unsafe_code)]
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let fail = |source| CheckpointError::io("open", path, source);
    let file = File::open(path).map_err(fail)?;
    // SAFETY: a mapping is undefined only if the file's bytes change or its end moves while it is mapped. This crate
    // maps read-only and never writes in place to a file that may be mapped: the writer and `atomic` create new files
    // and rename them over old ones, which leaves an existing mapping on the old inode. What other processes do to the
    // user's checkpoint is outside of what any reader can prevent; nothing here keeps a value whose validity depends
    // on the bytes staying equal (no `str`, `bool` or enum is ever borrowed from the map, only plain bytes).
    unsafe { Mmap::map(&file) }.map_err(fail)
}
