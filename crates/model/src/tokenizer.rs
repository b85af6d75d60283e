//! Text to token ids and back, as `tokenizer.json` says, with the special tokens of the files beside it.
//!
//! Which files count: `tokenizer.json` (required), `tokenizer_config.json` and `special_tokens_map.json` (the texts of
//! the special tokens), `generation_config.json` (the ids that end a text).

mod train;

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use train::{BEGIN, END, train_byte_level_bpe};

/// What can go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what its name promises.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A text cannot be encoded.
    #[error("the tokenizer cannot encode this text: {0}")]
    Encode(String),
    /// Ids cannot be decoded.
    #[error("the tokenizer cannot decode these ids: {0}")]
    Decode(String),
}

/// A result with [`TokenizerError`].
pub type Result<T, E = TokenizerError> = std::result::Result<T, E>;

/// The text of a file with every line end (`\r\n`, `\r`) as `\n`: what Python's text mode reads, and so what published
/// token counts and perplexities are about.
///
/// # Errors
/// [`TokenizerError`] if the file is unreadable or not UTF-8.
pub fn read_document(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| TokenizerError::Io { path: path.to_owned(), source })?;
    let text = String::from_utf8(bytes).map_err(|error| file_error(path, format!("is not UTF-8 text: {error}")))?;
    Ok(with_unix_line_ends(text))
}

/// The text with `\r\n` and lone `\r` as `\n`.
pub fn with_unix_line_ends(text: String) -> String {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text }
}

/// The texts of the special tokens, from `tokenizer_config.json`, else `special_tokens_map.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<String>,
    /// Fills batches.
    pub pad: Option<String>,
}

impl SpecialTokens {
    /// Reads the special tokens of a checkpoint directory; all are `None` if it has neither file.
    ///
    /// # Errors
    /// [`TokenizerError`] if a file is unreadable, is no JSON object, or has a token that is neither a text nor an
    /// object with `content`.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut tokens = Self::default();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = dir.join(name);
            let Some(json) = read_json(&path)? else { continue };
            for (key, slot) in tokens.slots() {
                if slot.is_none() {
                    *slot = token_text(&path, key, json.get(key))?;
                }
            }
        }
        Ok(tokens)
    }

    fn slots(&mut self) -> [(&'static str, &mut Option<String>); 4] {
        let Self { bos, eos, unk, pad } = self;
        [("bos_token", bos), ("eos_token", eos), ("unk_token", unk), ("pad_token", pad)]
    }
}

/// A tokenizer of a checkpoint directory.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
    /// `add_bos_token` of `tokenizer_config.json`.
    add_bos: Option<bool>,
    vocab_size: usize,
    fingerprint: String,
}

impl Tokenizer {
    /// Opens the tokenizer of the checkpoint directory `dir`.
    ///
    /// # Errors
    /// [`TokenizerError`] if `tokenizer.json` is missing or unusable, or if another file is malformed or names a special
    /// token that `tokenizer.json` lacks.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| TokenizerError::Io { path: path.clone(), source })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| file_error(&path, error))?;
        // Some files carry the truncation of a training run: here every text counts whole.
        inner.with_truncation(None).map_err(|error| file_error(&path, error))?;
        inner.with_padding(None);

