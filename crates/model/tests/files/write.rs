//! Writing checkpoints: what is written is read back, from where it stopped it goes on, damage is noticed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kindling_model::checkpoint::{
    Checkpoint, DType, Header, INDEX_FILE, OutTensor, SINGLE_FILE, Writer, WriterOptions,
};
use proptest::prelude::*;

fn tensor(name: &str, dtype: DType, shape: &[usize]) -> OutTensor<'static> {
    let bytes = dtype.bytes_for(shape).unwrap();
    let salt = name.len() as u8;
    let bytes: Vec<u8> = (0..bytes).map(|i| (i as u8).wrapping_mul(31).wrapping_add(salt)).collect();
    OutTensor { name: name.into(), dtype, shape: shape.into(), bytes: bytes.into() }
}

fn parts(parts: usize) -> WriterOptions {
    WriterOptions { parts, ..Default::default() }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn one_part_is_one_plain_file_that_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path().join("new/out"), parts(1)).unwrap();
    let tensors = [
        tensor("z", DType::U8, &[3]),
        tensor("b", DType::BF16, &[2, 2]),
        tensor("a", DType::F16, &[1]),
        tensor("shape", DType::I64, &[2]),
    ];
    let info = writer.write_shard(&tensors).unwrap().clone();
    assert_eq!((info.files.as_slice(), info.bytes), ([SINGLE_FILE.to_owned()].as_slice(), 29));
    assert_eq!(info.tensors, ["a", "b", "shape", "z"]);
    assert_eq!(writer.finish().unwrap(), 29);
    let files = files(&dir.path().join("new/out"));
    assert_eq!(files.keys().collect::<Vec<_>>(), [SINGLE_FILE]);

    let file = &files[SINGLE_FILE];
    let order: Vec<_> = Header::parse(file).unwrap().tensors.into_iter().map(|t| (t.name, t.start % 8)).collect();
    let names = order.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    assert_eq!(names, ["shape", "a", "b", "z"], "wide types first, then by name");
    assert_eq!(order[0].1, 0, "data starts at a multiple of 8");
    let official = safetensors::SafeTensors::deserialize(file).unwrap();
    for tensor in &tensors {
        assert_eq!(official.tensor(&tensor.name).unwrap().data(), &*tensor.bytes);
    }
    let (_, metadata) = safetensors::SafeTensors::read_metadata(file).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn several_parts_have_an_index_and_large_ones_are_split() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions { max_shard_bytes: 10, ..parts(2) };
    let mut writer = Writer::create(dir.path(), options).unwrap();
    let u8s = |name, count| tensor(name, DType::U8, &[count]);
    let info = writer.write_shard(&[u8s("a", 6), u8s("b", 4), u8s("c", 1), u8s("d", 11)]).unwrap();
    let expected = ["", ".1", ".2"].map(|piece| format!("model-00001{piece}-of-00002.safetensors"));
    assert_eq!(info.files, expected);
    writer.write_shard(&[u8s("e", 2)]).unwrap();
    assert!(Checkpoint::open(dir.path()).is_err(), "nothing looks like a model before the index");
    assert_eq!(writer.finish().unwrap(), 24);
    assert_eq!(
        fs::read_to_string(dir.path().join(INDEX_FILE)).unwrap(),
        r#"{
  "metadata": {
    "total_size": 24
  },
  "weight_map": {
    "a": "model-00001-of-00002.safetensors",
    "b": "model-00001-of-00002.safetensors",
    "c": "model-00001.1-of-00002.safetensors",
    "d": "model-00001.2-of-00002.safetensors",
    "e": "model-00002-of-00002.safetensors"
  }
}
"#
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensor("d").unwrap().bytes, &*u8s("d", 11).bytes);
}

