//! SplitMix64, and a logarithm and an exponential that need no mathematics library.

pub(crate) use std::f64::consts::LN_2;

/// A small generator whose whole state is one word; it also remembers the second normal of a pair.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
    spare: Option<f64>,
}

impl SplitMix64 {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, spare: None }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = self.state;
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal, by the polar method.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let a = 2.0 * self.f64() - 1.0;
            let b = 2.0 * self.f64() - 1.0;
            let q = a * a + b * b;
            if q > 0.0 && q < 1.0 {
                let f = (-2.0 * ln(q) / q).sqrt();
                self.spare = Some(b * f);
                return a * f;
            }
        }
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// Natural logarithm of a positive normal number.
pub fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1022;
    let mut mantissa = f64::from_bits((bits & !(0x7ff << 52)) | (1022 << 52));
    if mantissa < std::f64::consts::FRAC_1_SQRT_2 {
        mantissa *= 2.0;
        exponent -= 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    let mut p = 0.0;
    for k in (1..=21).rev().step_by(2) {
        p = p * z + 1.0 / f64::from(k);
    }
    exponent as f64 * LN_2 + (2.0 * s) * p
}

/// e to the power of `x`, for results that are normal numbers.
pub fn exp(x: f64) -> f64 {
    let k = (x * std::f64::consts::LOG2_E + 0.5).floor();
    let r = (x - k * 0.693_147_180_369_123_8) - k * 1.908_214_929_270_587_7e-10;
    let mut p = 1.0;
    for i in (1..=13).rev() {
        p = 1.0 + (p * r) / f64::from(i);
    }
    p * f64::from_bits(((k as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_outputs_are_the_published_ones() {
        let mut rng = SplitMix64::new(42);
        assert_eq!(
            [rng.next_u64(), rng.next_u64(), rng.next_u64()],
            [0xbdd7_3226_2feb_6e95, 0x28ef_e333_b266_f103, 0x4752_6757_130f_9f52]
        );
    }

    #[test]
    fn logarithm_and_exponential_are_exact_enough() {
        for i in 1..2000 {
            let x = f64::from(i) * 0.037;
            assert!((ln(x) - x.ln()).abs() <= 5e-16 * x.ln().abs().max(1.0), "ln {x}");
            let y = x - 37.0;
            assert!((exp(y) / y.exp() - 1.0).abs() < 1e-15, "exp {y}");
        }
    }
}
