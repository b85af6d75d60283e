//! The types of kept values, and how registers of them are expanded.
//!
//! Of 16-bit values the two halves of a word take turns: bits `2 c` and `2 c + 1` of a mask are inputs `c` and `16 + c`. So
//! neighbours after expansion are the halves of one lane, and each is widened by one instruction.
#![allow(unsafe_code, reason = "loads take pointers; one instruction is written by hand")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::ops::simd::LANES;

/// A type of kept values.
pub(super) trait Kept: bytemuck::Pod + Send + Sync {
    /// Whether all these values are of the type.
    fn holds(values: &[f32]) -> bool;

    /// A value that is of the type.
    fn narrow(value: f32) -> Self;

    /// In f32.
    fn wide(self) -> f32;

    /// The input of a bit of a mask.
    fn input(bit: usize) -> usize;

    /// The inputs of a mask in order, zeros in place of the pruned; `values` begin with those that it keeps.
    ///
    /// # Safety
    /// The processor has AVX-512 with VBMI2 and POPCNT; 64 bytes can be read after what the mask keeps.
    #[cfg(target_arch = "x86_64")]
    unsafe fn expand(values: *const Self, mask: u32) -> [__m512; 2];

    /// The same in registers of eight.
    ///
    /// # Safety
    /// The processor has AVX2, F16C and POPCNT; 64 bytes can be read after what the mask keeps.
    #[cfg(target_arch = "x86_64")]
    unsafe fn expand_avx2(values: *const Self, mask: u32) -> [__m256; 4];
}

impl Kept for bf16 {
    fn holds(values: &[f32]) -> bool {
        // Without a way out in the middle the loop becomes vector instructions.
        values.iter().fold(0, |bits, value| bits | value.to_bits() & 0xffff) == 0
    }

    fn narrow(value: f32) -> Self {
        bf16::from_bits((value.to_bits() >> 16) as u16)
    }

    fn wide(self) -> f32 {
        self.to_f32()
    }

    fn input(bit: usize) -> usize {
        input_of_pair(bit)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
    unsafe fn expand(values: *const Self, mask: u32) -> [__m512; 2] {
        // SAFETY: the caller's.
        let pairs = expand_words(mask, unsafe { _mm512_loadu_si512(values.cast()) });
        let high = _mm512_and_si512(pairs, _mm512_set1_epi32(!0xffff));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(high)]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,popcnt")]
    unsafe fn expand_avx2(values: *const Self, mask: u32) -> [__m256; 4] {
        // SAFETY: the caller's.
        let [a, b, c, d] = unsafe { expand_eight_words(values, mask) };
        let (first, second) = (_mm256_set_m128i(b, a), _mm256_set_m128i(d, c));
        let low = |pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
        let high = |pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(!0xffff)));
        [low(first), low(second), high(first), high(second)]
    }
}

impl Kept for f16 {
    fn holds(values: &[f32]) -> bool {
        values.iter().all(|&value| f16::from_f32(value).to_f32() == value)
    }

    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn wide(self) -> f32 {
        self.to_f32()
    }

