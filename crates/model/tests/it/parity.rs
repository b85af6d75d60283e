//! Every family against what transformers computes: logits, hidden states, greedy text.

use kindling_model::checkpoint::Checkpoint;
use kindling_model::config::FAMILIES;
use kindling_model::{ModelFiles, Wanted};

use crate::common::{device, distance, fixture, ids, load, values};

/// Folders with `config.json`, weights and `expected.safetensors`.
pub(crate) fn cases() -> Vec<std::path::PathBuf> {
    let mut cases: Vec<_> = ["hf", "extra"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(fixture(folder)).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("expected.safetensors").exists())
        .collect();
    cases.sort();
    assert!(cases.len() >= 10, "fixtures are missing");
    cases
}

#[test]
fn logits_and_hidden_states_equal_transformers() {
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let expected = Checkpoint::open(case.join("expected.safetensors")).unwrap();
        let model = load(&case);
        let (logits, hidden) = model.forward_with_hidden(&ids(&expected, "input_ids")).unwrap();
        for (k, x) in hidden.into_iter().enumerate() {
            let difference = distance(&values(x), &expected.tensor_f32(&format!("hidden.{k}")).unwrap());
            assert!(difference <= 2e-4, "{name}: hidden.{k} differs by {difference}");
        }
        let difference = distance(&values(logits), &expected.tensor_f32("logits").unwrap());
        assert!(difference <= 2e-4, "{name}: logits differ by {difference}");
    }
}

#[test]
fn every_family_has_a_fixture() {
    let seen: Vec<&str> = cases().iter().map(|case| ModelFiles::open(case).unwrap().spec().family).collect();
    for family in FAMILIES {
        assert!(seen.contains(&family.model_type), "{}", family.model_type);
    }
}

#[test]
fn greedy_ids_equal_transformers() {
    for case in cases() {
        let expected = Checkpoint::open(case.join("expected.safetensors")).unwrap();
        let wanted = ids(&expected, "greedy_ids").remove(0);
        let model = load(&case);
        let request = kindling_model::generate::Request {
            id: 0,
            prompt: wanted[..8].to_vec(),
            sampling: Default::default(),
            max_new_tokens: wanted.len() - 8,
            eos: Vec::new(),
            stop: Vec::new(),
        };
        let out = kindling_model::generate::generate(&model, None, &[request], |_| std::ops::ControlFlow::Continue(()));
        assert_eq!(out.unwrap()[0].ids, wanted[8..], "{}", case.display());
    }
}

/// Dynamic frequencies change with the length of the text, so keys that are already stored keep older ones: there,
/// and in transformers too, steps and the whole differ.
pub(crate) fn is_dynamic(case: &std::path::Path) -> bool {
    matches!(ModelFiles::open(case).unwrap().spec().rope.kind, kindling_model::config::RopeKind::Dynamic { .. })
}

#[test]
fn token_by_token_equals_the_whole_and_truncation_leaves_no_trace() {
    for case in cases().into_iter().filter(|case| !is_dynamic(case)) {
        let name = case.display();
        let expected = Checkpoint::open(case.join("expected.safetensors")).unwrap();
        let rows = ids(&expected, "input_ids");
        let model = load(&case);
        let whole = values(model.forward(&rows, &[], &mut model.new_kv(), Wanted::AllLogits).unwrap());
        let (batch, tokens) = (rows.len(), rows[0].len());
        let vocab = whole.len() / batch / tokens;
        let part = |from: usize, to: usize| -> Vec<Vec<u32>> { rows.iter().map(|r| r[from..to].to_vec()).collect() };
        let mut kv = model.new_kv();
        let check = |logits: &[f32], t: usize| {
            for b in 0..batch {
                let all = &whole[(b * tokens + t) * vocab..][..vocab];
                let difference = distance(&logits[b * vocab..][..vocab], all);
                assert!(difference <= 1e-4, "{name}: position {t} of row {b} differs by {difference}");
            }
        };
        for t in 0..tokens {
            check(&values(model.forward(&part(t, t + 1), &[], &mut kv, Wanted::LastLogits).unwrap()), t);
        }
        // Back to position 5, then on in uneven steps.
        kindling_core::KvStore::truncate(&mut kv, 5).unwrap();
        for (from, to) in [(5, 6), (6, 13), (13, tokens)] {
            check(&values(model.forward(&part(from, to), &[], &mut kv, Wanted::LastLogits).unwrap()), to - 1);
        }
    }
}

#[test]
fn checkpoints_of_llm_compressor_give_the_logits_of_transformers() {
    for case in ["compressed-tensors/w4_sym_g32", "compressed-tensors/w8_sym_channel"] {
        let case = fixture(case);
        let expected = Checkpoint::open(case.join("expected.safetensors")).unwrap();
        let model = load(&case);
        let rows = ids(&expected, "input_ids");
        let logits = model.forward(&rows, &[], &mut model.new_kv(), Wanted::AllLogits).unwrap();
        let difference = distance(&values(logits), &expected.tensor_f32("logits").unwrap());
        assert!(difference <= 2e-4, "{}: logits differ by {difference}", case.display());
    }
}

#[test]
fn flex_and_ndarray_agree() {
    let other = kindling_tensor_backend::device::device("ndarray".parse().unwrap()).unwrap();
    for case in cases() {
        let expected = Checkpoint::open(case.join("expected.safetensors")).unwrap();
        let rows = ids(&expected, "input_ids");
        let files = ModelFiles::open(&case).unwrap();
        let logits = [device(), other.clone()].map(|device| {
            let model = kindling_model::Decoder::load(&files, &device).unwrap();
            values(model.forward(&rows, &[], &mut model.new_kv(), Wanted::AllLogits).unwrap())
        });
        let difference = distance(&logits[0], &logits[1]);
        assert!(difference <= 2e-4, "{}: {difference}", case.display());
    }
}
