//! Integer codes of 1 to 8 bits in 32-bit words, with scales: `weight[o, i] = scale · (code − zero)`.
//!
//! Layout: every row is a bit stream, least significant bit first, that starts on a word (see
//! [`kindling_core::pack`]). Scales and zero points are row-major `[out, groups]`, or one value for the matrix.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use half::{bf16, f16};
use kindling_core::pack::{code_at, pack_rows, unpack_rows, words_for};
use kindling_core::quantized::{Granularity, Quantized, ScaleType};
use rayon::prelude::*;

use super::{FormatError, Result, to_tensor};

/// Scales in the type they were rounded to.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// 4 bytes each.
    F32(Arc<[f32]>),
    /// 2 bytes each.
    F16(Arc<[f16]>),
    /// 2 bytes each.
    BF16(Arc<[bf16]>),
}

impl Scales {
    /// Stores values that are already rounded to `scale_type`; `None` if one is not.
    pub fn new(values: &[f32], scale_type: ScaleType) -> Option<Self> {
        let stored = match scale_type {
            ScaleType::F32 => Scales::F32(values.into()),
            ScaleType::F16 => Scales::F16(values.iter().copied().map(f16::from_f32).collect()),
            ScaleType::BF16 => Scales::BF16(values.iter().copied().map(bf16::from_f32).collect()),
        };
        let exact = values.iter().enumerate().all(|(i, value)| stored.get(i).to_bits() == value.to_bits());
        exact.then_some(stored)
    }

    /// Scale `i`. Panics beyond the end.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Scales::F32(values) => values[i],
            Scales::F16(values) => values[i].to_f32(),
            Scales::BF16(values) => values[i].to_f32(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Scales::F32(values) => values.len(),
            Scales::F16(values) => values.len(),
            Scales::BF16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The stored type.
    pub fn scale_type(&self) -> ScaleType {
        match self {
            Scales::F32(_) => ScaleType::F32,
            Scales::F16(_) => ScaleType::F16,
            Scales::BF16(_) => ScaleType::BF16,
        }
    }

    fn bytes(&self) -> usize {
        self.len() * if self.scale_type() == ScaleType::F32 { 4 } else { 2 }
    }
}

/// A quantised weight.
///
/// Size: `4 · out · ⌈in · bits / 32⌉` bytes of codes, 2 or 4 bytes per scale, 1 byte per zero point (none for a
/// symmetric grid), and 4 bytes per input where groups are not consecutive.
#[derive(Debug, Clone)]
pub struct Packed {
    rows: usize,
    cols: usize,
    bits: u8,
    granularity: Granularity,
    words: Arc<[u32]>,
    scales: Scales,
    zeros: Option<Arc<[u8]>>,
    group_index: Option<Arc<[u32]>>,
}

impl Packed {
    /// The name in files.
    pub const CODE: &str = "packed";

    /// Packs the codes of a quantised matrix. An error if it contradicts itself or is empty.
    pub fn from_quantized(q: &Quantized) -> Result<Self> {
        if q.granularity == Granularity::Group(0) {
            let reason = "groups of 0 inputs; the smallest group has 1".into();
            return Err(FormatError::Unfit { format: Self::CODE.into(), reason });
        }
        q.validate()?;
        let scales = Scales::new(&q.scales, q.scale_type).ok_or_else(|| FormatError::Unfit {
            format: Self::CODE.into(),
            reason: format!("a scale is not a value of {:?}: round scales before codes are computed", q.scale_type),
        })?;
        Ok(Self {
            rows: q.rows,
            cols: q.cols,
            bits: q.bits,
            granularity: q.granularity,
            words: pack_rows(&q.codes, q.cols, q.bits)?.into(),
            scales,
            zeros: q.zeros.as_deref().map(Arc::from),
            group_index: q.group_index.as_deref().map(Arc::from),
        })
    }

