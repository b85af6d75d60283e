//! What every format must hold, checked on random matrices.

use super::*;
use crate::device::{available, device};
use kindling_core::NM;
use kindling_core::quantized::{Granularity, Quantized, ScaleType};
use proptest::prelude::*;

/// Checks one weight against the values it must stand for.
fn validate(weight: &Weight, source: &[f32], expected_bytes: usize) {
    let [rows, cols] = weight.shape();
    assert_eq!(rows * cols, source.len());
    assert!(expected_bytes > 0);
    assert_eq!(weight.bytes(), expected_bytes, "{}", weight.format_name());
    assert_eq!(weight.stored_bits(), 8.0 * expected_bytes as f64 / source.len() as f64);
    for name in available() {
        let device = device(name).unwrap();
        let dense: Vec<f32> = weight.to_dense(&device).unwrap().into_data().try_to_vec().unwrap();
        let same = dense.iter().zip(source).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{} on {name}: to_dense differs from its source", weight.format_name());

        let (batch, tokens) = (2, 3);
        let x: Vec<f32> = (0..batch * tokens * cols).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect();
        let data = TensorData::new(x.clone(), [batch, tokens, cols]);
        let y = weight.forward(Tensor::from_data(data, &device)).unwrap();
        assert_eq!(y.dims(), [batch, tokens, rows]);
        let y: Vec<f32> = y.into_data().try_to_vec().unwrap();
        for (i, found) in y.iter().enumerate() {
            let (row, token) = (i % rows, i / rows);
            let terms = (0..cols).map(|c| f64::from(x[token * cols + c]) * f64::from(source[row * cols + c]));
            let (sum, size) = terms.fold((0.0, 1.0), |(sum, size), t| (sum + t, size + f64::abs(t)));
            assert!((f64::from(*found) - sum).abs() <= 1e-5 * size, "{}: {found} {sum}", weight.format_name());
        }
        assert!(matches!(weight.forward(Tensor::zeros([1, 1, cols + 1], &device)), Err(FormatError::Shape { .. })));
    }
}

fn any_matrix(rows: usize, cols: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-4.0f32..4.0, rows * cols)
}

