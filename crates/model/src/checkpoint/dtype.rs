//! Element types of safetensors files and the conversions between their little-endian bytes and Rust numbers.

use std::fmt;
use std::str::FromStr;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The type of a tensor's elements, named as in a safetensors header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)]
pub enum DType {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// Every type with its name in a header and the bits of one element.
const TYPES: [(DType, &str, usize); 22] = [
    (DType::BOOL, "BOOL", 8),
    (DType::F4, "F4", 4),
    (DType::F6_E2M3, "F6_E2M3", 6),
    (DType::F6_E3M2, "F6_E3M2", 6),
    (DType::U8, "U8", 8),
    (DType::I8, "I8", 8),
    (DType::F8_E5M2, "F8_E5M2", 8),
    (DType::F8_E4M3, "F8_E4M3", 8),
    (DType::F8_E8M0, "F8_E8M0", 8),
    (DType::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8),
    (DType::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8),
    (DType::I16, "I16", 16),
    (DType::U16, "U16", 16),
    (DType::F16, "F16", 16),
    (DType::BF16, "BF16", 16),
    (DType::I32, "I32", 32),
    (DType::U32, "U32", 32),
    (DType::F32, "F32", 32),
    (DType::C64, "C64", 64),
    (DType::F64, "F64", 64),
    (DType::I64, "I64", 64),
    (DType::U64, "U64", 64),
];

impl DType {
    /// All types.
    pub fn all() -> impl Iterator<Item = DType> {
        TYPES.iter().map(|&(dtype, ..)| dtype)
    }

    /// The name in a safetensors header, e.g. `"BF16"`.
    pub fn name(self) -> &'static str {
        TYPES[self as usize].1
    }

    /// Bits of one element: 4 to 64.
    pub fn bits(self) -> usize {
        TYPES[self as usize].2
    }

    /// Bytes of a tensor of this shape; `None` if the product overflows or the last byte is not full.
    pub fn bytes_for(self, shape: &[usize]) -> Option<usize> {
        // A zero anywhere empties the tensor, also where the other dimensions would overflow.
        if shape.contains(&0) {
            return Some(0);
        }
        let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Whether [`decode_f32`] reads this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        TYPES.iter().find(|&&(_, known, _)| known == name).map(|&(dtype, ..)| dtype).ok_or(())
    }
}

/// Little-endian bytes of an F16, BF16, F32 or F64 tensor as `f32` (F64 rounds to nearest even); `None` for any other
/// type, or where the bytes are not a whole number of elements.
pub fn decode_f32(dtype: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    if !dtype.is_float() || !bytes.len().is_multiple_of(dtype.bits() / 8) {
        return None;
    }
    Some(match dtype {
        DType::F32 => words(bytes, f32::from_le_bytes),
        DType::F64 => words(bytes, |word| f64::from_le_bytes(word) as f32),
        DType::BF16 => words(bytes, |word| bf16::from_le_bytes(word).to_f32()),
        _ => decode_f16(bytes),
    })
}

/// Blocks of F16, so that the hardware conversion of `half` applies to bytes of any alignment.
fn decode_f16(bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / 2];
    let mut block = [f16::ZERO; 4096];
    for (from, to) in bytes.chunks(2 * block.len()).zip(out.chunks_mut(block.len())) {
        for (half, word) in block.iter_mut().zip(from.as_chunks().0) {
            *half = f16::from_le_bytes(*word);
        }
        block[..to.len()].convert_to_f32_slice(to);
    }
    out
}

/// The little-endian bytes of `values` in an F16, BF16, F32 or F64 tensor, rounded to nearest even; `None` for any
/// other type. Values beyond the range of F16 become infinite.
pub fn encode_f32(dtype: DType, values: &[f32]) -> Option<Vec<u8>> {
    Some(match dtype {
        DType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::F64 => values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        _ => return None,
    })
}

/// Little-endian bytes as `i64`; an incomplete last element is dropped.
pub fn decode_i64(bytes: &[u8]) -> Vec<i64> {
    words(bytes, i64::from_le_bytes)
}

/// Little-endian bytes as `i32`; an incomplete last element is dropped.
pub fn decode_i32(bytes: &[u8]) -> Vec<i32> {
    words(bytes, i32::from_le_bytes)
}

