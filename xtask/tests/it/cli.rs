//! The command line itself.

use crate::xtask;

#[test]
fn help_lists_every_command_and_succeeds() {
    let run = xtask(&["--help"]);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    for command in [
        "compress",
        "eval",
        "generate",
        "logits",
        "list",
        "inspect",
        "verify",
        "report",
        "random-checkpoint",
        "index",
        "bench",
        "doctor",
        "tidy",
        "ci",
    ] {
        assert!(run.stdout.contains(&format!("\n  {command} ")), "{command} is missing:\n{}", run.stdout);
        let help = xtask(&[command, "--help"]);
        assert_eq!(help.status, 0, "{command}");
        assert!(help.stdout.contains(&format!("Usage: cargo xtask {command}")), "{}", help.stdout);
    }
}

#[test]
fn no_command_shows_the_way_in() {
    let run = xtask(&[]);
    assert_eq!((run.status, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("cargo xtask compress --model DIR"), "{}", run.stderr);
    assert!(run.stderr.lines().count() < 10, "{}", run.stderr);
}

#[test]
fn misspelt_words_get_a_suggestion() {
    for (arguments, suggestion) in [
        (&["compres"][..], "'compress'"),
        (&["lst"], "'list'"),
        (&["compress", "--modle", "d"], "'--model'"),
        (&["list", "--jsno"], "'--json'"),
        (&["random-checkpoint", "--shape", "llama-2b", "--out", "d"], "llama-1b"),
    ] {
        let run = xtask(arguments);
        assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(run.stderr.contains(suggestion), "{arguments:?}: {}", run.stderr);
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for (arguments, expected) in [
        (&["list", "--threads", "0"][..], "expected a whole number of at least 1"),
        (&["compress", "--max-memory", "lots"], "for example 2GiB"),
        (&["generate", "--prompt", "a", "--top-p", "2"], "expected a number from 0 to 1"),
        (&["generate"], "--prompt"),
        (&["compress", "--force", "--resume"], "cannot be used with"),
    ] {
        let run = xtask(arguments);
        assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
    }
}

#[test]
fn list_prints_json_that_others_can_read() {
    let run = xtask(&["list", "--json"]);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&run.stdout).expect("one JSON array");
    for row in &rows {
        for key in ["name", "crate", "family", "paper", "needs"] {
            assert!(row[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {row}");
        }
    }
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    for name in ["wanda", "sparsegpt", "dass", "gptq", "rtn"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}

#[test]
fn list_prints_a_table_with_every_method() {
    let rows: Vec<serde_json::Value> = serde_json::from_str(&xtask(&["list", "--json"]).stdout).unwrap();
    let table = xtask(&["list"]).stdout;
    for row in rows {
        let name = row["name"].as_str().unwrap();
        assert!(table.contains(&format!("\n {name} ")), "{name}:\n{table}");
    }
}

#[test]
fn list_may_be_cut_short_by_its_reader() {
    use std::process::{Command, Stdio};

    let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["list", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn an_unknown_device_is_refused_with_those_there_are() {
    let run = xtask(&["list", "--device", "abacus"]);
    assert_eq!((run.status, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("unknown device `abacus`: this build has `flex`"), "{}", run.stderr);
}

#[test]
fn doctor_measures_this_machine() {
    let run = xtask(&["doctor", "--json", "--threads", "1"]);
    assert_eq!(run.status, 0, "{}", run.stderr);
    let found: serde_json::Value = serde_json::from_str(&run.stdout).expect("one JSON object");
    assert_eq!(found["threads"], 1);
    assert!(found["cpu"].as_str().is_some_and(|name| !name.is_empty()), "{found}");
    assert!(found["devices"].as_array().is_some_and(|devices| devices.contains(&"flex".into())), "{found}");
    for rate in ["read_gb_s", "f32_gflop_s"] {
        assert!(found[rate].as_f64().is_some_and(|value| value > 0.0), "{rate} in {found}");
    }
}

#[test]
fn report_names_the_folder_without_reports() {
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    assert!(xtask(&["report", path]).mistake().contains(path));
    assert!(xtask(&["report", "no/such/folder"]).mistake().contains("no/such/folder"));
}
