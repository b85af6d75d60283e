//! One quantised matrix to its tensors on disk and back.

use kindling_core::pack::{code_at, pack_into, unpack_rows, words_for};
use kindling_core::{Granularity, Quantized, ScaleType};

use super::{ActOrder, CompressedTensorsError, Scheme};
use crate::checkpoint::{Checkpoint, DType, OutTensor, TensorView, decode_i32, decode_i64, decode_u32, encode_f32};

type Result<T, E = CompressedTensorsError> = std::result::Result<T, E>;

/// The tensors that hold a matrix, named `{module}.weight_packed` and so on; an empty `module` leaves the prefix out.
///
/// `weight_packed` is i32 `[rows, ⌈cols·bits/32⌉]`, `weight_scale` is `[rows, groups]` or `[1]` in the scale's type,
/// `weight_shape` i64 `[2]`. Asymmetric grids add `weight_zero_point`, i32 `[⌈rows·bits/32⌉, groups]` (per tensor:
/// i8 `[1]`, signed), dynamic activation order `weight_g_idx`, i32 `[cols]`.
///
/// # Panics
/// If the buffers have other lengths than [`Quantized::validate`] asks for.
pub fn encode(module: &str, quantized: &Quantized) -> Vec<OutTensor<'static>> {
    let q = quantized;
    let groups = q.granularity.groups(q.cols);
    let per_tensor = q.granularity == Granularity::Tensor;
    let dot = if module.is_empty() { "" } else { "." };
    let tensor = |name: &str, dtype, shape: &[usize], bytes: Vec<u8>| OutTensor {
        name: format!("{module}{dot}{name}"),
        dtype,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    };

    let per_row = words_for(q.cols, q.bits);
    let mut packed = vec![0; q.rows * per_row];
    for (codes, words) in q.codes.chunks_exact(q.cols.max(1)).zip(packed.chunks_exact_mut(per_row.max(1))) {
        pack_into(codes, q.bits, words);
    }
    let dtype = match q.scale_type {
        ScaleType::F32 => DType::F32,
        ScaleType::F16 => DType::F16,
        ScaleType::BF16 => DType::BF16,
    };
    let scales = encode_f32(dtype, &q.scales).expect("a scale type is a float type");
    let scale_shape = if per_tensor { vec![1] } else { vec![q.rows, groups] };
    let shape = [q.rows as i64, q.cols as i64];
    let mut tensors = vec![
        tensor("weight_packed", DType::I32, &[q.rows, per_row], bytes_of(&packed)),
        tensor("weight_scale", dtype, &scale_shape, scales),
        tensor("weight_shape", DType::I64, &[2], shape.iter().flat_map(|dim| dim.to_le_bytes()).collect()),
    ];
    if let Some(zeros) = &q.zeros {
        tensors.push(if per_tensor {
            let signed = zeros[0].wrapping_sub(q.symmetric_zero());
            tensor("weight_zero_point", DType::I8, &[1], vec![signed])
        } else {
            let words = pack_columns(zeros, groups, q.bits);
            tensor("weight_zero_point", DType::I32, &[words_for(q.rows, q.bits), groups], bytes_of(&words))
        });
    }
    if let Some(index) = &q.group_index {
        tensors.push(tensor("weight_g_idx", DType::I32, &[q.cols], bytes_of(index)));
    }
    tensors
}

/// Reads the matrix of `module` back.
///
/// # Errors
/// As [`decode_packed`].
pub fn decode(checkpoint: &Checkpoint, module: &str, scheme: &Scheme) -> Result<Quantized> {
    let PackedCodes { rows, cols, bits, granularity, words, scale_type, scales, zeros, group_index } =
        decode_packed(checkpoint, module, scheme)?;
    let codes = unpack_rows(&words, rows, cols, bits).map_err(|error| broken(module, error.to_string()))?;
    let quantized = Quantized { rows, cols, bits, granularity, scale_type, codes, scales, zeros, group_index };
    quantized.validate().map_err(|error| broken(module, error.to_string()))?;
    Ok(quantized)
}

/// A matrix as its tensors hold it: the fields are those of [`Quantized`], but the codes stay packed.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedCodes {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Bits per code.
    pub bits: u8,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// `⌈cols · bits / 32⌉` words per row, see [`kindling_core::pack`].
    pub words: Vec<u32>,
    /// The type of the scales.
    pub scale_type: ScaleType,
    /// `[rows, groups]`, or one.
    pub scales: Vec<f32>,
    /// Zero points like the scales; `None` for a symmetric grid.
    pub zeros: Option<Vec<u8>>,
    /// The group of every input where groups are not consecutive.
    pub group_index: Option<Vec<u32>>,
}

fn broken(module: &str, reason: String) -> CompressedTensorsError {
    CompressedTensorsError::Module { module: module.to_owned(), reason }
}

