//! Any bytes as a safetensors file: an error or tensors that tile the data, and never more lenient than the official
//! reader.
#![no_main]

use kindling_model::checkpoint::Header;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = Header::parse(file) else { return };
    let mut at = header.tensors.first().map_or(file.len(), |first| first.start);
    for tensor in &header.tensors {
        assert_eq!(tensor.start, at);
        assert_eq!(tensor.dtype.bytes_for(&tensor.shape), Some(tensor.end - tensor.start));
        at = tensor.end;
    }
    assert_eq!(at, file.len());
    // The official reader multiplies dimensions before it looks for a zero among them.
    let overflows =
        |shape: &[usize]| shape.iter().try_fold(64usize, |product, &dim| product.checked_mul(dim)).is_none();
    if header.tensors.iter().any(|tensor| overflows(&tensor.shape)) {
        return;
    }
    let official = SafeTensors::deserialize(file).expect("accepted here, so accepted there");
    assert_eq!(official.len(), header.tensors.len());
    for tensor in &header.tensors {
        let theirs = official.tensor(&tensor.name).expect("the same names");
        assert_eq!((theirs.shape(), theirs.data()), (tensor.shape.as_slice(), &file[tensor.start..tensor.end]));
    }
});