fn any_quantized() -> impl Strategy<Value = Quantized> {
    let granularity =
        prop_oneof![Just(Granularity::Tensor), Just(Granularity::Channel), (1usize..40).prop_map(Granularity::Group),];
    let scale_type = prop_oneof![Just(ScaleType::F32), Just(ScaleType::F16), Just(ScaleType::BF16)];
    let shape = (1usize..7, 1usize..70, 1u8..=8);
    (shape, granularity, scale_type, any::<(bool, bool, u64)>()).prop_map(
        |((rows, cols, bits), granularity, scale_type, (zeros, index, seed))| {
            let mut state = seed;
            let mut next = |below: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize % below
            };
            let groups = granularity.groups(cols);
            let count = if granularity == Granularity::Tensor { 1 } else { rows * groups };
            Quantized {
                rows,
                cols,
                bits,
                granularity,
                scale_type,
                codes: (0..rows * cols).map(|_| next(1 << bits) as u8).collect(),
                // Multiples of 1/64 below 2 are exact in all three types.
                scales: (0..count).map(|_| (next(127) + 1) as f32 / 64.0).collect(),
                zeros: zeros.then(|| (0..count).map(|_| next(1 << bits) as u8).collect()),
                group_index: index.then(|| (0..cols).map(|_| next(groups) as u32).collect()),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn dense((rows, cols, values) in (1usize..9, 1usize..40).prop_flat_map(|(r, c)| (Just(r), Just(c), any_matrix(r, c)))) {
        let device = device(available()[0]).unwrap();
        let weight = Dense::from_host(rows, cols, values.clone(), &device).unwrap();
        prop_assert_eq!(weight.format_name(), "dense f32");
        validate(&Weight::Dense(weight), &values, 4 * rows * cols);
    }

    #[test]
    fn packed(q in any_quantized()) {
        let weight = Packed::from_quantized(&q).unwrap();
        prop_assert_eq!(&weight.to_quantized().unwrap(), &q);
        let words = (q.cols * usize::from(q.bits)).div_ceil(32);
        let scale = if q.scale_type == ScaleType::F32 { 4 } else { 2 };
        let bytes = 4 * q.rows * words
            + scale * q.scales.len()
            + q.zeros.as_ref().map_or(0, Vec::len)
            + 4 * q.group_index.as_ref().map_or(0, Vec::len);
        validate(&Weight::Packed(weight), &q.dequantize(), bytes);
    }

    #[test]
    fn sparse(
        (keep, of) in prop_oneof![Just((1, 2)), Just((2, 4)), Just((1, 4)), Just((4, 8)), Just((3, 5)), Just((8, 32))],
        (lines, groups, outputs) in (1usize..5, 1usize..6, any::<bool>()),
        values in any_matrix(5 * 32, 6),
        holes in prop::collection::vec(0usize..32, 5 * 32 * 6),
    ) {
        let pattern = NM::new(keep, of).unwrap();
        let axis = if outputs { Axis::Outputs } else { Axis::Inputs };
        let (rows, cols) = if outputs { (groups * of, lines) } else { (lines, groups * of) };
        let mut weight = values[..rows * cols].to_vec();
        // Thin every group until it obeys the pattern, sometimes further.
        for line in 0..lines {
            for group in 0..groups {
                let at = |i: usize| {
                    if outputs { (group * of + i) * cols + line } else { line * cols + group * of + i }
                };
                for (i, hole) in holes[(line * groups + group) * of..][..of].iter().enumerate() {
                    let kept = (0..of).filter(|&i| weight[at(i)] != 0.0).count();
                    if kept > keep || *hole == 0 {
                        weight[at((i * 7 + hole) % of)] = 0.0;
                    }
                }
                let mut kept = 0;
                for i in 0..of {
                    kept += usize::from(weight[at(i)] != 0.0);
                    if kept > keep {
                        weight[at(i)] = 0.0;
                    }
                }
            }
        }
        let sparse = Sparse::from_host(rows, cols, &weight, pattern, axis).unwrap();
        let bits = (of as f64).log2().ceil() as usize;
        let (streams, kept_in_stream) =
            if outputs { (groups, keep * cols) } else { (rows, groups * keep) };
        let bytes = 4 * rows * cols * keep / of + 4 * streams * (kept_in_stream * bits).div_ceil(32);
        validate(&Weight::Sparse(sparse), &weight, bytes);
        if [(1, 2), (2, 4), (1, 4), (4, 8)].contains(&(keep, of)) {
            let (found, axis) = Sparse::detect(rows, cols, &weight).unwrap();
            prop_assert!(found.sparsity() >= pattern.sparsity());
            let detected = Sparse::from_host(rows, cols, &weight, found, axis).unwrap();
            prop_assert_eq!(detected.to_host(), weight);
        }
    }

    #[test]
    fn bitmask(
        (rows, cols, values) in (1usize..9, 1usize..70).prop_flat_map(|(r, c)| (Just(r), Just(c), any_matrix(r, c))),
        threshold in 0.0f32..5.0,
    ) {
        let weight: Vec<f32> = values.iter().map(|&v| if v.abs() < threshold { 0.0 } else { v }).collect();
        let kept = weight.iter().filter(|&&w| w != 0.0).count();
        let bytes = 4 * kept + 4 * rows * cols.div_ceil(32) + 8 * (rows + 1);
        let mask = Weight::Bitmask(Bitmask::from_host(rows, cols, &weight).unwrap());
        validate(&mask, &weight, bytes);
        let ready = mask.laid_out(&device(available()[0]).unwrap()).unwrap();
        validate(&ready, &weight, ready.bytes());
        if let Weight::Masked(masked) = &ready {
            prop_assert!(masked.format_name().starts_with("bitmask"));
        } else {
            prop_assert_eq!(ready.code(), "dense", "too few zeros, or no kernels");
        }
    }
}

#[test]
fn pruned_weights_are_laid_out_and_stacked() {
    let values: Vec<f32> = (0..8 * 64).map(|i| if i % 4 < 2 { (i % 13) as f32 + 1.0 } else { 0.0 }).collect();
    let device = device(available()[0]).unwrap();
    let (pattern, axis) = Sparse::detect(8, 64, &values).unwrap();
    let sparse = Weight::Sparse(Sparse::from_host(8, 64, &values, pattern, axis).unwrap());
    let ready = sparse.laid_out(&device).unwrap();
    let both = Weight::stacked(&[&ready, &ready]).unwrap();
    validate(&both, &[&values[..], &values].concat(), both.bytes());
    if crate::kernels::masked_rows_pay(0.5) {
        assert_eq!(both.format_name(), "sparse 2:4, bf16");
        // A bit for every weight, 16 for every second, and a little for where tiles begin.
        assert!(both.stored_bits() < 9.5 + 8.0 * 128.0 / 1024.0, "{}", both.stored_bits());
        let other = Weight::Bitmask(Bitmask::from_host(8, 64, &values).unwrap()).laid_out(&device).unwrap();
        assert_eq!(Weight::stacked(&[&ready, &other]).unwrap().format_name(), "bitmask 50.0% zero, bf16");
    }
}

#[test]
fn file_codes_never_change() {
    assert_eq!([Dense::CODE, Packed::CODE, Sparse::CODE, Bitmask::CODE], ["dense", "packed", "sparse_nm", "bitmask"]);
}

#[test]
fn element_types_must_agree() {
    let device = device(available()[0]).unwrap();
    let weight = Weight::Dense(Dense::from_host(2, 2, vec![1.0; 4], &device).unwrap());
    let x = Tensor::<3>::ones([1, 1, 2], &device).cast(DType::F16);
    assert!(matches!(weight.forward(x), Err(FormatError::DType { .. })));
}
