//! The tree in memory: the one module of this crate with `unsafe`.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`heap`] | memory in huge pages, given out and taken back by a two-level segregated fit |
//! | [`node`] | the three kinds of nodes and how each is searched |
//! | [`bucket`] | where a model node keeps its pairs |
//! | [`fan`] | which child of a fan a key belongs to |
//! | [`build`] | from sorted pairs to nodes |
//! | [`tree`] | look-up, insert, remove, rebuild |
//! | [`batch`] | look-ups of many keys at a time |
//! | [`cursor`] | walks in order, step by step from both ends |
//! | [`walk`] | visits of many pairs in order |
//! | [`shape`] | counts of all that |
//! | [`prefetch`] | hints to the processor |
//! | [`simd`] | the same code for several processors |
//! | [`map`] | a file mapped into memory |
//!
//! What keeps the rest of the crate safe:
//!
//! 1. Every pointer in a [`Node`](node::Node) or its [`Buckets`](bucket::Buckets) was given out by the
//!    [`Heap`](heap::Heap) of the same tree and has not been taken back. The heap frees its memory only when the tree is
//!    dropped.
//! 2. The first `len` pairs of a bucket or a flat node are initialised. Of the others in a bucket that is no child the
//!    keys are, the values are not. No child and no last bucket of a node flows into the next.
//! 3. Positions come from arithmetic on keys whose order a user may have defined wrongly. So they are clamped to the
//!    node before they are used: a wrong order finds wrong keys, never foreign memory.
//! 4. Shared references to pairs live as long as a borrow of the tree, and nothing moves pairs without `&mut Tree`.
#![allow(unsafe_code)]

mod batch;
mod bucket;
pub(crate) mod build;
pub(crate) mod cursor;
mod fan;
mod heap;
pub(crate) mod map;
mod node;
mod prefetch;
mod shape;
pub(crate) mod simd;
mod tree;
mod walk;

pub(crate) use batch::GROUP;
pub(crate) use prefetch::prefetch_ahead;
pub use shape::Shape;
pub(crate) use tree::{Direct, Project, Tree};
