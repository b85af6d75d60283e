use kindling_core::options::Value;
use kindling_core::{Mask, Options};
use kindling_tensor_backend::linalg::inverse_cholesky_upper;
use proptest::prelude::*;

use super::*;
use crate::grid::tests::normals;

/// The worked layer: two rows of weights, six tokens.
const W: [f32; 8] = [0.9, -0.4, 0.3, 0.7, -0.2, 0.8, -0.6, 0.1];
const X: [f32; 24] = [
    1.0, 0.5, 0.0, 0.2, 0.8, 1.0, 0.3, 0.0, 0.0, 0.4, 1.0, 0.6, 0.3, 0.0, 0.5, 1.0, 1.0, 1.0, 0.2, 0.1, 0.5, 0.2, 0.9,
    0.4,
];

fn stats(x: &[f32], cols: usize) -> Stats {
    let mut stats = Stats::new(cols, Needs::Moments);
    stats.add_rows(x).unwrap();
    stats
}

fn matrix(values: &[f32], cols: usize) -> Matrix {
    Matrix { rows: values.len() / cols, cols, values: values.to_vec(), mask: None }
}

fn gptq(options: &[(&str, Value)]) -> Gptq {
    Gptq::new(&options.iter().cloned().collect::<Options>().read("gptq").unwrap()).unwrap()
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

/// `H = 2/T · XᵀX`, damped or not.
fn hessian(stats: &Stats, damping: f64) -> Vec<f64> {
    let n = stats.width();
    let mut h: Vec<f64> = stats.gram.iter().map(|g| g * 2.0 / stats.tokens as f64).collect();
    let mean = (0..n).map(|j| h[j * n + j]).sum::<f64>() / n as f64;
    (0..n).for_each(|j| h[j * n + j] += damping * mean);
    h
}

/// `tr(D H Dᵀ)` for `D = W − Ŵ`.
fn trace(weight: &[f32], quantized: &Quantized, h: &[f64]) -> f64 {
    let n = quantized.cols;
    let change: Vec<f64> =
        weight.iter().zip(quantized.dequantize()).map(|(&w, q)| f64::from(w) - f64::from(q)).collect();
    let row = |d: &[f64]| -> f64 { (0..n * n).map(|i| d[i / n] * h[i] * d[i % n]).sum() };
    change.chunks(n).map(row).sum()
}

fn reversed<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    values.chunks(cols).flat_map(|row| row.iter().rev().copied()).collect()
}

fn close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 5e-6 * expected.abs().max(0.1), "{what}: {found}, expected {expected}");
}

#[test]
fn worked_factor() {
    let h = hessian(&stats(&X, 4), 0.0);
    let expected = [
        0.993333, 0.8, 0.346667, 0.266667, 0.8, 0.816667, 0.36, 0.173333, 0.346667, 0.36, 0.73, 0.493333, 0.266667,
        0.173333, 0.493333, 0.523333,
    ];
    h.iter().zip(expected).for_each(|(&h, e)| close(h, e, "H"));
    let h = hessian(&stats(&X, 4), 0.01);
    let u = factor("test", &[0, 1, 2, 3], |i, j| hessian(&stats(&X, 4), 0.0)[i * 4 + j], 0.01, &mut vec![]).unwrap();
    let expected = [
        2.406729, -2.470061, 0.907183, -1.245206, 0.0, 1.26388, -0.900285, 0.423864, 0.0, 0.0, 1.892146, -1.757954,
        0.0, 0.0, 0.0, 1.372322,
    ];
    u.iter().zip(expected).for_each(|(&u, e)| close(f64::from(u), e, "U"));
    assert_eq!(inverse_cholesky_upper(h, 4).unwrap().len(), 16);
}

/// Runs a configuration on the worked layer and on its mirror image under activation order.
fn worked(group: i64, fixed: bool, codes: [u8; 8], loss: f64, tr: f64, mirrored_index: Option<Vec<u32>>) {
    let options = |order: &str| {
        gptq(&[
            ("bits", Value::Int(2)),
            ("group_size", Value::Int(group)),
            ("static_groups", Value::Bool(fixed)),
            ("order", text(order)),
        ])
    };
    let h = hessian(&stats(&X, 4), 0.0);
    let solution = options("natural").quantize("test", matrix(&W, 4), &stats(&X, 4)).unwrap();
    assert_eq!(solution.quantized.codes, codes);
    assert_eq!(solution.quantized.group_index, None);
    close(solution.loss, loss, "loss");
    close(trace(&W, &solution.quantized, &h), tr, "tr(D H Dᵀ)");

    let (w, x) = (reversed(&W, 4), reversed(&X, 4));
    let mirrored = options("act").quantize("test", matrix(&w, 4), &stats(&x, 4)).unwrap();
    assert_eq!(mirrored.quantized.codes, reversed(&codes, 4));
    assert_eq!(mirrored.quantized.group_index, mirrored_index);
    close(mirrored.loss, loss, "mirrored loss");
    close(trace(&w, &mirrored.quantized, &hessian(&stats(&x, 4), 0.0)), tr, "mirrored tr(D H Dᵀ)");
}

