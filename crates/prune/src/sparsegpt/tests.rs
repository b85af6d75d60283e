//! The worked example, exactness, and the plain twin.

use kindling_core::options::Value;
use kindling_core::{Mask, Role};
use proptest::prelude::*;

use super::*;
use crate::testing::{Random, W, X, build, close, dense, digits, error, flags, layer, prune, shape, stats, text};
use crate::testing::{try_prune, worked};

const HALF: (&str, Value) = ("sparsity", Value::Float(0.5));

/// One sequence: the worked numbers count sequences where [`factor`] counts tokens.
fn worked_factor() -> Vec<f32> {
    factor(&stats(&X, 4).gram, 4, 1, 0.01).unwrap().into_iter().map(|u| u as f32).collect()
}

fn worked_sweep(keep: &str, removal: Removal, block_size: usize) -> (Vec<f32>, String, f64) {
    let (mut weight, mut keep) = (W.to_vec(), keep.chars().map(|c| c == '1').collect::<Vec<_>>());
    let loss = sweep(&mut weight, &mut keep, 4, &worked_factor(), removal, block_size).unwrap();
    (weight, flags(&keep), loss)
}

fn all_close(found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).for_each(|(&found, &expected)| close(found.into(), expected.into(), tolerance));
}

#[test]
fn worked_factor_of_the_inverse() {
    let expected = [
        0.523365, -0.137285, 0.045273, -0.869841, 0., 0.324349, -0.141269, 0.092979, 0., 0., 0.230840, -0.441649, 0.,
        0., 0., 0.522798,
    ];
    all_close(&worked_factor(), &expected, 2e-6);
}

#[test]
fn worked_example() {
    let whole = worked_sweep("11111111", Removal::Fraction(0.5), 4);
    all_close(&whole.0, &[1., -0.5, 0., 0., 0., 0.978694, -1.225951, 0.], 2e-6);
    assert_eq!(whole.1, "11000110");
    close(whole.2, 3.753779, 1e-5);
    close(error(&X, &W, &whole.0, 4), 3.691321, 1e-5);
    let pattern = worked_sweep("11111111", Removal::Pattern(NM::new(2, 4).unwrap()), 4);
    assert_eq!((pattern.0, pattern.1), (whole.0, whole.1));

    let halves = worked_sweep("11111111", Removal::Fraction(0.5), 2);
    all_close(&halves.0, &[1., 0., 0., 0.909327, 0., 0.978694, -1.225951, 0.], 2e-6);
    close(halves.2, 2.010957, 1e-5);
    close(error(&X, &W, &halves.0, 4), 1.978507, 1e-5);

    let given = worked_sweep("10010110", Removal::Fraction(0.0), 4);
    assert_eq!(given.1, "10010110");
    close(error(&X, &W, &given.0, 4), 1.978507, 1e-5);
}

#[test]
fn the_method_scales_the_hessian_by_tokens_without_effect() {
    for (block, expected) in [(4, "11000110"), (2, "10010110"), (128, "11000110")] {
        let options = [HALF, ("block_size", Value::Int(block))];
        let pruned = prune("sparsegpt", &options, &worked(), &stats(&X, 4));
        assert_eq!(digits(&pruned), expected, "block size {block}");
        assert!(pruned.notes.is_empty());
    }
}

#[test]
fn nothing_removed_nothing_changed() {
    let mut random = Random(2);
    let weight = random.normals(70 * 20);
    let options = [("sparsity", Value::Int(0)), ("block_size", Value::Int(8))];
    let pruned =
        prune("sparsegpt", &options, &layer(shape(Role::Query, 70, 20), &weight), &stats(&random.tokens(50, 20), 20));
    assert_eq!(dense(&pruned), weight);
    assert_eq!(pruned.mask.unwrap().kept(), weight.len());
}

#[test]
fn only_later_correlated_columns_make_up() {
    // Independent inputs: nobody can make up for anybody.
    let diagonal: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 1.0 + i as f32 } else { 0.0 }).collect();
    let pruned = prune("sparsegpt", &[HALF], &worked(), &stats(&diagonal, 4));
    let mut expected = W.to_vec();
    pruned.mask.as_ref().unwrap().apply(&mut expected);
    assert_eq!(dense(&pruned), expected);
    // The last column has nobody after it.
    assert_eq!(worked_sweep("11101110", Removal::Fraction(0.0), 4).0, [1.0, -0.5, 0.2, 0.0, 0.3, 0.9, -1.2, 0.0]);
    // The first column alone: the exact OBS update, w − w₀/(H⁻¹)₀₀ · (H⁻¹)₀.
    let u: Vec<f32> = worked_factor();
    let inverse = |j: usize| u[0] * u[j];
    let expected: Vec<f32> = (0..8).map(|i| W[i] - W[i / 4 * 4] / inverse(0) * inverse(i % 4)).collect();
    let mut found = worked_sweep("01110111", Removal::Fraction(0.0), 4).0;
    (found[0], found[4]) = (expected[0], expected[4]);
    all_close(&found, &expected, 1e-6);
}

#[test]
fn dead_inputs_lose_their_column() {
    let x: Vec<f32> = X.iter().enumerate().map(|(i, x)| if i % 4 == 1 { 0.0 } else { *x }).collect();
    let pruned = prune("sparsegpt", &[("pattern", text("2:4"))], &worked(), &stats(&x, 4));
    assert_eq!(pruned.notes, ["1 of 4 inputs are always zero: their weights are removed"]);
    let mask = pruned.mask.as_ref().unwrap();
    assert!(!mask.row(0)[1] && !mask.row(1)[1] && mask.kept() == 4, "the dead weight counts among the two of four");
    let unseen = prune("sparsegpt", &[HALF], &worked(), &Stats::new(4, Needs::Moments));
    assert_eq!((digits(&unseen).as_str(), unseen.notes.as_slice()), ("10010110", &[host::UNSEEN.to_string()][..]));
}

