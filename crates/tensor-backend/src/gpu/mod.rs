//! Kernels for GPUs, written in CubeCL: one source for every runtime that burn's cube backend has.
//!
//! | file | kernels |
//! | --- | --- |
//! | [`packed`] | products of packed codes with a few rows; codes unfolded for many |
//! | `attention` | queries of a few tokens over a cache of grouped heads |
//! | `pointwise` | RMSNorm, rotary positions, SwiGLU |
//!
//! All work on f32 tensors outside autodiff; others take the plain twins of [`ops`](crate::ops). Lengths that a model has few
//! of are constants of a kernel, so that its loops unroll; a number that grows with the text is an argument.

mod attention;
pub(crate) mod packed;
mod pointwise;
#[cfg(all(test, feature = "webgpu"))]
mod tests;

use burn::backend::{DispatchTensorKind, TensorMetadata};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{Cube, cubecl::prelude::*};

pub(crate) use attention::{MOST_TOKENS, attention};
pub(crate) use pointwise::{rms_norm, rotary, swiglu};

/// Whether `x` is an f32 tensor on a GPU outside autodiff.
pub(crate) fn has_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && matches!(x.clone().into_dispatch().kind, DispatchTensorKind::Cube(_))
}

/// The buffer of a tensor that [`has_kernels`] accepted, as its strides have it.
fn strided<const D: usize>(x: Tensor<D>) -> CubeTensor {
    x.try_into_primitive::<Cube>().expect("the caller looked where it lies")
}

/// The same with its elements in order.
fn in_order<const D: usize>(x: Tensor<D>) -> CubeTensor {
    into_contiguous(strided(x))
}

/// Room for a result beside `x`.
fn room(x: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device(), shape.into(), DType::F32)
}

fn tensor<const D: usize>(x: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(x)
}

/// Units of a cube, a power of two: what every GPU grants, and whole planes on each.
const UNITS: u32 = 64;

/// At least `count` cubes; a dimension of a grid has an end on every GPU.
fn cubes(count: usize) -> CubeCount {
    let wide = count.clamp(1, 1 << 15);
    CubeCount::Static(wide as u32, count.div_ceil(wide) as u32, 1)
}

/// The sum of `value` over all units of the cube, for each of them.
#[cube]
fn sum_of_cube(value: f32, parts: &mut Shared<[f32]>, #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS;
    parts[unit as usize] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2()) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = parts[(unit + half) as usize];
            parts[unit as usize] += other;
        }
        sync_cube();
    }
    let sum = parts[0];
    sync_cube();
    sum
}

/// The largest `value` of all units of the cube, for each of them.
#[cube]
fn highest_of_cube(value: f32, parts: &mut Shared<[f32]>, #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS;
    parts[unit as usize] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2()) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let (a, b) = (parts[unit as usize], parts[(unit + half) as usize]);
            parts[unit as usize] = select(a > b, a, b);
        }
        sync_cube();
    }
    let highest = parts[0];
    sync_cube();
    highest
}