#[test]
fn worked_codes() {
    worked(0, false, [3, 0, 2, 2, 1, 2, 0, 1], 0.0193746, 0.0366815, None);
    worked(2, false, [3, 0, 1, 3, 0, 3, 0, 3], 0.0368242, 0.0732153, Some(vec![1, 1, 0, 0]));
    worked(2, true, [3, 0, 1, 3, 0, 3, 1, 3], 0.0314977, 0.0624593, None);
    let plain =
        crate::rtn::quantize(&matrix(&W, 4), &gptq(&[("bits", Value::Int(2)), ("group_size", Value::Int(0))]).target);
    assert_eq!(plain.codes, [3, 0, 2, 3, 1, 3, 0, 1]);
    close(trace(&W, &plain, &hessian(&stats(&X, 4), 0.0)), 0.160033, "tr(D H Dᵀ) of RTN");
}

/// A layer with strongly correlated inputs of very different sizes.
fn correlated(rows: usize, cols: usize, tokens: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mixing = normals(cols * cols, seed + 1);
    let sizes = normals(cols, seed + 2);
    let sources = normals(tokens * cols, seed + 3);
    let mut x = vec![0.0; tokens * cols];
    for (x, z) in x.chunks_mut(cols).zip(sources.chunks(cols)) {
        for (j, x) in x.iter_mut().enumerate() {
            *x = z.iter().zip(mixing.chunks(cols)).map(|(z, m)| z * m[j]).sum::<f32>() * sizes[j].exp();
        }
    }
    (normals(rows * cols, seed), x)
}

#[test]
fn loss_is_the_trace_and_blocks_do_not_matter() {
    let (w, x) = correlated(9, 172, 400, 5);
    let stats = stats(&x, 172);
    let damped = hessian(&stats, 0.01);
    for order in ["natural", "act", "group-aware"] {
        for (group, fixed) in [(32, false), (32, true), (48, false), (128, false), (0, false)] {
            let run = |block: i64| {
                let options = [
                    ("bits", Value::Int(3)),
                    ("group_size", Value::Int(group)),
                    ("order", text(order)),
                    ("block_size", Value::Int(block)),
                    ("static_groups", Value::Bool(fixed)),
                ];
                gptq(&options).quantize("test", matrix(&w, 172), &stats).unwrap()
            };
            let whole = run(1000);
            whole.quantized.validate().unwrap();
            let tr = trace(&w, &whole.quantized, &damped);
            assert!((2.0 * whole.loss - tr).abs() <= 1e-4 * tr, "{order} {group}: {} and {tr}", 2.0 * whole.loss);
            for block in [1, 7, 64, 128] {
                let same = run(block);
                let differ = whole.quantized.codes.iter().zip(&same.quantized.codes).filter(|(a, b)| a != b).count();
                assert!(differ <= 172, "{order}, groups of {group}, blocks of {block}: {differ} codes differ");
                assert!((same.loss - whole.loss).abs() <= 0.02 * whole.loss);
            }
        }
    }
}

#[test]
fn a_multiple_of_the_identity_gives_plain_rounding() {
    let w = normals(12 * 96, 3);
    let mut stats = Stats::new(96, Needs::Moments);
    stats.tokens = 10;
    (0..96).for_each(|j| stats.gram[j * 97] = 7.0);
    for order in ["natural", "act", "group-aware"] {
        let gptq = gptq(&[("group_size", Value::Int(40)), ("order", text(order))]);
        let solution = gptq.quantize("test", matrix(&w, 96), &stats).unwrap();
        assert_eq!(solution.quantized, crate::rtn::quantize(&matrix(&w, 96), &gptq.target), "{order}");
    }
}

#[test]
fn correlated_layers_gain_as_published() {
    let options = |order: &str| [("bits", Value::Int(3)), ("group_size", Value::Int(0)), ("order", text(order))];
    let (mut natural, mut act) = (0.0, 0.0);
    for seed in 0..40 {
        let (w, x) = correlated(64, 64, 512, 1000 + 10 * seed);
        let stats = stats(&x, 64);
        let h = hessian(&stats, 0.0);
        let rtn = trace(&w, &crate::rtn::quantize(&matrix(&w, 64), &gptq(&options("natural")).target), &h);
        let ratio = |order: &str| {
            let solution = gptq(&options(order)).quantize("test", matrix(&w, 64), &stats).unwrap();
            trace(&w, &solution.quantized, &h) / rtn / 40.0
        };
        natural += ratio("natural");
        act += ratio("act");
    }
    assert!((0.50..0.68).contains(&natural), "{natural}");
    assert!((0.25..0.33).contains(&act), "{act}");
}

