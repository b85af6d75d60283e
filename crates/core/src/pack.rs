//! Dense bit streams: codes of 1 to 8 bits in 32-bit words, least significant bit first.
//!
//! 32 codes occupy exactly `bits` words. A code may straddle two words (3, 5, 6 and 7 bits).

use crate::{Error, Result};

/// How many words a stream of `count` codes occupies.
pub fn words_for(count: usize, bits: u8) -> usize {
    (count * usize::from(bits)).div_ceil(32)
}

/// Packs codes into the words of `out`, which must hold [`words_for`] words. Unused bits are zero.
pub fn pack_into(codes: &[u8], bits: u8, out: &mut [u32]) {
    out.fill(0);
    for (i, &code) in codes.iter().enumerate() {
        let at = i * usize::from(bits);
        let wide = u64::from(code) << (at % 32);
        out[at / 32] |= wide as u32;
        if at % 32 + usize::from(bits) > 32 {
            out[at / 32 + 1] |= (wide >> 32) as u32;
        }
    }
}

/// The code at position `i` of a stream.
pub fn code_at(words: &[u32], bits: u8, i: usize) -> u8 {
    let at = i * usize::from(bits);
    let low = u64::from(words[at / 32]);
    let high = if at % 32 + usize::from(bits) > 32 { u64::from(words[at / 32 + 1]) } else { 0 };
    (((low | high << 32) >> (at % 32)) & ((1 << bits) - 1)) as u8
}

/// Packs every row of a row-major `[rows, cols]` matrix; each row starts on a word boundary.
pub fn pack_rows(codes: &[u8], cols: usize, bits: u8) -> Result<Vec<u32>> {
    if cols == 0 || !codes.len().is_multiple_of(cols) {
        return Err(Error::Shape {
            what: "codes to pack".into(),
            expected: vec![codes.len().div_ceil(cols.max(1)), cols],
            found: vec![codes.len()],
        });
    }
    let words = words_for(cols, bits);
    let mut out = vec![0; codes.len() / cols * words];
    for (row, packed) in codes.chunks_exact(cols).zip(out.chunks_exact_mut(words)) {
        pack_into(row, bits, packed);
    }
    Ok(out)
}

/// The inverse of [`pack_rows`].
pub fn unpack_rows(words: &[u32], rows: usize, cols: usize, bits: u8) -> Result<Vec<u8>> {
    let per_row = words_for(cols, bits);
    if words.len() != rows * per_row {
        return Err(Error::Shape {
            what: format!("words of {rows} rows of {cols} {bits}-bit codes"),
            expected: vec![rows, per_row],
            found: vec![words.len()],
        });
    }
    let mut codes = Vec::with_capacity(rows * cols);
    for row in words.chunks_exact(per_row.max(1)) {
        codes.extend((0..cols).map(|i| code_at(row, bits, i)));
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_words() {
        let codes: Vec<u8> = (0..32).map(|j| ((5 * j + 2) % 8) as u8).collect();
        assert_eq!(pack_rows(&codes, 32, 3).unwrap(), [0x3aa1_e33a, 0xe33a_a1e3, 0xa1e3_3aa1]);
        assert_eq!(pack_rows(&[1, 0, 3, 2].repeat(4), 16, 2).unwrap(), [0xb1b1_b1b1]);
        assert_eq!(pack_rows(&[200, 3, 127, 255], 4, 8).unwrap(), [0xff7f_03c8]);
    }

    #[test]
    fn every_width_and_length_round_trips() {
        for bits in 1..=8u8 {
            for cols in [1usize, 7, 31, 32, 33, 172] {
                let codes: Vec<u8> = (0..3 * cols).map(|i| ((i * 37 + 11) % (1usize << bits)) as u8).collect();
                let words = pack_rows(&codes, cols, bits).unwrap();
                assert_eq!(words.len(), 3 * words_for(cols, bits));
                assert_eq!(unpack_rows(&words, 3, cols, bits).unwrap(), codes, "{bits} bits, {cols} columns");
            }
        }
        assert!(unpack_rows(&[0; 3], 2, 8, 4).is_err());
    }
}
