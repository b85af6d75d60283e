//! Writing a checkpoint shard by shard, so that it can be continued where it stopped.
//!
//! A checkpoint is written in a known number of *parts* (one part per block of the model, say), each with one call.
//! A part becomes one file `model-00003-of-00034.safetensors`; one that is larger than allowed is continued in
//! `model-00003.1-of-00034.safetensors` and so on, and these are written *before* the file with the plain name, whose
//! presence therefore means that the part is complete. The index comes last: before it nothing looks like a model.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::atomic::{atomic_write, atomic_write_with};
use super::dtype::{DType, encode_f32};
use super::error::{CheckpointError, Result};
use super::header::{Header, METADATA};
use super::hub::file_names;
use super::index::{INDEX_FILE, ShardIndex};
use super::reader::{Checkpoint, SINGLE_FILE, TensorView};

/// How a [`Writer`] lays out its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterOptions {
    /// The number of [`Writer::write_shard`] calls that make the checkpoint complete; with 1, a single
    /// `model.safetensors` without an index is written if it is not too large.
    pub parts: usize,
    /// The largest number of tensor bytes in one file. A single tensor that is larger has a file of its own.
    pub max_shard_bytes: u64,
    /// The free text of every header.
    pub metadata: BTreeMap<String, String>,
}

impl Default for WriterOptions {
    /// One part, files of up to 5 GB, and `format: pt`, without which some readers refuse a file.
    fn default() -> Self {
        WriterOptions {
            parts: 1,
            max_shard_bytes: 5_000_000_000,
            metadata: BTreeMap::from([("format".into(), "pt".into())]),
        }
    }
}

/// A tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub struct OutTensor<'a> {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its elements, row-major and little-endian.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> OutTensor<'a> {
    /// A float tensor from `f32` values, rounded to nearest even.
    ///
    /// # Errors
    /// `dtype` is not F16, BF16, F32 or F64.
    pub fn from_f32(name: impl Into<String>, dtype: DType, shape: &[usize], values: &[f32]) -> Result<Self> {
        let name = name.into();
        match encode_f32(dtype, values) {
            Some(bytes) => Ok(OutTensor { name, dtype, shape: shape.to_vec(), bytes: bytes.into() }),
            None => Err(CheckpointError::Tensor { name, reason: format!("dtype {dtype} does not hold f32 values") }),
        }
    }

    /// A tensor copied from another checkpoint, bit for bit.
    pub fn copy_of(view: TensorView<'a>) -> Self {
        let info = view.info;
        OutTensor { name: info.name.into(), dtype: info.dtype, shape: info.shape.to_vec(), bytes: view.bytes.into() }
    }

    fn check(&self) -> Result<()> {
        let expected = self.dtype.bytes_for(&self.shape);
        let reason = if self.name.is_empty() || self.name == METADATA {
            "this name is not allowed".to_owned()
        } else if expected != Some(self.bytes.len()) {
            let expected = expected.map_or("an impossible number of".into(), |bytes| bytes.to_string());
            let (dtype, shape, found) = (self.dtype, &self.shape, self.bytes.len());
            format!("dtype {dtype} and shape {shape:?} need {expected} bytes, found {found}")
        } else {
            return Ok(());
        };
        Err(CheckpointError::Tensor { name: self.name.clone(), reason })
    }
}

/// A finished part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its files in the output folder, usually one.
    pub files: Vec<String>,
    /// The names of its tensors, sorted.
    pub tensors: Vec<String>,
    /// The bytes of its tensors.
    pub bytes: u64,
}

/// Writes a checkpoint part by part.
///
/// ```
/// use kindling_model::checkpoint::{Checkpoint, DType, OutTensor, Writer, WriterOptions};
///
/// let dir = tempfile::tempdir()?;
/// let mut writer = Writer::create(dir.path(), WriterOptions { parts: 2, ..Default::default() })?;
/// for name in ["a", "b"] {
///     writer.write_shard(&[OutTensor::from_f32(name, DType::BF16, &[2], &[1.0, -0.5])?])?;
/// }
/// writer.finish()?;
/// assert_eq!(Checkpoint::open(dir.path())?.tensor_f32("b")?, [1.0, -0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    options: WriterOptions,
    done: Vec<ShardInfo>,
    weight_map: BTreeMap<String, String>,
}