/// `H = (Ů + I) D (Ů + I)ᵀ`: column k of each row is rounded after adding the error so far times Ů's column.
#[test]
fn the_codes_are_those_of_ldlq() {
    let n = 24;
    let (w, x) = correlated(8, n, 100, 77);
    let stats = stats(&x, n);
    let method = gptq(&[("bits", Value::Int(3)), ("group_size", Value::Int(0)), ("static_groups", Value::Bool(true))]);
    let solution = method.quantize("test", matrix(&w, n), &stats).unwrap();
    // Eliminates from the last row and column upwards.
    let (mut h, mut unit) = (hessian(&stats, 0.01), vec![0.0; n * n]);
    for k in (0..n).rev() {
        (0..k).for_each(|i| unit[i * n + k] = h[i * n + k] / h[k * n + k]);
        for i in 0..k {
            (0..k).for_each(|j| h[i * n + j] -= unit[i * n + k] * h[k * n + k] * unit[j * n + k]);
        }
    }
    let grids = method.target.spec.fit_matrix(&w, n, Granularity::Channel);
    for (row, (w, grid)) in w.chunks(n).zip(grids).enumerate() {
        let mut error = vec![0.0; n];
        for k in 0..n {
            let fed = f64::from(w[k]) + (0..k).map(|i| error[i] * unit[i * n + k]).sum::<f64>();
            let code = grid.code(fed as f32);
            assert_eq!(code, solution.quantized.codes[row * n + k], "row {row}, column {k}");
            error[k] = f64::from(w[k]) - f64::from(grid.value(code));
        }
    }
}

#[test]
fn pruned_weights_stay_zero_and_are_made_up_for() {
    let (w, x) = correlated(16, 64, 300, 11);
    let stats = stats(&x, 64);
    let keep: Vec<bool> = (0..w.len()).map(|i| i % 4 < 2).collect();
    let mut matrix = matrix(&w, 64);
    let mask = Mask::new(16, 64, keep.clone()).unwrap();
    mask.apply(&mut matrix.values);
    matrix.mask = Some(mask);
    let method = gptq(&[("group_size", Value::Int(32))]);
    let solution = method.quantize("test", matrix.clone(), &stats).unwrap();
    let values = solution.quantized.dequantize();
    assert!(values.iter().zip(&keep).all(|(&w, &keep)| keep || w == 0.0));
    let h = hessian(&stats, 0.01);
    let tr = trace(&matrix.values, &solution.quantized, &h);
    assert!((2.0 * solution.loss - tr).abs() <= 1e-4 * tr);
    assert!(tr < trace(&matrix.values, &crate::rtn::quantize(&matrix, &method.target), &h));
}

#[test]
fn fallbacks_say_what_they_did() {
    let (w, x) = correlated(4, 8, 100, 21);
    let method = gptq(&[("group_size", Value::Int(0)), ("bits", Value::Int(2))]);
    let none = method.quantize("test", matrix(&w, 8), &Stats::new(8, Needs::Moments)).unwrap();
    let mut clipped = method.target;
    clipped.spec.clip = Clip::Mse;
    assert_eq!(none.quantized, crate::rtn::quantize(&matrix(&w, 8), &clipped));
    assert!(none.notes[0].contains("no calibration token"), "{:?}", none.notes);

    let mut silent = x.clone();
    silent.iter_mut().skip(3).step_by(8).for_each(|x| *x = 0.0);
    let dead = method.quantize("test", matrix(&w, 8), &stats(&silent, 8)).unwrap();
    assert!((0..4).all(|row| dead.quantized.value(row, 3) == 0.0));
    assert!(dead.notes[0].starts_with("1 of 8 inputs were 0"), "{:?}", dead.notes);

    // One token: rank 1, so without damping there is no factor.
    let raised = gptq(&[("damping", Value::Float(0.0)), ("group_size", Value::Int(0))]);
    let one = raised.quantize("test", matrix(&w, 8), &stats(&x[..8], 8)).unwrap();
    assert!(one.notes[0].contains("damping raised to 0.01"), "{:?}", one.notes);
    // A matrix that no sum of squares gives: only a floor under its diagonal helps.
    let mut broken = Stats::new(8, Needs::Moments);
    broken.tokens = 2;
    (0..8).for_each(|j| broken.gram[j * 9] = if j == 0 { 100.0 } else { 1.0 });
    [broken.gram[10], broken.gram[17]] = [138.0; 2];
    let floored = method.quantize("test", matrix(&w, 8), &broken).unwrap();
    assert!(floored.notes[0].contains("its diagonal to at least 1e-1"), "{:?}", floored.notes);
    [broken.gram[10], broken.gram[17]] = [1e6; 2];
    let error = method.quantize("mlp.up_proj", matrix(&w, 8), &broken).unwrap_err();
    assert!(error.to_string().contains("mlp.up_proj"), "{error}");
    broken.gram[0] = f64::NAN;
    let error = method.quantize("mlp.up_proj", matrix(&w, 8), &broken).unwrap_err();
    assert!(error.to_string().contains("mlp.up_proj"), "{error}");
}

