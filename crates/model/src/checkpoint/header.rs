//! The header of a safetensors file: eight bytes of length, JSON, then the data of all tensors without gaps.
//!
//! Every rule of the format is checked here, so that code behind it can slice without asking again.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::dtype::DType;
use super::error::HeaderError;

/// The largest header the format allows.
const MAX_HEADER: usize = 100_000_000;

/// The key that holds free text instead of a tensor.
pub(super) const METADATA: &str = "__metadata__";

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The tensor's name.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape, row-major, outermost dimension first.
    pub shape: Vec<usize>,
    /// The first byte of its data, counted from the start of the file.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The free text of `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in the order of their data.
    pub tensors: Vec<TensorEntry>,
}

impl Header {
    /// Parses and checks the header of a whole file: `file` is all of its bytes.
    ///
    /// # Errors
    /// Anything the format forbids: a length beyond the file, text that is not JSON, an unknown dtype, a name that
    /// comes twice, data that overlaps, has gaps, ends beyond the file or does not fit dtype and shape.
    pub fn parse(file: &[u8]) -> Result<Self, HeaderError> {
        let (length, rest) = file.split_first_chunk::<8>().ok_or(HeaderError::TooShort(file.len()))?;
        let length = u64::from_le_bytes(*length);
        let length = match usize::try_from(length) {
            Ok(fits) if fits <= rest.len() && fits <= MAX_HEADER => fits,
            Ok(fits) if fits <= rest.len() => return Err(HeaderError::TooLarge { length, limit: MAX_HEADER }),
            _ => return Err(HeaderError::BeyondFile { length, available: rest.len() }),
        };
        let (text, data) = rest.split_at(length);
        let text = std::str::from_utf8(text).map_err(|error| HeaderError::NotUtf8 { at: error.valid_up_to() })?;
        let raw: RawHeader = serde_json::from_str(text).map_err(|error| HeaderError::Json(error.to_string()))?;

        let mut seen = std::collections::HashSet::new();
        if let Some((name, _)) = raw.tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
            return Err(HeaderError::Duplicate(name.clone()));
        }
        let entry = |(name, raw)| checked_entry(name, raw, data.len());
        let mut tensors = raw.tensors.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        tensors.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
        check_coverage(&tensors, data.len())?;
        for tensor in &mut tensors {
            tensor.start += 8 + length;
            tensor.end += 8 + length;
        }
        Ok(Header { metadata: raw.metadata, tensors })
    }

    /// The bytes of a file up to its data, for tensors that follow each other in this order.
    ///
    /// The text depends on nothing but the arguments, and is padded with spaces so that the data starts at a multiple
    /// of 8 bytes.
    pub(super) fn text<'a>(
        metadata: &BTreeMap<String, String>,
        tensors: impl Iterator<Item = (&'a str, DType, &'a [usize], usize)>,
    ) -> Vec<u8> {
        let mut object = serde_json::Map::new();
        if !metadata.is_empty() {
            object.insert(METADATA.into(), serde_json::json!(metadata));
        }
        let mut start = 0;
        for (name, dtype, shape, bytes) in tensors {
            let entry =
                serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [start, start + bytes]});
            object.insert(name.into(), entry);
            start += bytes;
        }
        let mut text = serde_json::Value::Object(object).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat()
    }
}

/// The entry with offsets still relative to the data, which has `available` bytes.
fn checked_entry(name: String, raw: RawEntry, available: usize) -> Result<TensorEntry, HeaderError> {
    let [start, end] = raw.data_offsets;
    let Ok(dtype) = raw.dtype.parse::<DType>() else {
        return Err(HeaderError::UnknownDType { name, dtype: raw.dtype });
    };
    if start > end {
        return Err(HeaderError::Reversed { name, start, end });
    }
    let (start, end) = match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if end <= available => (start, end),
        _ => return Err(HeaderError::OutOfRange { name, end, available }),
    };
    let shape = raw.shape.iter().map(|&dim| usize::try_from(dim)).collect::<Result<Vec<_>, _>>();
    let Some((shape, expected)) = shape.ok().and_then(|shape| dtype.bytes_for(&shape).map(|bytes| (shape, bytes)))
    else {
        return Err(HeaderError::Overflow { name, dtype, shape: raw.shape });
    };
    if expected != end - start {
        return Err(HeaderError::WrongSize { name, dtype, shape, expected, found: end - start });
    }
    Ok(TensorEntry { name, dtype, shape, start, end })
}

