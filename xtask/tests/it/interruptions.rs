//! Runs that are stopped by force, by Ctrl-C and by a full disk, and what `--resume` makes of them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixtures::{Desk, TWO_STAGES, assert_same, result};
use crate::{Run, command, xtask};

/// One compression, to be stopped and resumed.
struct Job {
    desk: Desk,
    arguments: Vec<String>,
}

impl Job {
    /// Long enough that its moments can be told apart.
    fn new() -> Self {
        let desk = Desk::new();
        let (model, ids) = (desk.model("small"), desk.ids("ids.safetensors", 64, 128));
        let recipe = desk.file("r.toml", TWO_STAGES);
        let arguments = ["compress", "--model", &model, "--recipe", &recipe, "--calibration", &ids, "--out"];
        let arguments = arguments.map(String::from).into();
        Self { desk, arguments }
    }

    fn command(&self, out: &str, more: &[&str]) -> Command {
        let out = self.desk.arg(out);
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).chain([out.as_str()]).collect();
        command(&[&arguments, more].concat())
    }

    /// A run that nothing disturbs, or that goes on.
    #[track_caller]
    fn run(&self, out: &str, more: &[&str]) -> Run {
        Run::of(self.command(out, more).output().unwrap())
    }

    fn start(&self, out: &str) -> Child {
        self.command(out, &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Starts the run and kills it at the first moment when `now` holds of its folder. Tries again where the run was
    /// over before it was caught.
    #[track_caller]
    fn kill_when(&self, out: &str, now: impl Fn(&Path) -> bool) {
        for _ in 0..10 {
            let mut child = self.start(out);
            let caught = wait(&mut child, || now(&self.desk.path(out)));
            child.kill().unwrap();
            if caught && child.wait().unwrap().code().is_none() {
                return;
            }
            fs::remove_dir_all(self.desk.path(out)).unwrap();
        }
        panic!("the run could not be caught");
    }
}

/// Waits until `now` holds; `false` if the process ended before.
#[track_caller]
fn wait(child: &mut Child, now: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if now() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "nothing happened for two minutes");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The first block that is not finished; `None` before the run has begun.
fn next_block(out: &Path) -> Option<u64> {
    let state = fs::read_to_string(out.join(".kindling/state.json")).ok()?;
    serde_json::from_str::<serde_json::Value>(&state).ok()?["next_block"].as_u64()
}

#[test]
fn a_run_killed_anywhere_ends_as_if_nothing_had_happened() {
    let job = Job::new();
    job.run("whole", &[]).success();
    let whole = result(&job.desk.path("whole"));

    for block in 0..=3 {
        let out = format!("killed-{block}");
        job.kill_when(&out, |out| next_block(out) == Some(block));
        assert!(!job.desk.path(&out).join("config.json").exists(), "an unfinished result looks finished");
        job.run(&out, &["--resume"]).success();
        assert_same(&whole, &result(&job.desk.path(&out)));
    }
    // After the weights, and after everything but the end of the clearing up.
    for last in ["config.json", "recipe.toml", "report.json"] {
        let out = format!("killed-{last}");
        job.kill_when(&out, |out| out.join(last).exists());
        job.run(&out, &["--resume"]).success();
        assert_same(&whole, &result(&job.desk.path(&out)));
    }
    // Twice in one run.
    job.kill_when("twice", |out| next_block(out) == Some(1));
    let mut child = job.command("twice", &["--resume"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait(&mut child, || next_block(&job.desk.path("twice")).is_none_or(|next| next >= 2));
    child.kill().unwrap();
    child.wait().unwrap();
    job.run("twice", &["--resume"]).success();
    assert_same(&whole, &result(&job.desk.path("twice")));
}

#[test]
#[cfg(unix)]
fn ctrl_c_says_how_to_go_on() {
    let job = Job::new();
    for _ in 0..10 {
        let mut child = job.start("out");
        wait(&mut child, || next_block(&job.desk.path("out")) == Some(1));
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let run = Run::of(child.wait_with_output().unwrap());
        if run.status == 0 {
            fs::remove_dir_all(job.desk.path("out")).unwrap();
            continue;
        }
        assert_eq!(run.status, 130, "{}", run.stderr);
        let line = run.stderr.lines().last().unwrap();
        assert_eq!(line, "stopped: finished blocks are kept; go on with the same command and --resume");
        job.run("out", &["--resume"]).success();
        return;
    }
    panic!("the run could not be caught");
}

#[test]
#[cfg(unix)]
fn a_full_disk_keeps_what_is_finished() {
    let desk = Desk::new();
    let (model, ids) = (desk.model("small"), desk.ids("ids.safetensors", 4, 32));
    let recipe = desk.file("r.toml", "[[stage]]\nmethod = \"rtn\"\nbits = 8\n");
    let run = |out: &str, limited: bool, more: &str| {
        let (out, program) = (desk.arg(out), env!("CARGO_BIN_EXE_xtask"));
        let limit = if limited { "ulimit -f 200; trap '' XFSZ;" } else { "" };
        let script = format!(
            "{limit} exec '{program}' compress --model '{model}' --recipe '{recipe}' --calibration '{ids}' \
             --out '{out}' {more}"
        );
        Run::of(Command::new("sh").args(["-c", &script]).output().unwrap())
    };
    // A limit on the size of a file acts like a full disk: blocks fit, all of them together do not.
    let run_limited = run("out", true, "");
    assert_eq!((run_limited.status, run_limited.stdout.as_str()), (2, ""), "{}", run_limited.stderr);
    let line = run_limited.stderr.lines().last().unwrap();
    assert!(line.starts_with("error: no space left to write `") && line.contains("model.safetensors"), "{line}");
    assert!(!desk.path("out/model.safetensors").exists() && !desk.path("out/config.json").exists());
    run("out", false, "--resume").success();
    run("whole", false, "").success();
    assert_same(&result(&desk.path("whole")), &result(&desk.path("out")));
}

#[test]
fn only_the_same_run_can_go_on() {
    let job = Job::new();
    job.kill_when("out", |out| next_block(out) == Some(1));
    let line = job.run("out", &[]).mistake();
    assert!(line.contains("is not empty") && line.contains("--resume to go on"), "{line}");
    let line = job.run("out", &["--resume", "--seed", "7"]).late_mistake();
    assert!(line.contains("differs in seed (it had 42, now 7)"), "{line}");
    job.run("out", &["--force"]).success();
    let line = job.run("out", &["--resume", "--out", "no-such-folder"]).stderr;
    assert!(line.contains("cannot be used multiple times"), "{line}");
    // A finished run has nothing left to do.
    let again = job.run("out", &["--resume"]);
    assert!(again.stderr.contains("was finished already"), "{}", again.stderr);
    again.success();
    assert!(xtask(&["verify", &job.desk.arg("out")]).success().contains("21 masks"));
}
