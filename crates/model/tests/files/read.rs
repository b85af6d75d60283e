//! Opening checkpoints: folders, single files, shards, the Hugging Face cache, and everything that can be wrong.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use kindling_model::checkpoint::{Checkpoint, DType, INDEX_FILE, OutTensor, SINGLE_FILE, Writer, WriterOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Two files: `a`, `b` in the first, `m` (a 3×2 matrix) in the second.
fn two_shards(dir: &Path) {
    let mut writer = Writer::create(dir, WriterOptions { parts: 2, ..Default::default() }).unwrap();
    let tensor =
        |name: &str, dtype, shape: &[usize], values: &[f32]| OutTensor::from_f32(name, dtype, shape, values).unwrap();
    let first = [tensor("b", DType::F16, &[3], &[1.0, 2.0, 3.0]), tensor("a", DType::F32, &[1], &[0.5])];
    writer.write_shard(&first).unwrap();
    writer.write_shard(&[tensor("m", DType::BF16, &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]).unwrap();
    writer.finish().unwrap();
}

fn error(source: impl AsRef<Path>) -> String {
    Checkpoint::open(source).unwrap_err().to_string()
}

#[test]
fn a_checkpoint_lists_and_reads_tensors() {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "m"]);
    assert_eq!((checkpoint.total_bytes(), checkpoint.dir()), (4 + 6 + 12, dir.path()));
    assert_eq!(checkpoint.metadata(), BTreeMap::from([("format".into(), "pt".into())]));
    assert_eq!(checkpoint.files().len(), 2);
    let info = checkpoint.info("m").unwrap();
    assert_eq!((info.name, info.dtype, info.shape, info.bytes), ("m", DType::BF16, [3, 2].as_slice(), 12));
    assert_eq!(info.shard, dir.path().join("model-00002-of-00002.safetensors"));
    assert_eq!(checkpoint.tensor("a").unwrap().bytes, 0.5f32.to_le_bytes());
    assert_eq!(checkpoint.tensor_f32("b").unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(checkpoint.rows_f32("m", 1..3).unwrap(), [3.0, 4.0, 5.0, 6.0]);
    assert_eq!(checkpoint.rows_f32("m", 3..3).unwrap(), [] as [f32; 0]);
    assert_eq!(format!("{checkpoint:?}"), format!("Checkpoint({}: 3 tensors in 2 files)", dir.path().display()));
}

#[test]
fn wrong_requests_name_tensor_and_file() {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let at = |shard: &str| format!("`{}`", dir.path().join(shard).display());
    assert_eq!(
        checkpoint.tensor_f32("model.m").unwrap_err().to_string(),
        format!("{} has no tensor `model.m`, did you mean `m`?", at("").replace("/`", "`"))
    );
    assert!(checkpoint.info("x").unwrap_err().to_string().ends_with("has no tensor `x`"));
    let (first, second) = (at("model-00001-of-00002.safetensors"), at("model-00002-of-00002.safetensors"));
    assert_eq!(
        checkpoint.rows_f32("b", 0..1).unwrap_err().to_string(),
        format!("{first}: tensor `b` has shape [3], expected two dimensions")
    );
    assert_eq!(
        checkpoint.rows_f32("m", 2..4).unwrap_err().to_string(),
        format!("{second}: tensor `m` has shape [3, 2], expected at least 4 rows")
    );
    let quantised = Checkpoint::open(fixture("compressed-tensors/w4_sym_g32")).unwrap();
    let packed = "model.layers.0.self_attn.q_proj.weight_packed";
    let text = quantised.tensor_f32(packed).unwrap_err().to_string();
    assert!(text.ends_with("weight_packed` has dtype I32, expected F16, BF16, F32 or F64"), "{text}");
    assert_eq!(quantised.rows_f32(packed, 0..1).unwrap_err().to_string(), text);
}

#[test]
fn the_official_reader_sees_the_same_bytes() {
    for model in ["hf/llama", "hf/mixtral", "compressed-tensors/w8_sym_channel"] {
        let checkpoint = Checkpoint::open(fixture(model)).unwrap();
        let file = fs::read(fixture(model).join(SINGLE_FILE)).unwrap();
        let official = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(checkpoint.names().len(), official.len());
        for (name, tensor) in official.tensors() {
            let ours = checkpoint.tensor(&name).unwrap();
            assert_eq!(ours.info.dtype.name(), tensor.dtype().to_string());
            assert_eq!((ours.info.shape, ours.bytes), (tensor.shape(), tensor.data()));
        }
    }
}