/// Sorted tensors must cover the data exactly.
fn check_coverage(tensors: &[TensorEntry], available: usize) -> Result<(), HeaderError> {
    let mut covered = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        if tensor.start > covered {
            return Err(HeaderError::Hole { start: covered, end: tensor.start });
        }
        if tensor.start < covered {
            let (first, second) = (tensors[i - 1].name.clone(), tensor.name.clone());
            return Err(HeaderError::Overlap { first, second, at: tensor.start });
        }
        covered = tensor.end;
    }
    if covered < available {
        return Err(HeaderError::Hole { start: covered, end: available });
    }
    Ok(())
}

/// What the JSON says about one tensor.
#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The JSON as it stands, repeated names included (a map type would silently drop them).
#[derive(Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(key) = map.next_key::<String>()? {
                    let context = |error| A::Error::custom(format!("`{key}`: {error}"));
                    if key == METADATA {
                        header.metadata.extend(map.next_value::<BTreeMap<_, _>>().map_err(context)?);
                    } else {
                        let entry = map.next_value().map_err(context)?;
                        header.tensors.push((key, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(RawVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header text and that many bytes of data.
    fn file(text: &str, data: usize) -> Vec<u8> {
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(text.as_bytes());
        file.resize(file.len() + data, 7);
        file
    }

    fn error(text: &str, data: usize) -> String {
        Header::parse(&file(text, data)).unwrap_err().to_string()
    }

    #[test]
    fn tensors_come_in_the_order_of_their_data() {
        let text = r#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},"empty":{"dtype":"I64","shape":[0,3],"data_offsets":[2,2]}}   "#;
        let header = Header::parse(&file(text, 10)).unwrap();
        assert_eq!(header.metadata, BTreeMap::from([("format".into(), "pt".into())]));
        let data = 8 + text.len();
        let found: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.start - data, t.end - data)).collect();
        assert_eq!(found, [("a", 0, 2), ("empty", 2, 2), ("b", 2, 10)]);
        assert_eq!(Header::parse(&file("{}", 0)).unwrap().tensors, []);
    }

    #[test]
    fn the_frame_is_checked() {
        let parse = |bytes: &[u8]| Header::parse(bytes).unwrap_err().to_string();
        assert_eq!(
            parse(&[1, 2, 3]),
            "3 bytes are too short for a safetensors file, which starts with 8 bytes of header length: the download is \
             incomplete"
        );
        let mut huge = file("{}", 0);
        huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        assert_eq!(
            parse(&huge),
            "the header claims 1152921504606846976 bytes but the file holds only 2 after its length: not a safetensors \
             file, or an incomplete download"
        );
        let mut large = vec![b' '; MAX_HEADER + 9];
        large[..8].copy_from_slice(&(MAX_HEADER as u64 + 1).to_le_bytes());
        assert_eq!(
            parse(&large),
            "the header claims 100000001 bytes, more than the 100000000 this format allows: not a safetensors file"
        );
        let mut latin = file("{  }", 0);
        latin[9] = 0xe9;
        assert_eq!(parse(&latin), "the header is not UTF-8 (byte 1): not a safetensors file");
    }

    #[test]
    fn the_text_is_checked() {
        assert_eq!(
            error("{", 0),
            "the header is not a JSON object of tensors (EOF while parsing an object at line 1 column 1): the file is \
             damaged"
        );
        assert!(error("[1]", 0).contains("invalid type: sequence, expected an object"));
        assert!(error("{} x", 0).contains("trailing characters"));
        assert!(error(r#"{"a":{"dtype":"F32","shape":[]}}"#, 0).contains("`a`: missing field `data_offsets`"));
        assert!(error(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#, 0).contains("`-1`, expected u64"));
        assert!(error(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,1.5]}}"#, 0).contains("floating point"));
        assert!(error(r#"{"__metadata__":{"epoch":3}}"#, 0).contains("`__metadata__`: invalid type: integer `3`"));
        let one = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        assert_eq!(
            error(&format!("{{{one},{one}}}"), 1),
            "tensor `a` is described twice: the file is damaged, write it again"
        );
        let twice = r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(error(twice, 1).contains("duplicate field `dtype`"));
        let nested = "[".repeat(100_000);
        assert!(error(&nested, 0).contains("expected an object"));
        assert!(error(&format!(r#"{{"a":{{"extra":{nested}"#), 0).contains("EOF while parsing"));
    }

    #[test]
    fn sizes_and_offsets_are_checked() {
        let one = |dtype: &str, shape: &str, offsets: &str, data| {
            error(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), data)
        };
        assert!(
            one("F31", "[1]", "[0,4]", 4).starts_with("tensor `a` has the unknown dtype `F31`; known are BOOL, F4, ")
        );
        assert_eq!(
            one("F32", "[1]", "[4,0]", 4),
            "tensor `a` has data_offsets [4, 0], which run backwards: the file is damaged"
        );
        assert_eq!(
            one("F32", "[2]", "[0,8]", 4),
            "tensor `a` ends at byte 8 of 4 bytes of data: the download is incomplete, fetch the file again"
        );
        assert_eq!(
            one("F32", "[2,3]", "[0,4]", 4),
            "tensor `a` of dtype F32 and shape [2, 3] needs 24 bytes, but its data_offsets hold 4: the file is damaged"
        );
        assert_eq!(
            one("F32", "[4294967296,4294967296]", "[0,4]", 4),
            "tensor `a` of dtype F32 has shape [4294967296, 4294967296], whose size is not a number of bytes that fits \
             into memory: the file is damaged"
        );
        assert!(one("F4", "[3]", "[0,2]", 2).contains("F4 has shape [3], whose size is not a number of bytes"));
    }

    #[test]
    fn data_is_covered_exactly_once() {
        let two = |first: &str, second: &str, data| {
            let entry = |offsets: &str| format!(r#"{{"dtype":"U8","shape":[2],"data_offsets":{offsets}}}"#);
            error(&format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second)), data)
        };
        assert_eq!(two("[0,2]", "[1,3]", 3), "tensors `a` and `b` overlap at byte 1 of the data: the file is damaged");
        assert_eq!(two("[0,2]", "[0,2]", 2), "tensors `a` and `b` overlap at byte 0 of the data: the file is damaged");
        assert_eq!(two("[0,2]", "[3,5]", 5), "bytes 2 to 3 of the data belong to no tensor: the file is damaged");
        assert_eq!(two("[1,3]", "[3,5]", 5), "bytes 0 to 1 of the data belong to no tensor: the file is damaged");
        assert_eq!(two("[0,2]", "[2,4]", 6), "bytes 4 to 6 of the data belong to no tensor: the file is damaged");
    }

    #[test]
    fn written_text_starts_data_at_a_multiple_of_eight() {
        let metadata = BTreeMap::from([("format".into(), "pt".into())]);
        let tensors = [("w", DType::F32, [2usize, 1].as_slice(), 8usize), ("b\"", DType::U8, &[1], 1)];
        let text = Header::text(&metadata, tensors.into_iter());
        assert_eq!(text.len() % 8, 0);
        let json = r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b\"":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}}"#;
        assert_eq!(std::str::from_utf8(&text[8..]).unwrap().trim_end(), json);
        let file = [text, vec![0; 9]].concat();
        assert_eq!(Header::parse(&file).unwrap().tensors[1].name, "b\"");
    }
}
