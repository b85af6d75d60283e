//! A real model: perplexity by its recorded protocol, and its greedy text.

use std::ops::ControlFlow;

use kindling_model::evaluate::perplexity;
use kindling_model::generate::{Request, generate};
use kindling_model::tokenizer::{Tokenizer, read_document};

use crate::common::{load, shared};

#[test]
fn perplexity_and_greedy_text_of_stories260k() {
    let (Some(dir), Some(text)) = (shared("models/stories260K"), shared("data/tinystories/valid-sample.txt")) else {
        return;
    };
    let expected: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap();
    let model = load(&dir);
    let tokenizer = Tokenizer::open(&dir).unwrap();

    let ids = tokenizer.encode_document(&read_document(text).unwrap()).unwrap();
    let measured = perplexity(&model, &ids, 256, |_| ()).unwrap();
    assert_eq!(measured.tokens as u64, expected["tokens"].as_u64().unwrap());
    assert_eq!(measured.scored as u64, expected["scored"].as_u64().unwrap());
    assert!((measured.perplexity - expected["perplexity"].as_f64().unwrap()).abs() <= 5e-4, "{measured:?}");

    let greedy = &expected["greedy"];
    let list = |key: &str| -> Vec<u32> {
        greedy[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let prompt = tokenizer.encode(greedy["prompt"].as_str().unwrap(), true).unwrap();
    assert_eq!(prompt, list("prompt_ids"));
    let all = list("ids");
    let request = Request {
        id: 0,
        sampling: Default::default(),
        max_new_tokens: all.len() - prompt.len(),
        eos: tokenizer.eos_ids().to_vec(),
        stop: Vec::new(),
        prompt,
    };
    let out = generate(&model, Some(&tokenizer), std::slice::from_ref(&request), |_| ControlFlow::Continue(()))
        .unwrap()
        .remove(0);
    assert_eq!(out.ids, all[request.prompt.len()..]);
    let whole = tokenizer.decode(&all, true).unwrap();
    assert_eq!(whole, greedy["text"].as_str().unwrap());
    assert!(whole.ends_with(out.text.trim_start()), "{:?}", out.text);

    // A stop text ends the text before it, even when it spans tokens.
    let stopped = Request { stop: vec!["saw a big".into()], ..request };
    let mut streamed = String::new();
    let stopped = generate(&model, Some(&tokenizer), &[stopped], |event| {
        if let kindling_model::generate::Event::Text(_, text) = event {
            streamed.push_str(&text);
        }
        ControlFlow::Continue(())
    });
    let stopped = stopped.unwrap().remove(0);
    assert_eq!(stopped.finish, kindling_model::generate::Finish::Stop);
    assert!(out.text.starts_with(&stopped.text) && stopped.text.ends_with("One day, she "), "{:?}", stopped.text);
    assert_eq!(streamed, stopped.text);
}

#[test]
fn the_model_that_ships_is_small_and_has_learnt() {
    let dir = kindling_model::assets::tiny();
    let bytes: u64 = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 8_000_000, "{bytes} bytes");
    let model = load(&dir);
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let text = "She looked at the little house, and said that she would go in. ".repeat(4);
    let ids = tokenizer.encode_document(&text).unwrap();
    let found = perplexity(&model, &ids, 32, |_| {}).unwrap();
    // 4096 would be a guess.
    assert!(found.perplexity < 60.0, "{}", found.perplexity);
}
