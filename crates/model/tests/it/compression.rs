//! The block stream with a method of the test's own: what is written, resumed and refused.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kindling_core::{
    Compressed, CompressedWeight, Cx, Family, Layer, LayerMethod, LayerShape, Method, Needs, Progress, Result, Stats,
};
use kindling_model::compress::{CalibrationSet, CompressOptions, Outcome, Stage, TokenWindows, compress};
use kindling_model::{ModelError, ModelFiles, Wanted};

use crate::common::{device, distance, fixture, load, values};

/// Multiplies a weight by a number that depends on what its inputs looked like.
struct Scale;

impl LayerMethod for Scale {
    fn needs(&self) -> Needs {
        Needs::Moments
    }
    fn bits_per_weight(&self, _: &LayerShape, dense_bits: f64) -> f64 {
        dense_bits
    }
    fn compress(&self, layer: &Layer, stats: &Stats, _: &Cx) -> Result<Compressed> {
        stats.require(&layer.shape.name, Needs::Moments, layer.shape.cols)?;
        assert_eq!(stats.gram.len(), layer.shape.cols * layer.shape.cols);
        let trace: f64 = stats.sum_sq.iter().sum::<f64>() / stats.tokens as f64;
        let weight = layer.weight.clone().mul_scalar(1.0 - 0.1 / (1.0 + trace));
        Ok(Compressed { weight: CompressedWeight::Dense(weight), mask: None, notes: Vec::new() })
    }
}

fn stages(targets: fn(&LayerShape) -> bool) -> Vec<Stage> {
    vec![Stage {
        name: "scale".into(),
        family: Family::Prune,
        method: Method::Layer(Box::new(Scale)),
        targets: Box::new(targets),
        identity: "scale".into(),
    }]
}

/// Cancels the run once so many units of progress are done.
struct CancelAfter {
    left: AtomicU64,
    flag: Arc<AtomicBool>,
}

impl Progress for CancelAfter {
    fn advance(&self, steps: u64) {
        if steps > 0 && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
}

fn set(seed: u32) -> CalibrationSet {
    let rows =
        |from: u32, count: u32| (0..count).map(|r| (0..24).map(|t| (from + r * 31 + t * 7) % 320).collect()).collect();
    CalibrationSet {
        calibration: TokenWindows::from_rows("made up", rows(seed, 12)).unwrap(),
        evaluation: Some(TokenWindows::from_rows("made up", rows(seed + 5, 3)).unwrap()),
    }
}

fn run(model: &Path, out: &Path, resume: bool, set: &CalibrationSet, cx: &Cx) -> Result<Outcome, ModelError> {
    let files = ModelFiles::open(model).unwrap();
    let options =
        CompressOptions { out: out.to_path_buf(), resume, max_shard_bytes: 200_000, device_name: "flex".into() };
    compress(&files, &stages(|_| true), set, &options, &device(), cx)
}

/// Every file of the output but the work folder.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_run_cancelled_at_every_block_and_resumed_writes_the_same_bytes() {
    for family in ["llama", "mixtral", "deepseek_v3"] {
        let model = fixture(&format!("hf/{family}"));
        let whole = tempfile::tempdir().unwrap();
        let outcome = run(&model, whole.path(), false, &set(3), &Cx::new(1)).unwrap();
        let expected = contents(whole.path());
        assert!(expected.iter().any(|(name, _)| name.ends_with(".index.json")), "several shards were asked for");

        let part = tempfile::tempdir().unwrap();
        for block in 0..3 {
            let flag = Arc::new(AtomicBool::new(false));
            let progress = CancelAfter { left: AtomicU64::new(if block == 0 { 1 } else { 2 }), flag: flag.clone() };
            let cx = Cx::new(1).with_cancel(flag).with_progress(Arc::new(progress));
            let result = run(&model, part.path(), block > 0, &set(3), &cx);
            if block < 2 {
                assert!(matches!(result, Err(ModelError::Core(kindling_core::Error::Cancelled))), "{family} {block}");
            }
        }
        let resumed = run(&model, part.path(), true, &set(3), &Cx::new(1)).unwrap();
        assert_eq!(contents(part.path()), expected, "{family}");
        assert_eq!(resumed.after, outcome.after);
        assert_eq!(resumed.mean_kl, outcome.mean_kl);
        assert_eq!(resumed.records.len(), outcome.records.len());

        // Another seed or text is another run.
        let message =
            |set: &CalibrationSet, seed| run(&model, part.path(), true, set, &Cx::new(seed)).unwrap_err().to_string();
        assert!(message(&set(3), 2).contains("differs in seed"));
        assert!(message(&set(4), 1).contains("differs in calibration text"));
    }
}