    /// Takes words as files hold them, `⌈in · bits / 32⌉` per row, with scales and zero points `[out, groups]` (one of a
    /// whole matrix) and the group of every input where groups are not consecutive.
    ///
    /// # Errors
    /// The numbers contradict each other.
    pub fn from_words(
        [rows, cols]: [usize; 2],
        bits: u8,
        granularity: Granularity,
        words: Vec<u32>,
        scales: Scales,
        zeros: Option<Vec<u8>>,
        group_index: Option<Vec<u32>>,
    ) -> Result<Self> {
        let unfit = |reason: String| Err(FormatError::Unfit { format: Self::CODE.into(), reason });
        if !(1..=8).contains(&bits) || granularity == Granularity::Group(0) {
            return unfit(format!(
                "{bits} bits with {granularity:?}: 1 to 8 bits, and groups of 1 or more, are possible"
            ));
        }
        let groups = granularity.groups(cols);
        let grid = if granularity == Granularity::Tensor { 1 } else { rows * groups };
        let zero_count = zeros.as_ref().map_or(grid, Vec::len);
        let index_count = group_index.as_ref().map_or(cols, Vec::len);
        for (what, expected, found) in [
            ("words of codes", rows * words_for(cols, bits), words.len()),
            ("scales", grid, scales.len()),
            ("zero points", grid, zero_count),
            ("groups of inputs", cols, index_count),
        ] {
            if expected != found {
                return unfit(format!("expected {expected} {what}, found {found}"));
            }
        }
        if zeros.iter().flatten().any(|&zero| u32::from(zero) >= 1 << bits) {
            return unfit(format!("a zero point exceeds the largest of {bits} bits"));
        }
        if group_index.iter().flatten().any(|&group| group as usize >= groups) {
            return unfit(format!("an input in a group beyond the {groups} of a row"));
        }
        let (zeros, group_index) = (zeros.map(Arc::from), group_index.map(Arc::from));
        Ok(Self { rows, cols, bits, granularity, words: words.into(), scales, zeros, group_index })
    }

    /// The matrix this was made from.
    pub fn to_quantized(&self) -> Result<Quantized> {
        Ok(Quantized {
            rows: self.rows,
            cols: self.cols,
            bits: self.bits,
            granularity: self.granularity,
            scale_type: self.scales.scale_type(),
            codes: unpack_rows(&self.words, self.rows, self.cols, self.bits)?,
            scales: (0..self.scales.len()).map(|i| self.scales.get(i)).collect(),
            zeros: self.zeros.as_deref().map(<[u8]>::to_vec),
            group_index: self.group_index.as_deref().map(<[u32]>::to_vec),
        })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bits per code.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Which weights share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// The words of the codes, `⌈in · bits / 32⌉` per row.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The scales, `[out, groups]` or one.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Zero points in the layout of the scales; `None` for a symmetric grid.
    pub fn zeros(&self) -> Option<&[u8]> {
        self.zeros.as_deref()
    }

    /// The group of every input where groups are not consecutive.
    pub fn group_index(&self) -> Option<&[u32]> {
        self.group_index.as_deref()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        4 * self.words.len()
            + self.scales.bytes()
            + self.zeros.as_ref().map_or(0, |zeros| zeros.len())
            + self.group_index.as_ref().map_or(0, |index| 4 * index.len())
    }

    /// For example `packed 4-bit g32`; `channel` and `tensor` stand for one scale per row and per matrix.
    pub fn format_name(&self) -> String {
        let groups = match self.granularity {
            Granularity::Tensor => "tensor".into(),
            Granularity::Channel => "channel".into(),
            Granularity::Group(size) => format!("g{size}"),
        };
        format!("packed {}-bit {groups}", self.bits)
    }

    /// All values, row-major, bit for bit those of [`Quantized::dequantize`].
    pub fn to_host(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        out.par_chunks_mut(self.cols)
            .enumerate()
            .for_each_init(|| vec![0; self.cols], |codes, (row, values)| self.unpack_row(row, codes, values));
        out
    }

    /// All values as an f32 tensor `[out, in]`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        to_tensor(self.to_host(), self.rows, self.cols, device)
    }

