//! Perplexities after pruning and quantising real models, against an independent implementation in PyTorch that was
//! given the same calibration ids: `reference_figures.json` beside each model.

use crate::fixtures::{Desk, shared};
use crate::xtask;

/// Runs `stage` on a model and compares the perplexity after with the reference figure `group / method`.
fn reproduces(desk: &Desk, model: &str, text: &str, group: &str, method: &str, keys: &str) {
    let (Some(dir), Some(text)) = (shared(model), shared(text)) else { return };
    let figures = std::fs::read_to_string(dir.join("reference_figures.json")).unwrap();
    let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
    let expected = figures[group][method].as_f64().unwrap();

    let recipe = desk.file("recipe.toml", format!("[[stage]]\nmethod = \"{method}\"\n{keys}\n"));
    let (dir, text, out) = (dir.display().to_string(), text.display().to_string(), desk.arg("out"));
    let calibration = format!("{dir}/calibration.safetensors");
    let report = xtask(&[
        "compress",
        "--model",
        &dir,
        "--recipe",
        &recipe,
        "--calibration",
        &calibration,
        "--eval",
        &text,
        "--eval-windows",
        "100000",
        "--out",
        &out,
        "--force",
        "--json",
    ])
    .json();
    let dense = figures["dense"].as_f64().unwrap();
    let [before, after] = ["before", "after"].map(|side| report[side]["perplexity"].as_f64().unwrap());
    assert!((before / dense - 1.0).abs() < 1e-4, "{model} dense: {before}, reference {dense}");
    assert!((after / expected - 1.0).abs() < 0.01, "{model}, {group}, {method}: {after}, reference {expected}");
}

const STORIES: [&str; 2] = ["models/stories260K", "data/tinystories/valid-sample.txt"];
const NOVELS: [&str; 2] = ["models/novels4m", "data/books/the-wind-in-the-willows.txt"];

#[test]
fn quantised_stories() {
    let desk = Desk::new();
    for bits in [8, 4, 3, 2] {
        for method in ["rtn", "gptq"] {
            let keys = format!("bits = {bits}\ngroup_size = 32\nsymmetric = false");
            reproduces(&desk, STORIES[0], STORIES[1], &format!("{bits} bits, groups of 32"), method, &keys);
        }
    }
}

#[test]
fn pruned_stories() {
    let desk = Desk::new();
    let (mlp, all) = ("pattern = \"2:4\"\ntargets = [\"mlp.*\"]", "pattern = \"2:4\"");
    for method in ["magnitude", "wanda", "dass", "sparsegpt"] {
        reproduces(&desk, STORIES[0], STORIES[1], "2:4 mlp only", method, mlp);
    }
    for method in ["magnitude", "wanda", "sparsegpt"] {
        reproduces(&desk, STORIES[0], STORIES[1], "2:4 all", method, all);
    }
}

/// One figure of each kind: the whole table takes minutes.
#[test]
fn novels() {
    let desk = Desk::new();
    let mlp = "pattern = \"2:4\"\ntargets = [\"mlp.*\"]";
    reproduces(&desk, NOVELS[0], NOVELS[1], "2:4 mlp only", "dass", mlp);
    reproduces(&desk, NOVELS[0], NOVELS[1], "2:4 mlp only", "sparsegpt", mlp);
    reproduces(&desk, NOVELS[0], NOVELS[1], "3 bits, groups of 32", "gptq", "bits = 3\ngroup_size = 32");
}