#[test]
fn what_is_written_computes_what_the_run_computed() {
    for family in ["llama", "phi3", "qwen2", "gemma2", "mixtral"] {
        let out = tempfile::tempdir().unwrap();
        let outcome = run(&fixture(&format!("hf/{family}")), out.path(), false, &set(3), &Cx::new(1)).unwrap();
        let probe = outcome.probe.unwrap();
        let model = load(out.path());
        let logits =
            model.forward(std::slice::from_ref(&probe.ids), &[], &mut model.new_kv(), Wanted::AllLogits).unwrap();
        let difference = distance(&values(logits), &probe.logits);
        assert!(difference <= 1e-4, "{family}: {difference}");
        assert!(outcome.mean_kl.unwrap() > 0.0);
        let errors: Vec<f64> = outcome.records.iter().filter_map(|r| r.error).collect();
        assert!(!errors.is_empty() && errors.iter().all(|e| (1e-4..0.1).contains(e)), "{errors:?}");
    }
}

/// Keeps every other weight, along the inputs or without a pattern.
struct Halve;

impl LayerMethod for Halve {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
    fn bits_per_weight(&self, _: &LayerShape, dense_bits: f64) -> f64 {
        dense_bits
    }
    fn compress(&self, layer: &Layer, _: &Stats, _: &Cx) -> Result<Compressed> {
        let mut weight = values(layer.weight.clone());
        let kept = |i: usize| {
            if layer.shape.name.starts_with("mlp") { i % 4 < 2 } else { (i * i + i / 3).count_ones().is_multiple_of(2) }
        };
        weight.iter_mut().enumerate().filter(|(i, _)| !kept(*i)).for_each(|(_, w)| *w = 0.0);
        let data = burn::tensor::TensorData::new(weight, [layer.shape.rows, layer.shape.cols]);
        let weight = CompressedWeight::Dense(burn::tensor::Tensor::from_data(data, &device()));
        Ok(Compressed { weight, mask: None, notes: Vec::new() })
    }
}

#[test]
fn pruned_weights_are_sparse_again_once_loaded() {
    let mut stages = stages(|_| true);
    stages[0].method = Method::Layer(Box::new(Halve));
    let out = tempfile::tempdir().unwrap();
    let files = ModelFiles::open(fixture("hf/llama")).unwrap();
    let options = CompressOptions {
        out: out.path().to_path_buf(),
        resume: false,
        max_shard_bytes: u64::MAX,
        device_name: "flex".into(),
    };
    let outcome = compress(&files, &stages, &set(3), &options, &device(), &Cx::new(1)).unwrap();
    let model = load(out.path());
    // Elsewhere there are no kernels for them, and they run dense.
    let projections = if cfg!(target_arch = "x86_64") { model.blocks()[0].projections() } else { vec![] };
    for projection in projections {
        let pattern = if projection.shape.name.starts_with("mlp") { "sparse 2:4" } else { "bitmask" };
        let name = projection.weight.format_name();
        assert!(name.starts_with(pattern), "{}: {name}", projection.shape.name);
    }
    let dense = load(&fixture("hf/llama"));
    let [sparse, dense] = [&model, &dense].map(|model| model.blocks()[0].bytes());
    assert!(sparse * 4 < dense * 3, "{sparse} of {dense} bytes");
    let probe = outcome.probe.unwrap();
    let logits = model.forward(std::slice::from_ref(&probe.ids), &[], &mut model.new_kv(), Wanted::AllLogits).unwrap();
    assert!(distance(&values(logits), &probe.logits) <= 1e-4);
}

#[test]
fn stages_that_match_nothing_or_come_after_quantisation_are_refused() {
    let files = ModelFiles::open(fixture("hf/llama")).unwrap();
    let nothing = stages(|shape| shape.name == "mlp.fc1");
    let error = kindling_model::compress::resolve_targets(files.spec(), &nothing).unwrap_err().to_string();
    assert!(error.contains("matches no projection") && error.contains("mlp.down_proj"), "{error}");

    let mut twice = stages(|_| true);
    twice[0].family = Family::Quantise;
    twice.extend(stages(|_| true));
    let error = kindling_model::compress::resolve_targets(files.spec(), &twice).unwrap_err().to_string();
    assert!(error.contains("put the quantising stage last"), "{error}");
}