#[test]
fn options_are_checked() {
    let build = |pairs: &[(&str, Value)]| {
        let options: Options = pairs.iter().cloned().collect();
        options.read("gptq").and_then(|config| Gptq::new(&config)).err().map(|error| error.to_string())
    };
    let refused = |pairs: &[(&str, Value)], part: &str| {
        let message = build(pairs).unwrap();
        assert!(message.starts_with("gptq: ") && message.contains(part), "{message}");
    };
    assert_eq!(build(&[("group_size", Value::Int(-1)), ("order", text("group-aware"))]), None);
    refused(&[("bits", Value::Int(9))], "2 to 8");
    refused(&[("group_size", Value::Int(-2))], "-2");
    refused(&[("granularity", text("group")), ("group_size", Value::Int(0))], "positive");
    refused(&[("damping", Value::Float(-0.1))], "-0.1");
    refused(&[("block_size", Value::Int(0))], "block_size");
    refused(&[("groupsize", Value::Int(0))], "did you mean `group_size`");
    refused(&[("order", text("activation"))], "known: natural, act, group-aware");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fast_and_plain_twin_agree(
        rows in 1usize..12,
        cols in 1usize..70,
        seed in 0u64..1000,
        bits in 2i64..=8,
        group in prop::sample::select(vec![0i64, 8, 16, 32, 100]),
        granularity in prop::sample::select(vec!["tensor", "channel", "group"]),
        order in prop::sample::select(vec!["natural", "act", "group-aware"]),
        block in 1i64..80,
        switches in prop::array::uniform3(any::<bool>()),
    ) {
        let [symmetric, fixed, pruned] = switches;
        let mut options = vec![
            ("bits", Value::Int(bits)), ("group_size", Value::Int(group)), ("symmetric", Value::Bool(symmetric)),
            ("order", text(order)), ("static_groups", Value::Bool(fixed)), ("block_size", Value::Int(block)),
        ];
        if granularity != "group" || group > 0 {
            options.push(("granularity", text(granularity)));
        }
        let method = gptq(&options);
        let (w, x) = correlated(rows, cols, 3 * cols, seed);
        let (stats, mut matrix) = (stats(&x, cols), matrix(&w, cols));
        if pruned {
            let mask = Mask::new(rows, cols, (0..w.len()).map(|i| i % 3 > 0).collect()).unwrap();
            mask.apply(&mut matrix.values);
            matrix.mask = Some(mask);
        }
        let fast = method.quantize("test", matrix.clone(), &stats).unwrap().quantized;
        fast.validate().unwrap();

        let h = hessian(&stats, 0.01);
        let diagonal: Vec<f64> = (0..cols).map(|j| stats.gram[j * cols + j] * 2.0 / stats.tokens as f64).collect();
        let plan = Plan::new(method.target.granularity, cols, &diagonal, method.config.order, fixed);
        let permuted = (0..cols * cols).map(|i| h[plan.order[i / cols] * cols + plan.order[i % cols]]).collect();
        let u = inverse_cholesky_upper(permuted, cols).unwrap();
        prop_assert!((0..cols * cols).all(|i| i % cols >= i / cols || u[i] == 0.0), "the sweep relies on zeros left of U's diagonal");
        let (plain, seen) = reference(&matrix, &method.target, &plan, &u);
        prop_assert_eq!(&fast.group_index, &plain.group_index);
        for row in 0..rows {
            // From the first difference on a row takes another way; that one must be a tie.
            let differs = |column: &&usize| fast.codes[row * cols + **column] != plain.codes[row * cols + **column];
            if let Some(&column) = plan.order.iter().find(differs) {
                let steps = seen[row * cols + column] / f64::from(plain.scales[plain.scale_index(row, column)]);
                let distance = ((steps - steps.floor()) - 0.5).abs();
                prop_assert!(distance < 1e-3, "row {row}, column {column}: {steps} steps is no tie");
            }
        }
    }
}
