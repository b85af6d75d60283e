//! Fixtures, real models and comparison.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use kindling_model::checkpoint::{Checkpoint, decode_i64};
use kindling_model::{Decoder, ModelFiles};

/// A folder of the fixtures that are part of this crate.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A file or folder of the shared test data; `None` (with a line that says so) where it is absent, a failure in CI.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("KINDLING_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is absent: set KINDLING_SHARED", path.display());
    eprintln!("skipped: {} is absent (set KINDLING_SHARED to the folder with the test data)", path.display());
    None
}

pub(crate) fn device() -> Device {
    kindling_tensor_backend::device::device("flex".parse().unwrap()).unwrap()
}

pub(crate) fn load(dir: &Path) -> Decoder {
    Decoder::load(&ModelFiles::open(dir).unwrap(), &device()).unwrap()
}

/// Rows of an I64 tensor of token ids.
pub(crate) fn ids(checkpoint: &Checkpoint, name: &str) -> Vec<Vec<u32>> {
    let view = checkpoint.tensor(name).unwrap();
    let width = view.info.shape[1];
    decode_i64(view.bytes).chunks(width).map(|row| row.iter().map(|&id| id as u32).collect()).collect()
}

pub(crate) fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

/// The largest absolute difference.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