    fn input(bit: usize) -> usize {
        input_of_pair(bit)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
    unsafe fn expand(values: *const Self, mask: u32) -> [__m512; 2] {
        // SAFETY: the caller's.
        let pairs = expand_words(mask, unsafe { _mm512_loadu_si512(values.cast()) });
        let wide = |words| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
        [wide(pairs), wide(_mm512_srli_epi32::<16>(pairs))]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c,popcnt")]
    unsafe fn expand_avx2(values: *const Self, mask: u32) -> [__m256; 4] {
        // SAFETY: the caller's.
        let [a, b, c, d] = unsafe { expand_eight_words(values, mask) };
        let low = |pairs| _mm_and_si128(pairs, _mm_set1_epi32(0xffff));
        let high = |pairs| _mm_srli_epi32::<16>(pairs);
        let wide = |a, b| _mm256_cvtph_ps(_mm_packus_epi32(a, b));
        [wide(low(a), low(b)), wide(low(c), low(d)), wide(high(a), high(b)), wide(high(c), high(d))]
    }
}

impl Kept for f32 {
    fn holds(_: &[f32]) -> bool {
        true
    }

    fn narrow(value: f32) -> Self {
        value
    }

    fn wide(self) -> f32 {
        self
    }

    fn input(bit: usize) -> usize {
        bit
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    unsafe fn expand(values: *const Self, mask: u32) -> [__m512; 2] {
        let (low, high) = (mask as __mmask16, (mask >> LANES) as __mmask16);
        // SAFETY: the caller's.
        unsafe {
            let after = _mm512_loadu_ps(values.add(low.count_ones() as usize));
            [_mm512_maskz_expand_ps(low, _mm512_loadu_ps(values)), _mm512_maskz_expand_ps(high, after)]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,popcnt")]
    unsafe fn expand_avx2(mut values: *const Self, mask: u32) -> [__m256; 4] {
        let mut found = [_mm256_setzero_ps(); 4];
        for (found, byte) in found.iter_mut().zip(mask.to_le_bytes()) {
            // SAFETY: the caller's.
            let eight = unsafe { _mm256_loadu_ps(values) };
            // Half of where the first byte of a word comes from is where a value does; from nowhere is negative.
            let places = _mm256_cvtepi16_epi32(places(byte));
            let moved = _mm256_permutevar8x32_ps(eight, _mm256_srli_epi32::<1>(places));
            *found = _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32::<31>(places)), moved);
            values = values.wrapping_add(byte.count_ones() as usize);
        }
        found
    }
}

/// The input of a bit of a mask over 16-bit values.
fn input_of_pair(bit: usize) -> usize {
    bit / 2 + bit % 2 * LANES
}

/// Words in the places that the mask says, zeros elsewhere. By hand: the compiler would join the instruction with the load before
/// it, and in that form it takes twice as long.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
fn expand_words(mask: u32, words: __m512i) -> __m512i {
    let expanded;
    // SAFETY: from register to register; the instruction is one of the function's features.
    unsafe {
        std::arch::asm!(
            "vpexpandw {expanded}{{{mask}}}{{z}}, {words}",
            expanded = lateout(zmm_reg) expanded,
            mask = in(kreg) mask,
            words = in(zmm_reg) words,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    expanded
}

/// The same for AVX2, eight words to a register.
///
/// # Safety
/// 16 bytes can be read after the words that the mask keeps.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn expand_eight_words<T>(mut values: *const T, mask: u32) -> [__m128i; 4] {
    let mut found = [_mm_setzero_si128(); 4];
    for (found, byte) in found.iter_mut().zip(mask.to_le_bytes()) {
        // SAFETY: the caller's.
        let words = unsafe { _mm_loadu_si128(values.cast()) };
        *found = _mm_shuffle_epi8(words, places(byte));
        values = values.wrapping_add(byte.count_ones() as usize);
    }
    found
}

/// Where the two bytes of each of eight places come from: see [`PLACES`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn places(byte: u8) -> __m128i {
    // SAFETY: the table has 16 bytes for every byte.
    unsafe { _mm_loadu_si128(PLACES[usize::from(byte)].as_ptr().cast()) }
}

/// Of every mask of eight bits where the two bytes of each place come from; 128: from nowhere.
#[cfg(target_arch = "x86_64")]
static PLACES: [[u8; 16]; 256] = {
    let mut places = [[128; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bit, mut rank) = (0, 0);
        while bit < 8 {
            if mask >> bit & 1 == 1 {
                (places[mask][2 * bit], places[mask][2 * bit + 1]) = (2 * rank, 2 * rank + 1);
                rank += 1;
            }
            bit += 1;
        }
        mask += 1;
    }
    places
};
