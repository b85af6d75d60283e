//! The commands that train.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixtures::{Desk, words};
use crate::{Run, command, xtask};

/// Twelve steps of a model of 20 thousand parameters.
const CONFIG: &str = r#"
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 32
rms_norm_eps = 1e-5
rope_theta = 10000.0
hidden_act = "silu"
tie_word_embeddings = true

[tokenizer]
vocab_size = 264

[train]
rate = 1e-2
warmup = 2
micro_rows = 2
evaluate_every = 4
checkpoint_every = 3

[[stage]]
tokens = 1024
length = 16
rows = 8

[[stage]]
tokens = 512
length = 32
rows = 4
"#;

const TEXT: &str =
    "the cat sat on the mat and the dog sat on the log; then the cat saw the dog and the dog saw the cat. ";

struct School {
    desk: Desk,
    config: String,
    text: String,
}

impl School {
    fn new() -> Self {
        let desk = Desk::new();
        fs::create_dir(desk.path("texts")).unwrap();
        desk.file("texts/a.txt", TEXT.repeat(40));
        desk.file("texts/b.txt", TEXT.repeat(10));
        let (config, text) = (desk.file("config.toml", CONFIG), desk.arg("texts"));
        Self { desk, config, text }
    }

    fn arguments<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let base = ["pretrain", "--config", &self.config, "--text", &self.text, "--hold-out", "b.txt", "--out", out];
        [&base[..], more].concat()
    }

    fn pretrained(&self, name: &str) -> String {
        let out = self.desk.arg(name);
        xtask(&self.arguments(&out, &[])).success();
        out
    }
}

