//! A tokenizer learnt from a text: byte-level byte-pair encoding.

use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use super::{Result, TokenizerError, file_error};
use crate::checkpoint::atomic::atomic_write;

/// The token that begins a text; its id is 0.
pub const BEGIN: &str = "<s>";
/// The token that ends a text; its id is 1.
pub const END: &str = "</s>";

type Trained = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Learns `vocab_size` tokens from texts and writes `tokenizer.json` and `tokenizer_config.json` into `dir`.
///
/// Every byte has a token, so that any text can be written. Digits stand alone. Encoding puts [`BEGIN`] in front.
///
/// # Errors
/// The texts have too few different pairs for so many tokens, or a file cannot be written.
pub fn train_byte_level_bpe<T: AsRef<str> + Send>(
    texts: impl Iterator<Item = T> + Send,
    vocab_size: usize,
    positions: usize,
    dir: &Path,
) -> Result<()> {
    let path = dir.join("tokenizer.json");
    // 256 bytes and the two special tokens.
    if vocab_size < 258 {
        return Err(file_error(&path, format!("a byte-level vocabulary has at least 258 tokens, not {vocab_size}")));
    }
    let failed = |error: tokenizers::Error| file_error(&path, error);
    let parts = json!({
        "pre": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BEGIN: {"id": BEGIN, "ids": [0], "tokens": [BEGIN]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    });
    let part = |error: serde_json::Error| file_error(&path, error);
    let mut tokenizer: Trained = TokenizerImpl::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(serde_json::from_value::<PreTokenizerWrapper>(parts["pre"].clone()).map_err(part)?));
    tokenizer.with_decoder(Some(serde_json::from_value::<DecoderWrapper>(parts["decoder"].clone()).map_err(part)?));
    let special = [BEGIN, END].map(|token| AddedToken::from(token, true)).to_vec();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    let learnt = tokenizer.get_vocab_size(true);
    if learnt < vocab_size {
        return Err(TokenizerError::Encode(format!(
            "the text has only {learnt} tokens to learn, not {vocab_size}: give more text or a smaller vocabulary"
        )));
    }
    tokenizer.with_post_processor(Some(
        serde_json::from_value::<PostProcessorWrapper>(parts["post"].clone()).map_err(part)?,
    ));
    let text = tokenizer.to_string(false).map_err(failed)?;
    let write = |name: &str, text: &str| {
        atomic_write(dir.join(name), text.as_bytes()).map_err(|error| file_error(&dir.join(name), error))
    };
    write("tokenizer.json", &text)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": positions,
    });
    write("tokenizer_config.json", &format!("{config:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    #[test]
    fn any_text_comes_back_and_begins_with_the_first_token() {
        let dir = tempfile::tempdir().unwrap();
        let text = "the cat sat on the mat, the dog sat on the log; ".repeat(20);
        train_byte_level_bpe([&text].into_iter(), 266, 64, dir.path()).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_ids()), (266, Some(0), &[1u32][..]));
        for text in ["the cat", "Füchse 123 \u{1F98A}\n", ""] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids[0], 0);
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
        assert_eq!(tokenizer.encode("2048", false).unwrap().len(), 4);
        assert!(tokenizer.encode("the cat sat", false).unwrap().len() < 8);
    }

    #[test]
    fn too_little_text_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = train_byte_level_bpe(["aaaa"].into_iter(), 1000, 64, dir.path()).unwrap_err().to_string();
        assert!(error.contains("more text"), "{error}");
        assert!(train_byte_level_bpe(["aaaa"].into_iter(), 100, 64, dir.path()).is_err());
        assert!(!dir.path().join("tokenizer.json").exists());
    }
}
