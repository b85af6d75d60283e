//! A few tokens at a time without tensors: the bits of the forward pass with them.

use std::sync::Arc;

use kindling_core::Target;
use kindling_core::draft::Input;
use kindling_model::{Decoder, ModelFiles, Session, StepRoom, Wanted};
use kindling_tensor_backend::kernels::Arithmetic;

use crate::common::{fixture, load, values};
use crate::parity::cases;

const PROMPT: [u32; 11] = [5, 9, 200, 31, 7, 7, 8, 12, 13, 14, 15];

/// The same model, with tensors only: whoever may change its weights takes the shortcut away.
fn with_tensors(model: &Decoder) -> Decoder {
    let mut model = model.clone();
    model.blocks_mut();
    model
}

/// Whether the model can do without tensors.
fn compared(model: Decoder, name: &str) -> bool {
    let plain = with_tensors(&model);
    let prompt = [PROMPT.to_vec()];
    let read = |model: &Decoder| {
        let mut kv = model.new_kv();
        model.forward(&prompt, &[], &mut kv, Wanted::LastLogits).unwrap();
        kv
    };
    let (mut kv, mut plain_kv, mut room) = (read(&model), read(&plain), StepRoom::default());
    for id in [3, 77, 12, 250, 3] {
        let expected = values(plain.forward(&[vec![id]], &[], &mut plain_kv, Wanted::LastLogits).unwrap());
        let Some(found) = model.step(id, &mut kv, &mut room).unwrap() else { return false };
        assert_eq!(found, expected, "{name}: token {id}");
    }
    let several = [vec![8, 1, 99]];
    let logits = |model: &Decoder, kv| values(model.forward(&several, &[], kv, Wanted::AllLogits).unwrap());
    assert_eq!(logits(&model, &mut kv), logits(&plain, &mut plain_kv), "{name}: several tokens");
    assert!(model.step(300_000, &mut kv, &mut room).unwrap_err().to_string().contains("vocabulary"));

    // A tree; then the path 7 12 12 41 and one token more.
    let tree = Input {
        text: 0,
        tokens: vec![7, 12, 30, 12, 99, 5, 41],
        parents: vec![None, Some(0), Some(0), Some(1), Some(2), Some(3), Some(3)],
    };
    let run = |model: Decoder| {
        let mut session = Session::new(Arc::new(model), 1);
        session.forward(&[Input::chain(0, PROMPT.to_vec())], true).unwrap();
        session.forward(&[Input::chain(0, vec![6])], true).unwrap();
        let first = session.forward(std::slice::from_ref(&tree), false).unwrap().values;
        session.keep(0, PROMPT.len() + 1, &[0, 1, 3, 6]).unwrap();
        (first, session.forward(&[Input::chain(0, vec![6, 2])], false).unwrap().values)
    };
    assert_eq!(run(model), run(plain), "{name}: a tree");
    true
}

#[test]
fn steps_have_the_bits_of_tensors() {
    let mut without = Vec::new();
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        if compared(load(&case), &name) {
            without.push(name);
        }
    }
    for family in ["llama", "mistral", "qwen3", "phi3", "olmo2", "qwen2_sliding"] {
        assert!(without.iter().any(|name| name == family), "{family} needs tensors: {without:?} do not");
    }
}

#[test]
fn steps_of_packed_weights_have_the_bits_of_tensors() {
    for case in ["compressed-tensors/w4_sym_g32", "compressed-tensors/w8_sym_channel"] {
        for arithmetic in [Arithmetic::F32, Arithmetic::Int8] {
            let mut model = load(&fixture(case));
            model.set_arithmetic(arithmetic);
            assert!(compared(model, case), "{case}: {arithmetic:?}");
        }
    }
}

#[test]
fn the_cache_of_another_model_is_refused_and_left_alone() {
    let [one, other] = ["hf/llama", "hf/qwen3"].map(|name| load(&fixture(name)));
    let mut kv = one.new_kv();
    one.forward(&[PROMPT.to_vec()], &[], &mut kv, Wanted::LastLogits).unwrap();
    one.forward(&[vec![3]], &[], &mut kv, Wanted::LastLogits).unwrap();
    let error = other.step(3, &mut kv, &mut StepRoom::default()).unwrap_err();
    assert!(error.to_string().contains("not of this model"), "{error}");
    assert_eq!(kindling_core::KvStore::len(&kv, 0), PROMPT.len() + 1);
    assert!(one.step(3, &mut kv, &mut StepRoom::default()).unwrap().is_some());
}

#[test]
fn a_model_to_train_takes_tensors() {
    let files = ModelFiles::open(fixture("hf/llama")).unwrap();
    let model = Decoder::load_dense(&files, &crate::common::device()).unwrap();
    let mut kv = model.new_kv();
    model.forward(&[PROMPT.to_vec()], &[], &mut kv, Wanted::LastLogits).unwrap();
    assert!(model.step(3, &mut kv, &mut StepRoom::default()).unwrap().is_none());
}
