//! Whole models on a GPU, or on what stands in for one, against what transformers computes.

use burn::tensor::Device;
use kindling_model::checkpoint::Checkpoint;
use kindling_model::{Decoder, ModelFiles, Wanted};
use kindling_tensor_backend::{DeviceError, DeviceName, device};

use crate::common::{distance, fixture, ids, values};
use crate::parity::{cases, is_dynamic};

/// The GPU of a build that has the feature `webgpu`; in CI such a build must find one.
fn gpu() -> Option<Device> {
    match device(DeviceName::WebGpu) {
        Ok(device) => Some(device),
        Err(DeviceError::NotCompiled { .. }) => None,
        Err(DeviceError::Absent { .. }) if std::env::var_os("CI").is_none() => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_family_and_packed_weights_give_the_logits_of_transformers_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let packed = ["compressed-tensors/w4_sym_g32", "compressed-tensors/w8_sym_channel"].map(fixture);
    for case in cases().into_iter().chain(packed) {
        let name = case.display();
        let expected = Checkpoint::open(case.join("expected.safetensors")).unwrap();
        let (rows, logits) = (ids(&expected, "input_ids"), expected.tensor_f32("logits").unwrap());
        let model = Decoder::load(&ModelFiles::open(&case).unwrap(), &gpu).unwrap();
        let whole = model.forward(&rows, &[], &mut model.new_kv(), Wanted::AllLogits).unwrap();
        let difference = distance(&values(whole), &logits);
        assert!(difference <= 2e-4, "{name}: logits differ by {difference}");
        if is_dynamic(&case) {
            continue;
        }
        // The last tokens one by one, through the kernels of decoding.
        let (batch, tokens) = (rows.len(), rows[0].len());
        let vocabulary = logits.len() / batch / tokens;
        let part = |from: usize, to: usize| rows.iter().map(|row| row[from..to].to_vec()).collect::<Vec<_>>();
        let mut kv = model.new_kv();
        for (from, to) in [(0, tokens - 4), (tokens - 4, tokens - 2), (tokens - 2, tokens - 1), (tokens - 1, tokens)] {
            let found = values(model.forward(&part(from, to), &[], &mut kv, Wanted::LastLogits).unwrap());
            for (row, found) in found.chunks(vocabulary).enumerate() {
                let difference = distance(found, &logits[(row * tokens + to - 1) * vocabulary..][..vocabulary]);
                assert!(difference <= 2e-4, "{name}, row {row}, token {to}: differs by {difference}");
            }
        }
    }
}