#[test]
fn a_single_file_needs_no_folder() {
    let file = fixture("hf/llama/model.safetensors");
    let checkpoint = Checkpoint::open(&file).unwrap();
    assert_eq!(checkpoint.dir(), fixture("hf/llama"));
    assert!(checkpoint.contains("lm_head.weight"));
    let not_weights = fixture("hf/llama/config.json");
    let text = error(&not_weights);
    assert!(text.starts_with(&format!("`{}`: the header claims ", not_weights.display())), "{text}");
}

#[test]
fn the_index_is_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    // A tensor that only a shard knows, and a file that the index does not name, are not part of the checkpoint.
    let index = dir.path().join(INDEX_FILE);
    let json = fs::read_to_string(&index).unwrap();
    fs::write(&index, json.replace("    \"b\": \"model-00001-of-00002.safetensors\",\n", "")).unwrap();
    fs::write(dir.path().join(SINGLE_FILE), b"junk").unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().collect::<Vec<_>>(), ["a", "m"]);

    fs::write(&index, json.replace("\"b\"", "\"c\"")).unwrap();
    assert_eq!(
        error(dir.path()),
        format!(
            "`{}` places tensor `c` in `model-00001-of-00002.safetensors`, which does not hold it: the index and the \
             shards are of different versions, download both again",
            index.display()
        )
    );
    fs::write(&index, json.replace("\"model-00001", "\"../model-00001")).unwrap();
    assert_eq!(
        error(dir.path()),
        format!(
            "`{}`: tensor `a` is placed in `../model-00001-of-00002.safetensors`, which is not a plain file name: only \
             files beside the index are opened",
            index.display()
        )
    );
}

#[test]
fn missing_and_truncated_shards_are_found_at_once() {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    let shard = dir.path().join("model-00001-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    for length in 0..bytes.len() {
        fs::write(&shard, &bytes[..length]).unwrap();
        let text = error(dir.path());
        assert!(text.starts_with(&format!("`{}`: ", shard.display())), "{length}: {text}");
        assert!(text.contains("incomplete"), "{length}: {text}");
    }
    fs::remove_file(&shard).unwrap();
    assert_eq!(
        error(dir.path()),
        format!(
            "`{}` names the shard `model-00001-of-00002.safetensors`, which is missing (2 tensors): download the \
             checkpoint again or complete it",
            dir.path().join(INDEX_FILE).display()
        )
    );
}

#[test]
fn folders_without_weights_say_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let says = |hint: &str| {
        let text = error(dir.path());
        let dir = dir.path().display();
        assert_eq!(text, format!("`{dir}` holds neither model.safetensors.index.json nor model.safetensors{hint}"));
    };
    says(": is this the folder of a model?");
    fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    says("; `pytorch_model.bin` is of a format this reader does not know: convert it to safetensors");
    fs::write(dir.path().join("model-00001-of-00002.safetensors"), b"").unwrap();
    says(
        "; it holds `model-00001-of-00002.safetensors` without an index: the download or the run that writes it is \
         unfinished",
    );
    assert_eq!(
        error("./no such thing"),
        "`./no such thing` is neither an existing file or folder nor a model id: give a folder, a .safetensors file, or \
         `org/name` with an optional `@revision`"
    );
}

