//! Compressed weight formats: how one matrix of shape `[out, in]` is held, and how it is multiplied with.
//!
//! One file is one format. Compressed formats hold host memory, cheap to clone, and unfold to a dense tensor on
//! whatever device the activations live.

mod adapted;
mod bitmask;
mod dense;
mod half;
mod host;
mod masked;
mod packed;
#[cfg(feature = "cube")]
mod resident;
mod sparse;
mod tiled;

pub use adapted::Adapted;
pub use bitmask::Bitmask;
pub use dense::Dense;
pub use half::Half;
pub use host::{Host, MOST_ROWS};
pub use masked::Masked;
pub use packed::{Packed, Scales};
#[cfg(feature = "cube")]
pub use resident::Resident;
pub use sparse::{Axis, Sparse};
pub use tiled::Tiled;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::kernels::Arithmetic;

/// A result with [`FormatError`].
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// Why a weight could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A tensor or buffer has another shape than the operation needs.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor or buffer.
        what: &'static str,
        /// The shape the operation needs.
        expected: Vec<usize>,
        /// The shape that came.
        found: Vec<usize>,
    },
    /// Activations and weight have different element types.
    #[error("activations of {activations:?} meet a dense weight of {weight:?}: cast one of them")]
    DType {
        /// Element type of the activations.
        activations: DType,
        /// Element type of the weight.
        weight: DType,
    },
    /// The numbers do not fit the format.
    #[error("{format}: {reason}")]
    Unfit {
        /// The format's name.
        format: String,
        /// What does not fit.
        reason: String,
    },
    /// The quantised matrix contradicts itself.
    #[error(transparent)]
    Quantized(#[from] kindling_core::Error),
}

/// One weight matrix `[out, in]` in whichever format it is held.
#[derive(Debug, Clone)]
pub enum Weight {
    /// A dense tensor.
    Dense(Dense),
    /// Dense values in 16 bits, for the processor.
    Half(Half),
    /// Integer codes with scales.
    Packed(Packed),
    /// The same, laid out for the processor.
    Tiled(Tiled),
    /// The same, in a GPU's memory.
    #[cfg(feature = "cube")]
    Resident(Resident),
    /// N:M sparsity.
    Sparse(Sparse),
    /// Unstructured sparsity.
    Bitmask(Bitmask),
    /// Either of these, laid out for the processor.
    Masked(Masked),
    /// Any of these with a low-rank correction.
    Adapted(Box<Adapted>),
}

