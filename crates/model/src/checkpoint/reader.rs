//! Reading a checkpoint: everything is checked when it is opened, nothing but headers is read before it is asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::dtype::{DType, decode_f32};
use super::error::{CheckpointError, HeaderError, IndexError, Result};
use super::header::{Header, TensorEntry};
use super::hub::{Env, HubId, file_names, process_env};
use super::index::{INDEX_FILE, ShardIndex};
use super::mmap;

/// The name of the weights file of a checkpoint that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";

/// An open safetensors checkpoint.
///
/// Its files must not be changed in place while it is open (replacing them by rename is fine).
pub struct Checkpoint {
    location: PathBuf,
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Name to shard and position in the shard's header.
    tensors: BTreeMap<String, (usize, usize)>,
}

/// One mapped file.
pub(super) struct Shard {
    pub(super) name: String,
    path: PathBuf,
    map: Mmap,
    header: Header,
}

/// What a header says about a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape, outermost dimension first.
    pub shape: &'a [usize],
    /// The size of its data.
    pub bytes: usize,
    /// The file that holds it.
    pub shard: &'a Path,
}

/// A tensor with its little-endian bytes, borrowed from the mapped file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Type, shape and place.
    pub info: TensorInfo<'a>,
    /// Row-major elements; they need not be aligned.
    pub bytes: &'a [u8],
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let map = mmap::map(&path)?;
        let header = Header::parse(&map)
            .map_err(|source: HeaderError| CheckpointError::Header { path: path.clone(), source })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Shard { name, path, map, header })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl Checkpoint {
    /// Opens a folder, a single `.safetensors` file, or a model of the local Hugging Face cache by its id
    /// (`org/name`, `org/name@revision`). A path that exists wins over an id. Nothing is downloaded.
    ///
    /// # Errors
    /// A file is missing, incomplete or damaged, or the shards do not hold what their index says.
    pub fn open(source: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(source, &process_env)
    }

    /// [`Checkpoint::open`] with another environment to find the cache in.
    pub fn open_with(source: impl AsRef<Path>, env: &Env<'_>) -> Result<Self> {
        let source = source.as_ref();
        if source.is_dir() {
            return Self::open_dir(source);
        }
        if source.exists() {
            return Self::open_file(source);
        }
        let Some(id) = source.to_str().and_then(HubId::parse) else {
            return Err(CheckpointError::NotFound { what: source.display().to_string() });
        };
        let snapshot = id.snapshot(env)?;
        Self::open_dir(&snapshot).map_err(|error| id.incomplete(&snapshot, error))
    }

    fn open_file(path: &Path) -> Result<Self> {
        let shard = Shard::open(path.to_owned())?;
        let names = shard.header.tensors.iter().enumerate().map(|(i, entry)| (entry.name.clone(), (0, i)));
        let tensors = names.collect();
        let dir = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Checkpoint { location: path.to_owned(), dir: dir.to_owned(), shards: vec![shard], tensors })
    }

    fn open_dir(dir: &Path) -> Result<Self> {
        let index = dir.join(INDEX_FILE);
        if index.exists() {
            return Self::open_index(dir, &index);
        }
        let single = dir.join(SINGLE_FILE);
        if !single.exists() {
            return Err(CheckpointError::NoWeights { dir: dir.to_owned(), hint: weights_hint(dir) });
        }
        let checkpoint = Self::open_file(&single)?;
        Ok(Checkpoint { location: dir.to_owned(), ..checkpoint })
    }

    /// The index alone says which files belong to the checkpoint and which tensor comes from which file.
    fn open_index(dir: &Path, path: &Path) -> Result<Self> {
        let json = fs::read_to_string(path).map_err(|error| CheckpointError::io("read", path, error))?;
        let index = ShardIndex::parse(&json)
            .map_err(|source: IndexError| CheckpointError::Index { path: path.to_owned(), source })?;
        let (mut shards, mut tensors) = (Vec::new(), BTreeMap::new());
        for (file, names) in index.shards() {
            let shard_path = dir.join(file);
            if !shard_path.exists() {
                let (index, shard) = (path.to_owned(), file.to_owned());
                return Err(CheckpointError::MissingShard { index, shard, tensors: names.len() });
            }
            let shard = Shard::open(shard_path)?;
            let positions: BTreeMap<_, _> =
                shard.header.tensors.iter().enumerate().map(|(i, entry)| (entry.name.as_str(), i)).collect();
            for name in names {
                let Some(&position) = positions.get(name) else {
                    let (index, shard) = (path.to_owned(), file.to_owned());
                    return Err(CheckpointError::NotInShard { index, shard, tensor: name.to_owned() });
                };
                tensors.insert(name.to_owned(), (shards.len(), position));
            }
            shards.push(shard);
        }
        Ok(Checkpoint { location: dir.to_owned(), dir: dir.to_owned(), shards, tensors })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Type, shape and place of a tensor; reads nothing.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn info(&self, name: &str) -> Result<TensorInfo<'_>> {
        Ok(self.tensor(name)?.info)
    }

    /// A tensor's bytes. They are read from the disk where they are touched.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let &(shard, position) = self.tensors.get(name).ok_or_else(|| self.no_tensor(name))?;
        let shard = &self.shards[shard];
        let entry = &shard.header.tensors[position];
        let bytes = &shard.map[entry.start..entry.end];
        let info = TensorInfo {
            name: &entry.name,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: bytes.len(),
            shard: &shard.path,
        };
        Ok(TensorView { info, bytes })
    }

    /// A tensor of dtype F16, BF16, F32 or F64 as `f32`, row-major.
    ///
    /// # Errors
    /// There is no such tensor, or it is of another type.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>> {
        let view = self.tensor(name)?;
        view.to_f32(view.bytes)
    }

    /// Some rows of a matrix as `f32`, without reading the others.
    ///
    /// # Errors
    /// There is no such tensor, it is not a float matrix, or it has fewer rows.
    pub fn rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let view = self.tensor(name)?;
        let &[count, cols] = view.info.shape else {
            return Err(view.info.wrong_shape("two dimensions"));
        };
        if rows.end > count || rows.start > rows.end {
            return Err(view.info.wrong_shape(format!("at least {} rows", rows.end.max(rows.start))));
        }
        // Of a float type, so the bits of an element are whole bytes: `to_f32` refuses the others.
        let stride = cols * (view.info.dtype.bits() / 8);
        let range = if view.info.dtype.is_float() { rows.start * stride..rows.end * stride } else { 0..0 };
        view.to_f32(&view.bytes[range])
    }

    /// The bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.entries().map(|(_, _, entry)| (entry.end - entry.start) as u64).sum()
    }

    /// The folder of `config.json`, the tokenizer and the other files of the model.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The free text in the headers of all shards; where shards differ, the last one's.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.shards.iter().flat_map(|shard| shard.header.metadata.clone()).collect()
    }

    /// The files that are part of the checkpoint.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    pub(super) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Shard, &TensorEntry)> {
        self.tensors.iter().map(|(name, &(shard, position))| {
            let shard = &self.shards[shard];
            (name.as_str(), shard, &shard.header.tensors[position])
        })
    }

    fn no_tensor(&self, name: &str) -> CheckpointError {
        let bare = name.strip_prefix("model.").unwrap_or(name);
        let candidates = [bare.to_owned(), format!("model.{bare}"), format!("{name}.weight"), format!("{bare}_packed")];
        let similar = candidates.into_iter().find(|candidate| self.contains(candidate));
        CheckpointError::NoTensor { checkpoint: self.location.clone(), name: name.into(), similar }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shards, tensors) = (self.shards.len(), self.tensors.len());
        write!(f, "Checkpoint({}: {tensors} tensors in {shards} files)", self.location.display())
    }
}

