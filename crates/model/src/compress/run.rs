//! The loop over blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData, s};
use kindling_core::{Block, Compressed, CompressedWeight, Cx, Layer, Mask, Method, Needs, Quantized};
use kindling_tensor_backend::formats::{Dense, Weight};

use super::calibration::{CalibrationSet, TokenWindows};
use super::collect::{Collector, Seen, host_values};
use super::output::{self, StoredProjection, WORK_DIR};
use super::stage::{Stage, Targeted, resolve_targets};
use super::state::{Identity, LayerRecord, State, digest};
use super::stream::{ActivationFile, ActivationWriter};
use crate::checkpoint::{DType, decode_f32, encode_f32};
use crate::compressed_tensors::Scheme;
use crate::decoder::{DecoderBlock, ForwardCx, ModelFiles, Projection, Rotary};
use crate::error::{ModelError, Result};
use crate::evaluate::{Perplexity, kl_sum, nll_sum};
use crate::kv::DenseKv;

/// Tokens that run through a block at a time.
pub(super) const TOKENS_AT_A_TIME: usize = 2048;

/// Where and how to compress.
#[derive(Debug, Clone)]
pub struct CompressOptions {
    /// The folder to write; it may exist only when resuming.
    pub out: PathBuf,
    /// Go on from the interrupted run in `out`.
    pub resume: bool,
    /// The largest shard, in bytes.
    pub max_shard_bytes: u64,
    /// Name of the device, part of what a resumed run must share.
    pub device_name: String,
}

/// What a finished run gives back.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What became of every projection.
    pub records: Vec<LayerRecord>,
    /// Perplexity of the dense model on the evaluation windows.
    pub before: Option<Perplexity>,
    /// Perplexity of the compressed model on the same.
    pub after: Option<Perplexity>,
    /// Mean KL divergence of the compressed model from the dense one, in nats per scored token.
    pub mean_kl: Option<f64>,
    /// Bytes of the weights written.
    pub bytes: u64,
    /// What the compressed model computed in memory, for a later comparison with what the files give.
    pub probe: Option<Probe>,
}

/// The beginning of the first evaluation window, with the logits that the run itself computed for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Logits, row-major `[ids, vocabulary]`.
    pub logits: Vec<f32>,
}

/// Tokens of a [`Probe`].
const PROBE_TOKENS: usize = 64;

/// Compresses `files` by `stages` into `options.out`.
///
/// The result is a function of the arguments: the number of threads and interruptions do not change a byte. A
/// cancelled run ends with [`kindling_core::Error::Cancelled`] and can be resumed.
pub fn compress(
    files: &ModelFiles,
    stages: &[Stage],
    set: &CalibrationSet,
    options: &CompressOptions,
    device: &Device,
    cx: &Cx,
) -> Result<Outcome> {
    if files.quantization().is_some() {
        return Err(ModelError::Input(format!(
            "{} is quantised already: compress the dense checkpoint it was made from",
            files.dir().display()
        )));
    }
    let targets = resolve_targets(files.spec(), stages)?;
    let vocab = files.spec().vocab_size;
    for rows in [Some(&set.calibration), set.evaluation.as_ref()].into_iter().flatten() {
        crate::decoder::check_rows(&rows.rows, vocab)?;
    }
    let work = options.out.join(WORK_DIR);
    std::fs::create_dir_all(&work).map_err(ModelError::io(&work))?;
    let identity = Identity {
        version: env!("CARGO_PKG_VERSION").into(),
        checkpoint: files.checkpoint().fingerprint()?,
        recipe: digest(&stages.iter().map(|s| s.identity.as_str()).collect::<Vec<_>>().join("\n")),
        calibration: set.calibration.sha256.clone(),
        evaluation: set.evaluation.as_ref().map(|e| e.sha256.clone()).unwrap_or_default(),
        seed: cx.seed(),
        device: options.device_name.clone(),
    };
    let run = Run { files, stages, targets, set, work: &work, device, cx };
    let state = if options.resume {
        State::load(&work, &identity)?
    } else {
        let state = State::new(identity);
        run.embed()?;
        state.save(&work)?;
        state
    };
    let state = run.blocks(state)?;
    let quality = run.quality()?;
    let bytes = output::assemble(files, &options.out, &work, &state.records, options.max_shard_bytes)?;
    let (mut before, mut after, mut mean_kl, mut probe) = (None, None, None, None);
    if let Some(quality) = quality {
        (before, after) = (Some(quality.before), Some(quality.after));
        (mean_kl, probe) = (Some(quality.mean_kl), quality.probe);
    }
    Ok(Outcome { records: state.records, before, after, mean_kl, bytes, probe })
}

