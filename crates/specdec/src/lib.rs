//! Speculative decoding: guess several tokens, verify them in one pass of the target, never change the text.

pub mod context;
pub mod index;
pub mod verify;
