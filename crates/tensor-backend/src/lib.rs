//! Devices, compressed weight formats and dense linear algebra.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`device`](mod@device) | devices by name, threads, processor features: the only place that names a backend |
//! | [`formats`] | [`Weight`]: one matrix, dense, packed, N:M sparse or masked |
//! | `gpu` | kernels for GPUs, with the feature `cube` |
//! | [`kernels`] | products with packed weights on the processor |
//! | [`linalg`] | Cholesky factors, solves, eigenvalues, products: f64 through `faer` |
//! | [`measure`] | what this machine can do at best |
//! | [`ops`] | fused operations of a decoder, with gradients |
//!
//! ```
//! use burn::tensor::Tensor;
//! use kindling_tensor_backend::{DeviceName, Weight, device, formats::Bitmask};
//!
//! let device = device("flex".parse()?)?;
//! let weight = Weight::Bitmask(Bitmask::from_host(1, 3, &[2.0, 0.0, -1.0])?);
//! let y = weight.forward(Tensor::from_data([[[1.0, 5.0, 3.0]]], &device))?;
//! assert_eq!(y.into_scalar::<f32>(), -1.0);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

pub mod device;
pub mod formats;
#[cfg(feature = "cube")]
mod gpu;
pub mod kernels;
pub mod linalg;
pub mod measure;
pub mod ops;

pub use device::{DeviceError, DeviceName, available, cpu_features, device, set_threads};
pub use formats::{FormatError, Weight};