#[test]
fn a_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes() {
    let options = || WriterOptions { max_shard_bytes: 8, ..parts(3) };
    let part = |i: usize| ["x", "y", "z"].map(|name| tensor(&format!("{i}.{name}"), DType::F16, &[i + 1]));
    let whole = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(whole.path(), options()).unwrap();
    for i in 0..3 {
        writer.write_shard(&part(i)).unwrap();
    }
    writer.finish().unwrap();
    let expected = files(whole.path());
    assert_eq!(expected.len(), 1 + 1 + 2 + 3);

    // Every order of files is a state an interruption can leave: pieces of a part come last to first, the index last.
    let piece = |i: usize, k: &str| format!("model-0000{i}{k}-of-00003.safetensors");
    let order = [piece(1, ""), piece(2, ".1"), piece(2, ""), piece(3, ".2"), piece(3, ".1"), piece(3, "")];
    let complete = [0, 1, 1, 2, 2, 2, 3];
    for (kept, complete) in complete.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        for name in &order[..kept] {
            fs::write(dir.path().join(name), &expected[name]).unwrap();
        }
        fs::write(dir.path().join(".model-00002-of-00003.safetensors.tmp"), "half").unwrap();
        let mut writer = Writer::resume(dir.path(), options()).unwrap();
        assert_eq!(writer.done().len(), complete, "{kept} files");
        for i in complete..3 {
            writer.write_shard(&part(i)).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), 3 * (2 + 4 + 6));
        let mut found = files(dir.path());
        found.retain(|name, _| !name.ends_with(".tmp"));
        assert_eq!(found, expected, "{kept} files");
    }
    // A finished checkpoint can be finished again.
    let writer = Writer::resume(whole.path(), options()).unwrap();
    assert_eq!(writer.done().len(), 3);
    writer.finish().unwrap();
    assert_eq!(files(whole.path()), expected);
}

#[test]
fn a_single_file_is_resumed_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::resume(dir.path(), parts(1)).unwrap();
    writer.write_shard(&[tensor("a", DType::F32, &[1])]).unwrap();
    let writer = Writer::resume(dir.path(), parts(1)).unwrap();
    assert_eq!(writer.done()[0].tensors, ["a"]);
    assert_eq!(writer.finish().unwrap(), 4);
}

#[test]
fn mistakes_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let folder = format!("output folder `{}`", dir.path().display());
    let text = |error: kindling_model::checkpoint::CheckpointError| error.to_string();
    assert_eq!(
        text(Writer::create(dir.path(), parts(0)).unwrap_err()),
        format!("{folder}: a checkpoint has at least one part")
    );
    let mut writer = Writer::create(dir.path(), parts(2)).unwrap();
    let bad = OutTensor { shape: vec![3], ..tensor("a", DType::F32, &[2]) };
    assert_eq!(
        text(writer.write_shard(&[bad]).unwrap_err()),
        "cannot write tensor `a`: dtype F32 and shape [3] need 12 bytes, found 8"
    );
    let huge = OutTensor { shape: vec![usize::MAX, 2], ..tensor("a", DType::F32, &[2]) };
    assert_eq!(
        text(writer.write_shard(&[huge]).unwrap_err()),
        format!(
            "cannot write tensor `a`: dtype F32 and shape [{}, 2] need an impossible number of bytes, found 8",
            usize::MAX
        )
    );
    let a = || tensor("a", DType::U8, &[1]);
    let again = "cannot write tensor `a`: it is written already";
    assert_eq!(text(writer.write_shard(&[a(), a()]).unwrap_err()), again);
    let name = tensor("__metadata__", DType::U8, &[1]);
    assert_eq!(
        text(writer.write_shard(&[name]).unwrap_err()),
        "cannot write tensor `__metadata__`: this name is not allowed"
    );
    assert_eq!(
        text(OutTensor::from_f32("i", DType::I32, &[1], &[1.0]).unwrap_err()),
        "cannot write tensor `i`: dtype I32 does not hold f32 values"
    );
    writer.write_shard(&[a()]).unwrap();
    assert_eq!(text(writer.write_shard(&[a()]).unwrap_err()), again);
    assert_eq!(
        text(writer.finish().unwrap_err()),
        format!("{folder}: only 1 of 2 parts are written: write the others first")
    );
    let first = "model-00001-of-00002.safetensors";
    assert_eq!(
        text(Writer::create(dir.path(), parts(2)).unwrap_err()),
        format!(
            "{folder}: holds `{first}` already: choose another folder, delete the old weights, or resume the run that \
             wrote them"
        )
    );
    assert_eq!(
        text(Writer::resume(dir.path(), parts(3)).unwrap_err()),
        format!(
            "{folder}: holds `{first}`, which is not one of the 3 parts of this run: choose another folder or delete it"
        )
    );
    let mut writer = Writer::resume(dir.path(), parts(2)).unwrap();
    writer.write_shard(&[tensor("b", DType::U8, &[1])]).unwrap();
    assert_eq!(
        text(writer.write_shard(&[tensor("c", DType::U8, &[1])]).unwrap_err()),
        format!("{folder}: all 2 parts are written already")
    );
    fs::write(dir.path().join(first), b"damaged").unwrap();
    assert_eq!(
        text(Writer::resume(dir.path(), parts(2)).unwrap_err()),
        format!(
            "`{}`: 7 bytes are too short for a safetensors file, which starts with 8 bytes of header length: the \
             download is incomplete",
            dir.path().join(first).display()
        )
    );
}