#[test]
fn the_fingerprint_sees_every_file() {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    let fingerprint = || Checkpoint::open(dir.path()).unwrap().fingerprint().unwrap();
    let first = fingerprint();
    assert_eq!((first.len(), &first), (64, &fingerprint()));
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let second = fingerprint();
    let shard = dir.path().join("model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&shard, bytes).unwrap();
    let third = fingerprint();
    assert!(first != second && second != third && first != third);

    // The same files elsewhere are the same checkpoint.
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(Checkpoint::open(copy.path()).unwrap().fingerprint().unwrap(), third);
}

/// A cache with one model, laid out as the hub's client does.
struct Cache {
    root: tempfile::TempDir,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Cache {
    fn new() -> Self {
        let cache = Cache { root: tempfile::tempdir().unwrap() };
        for folder in ["refs", "blobs", "snapshots"] {
            fs::create_dir_all(cache.model(folder)).unwrap();
        }
        fs::write(cache.model("refs/main"), format!("{COMMIT}\n")).unwrap();
        two_shards(&cache.model(&format!("snapshots/{COMMIT}")));
        cache
    }

    fn model(&self, below: &str) -> PathBuf {
        self.root.path().join("models--org--name").join(below)
    }

    fn open(&self, id: &str) -> Result<Checkpoint, String> {
        let root = self.root.path().as_os_str().to_owned();
        let env = move |name: &str| -> Option<OsString> { (name == "HF_HUB_CACHE").then(|| root.clone()) };
        Checkpoint::open_with(id, &env).map_err(|error| error.to_string())
    }
}

#[test]
fn ids_are_found_in_the_cache() {
    let cache = Cache::new();
    fs::create_dir_all(cache.model("refs/refs/pr")).unwrap();
    fs::write(cache.model("refs/refs/pr/1"), COMMIT).unwrap();
    for id in ["org/name", "org/name@main", "org/name@refs/pr/1", &format!("org/name@{COMMIT}")] {
        let checkpoint = cache.open(id).unwrap();
        assert_eq!(checkpoint.dir(), cache.model(&format!("snapshots/{COMMIT}")));
        assert_eq!(checkpoint.tensor_f32("a").unwrap(), [0.5]);
    }
}

#[cfg(unix)]
#[test]
fn links_to_blobs_are_followed_and_broken_ones_are_missing_shards() {
    let cache = Cache::new();
    let shard = cache.model(&format!("snapshots/{COMMIT}/model-00001-of-00002.safetensors"));
    let blob = cache.model("blobs/abc");
    fs::rename(&shard, &blob).unwrap();
    std::os::unix::fs::symlink("../../blobs/abc", &shard).unwrap();
    assert_eq!(cache.open("org/name").unwrap().tensor_f32("a").unwrap(), [0.5]);

    fs::rename(&blob, cache.model("blobs/abc.incomplete")).unwrap();
    assert_eq!(
        cache.open("org/name").unwrap_err(),
        format!(
            "model `org/name@main` is not in the local cache: the snapshot lacks the shard \
             `model-00001-of-00002.safetensors`, and the download of abc.incomplete is unfinished; tried `{}`; download \
             it first, for example with `hf download org/name`",
            shard.parent().unwrap().display()
        )
    );
}

#[test]
fn a_model_that_is_not_cached_lists_the_paths_tried() {
    let cache = Cache::new();
    let says = |id: &str, reason: &str, tried: &[PathBuf]| {
        let tried: Vec<_> = tried.iter().map(|path| format!("`{}`", path.display())).collect();
        let (repo, revision) = id.split_once('@').unwrap_or((id, "main"));
        assert_eq!(
            cache.open(id).unwrap_err(),
            format!(
                "model `{repo}@{revision}` is not in the local cache: {reason}; tried {}; download it first, for example \
                 with `hf download {repo}`",
                tried.join(", ")
            )
        );
    };
    says("org/other", "there is no folder for it", &[cache.root.path().join("models--org--other")]);
    says(
        "org/name@v2",
        &format!("there is no revision `v2`, only the snapshots {COMMIT} (usable as org/name@<hash>)"),
        &[cache.model("refs/v2"), cache.model("snapshots/v2")],
    );
    fs::write(cache.model("refs/v3"), "fedc").unwrap();
    says("org/name@v3", "the snapshot fedc is missing", &[cache.model("refs/v3"), cache.model("snapshots/fedc")]);
    fs::write(cache.model("refs/v4"), "../../..").unwrap();
    let reference = cache.model("refs/v4");
    says(
        "org/name@v4",
        &format!("`{}` holds `../../..` instead of a commit hash", reference.display()),
        std::slice::from_ref(&reference),
    );
    let snapshot = cache.model("snapshots/beef");
    fs::create_dir_all(&snapshot).unwrap();
    says(
        "org/name@beef",
        "the snapshot holds neither model.safetensors.index.json nor model.safetensors: is this the folder of a model?",
        &[snapshot],
    );
    let text = Checkpoint::open_with("org/name", &|_| None).unwrap_err().to_string();
    assert!(text.contains("neither HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME nor HOME is set"), "{text}");
}
