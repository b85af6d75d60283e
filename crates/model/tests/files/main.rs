//! Integration tests of files: checkpoints and quantised layouts. They need no feature of the crate.

mod compressed_tensors;
mod read;
mod write;