/// Any type with a shape of up to three dimensions, some of them empty.
fn any_tensor() -> impl Strategy<Value = (DType, Vec<usize>)> {
    let dtypes: Vec<_> = DType::all().filter(|dtype| dtype.bits() >= 8).collect();
    (prop::sample::select(dtypes), prop::collection::vec(0usize..5, 0..4))
}

proptest! {
    // Every case waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_tensors_round_trip(
        tensors in prop::collection::btree_map("[^\u{0}]{1,12}", any_tensor(), 0..8),
        limit in 1u64..200,
        count in 1usize..4,
    ) {
        let tensors: Vec<_> = tensors.iter().map(|(name, (dtype, shape))| tensor(name, *dtype, shape)).collect();
        let dir = tempfile::tempdir().unwrap();
        let options = WriterOptions { max_shard_bytes: limit, ..parts(count) };
        let mut writer = Writer::create(dir.path(), options).unwrap();
        let chunk = tensors.len().div_ceil(count).max(1);
        for part in 0..count {
            let from = (part * chunk).min(tensors.len());
            writer.write_shard(&tensors[from..(from + chunk).min(tensors.len())]).unwrap();
        }
        let total = writer.finish().unwrap();
        if tensors.is_empty() {
            // An index without tensors is refused; a single empty file is not.
            prop_assert_eq!(Checkpoint::open(dir.path()).is_ok(), count == 1);
            return Ok(());
        }
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        prop_assert_eq!(checkpoint.total_bytes(), total);
        prop_assert_eq!(checkpoint.names().len(), tensors.len());
        for tensor in &tensors {
            let view = checkpoint.tensor(&tensor.name).unwrap();
            prop_assert_eq!(view.info.dtype, tensor.dtype);
            prop_assert_eq!(view.info.shape, &tensor.shape);
            prop_assert_eq!(view.bytes, &*tensor.bytes);
        }
        for file in checkpoint.files() {
            let bytes = fs::read(file).unwrap();
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
        }
    }
}

proptest! {
    #[test]
    fn damaged_headers_never_panic_nor_give_bytes_of_others(
        changes in prop::collection::vec((0usize..260, any::<u8>()), 1..5),
        cut in prop::option::of(0usize..260),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(dir.path(), parts(1)).unwrap();
        writer.write_shard(&[tensor("a", DType::F32, &[2, 3]), tensor("b", DType::BF16, &[4])]).unwrap();
        let mut bytes = fs::read(dir.path().join(SINGLE_FILE)).unwrap();
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        if let Ok(header) = Header::parse(&bytes) {
            let mut at = header.tensors.first().map_or(bytes.len(), |first| first.start);
            for tensor in &header.tensors {
                prop_assert_eq!(tensor.start, at);
                prop_assert_eq!(tensor.dtype.bytes_for(&tensor.shape), Some(tensor.end - tensor.start));
                at = tensor.end;
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
