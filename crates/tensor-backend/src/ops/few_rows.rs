//! Products of a few rows with keys and values, as decoding has them: each key and value is read once, as it lies.
//!
//! A general product would copy keys and values into tiles first, which costs as much as reading them.
#![allow(unsafe_code, reason = "sums across the lanes of registers have no safe form")]

use super::simd::{LANES, mul_add, total, vectorised};

/// Queries of a head up to this many take these loops, which give each the same bits alone as beside others: what drafts
/// are verified by is what would have been decoded.
pub(super) const MOST_TOKENS: usize = 32;
/// Rows that share a read.
const ROWS: usize = 4;
/// Columns whose sums are in registers at a time: all of a value of usual width, so that values are read once and in order.
const COLUMNS: usize = 4 * LANES;

/// Goes through rows of an input and of an output, [`ROWS`] at a time and the last ones one by one; `$R` is their number.
macro_rules! in_groups {
    (($x:ident, $x_width:expr), ($y:ident, $y_width:expr), $R:ident => $body:expr) => {
        for ($x, $y) in $x.chunks(ROWS * $x_width).zip($y.chunks_mut(ROWS * $y_width)) {
            if $x.len() == ROWS * $x_width {
                const $R: usize = ROWS;
                $body;
            } else {
                for ($x, $y) in $x.chunks($x_width).zip($y.chunks_mut($y_width)) {
                    const $R: usize = 1;
                    $body;
                }
            }
        }
    };
}

/// `scores [rows, keys] = q [rows, width] · kᵀ`; rows of `k` are `stride` apart.
pub(super) fn dots(q: &[f32], k: &[f32], stride: usize, width: usize, keys: usize, scores: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        assert!(keys == 0 || (keys - 1) * stride + width <= k.len(), "keys outside their slice");
        // SAFETY: the instructions are there, and all keys lie within their slice.
        in_groups!((q, width), (scores, keys), R => unsafe { avx512::dots::<R>(q, k, stride, width, keys, scores) });
        return;
    }
    dots_plain(q, k, stride, width, keys, scores);
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use std::arch::x86_64::*;

    use super::LANES;

    /// Dot products that are summed across lanes together.
    pub(crate) const TOGETHER: usize = 16;

    /// `R` rows (4 or 1) with all keys: sixteen sums at a time, so that their lanes are added up in one go.
    ///
    /// # Safety
    /// `k` holds `keys` rows of `width`, `stride` apart.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn dots<const R: usize>(
        q: &[f32],
        k: &[f32],
        stride: usize,
        width: usize,
        keys: usize,
        scores: &mut [f32],
    ) {
        assert!((R == 1 || R == 4) && q.len() >= R * width && scores.len() >= R * keys, "rows and scores");
        let per_step = TOGETHER / R;
        let (whole, tail) = (width - width % LANES, ((1u32 << (width % LANES)) - 1) as __mmask16);
        for first in (0..keys).step_by(per_step) {
            let count = per_step.min(keys - first);
            let mut sums = [_mm512_setzero_ps(); TOGETHER];
            for j in 0..per_step {
                // The last keys stand in for those that are missing; what they give is dropped.
                let key = (first + j).min(keys - 1) * stride;
                let mut own = [_mm512_setzero_ps(); R];
                // SAFETY: rows of `width` values; the tail reads only what the mask leaves.
                unsafe {
                    for at in (0..whole).step_by(LANES) {
                        let k = _mm512_loadu_ps(k.as_ptr().add(key + at));
                        for (r, own) in own.iter_mut().enumerate() {
                            *own = _mm512_fmadd_ps(_mm512_loadu_ps(q.as_ptr().add(r * width + at)), k, *own);
                        }
                    }
                    if tail != 0 {
                        let k = _mm512_maskz_loadu_ps(tail, k.as_ptr().add(key + whole));
                        for (r, own) in own.iter_mut().enumerate() {
                            let q = _mm512_maskz_loadu_ps(tail, q.as_ptr().add(r * width + whole));
                            *own = _mm512_fmadd_ps(q, k, *own);
                        }
                    }
                }
                for (r, own) in own.into_iter().enumerate() {
                    sums[r * per_step + j] = own;
                }
            }
            let mut found = [0.0f32; TOGETHER];
            // SAFETY: 64 bytes of the array.
            unsafe { _mm512_storeu_ps(found.as_mut_ptr(), across(&sums)) };
            for (r, found) in found.chunks_exact(per_step).enumerate() {
                scores[r * keys + first..][..count].copy_from_slice(&found[..count]);
            }
        }
    }

    /// Lane `i` of the result is the sum of all lanes of `sums[i]`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn across(sums: &[__m512; TOGETHER]) -> __m512 {
        // Four registers become one whose 128-bit parts hold four partial sums each …
        let four = |i: usize| {
            let pair = |a: __m512, b: __m512| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (ab, cd) = (pair(sums[i], sums[i + 1]), pair(sums[i + 2], sums[i + 3]));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
            _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        };
        // … and the four parts of four such registers are added up.
        let halves = |a: __m512, b: __m512| {
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
        };
        let (x, y) = (halves(four(0), four(4)), halves(four(8), four(12)));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(x, y), _mm512_shuffle_f32x4::<0xdd>(x, y))
    }
}

