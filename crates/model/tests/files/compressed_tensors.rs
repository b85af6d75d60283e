//! `pack-quantized` against worked words and against files of the official writer.

use std::path::{Path, PathBuf};

use kindling_core::{Granularity, Quantized, ScaleType};
use kindling_model::checkpoint::{Checkpoint, DType, OutTensor, Writer, WriterOptions, decode_i64, decode_u32};
use kindling_model::compressed_tensors::{ActOrder, QuantizationConfig, Scheme, decode, encode};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(tensors: &[OutTensor<'_>]) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), WriterOptions::default()).unwrap();
    writer.write_shard(tensors).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn words(tensors: &[OutTensor<'_>], name: &str) -> (Vec<usize>, Vec<u32>) {
    let tensor = tensors.iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!(tensor.dtype, DType::I32);
    (tensor.shape.clone(), decode_u32(&tensor.bytes))
}

/// The 8×8 matrix `0.1·((5o + 3i) mod 13) − 0.49` at 4 bits with one group per row: codes are listed row by row.
fn worked(codes: [[u8; 8]; 8], scales: [f32; 8], zeros: Option<[u8; 8]>) -> Quantized {
    Quantized {
        rows: 8,
        cols: 8,
        bits: 4,
        granularity: Granularity::Group(8),
        scale_type: ScaleType::F16,
        codes: codes.concat(),
        scales: scales.map(|scale| half::f16::from_f32(scale).to_f32()).to_vec(),
        zeros: zeros.map(|zeros| zeros.to_vec()),
        group_index: None,
    }
}

#[test]
fn asymmetric_words() {
    let codes = [
        [0, 4, 7, 11, 15, 2, 6, 10],
        [7, 11, 15, 2, 6, 10, 14, 0],
        [12, 0, 4, 7, 11, 15, 2, 6],
        [2, 6, 11, 15, 0, 5, 9, 14],
        [9, 12, 0, 4, 7, 11, 15, 2],
        [15, 1, 5, 9, 13, 0, 4, 8],
        [5, 9, 12, 0, 4, 7, 11, 15],
        [11, 15, 1, 5, 9, 13, 0, 4],
    ];
    let (wide, narrow, least) = (0.08, 0.073_333, 0.066_667);
    let scales = [wide, narrow, wide, least, wide, narrow, wide, narrow];
    let quantized = worked(codes, scales, Some([6, 7, 6, 6, 6, 5, 6, 5]));
    let tensors = encode("m", &quantized);
    let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["m.weight_packed", "m.weight_scale", "m.weight_shape", "m.weight_zero_point"]);
    let expected =
        [0xa62f_b740, 0x0ea6_2fb7, 0x62fb_740c, 0xe950_fb62, 0x2fb7_40c9, 0x840d_951f, 0xfb74_0c95, 0x40d9_51fb];
    assert_eq!(words(&tensors, "m.weight_packed"), (vec![8, 1], expected.to_vec()));
    assert_eq!(words(&tensors, "m.weight_zero_point"), (vec![1, 1], vec![0x5656_6676]));
    assert_eq!((tensors[1].dtype, tensors[1].shape.as_slice()), (DType::F16, [8, 1].as_slice()));
    let halves: Vec<u8> = [0x2d1f, 0x2cb1, 0x2d1f, 0x2c44, 0x2d1f, 0x2cb1, 0x2d1f, 0x2cb1_u16]
        .iter()
        .flat_map(|bits| bits.to_le_bytes())
        .collect();
    assert_eq!(*tensors[1].bytes, halves);
    assert_eq!((tensors[2].dtype, decode_i64(&tensors[2].bytes)), (DType::I64, vec![8, 8]));

    let (_dir, checkpoint) = open(&tensors);
    let again = decode(&checkpoint, "m", &Scheme::of(&quantized)).unwrap();
    assert_eq!(again, quantized);
    let row = [-0.480_103, -0.160_034, 0.080_017, 0.400_085, 0.720_154, -0.320_068, 0.0, 0.320_068];
    for (value, expected) in again.dequantize().iter().zip(row) {
        assert!((value - expected).abs() < 1e-6, "{value} {expected}");
    }
}

#[test]
fn symmetric_words() {
    let codes = [
        [3, 6, 9, 12, 15, 5, 8, 11],
        [8, 12, 15, 3, 7, 11, 14, 2],
        [13, 3, 6, 9, 12, 15, 5, 8],
        [4, 8, 12, 15, 3, 7, 11, 14],
        [10, 13, 3, 6, 9, 12, 15, 5],
        [15, 5, 8, 11, 14, 4, 7, 10],
        [7, 10, 13, 3, 6, 9, 12, 15],
        [12, 15, 5, 8, 11, 14, 4, 7],
    ];
    let (wide, narrow) = (0.094_667, 0.081_333);
    let quantized = worked(codes, [wide, narrow, wide, narrow, wide, wide, wide, wide], None);
    let tensors = encode("", &quantized);
    let expected =
        [0xb85f_c963, 0x2eb7_3fc8, 0x85fc_963d, 0xeb73_fc84, 0x5fc9_63da, 0xa74e_b85f, 0xfc96_3da7, 0x74eb_85fc];
    assert_eq!(words(&tensors, "weight_packed"), (vec![8, 1], expected.to_vec()));
    assert!(tensors.iter().all(|tensor| tensor.name != "weight_zero_point"));
}

/// The grid of the official writer for one run of weights: true divisions, in f32.
fn symmetric_rule(weights: &[f32], bits: u8) -> (f32, Vec<u8>) {
    let half = f32::from(1u16 << (bits - 1));
    let amax = weights.iter().fold(0.0f32, |max, weight| max.max(weight.abs()));
    let scale = amax / ((f32::from((1u16 << bits) - 1)) / 2.0);
    let code = |weight: &f32| ((weight / scale).clamp(-half, half - 1.0).round_ties_even() + half) as u8;
    (scale, weights.iter().map(code).collect())
}

#[test]
fn official_files_decode_and_encode_to_the_same_words() {
    let dense = Checkpoint::open(fixture("hf/llama")).unwrap();
    let mut codes = 0;
    for (name, group, bits) in [("w4_sym_g32", Some(32), 4), ("w8_sym_channel", None, 8)] {
        let folder = fixture("compressed-tensors").join(name);
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let config = QuantizationConfig::parse(&config["quantization_config"]).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(config.scheme_for("lm_head"), None);
        for module in checkpoint.names().filter_map(|name| name.strip_suffix(".weight_packed")) {
            let scheme = config.scheme_for(module).unwrap();
            assert_eq!(scheme.granularity, group.map_or(Granularity::Channel, Granularity::Group));
            let quantized = decode(&checkpoint, module, &scheme).unwrap();
            assert_eq!((quantized.bits, quantized.scale_type), (bits, ScaleType::F32));

            let weights = dense.tensor_f32(&format!("{module}.weight")).unwrap();
            // In f64: at 8 bits the rounding of an f32 product is already 1e-5 of a scale.
            let zero = f64::from(quantized.symmetric_zero());
            for (i, (&weight, &code)) in weights.iter().zip(&quantized.codes).enumerate() {
                let scale = quantized.scales[quantized.scale_index(i / quantized.cols, i % quantized.cols)];
                let steps = (f64::from(weight) / f64::from(scale) - (f64::from(code) - zero)).abs();
                assert!(steps <= 0.500_01, "{module} {i}: {weight} is {steps} steps of {scale} away");
            }
            let group = group.unwrap_or(quantized.cols);
            let (scales, runs): (Vec<f32>, Vec<_>) = weights.chunks(group).map(|run| symmetric_rule(run, bits)).unzip();
            let requantized = Quantized { scales, codes: runs.concat(), ..quantized.clone() };
            codes += requantized.codes.len();
            for tensor in encode(module, &requantized) {
                let stored = checkpoint.tensor(&tensor.name).unwrap();
                assert_eq!((stored.info.dtype, stored.info.shape), (tensor.dtype, tensor.shape.as_slice()));
                assert_eq!(stored.bytes, &*tensor.bytes, "{}", tensor.name);
            }
        }
    }
    assert_eq!(codes, 2 * 129_024);
}

#[test]
fn first_words_of_the_official_files() {
    let first = |name: &str| {
        let checkpoint = Checkpoint::open(fixture("compressed-tensors").join(name)).unwrap();
        let module = "model.layers.0.self_attn.q_proj";
        let packed = decode_u32(checkpoint.tensor(&format!("{module}.weight_packed")).unwrap().bytes);
        let scales = checkpoint.tensor_f32(&format!("{module}.weight_scale")).unwrap();
        (packed[..4].to_vec(), scales[..2].to_vec())
    };
    let (packed, scales) = first("w4_sym_g32");
    assert_eq!(packed, [0xc699_9741, 0x7f05_882b, 0x7b4f_285d, 0x9aa6_7536]);
    assert_eq!(scales, [0.039_146_323, 0.040_883_373]);
    let (packed, scales) = first("w8_sym_channel");
    assert_eq!(packed, [0x9368_4615, 0xba5b_8e8b, 0x847d_23b6, 0x6dea_064b]);
    assert!((scales[0] - 0.002_404_9).abs() < 5e-8);
}

/// Any valid matrix of up to 9×40 codes.
fn any_quantized() -> impl Strategy<Value = Quantized> {
    let granularity =
        prop_oneof![Just(Granularity::Tensor), Just(Granularity::Channel), (1usize..20).prop_map(Granularity::Group),];
    (1usize..10, 1usize..41, 1u8..=8, granularity, any::<[bool; 2]>(), any::<u64>()).prop_map(
        |(rows, cols, bits, granularity, [asymmetric, reordered], seed)| {
            let mut state = seed | 1;
            let mut next = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u32
            };
            let groups = granularity.groups(cols);
            let scales = if granularity == Granularity::Tensor { 1 } else { rows * groups };
            let limit = 1 << bits;
            let grouped = matches!(granularity, Granularity::Group(_));
            Quantized {
                rows,
                cols,
                bits,
                granularity,
                scale_type: [ScaleType::F32, ScaleType::F16, ScaleType::BF16][next() as usize % 3],
                codes: (0..rows * cols).map(|_| (next() % limit) as u8).collect(),
                // Multiples of 1/16 below 8 are exact in every scale type.
                scales: (0..scales).map(|_| (1 + next() % 127) as f32 / 16.0).collect(),
                zeros: asymmetric.then(|| (0..scales).map(|_| (next() % limit) as u8).collect()),
                group_index: (reordered && grouped).then(|| (0..cols).map(|_| next() % groups as u32).collect()),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_matrix_round_trips(quantized in any_quantized()) {
        quantized.validate().unwrap();
        let (_dir, checkpoint) = open(&encode("a.b", &quantized));
        prop_assert_eq!(decode(&checkpoint, "a.b", &Scheme::of(&quantized)).unwrap(), quantized);
    }
}

fn small() -> Quantized {
    Quantized {
        rows: 2,
        cols: 40,
        bits: 3,
        granularity: Granularity::Group(20),
        scale_type: ScaleType::F32,
        codes: vec![5; 80],
        scales: vec![1.0; 4],
        zeros: Some(vec![1; 4]),
        group_index: Some([0, 1].repeat(20)),
    }
}

/// What decoding says after the tensors of [`small`] are changed.
fn broken(scheme: Scheme, change: impl FnOnce(&mut Vec<OutTensor<'static>>)) -> String {
    let mut tensors = encode("m", &small());
    change(&mut tensors);
    let (dir, checkpoint) = open(&tensors);
    let text = decode(&checkpoint, "m", &scheme).unwrap_err().to_string();
    text.replace(&format!("`{}", dir.path().display()), "`DIR")
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let scheme = Scheme::of(&small());
    assert_eq!(scheme.actorder, ActOrder::Group);
    let [packed, scale, shape, zero, index] = [0, 1, 2, 3, 4];
    let int32 = |values: &[i32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into();
    let int64 = |values: &[i64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into();

    assert_eq!(broken(scheme, |t| drop(t.remove(packed))), "`DIR` has no tensor `m.weight_packed`");
    assert_eq!(broken(scheme, |t| drop(t.remove(index))), "`DIR` has no tensor `m.weight_g_idx`");
    assert_eq!(
        broken(scheme, |t| t[shape].bytes = int64(&[2, -1])),
        "module `m`: `weight_shape` holds [2, -1], expected two positive numbers"
    );
    let file = "`DIR/model.safetensors`: tensor";
    assert_eq!(
        broken(scheme, |t| t[shape].bytes = int64(&[2, 80])),
        format!("{file} `m.weight_packed` has shape [2, 4], expected [2, 8]")
    );
    assert_eq!(
        broken(scheme, |t| t[shape].bytes = int64(&[2, i64::MAX])),
        format!("{file} `m.weight_packed` has shape [2, 4], expected the words of 2×9223372036854775807 3-bit codes")
    );
    assert_eq!(
        broken(scheme, |t| t[scale].dtype = DType::I32),
        format!("{file} `m.weight_scale` has dtype I32, expected F32, F16 or BF16")
    );
    assert_eq!(
        broken(scheme, |t| t[zero].dtype = DType::F32),
        format!("{file} `m.weight_zero_point` has dtype F32, expected I32")
    );
    assert_eq!(
        broken(Scheme { granularity: Granularity::Group(10), ..scheme }, |_| ()),
        format!("{file} `m.weight_scale` has shape [2, 2], expected [2, 4]")
    );
    assert_eq!(
        broken(scheme, |t| t[scale].bytes = [1.0f32, f32::NAN, 1.0, 1.0].map(f32::to_le_bytes).concat().into()),
        "module `m`: `weight_scale` holds NaN at position 1"
    );
    assert_eq!(
        broken(scheme, |t| t[index].bytes = int32(&[2; 40])),
        "module `m`: `weight_g_idx` names a group outside of 0 to 1"
    );
    assert_eq!(
        broken(Scheme { symmetric: true, ..scheme }, |_| ()),
        "module `m`: has `weight_zero_point`, but its scheme is symmetric"
    );
    assert_eq!(
        broken(Scheme { actorder: ActOrder::Weight, ..scheme }, |_| ()),
        "module `m`: has `weight_g_idx`, but its scheme has no activation order by groups"
    );
    let old =
        OutTensor { name: "m.weight_packed".into(), dtype: DType::I32, shape: vec![2, 32], bytes: int32(&[0; 64]) };
    assert_eq!(
        broken(scheme, |t| {
            t[packed] = old;
            t[shape].bytes = int64(&[2, 320]);
        }),
        "module `m`: 3-bit codes are packed 10 to a word with unused bits, a layout given up in 2026: quantise the dense \
         checkpoint again"
    );
}