        let special = SpecialTokens::read(dir)?;
        let id = |name: &str, token: &Option<String>| match token {
            None => Ok(None),
            Some(text) => match inner.token_to_id(text) {
                Some(id) => Ok(Some(id)),
                None => {
                    Err(file_error(&path, format!("has no token {text:?}, which the configuration calls `{name}`")))
                }
            },
        };
        let (bos, eos, pad) =
            (id("bos_token", &special.bos)?, id("eos_token", &special.eos)?, id("pad_token", &special.pad)?);
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let add_bos = config.as_ref().and_then(|config| config.get("add_bos_token")).and_then(Value::as_bool);
        let generation = dir.join("generation_config.json");
        let ends = match read_json(&generation)?.and_then(|json| json.get("eos_token_id").cloned()) {
            Some(ids) => token_ids(&generation, &ids)?,
            None => Vec::new(),
        };
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&largest| largest as usize + 1);
        let fingerprint = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let eos = if ends.is_empty() { eos.into_iter().collect() } else { ends };
        Ok(Self { inner, special, bos, eos: sorted(eos), pad, add_bos, vocab_size, fingerprint })
    }

    /// The same tokenizer that also ends a text at `ids`: those of `config.json`.
    pub fn with_eos_ids(mut self, ids: &[u32]) -> Self {
        self.eos = sorted(self.eos.iter().chain(ids).copied().collect());
        self
    }

    /// The ids of `text`. With `add_special` the special tokens around it are those of `tokenizer.json`'s
    /// post-processor; a text rendered from a chat template has its own and wants `false`. Special tokens that are
    /// spelt out in the text become their ids either way.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] if the model of `tokenizer.json` has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding =
            self.inner.encode_fast(text, add_special).map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a whole document ([`read_document`]), tokenised once, with its BOS in front: also when the post-processor adds none,
    /// unless there is no BOS or `tokenizer_config.json` sets `add_bos_token` to false.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        if let Some(bos) = self.bos.filter(|_| self.add_bos != Some(false))
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of `ids`, without the special tokens if `skip_special`. An id that has no token gives no text: models
    /// often have more rows than their tokenizer has tokens.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`] if the decoder of `tokenizer.json` fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|error| TokenizerError::Decode(error.to_string()))
    }

    /// A decoder for ids that come one at a time after `context` (the prompt, or nothing).
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn stream(&self, context: &[u32], skip_special: bool) -> Result<StreamDecoder<'_>> {
        // A few ids are enough to know whether the next token begins a text or goes on with one.
        let ids = context[context.len().saturating_sub(8)..].to_vec();
        let shown = self.decode(&ids, skip_special)?;
        Ok(StreamDecoder { tokenizer: self, skip_special, done: ids.len(), ids, shown })
    }

    /// One more than the largest id: the rows that an embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The ids that end a text, ascending: those of `generation_config.json`, or `eos_token` where it names none, and
    /// those given to [`with_eos_ids`](Self::with_eos_ids).
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The id that fills batches.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The texts of the special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The id of a token's text as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// SHA-256 of `tokenizer.json`, in hexadecimal: equal fingerprints give equal ids.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// Turns ids into text as they come. The pieces join to what [`Tokenizer::decode`] gives for all ids at once.
///
/// A character may be spread over several tokens: its bytes are held back until it is whole.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The ids still of interest: `done` whose text has been given, then those held back.
    ids: Vec<u32>,
    done: usize,
    /// The text of `ids[..done]`.
    shown: String,
}

impl StreamDecoder<'_> {
    /// Takes the next id; gives the text that is certain now, if any.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`] if the decoder of `tokenizer.json` fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        // U+FFFD at the end: bytes of a character whose rest may still come.
        if text.ends_with('\u{fffd}') || text == self.shown {
            return Ok(None);
        }
        self.advance(&text).map(Some)
    }

    /// Ends the stream: gives what was held back, with U+FFFD for bytes that are no character.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        if text == self.shown { Ok(None) } else { self.advance(&text).map(Some) }
    }

    /// The part of `text`, that of all `ids`, which was not shown yet.
    fn advance(&mut self, text: &str) -> Result<String> {
        let new = match text.strip_prefix(&self.shown) {
            Some(new) => new.to_owned(),
            // Broken bytes spoil whole characters before them in byte-fallback vocabularies. Those are out already.
            None => self.tokenizer.decode(&self.ids[self.done..], self.skip_special)?,
        };
        self.ids.drain(..self.done);
        self.done = self.ids.len();
        self.shown = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(new)
    }
}

fn file_error(path: &Path, reason: impl ToString) -> TokenizerError {
    TokenizerError::File { path: path.to_owned(), reason: reason.to_string() }
}

/// The JSON object in a file; `None` if there is no such file.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TokenizerError::Io { path: path.to_owned(), source }),
    };
    let json: Value = serde_json::from_slice(&bytes).map_err(|error| file_error(path, error))?;
    if json.is_object() { Ok(Some(json)) } else { Err(file_error(path, "expected a JSON object")) }
}

fn token_text(path: &Path, key: &str, value: Option<&Value>) -> Result<Option<String>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => match other.get("content").and_then(Value::as_str) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(file_error(path, format!("`{key}` must be a text or an object with `content`, found {other}"))),
        },
    }
}

