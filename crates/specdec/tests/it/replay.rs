//! Novels as transcripts: a guess is right if the novel goes on with it. A round of `k` guesses takes `1 + 0.08 k`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter};
use kindling_specdec::calibration::Calibration;
use kindling_specdec::drafters::infinigram::{Infinigram, InfinigramConfig};
use kindling_specdec::index::{BuildOptions, Index, IndexBuilder};
use kindling_specdec::planner::{CostModel, Pass, plan};
use kindling_specdec::verify::follow;

/// A folder of the shared test data; `None` (with a line that says so) where it is absent, a failure in CI.
fn books() -> Option<PathBuf> {
    let root = std::env::var_os("KINDLING_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = root.join("data/books");
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is absent: set KINDLING_SHARED", path.display());
    eprintln!("skipped: {} is absent (set KINDLING_SHARED to the folder with the test data)", path.display());
    None
}

/// The novels that play the target; no index holds them.
const HELD_OUT: [&str; 3] = ["the-wind-in-the-willows.txt", "dracula.txt", "heidi.txt"];

fn tokens(text: &[u8]) -> Vec<u32> {
    text.iter().map(|&byte| byte.into()).collect()
}

fn index(books: &Path, most: usize) -> Arc<Index<Vec<u8>>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(books).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| HELD_OUT.iter().all(|name| !path.ends_with(name)));
    paths.sort();
    let mut builder = IndexBuilder::new(255, [0; 32], BuildOptions::default()).unwrap();
    for path in paths {
        let text = std::fs::read(path).unwrap();
        builder.push_bytes(&text[..text.len().min(most.saturating_sub(builder.tokens()))]).unwrap();
    }
    Arc::new(Index::read(builder.into_bytes().unwrap()).unwrap())
}

/// A prompt and how it goes on: passages of novels, and every fourth time a passage that repeats the prompt's.
fn requests(books: &Path) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut requests = Vec::new();
    for name in HELD_OUT {
        let text = std::fs::read(books.join(name)).unwrap();
        for i in 0..4 {
            let at = text.len() / 5 * i + 10_000;
            let (prompt, rest) = (tokens(&text[at..at + 2000]), tokens(&text[at + 2000..at + 3000]));
            if i == 3 {
                // One byte in thirty is another.
                let edited =
                    prompt[500..1500].iter().enumerate().map(|(k, &b)| if k % 30 == 17 { u32::from(b'*') } else { b });
                let edited = edited.collect();
                requests.push((prompt, edited));
            } else {
                requests.push((prompt, rest));
            }
        }
    }
    requests
}

#[derive(Default)]
struct Outcome {
    tokens: f64,
    rounds: f64,
    time: f64,
    /// Confidence and rightness of guesses, after the first thousand tokens.
    guesses: Vec<(f64, bool)>,
}

impl Outcome {
    fn rate(&self) -> f64 {
        self.tokens / self.time
    }

    /// Expected calibration error over ten bins.
    fn error(&self) -> f64 {
        let bin = |confidence: f64| ((confidence * 10.0) as usize).min(9);
        (0..10)
            .map(|b| {
                let inside: Vec<_> = self.guesses.iter().filter(|(confidence, _)| bin(*confidence) == b).collect();
                let gap: f64 = inside.iter().map(|(confidence, right)| confidence - f64::from(u8::from(*right))).sum();
                gap.abs() / self.guesses.len() as f64
            })
            .sum()
    }
}

