//! `compress` from end to end, and the commands that look at its result.

use std::fs;

use crate::fixtures::{Desk, TWO_STAGES, assert_same, llama, result, shared, words};
use crate::xtask;

#[test]
fn a_compressed_model_opens_verifies_and_keeps_its_promises() {
    let desk = Desk::new();
    let (model, out) = (desk.model_with_tokenizer("small"), desk.arg("out"));
    let (ids, recipe) = (desk.ids("ids.safetensors", 16, 64), desk.file("r.toml", TWO_STAGES));
    let arguments = ["compress", "--model", &model, "--recipe", &recipe, "--calibration", &ids, "--out", &out];

    let report = xtask(&[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(report["model"]["name"], "small");
    assert_eq!(report["modules"].as_array().unwrap().len(), 3 * 7);
    for module in report["modules"].as_array().unwrap() {
        assert_eq!(module["methods"], serde_json::json!(["sparsegpt", "gptq"]));
        assert!(module["error"].as_f64().is_some_and(|error| error > 0.0 && error < 1.0), "{module}");
    }
    let number = |path: &str| report.pointer(path).and_then(serde_json::Value::as_f64).unwrap();
    assert!(number("/after/sparsity/targeted") >= 0.5);
    // 4 bits, a scale of 32 bits for every 32 weights, and the note of the shape.
    assert!((5.0..5.05).contains(&number("/after/bits_per_weight/targeted")), "{}", report["after"]);
    assert!(number("/after/bytes_resident") < number("/before/bytes_resident"));
    assert!(number("/after/mean_kl") > 0.0 && number("/measured/seconds") > 0.0);
    assert!(report["warnings"][0].as_str().unwrap().contains("--eval FILE"), "{}", report["warnings"]);

    let verified = xtask(&["verify", &out, "--json"]).json();
    assert_eq!((verified["masks"].as_u64(), verified["files"].as_u64()), (Some(21), Some(1)));
    assert!(verified["logits"]["relative"].as_f64().is_some_and(|relative| relative < 1e-4), "{verified}");

    let found = xtask(&["inspect", &out, "--sparsity", "--json"]).json();
    let tensors = found["tensors"].as_array().unwrap();
    let projections = tensors.iter().filter(|tensor| tensor["format"] == "packed 4-bit g32 symmetric");
    assert!(projections.clone().all(|tensor| tensor["pattern"] == "2:4"), "{found}");
    assert_eq!(projections.count(), 21);
    assert_eq!(tensors.len(), 21 + 3 * 2 + 3);

    let generated = xtask(&["generate", "--model", &out, "--prompt", "<s> w7 w8", "--max-new-tokens", "5", "--json"]);
    let generated = generated.json();
    assert_eq!(generated["prompt_ids"], serde_json::json!([1, 7, 8]));
    assert!(generated["ids"].as_array().is_some_and(|ids| ids.len() <= 5), "{generated}");
}

#[test]
fn the_recipe_that_is_left_gives_the_same_model() {
    let desk = Desk::new();
    let (model, ids) = (desk.model("small"), desk.ids("ids.safetensors", 4, 32));
    let recipe = desk.file("r.toml", "[[stage]]\nmethod = \"rtn\" # quick\nbits = 4\ngroup_size = 32\n");
    let left = desk.path("a/recipe.toml").display().to_string();
    for (recipe, out) in [(&recipe, "a"), (&left, "b")] {
        let out = desk.arg(out);
        xtask(&["compress", "--model", &model, "--recipe", recipe, "--calibration", &ids, "--out", &out]).success();
    }
    let mut results = ["a", "b"].map(|out| result(&desk.path(out)));
    // The report names the recipe's path.
    results.iter_mut().for_each(|files| drop(files.remove("report.json")));
    assert_same(&results[0], &results[1]);
    let text = fs::read_to_string(desk.path("a/recipe.toml")).unwrap();
    insta::assert_snapshot!(text, @r#"
    [[stage]]
    method = "rtn"
    bits = 4
    group_size = 32
    scale_type = "f32"
    "#);
}

#[test]
fn threads_and_shards_do_not_change_the_numbers() {
    let desk = Desk::new();
    let (model, ids) = (desk.model("small"), desk.ids("ids.safetensors", 16, 64));
    let recipe = desk.file("r.toml", TWO_STAGES);
    let run = |out: &str, more: &[&str]| {
        let path = desk.arg(out);
        let arguments = ["compress", "--model", &model, "--recipe", &recipe, "--calibration", &ids, "--out", &path];
        xtask(&[&arguments[..], more].concat()).success();
        result(&desk.path(out))
    };
    let one = run("one", &["--threads", "1"]);
    assert_same(&one, &run("two", &["--threads", "2"]));
    let sharded = run("sharded", &["--max-shard-size", "60kB"]);
    assert!(sharded.contains_key("model.safetensors.index.json") && !sharded.contains_key("model.safetensors"));
    assert_eq!(sharded["verify.safetensors"], one["verify.safetensors"]);
    xtask(&["verify", &desk.arg("sharded")]).success();
}

#[test]
fn texts_calibrate_and_evaluate() {
    let desk = Desk::new();
    let model = desk.model_with_tokenizer("small");
    let text = desk.file("train.txt", words(40 * 32));
    let documents: String = (0..8).map(|i| format!("{{\"id\": {i}, \"text\": \"{}\"}}\n", words(64))).collect();
    let lines = desk.file("train.jsonl", documents);
    let other = desk.file("other.txt", words(5 * 32 + 7));
    let run = |out: &str, more: &[&str]| {
        let path = desk.arg(out);
        let arguments = ["compress", "--model", &model, "--window", "32", "--windows", "6", "--out", &path, "--json"];
        xtask(&[&arguments[..], more].concat()).json()
    };
    let report = run("text", &["--calibration", &text]);
    assert_eq!(report["calibration"]["sequences"], 6);
    // 40 · 32 words and a BOS.
    assert_eq!((&report["protocol"]["tokens"], &report["protocol"]["windows"]), (&1281.into(), &40.into()));
    assert!(report["protocol"]["text"].as_str().unwrap().contains("in-sample"), "{report}");

    let report = run("lines", &["--calibration", &lines, "--eval", &other]);
    assert_eq!(
        (&report["calibration"]["source"], &report["calibration"]["length"]),
        (&"train.jsonl".into(), &32.into())
    );
    assert_eq!(report["protocol"]["scored"], 5 * 31);
    assert!(!report["warnings"].to_string().contains("--eval"), "{}", report["warnings"]);

    let own = run("own", &[]);
    assert_eq!((&own["calibration"]["source"], &own["calibration"]["tokens"]), (&"self".into(), &(6 * 32).into()));
    assert_eq!(run("again", &["--seed", "42"])["calibration"], own["calibration"]);
    assert_ne!(run("other", &["--seed", "7"])["calibration"], own["calibration"]);
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let desk = Desk::new();
    let (model, out) = (desk.model("small"), desk.arg("out"));
    let (ids, recipe) = (desk.ids("ids.safetensors", 4, 32), desk.file("r.toml", TWO_STAGES));
    let arguments =
        ["compress", "--model", &model, "--recipe", &recipe, "--calibration", &ids, "--out", &out, "--dry-run"];
    let plan = xtask(&arguments).success();
    for line in ["self_attn.q_proj", "sparsegpt + gptq", "memory: about"] {
        assert!(plan.contains(line), "{line}:\n{plan}");
    }
    let plan = xtask(&[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(plan["layers"].as_array().unwrap().len(), 7);
    assert!(plan["peak_memory"].as_u64().is_some_and(|bytes| bytes > 0), "{plan}");
    assert!(!desk.path("out").exists());
}

#[test]
fn verify_notices_what_changed() {
    let desk = Desk::new();
    let (ids, out) = (desk.ids("ids.safetensors", 4, 32), desk.arg("out"));
    let recipe = desk.file("r.toml", "[[stage]]\nmethod = \"magnitude\"\npattern = \"2:4\"\n");
    let model = llama().display().to_string();
    xtask(&["compress", "--model", &model, "--recipe", &recipe, "--calibration", &ids, "--out", &out]).success();
    assert!(xtask(&["verify", &out]).success().contains("21 masks"));

    // The dense weights in place of the pruned ones.
    let pruned = fs::read(desk.path("out/model.safetensors")).unwrap();
    fs::copy(llama().join("model.safetensors"), desk.path("out/model.safetensors")).unwrap();
    let line = xtask(&["verify", &out]).late_mistake();
    assert!(line.contains("block 0, self_attn.") && line.contains("pattern 2:4"), "{line}");
    fs::remove_file(desk.path("out/recipe.toml")).unwrap();
    let line = xtask(&["verify", &out]).late_mistake();
    assert!(line.contains("logits differ"), "{line}");

    // A weight that is not a number.
    let mut broken = pruned;
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(desk.path("out/model.safetensors"), broken).unwrap();
    let line = xtask(&["verify", &out]).late_mistake();
    assert!(line.contains("holds NaN at position"), "{line}");

    fs::remove_file(desk.path("out/verify.safetensors")).unwrap();
    fs::copy(llama().join("model.safetensors"), desk.path("out/model.safetensors")).unwrap();
    assert!(xtask(&["verify", &out]).success().contains("not compared"));
}

#[test]
fn a_real_model_loses_little() {
    let Some(model) = shared("models/stories260K") else { return };
    let Some(text) = shared("data/tinystories/valid-sample.txt") else { return };
    let desk = Desk::new();
    let (model, text, out) = (model.display().to_string(), text.display().to_string(), desk.arg("out"));
    let ids = format!("{model}/calibration.safetensors");
    let arguments = ["compress", "--model", &model, "--calibration", &ids, "--eval", &text, "--out", &out, "--json"];
    let report = xtask(&arguments).json();
    let [before, after] = ["before", "after"].map(|side| report[side]["perplexity"].as_f64().unwrap());
    assert!((before - 5.7351).abs() < 0.01, "{before}");
    assert!(after < before * 1.1, "{after}");
    let eval = xtask(&["eval", "--model", &out, "--text", &text, "--json"]).json();
    assert!((eval["perplexity"].as_f64().unwrap() - after).abs() < 1e-3, "{eval} {after}");
}

#[test]
fn without_a_model_the_one_that_ships_is_compressed() {
    let desk = Desk::new();
    let out = desk.arg("out");
    let few = ["--windows", "8", "--window", "64", "--eval-windows", "4", "--out", &out, "--json"];
    let report = xtask(&[&["compress"][..], &few].concat()).json();
    assert_eq!(report["model"]["name"], "tiny");
    let (before, after) = (&report["before"], &report["after"]);
    assert!(after["bytes_on_disk"].as_u64() < before["bytes_on_disk"].as_u64(), "{report}");
    assert!(before["perplexity"].as_f64().is_some_and(|p| p > 1.0 && p < 4096.0), "{report}");
    let text = xtask(&["generate", "--prompt", "The old man", "--max-new-tokens", "8"]).success();
    assert!(text.trim().len() > 8, "{text}");
}
