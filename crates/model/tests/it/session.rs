//! Trees of tokens, ragged batches and cut caches give what plain passes give.

use std::sync::Arc;

use kindling_core::Target;
use kindling_core::draft::Input;
use kindling_model::{Session, Wanted};

use crate::common::{distance, fixture, load, values};

const FAMILIES: [&str; 8] = ["llama", "mistral", "gemma2", "qwen3", "deepseek_v3", "mixtral", "phi3", "olmo2"];

/// Rounding differs between passes of different lengths; logits are of size 1 or so.
const BOUND: f32 = 1e-4;

/// Logits after each node of a tree behind a prompt, by a plain pass over the whole path.
fn plain(model: &kindling_model::Decoder, prompt: &[u32], input: &Input) -> Vec<Vec<f32>> {
    (0..input.tokens.len())
        .map(|node| {
            let mut path = vec![input.tokens[node]];
            let mut at = input.parents[node];
            while let Some(parent) = at {
                path.push(input.tokens[parent]);
                at = input.parents[parent];
            }
            path.reverse();
            let ids = vec![[prompt, &path[..]].concat()];
            values(model.forward(&ids, &[], &mut model.new_kv(), Wanted::LastLogits).unwrap())
        })
        .collect()
}

fn tree(text: usize) -> Input {
    Input {
        text,
        tokens: vec![7, 12, 30, 12, 99, 5, 41],
        parents: vec![None, Some(0), Some(0), Some(1), Some(2), Some(3), Some(3)],
    }
}

#[test]
fn a_tree_is_many_texts_at_once() {
    let prompt = [5, 9, 200, 31, 7, 7, 8, 12, 13, 14, 15];
    for family in FAMILIES.map(|family| format!("hf/{family}")).iter().chain(["extra/qwen2_sliding".into()].iter()) {
        let model = Arc::new(load(&fixture(family)));
        let mut session = Session::new(model.clone(), 2);
        session.forward(&[Input::chain(0, prompt.to_vec()), Input::chain(1, vec![17, 4])], true).unwrap();
        // A tree, and beside it a chain of another length.
        let inputs = [tree(0), Input::chain(1, vec![3, 4, 5])];
        let mut logits = session.forward(&inputs, false).unwrap();
        assert_eq!((session.len(0), session.len(1)), (18, 5), "{family}");
        let expected = [plain(&model, &prompt, &inputs[0]), plain(&model, &[17, 4], &inputs[1])].concat();
        for (row, expected) in expected.iter().enumerate() {
            let found = distance(logits.rows_mut(row..row + 1), expected);
            assert!(found < BOUND, "{family}, row {row}: {found}");
        }
        // Keep the path 7 12 12 41, drop the chain's end: the caches are those of a fresh reading.
        session.keep(0, 11, &[0, 1, 3, 6]).unwrap();
        session.keep(1, 2, &[0]).unwrap();
        assert_eq!((session.len(0), session.len(1)), (15, 3), "{family}");
        let next = [Input::chain(1, vec![9]), Input::chain(0, vec![44, 45])];
        let mut logits = session.forward(&next, false).unwrap();
        let whole = [&prompt[..], &[7, 12, 12, 41]].concat();
        let expected = [plain(&model, &[17, 4, 3], &next[0]), plain(&model, &whole, &next[1])].concat();
        for (row, expected) in expected.iter().enumerate() {
            let found = distance(logits.rows_mut(row..row + 1), expected);
            assert!(found < BOUND, "{family}, row {row} after keeping: {found}");
        }
    }
}

#[test]
fn mistakes_are_errors_and_leave_the_caches_alone() {
    let mut session = Session::new(Arc::new(load(&fixture("hf/llama"))), 1);
    session.forward(&[Input::chain(0, vec![5, 9])], true).unwrap();
    let later = Input { text: 0, tokens: vec![1, 2], parents: vec![Some(1), None] };
    for (input, expected) in [
        (Input::chain(1, vec![1]), "text 1 of a session of 1 texts"),
        (Input::chain(0, vec![]), "at least one"),
        (Input::chain(0, vec![320]), "outside the vocabulary of 320"),
        (later, "not earlier"),
    ] {
        let error = session.forward(&[input], false).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(session.len(0), 2);
    }
    assert!(session.keep(0, 0, &[1, 5]).unwrap_err().to_string().contains("must ascend and exist"));
}
