//! A file mapped into memory.

use std::fs::File;
use std::io;

/// Maps a file for reading.
pub(crate) fn map(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: a mapped file must not be changed by others while it is mapped. No program can prevent that on common
    // systems; the documentation of `MappedMap::open` hands the duty to the caller. Everything read from the map is
    // plain bytes, bounds are checked against the length taken here, so a change can give wrong values only.
    unsafe { memmap2::Mmap::map(file) }
}