impl Writer {
    /// Starts a checkpoint in a folder, which is created if need be and must not hold one yet.
    ///
    /// # Errors
    /// The folder cannot be created or holds weights already.
    pub fn create(dir: impl AsRef<Path>, options: WriterOptions) -> Result<Self> {
        let writer = Self::new(dir.as_ref(), options)?;
        match writer.strangers().first() {
            Some(name) => Err(writer.output(format!(
                "holds `{name}` already: choose another folder, delete the old weights, or resume the run that wrote them"
            ))),
            None => Ok(writer),
        }
    }

    /// Continues a checkpoint: parts that are complete are checked and kept, see [`Writer::done`]; the remains of an
    /// incomplete one are removed. In an empty folder this is [`Writer::create`].
    ///
    /// # Errors
    /// A finished file is damaged, or the folder holds weights that a writer with these options did not write.
    pub fn resume(dir: impl AsRef<Path>, options: WriterOptions) -> Result<Self> {
        let mut writer = Self::new(dir.as_ref(), options)?;
        while let Some(files) = writer.files_of_next() {
            writer.accept(files)?;
        }
        let next = writer.done.len() + 1;
        for name in writer.strangers() {
            let unfinished = (1..).map(|piece| writer.file_name(next, piece)).take(1 << 16).any(|ours| ours == name);
            if !unfinished {
                return Err(writer.output(format!(
                    "holds `{name}`, which is not one of the {} parts of this run: choose another folder or delete it",
                    writer.options.parts
                )));
            }
            let path = writer.dir.join(name);
            fs::remove_file(&path).map_err(|error| CheckpointError::io("remove", &path, error))?;
        }
        Ok(writer)
    }

