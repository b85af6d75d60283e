//! Quantisation.
pub mod config;
pub mod gptq;
pub mod grid;
pub mod matrix;
pub mod rtn;