/// What the evaluation windows show.
struct Quality {
    before: Perplexity,
    after: Perplexity,
    mean_kl: f64,
    probe: Option<Probe>,
}

/// Everything that stays the same from block to block.
struct Run<'a> {
    files: &'a ModelFiles,
    stages: &'a [Stage],
    targets: Vec<Vec<Targeted>>,
    set: &'a CalibrationSet,
    work: &'a Path,
    device: &'a Device,
    cx: &'a Cx,
}

/// The three streams of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// Calibration rows through compressed blocks.
    Calibration,
    /// Evaluation rows through compressed blocks.
    Evaluation,
    /// Evaluation rows through the original blocks.
    Reference,
}

impl Stream {
    const ALL: [Stream; 3] = [Stream::Calibration, Stream::Evaluation, Stream::Reference];

    fn path(self, work: &Path, block: usize) -> PathBuf {
        let name = match self {
            Stream::Calibration => "calibration",
            Stream::Evaluation => "evaluation",
            Stream::Reference => "reference",
        };
        work.join(format!("{name}-{block:05}.f32"))
    }
}

/// A projection while the stages act on its block.
struct Working {
    mask: Option<Mask>,
    quantized: Option<Quantized>,
    notes: Vec<String>,
    seconds: f64,
}

impl Run<'_> {
    fn rows(&self, stream: Stream) -> Option<&TokenWindows> {
        match stream {
            Stream::Calibration => Some(&self.set.calibration),
            Stream::Evaluation | Stream::Reference => self.set.evaluation.as_ref(),
        }
    }

    /// The inputs of `block` in one stream; `None` where there is nothing to evaluate.
    fn open(&self, stream: Stream, block: usize) -> Result<Option<ActivationFile>> {
        let Some(rows) = self.rows(stream) else { return Ok(None) };
        let path = stream.path(self.work, block);
        ActivationFile::open(&path, rows.rows.len(), rows.window(), self.files.spec().hidden_size).map(Some)
    }

    /// Writes the inputs of the first block.
    fn embed(&self) -> Result<()> {
        for stream in Stream::ALL {
            let Some(windows) = self.rows(stream) else { continue };
            let hidden = self.files.spec().hidden_size;
            let path = stream.path(self.work, 0);
            let mut out = ActivationWriter::create(&path, windows.rows.len(), windows.window(), hidden)?;
            for rows in windows.rows.chunks(rows_at_a_time(windows.window())) {
                out.push(self.files.embed(rows, self.device)?)?;
            }
            out.finish()?;
        }
        Ok(())
    }

    fn blocks(&self, mut state: State) -> Result<State> {
        let count = self.files.spec().blocks.len();
        self.cx.progress().begin("blocks", count as u64);
        self.cx.progress().advance(state.next_block as u64);
        while state.next_block < count {
            let index = state.next_block;
            self.block(index, &mut state)?;
            state.next_block = index + 1;
            state.save(self.work)?;
            for stream in Stream::ALL {
                // A stale file is only wasted space: the next run overwrites or ignores it.
                let _ = std::fs::remove_file(stream.path(self.work, index));
            }
            self.cx.progress().advance(1);
        }
        self.cx.progress().end();
        Ok(state)
    }

    /// Compresses one block, writes its part and the inputs of the next.
    fn block(&self, index: usize, state: &mut State) -> Result<()> {
        self.cx.check()?;
        let original = self.files.block(index, self.device)?;
        let mut block = original.clone();
        let targets = &self.targets[index];
        let mut working = self.working(&original)?;
        let mut samples: Option<BTreeMap<String, Seen>> = None;
        for stage in 0..self.stages.len() {
            let mine: Vec<usize> = (0..targets.len()).filter(|&i| targets[i].stages.contains(&stage)).collect();
            if mine.is_empty() {
                continue;
            }
            let seen = self.collect(index, &block, stage, &mine, samples.is_none())?;
            self.act(&mut block, stage, &mine, &seen, &mut working)?;
            samples.get_or_insert(seen);
        }
        self.round_to_stored(&mut block, &working)?;

        let mut stored = Vec::new();
        let pairs = block.projections().into_iter().zip(original.projections());
        for (((projection, before), work), target) in pairs.zip(working).zip(targets) {
            let site = samples.as_ref().and_then(|seen| seen.get(&projection.shape.site));
            let (record, out) = self.record(index, projection, before, work, target, site)?;
            state.records.push(record);
            stored.push(out);
        }
        output::write_part(self.files, self.work, index, stored)?;
        drop(samples);
        for (stream, block) in Stream::ALL.into_iter().zip([&block, &block, &original]) {
            self.propagate(stream, index, block)?;
        }
        Ok(())
    }

    fn working(&self, block: &DecoderBlock) -> Result<Vec<Working>> {
        block
            .projections()
            .into_iter()
            .map(|projection| {
                let values = host_values(projection.weight.to_dense(self.device)?)?;
                let mask = Mask::of_nonzero(projection.shape.rows, projection.shape.cols, &values)?;
                // A checkpoint that was pruned before keeps its zeros; a stray zero is no pruning.
                let mask = (mask.sparsity() >= 0.2).then_some(mask);
                Ok(Working { mask, quantized: None, notes: Vec::new(), seconds: 0.0 })
            })
            .collect()
    }

    /// Runs the calibration rows through the block as it stands and gathers what stage `stage` needs.
    fn collect(
        &self,
        index: usize,
        block: &DecoderBlock,
        stage: usize,
        mine: &[usize],
        first: bool,
    ) -> Result<BTreeMap<String, Seen>> {
        let projections = block.projections();
        let mut needs: BTreeMap<String, Needs> = BTreeMap::new();
        if first {
            // Errors are measured on samples of the inputs of the block as it came.
            needs.extend(projections.iter().map(|p| (p.shape.site.clone(), Needs::Nothing)));
        }
        for &i in mine {
            let shape = &projections[i].shape;
            let need = self.stages[stage].method.needs(shape);
            let entry = needs.entry(shape.site.clone()).or_insert(Needs::Nothing);
            *entry = need.max(*entry);
        }
        if !first && needs.values().all(|&need| need == Needs::Nothing) {
            return Ok(BTreeMap::new());
        }
        let mut collector = Collector::new(needs, first.then(|| self.set.calibration.tokens()));
        self.pass(Stream::Calibration, index, block, Some(&mut collector), None)?;
        Ok(collector.finish())
    }

    /// Lets a stage act on its targets.
    fn act(
        &self,
        block: &mut DecoderBlock,
        stage: usize,
        mine: &[usize],
        seen: &BTreeMap<String, Seen>,
        working: &mut [Working],
    ) -> Result<()> {
        let layers = self.layers(block, mine, working)?;
        let results: Vec<(Compressed, f64)> = match &self.stages[stage].method {
            Method::Layer(method) => layers
                .iter()
                .map(|layer| {
                    self.cx.check()?;
                    let start = Instant::now();
                    let unseen;
                    let stats = match seen.get(&layer.shape.site) {
                        Some(seen) => &seen.stats,
                        None => {
                            unseen = kindling_core::Stats::new(layer.shape.cols, method.needs());
                            &unseen
                        }
                    };
                    let result = method.compress(layer, stats, self.cx)?;
                    Ok((result, start.elapsed().as_secs_f64()))
                })
                .collect::<Result<_>>()?,
            Method::Block(method) => {
                let start = Instant::now();
                let unseen: Vec<(String, kindling_core::Stats)> = layers
                    .iter()
                    .filter(|layer| !seen.contains_key(&layer.shape.site))
                    .map(|layer| {
                        let needs = method.needs(&layer.shape);
                        (layer.shape.site.clone(), kindling_core::Stats::new(layer.shape.cols, needs))
                    })
                    .collect();
                let mut stats: Vec<(&str, &kindling_core::Stats)> =
                    seen.iter().map(|(site, seen)| (site.as_str(), &seen.stats)).collect();
                stats.extend(unseen.iter().map(|(site, stats)| (site.as_str(), stats)));
                let results = method.compress(&Block { layers, stats }, self.cx)?;
                let seconds = start.elapsed().as_secs_f64() / mine.len() as f64;
                results.into_iter().map(|result| (result, seconds)).collect()
            }
        };
        let mut projections = block.projections_mut();
        for (&i, (result, seconds)) in mine.iter().zip(results) {
            let (projection, work) = (&mut *projections[i], &mut working[i]);
            work.seconds += seconds;
            work.notes.extend(result.notes);
            work.mask = result.mask.or(work.mask.take());
            let (rows, cols) = (projection.shape.rows, projection.shape.cols);
            projection.weight = match result.weight {
                CompressedWeight::Dense(weight) => Weight::Dense(Dense::new(weight)),
                CompressedWeight::Quantized(quantized) => {
                    quantized.validate()?;
                    // Runs dense while the block is at work; the codes are what is written.
                    let weight = Dense::from_host(rows, cols, quantized.dequantize(), self.device)?;
                    work.quantized = Some(quantized);
                    Weight::Dense(weight)
                }
            };
        }
        Ok(())
    }

    fn layers(&self, block: &DecoderBlock, mine: &[usize], working: &[Working]) -> Result<Vec<Layer>> {
        let projections = block.projections();
        mine.iter()
            .map(|&i| {
                let Projection { shape, weight, .. } = projections[i];
                let mask = working[i].mask.clone();
                Ok(Layer { shape: shape.clone(), weight: weight.to_dense(self.device)?, mask })
            })
            .collect()
    }

    /// Gives dense weights the values that the file will hold: later blocks must see what a reader will see.
    fn round_to_stored(&self, block: &mut DecoderBlock, working: &[Working]) -> Result<()> {
        let dtype = self.files.dtype();
        if dtype == DType::F32 {
            return Ok(());
        }
        for (projection, work) in block.projections_mut().into_iter().zip(working) {
            if work.quantized.is_none() {
                let values = host_values(projection.weight.to_dense(self.device)?)?;
                let stored = encode_f32(dtype, &values).and_then(|bytes| decode_f32(dtype, &bytes));
                let Some(stored) = stored else {
                    return Err(ModelError::Input(format!("weights cannot be stored as {}", dtype.name())));
                };
                let (rows, cols) = (projection.shape.rows, projection.shape.cols);
                projection.weight = Weight::Dense(Dense::from_host(rows, cols, stored, self.device)?);
            }
        }
        Ok(())
    }

    /// The report line of a projection, and what is written of it.
    fn record(
        &self,
        block: usize,
        projection: &Projection,
        before: &Projection,
        mut work: Working,
        target: &Targeted,
        seen: Option<&Seen>,
    ) -> Result<(LayerRecord, StoredProjection)> {
        let shape = &projection.shape;
        let methods: Vec<String> = target.stages.iter().map(|&s| self.stages[s].name.clone()).collect();
        let tokens = seen.map_or(0, |seen| seen.stats.tokens);
        let weight = projection.weight.to_dense(self.device)?;
        let error = match seen {
            Some(seen) if !methods.is_empty() => self.relative_error(&seen.samples, before, &weight)?,
            _ => None,
        };
        let values = host_values(weight)?;
        let nonzero = values.iter().filter(|&&w| w != 0.0).count() as u64;
        if let (Some(mask), None) = (&work.mask, &work.quantized) {
            let lost = mask.kept() as u64 - nonzero.min(mask.kept() as u64);
            if lost > 0 {
                work.notes.push(format!("{lost} kept weights are zero, some by rounding to the stored type"));
            }
        }
        let scheme = work.quantized.as_ref().map(Scheme::of);
        let (format, out) = match work.quantized {
            Some(quantized) => {
                let group = match quantized.granularity {
                    kindling_core::Granularity::Tensor => "per tensor".to_string(),
                    kindling_core::Granularity::Channel => "per channel".to_string(),
                    kindling_core::Granularity::Group(size) => format!("groups of {size}"),
                };
                let sparse = work.mask.map(|m| format!(", {:.0} % zeros", m.sparsity() * 100.0)).unwrap_or_default();
                let kind = if quantized.zeros.is_some() { "asymmetric" } else { "symmetric" };
                let format = format!("{}-bit {kind}, {group}{sparse}", quantized.bits);
                (format, StoredProjection::Quantized(quantized))
            }
            None if methods.is_empty() => (self.files.dtype().name().to_string(), StoredProjection::Verbatim),
            None => {
                let kept = nonzero as f64 / values.len().max(1) as f64;
                let format = format!("{}, {:.0} % zeros", self.files.dtype().name(), (1.0 - kept) * 100.0);
                (format, StoredProjection::Dense(values))
            }
        };
        let record = LayerRecord {
            block,
            name: shape.name.clone(),
            methods,
            format,
            scheme,
            rows: shape.rows,
            cols: shape.cols,
            error,
            tokens,
            nonzero,
            bytes: out.bytes(shape, self.files.dtype()),
            seconds: work.seconds,
            notes: work.notes,
        };
        Ok((record, out))
    }

    /// `‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖` over sampled rows.
    fn relative_error(&self, samples: &[f32], before: &Projection, weight: &Tensor<2>) -> Result<Option<f64>> {
        let original = before.weight.to_dense(self.device)?;
        let cols = before.shape.cols;
        let rows = samples.len() / cols;
        if rows == 0 {
            return Ok(None);
        }
        let x = Tensor::<2>::from_data(TensorData::new(samples[..rows * cols].to_vec(), [rows, cols]), self.device);
        let norm = |w: Tensor<2>| -> Result<f64> {
            let y = host_values(x.clone().matmul(w.transpose()))?;
            Ok(y.into_iter().map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt())
        };
        let whole = norm(original.clone())?;
        Ok(Some(norm(original - weight.clone())? / whole.max(f64::MIN_POSITIVE)))
    }

    /// Runs one stream through `block` and writes the inputs of the next.
    fn propagate(&self, stream: Stream, index: usize, block: &DecoderBlock) -> Result<()> {
        let Some(windows) = self.rows(stream) else { return Ok(()) };
        let path = stream.path(self.work, index + 1);
        let hidden = self.files.spec().hidden_size;
        let mut out = ActivationWriter::create(&path, windows.rows.len(), windows.window(), hidden)?;
        self.pass(stream, index, block, None, Some(&mut out))?;
        out.finish()?;
        Ok(())
    }

    /// Runs the rows of a stream through one block.
    fn pass(
        &self,
        stream: Stream,
        index: usize,
        block: &DecoderBlock,
        mut tap: Option<&mut Collector>,
        mut out: Option<&mut ActivationWriter>,
    ) -> Result<()> {
        let (Some(windows), Some(input)) = (self.rows(stream), self.open(stream, index)?) else { return Ok(()) };
        let rotary = Rotary::new(&self.files.spec().rope, 0, windows.window(), &[], self.device);
        let step = rows_at_a_time(windows.window());
        for from in (0..input.rows()).step_by(step) {
            self.cx.check()?;
            let x = input.read(from, (from + step).min(input.rows()), self.device)?;
            let mut kv = DenseKv::new(1, self.device);
            let tap = tap.as_deref_mut().map(|tap| tap as &mut dyn kindling_core::Tap);
            let y = block.forward(x, &mut ForwardCx { kv: &mut kv, layer: 0, rotary: &rotary, tap })?;
            if let Some(out) = &mut out {
                out.push(y)?;
            }
        }
        Ok(())
    }

    /// Perplexity before and after, the mean divergence, and the first logits.
    fn quality(&self) -> Result<Option<Quality>> {
        let last = self.files.spec().blocks.len();
        let Some(windows) = &self.set.evaluation else { return Ok(None) };
        let (Some(reference), Some(compressed)) =
            (self.open(Stream::Reference, last)?, self.open(Stream::Evaluation, last)?)
        else {
            return Ok(None);
        };
        let head = self.files.head(self.device)?;
        let (mut before, mut after, mut kl) = (0.0, 0.0, 0.0);
        let mut probe = None;
        self.cx.progress().begin("evaluation", windows.rows.len() as u64);
        for (i, row) in windows.rows.iter().enumerate() {
            self.cx.check()?;
            let row = std::slice::from_ref(row);
            let logits = |file: &ActivationFile| -> Result<Tensor<3>> {
                Ok(head.logits(head.norm(file.read(i, i + 1, self.device)?)))
            };
            let (dense, other) = (logits(&reference)?, logits(&compressed)?);
            if i == 0 {
                let count = PROBE_TOKENS.min(row[0].len());
                let logits = host_values(other.clone().slice(s![.., 0..count, ..]))?;
                probe = Some(Probe { ids: row[0][..count].to_vec(), logits });
            }
            before += nll_sum(dense.clone(), row)?;
            after += nll_sum(other.clone(), row)?;
            kl += kl_sum(dense, other)?;
            self.cx.progress().advance(1);
        }
        self.cx.progress().end();
        let scored = windows.rows.len() * (windows.window() - 1);
        let perplexity = |nll| Perplexity::from_sum(nll, scored, windows.text_tokens);
        let (before, after) = (perplexity(before), perplexity(after));
        Ok(Some(Quality { before, after, mean_kl: kl / scored as f64, probe }))
    }
}

/// How many rows run through a block together.
fn rows_at_a_time(window: usize) -> usize {
    (TOKENS_AT_A_TIME / window.max(1)).max(1)
}
