//! Mistakes: each gets one line that names what and where, status 2, and leaves nothing behind.

use std::fs;

use serde_json::json;

use crate::fixtures::{Desk, llama, words};
use crate::xtask;

/// What `compress` answers to these arguments, after a look at the folder it must not have made.
#[track_caller]
fn refused(desk: &Desk, arguments: &[&str]) -> String {
    let out = desk.arg("out");
    let line = xtask(&[&["compress", "--out", &out], arguments].concat()).mistake();
    assert!(!desk.path("out").exists(), "a folder was left behind");
    line.replace(&desk.arg(""), "")
}

#[test]
fn broken_checkpoints_are_named() {
    let desk = Desk::new();
    let ids = desk.ids("ids.safetensors", 4, 32);
    let whole = fs::read(llama().join("model.safetensors")).unwrap();
    let header = |json: &str, data: usize| {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.resize(file.len() + data, 0);
        file
    };
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let beyond = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("truncated", whole[..whole.len() - 100].to_vec(), "the download is incomplete"),
        ("short", whole[..5].to_vec(), "5 bytes are too short"),
        ("noise", [&[9u8, 0, 0, 0, 0, 0, 0, 0][..], b"not json!"].concat(), "not a JSON object"),
        (
            "huge",
            [&(1u64 << 60).to_le_bytes()[..], &whole[8..]].concat(),
            "the header claims 1152921504606846976 bytes",
        ),
        ("overlapping", header(overlap, 12), "tensors `a` and `b` overlap"),
        ("beyond", header(beyond, 4), "ends at byte 8 of 4"),
    ];
    for (name, bytes, expected) in cases {
        let model = desk.model(name);
        fs::write(desk.path(name).join("model.safetensors"), bytes).unwrap();
        let line = refused(&desk, &["--model", &model, "--calibration", &ids]);
        assert!(line.contains(expected) && line.contains(&format!("{name}/model.safetensors")), "{name}: {line}");
        // Every command that opens a model says the same.
        assert_eq!(xtask(&["inspect", &model]).mistake().replace(&desk.arg(""), ""), line);
    }
}

#[test]
fn missing_parts_of_a_checkpoint_are_named() {
    let desk = Desk::new();
    let ids = desk.ids("ids.safetensors", 4, 32);
    let with = |model: &str| refused(&desk, &["--model", model, "--calibration", &ids]);

    let line = with(&desk.arg("absent"));
    insta::assert_snapshot!(line, @"`absent` is neither an existing file or folder nor a model id: give a folder, a .safetensors file, or `org/name` with an optional `@revision`");
    fs::create_dir(desk.path("empty")).unwrap();
    insta::assert_snapshot!(with(&desk.arg("empty")), @"`empty` holds neither model.safetensors.index.json nor model.safetensors: is this the folder of a model?");

    let model = desk.model("sharded");
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}).to_string();
    fs::write(desk.path("sharded/model.safetensors.index.json"), index).unwrap();
    insta::assert_snapshot!(with(&model), @"`sharded/model.safetensors.index.json` names the shard `model-00001-of-00002.safetensors`, which is missing (1 tensors): download the checkpoint again or complete it");

    let model = desk.model("family");
    desk.configure("family", "model_type", json!("mamba"));
    insta::assert_snapshot!(with(&model), @"family: config.json: unknown model_type `mamba` (known: llama, mistral, qwen2, qwen3, gemma2, phi3, olmo2, mixtral, deepseek_v3)");

    let model = desk.model("shape");
    desk.configure("shape", "intermediate_size", json!(128));
    insta::assert_snapshot!(with(&model), @"shape: tensor `model.layers.0.mlp.gate_proj.weight`: config.json asks for shape [128, 64], the checkpoint has [160, 64]");

    let model = desk.model("unconfigured");
    fs::remove_file(desk.path("unconfigured/config.json")).unwrap();
    insta::assert_snapshot!(with(&model), @"unconfigured: there is no config.json beside the weights: copy it from where they came from");
}