/// Lets `drafter` guess along every request; `slope` is the cost of a guess, `most` guesses at most, all of them if
/// not `planned`.
fn replay(
    drafter: &mut dyn Drafter,
    requests: &[(Vec<u32>, Vec<u32>)],
    slope: f64,
    most: usize,
    planned: bool,
) -> Outcome {
    let mut costs = CostModel::default();
    let pass = |guesses, tree| Pass { batch: 1, context: 1, guesses, tree };
    (0..=64).for_each(|k| costs.push(pass(k, false), 1.0 + slope * k as f64));
    let mut outcome = Outcome::default();
    for (prompt, rest) in requests {
        drafter.begin(prompt).unwrap();
        let mut at = 0;
        while at < rest.len() {
            let mut draft = Draft::default();
            let room = Room { nodes: most, depth: most.min(rest.len() - at), trees: planned, batch: 1 };
            drafter.propose(&room, &mut draft).unwrap();
            if outcome.tokens > 1000.0 {
                let right = |node: usize| {
                    draft.path(node).iter().enumerate().all(|(i, &on)| draft.nodes()[on].token == rest[at + i])
                };
                let guesses = draft.nodes().iter().enumerate();
                outcome.guesses.extend(guesses.map(|(i, node)| (f64::from(node.confidence), right(i))));
            }
            if planned {
                plan(&mut costs, 1, &mut [&mut draft]);
            }
            let mut verdict =
                follow(&draft, |_, prefix| Ok(rest.get(at + prefix.len()).copied().unwrap_or(u32::MAX))).unwrap();
            verdict.tokens.truncate(rest.len() - at);
            drafter.commit(&verdict.tokens).unwrap();
            at += verdict.tokens.len();
            outcome.tokens += verdict.tokens.len() as f64;
            outcome.rounds += 1.0;
            let time = 1.0 + slope * draft.len() as f64;
            costs.push(pass(draft.len(), !draft.is_chain()), time);
            outcome.time += time;
        }
    }
    outcome
}

fn fresh(index: Option<&Arc<Index<Vec<u8>>>>, config: InfinigramConfig) -> Infinigram<Vec<u8>> {
    Infinigram::new(index.cloned(), Arc::new(Mutex::new(Calibration::default())), config)
}

#[test]
fn confidence_is_calibrated_and_lengths_by_expected_gain_beat_fixed_ones() {
    let Some(books) = books() else { return };
    let (index, requests) = (index(&books, 8_200_000), requests(&books));
    let config = InfinigramConfig::default;
    let both = replay(&mut fresh(Some(&index), config()), &requests, 0.08, 64, true);
    let corpus =
        replay(&mut fresh(Some(&index), InfinigramConfig { order: 5000, ..config() }), &requests, 0.08, 64, true);
    let text = replay(&mut fresh(None, config()), &requests, 0.08, 64, true);
    let fixed: Vec<f64> = (1..=10)
        .map(|k| {
            replay(&mut fresh(Some(&index), InfinigramConfig { floor: 0.0, ..config() }), &requests, 0.08, k, false)
                .rate()
        })
        .collect();
    let best_fixed = fixed.iter().copied().fold(0.0, f64::max);
    println!(
        "rate {:.3} (tokens a round {:.3}, calibration error {:.3}); corpus alone {:.3}, text alone {:.3}, best fixed length {best_fixed:.3}",
        both.rate(),
        both.tokens / both.rounds,
        both.error(),
        corpus.rate(),
        text.rate()
    );
    assert!(both.error() <= 0.02, "calibration error {}", both.error());
    assert!(both.rate() > corpus.rate() && both.rate() > text.rate());
    assert!(both.rate() > best_fixed);
    assert!(both.rate() > 1.5, "{}", both.rate());

    // The dearer a guess, the fewer are made; never so many that they cost more than they bring, but for the few that
    // measure what one costs.
    let lengths: Vec<f64> = [0.02, 0.2, 0.5, 4.0]
        .map(|slope| replay(&mut fresh(Some(&index), config()), &requests, slope, 64, true))
        .iter()
        .map(|outcome| {
            assert!(outcome.rate() >= 0.99, "{}", outcome.rate());
            outcome.tokens / outcome.rounds
        })
        .collect();
    assert!(lengths.windows(2).all(|pair| pair[0] >= pair[1]), "{lengths:?}");
}

#[test]
fn the_answer_in_the_index_is_followed_and_longer_matches_in_the_text_are_surer() {
    let Some(books) = books() else { return };
    let requests = requests(&books);
    let mut builder = IndexBuilder::new(255, [0; 32], BuildOptions::default()).unwrap();
    requests.iter().for_each(|(prompt, rest)| builder.push(&[&prompt[..], rest].concat()).unwrap());
    let index = Arc::new(Index::read(builder.into_bytes().unwrap()).unwrap());
    let known = replay(&mut fresh(Some(&index), InfinigramConfig::default()), &requests, 0.01, 64, true);
    println!("tokens a round with the answer in the index: {:.2}", known.tokens / known.rounds);
    assert!(known.tokens / known.rounds > 13.0, "{}", known.tokens / known.rounds);
}