impl TensorView<'_> {
    fn to_f32(self, bytes: &[u8]) -> Result<Vec<f32>> {
        decode_f32(self.info.dtype, bytes).ok_or_else(|| self.info.wrong_dtype("F16, BF16, F32 or F64"))
    }
}

impl TensorInfo<'_> {
    /// The error that this tensor has not the shape the caller needs, `expected` in words.
    pub fn wrong_shape(&self, expected: impl Into<String>) -> CheckpointError {
        CheckpointError::Shape {
            path: self.shard.to_owned(),
            name: self.name.to_owned(),
            expected: expected.into(),
            found: self.shape.to_vec(),
        }
    }

    /// The error that this tensor has not the type the caller needs, `expected` in words.
    pub fn wrong_dtype(&self, expected: impl Into<String>) -> CheckpointError {
        CheckpointError::DType {
            path: self.shard.to_owned(),
            name: self.name.to_owned(),
            expected: expected.into(),
            found: self.dtype,
        }
    }
}

/// What a folder without weights holds instead, and what to do about it.
fn weights_hint(dir: &Path) -> String {
    let names = file_names(dir);
    let first = |suffix: &str| names.iter().find(|name| !name.starts_with('.') && name.ends_with(suffix));
    if let Some(shard) = first(".safetensors") {
        return format!("; it holds `{shard}` without an index: the download or the run that writes it is unfinished");
    }
    match [".bin", ".pt", ".pth", ".gguf"].into_iter().find_map(first) {
        Some(other) => format!("; `{other}` is of a format this reader does not know: convert it to safetensors"),
        None => ": is this the folder of a model?".into(),
    }
}
