//! `inspect`: what a checkpoint contains.

use std::collections::BTreeMap;

use anyhow::Result;
use kindling_core::{Granularity, Mask, NM};
use kindling_model::checkpoint::decode_i64;
use kindling_model::compressed_tensors::{Scheme, decode};
use kindling_model::{ModelError, ModelFiles};
use kindling_tensor_backend::device::DeviceName;
use serde::Serialize;

use super::{bytes_on_disk, kind_of};
use crate::cli::Inspect;
use crate::output;
use crate::report::format::{bytes_pair, count, in_unit, number, percent, unit};

/// The findings, as `--json` prints them.
#[derive(Serialize)]
struct Findings {
    family: &'static str,
    parameters: u64,
    bytes_on_disk: u64,
    bits_per_weight: f64,
    tensors: Vec<Entry>,
}

/// One tensor; the tensors of a quantised weight are one.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Entry {
    name: String,
    format: String,
    shape: Vec<usize>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    zeros: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
    /// How the codes are to be read, where the weight is stored in codes.
    #[serde(skip)]
    scheme: Option<Scheme>,
}

pub(crate) fn run(args: &Inspect, _device: DeviceName) -> Result<()> {
    let files = ModelFiles::open(&args.model)?;
    let mut tensors = entries(&files)?;
    if args.sparsity {
        for entry in &mut tensors {
            look_for_zeros(&files, entry)?;
        }
    }
    let (parameters, bytes) = (files.spec().parameters(), bytes_on_disk(files.checkpoint()));
    let weights: u64 = tensors.iter().map(|entry| entry.bytes).sum();
    let found = Findings {
        family: files.spec().family,
        parameters,
        bytes_on_disk: bytes,
        bits_per_weight: weights as f64 * 8.0 / parameters as f64,
        tensors,
    };
    if args.json { output::json(&found) } else { print(&found, args.sparsity) }
}

fn print(found: &Findings, sparsity: bool) -> Result<()> {
    output::line(format_args!(
        "{}, {} parameters, {} on disk, {} bits per weight\n",
        found.family,
        count(found.parameters),
        in_unit(found.bytes_on_disk, unit(found.bytes_on_disk)),
        number(found.bits_per_weight)
    ))?;
    // In the order of the first of each kind.
    let mut kinds: Vec<(String, usize, u64, f64)> = Vec::new();
    let mut index: BTreeMap<[String; 4], usize> = BTreeMap::new();
    let mut keys = Vec::new();
    for entry in &found.tensors {
        let shape = entry.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("×");
        let key = [kind_of(&entry.name), entry.format.clone(), shape, entry.pattern.clone().unwrap_or_default()];
        let at = *index.entry(key.clone()).or_insert_with(|| {
            kinds.push((key[0].clone(), 0, 0, 0.0));
            keys.push(key);
            kinds.len() - 1
        });
        let kind = &mut kinds[at];
        kind.1 += 1;
        kind.2 += entry.bytes;
        kind.3 += entry.zeros.unwrap_or_default();
    }
    let (largest, _) = kinds.iter().map(|kind| (kind.2, ())).max().unwrap_or_default();
    let rows = kinds.into_iter().zip(keys).map(|((name, tensors, bytes, zeros), [_, format, shape, pattern])| {
        let zeros = if sparsity { percent(zeros / tensors as f64) } else { String::new() };
        [name, tensors.to_string(), format, shape, bytes_pair(largest, bytes).1, zeros, pattern]
    });
    let headings = if sparsity {
        ["tensor", "count", "format", "shape", "bytes", "zeros", "pattern"]
    } else {
        ["tensor", "count", "format", "shape", "bytes", "", ""]
    };
    output::line(output::table(headings, rows).trim_fmt())
}