#[test]
fn damping_rises_until_the_factor_exists() {
    let target = layer(shape(Role::Query, 1, 2), &[1.0, 2.0]);
    let mut stats = Stats::new(2, Needs::Moments);
    stats.tokens = 1;
    stats.gram = vec![1.0, 2.0, 2.0, 1.0];
    let pruned = prune("sparsegpt", &[HALF, ("damping", Value::Float(0.02))], &target, &stats);
    assert_eq!(pruned.notes, ["damping raised from 0.02 to 2 to factor the Hessian"]);
    stats.gram = vec![1.0, 100.0, 100.0, 1.0];
    let message = try_prune("sparsegpt", &[HALF], &target, &stats).unwrap_err().to_string();
    assert!(message.contains("layer `Query`") && message.contains("damping 10;"), "{message}");
    stats.gram[0] = f64::NAN;
    assert!(try_prune("sparsegpt", &[HALF], &target, &stats).is_err());
}

#[test]
fn wrong_options_say_what_to_write() {
    let message = |options: &[(&str, Value)]| build("sparsegpt", options).err().unwrap();
    assert!(message(&[("pattern", text("2:4")), ("block_size", Value::Int(6))]).contains("no multiple of 4"));
    assert!(message(&[HALF, ("block_size", Value::Int(0))]).contains("at least one column"));
    assert!(message(&[HALF, ("damping", Value::Float(-0.1))]).contains("at least 0"));
    assert!(message(&[HALF, ("dampening", Value::Float(0.1))]).contains("did you mean `damping`?"));
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut random = Random(7);
    let (weight, x) = (random.normals(150 * 96), random.tokens(300, 96));
    let (target, stats) = (layer(shape(Role::Query, 150, 96), &weight), stats(&x, 96));
    for amount in [HALF, ("pattern", text("2:4"))] {
        let options = [amount, ("block_size", Value::Int(32))];
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| dense(&prune("sparsegpt", &options, &target, &stats)))
        };
        assert_eq!(run(1), run(3));
    }
}

#[test]
fn the_better_method_has_the_smaller_error() {
    const D: usize = 96;
    for seed in 0..4 {
        let mut random = Random(seed);
        let (weight, x) = (random.normals(D * D), random.tokens(1024, D));
        let (target, stats) = (layer(shape(Role::Query, D, D), &weight), stats(&x, D));
        for amount in [HALF, ("pattern", text("2:4"))] {
            let error =
                |name| error(&x, &weight, &dense(&prune(name, std::slice::from_ref(&amount), &target, &stats)), D);
            let (magnitude, wanda, sparsegpt) = (error("magnitude"), error("wanda"), error("sparsegpt"));
            assert!(magnitude > 2.0 * wanda && wanda > sparsegpt, "{seed}: {magnitude} {wanda} {sparsegpt}");
        }
    }
}

#[test]
fn earlier_masks_must_fit() {
    let mut target = worked();
    target.mask = Some(Mask::new(4, 2, vec![true; 8]).unwrap());
    assert!(try_prune("sparsegpt", &[HALF], &target, &stats(&X, 4)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The blocked f32 sweep is the plain one, and the plain one's loss is the quadratic form it minimises.
    #[test]
    fn sweep_agrees_with_its_plain_twin(
        seed in any::<u64>(), rows in 1usize..5, cols in 1usize..14, block_size in 1usize..16, share in 0.0f64..1.0,
    ) {
        let mut random = Random(seed);
        let weight = random.normals(rows * cols);
        let gram = stats(&random.normals(4 * cols * cols), cols).gram;
        let keep: Vec<bool> = (0..rows * cols).map(|_| random.uniform() >= share).collect();
        let upper = factor(&gram, cols, 4, 0.05).unwrap();

        let wide: Vec<f64> = weight.iter().map(|&w| w.into()).collect();
        let (expected, expected_loss) = reference(&wide, cols, &upper, &keep);
        let narrow: Vec<f32> = upper.iter().map(|&u| u as f32).collect();
        let (mut found, mut kept) = (weight, keep.clone());
        let loss = sweep(&mut found, &mut kept, cols, &narrow, Removal::Fraction(0.0), block_size).unwrap();
        prop_assert_eq!(&kept, &keep);
        prop_assert!((loss - expected_loss).abs() <= 1e-4 * (1.0 + expected_loss));
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!((f64::from(*found) - expected).abs() <= 1e-4 * (1.0 + expected.abs()));
        }

        let ridge = 0.05 * (0..cols).map(|j| gram[j * cols + j]).sum::<f64>() / cols as f64;
        let hessian = |j: usize, k: usize| 0.5 * (gram[j * cols + k] + if j == k { ridge } else { 0.0 });
        let change: Vec<f64> = expected.iter().zip(&wide).map(|(new, old)| new - old).collect();
        let quadratic: f64 = change.chunks_exact(cols).map(|row| {
            let pairs = (0..cols).flat_map(|j| (0..cols).map(move |k| (j, k)));
            pairs.map(|(j, k)| 0.5 * row[j] * hessian(j, k) * row[k]).sum::<f64>()
        }).sum();
        prop_assert!((quadratic - expected_loss).abs() <= 1e-9 * (1.0 + expected_loss));
    }
}