vectorised! {
    /// As [`dots`].
    fn dots_plain(q: &[f32], k: &[f32], stride: usize, width: usize, keys: usize, scores: &mut [f32]) {
        in_groups!((q, width), (scores, keys), R => dots_of::<R, FMA>(q, k, stride, width, keys, scores));
    }

    /// `out [rows, width] = weights [rows, keys] · v`; rows of `v` are `stride` apart.
    pub(super) fn sums(weights: &[f32], v: &[f32], stride: usize, width: usize, keys: usize, out: &mut [f32]) {
        in_groups!((weights, keys), (out, width), R => sums_of::<R, FMA>(weights, v, stride, width, keys, out));
    }
}

#[inline(always)]
fn dots_of<const R: usize, const FMA: bool>(
    q: &[f32],
    k: &[f32],
    stride: usize,
    width: usize,
    keys: usize,
    scores: &mut [f32],
) {
    let whole = width - width % LANES;
    let q: [&[f32]; R] = std::array::from_fn(|r| &q[r * width..][..width]);
    for key in 0..keys {
        let k = &k[key * stride..][..width];
        let mut sums = [[0.0f32; LANES]; R];
        for at in (0..whole).step_by(LANES) {
            let k = &k[at..][..LANES];
            for r in 0..R {
                let q = &q[r][at..][..LANES];
                for i in 0..LANES {
                    sums[r][i] = mul_add::<FMA>(q[i], k[i], sums[r][i]);
                }
            }
        }
        for r in 0..R {
            let tail: f32 = q[r][whole..].iter().zip(&k[whole..]).map(|(q, k)| q * k).sum();
            scores[r * keys + key] = total(sums[r]) + tail;
        }
    }
}

#[inline(always)]
fn sums_of<const R: usize, const FMA: bool>(
    weights: &[f32],
    v: &[f32],
    stride: usize,
    width: usize,
    keys: usize,
    out: &mut [f32],
) {
    let weights: [&[f32]; R] = std::array::from_fn(|r| &weights[r * keys..][..keys]);
    let mut whole = 0;
    while width - whole >= COLUMNS {
        columns_of::<R, COLUMNS, FMA>(&weights, v, stride, width, whole, out);
        whole += COLUMNS;
    }
    while width - whole >= LANES {
        columns_of::<R, LANES, FMA>(&weights, v, stride, width, whole, out);
        whole += LANES;
    }
    for r in 0..R {
        let out = &mut out[r * width + whole..][..width - whole];
        out.fill(0.0);
        for key in 0..keys {
            let (weight, v) = (weights[r][key], &v[key * stride + whole..][..out.len()]);
            out.iter_mut().zip(v).for_each(|(out, v)| *out = mul_add::<FMA>(weight, *v, *out));
        }
    }
}

/// Columns `at..at + C` of [`sums`].
#[inline(always)]
fn columns_of<const R: usize, const C: usize, const FMA: bool>(
    weights: &[&[f32]; R],
    v: &[f32],
    stride: usize,
    width: usize,
    at: usize,
    out: &mut [f32],
) {
    let mut sums = [[0.0f32; C]; R];
    for key in 0..weights[0].len() {
        let v = &v[key * stride + at..][..C];
        for r in 0..R {
            let weight = weights[r][key];
            for i in 0..C {
                sums[r][i] = mul_add::<FMA>(weight, v[i], sums[r][i]);
            }
        }
    }
    for r in 0..R {
        out[r * width + at..][..C].copy_from_slice(&sums[r]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn products_are_those_of_f64(rows in 1usize..9, width in 1usize..90, keys in 1usize..40, gap in 0usize..5) {
            let wave = |n: usize, phase: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.7 + phase).sin()).collect() };
            let stride = width + gap;
            let (q, k) = (wave(rows * width, 0.0), wave((keys - 1) * stride + width, 1.0));
            let at = |row: usize, key: usize| -> f64 {
                (0..width).map(|i| f64::from(q[row * width + i]) * f64::from(k[key * stride + i])).sum()
            };
            let (mut found, mut plain) = (vec![f32::NAN; rows * keys], vec![f32::NAN; rows * keys]);
            dots(&q, &k, stride, width, keys, &mut found);
            dots_plain(&q, &k, stride, width, keys, &mut plain);
            for (i, (found, plain)) in found.iter().zip(&plain).enumerate() {
                let exact = at(i / keys, i % keys);
                prop_assert!((f64::from(*found) - exact).abs() < 1e-5 && (f64::from(*plain) - exact).abs() < 1e-5);
            }
            let mut out = vec![f32::NAN; rows * width];
            sums(&found, &k, stride, width, keys, &mut out);
            for (i, out) in out.iter().enumerate() {
                let terms = (0..keys).map(|key| f64::from(found[i / width * keys + key]) * f64::from(k[key * stride + i % width]));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size): (f64, f64), x| (sum + x, size + x.abs()));
                prop_assert!((f64::from(*out) - sum).abs() < 1e-6 * (1.0 + size));
            }
        }
    }
}