#[test]
fn recipes_are_checked_before_any_work() {
    let desk = Desk::new();
    let (model, ids) = (desk.model("small"), desk.ids("ids.safetensors", 4, 32));
    let with = |recipe: &str| {
        let recipe = desk.file("r.toml", recipe);
        refused(&desk, &["--model", &model, "--calibration", &ids, "--recipe", &recipe])
    };
    insta::assert_snapshot!(with("[[stage]]\nmethod = \"gptq\"\nbit = 4"), @"r.toml:3: gptq: unknown key `bit`, did you mean `bits`? (known: bits, group_size, granularity, symmetric, clip, scale_type, portable, damping, block_size, order, static_groups)");
    insta::assert_snapshot!(with("[[stage]]\nmethod = \"gtpq\""), @"r.toml:2: unknown method `gtpq`, did you mean `gptq`? (known: magnitude, wanda, dass, sparsegpt, rtn, gptq)");
    insta::assert_snapshot!(with("[[stage]]\nmethod = \"wanda\"\npattern = \"3:2\""), @"r.toml:3: wanda: pattern `3:2`: N:M keeps N of every M weights, with 1 <= N < M <= 256 (for example 2:4)");
    insta::assert_snapshot!(with("[[stage]]\nmethod = \"rtn\"\ngroup_size = 48\nportable = true"), @"r.toml:2: rtn: layer `self_attn.q_proj`: 64 inputs are not a multiple of the group size 48, which other engines require; choose a group size that divides the inputs, or `portable = false`");
    insta::assert_snapshot!(with("[[stage]]\nmethod = \"rtn\"\ntargets = [\"mlp.gate\"]"), @"r.toml:3: `targets` entry `mlp.gate` matches no layer (layers of a block: mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj)");
    insta::assert_snapshot!(with("[[stage]]\nmethod = \"rtn\"\n\n[[stage]]\nmethod = \"wanda\"\npattern = \"2:4\""), @"r.toml:5: `wanda` comes after `rtn`, which has quantised `mlp.down_proj`: put quantisation last, or exclude the layer by `ignore`");
    let absent = desk.arg("absent.toml");
    let line = refused(&desk, &["--model", &model, "--calibration", &ids, "--recipe", &absent]);
    insta::assert_snapshot!(line, @"recipe absent.toml: No such file or directory (os error 2); name a TOML file, for example one of recipes/*.toml");
}

