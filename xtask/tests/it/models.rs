//! The commands that run a model.

use kindling_model::checkpoint::Checkpoint;

use crate::fixtures::{Desk, llama, shared, words};
use crate::xtask;

#[test]
fn logits_are_those_of_transformers() {
    let desk = Desk::new();
    let (model, output) = (llama().display().to_string(), desk.arg("out.safetensors"));
    let input = llama().join("expected.safetensors").display().to_string();
    xtask(&["logits", "--model", &model, "--input", &input, "--output", &output, "--hidden"]).success();
    let (expected, found) = (Checkpoint::open(&input).unwrap(), Checkpoint::open(&output).unwrap());
    for name in ["logits", "hidden.0", "hidden.1", "hidden.2", "hidden.3"] {
        assert_eq!(expected.info(name).unwrap().shape, found.info(name).unwrap().shape, "{name}");
        let (a, b) = (expected.tensor_f32(name).unwrap(), found.tensor_f32(name).unwrap());
        let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest <= 2e-4, "{name}: {largest}");
    }
    xtask(&["logits", "--model", &model, "--input", &input, "--output", &output]).success();
    assert_eq!(Checkpoint::open(&output).unwrap().names().collect::<Vec<_>>(), ["logits"]);
}

#[test]
fn generation_streams_what_json_tells() {
    let desk = Desk::new();
    let model = desk.model_with_tokenizer("small");
    let arguments = ["generate", "--model", &model, "--prompt", "<s> w7 w8", "--max-new-tokens", "6", "--ignore-eos"];
    let json = xtask(&[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(json["ids"].as_array().unwrap().len(), 6);
    for rate in ["prefill_tok_s", "decode_tok_s"] {
        assert!(json[rate].as_f64().is_some_and(|rate| rate > 0.0), "{json}");
    }
    let streamed = xtask(&arguments).success();
    assert_eq!(streamed.strip_suffix('\n'), json["text"].as_str());

    let chat = xtask(&[&arguments[..], &["--chat", "--json"]].concat()).json();
    assert_eq!(chat["prompt_ids"], serde_json::json!([1, 5, 1, 7, 8, 6]));

    let sampled = |seed: &str| {
        let more = ["--temperature", "1", "--seed", seed, "--json"];
        xtask(&[&arguments[..], &more].concat()).json()["ids"].clone()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));

    let file = desk.file("prompt.txt", "<s> w7 w8");
    let from_file =
        xtask(&["generate", "--model", &model, "--prompt-file", &file, "--max-new-tokens", "6", "--ignore-eos"]);
    assert_eq!(from_file.success(), streamed);
}

#[test]
fn perplexity_follows_the_protocol() {
    let desk = Desk::new();
    let (model, text) = (desk.model_with_tokenizer("small"), desk.file("t.txt", words(100)));
    let eval = xtask(&["eval", "--model", &model, "--text", &text, "--window", "32", "--json"]).json();
    // 100 words and a BOS: three windows, 31 tokens of each are scored.
    assert_eq!((&eval["tokens"], &eval["scored"]), (&101.into(), &93.into()));
    let (perplexity, nll) = (eval["perplexity"].as_f64().unwrap(), eval["mean_nll"].as_f64().unwrap());
    assert!((perplexity - nll.exp()).abs() < 1e-6 * perplexity, "{eval}");
    assert!(
        xtask(&["eval", "--model", &model, "--text", &text, "--window", "32"]).success().starts_with("perplexity ")
    );
}

#[test]
fn a_checkpoint_is_described() {
    let model = llama().display().to_string();
    let found = xtask(&["inspect", &model, "--json"]).json();
    // Embedding, head, last norm; 4 + 3 projections and 2 norms in each of 3 blocks.
    let parameters = 2 * 320 * 64 + 64 + 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64 + 2 * 64);
    assert_eq!((&found["family"], &found["parameters"]), (&"llama".into(), &parameters.into()));
    assert_eq!(found["bits_per_weight"], 32.0);
    assert_eq!(found["tensors"].as_array().unwrap().len(), 3 + 3 * 9);
    let table = xtask(&["inspect", &model]).success();
    assert!(table.contains("model.layers.*.mlp.gate_proj.weight"), "{table}");
    assert!(table.lines().count() < 16, "{table}");
}

#[test]
fn a_real_model_writes_what_transformers_writes() {
    let Some(model) = shared("models/stories260K") else { return };
    let Some(text) = shared("data/tinystories/valid-sample.txt") else { return };
    let expected = std::fs::read_to_string(model.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let (model, text) = (model.display().to_string(), text.display().to_string());

    let eval = xtask(&["eval", "--model", &model, "--text", &text, "--json"]).json();
    assert_eq!((&eval["tokens"], &eval["scored"]), (&expected["tokens"], &expected["scored"]));
    let distance = eval["mean_nll"].as_f64().unwrap() - expected["mean_nll"].as_f64().unwrap();
    assert!(distance.abs() < 1e-4, "{eval}");

    let greedy = &expected["greedy"];
    let prompt = greedy["prompt"].as_str().unwrap();
    let generated =
        xtask(&["generate", "--model", &model, "--prompt", prompt, "--max-new-tokens", "64", "--json"]).json();
    let ids = [&generated["prompt_ids"], &generated["ids"]].map(|ids| ids.as_array().unwrap().clone()).concat();
    assert_eq!(&serde_json::Value::from(ids), &greedy["ids"]);
}
