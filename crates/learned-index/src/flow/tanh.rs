//! Hyperbolic tangent without branches or calls.
//!
//! One key and a batch of keys must come out bit for bit the same, whatever the processor, or look-ups miss. So this is
//! plain arithmetic that the compiler may vectorise but not reorder.

const LOG2_E: f64 = std::f64::consts::LOG2_E;
const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Adding it rounds to an integer, which then stands in the low bits.
pub(super) const ROUND: f64 = 6_755_399_441_055_744.0;

/// Inverse factorials, 2 to 13.
const TAYLOR: [f64; 12] = [
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5040.0,
    1.0 / 40_320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
    1.0 / 6_227_020_800.0,
];

/// tanh, to a few units in the last place, also near 0: there the flows are as good as linear and live from the low bits.
#[inline(always)]
pub(super) fn tanh(x: f64) -> f64 {
    // tanh |x| = e / (e + 2) with e = exp(2|x|) − 1. From 20 on the result is 1.
    let y = (2.0 * x.abs()).min(40.0);
    let rounded = y * LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = (y - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut p = TAYLOR[11];
    for i in (0..11).rev() {
        p = p * r + TAYLOR[i];
    }
    let p = r + (r * r) * p;
    let power = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
    let e = power * p + (power - 1.0);
    (e / (e + 2.0)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_tangent() {
        for i in 0..200_000 {
            let x = f64::from(i) * 1.3e-4;
            let close = |x: f64| assert!((tanh(x) - x.tanh()).abs() <= 1e-15 * x.tanh().abs(), "{x}");
            close(x);
            close(-x);
            close(x * 1e-9);
        }
        assert_eq!((tanh(1e300), tanh(-50.0), tanh(0.0)), (1.0, -1.0, 0.0));
    }
}