/// Begins a run, and ends it by a signal once its log has so many lines.
fn stop_after(lines: usize, out: &str, arguments: &[&str], signal: &str) {
    let mut child = command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for _ in 0..5000 {
        let seen = fs::read_to_string(format!("{out}/log.jsonl")).map_or(0, |text| text.lines().count());
        if seen >= lines || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status();
    child.wait().unwrap();
}

/// The log without its clocks.
fn log(out: &str) -> Vec<Value> {
    let text = fs::read_to_string(format!("{out}/log.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("tok_s");
        line
    };
    text.lines().map(line).collect()
}

#[test]
fn a_model_from_scratch_learns_and_is_a_checkpoint() {
    let school = School::new();
    let out = school.desk.arg("model");
    let found = xtask(&school.arguments(&out, &["--json"])).json();
    assert_eq!((&found["steps"], &found["tokens"]), (&json!(12), &json!(1536)));
    assert!(found["held_out"]["bits_per_byte"].as_f64().unwrap() < 8.0, "{found}");
    let log = log(&out);
    assert_eq!(log.len(), 12);
    let loss = |i: usize| log[i]["loss"].as_f64().unwrap();
    assert!(loss(11) < loss(0) - 0.5, "from {} to {}", loss(0), loss(11));
    assert!(log[3]["held_out"].is_number() && log[2].get("held_out").is_none());
    for file in ["model.safetensors", "config.json", "tokenizer.json", "evaluation.json", "loss.svg"] {
        assert!(school.desk.path("model").join(file).exists(), "{file}");
    }
    // Two checkpoints are kept.
    assert_eq!(fs::read_dir(school.desk.path("model/checkpoints")).unwrap().count(), 2);
    let text = xtask(&["generate", "--model", &out, "--prompt", "the cat", "--max-new-tokens", "5", "--json"]).json();
    assert_eq!(text["prompt_ids"][0], 0);
    let eval = school.desk.file("eval.txt", TEXT.repeat(8));
    let perplexity = xtask(&["eval", "--model", &out, "--text", &eval, "--window", "16", "--json"]).json();
    assert!(perplexity["perplexity"].as_f64().unwrap() < 264.0);
}

#[test]
fn a_run_that_was_killed_goes_on_as_if_nothing_had_been() {
    let school = School::new();
    let whole = school.pretrained("whole");
    let out = school.desk.arg("killed");
    stop_after(5, &out, &school.arguments(&out, &[]), "-KILL");
    let refused = xtask(&school.arguments(&out, &[])).mistake();
    assert!(refused.contains("--resume goes on with it"), "{refused}");
    xtask(&school.arguments(&out, &["--resume"])).success();
    assert_eq!(log(&out), log(&whole));
    let weights = |dir: &str| fs::read(format!("{dir}/model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&whole), "the weights differ");
    // Another configuration cannot go on.
    fs::write(&school.config, CONFIG.replace("rate = 1e-2", "rate = 2e-2")).unwrap();
    assert!(xtask(&school.arguments(&out, &["--resume"])).mistake().contains("another `configuration`"));
    // Nor another text.
    fs::write(&school.config, CONFIG).unwrap();
    school.desk.file("texts/a.txt", TEXT.repeat(41));
    assert!(xtask(&school.arguments(&out, &["--resume"])).mistake().contains("another `text`"));
}

#[test]
#[cfg(unix)]
fn a_full_disk_in_a_checkpoint_loses_nothing_before_it() {
    let school = School::new();
    let whole = school.pretrained("whole");
    let out = school.desk.arg("full");
    stop_after(5, &out, &school.arguments(&out, &[]), "-INT");
    let done = log(&out).len();
    // A limit on the size of a file acts like a full disk: the log fits, a checkpoint does not.
    let arguments = school.arguments(&out, &["--resume"]).join("' '");
    let script = format!("ulimit -f 60; trap '' XFSZ; exec '{}' '{arguments}'", env!("CARGO_BIN_EXE_xtask"));
    let full = Run::of(std::process::Command::new("sh").args(["-c", &script]).output().unwrap());
    assert_eq!((full.status, full.stdout.as_str()), (2, ""), "{}", full.stderr);
    let line = full.stderr.lines().last().unwrap();
    assert!(line.starts_with("error: ") && line.contains("--resume") && line.contains("no space left"), "{line}");
    assert!(line.contains("checkpoints/step-"), "{line}");
    assert!(log(&out).len() >= done, "the log of the steps before is kept");
    xtask(&school.arguments(&out, &["--resume"])).success();
    assert_eq!(log(&out), log(&whole));
}

#[test]
fn a_run_that_gets_no_better_ends_early() {
    let school = School::new();
    let out = school.desk.arg("early");
    let stuck = CONFIG.replace("rate = 1e-2", "rate = 1e-20").replace("[train]", "[train]\npatience = 1");
    fs::write(&school.config, stuck).unwrap();
    let run = xtask(&school.arguments(&out, &[]));
    assert!(run.stderr.contains("ending early"), "{}", run.stderr);
    run.success();
    // Looked at after 4 and after 8 of 12 steps.
    assert_eq!(log(&out).len(), 8);
    assert!(school.desk.path("early/model.safetensors").exists());
}

#[test]
fn what_a_student_writes_is_the_same_after_an_interruption() {
    let school = School::new();
    let teacher = school.pretrained("teacher");
    let losses = [
        &["--loss", "jsd", "--on-policy", "0.5"][..],
        &["--loss", "cross-entropy", "--teacher-writes"],
        &["--loss", "minillm", "--texts", "8", "--epochs", "2"],
    ];
    for (i, loss) in losses.into_iter().enumerate() {
        let arguments = |out: &str| -> Vec<String> {
            let base = ["distill", "--teacher", &teacher, "--keep-blocks", "0", "--text", &school.text, "--out", out];
            let how = ["--steps", "24", "--rows", "4", "--length", "24", "--warmup", "1", "--rate", "5e-3"];
            [&base[..], &how, loss].concat().into_iter().map(String::from).collect()
        };
        let (whole, out) = (school.desk.arg(&format!("whole{i}")), school.desk.arg(&format!("stopped{i}")));
        let run = |out: &str, more: &[&str]| {
            let arguments = arguments(out);
            xtask(&[&arguments.iter().map(String::as_str).collect::<Vec<_>>(), more].concat())
        };
        run(&whole, &[]).success();
        let started = arguments(&out);
        stop_after(7, &out, &started.iter().map(String::as_str).collect::<Vec<_>>(), "-INT");
        run(&out, &["--resume"]).success();
        assert_eq!(log(&out), log(&whole), "{loss:?}");
        let weights = |dir: &str| fs::read(format!("{dir}/model.safetensors")).unwrap();
        assert!(weights(&out) == weights(&whole), "{loss:?}: the weights differ");
        let changed = run(&out, &["--resume", "--prompt-tokens", "3"]).mistake();
        assert!(changed.contains("another `prompt_tokens`"), "{changed}");
    }
    let refused = |more: &[&str]| {
        let base = ["distill", "--teacher", &teacher, "--keep-blocks", "0", "--text", &school.text, "--out", "x"];
        xtask(&[&base[..], more].concat()).mistake()
    };
    assert!(refused(&["--loss", "minillm", "--texts", "9"]).contains("a multiple of --rows 8"));
    assert!(refused(&["--loss", "minillm", "--on-policy", "1"]).contains("leave out --on-policy"));
    assert!(refused(&["--teacher-writes", "--prompt-tokens", "999"]).contains("a row has 256 tokens"));
    assert!(refused(&["--loss", "top-k"]).contains("--teacher-store"));
}

#[test]
fn a_store_teaches_in_place_of_the_teacher() {
    let school = School::new();
    let student = school.pretrained("student");
    let teacher = school.desk.arg("teacher");
    let learn = ["distill", "--teacher", &student, "--student", &student, "--text", &school.text, "--out", &teacher];
    let long = ["--loss", "cross-entropy", "--steps", "60", "--rows", "8", "--length", "16", "--rate", "1e-2"];
    xtask(&[&learn[..], &long].concat()).success();

    let store = school.desk.arg("teacher.store");
    let capture = ["capture", "--teacher", &teacher, "--text", &school.text, "--length", "16", "--out", &store];
    let found = xtask(&[&capture[..], &["--k", "20", "--json"]].concat()).json();
    // 20 ids of 9 bits, 20 values of 2 bytes, 4 bytes for the rest.
    assert_eq!(found["bytes_per_token"], 23 + 40 + 4);
    assert!(xtask(&capture).mistake().contains("--force"));
    let run = |out: &str, source: &[&str]| {
        let how = ["--steps", "40", "--rows", "4", "--length", "16", "--warmup", "1", "--rate", "5e-3"];
        let out = school.desk.arg(out);
        xtask(&[&["distill", "--student", &student, "--out", &out][..], source, &how].concat()).success();
        let lines = log(&out);
        [0, 39].map(|i: usize| lines[i]["mean_loss"].as_f64().unwrap())
    };
    let whole = run("whole", &["--teacher", &teacher, "--text", &school.text]);
    let kept = run("kept", &["--teacher-store", &store]);
    assert!(kept[1] < 0.7 * kept[0], "{kept:?}");
    // Twenty of 264 tokens and the rest as one tell nearly everything, and never more than there is.
    assert!(kept[1] < 1.1 * whole[1], "{kept:?} and {whole:?}");

    let refused = |more: &[&str]| xtask(&[&["distill", "--out", &school.desk.arg("x")][..], more].concat()).mistake();
    let with =
        |store: &str, more: &[&str]| refused(&[&["--student", &student, "--teacher-store", store], more].concat());
    assert!(with(&store, &["--loss", "reverse-kl"]).contains("--loss forward-kl"));
    assert!(with(&store, &["--temperature", "2"]).contains("captured at temperature 1"));
    let other = school.desk.model_with_tokenizer("other");
    let strange = refused(&["--student", &other, "--teacher-store", &store]);
    assert!(strange.contains("tokens") || strange.contains("tokenizer"), "{strange}");
    let bytes = fs::read(&store).unwrap();
    let cut = school.desk.file("cut.store", &bytes[..bytes.len() - 5]);
    assert!(with(&cut, &[]).contains("damaged"));
    assert!(with(&school.config, &[]).contains("no store"));
}

#[test]
fn threads_do_not_change_what_is_learnt() {
    let school = School::new();
    let (one, three) = (school.desk.arg("one"), school.desk.arg("three"));
    xtask(&school.arguments(&one, &["--threads", "1"])).success();
    xtask(&school.arguments(&three, &["--threads", "3"])).success();
    assert_eq!(log(&one), log(&three));
}

#[test]
fn tasks_are_learnt_without_a_text() {
    let desk = Desk::new();
    let config = CONFIG
        .replace("vocab_size = 264", "tasks = [\"niah_single\", \"copy\"]")
        .replace("max_position_embeddings = 32", "max_position_embeddings = 96")
        .replace("length = 16", "context = 64\nlength = 88")
        .replace("length = 32", "context = 64\nlength = 88");
    let (config, out) = (desk.file("tasks.toml", config), desk.arg("out"));
    let found = xtask(&["pretrain", "--config", &config, "--out", &out, "--json"]).json();
    let tasks = found["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), 2);
    assert_eq!((&tasks[0]["task"], &tasks[0]["context"]), (&json!("niah_single"), &json!(64)));

    // Going on from it, with rows of two lengths.
    let after = |stages: &str| format!("[tokenizer]\ntasks = [\"niah_single\", \"copy\"]\n{stages}");
    let config = fs::read_to_string(&config).unwrap();
    let stages = &config[config.find("[train]").unwrap()..];
    let two = stages.replace("context = 64", "context = 64\nshorter = [48]");
    let more = desk.file("more.toml", after(&two));
    let found = xtask(&["pretrain", "--config", &more, "--from", &out, "--out", &desk.arg("more"), "--json"]).json();
    let contexts: Vec<u64> =
        found["tasks"].as_array().unwrap().iter().map(|t| t["context"].as_u64().unwrap()).collect();
    assert_eq!(contexts, [48, 48, 64, 64]);
    for shorter in ["64", "5"] {
        let wrong = desk.file("wrong.toml", after(&two.replace("[48]", &format!("[{shorter}]"))));
        let arguments = ["pretrain", "--config", &wrong, "--from", &out, "--out", &desk.arg("wrong")];
        assert!(xtask(&arguments).mistake().contains(&format!("`shorter`: {shorter}: below 64")));
    }
    let school = School::new();
    let text_model = school.pretrained("first");
    let arguments = ["pretrain", "--config", &more, "--from", &text_model, "--out", &desk.arg("other")];
    assert!(xtask(&arguments).mistake().contains("264 tokens; a model of tasks has 256"));
}

#[test]
fn a_text_that_stands_again_and_again_is_learnt_sooner() {
    let school = School::new();
    let repeats = "length = 32\nrepeats = { period = [2, 4] }";
    let config = school.desk.file("repeats.toml", CONFIG.replace("length = 32", repeats));
    let out = school.desk.arg("repeats");
    let base = ["pretrain", "--config", &config, "--text", &school.text, "--out", &out];
    xtask(&base).success();
    let losses = |out: &str| log(out).iter().map(|line| line["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    let (plain, repeating) = (losses(&school.pretrained("plain")), losses(&out));
    assert_eq!(plain.len(), repeating.len());
    assert!(repeating[11] < repeating[8] && repeating[11] != plain[11], "{repeating:?} beside {plain:?}");
    let rows = school.desk.ids_below(264, "rows.safetensors", 96, 33);
    let more = CONFIG[CONFIG.find("[train]").unwrap()..].replace("length = 32", repeats);
    let (more, from) = (school.desk.file("more.toml", more), school.desk.arg("plain"));
    let given = ["pretrain", "--config", &more, "--from", &from, "--rows", &rows, "--out", "x"];
    assert!(xtask(&given).mistake().contains("`repeats` makes rows of --text"));
}

#[test]
fn a_checkpoint_goes_on_with_another_text_or_with_given_rows() {
    let school = School::new();
    let first = school.pretrained("first");
    let stages = &CONFIG[CONFIG.find("[train]").unwrap()..];
    let config = school.desk.file("more.toml", stages);
    let out = school.desk.arg("more");
    let base = ["pretrain", "--config", &config, "--from", &first, "--out"];
    let found = xtask(&[&base[..], &[&out, "--text", &school.text, "--hold-out", "b.txt", "--json"]].concat()).json();
    let before: Value = serde_json::from_str(&fs::read_to_string(format!("{first}/evaluation.json")).unwrap()).unwrap();
    let bits = |found: &Value| found["held_out"]["bits_per_byte"].as_f64().unwrap();
    assert!(bits(&found) < bits(&before), "{found} after {before}");
    let one = stages[..stages.rfind("[[stage]]").unwrap()].to_string();
    let config = school.desk.file("rows.toml", &one);
    let rows = school.desk.ids_below(264, "rows.safetensors", 64, 17);
    let out = school.desk.arg("rows");
    let base = ["pretrain", "--config", &config, "--from", &first, "--rows"];
    xtask(&[&base[..], &[&rows, "--out", &out]].concat()).success();
    assert_eq!(log(&out).len(), 8);
    let refused = |rows: &str| xtask(&[&base[..], &[rows, "--out", &school.desk.arg("x")]].concat()).mistake();
    assert!(refused(&school.desk.ids("few.safetensors", 63, 17)).contains("63 rows, but the stages ask for 64"));
    assert!(refused(&school.desk.ids_below(264, "short.safetensors", 64, 16)).contains("rows of 16 tokens"));
    assert!(refused(&school.desk.ids("wide.safetensors", 64, 17)).contains("the vocabulary of 264"));
    let both = ["pretrain", "--config", &school.config, "--from", &first, "--text", &school.text, "--out", "x"];
    assert!(xtask(&both).mistake().contains("leave out [model] and [tokenizer]"));
    let none = ["pretrain", "--config", &config, "--text", &school.text, "--out", "x"];
    assert!(xtask(&none).mistake().contains("[tokenizer] is missing"));
}

#[test]
fn mistakes_in_training_are_told_in_a_line() {
    let school = School::new();
    let out = school.desk.arg("out");
    let with = |config: &str| {
        fs::write(&school.config, config).unwrap();
        xtask(&school.arguments(&out, &[])).mistake()
    };
    assert!(with(&CONFIG.replace("rate = 1e-2", "rat = 1e-2")).contains("rat"));
    assert!(with(&CONFIG.replace("length = 32", "length = 64")).contains("32 positions"));
    let repeating = |repeats: &str| CONFIG.replace("length = 32", &format!("length = 32\nrepeats = {{ {repeats} }}"));
    assert!(
        with(&repeating("quotes = [8, 33]")).contains("stage 2: `repeats`: passages of [8, 33] tokens: 1 to the 32")
    );
    assert!(with(&repeating("random = 0.5")).contains("one of `period` and `quotes` is needed"));
    assert!(with(&CONFIG.replace("num_attention_heads = 4", "num_attention_heads = 5")).contains("heads"));
    fs::write(&school.config, CONFIG.replace("vocab_size = 264", "vocab_size = 40000")).unwrap();
    assert!(xtask(&school.arguments(&out, &[])).late_mistake().contains("tokens to learn"));
    fs::write(&school.config, CONFIG).unwrap();
    let small = school.desk.file("small.txt", "a cat");
    let refused = |arguments: &[&str]| xtask(arguments).mistake();
    let config = school.config.as_str();
    assert!(refused(&["pretrain", "--config", config, "--out", &school.desk.arg("o1")]).contains("--text"));
    assert!(
        xtask(&["pretrain", "--config", config, "--text", &small, "--out", &school.desk.arg("o2")])
            .late_mistake()
            .contains("more text")
    );
    let absent = ["pretrain", "--config", config, "--text", &school.text, "--hold-out", "c.txt", "--out", &out];
    assert!(refused(&absent).contains("--hold-out c.txt"));
    assert!(refused(&["pretrain", "--config", "absent.toml", "--text", &small, "--out", &out]).contains("absent.toml"));
}

#[test]
fn half_of_a_model_learns_from_the_whole() {
    let school = School::new();
    let teacher = school.pretrained("teacher");
    let out = school.desk.arg("student");
    let base =
        ["distill", "--teacher", &teacher, "--text", &school.text, "--out", &out, "--steps", "30", "--rows", "4"];
    let short = ["--length", "16", "--warmup", "1", "--rate", "5e-3"];
    let eval = school.desk.file("eval.txt", TEXT.repeat(40));
    let arguments = [&base[..], &short, &["--keep-blocks", "1", "--eval", &eval, "--json"]].concat();
    let found = xtask(&arguments).json();
    assert!(found["perplexity"]["teacher"].is_number() && found["perplexity"]["after"].is_number(), "{found}");
    let losses = log(&out);
    let loss = |i: usize| losses[i]["loss"].as_f64().unwrap();
    assert!(loss(29) < 0.7 * loss(0), "from {} to {}", loss(0), loss(29));
    assert_eq!(xtask(&["inspect", &out, "--json"]).json()["family"], "llama");
    let config: Value = serde_json::from_str(&fs::read_to_string(format!("{out}/config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], 1);

    let other_loss = xtask(&[&base[..], &short, &["--keep-blocks", "1", "--loss", "reverse-kl", "--resume"]].concat());
    assert!(other_loss.mistake().contains("another `loss`"));
    let again = xtask(&[&base[..], &short, &["--keep-blocks", "7", "--force"]].concat()).mistake();
    assert!(again.contains("blocks 0 to 1"), "{again}");
    let other = school.desk.model_with_tokenizer("other");
    let strange = xtask(&[&base[..], &short, &["--student", &other, "--force"]].concat()).mistake();
    assert!(strange.contains("different tokenizers"), "{strange}");
    let misspelt = xtask(&[&base[..], &short, &["--keep-blocks", "0", "--loss", "foward-kl", "--force"]].concat());
    assert!(misspelt.mistake().contains("`forward-kl`"));
}

#[test]
fn an_adapter_heals_a_quantised_model_and_is_loaded_beside_it() {
    let school = School::new();
    let teacher = school.pretrained("teacher");
    let recipe = school.desk.file("r.toml", "[[stage]]\nmethod = \"rtn\"\nbits = 2\ngroup_size = 0\n");
    let (small, adapter) = (school.desk.arg("small"), school.desk.arg("adapter"));
    let eval = school.desk.file("eval.txt", TEXT.repeat(40));
    let compress = ["compress", "--model", &teacher, "--recipe", &recipe, "--calibration", &eval, "--out", &small];
    xtask(&[&compress[..], &["--window", "16", "--windows", "4"]].concat()).success();
    for (kind, out) in [("lora", adapter.clone()), ("dora", school.desk.arg("dora"))] {
        let heal = ["heal", "--model", &small, "--teacher", &teacher, "--text", &school.text, "--out", &out];
        let how = ["--steps", "30", "--rows", "4", "--length", "16", "--rate", "1e-2", "--warmup", "1", "--json"];
        let found = xtask(&[&heal[..], &how, &["--eval", &eval, "--adapter", kind]].concat()).json();
        let after = found["perplexity"]["after"].as_f64().unwrap();
        let losses = log(&out);
        let loss = |i: usize| losses[i]["loss"].as_f64().unwrap();
        assert!(loss(29) < 0.7 * loss(0), "{kind}: from {} to {}", loss(0), loss(29));
        let arguments = ["eval", "--model", &small, "--adapter", &out, "--text", &eval, "--json"];
        let measured = xtask(&arguments).json()["perplexity"].as_f64().unwrap();
        assert!((measured / after - 1.0).abs() < 1e-4, "{measured} and {found}");
    }
    // Nothing of what is compressed can be rounded.
    let out = school.desk.arg("rounded");
    let heal = ["heal", "--model", &small, "--teacher", &teacher, "--text", &school.text, "--out", &out];
    let rounded = xtask(&[&heal[..], &["--steps", "2", "--length", "16", "--precision", "bf16"]].concat());
    assert!(rounded.late_mistake().contains("nothing to round"));
    let config: Value =
        serde_json::from_str(&fs::read_to_string(format!("{adapter}/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&json!("LORA"), &json!(8)));
    // An adapter of another model does not fit.
    let other = school.desk.model_with_tokenizer("other");
    let text = school.desk.file("words.txt", words(400));
    let strange = xtask(&["eval", "--model", &other, "--adapter", &adapter, "--text", &text]).mistake();
    assert!(strange.contains("adapter"), "{strange}");
}

#[test]
fn pruned_weights_stay_pruned_while_they_learn() {
    let school = School::new();
    let teacher = school.pretrained("teacher");
    let recipe = school.desk.file("r.toml", "[[stage]]\nmethod = \"magnitude\"\npattern = \"2:4\"\n");
    let eval = school.desk.file("eval.txt", TEXT.repeat(40));
    let small = school.desk.arg("small");
    let compress = ["compress", "--model", &teacher, "--recipe", &recipe, "--calibration", &eval, "--out", &small];
    xtask(&[&compress[..], &["--window", "16", "--windows", "4"]].concat()).success();
    for (out, how) in [("full", &["--adapter", "none"][..]), ("lora", &["--adapter", "lora", "--merge"])] {
        let out = school.desk.arg(out);
        let heal =
            ["heal", "--model", &small, "--teacher", &teacher, "--text", &school.text, "--out", &out, "--masked"];
        let few = ["--steps", "4", "--rows", "4", "--length", "16", "--rate", "1e-2"];
        xtask(&[&heal[..], &few, how].concat()).success();
        let zeros = |dir: &str| -> Vec<bool> {
            let checkpoint = kindling_model::checkpoint::Checkpoint::open(dir).unwrap();
            let name = "model.layers.1.mlp.up_proj.weight";
            checkpoint.tensor_f32(name).unwrap().into_iter().map(|w| w == 0.0).collect()
        };
        assert_eq!(zeros(&out), zeros(&small));
        assert_eq!(zeros(&out).iter().filter(|&&zero| zero).count(), 48 * 32 / 2);
    }
    // Without zeros there is nothing to keep.
    let heal = ["heal", "--model", &teacher, "--teacher", &teacher, "--text", &school.text, "--masked"];
    let dense = Run::of(
        command(&[&heal[..], &["--adapter", "none", "--out", &school.desk.arg("d")]].concat()).output().unwrap(),
    );
    assert!(dense.stderr.contains("no trained matrix has a zero"), "{}", dense.stderr);
}

#[test]
fn a_student_learns_the_layers_of_its_teacher() {
    let school = School::new();
    let teacher = school.pretrained("teacher");
    let out = school.desk.arg("half");
    let base = ["distill", "--teacher", &teacher, "--text", &school.text, "--out", &out, "--keep-blocks", "0"];
    let few = ["--steps", "20", "--rows", "4", "--length", "16", "--rate", "1e-2", "--warmup", "1"];
    let all = ["--layers", "states=5,relations=0.5,attention,scores", "--relation-heads", "2", "--force"];
    for precision in ["f32", "bf16"] {
        xtask(&[&base[..], &few, &all, &["--precision", precision]].concat()).success();
        let losses = log(&out);
        let loss = |i: usize| losses[i]["loss"].as_f64().unwrap();
        assert!(loss(19) < 0.9 * loss(0), "{precision}: from {} to {}", loss(0), loss(19));
    }
    let text = school.desk.file("eval.txt", TEXT.repeat(10));
    xtask(&["eval", "--model", &out, "--text", &text]).success();
    // Mistakes.
    let failed = |more: &[&str]| xtask(&[&base[..], &few, &["--force"], more].concat());
    let misspelt = Run::of(command(&[&base[..], &["--layers", "state"]].concat()).output().unwrap());
    assert!(misspelt.stderr.contains("`states`"), "{}", misspelt.stderr);
    assert!(failed(&["--layers", "relations", "--relation-heads", "7"]).late_mistake().contains("7 relation heads"));
    assert!(failed(&["--layers", "attention", "--teacher-block", "2"]).late_mistake().contains("no block 2"));
    assert!(failed(&["--layers", "states", "--checkpoint-blocks"]).late_mistake().contains("checkpointing"));
    let alone =
        ["heal", "--model", &teacher, "--text", &school.text, "--out", &out, "--force", "--loss", "cross-entropy"];
    assert!(xtask(&[&alone[..], &["--layers", "states"]].concat()).mistake().contains("--teacher"));
}

#[test]
fn a_model_learns_which_answer_is_better() {
    let school = School::new();
    let model = school.pretrained("model");
    let line = |n: usize| match n % 2 {
        0 => json!({"prompt": format!("the small {n} "), "chosen": "bird sang", "rejected": "ship sank in the sea"}),
        _ => json!({"prompt": "a ", "answers": [
            {"text": "dog", "score": 1.0}, {"text": "tree stood", "score": 4.5}, {"text": "cat", "score": 2}]}),
    };
    let lines: Vec<String> = (0..16).map(|n| line(n).to_string()).collect();
    let pairs = school.desk.file("pairs.jsonl", lines.join("\n"));
    let out = school.desk.arg("aligned");
    let base = ["align", "--model", &model, "--pairs", &pairs, "--out", &out, "--length", "32"];
    let how = ["--pairs-per-step", "4", "--epochs", "6", "--rate", "1e-2"];
    let found = xtask(&[&base[..], &how, &["--json"]].concat()).json();
    assert_eq!((&found["pairs"], &found["steps"]), (&json!(16), &json!(24)));
    assert_eq!(found["accuracy"], json!(1.0));
    assert!(found["margin"].as_f64().unwrap() > 0.0, "{found}");
    let losses = log(&out);
    assert!((losses[0]["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-5, "{}", losses[0]);
    // Taken up from its last checkpoint it is the same run.
    let again = school.desk.arg("again");
    let base_again = ["align", "--model", &model, "--pairs", &pairs, "--out", &again, "--length", "32"];
    stop_after(5, &again, &[&base_again[..], &how].concat(), "-INT");
    xtask(&[&base_again[..], &how, &["--resume"]].concat()).success();
    assert_eq!(log(&again), losses);
    // The answers themselves, without a comparison.
    let taught = school.desk.arg("taught");
    let one = school.desk.file("one.jsonl", "{\"prompt\": \"the \", \"chosen\": \"bird sang\"}\n\n");
    let dsft = ["align", "--model", &model, "--pairs", &one, "--out", &taught, "--length", "32", "--adapter", "none"];
    let found = xtask(
        &[
            &dsft[..],
            &["--loss", "cross-entropy", "--epochs", "8", "--pairs-per-step", "1", "--rate", "1e-2", "--json"],
        ]
        .concat(),
    )
    .json();
    assert!(found.get("accuracy").is_none(), "{found}");
    let losses = log(&taught);
    assert!(losses[0]["loss"].as_f64() > losses.last().unwrap()["loss"].as_f64());
    // Mistakes.
    let mistake = |file: &str, more: &[&str]| {
        xtask(&[&["align", "--model", &model, "--pairs", file, "--out", &out, "--force"][..], more].concat())
            .late_mistake()
    };
    assert!(mistake(&one, &["--length", "32"]).contains("`rejected` is missing"));
    assert!(mistake(&pairs, &["--length", "9999"]).contains("positions"));
    assert!(mistake(&pairs, &["--length", "2"]).contains("none of 16 pairs"));
    let broken = school.desk.file("broken.jsonl", "{\"prompt\": 3}");
    assert!(mistake(&broken, &["--length", "32"]).contains("broken.jsonl:1: expected `prompt`"));
    let chat = school.desk.file(
        "chat.jsonl",
        json!({"prompt": [{"role": "user", "content": "hi"}], "chosen": "a", "rejected": "b"}).to_string(),
    );
    assert!(mistake(&chat, &["--length", "32"]).contains("no chat template"));
    let distil = ["distill", "--teacher", &model, "--keep-blocks", "0", "--text", &school.text, "--out", &out];
    assert!(xtask(&[&distil[..], &["--loss", "dpo", "--force"]].concat()).mistake().contains("xtask align"));
}
