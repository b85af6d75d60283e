//! Integration tests of the model crate: parity with transformers, generation, compression.

mod adapters;
mod common;
mod compression;
mod decoding;
mod gpu;
mod parity;
mod session;
mod steps;
mod stories;