    /// Writes the values of one row; `codes` is scratch of the same length.
    fn unpack_row(&self, row: usize, codes: &mut [u8], values: &mut [f32]) {
        let per_row = words_for(self.cols, self.bits);
        unpack_codes(&self.words[row * per_row..][..per_row], self.bits, codes);
        let first = match self.granularity {
            Granularity::Tensor => 0,
            other => row * other.groups(self.cols),
        };
        let symmetric = f32::from(1u8 << (self.bits - 1));
        let grid = |group: usize| {
            let zero = self.zeros.as_ref().map_or(symmetric, |zeros| f32::from(zeros[first + group]));
            (self.scales.get(first + group), zero)
        };
        if let Some(index) = &self.group_index {
            for ((value, &code), &group) in values.iter_mut().zip(&*codes).zip(&**index) {
                // One scale serves the whole matrix or row whatever the index says.
                let (scale, zero) = grid(if self.granularity == Granularity::Tensor { 0 } else { group as usize });
                *value = scale * (f32::from(code) - zero);
            }
            return;
        }
        let len = self.granularity.group_len(self.cols);
        for (group, (values, codes)) in values.chunks_mut(len).zip(codes.chunks(len)).enumerate() {
            let (scale, zero) = grid(group);
            for (value, &code) in values.iter_mut().zip(codes) {
                *value = scale * (f32::from(code) - zero);
            }
        }
    }
}

/// The codes of one row. Widths that divide a word take a word at a time.
pub(super) fn unpack_codes(words: &[u32], bits: u8, codes: &mut [u8]) {
    fn whole<const BITS: usize>(words: &[u32], codes: &mut [u8]) {
        let mask = ((1u32 << BITS) - 1) as u8;
        for (word, codes) in words.iter().zip(codes.chunks_mut(32 / BITS)) {
            for (i, code) in codes.iter_mut().enumerate() {
                *code = (word >> (i * BITS)) as u8 & mask;
            }
        }
    }
    match bits {
        1 => whole::<1>(words, codes),
        2 => whole::<2>(words, codes),
        4 => whole::<4>(words, codes),
        8 => whole::<8>(words, codes),
        _ => codes.iter_mut().enumerate().for_each(|(i, code)| *code = code_at(words, bits, i)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Quantized {
        Quantized {
            rows: 2,
            cols: 5,
            bits: 4,
            granularity: Granularity::Group(2),
            scale_type: ScaleType::F16,
            codes: vec![1, 2, 3, 4, 5, 15, 0, 8, 7, 9],
            scales: vec![0.5, 0.25, 2.0, 1.0, 4.0, 0.125],
            zeros: Some(vec![0, 1, 2, 3, 4, 5]),
            group_index: None,
        }
    }

    #[test]
    fn words_scales_and_size_are_pinned() {
        let packed = Packed::from_quantized(&example()).unwrap();
        assert_eq!(packed.words(), &[0x0005_4321, 0x0009_780f]);
        assert_eq!(packed.bytes(), 2 * 4 + 6 * 2 + 6);
        assert_eq!(packed.format_name(), "packed 4-bit g2");
        let Scales::F16(scales) = packed.scales() else { panic!("f16 scales") };
        assert_eq!(scales[0].to_bits(), 0x3800);
        assert_eq!(packed.to_host(), [0.5, 1.0, 0.5, 0.75, 6.0, 12.0, -3.0, 16.0, 12.0, 0.5]);
        assert_eq!(packed.to_quantized().unwrap(), example());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let with = |change: fn(&mut Quantized)| {
            let mut q = example();
            change(&mut q);
            Packed::from_quantized(&q)
        };
        assert!(matches!(with(|q| q.scales[0] = 0.1), Err(FormatError::Unfit { .. })), "0.1 is no f16");
        assert!(with(|q| q.codes[0] = 16).is_err());
        assert!(with(|q| q.granularity = Granularity::Group(0)).is_err());
        assert!(with(|q| q.scales.truncate(5)).is_err());
    }
}
