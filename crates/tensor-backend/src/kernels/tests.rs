//! Kernels against their plain twin, bit by bit, and against f64.

use half::{bf16, f16};
use proptest::prelude::*;

use super::activations::{Arithmetic, TOGETHER};
use super::tiles::{Codes, ROWS, Source};
use super::*;

fn numbers(count: usize, seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    })
}

struct Case {
    tiles: Tiles,
    weights: Vec<f64>,
    x: Vec<f32>,
    rows: usize,
}

fn case(outputs: usize, inputs: usize, bits: u8, group: usize, kind: u8, symmetric: bool, rows: usize) -> Case {
    let seed = (outputs * 31 + inputs * 7 + rows) as u64 + u64::from(bits);
    let limit = 1u64 << bits;
    let codes: Vec<u8> = numbers(outputs * inputs, seed).map(|n| (n % limit) as u8).collect();
    let group = if group == 0 { inputs.max(1) } else { group };
    let groups = inputs.div_ceil(group);
    let zeros: Vec<u8> = numbers(outputs * groups, seed + 1).map(|n| (n % limit) as u8).collect();
    let tiles = outputs.div_ceil(ROWS);
    let mut scales = vec![0.0f32; tiles * groups * ROWS];
    for row in 0..outputs {
        for (g, n) in numbers(groups, seed + 2 + row as u64).enumerate() {
            scales[(row / ROWS * groups + g) * ROWS + row % ROWS] = (0.5 + (n % 1000) as f32 / 1000.0) / 64.0;
        }
    }
    let scales = match kind {
        0 => TileScales::F32(scales),
        1 => TileScales::F16(scales.into_iter().map(f16::from_f32).collect()),
        _ => TileScales::BF16(scales.into_iter().map(bf16::from_f32).collect()),
    };
    let zero = |row: usize, g: usize| zeros[row * groups + g];
    let source = Source {
        rows: outputs,
        cols: inputs,
        bits,
        group,
        codes: Codes::Function(&|row, i| codes[row * inputs + i]),
        zero: if symmetric { None } else { Some(&zero) },
        order: None,
    };
    let tiles = Tiles::new(&source, scales.clone());
    // From words the same tiles come.
    if let Ok(words) = kindling_core::pack::pack_rows(&codes, inputs, bits) {
        let from_words = Tiles::new(&Source { codes: Codes::Words(&words), ..source }, scales);
        assert!(from_words.codes[..] == tiles.codes[..], "{bits} bits: from words");
    }
    let weight = |row: usize, i: usize| {
        let zero = if symmetric { 1u8 << (bits - 1) } else { zero(row, i / group) };
        f64::from(tiles.scale(row, i / group)) * (f64::from(codes[row * inputs + i]) - f64::from(zero))
    };
    let weights = (0..outputs * inputs).map(|at| weight(at / inputs, at % inputs)).collect();
    let x = numbers(rows * inputs, seed + 9).map(|n| (n % 2001) as f32 / 1000.0 - 1.0).collect();
    Case { tiles, weights, x, rows }
}

fn run(case: &Case, arithmetic: Arithmetic) -> Vec<f32> {
    let [outputs, inputs] = case.tiles.shape();
    let x = Activations::new(&case.x, case.rows, inputs, None, arithmetic);
    let mut out = vec![0.0; case.rows * outputs];
    product(&case.tiles, &x, &mut out);
    out
}

/// A kernel as all have it.
type Tile = fn(&Tiles, usize, activations::Group<'_>, Arithmetic, &mut [[f32; ROWS]]);

/// What this processor runs on these codes beside the plain twin, which comes first.
fn kernels(tiles: &Tiles, arithmetic: Arithmetic) -> Vec<(&'static str, Tile)> {
    let _ = arithmetic;
    let mut kernels: Vec<(_, Tile)> = vec![("scalar", scalar::tile)];
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::runs(tiles, arithmetic) {
            kernels.push(("AVX-512", avx512::tile));
        }
        if avx2::runs(tiles) {
            kernels.push(("AVX2", avx2::tile));
        }
    }
    #[cfg(target_arch = "aarch64")]
    if neon::runs(tiles) {
        kernels.push(("NEON", neon::tile_by::<false>));
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            kernels.push(("NEON with dotprod", neon::tile_by::<true>));
        }
    }
    kernels
}

