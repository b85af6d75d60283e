//! Any text as a shard index: an error, or names of files beside the index that survive a round trip.
#![no_main]

use std::path::Path;

use kindling_model::checkpoint::ShardIndex;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &str| {
    let Ok(index) = ShardIndex::parse(json) else { return };
    for file in index.weight_map.values() {
        let path = Path::new("/base").join(file);
        assert_eq!(path.parent(), Some(Path::new("/base")));
        assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(file.as_str()));
    }
    assert_eq!(index.shards().values().map(Vec::len).sum::<usize>(), index.weight_map.len());
    assert_eq!(ShardIndex::parse(&index.to_json(0)), Ok(index));
});
