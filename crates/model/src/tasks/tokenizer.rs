//! A tokenizer for the vocabulary of the tasks: one word, one token.

use std::path::Path;

use serde_json::{Map, json};

use super::vocabulary::{FIELDS, KEYS, NOISE, SIZE, VALUES, WORDS};
use crate::checkpoint::Result;
use crate::checkpoint::atomic::atomic_write;

/// How a token is written.
fn word(id: u32) -> String {
    const MARKS: [&str; 11] =
        ["<pad>", "<s>", "sep", "query", "answer", "assign", "var", "</s>", "key", "common", "frequent"];
    match id {
        0..11 => MARKS[id as usize].into(),
        _ if FIELDS.contains(&id) => format!("f{}", id - FIELDS[0] + 1),
        _ if NOISE.contains(&id) => format!("n{}", id - NOISE.start),
        _ if KEYS.contains(&id) => format!("k{}", id - KEYS.start),
        _ if VALUES.contains(&id) => format!("v{}", id - VALUES.start),
        _ if WORDS.contains(&id) => format!("w{}", id - WORDS.start),
        _ => format!("unused{id}"),
    }
}

/// Writes `tokenizer.json` and `tokenizer_config.json`: words between blanks, `<s>` four times in front.
pub fn write_tokenizer(dir: &Path, positions: usize) -> Result<()> {
    let vocab: Map<String, serde_json::Value> = (0..SIZE as u32).map(|id| (word(id), json!(id))).collect();
    let special = |id: u32| {
        json!({"id": id, "content": word(id), "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let begin = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(7)],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [begin, begin, begin, begin, text],
            "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "unused14"},
    });
    atomic_write(dir.join("tokenizer.json"), tokenizer.to_string().as_bytes())?;
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "<pad>", "model_max_length": positions});
    atomic_write(dir.join("tokenizer_config.json"), format!("{config:#}\n").as_bytes())
}