/// Reads the matrix of `module` back, its codes as they are packed.
///
/// # Errors
/// A tensor is missing, has another type or shape than `scheme` asks for, or holds impossible values.
pub fn decode_packed(checkpoint: &Checkpoint, module: &str, scheme: &Scheme) -> Result<PackedCodes> {
    let tensor = |name: &str| checkpoint.tensor(&format!("{module}.{name}"));
    let broken = |reason: String| broken(module, reason);
    let absent = |name: &str, why: &str| {
        let there = checkpoint.contains(&format!("{module}.{name}"));
        if there { Err(broken(format!("has `{name}`, but its scheme {why}"))) } else { Ok(()) }
    };
    let Scheme { bits, granularity, .. } = *scheme;

    let (rows, cols) = matrix_shape(tensor("weight_shape")?)?;
    let packed = tensor("weight_packed")?;
    let per_row = cols.checked_mul(bits.into()).map(|bits| bits.div_ceil(32));
    let sparse_per_row = cols.div_ceil(32 / usize::from(bits));
    if per_row != Some(sparse_per_row) && packed.info.shape == [rows, sparse_per_row] {
        return Err(broken(format!(
            "{bits}-bit codes are packed {} to a word with unused bits, a layout given up in 2026: quantise the dense \
             checkpoint again",
            32 / bits
        )));
    }
    let Some(per_row) = per_row else {
        return Err(packed.info.wrong_shape(format!("the words of {rows}×{cols} {bits}-bit codes")).into());
    };
    let words = decode_u32(expect(packed, &[DType::I32], &[rows, per_row])?);

    let groups = granularity.groups(cols);
    let scale = tensor("weight_scale")?;
    let scale_type = match scale.info.dtype {
        DType::F32 => ScaleType::F32,
        DType::F16 => ScaleType::F16,
        DType::BF16 => ScaleType::BF16,
        _ => return Err(scale.info.wrong_dtype("F32, F16 or BF16").into()),
    };
    let per_tensor = granularity == Granularity::Tensor;
    let scale_shape: &[usize] = if per_tensor { &[1] } else { &[rows, groups] };
    // A single scale may also be stored without dimensions.
    if !(per_tensor && scale.info.shape.is_empty()) {
        expect(scale, &[scale.info.dtype], scale_shape)?;
    }
    let scales = checkpoint.tensor_f32(scale.info.name)?;
    if let Some(at) = scales.iter().position(|scale| !scale.is_finite()) {
        return Err(broken(format!("`weight_scale` holds {} at position {at}", scales[at])));
    }

    let zeros = if scheme.symmetric {
        absent("weight_zero_point", "is symmetric")?;
        None
    } else if per_tensor {
        let signed = expect(tensor("weight_zero_point")?, &[DType::I8], &[1])?[0];
        Some(vec![signed.wrapping_add(1 << (bits - 1))])
    } else {
        let shape = [words_for(rows, bits), groups];
        let words = decode_u32(expect(tensor("weight_zero_point")?, &[DType::I32], &shape)?);
        Some(unpack_columns(&words, rows, groups, bits))
    };
    let group_index = if scheme.actorder == ActOrder::Group {
        let index = decode_i32(expect(tensor("weight_g_idx")?, &[DType::I32], &[cols])?);
        let valid = |&group: &i32| u32::try_from(group).ok().filter(|&group| (group as usize) < groups);
        let valid: Option<Vec<u32>> = index.iter().map(valid).collect();
        Some(valid.ok_or_else(|| broken(format!("`weight_g_idx` names a group outside of 0 to {}", groups - 1)))?)
    } else {
        absent("weight_g_idx", "has no activation order by groups")?;
        None
    };
    Ok(PackedCodes { rows, cols, bits, granularity, words, scale_type, scales, zeros, group_index })
}

/// The two positive numbers of `weight_shape`.
fn matrix_shape(shape: TensorView<'_>) -> Result<(usize, usize)> {
    let dims = decode_i64(expect(shape, &[DType::I64], &[2])?);
    let positive = |dim: i64| usize::try_from(dim).ok().filter(|&dim| dim > 0);
    match (positive(dims[0]), positive(dims[1])) {
        (Some(rows), Some(cols)) => Ok((rows, cols)),
        _ => Err(CompressedTensorsError::Module {
            module: shape.info.name.trim_end_matches(".weight_shape").to_owned(),
            reason: format!("`weight_shape` holds {dims:?}, expected two positive numbers"),
        }),
    }
}

/// The bytes of a tensor after its type and shape are checked.
fn expect<'a>(view: TensorView<'a>, dtypes: &[DType], shape: &[usize]) -> Result<&'a [u8]> {
    if !dtypes.contains(&view.info.dtype) {
        let names: Vec<_> = dtypes.iter().map(|dtype| dtype.name()).collect();
        return Err(view.info.wrong_dtype(names.join(" or ")).into());
    }
    if view.info.shape != shape {
        return Err(view.info.wrong_shape(format!("{shape:?}")).into());
    }
    Ok(view.bytes)
}

/// Packs row-major `[rows, groups]` values down each column: the result is `[⌈rows·bits/32⌉, groups]`.
fn pack_columns(values: &[u8], groups: usize, bits: u8) -> Vec<u32> {
    let words = words_for(values.len() / groups.max(1), bits);
    let mut out = vec![0; words * groups];
    let mut packed = vec![0; words];
    for group in 0..groups {
        let column: Vec<u8> = values.iter().skip(group).step_by(groups).copied().collect();
        pack_into(&column, bits, &mut packed);
        packed.iter().enumerate().for_each(|(word, &value)| out[word * groups + group] = value);
    }
    out
}

/// The inverse of [`pack_columns`].
fn unpack_columns(words: &[u32], rows: usize, groups: usize, bits: u8) -> Vec<u8> {
    let mut out = vec![0; rows * groups];
    for group in 0..groups {
        let column: Vec<u32> = words.iter().skip(group).step_by(groups).copied().collect();
        (0..rows).for_each(|row| out[row * groups + group] = code_at(&column, bits, row));
    }
    out
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