/// `eos_token_id`: one id, a list of ids, or null.
fn token_ids(path: &Path, value: &Value) -> Result<Vec<u32>> {
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let wrong = || file_error(path, format!("`eos_token_id` must be an id or a list of ids, found {value}"));
    list.iter().map(|value| id(value).ok_or_else(wrong)).collect()
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Bytes as tokens, a few words, `▁` for spaces as Llama's vocabularies have it.
    fn byte_fallback() -> Value {
        let mut vocab = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
        vocab.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        vocab.extend(["▁", "a", "b", "é", "▁a", "ab"].map(str::to_owned));
        let vocab: serde_json::Map<_, _> =
            vocab.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        json!({
            "version": "1.0", "padding": null, "pre_tokenizer": null,
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": [["▁", "a"], ["a", "b"]]},
        })
    }

    fn directory(files: &[(&str, Value)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, json) in files {
            std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        }
        dir
    }

    fn open(files: &[(&str, Value)]) -> Result<Tokenizer> {
        Tokenizer::open(directory(files).path())
    }

    fn tiny() -> Tokenizer {
        let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "unk_token": null});
        open(&[("tokenizer.json", byte_fallback()), ("tokenizer_config.json", config)]).unwrap()
    }

    fn streamed(tokenizer: &Tokenizer, context: &[u32], ids: &[u32]) -> String {
        let mut stream = tokenizer.stream(context, true).unwrap();
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        text.extend(stream.finish().unwrap());
        text
    }

    #[test]
    fn the_post_processor_decides_about_bos_and_nothing_is_truncated() {
        let tokenizer = tiny();
        assert_eq!(tokenizer.encode("ab a", true).unwrap(), [1, 263, 261, 263]);
        assert_eq!(tokenizer.encode("ab a", false).unwrap(), [263, 261, 263]);
        assert_eq!(tokenizer.encode("a a a a a a", true).unwrap().len(), 7);
        assert_eq!(tokenizer.encode_document("a").unwrap(), [1, 263], "one BOS, not two");
        assert_eq!(tokenizer.decode(&[1, 263, 261, 263, 2], true).unwrap(), "ab a");
        assert_eq!(tokenizer.vocab_size(), 265);
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()), (Some(1), &[2u32][..], None));
    }

    #[test]
    fn a_document_gets_the_bos_that_the_post_processor_leaves_out() {
        let mut json = byte_fallback();
        json["post_processor"] = Value::Null;
        let files = |add_bos: Value| {
            let config = json!({"bos_token": "<s>", "add_bos_token": add_bos});
            [("tokenizer.json", json.clone()), ("tokenizer_config.json", config)]
        };
        assert_eq!(open(&files(Value::Null)).unwrap().encode_document("a").unwrap(), [1, 263]);
        assert_eq!(open(&files(json!(true))).unwrap().encode("a", true).unwrap(), [263]);
        assert_eq!(open(&files(json!(false))).unwrap().encode_document("a").unwrap(), [263]);
        assert_eq!(open(&[("tokenizer.json", json.clone())]).unwrap().encode_document("a").unwrap(), [263]);
    }

    #[test]
    fn the_ends_of_a_text_are_united() {
        let eos = |generation: Value| {
            open(&[
                ("tokenizer.json", byte_fallback()),
                ("special_tokens_map.json", json!({"eos_token": {"content": "</s>"}, "pad_token": "<unk>"})),
                ("generation_config.json", json!({"eos_token_id": generation})),
            ])
        };
        assert_eq!(eos(json!([260, 5])).unwrap().eos_ids(), [5, 260]);
        assert_eq!(eos(json!(5)).unwrap().with_eos_ids(&[2, 5]).eos_ids(), [2, 5]);
        let tokenizer = eos(Value::Null).unwrap();
        assert_eq!((tokenizer.eos_ids(), tokenizer.pad_id()), (&[2u32][..], Some(0)));
        let error = eos(json!(["x"])).unwrap_err().to_string();
        assert!(error.contains("generation_config.json") && error.contains("eos_token_id"), "{error}");
    }

    #[test]
    fn errors_name_the_file() {
        let missing = open(&[]).unwrap_err().to_string();
        assert!(missing.contains("tokenizer.json"), "{missing}");
        let error = |name: &'static str, json: Value| {
            let mut files = vec![("tokenizer.json", byte_fallback())];
            files.push((name, json));
            open(&files).unwrap_err().to_string()
        };
        let unknown = error("tokenizer_config.json", json!({"bos_token": "<begin>"}));
        assert!(unknown.contains("tokenizer.json") && unknown.contains("<begin>"), "{unknown}");
        assert!(error("tokenizer_config.json", json!([])).contains("expected a JSON object"));
        assert!(error("special_tokens_map.json", json!({"bos_token": 3})).contains("special_tokens_map.json"));
        assert!(error("tokenizer.json", json!({"version": "1.0"})).contains("tokenizer.json"));
    }

    #[test]
    fn documents_have_one_kind_of_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.txt");
        std::fs::write(&path, "a\r\nb\rc\n\r\n").unwrap();
        assert_eq!(read_document(&path).unwrap(), "a\nb\nc\n\n");
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        assert!(read_document(&path).unwrap_err().to_string().contains("text.txt: is not UTF-8"));
    }

    #[test]
    fn a_fingerprint_is_that_of_the_file() {
        let mut other = byte_fallback();
        other["model"]["fuse_unk"] = json!(false);
        let other = open(&[("tokenizer.json", other)]).unwrap();
        assert_eq!(tiny().fingerprint().len(), 64);
        assert_eq!(tiny().fingerprint(), tiny().fingerprint());
        assert_ne!(tiny().fingerprint(), other.fingerprint());
    }

    #[test]
    fn characters_are_held_back_until_they_are_whole() {
        let tokenizer = tiny();
        let mut stream = tokenizer.stream(&[], true).unwrap();
        let byte = |byte: u8| u32::from(byte) + 3;
        let crab = "🦀".as_bytes();
        assert_eq!(stream.push(260).unwrap().as_deref(), Some("a"));
        for &part in &crab[..3] {
            assert_eq!(stream.push(byte(part)).unwrap(), None);
        }
        assert_eq!(stream.push(byte(crab[3])).unwrap().as_deref(), Some("🦀"));
        assert_eq!(stream.push(2).unwrap(), None, "skipped special token");
        assert_eq!(stream.push(263).unwrap().as_deref(), Some(" a"));
        assert_eq!(stream.push(byte(crab[0])).unwrap(), None);
        assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn the_first_word_after_a_prompt_keeps_its_space() {
        let tokenizer = tiny();
        assert_eq!(streamed(&tokenizer, &[], &[263, 261]), "ab");
        assert_eq!(streamed(&tokenizer, &[1, 263], &[263, 261]), " ab");
    }

    #[test]
    fn broken_bytes_do_not_stop_the_stream() {
        let tokenizer = tiny();
        let byte = |byte: u8| u32::from(byte) + 3;
        // A whole é, then the first byte of another character that never ends.
        assert_eq!(streamed(&tokenizer, &[], &[byte(0xc3), byte(0xa9), byte(0xc3), 261]), "é\u{fffd}b");
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_whole(text in "[ab é🦀ß→]{0,24}") {
            let tokenizer = tiny();
            let ids = tokenizer.encode(&text, true).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, true).unwrap(), &text);
            prop_assert_eq!(&streamed(&tokenizer, &[], &ids), &text);
        }
    }

    /// The folder of real models, or `None` after saying so.
    fn shared() -> Option<PathBuf> {
        let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
        let folder = std::env::var_os("KINDLING_SHARED").map_or_else(beside, PathBuf::from);
        if folder.is_dir() {
            return Some(folder);
        }
        assert!(std::env::var_os("CI").is_none(), "{} is missing: set KINDLING_SHARED", folder.display());
        eprintln!("skipped: no folder {}", folder.display());
        None
    }

    #[test]
    fn stories260k_gives_the_ids_that_transformers_gives() {
        let Some(shared) = shared() else { return };
        let dir = shared.join("models/stories260K");
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let expected = read_json(&dir.join("expected.json")).unwrap().unwrap();
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(expected["greedy"][key].clone()).unwrap() };
        let prompt = expected["greedy"]["prompt"].as_str().unwrap();
        assert_eq!(tokenizer.encode(prompt, true).unwrap(), ids("prompt_ids"));
        assert_eq!(tokenizer.decode(&ids("ids"), true).unwrap(), expected["greedy"]["text"].as_str().unwrap());
        assert_eq!(streamed(&tokenizer, &[], &ids("ids")), expected["greedy"]["text"].as_str().unwrap());
        let (before, after) = (ids("prompt_ids"), ids("ids"));
        let continued = streamed(&tokenizer, &before, &after[before.len()..]);
        assert_eq!(format!("{prompt}{continued}"), expected["greedy"]["text"].as_str().unwrap());
        let text = read_document(shared.join(expected["text"].as_str().unwrap())).unwrap();
        assert_eq!(expected["tokens"], 15537);
        assert_eq!(tokenizer.encode_document(&text).unwrap().len(), 15537);
        assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_ids()), (512, Some(1), &[2u32][..]));
    }

    #[test]
    fn novels4m_returns_every_text_unchanged() {
        let Some(shared) = shared() else { return };
        let tokenizer = Tokenizer::open(shared.join("models/novels4m")).unwrap();
        let text = read_document(shared.join("data/books/peter-pan.txt")).unwrap();
        let ids = tokenizer.encode_document(&text).unwrap();
        assert_eq!((ids[0], tokenizer.eos_ids()), (0, &[1u32][..]));
        assert!(tokenizer.decode(&ids, true).unwrap() == text);
        assert!(streamed(&tokenizer, &[], &ids[..4000]) == tokenizer.decode(&ids[..4000], true).unwrap());
    }
}