/// Every tensor in the order of the names' blocks, those of a quantised weight in one line.
fn entries(files: &ModelFiles) -> Result<Vec<Entry>> {
    let checkpoint = files.checkpoint();
    let mut entries: Vec<Entry> = Vec::new();
    let mut packed: BTreeMap<String, Entry> = BTreeMap::new();
    for name in checkpoint.names() {
        let info = checkpoint.info(name).map_err(ModelError::from)?;
        let bytes = info.bytes as u64;
        let scheme = name.rsplit_once(".weight_").and_then(|(module, _)| Some((module, scheme_of(files, module)?)));
        match scheme {
            Some((module, scheme)) => {
                let entry = packed.entry(module.into()).or_insert_with(|| Entry {
                    name: format!("{module}.weight"),
                    format: format_of(&scheme),
                    shape: Vec::new(),
                    bytes: 0,
                    zeros: None,
                    pattern: None,
                    scheme: Some(scheme),
                });
                entry.bytes += bytes;
                if name.ends_with(".weight_shape") {
                    let view = checkpoint.tensor(name).map_err(ModelError::from)?;
                    entry.shape = decode_i64(view.bytes).into_iter().map(|size| size.max(0) as usize).collect();
                }
            }
            None => entries.push(Entry {
                name: name.into(),
                format: info.dtype.name().to_lowercase(),
                shape: info.shape.to_vec(),
                bytes,
                zeros: None,
                pattern: None,
                scheme: None,
            }),
        }
    }
    entries.extend(packed.into_values());
    // Blocks in the order of their numbers, not of their digits.
    entries.sort_by_key(|entry| entry.name.split('.').map(natural).collect::<Vec<_>>());
    Ok(entries)
}

fn natural(part: &str) -> (Option<u64>, String) {
    (part.parse().ok(), part.into())
}

fn scheme_of(files: &ModelFiles, module: &str) -> Option<Scheme> {
    files.quantization()?.scheme_for(module)
}

fn format_of(scheme: &Scheme) -> String {
    let group = match scheme.granularity {
        Granularity::Tensor => "per tensor".to_string(),
        Granularity::Channel => "per channel".to_string(),
        Granularity::Group(size) => format!("g{size}"),
    };
    let kind = if scheme.symmetric { " symmetric" } else { "" };
    format!("packed {}-bit {group}{kind}", scheme.bits)
}

/// Counts the zeros of a matrix and names the tightest common pattern that they follow.
fn look_for_zeros(files: &ModelFiles, entry: &mut Entry) -> Result<()> {
    let &[rows, cols] = &entry.shape[..] else { return Ok(()) };
    let module = entry.name.strip_suffix(".weight").unwrap_or(&entry.name);
    let values = match entry.scheme {
        Some(scheme) => decode(files.checkpoint(), module, &scheme).map_err(ModelError::from)?.dequantize(),
        None => match files.checkpoint().tensor_f32(&entry.name) {
            Ok(values) => values,
            // Integers beside the weights have no sparsity to speak of.
            Err(_) => return Ok(()),
        },
    };
    entry.zeros = Some(Mask::of_nonzero(rows, cols, &values)?.sparsity());
    entry.pattern = pattern(rows, cols, &values)?;
    Ok(())
}

/// The tightest of the common patterns that the zeros of a matrix follow, along its inputs or its outputs.
fn pattern(rows: usize, cols: usize, values: &[f32]) -> Result<Option<String>> {
    const COMMON: [NM; 5] = [
        NM { keep: 1, of: 4 },
        NM { keep: 2, of: 8 },
        NM { keep: 2, of: 4 },
        NM { keep: 4, of: 8 },
        NM { keep: 3, of: 4 },
    ];
    for nm in COMMON {
        if let Some(axis) = obeys(rows, cols, values, nm)? {
            return Ok(Some(format!("{nm}{axis}")));
        }
    }
    Ok(None)
}

/// Whether a row-major matrix follows a pattern: along its inputs (said with no words), or along its outputs.
pub(super) fn obeys(rows: usize, cols: usize, values: &[f32], nm: NM) -> Result<Option<&'static str>> {
    if Mask::of_nonzero(rows, cols, values)?.obeys(nm) {
        return Ok(Some(""));
    }
    let turned: Vec<f32> = (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect();
    Ok(Mask::of_nonzero(cols, rows, &turned)?.obeys(nm).then_some(" along the outputs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_along_both_axes() {
        let find = |rows, cols, values: &[f32]| pattern(rows, cols, values).unwrap();
        assert_eq!(find(1, 4, &[1., 0., 2., 0.]).as_deref(), Some("2:4"));
        assert_eq!(find(1, 4, &[0., 0., 2., 0.]).as_deref(), Some("1:4"));
        assert_eq!(find(4, 1, &[1., 0., 2., 0.]).as_deref(), Some("2:4 along the outputs"));
        assert_eq!(find(1, 8, &[1., 1., 1., 1., 0., 0., 0., 0.]).as_deref(), Some("4:8"));
        assert_eq!(find(1, 4, &[1., 1., 1., 1.]), None);
    }

    #[test]
    fn blocks_sort_by_number() {
        let mut names = ["a.10.b", "a.9.b", "a.b"];
        names.sort_by_key(|name| name.split('.').map(natural).collect::<Vec<_>>());
        assert_eq!(names, ["a.b", "a.9.b", "a.10.b"]);
    }
}
