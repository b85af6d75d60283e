//! The 256 tokens of the tasks.

use std::ops::Range;

/// Fills up rows.
pub const PAD: u32 = 0;
/// Begins a context, [`BEGINS`] times: attention that has nowhere to go collects there.
pub const BOS: u32 = 1;
/// Ends a record or statement.
pub const SEP: u32 = 2;
/// Begins a question.
pub const QUERY: u32 = 3;
/// Ends a question.
pub const ANSWER: u32 = 4;
/// Between a name and its value.
pub const ASSIGN: u32 = 5;
/// Before the name of a variable.
pub const VAR: u32 = 6;
/// Ends an example.
pub const EOS: u32 = 7;
/// Before the key of a record.
pub const KEY: u32 = 8;
/// Asks for common words.
pub const CWE: u32 = 9;
/// Asks for frequent words.
pub const FWE: u32 = 10;
/// The three fields of a record.
pub const FIELDS: [u32; 3] = [11, 12, 13];
/// Filler.
pub const NOISE: Range<u32> = 16..80;
/// Keys of records and names of variables.
pub const KEYS: Range<u32> = 80..144;
/// Values.
pub const VALUES: Range<u32> = 144..208;
/// Words to count.
pub const WORDS: Range<u32> = 208..256;
/// How many tokens there are.
pub const SIZE: usize = 256;
/// How often [`BOS`] stands in front.
pub const BEGINS: usize = 4;

/// The symbols that may follow filler `symbol`, and how often each does, in tenths.
pub fn after_noise(symbol: u32) -> [(u32, u32); 4] {
    let a = symbol - NOISE.start;
    [4, 3, 2, 1].map(|tenths| {
        let i = 4 - tenths;
        (NOISE.start + (5 * a + 11 * i + 3) % 64, tenths)
    })
}