/// Little-endian bytes as `u32`; an incomplete last element is dropped.
pub fn decode_u32(bytes: &[u8]) -> Vec<u32> {
    words(bytes, u32::from_le_bytes)
}

fn words<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&word| convert(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, &(dtype, name, bits)) in TYPES.iter().enumerate() {
            assert_eq!(dtype as usize, i);
            assert_eq!(name.parse(), Ok(dtype));
            assert_eq!((dtype.name(), dtype.bits()), (name, bits));
            let official: safetensors::Dtype = serde_json::from_value(name.into()).unwrap();
            assert_eq!(official.bitsize(), bits);
        }
        assert_eq!("F31".parse::<DType>(), Err(()));
    }

    #[test]
    fn sizes_do_not_overflow() {
        assert_eq!(DType::BF16.bytes_for(&[3, 5]), Some(30));
        assert_eq!(DType::F32.bytes_for(&[]), Some(4));
        assert_eq!(DType::F4.bytes_for(&[3]), None);
        assert_eq!(DType::F4.bytes_for(&[4]), Some(2));
        assert_eq!(DType::U8.bytes_for(&[usize::MAX, 2]), None);
        assert_eq!(DType::F64.bytes_for(&[usize::MAX / 8]), None);
        assert_eq!(DType::F64.bytes_for(&[usize::MAX, 2, 0]), Some(0));
    }

    #[test]
    fn halves_round_to_nearest_even() {
        // 1 + 2^-9 lies between two bf16 numbers' midpoints; 1 + 2^-8 and 1 + 3·2^-8 are exact ties.
        let values = [1.0, 1.0 + 0.001_953_125, 1.0 + 0.003_906_25, 1.0 + 3.0 * 0.003_906_25, -0.0];
        let bytes = encode_f32(DType::BF16, &values).unwrap();
        assert_eq!(decode_f32(DType::BF16, &bytes).unwrap(), [1.0, 1.0, 1.0, 1.015_625, -0.0]);
        // Ties of f16 at 1 + 2^-11 (down to even) and 1 + 3·2^-11 (up to even), and the first value that overflows.
        let ulp = 1.0 / 2048.0;
        let bytes = encode_f32(DType::F16, &[1.0 + ulp, 1.0 + 3.0 * ulp, 65519.0, 65520.0]).unwrap();
        assert_eq!(decode_f32(DType::F16, &bytes).unwrap(), [1.0, 1.0 + 4.0 * ulp, 65504.0, f32::INFINITY]);
    }

    #[test]
    fn every_half_survives_a_round_trip() {
        for dtype in [DType::F16, DType::BF16] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let values = decode_f32(dtype, &bytes).unwrap();
            let again = encode_f32(dtype, &values).unwrap();
            for (i, value) in values.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
                assert_eq!(again[2 * i..][..2], bytes[2 * i..][..2], "{dtype} {i:04x} = {value}");
            }
            assert_eq!(
                values.iter().filter(|value| value.is_nan()).count(),
                if dtype == DType::F16 { 2046 } else { 254 }
            );
        }
    }

    #[test]
    fn bytes_are_little_endian_and_need_no_alignment() {
        let bytes = [9, 1, 0, 0, 0, 0, 0, 0, 128, 7];
        assert_eq!(decode_i64(&bytes[1..]), [i64::MIN + 1]);
        assert_eq!(decode_i32(&bytes[1..]), [1, i32::MIN]);
        assert_eq!(decode_u32(&bytes[1..]), [1, 1 << 31]);
        assert_eq!(decode_f32(DType::F32, &[0, 0, 128, 63]), Some(vec![1.0]));
        assert_eq!(decode_f32(DType::F64, &1.5f64.to_le_bytes()), Some(vec![1.5]));
        assert_eq!(decode_f32(DType::F32, &[0, 0, 128]), None);
        assert_eq!(decode_f32(DType::I32, &[0; 4]), None);
        assert_eq!(encode_f32(DType::I32, &[0.0]), None);
        assert_eq!(encode_f32(DType::F64, &[1.5]).unwrap(), 1.5f64.to_le_bytes());
    }
}
