//! Texts to learn from, and texts held out.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kindling_model::tokenizer::Tokenizer;

use crate::error::{OrUser, user};
use crate::tokens;

/// A text with the name of its file.
pub(crate) type Named = (String, String);

/// Reads files and folders of .txt files: the texts to learn from, and those whose names are held out.
pub(crate) fn read(paths: &[PathBuf], hold_out: &[String]) -> Result<(Vec<Named>, Vec<Named>)> {
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut inside: Vec<PathBuf> = fs::read_dir(path)
                .with_context(|| format!("cannot read {}", path.display()))
                .or_user()?
                .filter_map(|entry| entry.ok().map(|entry| entry.path()))
                .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
                .collect();
            inside.sort();
            if inside.is_empty() {
                return Err(user(format!("{} holds no .txt file", path.display())));
            }
            files.extend(inside);
        } else {
            files.push(path.clone());
        }
    }
    let (mut learnt, mut held) = (Vec::new(), Vec::new());
    for path in files {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let place = if hold_out.contains(&name) { &mut held } else { &mut learnt };
        place.push((name, tokens::text(&path)?));
    }
    if let Some(missing) = hold_out.iter().find(|name| !held.iter().any(|(held, _)| held == *name)) {
        return Err(user(format!("--hold-out {missing}: no text has this name")));
    }
    if learnt.is_empty() {
        return Err(user("every text is held out: nothing is left to learn from"));
    }
    Ok((learnt, held))
}

/// The ids of all texts, every one between its begin and end tokens.
pub(crate) fn documents(texts: &[Named], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for (name, text) in texts {
        ids.extend(tokenizer.encode_document(text).map_err(|error| user(format!("{name}: {error}")))?);
        ids.extend(tokenizer.eos_ids().first());
    }
    Ok(ids)
}