    fn new(dir: &Path, options: WriterOptions) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|error| CheckpointError::io("create", dir, error))?;
        let writer = Writer { dir: dir.to_owned(), options, done: Vec::new(), weight_map: BTreeMap::new() };
        match writer.options.parts {
            0 => Err(writer.output("a checkpoint has at least one part".into())),
            _ => Ok(writer),
        }
    }

    /// The parts that are complete, in order.
    pub fn done(&self) -> &[ShardInfo] {
        &self.done
    }

    /// Writes the next part. When this returns, the part survives a crash.
    ///
    /// The files depend on nothing but the options and the tensors.
    ///
    /// # Errors
    /// A tensor is not what it says, is already written, all parts are, or the disk is full.
    pub fn write_shard(&mut self, tensors: &[OutTensor<'_>]) -> Result<&ShardInfo> {
        if self.done.len() == self.options.parts {
            return Err(self.output(format!("all {} parts are written already", self.options.parts)));
        }
        let mut names = BTreeSet::new();
        for tensor in tensors {
            tensor.check()?;
            if self.weight_map.contains_key(&tensor.name) || !names.insert(&tensor.name) {
                let reason = "it is written already".into();
                return Err(CheckpointError::Tensor { name: tensor.name.clone(), reason });
            }
        }
        let pieces = self.pieces(tensors);
        let part = self.done.len() + 1;
        let mut files = Vec::new();
        for (number, piece) in pieces.iter().enumerate().rev() {
            let name = match pieces.len() {
                1 if self.options.parts == 1 => SINGLE_FILE.to_owned(),
                _ => self.file_name(part, number),
            };
            self.write_file(&self.dir.join(&name), piece)?;
            files.insert(0, name);
        }
        self.accept(files)?;
        Ok(&self.done[part - 1])
    }

    /// Writes the index (a single file needs none), which makes the folder a checkpoint. Returns the bytes of all
    /// tensors.
    ///
    /// # Errors
    /// Parts are missing, or the index cannot be written.
    pub fn finish(self) -> Result<u64> {
        let (done, parts) = (self.done.len(), self.options.parts);
        if done < parts {
            return Err(self.output(format!("only {done} of {parts} parts are written: write the others first")));
        }
        let total = self.done.iter().map(|part| part.bytes).sum();
        if self.done[0].files != [SINGLE_FILE] {
            let index = ShardIndex { weight_map: self.weight_map };
            atomic_write(self.dir.join(INDEX_FILE), index.to_json(total).as_bytes())?;
        }
        Ok(total)
    }

    /// Fills files in the order of the tensors up to the allowed size.
    fn pieces<'t, 'b>(&self, tensors: &'t [OutTensor<'b>]) -> Vec<Vec<&'t OutTensor<'b>>> {
        let mut pieces = vec![Vec::new()];
        let mut filled = 0;
        for tensor in tensors {
            let bytes = tensor.bytes.len() as u64;
            if filled > 0 && filled + bytes > self.options.max_shard_bytes {
                pieces.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            pieces.last_mut().expect("never empty").push(tensor);
        }
        for piece in &mut pieces {
            // Wide types first keeps every tensor aligned to its elements.
            piece.sort_by(|a, b| b.dtype.bits().cmp(&a.dtype.bits()).then_with(|| a.name.cmp(&b.name)));
        }
        pieces
    }

    fn write_file(&self, path: &Path, tensors: &[&OutTensor<'_>]) -> Result<()> {
        let entries = tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.bytes.len()));
        let header = Header::text(&self.options.metadata, entries);
        atomic_write_with(path, |file| {
            file.write_all(&header)?;
            tensors.iter().try_for_each(|tensor| file.write_all(&tensor.bytes))
        })
    }

    /// Reads back the headers of a part's files and counts the part as done.
    fn accept(&mut self, files: Vec<String>) -> Result<()> {
        let mut part = ShardInfo { files: Vec::new(), tensors: Vec::new(), bytes: 0 };
        for file in files {
            let shard = Checkpoint::open(self.dir.join(&file))?;
            for name in shard.names() {
                if let Some(other) = self.weight_map.insert(name.into(), file.clone()) {
                    return Err(self.output(format!("both `{other}` and `{file}` hold tensor `{name}`: delete them")));
                }
                part.tensors.push(name.into());
            }
            part.bytes += shard.total_bytes();
            part.files.push(file);
        }
        part.tensors.sort();
        self.done.push(part);
        Ok(())
    }

    /// The files of the next part if it is complete on the disk.
    fn files_of_next(&self) -> Option<Vec<String>> {
        let part = self.done.len() + 1;
        let there = |name: &String| self.dir.join(name).exists();
        if part > self.options.parts {
            return None;
        }
        if self.options.parts == 1 && there(&SINGLE_FILE.to_owned()) {
            return Some(vec![SINGLE_FILE.to_owned()]);
        }
        let pieces = (0..).map(|piece| self.file_name(part, piece));
        Some(pieces.take_while(there).collect::<Vec<_>>()).filter(|files| !files.is_empty())
    }

    fn file_name(&self, part: usize, piece: usize) -> String {
        let piece = if piece == 0 { String::new() } else { format!(".{piece}") };
        format!("model-{part:05}{piece}-of-{:05}.safetensors", self.options.parts)
    }

    /// Weight files in the folder that are not of a part that is done.
    fn strangers(&self) -> Vec<String> {
        let ours: BTreeSet<_> = self.done.iter().flat_map(|part| &part.files).collect();
        let complete = self.done.len() == self.options.parts && self.done[0].files != [SINGLE_FILE];
        let weights = |name: &String| {
            (name.starts_with("model") && name.ends_with(".safetensors") && !ours.contains(name))
                || (name == INDEX_FILE && !complete)
        };
        file_names(&self.dir).into_iter().filter(weights).collect()
    }

    fn output(&self, reason: String) -> CheckpointError {
        CheckpointError::Output { dir: self.dir.clone(), reason }
    }
}
