use proptest::prelude::*;

use super::*;
use kindling_core::ScaleType::{BF16, F16, F32};

/// Standard normal numbers by Box and Muller, from a counter.
pub(crate) fn normals(count: usize, seed: u64) -> Vec<f32> {
    let uniform = |i: u64| {
        let mut z = (seed << 32).wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let normal = |i| (-2.0 * uniform(2 * i).ln()).sqrt() * (std::f64::consts::TAU * uniform(2 * i + 1)).cos();
    (0..count as u64).map(|i| normal(i) as f32).collect()
}

pub(crate) fn spec(bits: u8, symmetric: bool) -> GridSpec {
    GridSpec { bits, symmetric, clip: Clip::None, scale_type: F32 }
}

fn codes(spec: &GridSpec, weights: &[f32]) -> (Grid, Vec<u8>) {
    let grid = spec.fit(weights);
    let mut codes = vec![0; weights.len()];
    grid.codes(weights, &mut codes);
    (grid, codes)
}

fn squared_error(spec: &GridSpec, weights: &[f32]) -> f64 {
    let grid = spec.fit(weights);
    weights.iter().map(|&w| f64::from(w - grid.round(w)).powi(2)).sum()
}

const EXAMPLE: [f32; 8] = [0.8, -0.35, 0.12, -1.0, 0.49, 0.05, -0.61, 0.27];

#[test]
fn worked_groups() {
    let check = |bits, zero: f32, scale: f32, expected: [u8; 8], symmetric, mse: f64| {
        let (grid, codes) = codes(&spec(bits, symmetric), &EXAMPLE);
        assert_eq!(grid.zero, zero);
        assert!((grid.scale - scale).abs() < 1e-6, "{}", grid.scale);
        assert_eq!(codes, expected);
        let found = squared_error(&spec(bits, symmetric), &EXAMPLE) / 8.0;
        assert!((found - mse).abs() < 1e-5 * mse, "{bits} bits: {found}, expected {mse}");
    };
    check(4, 8.0, 0.12, [15, 5, 9, 0, 12, 8, 3, 10], false, 8.625e-4);
    check(3, 4.0, 0.257_142_87, [7, 3, 4, 0, 6, 4, 2, 5], false, 4.63393e-3);
    check(2, 2.0, 0.6, [3, 1, 2, 0, 3, 2, 1, 2], false, 3.05625e-2);
    // The code of the negative extreme depends on the last bit of the scale; the error does not.
    let check = |bits, scale: f32, expected: [u8; 8], mse: f64| {
        let (grid, codes) = codes(&spec(bits, true), &EXAMPLE);
        assert_eq!(grid.zero, f32::from(1u8 << (bits - 1)));
        assert!((grid.scale - scale).abs() < 1e-6, "{}", grid.scale);
        assert!((0..8).all(|i| codes[i] == expected[i] || (i == 3 && codes[i] <= 1)), "{codes:?}");
        let found = squared_error(&spec(bits, true), &EXAMPLE) / 8.0;
        assert!((found - mse).abs() < 1e-5 * mse, "{bits} bits: {found}, expected {mse}");
    };
    check(4, 0.133_333_33, [14, 5, 9, 0, 12, 8, 3, 10], 1.84028e-3);
    check(3, 0.285_714_3, [7, 3, 4, 0, 6, 4, 2, 5], 6.63393e-3);
    check(2, 0.666_666_7, [3, 1, 2, 0, 3, 2, 1, 2], 4.41736e-2);
}

#[test]
fn worked_matrix() {
    let row = |o: usize| -> Vec<f32> { (0..8).map(|i| (0.1 * ((5 * o + 3 * i) % 13) as f64 - 0.49) as f32).collect() };
    let check = |symmetric, bits: [u16; 8], zeros: [u8; 8], expected: [[u8; 8]; 8], first: [f32; 8]| {
        for o in 0..8 {
            let spec = GridSpec { scale_type: F16, ..spec(4, symmetric) };
            let (grid, codes) = codes(&spec, &row(o));
            assert_eq!(f16::from_f32(grid.scale).to_bits(), bits[o], "row {o}");
            assert_eq!(grid.scale, f16::from_f32(grid.scale).to_f32());
            assert_eq!(grid.zero as u8, zeros[o]);
            // Symmetric rows hold a value within 5e-7 of a tie with the scale before it was rounded to f16.
            let near = |i: usize| symmetric && codes[i].abs_diff(expected[o][i]) == 1 && is_tie(row(o)[i], &row(o));
            assert!((0..8).all(|i| codes[i] == expected[o][i] || near(i)), "row {o}: {codes:?}");
            if o == 0 {
                let close = |i: usize| (grid.value(codes[i]) - first[i]).abs() < 6e-7;
                assert!((0..8).all(close), "{:?}", codes.iter().map(|&c| grid.value(c)).collect::<Vec<_>>());
            }
        }
    };
    fn is_tie(w: f32, row: &[f32]) -> bool {
        let steps = w / (row.iter().fold(0f32, |a, b| a.max(b.abs())) / 7.5);
        ((steps - steps.floor()) - 0.5).abs() < 1e-5
    }
    let asymmetric = [
        [0, 4, 7, 11, 15, 2, 6, 10],
        [7, 11, 15, 2, 6, 10, 14, 0],
        [12, 0, 4, 7, 11, 15, 2, 6],
        [2, 6, 11, 15, 0, 5, 9, 14],
        [9, 12, 0, 4, 7, 11, 15, 2],
        [15, 1, 5, 9, 13, 0, 4, 8],
        [5, 9, 12, 0, 4, 7, 11, 15],
        [11, 15, 1, 5, 9, 13, 0, 4],
    ];
    check(
        false,
        [0x2d1f, 0x2cb1, 0x2d1f, 0x2c44, 0x2d1f, 0x2cb1, 0x2d1f, 0x2cb1],
        [6, 7, 6, 6, 6, 5, 6, 5],
        asymmetric,
        [-0.480103, -0.160034, 0.080017, 0.400085, 0.720154, -0.320068, 0.0, 0.320068],
    );
    let symmetric = [
        [3, 6, 9, 12, 15, 5, 8, 11],
        [8, 12, 15, 3, 7, 11, 14, 2],
        [13, 3, 6, 9, 12, 15, 5, 8],
        [4, 8, 12, 15, 3, 7, 11, 14],
        [10, 13, 3, 6, 9, 12, 15, 5],
        [15, 5, 8, 11, 14, 4, 7, 10],
        [7, 10, 13, 3, 6, 9, 12, 15],
        [12, 15, 5, 8, 11, 14, 4, 7],
    ];
    check(
        true,
        [0x2e0f, 0x2d35, 0x2e0f, 0x2d35, 0x2e0f, 0x2e0f, 0x2e0f, 0x2e0f],
        [8; 8],
        symmetric,
        [-0.473328, -0.189331, 0.094666, 0.378662, 0.662659, -0.283997, 0.0, 0.283997],
    );
}

#[test]
fn errors_on_normal_numbers() {
    // Ten draws of 65 536 numbers; the expected values are known to about one percent each.
    let nmse = |spec: &GridSpec, group: usize| {
        let draw = |seed| {
            let numbers = normals(65_536, seed);
            let error: f64 = numbers.chunks(group).map(|group| squared_error(spec, group)).sum();
            error / numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>()
        };
        (0..10).map(draw).sum::<f64>() / 10.0
    };
    let mse = Clip::Mse;
    for (bits, symmetric, group, clip, expected) in [
        (8, false, 128, Clip::None, 3.49e-5),
        (4, false, 128, Clip::None, 1.008e-2),
        (4, true, 128, Clip::None, 1.213e-2),
        (4, false, 32, Clip::None, 6.52e-3),
        (4, false, 128, mse, 9.01e-3),
        (3, false, 128, Clip::None, 4.62e-2),
        (3, false, 128, mse, 3.50e-2),
        (2, false, 128, Clip::None, 2.51e-1),
        (2, false, 128, mse, 1.37e-1),
        (2, true, 128, Clip::None, 0.298),
    ] {
        let found = nmse(&GridSpec { clip, ..spec(bits, symmetric) }, group);
        let margin = if bits == 2 { 0.06 } else { 0.04 };
        assert!(
            (found / expected - 1.0).abs() < margin,
            "{bits} bits, {group}, {clip:?}: {found}, expected {expected}"
        );
    }
}

#[test]
fn scales_are_never_zero_nor_infinite() {
    for scale_type in [F32, F16, BF16] {
        for symmetric in [false, true] {
            for clip in [Clip::None, Clip::Mse] {
                let spec = GridSpec { clip, scale_type, ..spec(4, symmetric) };
                for weights in
                    [[0.0, 0.0], [-0.0, 0.0], [1e-45, 0.0], [3e38, -3e38], [2e6, 1.0], [-1e-7, 1e-7], [5e-39, 1e-40]]
                {
                    let grid = spec.fit(&weights);
                    assert!(grid.scale > 0.0 && grid.scale.is_finite(), "{weights:?}: {grid:?}");
                    assert!((0.0..=15.0).contains(&grid.zero) && grid.zero.fract() == 0.0, "{grid:?}");
                    assert_eq!(grid.round(0.0), 0.0);
                    assert_eq!(stored(grid.scale, scale_type), grid.scale);
                }
            }
        }
    }
    // A tiny scale goes up, so that no weight is clipped.
    assert_eq!(stored(1.4 * 2f32.powi(-24), F16), 2f32.powi(-23));
    assert_eq!(stored(1e9, F16), 65504.0);
    let grid = GridSpec { scale_type: F16, ..spec(4, false) }.fit(&[1e-6, -1e-6]);
    assert!((grid.round(1e-6) - 1e-6).abs() <= grid.scale / 2.0);
}

#[test]
fn the_power_is_accurate() {
    for i in 0..200_000 {
        let x = (f64::from(i) * -1e-4).exp() as f32 * 2.0;
        let exact = f64::from(x).powf(2.4);
        assert!((f64::from(power_2_4(-x)) / exact - 1.0).abs() < 3e-6, "{x}");
    }
    assert!(power_2_4(0.0) < 1e-30);
}

#[test]
fn the_clip_search_is_the_best_of_its_candidates() {
    for (seed, bits, symmetric) in [(1, 2, false), (2, 3, true), (3, 4, false)] {
        let weights = normals(100, seed);
        let spec = GridSpec { clip: Clip::Mse, ..spec(bits, symmetric) };
        let exact =
            |grid: Grid| -> f64 { weights.iter().map(|&w| f64::from((w - grid.round(w)).abs()).powf(2.4)).sum() };
        let (lo, hi) = range(&weights);
        let best = (0..80)
            .map(|i| (1.0 - f64::from(i) / 100.0) as f32)
            .map(|p| exact(spec.over(p * lo, p * hi)))
            .fold(f64::INFINITY, f64::min);
        let found = exact(spec.fit(&weights));
        assert!(found <= best * (1.0 + 1e-5), "{found}, best {best}");
        assert_eq!(spec.fit_tensor(&weights), spec.fit(&weights));
    }
}

proptest! {
    #[test]
    fn no_weight_moves_more_than_half_a_step(
        weights in prop::collection::vec(-100f32..100.0, 1..80),
        bits in 2u8..=8,
        symmetric: bool,
        scale_type in prop::sample::select(vec![F32, F16, BF16]),
    ) {
        let spec = GridSpec { scale_type, ..spec(bits, symmetric) };
        let (grid, codes) = codes(&spec, &weights);
        // A scale rounded down leaves the ends of the range uncovered by that much per step.
        let rounding = match scale_type { F32 => 0.0, F16 => 2f32.powi(-11), BF16 => 2f32.powi(-8) };
        let bound = grid.scale * (0.5 * (1.0 + 1e-5) + 1e-4 / 2.0 * f32::from(bits == 8) + rounding * grid.max);
        for (&w, &code) in weights.iter().zip(&codes) {
            prop_assert!(code <= spec.max_code());
            let value = grid.value(code);
            prop_assert_eq!(value, grid.round(w));
            prop_assert!((w - value).abs() <= bound, "{w} became {value} with {grid:?}");
            prop_assert_eq!(grid.code(value), code, "not idempotent");
            // The plain form of the same rule.
            let plain = ((w / grid.scale).round_ties_even() + grid.zero).clamp(0.0, grid.max);
            prop_assert_eq!(f32::from(code), plain);
        }
        prop_assert_eq!(grid.round(0.0), 0.0);
    }
}
