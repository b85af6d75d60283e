//! One loop, compiled for several instruction sets, chosen at run time.

/// Lanes that sums are kept in: one AVX-512 register. The order of additions is the same on every machine.
pub(crate) const LANES: usize = 16;

/// Defines functions whose loops the compiler vectorises for AVX-512, for AVX2 and for the baseline; a call picks the
/// widest that this processor has. The body must be plain safe code.
///
/// Fused multiply-add needs [`mul_add`] with the constant `FMA` that every body sees.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(unsafe_code, reason = "one call for each instruction set")]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }

                let fma = std::arch::is_x86_feature_detected!("fma");
                if fma
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features that the function is compiled for were just found.
                    return unsafe { avx512($($arg),*) };
                }
                if fma && std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            // NEON always has the instruction; the baseline of x86-64 would call a function instead.
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    )*};
}
pub(crate) use vectorised;

/// `a · b + c`, in one rounding where the instruction set has it.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` within 2 units in the last place; beyond −87.3 and 88.3 it stays what it is there. NaN gives e^−87.3: check for it
/// elsewhere.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Comparisons in this form are one instruction each; `clamp` would also look for NaN.
    let x = if x > -87.3 { x } else { -87.3 };
    let x = if x < 88.3 { x } else { 88.3 };
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts: the first times n is exact.
    let r = mul_add::<FMA>(n, -0.693_359_4, x);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    // Taylor's series on |r| ≤ ln 2 / 2, with minimax corrections in the last two terms.
    let mut p = 1.987_569_2e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = mul_add::<FMA>(p, r, c);
    }
    let y = mul_add::<FMA>(p, r * r, r) + 1.0;
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// Sum of `a · b` in [`LANES`] partial sums.
#[inline(always)]
pub(super) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            sums[i] = mul_add::<FMA>(a[i], b[i], sums[i]);
        }
    }
    total(sums) + tail
}

/// Sum of the lanes by halves.
#[inline(always)]
pub(crate) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! {
        fn exp_all(x: &mut [f32]) {
            x.iter_mut().for_each(|x| *x = exp::<FMA>(*x));
        }
        fn dot_here(a: &[f32], b: &[f32]) -> f32 {
            dot::<FMA>(a, b)
        }
    }

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        let x: Vec<f32> = (-8_700..8_800).map(|i| i as f32 * 0.01 + 0.003).collect();
        let mut y = x.clone();
        exp_all(&mut y);
        for (x, y) in x.into_iter().zip(y) {
            for y in [y, exp::<false>(x)] {
                let exact = f64::from(x).exp();
                assert!((f64::from(y) - exact).abs() <= 2.4e-7 * exact, "exp({x}) = {y}, expected {exact}");
            }
        }
        assert!(exp::<false>(-1e30) < 2e-38 && exp::<false>(1e30).is_finite());
    }

    #[test]
    fn dot_takes_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
            let exact: f32 = a.iter().map(|a| a * a).sum();
            assert_eq!(dot_here(&a, &a), exact, "{n} terms");
        }
    }
}