fn by(case: &Case, arithmetic: Arithmetic, tile_of: Tile) -> Vec<f32> {
    let [outputs, inputs] = case.tiles.shape();
    let x = Activations::new(&case.x, case.rows, inputs, None, arithmetic);
    let mut out = vec![0.0; case.rows * outputs];
    for first in (0..case.rows).step_by(TOGETHER) {
        for tile in 0..case.tiles.tiles() {
            let mut found = vec![[0.0; ROWS]; TOGETHER];
            tile_of(&case.tiles, tile, x.group(first), arithmetic, &mut found);
            for (row, found) in found.iter().enumerate().take(case.rows - first) {
                for lane in 0..ROWS.min(outputs - tile * ROWS) {
                    out[(first + row) * outputs + tile * ROWS + lane] = found[lane];
                }
            }
        }
    }
    out
}

/// Output, and the sum of absolute products, in f64.
fn exact(case: &Case) -> Vec<(f64, f64)> {
    let [outputs, inputs] = case.tiles.shape();
    let at = |i: usize| (&case.x[i / outputs * inputs..][..inputs], &case.weights[i % outputs * inputs..][..inputs]);
    (0..case.rows * outputs)
        .map(|i| {
            let (x, w) = at(i);
            let terms = x.iter().zip(w).map(|(&x, w)| f64::from(x) * w);
            (terms.clone().sum(), terms.map(f64::abs).sum())
        })
        .collect()
}

fn check(case: &Case) {
    let [_, inputs] = case.tiles.shape();
    for (i, (value, weight)) in case.tiles.to_host().iter().zip(&case.weights).enumerate() {
        assert!((f64::from(*value) - weight).abs() <= 1e-7 * weight.abs(), "weight {i}: {value}, expected {weight}");
    }
    for arithmetic in [Arithmetic::Int8, Arithmetic::F32] {
        let found = run(case, arithmetic);
        for (name, kernel) in kernels(&case.tiles, arithmetic) {
            let same = found.iter().zip(by(case, arithmetic, kernel)).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name}, {arithmetic:?}: other bits than the product");
        }
        for (i, (found, (exact, size))) in found.iter().zip(exact(case)).enumerate() {
            let bound = match arithmetic {
                // Every rounding is off by at most half a step of 1/127 of the largest input.
                Arithmetic::Int8 => {
                    let weights = &case.weights[i % case.tiles.shape()[0] * inputs..][..inputs];
                    0.51 / 127.0 * weights.iter().map(|w| w.abs()).sum::<f64>()
                }
                Arithmetic::F32 => 1e-6 * (inputs as f64).sqrt() * size.max(1e-30),
            };
            assert!(
                (f64::from(*found) - exact).abs() <= bound + 1e-12,
                "{arithmetic:?} [{i}]: {found}, expected {exact}"
            );
        }
    }
}

#[test]
fn every_width_scale_and_number_of_rows() {
    for bits in 1..=8 {
        for (kind, symmetric) in [(0, true), (1, false), (2, true)] {
            for rows in [1, 2, 7, 8, 9] {
                check(&case(33, 100, bits, 32, kind, symmetric, rows));
            }
        }
    }
    check(&case(16, 256, 4, 128, 1, true, 3));
    check(&case(5, 7, 4, 0, 0, false, 1));
    check(&case(48, 70, 3, 64, 1, false, 17));
}

#[test]
fn nothing_gives_nothing() {
    assert!(run(&case(0, 32, 4, 32, 0, true, 3), Arithmetic::Int8).is_empty());
    assert!(run(&case(16, 32, 4, 32, 0, true, 0), Arithmetic::F32).is_empty());
    assert_eq!(run(&case(3, 0, 4, 0, 0, true, 1), Arithmetic::F32), [0.0; 3]);
}