impl Weight {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Weight::Dense(w) => w.shape(),
            Weight::Half(w) => w.shape(),
            Weight::Packed(w) => w.shape(),
            Weight::Tiled(w) => w.shape(),
            #[cfg(feature = "cube")]
            Weight::Resident(w) => w.shape(),
            Weight::Sparse(w) => w.shape(),
            Weight::Bitmask(w) => w.shape(),
            Weight::Masked(w) => w.shape(),
            Weight::Adapted(w) => w.shape(),
        }
    }

    /// Bytes that the numbers occupy in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Dense(w) => w.bytes(),
            Weight::Half(w) => w.bytes(),
            Weight::Packed(w) => w.bytes(),
            Weight::Tiled(w) => w.bytes(),
            #[cfg(feature = "cube")]
            Weight::Resident(w) => w.bytes(),
            Weight::Sparse(w) => w.bytes(),
            Weight::Bitmask(w) => w.bytes(),
            Weight::Masked(w) => w.bytes(),
            Weight::Adapted(w) => w.bytes(),
        }
    }

    /// [`bytes`](Self::bytes) as bits per weight, scales and indices included; 0 for an empty matrix.
    pub fn stored_bits(&self) -> f64 {
        let [rows, cols] = self.shape();
        if rows * cols == 0 { 0.0 } else { 8.0 * self.bytes() as f64 / (rows * cols) as f64 }
    }

    /// The format for people, for example `packed 4-bit g32`.
    pub fn format_name(&self) -> String {
        match self {
            Weight::Dense(w) => w.format_name(),
            Weight::Half(w) => w.format_name(),
            Weight::Packed(w) => w.format_name(),
            Weight::Tiled(w) => w.format_name(),
            #[cfg(feature = "cube")]
            Weight::Resident(w) => w.format_name(),
            Weight::Sparse(w) => w.format_name(),
            Weight::Bitmask(w) => w.format_name(),
            Weight::Masked(w) => w.format_name(),
            Weight::Adapted(w) => w.format_name(),
        }
    }

    /// The format for files: a word that never changes.
    pub fn code(&self) -> &'static str {
        match self {
            Weight::Dense(_) => Dense::CODE,
            Weight::Half(_) => Half::CODE,
            Weight::Packed(_) => Packed::CODE,
            Weight::Tiled(_) => Tiled::CODE,
            #[cfg(feature = "cube")]
            Weight::Resident(_) => Resident::CODE,
            Weight::Sparse(_) => Sparse::CODE,
            Weight::Bitmask(_) => Bitmask::CODE,
            Weight::Masked(_) => Masked::CODE,
            Weight::Adapted(_) => Adapted::CODE,
        }
    }

    /// The same weight laid out for the kernels of `device`, with inputs in f32: packed codes in tiles for the processor, or
    /// in a GPU's memory; for the processor pruned values without their zeros, or dense where those are too few to pay. `None`
    /// where it stays as it is.
    pub fn laid_out(&self, device: &Device) -> Option<Weight> {
        match self {
            #[cfg(feature = "cube")]
            Weight::Packed(packed) if crate::ops::on_gpu(device) => {
                Resident::from_packed(packed, device).map(Weight::Resident)
            }
            Weight::Packed(packed) => Tiled::from_packed(packed, Arithmetic::F32).map(Weight::Tiled),
            Weight::Sparse(_) | Weight::Bitmask(_) if crate::ops::on_gpu(device) => None,
            Weight::Sparse(w) => Masked::or_dense(w.to_host(), w.shape(), Some(w.format_name()), device),
            Weight::Bitmask(w) => Masked::or_dense(w.to_host(), w.shape(), None, device),
            _ => None,
        }
    }

    /// One matrix of several with the same inputs, the outputs of the first before those of the next. `None` for formats that
    /// cannot be joined, and where they differ in anything but their outputs.
    pub fn stacked(parts: &[&Weight]) -> Option<Weight> {
        macro_rules! joined {
            ($format:ident) => {{
                let one = |part: &&Weight| match part {
                    Weight::$format(weight) => Some(weight.clone()),
                    _ => None,
                };
                let parts = parts.iter().map(one).collect::<Option<Vec<_>>>()?;
                Weight::$format($format::stacked(&parts.iter().collect::<Vec<_>>())?)
            }};
        }
        Some(match parts.first()? {
            Weight::Half(_) => joined!(Half),
            Weight::Masked(_) => joined!(Masked),
            Weight::Tiled(_) => joined!(Tiled),
            #[cfg(feature = "cube")]
            Weight::Resident(_) => joined!(Resident),
            _ => return None,
        })
    }

    /// Chooses how codes in tiles meet their inputs, below an adapter, too. Other weights know one way.
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) {
        match self {
            Weight::Tiled(tiled) => tiled.set_arithmetic(arithmetic),
            Weight::Adapted(adapted) => adapted.base_mut().set_arithmetic(arithmetic),
            _ => {}
        }
    }

    /// All values as a tensor `[out, in]` on `device`; f32, except that a dense weight keeps its own type.
    pub fn to_dense(&self, device: &Device) -> Result<Tensor<2>> {
        match self {
            Weight::Dense(w) => Ok(w.to_dense(device)),
            Weight::Half(w) => Ok(w.to_dense(device)),
            Weight::Packed(w) => Ok(w.to_dense(device)),
            Weight::Tiled(w) => Ok(w.to_dense(device)),
            #[cfg(feature = "cube")]
            Weight::Resident(w) => Ok(w.to_dense(device)),
            Weight::Sparse(w) => Ok(w.to_dense(device)),
            Weight::Bitmask(w) => Ok(w.to_dense(device)),
            Weight::Masked(w) => Ok(w.to_dense(device)),
            Weight::Adapted(w) => w.to_dense(device),
        }
    }

    /// `x · Wᵀ`: `[batch, tokens, in]` to `[batch, tokens, out]`, on the device and in the type of `x`.
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let [batch, tokens, features] = x.dims();
        let [_, inputs] = self.shape();
        if features != inputs {
            return Err(FormatError::Shape {
                what: "activations of a linear layer",
                expected: vec![batch, tokens, inputs],
                found: vec![batch, tokens, features],
            });
        }
        match self {
            Weight::Dense(w) => w.forward(x),
            Weight::Adapted(w) => w.forward(x),
            Weight::Half(w) if w.takes(&x) => Ok(w.forward(x)),
            Weight::Masked(w) if w.takes(&x) => Ok(w.forward(x)),
            Weight::Tiled(w) if w.takes(&x) => Ok(w.forward(x)),
            #[cfg(feature = "cube")]
            Weight::Resident(w) if w.takes(&x) => Ok(w.forward(x)),
            compressed => {
                let dense = compressed.to_dense(&x.device())?.cast(x.dtype());
                Ok(times(x, dense.transpose()))
            }
        }
    }
}

/// `x [batch, tokens, in] · weight [in, out]`, of equal element types.
fn times(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let ([batch, tokens, inputs], [_, outputs]) = (x.dims(), weight.dims());
    // One product of `batch · tokens` rows: a batched product would meet the weight once per batch.
    crate::ops::product(x.reshape([batch * tokens, inputs]), weight).reshape([batch, tokens, outputs])
}

/// `x · Wᵀ` on the processor, `[batch, tokens, in]` to `[batch, tokens, outputs]`, by a kernel that takes f32 rows, their number and
/// the place of the result.
fn by_rows(x: Tensor<3>, outputs: usize, kernel: impl FnOnce(&[f32], usize, &mut [f32])) -> Tensor<3> {
    let ([batch, tokens, _], device) = (x.dims(), x.device());
    let data = x.into_data();
    let mut out = vec![0.0; batch * tokens * outputs];
    kernel(data.as_slice::<f32>().expect("f32, as the caller checked"), batch * tokens, &mut out);
    Tensor::from_data(TensorData::new(out, [batch, tokens, outputs]), &device)
}

/// Inputs by their groups; `None` unless all groups but the last have `size` members.
pub(crate) fn order_of(index: &[u32], size: usize) -> Option<Vec<u32>> {
    let mut order: Vec<u32> = (0..index.len() as u32).collect();
    order.sort_by_key(|&input| index[input as usize]);
    let fits = order.iter().enumerate().all(|(place, &input)| index[input as usize] as usize == place / size);
    fits.then_some(order)
}

fn to_tensor(values: Vec<f32>, rows: usize, cols: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, [rows, cols]), (device, DType::F32))
}

fn check_len(what: &'static str, len: usize, rows: usize, cols: usize) -> Result<()> {
    if rows.checked_mul(cols) == Some(len) {
        return Ok(());
    }
    Err(FormatError::Shape { what, expected: vec![rows, cols], found: vec![len] })
}

#[cfg(test)]
mod tests;
