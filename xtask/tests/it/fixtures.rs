//! Small models, texts and recipes for the other tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kindling_model::checkpoint::{DType, OutTensor, Writer, WriterOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

/// 2:4 in every projection, then 4 bits in groups of 32.
pub(crate) const TWO_STAGES: &str = "\
[[stage]]
method = \"sparsegpt\"
pattern = \"2:4\"

[[stage]]
method = \"gptq\"
bits = 4
group_size = 32
symmetric = true
";

/// A folder for one test, and paths within it as text.
pub(crate) struct Desk(TempDir);

impl Desk {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path of `name` as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file; gives its path as an argument.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.arg(name)
    }

    /// Writes `rows` of `length` token ids below 320, the vocabulary of the small model.
    pub(crate) fn ids(&self, name: &str, rows: usize, length: usize) -> String {
        self.ids_below(320, name, rows, length)
    }

    /// As [`Desk::ids`] for another vocabulary.
    pub(crate) fn ids_below(&self, limit: u64, name: &str, rows: usize, length: usize) -> String {
        let mut state = 1u64;
        let id = |state: &mut u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((*state >> 33) % limit) as i64
        };
        let bytes: Vec<u8> = (0..rows * length).flat_map(|_| id(&mut state).to_le_bytes()).collect();
        let tensor =
            OutTensor { name: "input_ids".into(), dtype: DType::I64, shape: vec![rows, length], bytes: bytes.into() };
        let folder = tempfile::tempdir_in(self.0.path()).unwrap();
        let mut writer = Writer::create(folder.path(), WriterOptions::default()).unwrap();
        writer.write_shard(&[tensor]).unwrap();
        writer.finish().unwrap();
        fs::rename(folder.path().join("model.safetensors"), self.path(name)).unwrap();
        self.arg(name)
    }

    /// A copy of the small model: 3 blocks of width 64, 320 tokens, f32, no tokenizer.
    pub(crate) fn model(&self, name: &str) -> String {
        let to = self.path(name);
        fs::create_dir(&to).unwrap();
        for file in ["config.json", "generation_config.json", "model.safetensors"] {
            fs::copy(llama().join(file), to.join(file)).unwrap();
        }
        self.arg(name)
    }

    /// The small model with a tokenizer of the words `w0` to `w319` and a chat template.
    pub(crate) fn model_with_tokenizer(&self, name: &str) -> String {
        let model = self.model(name);
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "special": true, "normalized": false,
                   "single_word": false, "lstrip": false, "rstrip": false})
        };
        let word = |id: u32| match id {
            1 => "<s>".to_string(),
            2 => "</s>".to_string(),
            id => format!("w{id}"),
        };
        let vocab: BTreeMap<String, u32> = (0..320).map(|id| (word(id), id)).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(1, "<s>"), special(2, "</s>")],
            "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
            "decoder": null, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
        });
        let config = json!({
            "bos_token": "<s>", "eos_token": "</s>",
            "chat_template": "{{ bos_token }}{% for m in messages %} w5 {{ m.content }}{% endfor %} w6"
        });
        fs::write(self.path(name).join("tokenizer.json"), tokenizer.to_string()).unwrap();
        fs::write(self.path(name).join("tokenizer_config.json"), config.to_string()).unwrap();
        model
    }

    /// Changes one key of the `config.json` of a model.
    pub(crate) fn configure(&self, model: &str, key: &str, value: Value) {
        let path = self.path(model).join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    }
}

/// A text of `count` words for [`Desk::model_with_tokenizer`].
pub(crate) fn words(count: usize) -> String {
    (0..count).map(|i| format!("w{}", 3 + i * i % 317)).collect::<Vec<_>>().join(" ")
}

/// The small model and what `transformers` computes with it.
pub(crate) fn llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/hf/llama")
}

/// A file or folder of the shared test data; `None` (with a line that says so) where it is absent, a failure in CI.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("KINDLING_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is absent: set KINDLING_SHARED", path.display());
    eprintln!("skipped: {} is absent (set KINDLING_SHARED to the folder with the test data)", path.display());
    None
}

/// The content of every file of a result, by path. What a clock or a machine says is left out.
pub(crate) fn result(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(entry.path().is_file(), "{name} was left behind");
        let mut content = fs::read(entry.path()).unwrap();
        if name == "report.json" {
            let mut report: Value = serde_json::from_slice(&content).unwrap();
            report.as_object_mut().unwrap().remove("measured");
            content = report.to_string().into_bytes();
        }
        if name == "report.html" {
            content.clear();
        }
        files.insert(name, content);
    }
    files
}

/// Asserts that two results are the same, file by file.
#[track_caller]
pub(crate) fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, content) in a {
        assert!(*content == b[name], "{name} differs");
    }
}