#[test]
fn inputs_in_an_order_of_their_own() {
    let plain = case(20, 64, 4, 32, 0, false, 2);
    let order: Vec<u32> = (0..64).map(|i| (i * 29 + 3) % 64).collect();
    let mut tiles = plain.tiles.clone();
    tiles.order = Some(order.clone());
    // Place `p` holds input `order[p]`: the same weights with the inputs moved there give the same outputs.
    let mut moved = plain.x.clone();
    for row in 0..2 {
        for (place, &input) in order.iter().enumerate() {
            moved[row * 64 + input as usize] = plain.x[row * 64 + place];
        }
    }
    let x = Activations::new(&moved, 2, 64, Some(&order), Arithmetic::F32);
    let mut out = vec![0.0; 40];
    product(&tiles, &x, &mut out);
    assert_eq!(out, run(&plain, Arithmetic::F32));
    let (by_input, by_place) = (tiles.to_host(), plain.tiles.to_host());
    assert!((0..64).all(|place| by_input[order[place] as usize] == by_place[place]));
}

#[test]
fn extreme_inputs_stay_what_they_are() {
    let mut plain = case(16, 64, 4, 32, 0, true, 1);
    plain.x.fill(0.0);
    assert_eq!(run(&plain, Arithmetic::Int8), [0.0; 16]);
    plain.x.fill(1e-44);
    assert!(run(&plain, Arithmetic::Int8).iter().all(|y| y.is_finite()));
    plain.x.fill(1e30);
    assert!(run(&plain, Arithmetic::Int8).iter().all(|y| y.is_finite()));
}

#[test]
fn threads_do_not_change_a_bit() {
    let case = case(1000, 256, 4, 64, 1, false, 11);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&case, Arithmetic::Int8))
    };
    assert_eq!(with(1), with(3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn odd_sizes(outputs in 1usize..70, inputs in 1usize..200, bits in 1u8..=8, wide in 0usize..4, kind in 0u8..3, symmetric: bool, rows in 1usize..20) {
        check(&case(outputs, inputs, bits, [0, 32, 64, 128][wide], kind, symmetric, rows));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn two_of_four_codes_are_the_dense_ones(outputs in 1usize..70, inputs in 1usize..200, group in prop_oneof![Just(0usize), Just(32), Just(64)], rows in 1usize..20) {
        let codes: Vec<u8> = numbers(outputs * inputs, 5).map(|n| (n % 16) as u8).collect();
        // The first and the last of four stay, or whatever else chance says.
        let code = |row: usize, i: usize| {
            let kept = [[0, 3], [1, 2], [2, 3], [0, 1], [0, 2], [1, 3]][(row * 7 + i / 4 * 3) % 6];
            if kept.contains(&(i % 4)) { codes[row * inputs + i] } else { 8 }
        };
        let group = if group == 0 { inputs } else { group };
        let (groups, tiles) = (inputs.div_ceil(group), outputs.div_ceil(ROWS));
        let source = Source { rows: outputs, cols: inputs, bits: 4, group, codes: Codes::Function(&code), zero: None, order: None };
        let dense = Tiles::new(&source, TileScales::F32((0..tiles * groups * ROWS).map(|i| (i % 9) as f32 + 1.0).collect()));
        let pruned = dense.two_of_four().expect("two of four are the middle");
        prop_assert_eq!(dense.to_host(), pruned.to_host());
        prop_assert!(pruned.bytes() < dense.bytes() && pruned.bits() == 4);
        let weights = dense.to_host().into_iter().map(f64::from).collect();
        let x = numbers(rows * inputs, 9).map(|n| (n % 2001) as f32 / 1000.0 - 1.0).collect();
        let case = Case { tiles: pruned, weights, x, rows };
        check(&case);
    }
}

#[test]
fn dense_codes_stay_dense() {
    assert!(case(20, 70, 4, 32, 0, true, 1).tiles.two_of_four().is_none(), "three of four codes");
    assert!(case(20, 70, 4, 32, 0, false, 1).tiles.two_of_four().is_none(), "zero points");
    assert!(case(20, 70, 3, 32, 0, true, 1).tiles.two_of_four().is_none(), "three bits");
}