#[test]
fn texts_are_checked_before_any_work() {
    let desk = Desk::new();
    let (bare, model) = (desk.model("bare"), desk.model_with_tokenizer("small"));
    let with = |model: &str, file: &str| refused(&desk, &["--model", model, "--calibration", file]);
    insta::assert_snapshot!(with(&model, &desk.arg("absent.txt")), @"cannot read the text absent.txt: No such file or directory (os error 2)");
    insta::assert_snapshot!(with(&model, &desk.arg("absent.safetensors")), @"absent.safetensors: no such file; give a .safetensors file with `input_ids`");
    insta::assert_snapshot!(with(&model, &desk.file("empty.txt", "")), @"empty.txt: the text is empty");
    insta::assert_snapshot!(with(&model, &desk.file("latin1.txt", b"caf\xe9")), @"latin1.txt: byte 3 is not UTF-8: save the text as UTF-8");
    insta::assert_snapshot!(with(&model, &desk.file("short.txt", words(40))), @"short.txt: the text has 41 tokens, fewer than one window of 256: give a longer text or a smaller window");
    insta::assert_snapshot!(with(&model, &desk.file("lines.jsonl", "{\"txt\": \"a\"}")), @r#"lines.jsonl:1: expected a JSON object with the key `text`, for example {"text": "Once"}"#);
    insta::assert_snapshot!(with(&bare, &desk.file("good.txt", words(600))), @"bare/tokenizer.json: No such file or directory (os error 2); text needs the tokenizer of the model: copy tokenizer.json into its folder");
    desk.configure("small", "bos_token_id", json!(null));
    desk.configure("small", "eos_token_id", json!(null));
    insta::assert_snapshot!(refused(&desk, &["--model", &model]), @"config.json names no token that begins a text, so the model cannot write its own calibration text: give one with --calibration FILE");

    let text = desk.file("tiny.txt", "w3 w4");
    let line = xtask(&["eval", "--model", &model, "--text", &text]).mistake();
    insta::assert_snapshot!(line.replace(&desk.arg(""), ""), @"tiny.txt: the text has 3 tokens, fewer than one window of 256: give a longer text or a smaller window");
    let line = xtask(&["generate", "--model", &bare, "--prompt", "w3"]).mistake();
    insta::assert_snapshot!(line.replace(&desk.arg(""), ""), @"bare/tokenizer.json: No such file or directory (os error 2); text needs the tokenizer of the model: copy tokenizer.json into its folder");
}

#[test]
fn memory_and_ids_are_checked_before_any_work() {
    let desk = Desk::new();
    let (model, ids) = (desk.model("small"), desk.ids("ids.safetensors", 4, 32));
    let line = refused(&desk, &["--model", &model, "--calibration", &ids, "--max-memory", "1MB"]);
    assert!(line.starts_with("the run would need about ") && line.contains("--max-memory 1.00 MB"), "{line}");

    desk.configure("small", "vocab_size", json!(320));
    let output = desk.arg("logits.safetensors");
    let large = llama().join("model.safetensors").display().to_string();
    let line = xtask(&["logits", "--model", &model, "--input", &large, "--output", &output]).mistake();
    assert!(line.contains("has no tensor `input_ids`"), "{line}");
    let nowhere = desk.arg("no/such/folder/logits.safetensors");
    let line = xtask(&["logits", "--model", &model, "--input", &ids, "--output", &nowhere]).mistake();
    assert!(line.contains("there is no folder"), "{line}");
}

#[test]
fn folders_are_never_overwritten_by_accident() {
    let desk = Desk::new();
    let (model, ids) = (desk.model("small"), desk.ids("ids.safetensors", 4, 32));
    let recipe = desk.file("r.toml", "[[stage]]\nmethod = \"rtn\"\n");
    let run = |out: &str, more: &[&str]| {
        let arguments = ["compress", "--model", &model, "--recipe", &recipe, "--calibration", &ids, "--out", out];
        xtask(&[&arguments[..], more].concat())
    };
    let line = |out: &str, more: &[&str]| run(out, more).mistake().replace(&desk.arg(""), "");

    fs::create_dir(desk.path("mine")).unwrap();
    let mine = (desk.file("mine/thesis.txt", "years of work"), desk.arg("mine")).1;
    insta::assert_snapshot!(line(&mine, &[]), @"mine exists and is not empty: choose another folder with --out, --force to replace it");
    insta::assert_snapshot!(line(&mine, &["--force"]), @"mine does not look like the result of a run, so --force does not clear it: choose another folder with --out");
    insta::assert_snapshot!(line(&mine, &["--resume"]), @"mine: there is no interrupted run to resume; leave out --resume, or check --out");
    insta::assert_snapshot!(line(&desk.arg("mine/thesis.txt"), &[]), @"mine/thesis.txt is a file: name a folder with --out");
    // The model itself looks like a result: it is one, but it is also what the run reads.
    insta::assert_snapshot!(line(&model, &["--force"]), @"small holds small, which this run reads, so --force does not clear it: choose another folder with --out");
    assert!(desk.path("mine/thesis.txt").exists() && desk.path("small/model.safetensors").exists());

    let out = desk.arg("out");
    run(&out, &[]).success();
    insta::assert_snapshot!(line(&out, &[]), @"out exists and is not empty: choose another folder with --out, --force to replace it");
    run(&out, &["--force"]).success();
    let again = xtask(&["compress", "--model", &out, "--calibration", &ids, "--out", &desk.arg("twice")]).mistake();
    insta::assert_snapshot!(again.replace(&desk.arg(""), ""), @"out is quantised already: compress the dense checkpoint it was made from");
    let line = xtask(&["random-checkpoint", "--shape", "llama-160m", "--out", &model]).mistake();
    insta::assert_snapshot!(line.replace(&desk.arg(""), ""), @"small holds a checkpoint already: choose another folder with --out");
}
