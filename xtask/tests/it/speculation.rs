//! Guessing ahead, from the command line: the text stays the same, mistakes are named.

use std::fs;

use crate::fixtures::Desk;
use crate::xtask;

/// A text that every clone has.
const TEXT: &str = "ARCHITECTURE.md";

fn index(desk: &Desk) -> String {
    let path = desk.arg("corpus.index");
    let built = xtask(&["index", "build", "--text", "README.md", TEXT, "--out", &path, "--json"]).json();
    assert_eq!(built["documents"], 2);
    assert!(built["tokens"].as_u64().unwrap() > 1000 && built["index_bytes"].as_u64().unwrap() > 4096, "{built}");
    path
}

#[test]
fn every_drafter_leaves_the_text_as_it_is() {
    let desk = Desk::new();
    let index = index(&desk);
    let tiny = kindling_model::assets::tiny().display().to_string();
    let drafts = [
        "lookup",
        "ngram",
        "suffix",
        "recycling",
        "infinigram",
        &format!("infinigram:{index}"),
        &format!("rest:{index}"),
        &format!("model:{tiny}"),
        "skip:3",
    ];
    for (batch, temperature, prompts) in [("1", "0", "6"), ("3", "0", "6"), ("1", "0.8", "4")] {
        let arguments = [
            "bench",
            "specdec",
            "--text",
            TEXT,
            "--prompts",
            prompts,
            "--prompt-tokens",
            "48",
            "--new",
            "40",
            "--batch",
            batch,
            "--temperature",
            temperature,
            "--max-draft",
            "8",
            "--json",
            "--draft",
        ];
        // A drafting model draws its guesses when sampling: another text of the same distribution.
        let fixed = drafts
            .iter()
            .filter(|draft| temperature == "0" || !draft.starts_with("model") && !draft.starts_with("skip"));
        let rows = xtask(&arguments.into_iter().chain(fixed.copied()).collect::<Vec<_>>()).json();
        for row in rows.as_array().unwrap() {
            assert_eq!(row["identical"], row["texts"], "{row}");
            assert!(row["acceptance_length"].as_f64().unwrap() >= 1.0 && row["tok_s"].as_f64().unwrap() > 0.0, "{row}");
        }
        // The model guesses for itself and is always right.
        let own = rows.as_array().unwrap().iter().filter(|row| row["draft"].as_str().unwrap().starts_with("model:"));
        own.for_each(|row| assert_eq!(row["accepted"], row["drafted"], "{row}"));
    }
}

/// Inputs rounded to 8 bits make a difference of the last digit a difference of a whole step: passes over several tokens
/// must give each the very bits of a pass of its own.
#[test]
fn a_quantised_target_writes_the_text_that_it_would_write_alone() {
    let desk = Desk::new();
    let tiny = kindling_model::assets::tiny().display().to_string();
    let recipe = desk.file("r.toml", "[[stage]]\nmethod = \"rtn\"\nbits = 4\ngroup_size = 32\n");
    let small = desk.arg("small");
    let compress = ["compress", "--model", &tiny, "--recipe", &recipe, "--calibration", TEXT, "--out", &small];
    xtask(&[&compress[..], &["--window", "32", "--windows", "4"]].concat()).success();
    for batch in ["1", "3"] {
        let arguments = ["bench", "specdec", "--model", &small, "--text", TEXT, "--prompts", "12", "--batch", batch];
        let sizes = ["--prompt-tokens", "64", "--new", "96", "--set", "continue", "copy", "--json"];
        let drafts = ["--draft", "ngram", "suffix", "recycling", "infinigram"];
        for row in xtask(&[&arguments[..], &sizes, &drafts].concat()).json().as_array().unwrap() {
            assert_eq!(row["identical"], row["texts"], "{row}");
        }
    }
}

#[test]
fn generate_tells_what_guessing_was_worth() {
    let plain =
        ["generate", "--prompt", "one two three one two three one two", "--max-new-tokens", "40", "--ignore-eos"];
    let guessed = [&plain[..], &["--draft", "suffix"]].concat();
    let alone = xtask(&[&plain[..], &["--json"]].concat()).json();
    let found = xtask(&[&guessed[..], &["--json"]].concat()).json();
    assert_eq!((&alone["ids"], &alone["text"]), (&found["ids"], &found["text"]));
    for key in ["acceptance_length", "draft_ms", "verify_ms"] {
        assert!(found[key].as_f64().is_some_and(|value| value >= 0.0) && alone.get(key).is_none(), "{key}: {found}");
    }
    let streamed = xtask(&guessed).success();
    let (text, line) = streamed.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(text.trim_end(), found["text"].as_str().unwrap().trim_end());
    assert!(line.contains("tokens per pass"), "{line}");

    // A stop text ends the text in the middle of accepted guesses too.
    let stop = alone["text"].as_str().unwrap().get(30..36).unwrap().to_string();
    let stopped =
        |arguments: &[&str]| xtask(&[arguments, &["--json", "--stop", &stop]].concat()).json()["text"].clone();
    assert_eq!(stopped(&plain), stopped(&guessed));
}

#[test]
fn queries_answer_from_the_text() {
    let desk = Desk::new();
    let index = index(&desk);
    let answer = xtask(&["index", "query", "--index", &index, "cargo xtask", "--json"]).json();
    let (count, ends) = (answer["count"].as_u64().unwrap(), answer["ends"].as_u64().unwrap());
    let next = answer["next"].as_array().unwrap();
    let sum: u64 = next.iter().map(|next| next["count"].as_u64().unwrap()).sum();
    assert!(count > 3 && sum + ends == count && answer["matched"].as_u64().unwrap() > 1, "{answer}");
    let shown = xtask(&["index", "query", "--index", &index, "cargo xtask"]).success();
    assert!(shown.contains("tokens known") && shown.contains("probability"), "{shown}");
}

#[test]
fn mistakes_are_named() {
    let desk = Desk::new();
    let index = index(&desk);
    let generate = |draft: &str| xtask(&["generate", "--prompt", "a", "--draft", draft]).mistake();
    let whole = fs::read(&index).unwrap();
    fs::write(desk.path("cut"), &whole[..whole.len() - 10]).unwrap();
    assert!(generate(&format!("infinigram:{}", desk.arg("cut"))).contains("it was cut or extended; build it again"));
    let mut altered = whole.clone();
    altered[5000] ^= 1;
    fs::write(desk.path("altered"), &altered).unwrap();
    assert!(generate(&format!("rest:{}", desk.arg("altered"))).contains("altered since it was written"));
    let model = desk.model_with_tokenizer("other");
    let other =
        xtask(&["generate", "--model", &model, "--prompt", "<s> w7", "--draft", &format!("infinigram:{index}")]);
    assert!(other.mistake().contains("built with another tokenizer"));
    assert!(generate(&format!("model:{model}")).contains("must use the same tokens"));
    assert!(generate("skip:5").contains("at most 4 can be skipped"));
    assert!(generate("infinigram:nowhere").contains("nowhere"));
    let misspelt = xtask(&["generate", "--prompt", "a", "--draft", "sufix"]);
    assert_eq!(misspelt.status, 2);
    assert!(misspelt.stderr.contains("expected none, lookup, ngram, suffix"), "{}", misspelt.stderr);
    fs::write(desk.path("empty.txt"), "").unwrap();
    let empty =
        xtask(&["index", "build", "--text", &desk.arg("empty.txt"), "--out", &desk.arg("none.index")]).mistake();
    assert!(!desk.path("none.index").exists(), "{empty}");
}
