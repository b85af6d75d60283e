//! Token ids from files: a text, JSON lines with `text`, or `.safetensors` with `input_ids`.

use std::path::Path;

use anyhow::{Context, Result};
use kindling_model::checkpoint::{Checkpoint, DType, OutTensor, Writer, WriterOptions, decode_i32, decode_i64};
use kindling_model::tokenizer::{Tokenizer, with_unix_line_ends};
use kindling_model::{ModelError, ModelFiles};

use crate::error::{OrUser, user};

/// The tensor that holds token ids.
pub(crate) const INPUT_IDS: &str = "input_ids";

/// What a file held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tokens {
    /// One text: windows are still to be cut.
    Text(Vec<u32>),
    /// Rows that somebody else cut.
    Rows(Vec<Vec<u32>>),
}

/// Reads a file of any of the three kinds; the extension tells which.
pub(crate) fn read(path: &Path, files: &ModelFiles) -> Result<Tokens> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => rows(path).map(Tokens::Rows),
        extension => {
            let text = text(path)?;
            let documents = if extension == Some("jsonl") { json_lines(path, &text)? } else { vec![text] };
            let tokenizer = tokenizer(files)?;
            let mut ids = Vec::new();
            for document in &documents {
                ids.extend(tokenizer.encode_document(document).with_context(|| path.display().to_string()).or_user()?);
            }
            Ok(Tokens::Text(ids))
        }
    }
}

/// The tokenizer of a checkpoint.
pub(crate) fn tokenizer(files: &ModelFiles) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::open(files.dir()).map_err(|error| {
        user(format!("{error}; text needs the tokenizer of the model: copy tokenizer.json into its folder"))
    })?;
    Ok(tokenizer.with_eos_ids(&files.spec().eos))
}

/// A text that is not empty, with line ends as `\n`: the protocol of published perplexities.
pub(crate) fn text(path: &Path) -> Result<String> {
    let name = path.display();
    let bytes = std::fs::read(path).map_err(|error| user(format!("cannot read the text {name}: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        user(format!("{name}: byte {} is not UTF-8: save the text as UTF-8", error.utf8_error().valid_up_to()))
    })?;
    if text.trim().is_empty() {
        return Err(user(format!("{name}: the text is empty")));
    }
    Ok(with_unix_line_ends(text))
}

/// The documents of a file with one JSON object a line.
fn json_lines(path: &Path, text: &str) -> Result<Vec<String>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
            let text = value.as_ref().and_then(|value| value.get("text")?.as_str());
            text.map(str::to_string).ok_or_else(|| {
                user(format!(
                    "{}:{}: expected a JSON object with the key `text`, for example {{\"text\": \"Once\"}}",
                    path.display(),
                    index + 1
                ))
            })
        })
        .collect()
}

/// The rows of `input_ids` `[rows, tokens]`.
pub(crate) fn rows(path: &Path) -> Result<Vec<Vec<u32>>> {
    if !path.is_file() {
        return Err(user(format!("{}: no such file; give a .safetensors file with `{INPUT_IDS}`", path.display())));
    }
    let checkpoint = Checkpoint::open(path).map_err(ModelError::from)?;
    let view = checkpoint.tensor(INPUT_IDS).map_err(ModelError::from)?;
    let ids: Vec<i64> = match view.info.dtype {
        DType::I64 => decode_i64(view.bytes),
        DType::I32 => decode_i32(view.bytes).into_iter().map(i64::from).collect(),
        _ => return Err(ModelError::from(view.info.wrong_dtype("I64 or I32")).into()),
    };
    let &[_, tokens] = view.info.shape else {
        return Err(ModelError::from(view.info.wrong_shape("[rows, tokens]")).into());
    };
    let id = |&id: &i64| {
        u32::try_from(id).map_err(|_| user(format!("{}: `{INPUT_IDS}` holds {id}, which is no token", path.display())))
    };
    let ids: Vec<u32> = ids.iter().map(id).collect::<Result<_>>()?;
    if ids.is_empty() {
        return Err(user(format!("{}: `{INPUT_IDS}` has no rows", path.display())));
    }
    Ok(ids.chunks(tokens).map(<[u32]>::to_vec).collect())
}

/// Rows of ids as a tensor to write.
pub(crate) fn ids_tensor(rows: &[Vec<u32>]) -> OutTensor<'static> {
    let bytes: Vec<u8> = rows.iter().flatten().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
    let shape = vec![rows.len(), rows.first().map_or(0, Vec::len)];
    OutTensor { name: INPUT_IDS.into(), dtype: DType::I64, shape, bytes: bytes.into() }
}

/// Writes one `.safetensors` file, whole or not at all.
pub(crate) fn write(path: &Path, tensors: &[OutTensor<'_>]) -> Result<()> {
    let name = path.file_name().ok_or_else(|| user(format!("{}: not the name of a file", path.display())))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(user(format!("cannot write {}: there is no folder {}", path.display(), parent.display())));
    }
    // A writer makes folders: it works in one beside the file, which takes its name in one step.
    let folder = path.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
    let written = write_in(&folder, tensors)
        .and_then(|file| std::fs::rename(file, path).with_context(|| format!("cannot write {}", path.display())));
    // After a failure the first error is the one to report.
    let _ = std::fs::remove_dir_all(&folder);
    written
}

fn write_in(folder: &Path, tensors: &[OutTensor<'_>]) -> Result<std::path::PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let options = WriterOptions { max_shard_bytes: u64::MAX, ..WriterOptions::default() };
    let mut writer = Writer::create(folder, options).map_err(ModelError::from)?;
    writer.write_shard(tensors).map_err(ModelError::from)?;
    writer.finish().map_err(ModelError::from)?;
    Ok(folder.join(kindling_model::checkpoint::SINGLE_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids.safetensors");
        let ids = vec![vec![1, 2, 3], vec![4, 5, 6]];
        write(&path, &[ids_tensor(&ids)]).unwrap();
        assert_eq!(rows(&path).unwrap(), ids);
        let error = write(&dir.path().join("no/f.safetensors"), &[ids_tensor(&ids)]).unwrap_err().to_string();
        assert!(error.contains("there is no folder"), "{error}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn texts_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.txt");
        let fails = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            text(&path).unwrap_err().to_string()
        };
        assert!(fails(b" \n").ends_with("t.txt: the text is empty"));
        assert!(fails(b"ab\xff").ends_with("t.txt: byte 2 is not UTF-8: save the text as UTF-8"));
    }

    #[test]
    fn json_lines_are_documents() {
        let path = Path::new("t.jsonl");
        let text = "{\"text\": \"one\"}\n\n{\"id\": 2, \"text\": \"two\"}\n";
        assert_eq!(json_lines(path, text).unwrap(), ["one", "two"]);
        let error = json_lines(path, "{\"text\": \"one\"}\n{\"txt\": 1}").unwrap_err().to_string();
        assert!(error.starts_with("t.jsonl:2: expected a JSON object with the key `text`"), "{error}");
    }
}
