//! Worked numbers, identities, and gradients against differences.

use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;

use super::*;

const TEACHER: [f32; 5] = [2.0, 1.0, 0.5, -1.0, -2.0];
const STUDENT: [f32; 5] = [1.0, 1.5, 0.0, 0.0, -1.0];

fn device() -> Device {
    Device::default()
}

fn matrix(rows: &[&[f32]]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), &device())
}

fn labels(ids: &[i32]) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(ids.to_vec(), [ids.len()]), &device())
}

fn run(loss: &dyn DistillLoss, student: &[&[f32]], teacher: &[&[f32]], ids: &[i32]) -> (Vec<f32>, Vec<f32>) {
    let logits = Logits::new(matrix(student), Some(matrix(teacher)), labels(ids));
    let (loss, gradient) = loss.rows(logits).unwrap();
    (loss.into_data().try_to_vec().unwrap(), gradient.into_data().try_to_vec().unwrap())
}

/// Loss and gradient of the standard pair of rows.
fn standard(loss: &dyn DistillLoss) -> (f32, Vec<f32>) {
    let (loss, gradient) = run(loss, &[&STUDENT], &[&TEACHER], &[0]);
    (loss[0], gradient)
}

fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance, "{name}[{i}]: found {f}, expected {e}");
    }
}

#[test]
fn worked_numbers() {
    let cases: [(&dyn DistillLoss, f32, [f32; 5]); 9] = [
        (&CrossEntropy, 1.258409, [-0.715894, 0.468411, 0.104517, 0.104517, 0.03845]),
        (&ForwardKl, 0.270188, [-0.318626, 0.246679, -0.029971, 0.074508, 0.02741]),
        (&ReverseKl, 0.288682, [-0.2957, 0.215091, -0.056523, 0.100252, 0.036881]),
        (&Jsd { beta: 0.1 }, 0.024219, [-0.027885, 0.021643, -0.002919, 0.006697, 0.002464]),
        (&Jsd { beta: 0.5 }, 0.067689, [-0.072567, 0.05619, -0.010434, 0.0196, 0.007211]),
        (&Jsd { beta: 0.9 }, 0.025481, [-0.026228, 0.019535, -0.004755, 0.008369, 0.003079]),
        (&SkewedForwardKl { alpha: 0.1 }, 0.217349, [-0.244604, 0.190238, -0.028214, 0.06037, 0.022209]),
        (&SkewedReverseKl { alpha: 0.1 }, 0.22535, [-0.233407, 0.177209, -0.040034, 0.070352, 0.025881]),
        (&TotalVariation, 0.348597, [-0.173696, 0.182035, -0.063899, 0.040618, 0.014942]),
    ];
    for (loss, value, gradient) in cases {
        let (found, slope) = standard(loss);
        assert_close(loss.name(), &[found], &[value], 2e-6);
        assert_close(loss.name(), &slope, &gradient, 2e-6);
    }
    assert_close("cakld", &[standard(&Cakld { gamma: 0.6 }).0], &[0.281284], 2e-6);
}

#[test]
fn ends_of_the_families() {
    for (left, right) in [
        (standard(&Jsd { beta: 0.0 }), standard(&ForwardKl)),
        (standard(&Jsd { beta: 1.0 }), standard(&ReverseKl)),
        (standard(&SkewedForwardKl { alpha: 0.0 }), standard(&ForwardKl)),
        (standard(&SkewedReverseKl { alpha: 0.0 }), standard(&ReverseKl)),
        (standard(&Cakld { gamma: 0.0 }), standard(&ForwardKl)),
        (standard(&Cakld { gamma: 1.0 }), standard(&ReverseKl)),
    ] {
        assert_eq!(left.0, right.0);
        assert_close("ends", &left.1, &right.1, 1e-7);
    }
    assert_eq!(standard(&SkewedForwardKl { alpha: 1.0 }), (0.0, vec![0.0; 5]));
    assert_eq!(standard(&SkewedReverseKl { alpha: 1.0 }), (0.0, vec![0.0; 5]));
    for (beta, forward, reverse) in [(0.1, 0.242193, 0.254813), (0.01, 0.26735, 0.285183)] {
        let scaled = |beta: f64, by: f64| standard(&Jsd { beta }).0 / by as f32;
        assert_close("limit", &[scaled(beta, beta), scaled(1.0 - beta, beta)], &[forward, reverse], 1e-4);
    }
}

#[test]
fn the_combined_objective_with_weights_of_its_own() {
    let second: [&[f32]; 2] = [&[0.0, 3.0, -1.0, 0.0, 1.0], &[0.5, 2.0, 0.0, -0.5, 1.0]];
    let (student, teacher) = (matrix(&[&STUDENT, second[1]]), matrix(&[&TEACHER, second[0]]));
    let column = |values: [f32; 2]| Tensor::<1>::from_data(values, &device());
    let (loss, gradient) = weighted(student, teacher, column([0.7, 0.35]), column([0.3 * 0.25, 0.3]));
    let loss: Vec<f32> = loss.into_data().try_to_vec().unwrap();
    assert_close("sum", &[loss.iter().sum()], &[0.321544], 3e-6);
    let gradient: Vec<f32> = gradient.into_data().try_to_vec().unwrap();
    assert_close("first", &gradient[..5], &[-0.245216, 0.188807, -0.025219, 0.059675, 0.021953], 2e-6);
    assert_close("second", &gradient[5..], &[0.064042, -0.178783, 0.053387, 0.001153, 0.060201], 2e-6);
}

#[test]
fn temperatures() {
    for (t, plain, forward, reverse) in
        [(2.0, 0.078879, 0.315518, 0.317904), (4.0, 0.020761, 0.332183, 0.329323), (16.0, 0.001301, 0.332999, 0.331247)]
    {
        let at = |loss: Box<dyn DistillLoss>, squared| standard(&Tempered { loss, temperature: t, squared });
        assert_close("plain", &[at(Box::new(ForwardKl), false).0], &[plain], 1e-6);
        // f32 cancels: the divergence itself is small.
        assert_close("forward", &[at(Box::new(ForwardKl), true).0], &[forward], 4e-5 * t as f32);
        assert_close("reverse", &[at(Box::new(ReverseKl), true).0], &[reverse], 4e-5 * t as f32);
    }
    let (_, gradient) = standard(&Tempered { loss: Box::new(ForwardKl), temperature: 2.0, squared: true });
    assert_close("gradient", &gradient, &[-0.30309, 0.166749, -0.073744, 0.130769, 0.079316], 3e-6);
}

#[test]
fn hard_labels_are_the_limit_of_a_cold_teacher() {
    for (t, expected) in [(1.0, 1.334117), (0.5, 1.246008), (0.1, 1.258386), (0.01, 1.258409)] {
        let cold: Vec<f32> = TEACHER.iter().map(|z| z / t).collect();
        let (loss, _) = run(&ForwardKl, &[&STUDENT], &[&cold], &[0]);
        let p = burn::tensor::activation::softmax(matrix(&[&cold]), 1);
        let p: Vec<f32> = p.into_data().try_to_vec().unwrap();
        let entropy: f32 = p.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
        assert_close("cold", &[loss[0] + entropy], &[expected], 5e-6);
    }
    let (loss, gradient) = standard(&Hard);
    assert_close("hard", &[loss], &[1.258409], 2e-6);
    assert_close("hard", &gradient, &[-0.715894, 0.468411, 0.104517, 0.104517, 0.03845], 2e-6);
    // Of equal logits the lowest id.
    assert_close("tie", &run(&Hard, &[&STUDENT], &[&[1.0; 5]], &[4]).0, &[1.258409], 2e-6);
}

#[test]
fn ensembles_average_logits() {
    let mean = [1.0, 2.0, 0.25, -1.0, -0.5];
    let tempered = Tempered { loss: Box::new(ForwardKl), temperature: 2.0, squared: true };
    let mix = Mix { parts: vec![(0.5, Box::new(tempered)), (0.5, Box::new(CrossEntropy))] };
    let (loss, _) = run(&mix, &[&STUDENT], &[&mean], &[0]);
    assert_close("two teachers", &loss, &[0.68128], 5e-6);
}

#[test]
fn weights_of_tokens() {
    let teacher = matrix(&[&TEACHER, &[0.0; 5]]);
    let of = |weighting: Weighting| -> Vec<f32> { weighting.of(teacher.clone()).into_data().try_to_vec().unwrap() };
    assert_eq!(of(Weighting::Uniform), [1.0, 1.0]);
    assert_close("confidence", &of(Weighting::Confidence), &[0.602732, 0.2], 1e-6);
    assert_close("entropy", &of(Weighting::Entropy), &[1.063929 / 5f32.ln(), 1.0], 1e-6);
    let p = cakld::confidence(matrix(&[&TEACHER]), labels(&[0])).into_data().try_to_vec::<f32>().unwrap();
    assert_close("label", &p, &[0.602732], 1e-6);
}

#[test]
fn names_and_ranges_are_checked() {
    let built = |options: LossOptions| build(&options).map(|loss| loss.name()).map_err(|error| error.to_string());
    for entry in METHODS {
        let name = built(LossOptions { loss: entry.name.into(), ..LossOptions::default() }).unwrap();
        assert_eq!(name, entry.name);
    }
    let error = built(LossOptions { loss: "foward-kl".into(), ..LossOptions::default() }).unwrap_err();
    assert!(error.contains("`forward-kl`"), "{error}");
    assert!(built(LossOptions { beta: 1.5, ..LossOptions::default() }).unwrap_err().contains("`beta`"));
    assert!(built(LossOptions { temperature: 0.0, ..LossOptions::default() }).is_err());
    let error = ForwardKl.rows(Logits::new(matrix(&[&STUDENT]), None, labels(&[0]))).unwrap_err().to_string();
    assert!(error.contains("there is none"), "{error}");
}

fn every() -> Vec<Box<dyn DistillLoss>> {
    // The store's loss has its own tests: it needs a store.
    let mut list: Vec<Box<dyn DistillLoss>> = METHODS
        .iter()
        .filter(|entry| entry.name != "top-k")
        .map(|entry| build(&LossOptions { loss: entry.name.into(), ..LossOptions::default() }).unwrap())
        .collect();
    list.push(build(&LossOptions { temperature: 3.0, cross_entropy: 0.25, ..LossOptions::default() }).unwrap());
    list
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn gradients_are_slopes(student in prop::collection::vec(-3.0f32..3.0, 6), teacher in prop::collection::vec(-3.0f32..3.0, 6)) {
        let softmax = |z: &[f32]| -> Vec<f32> {
            let sum: f32 = z.iter().map(|z| z.exp()).sum();
            z.iter().map(|z| z.exp() / sum).collect()
        };
        // Total variation has a kink where both probabilities are the same: a difference across it is no slope.
        let kink = softmax(&student).iter().zip(softmax(&teacher)).any(|(q, p)| (q - p).abs() < 0.02);
        for loss in every().into_iter().filter(|loss| !(kink && loss.name() == "total-variation")) {
            let (value, gradient) = run(&*loss, &[&student], &[&teacher], &[2]);
            prop_assert!(value[0] >= -1e-6, "{} is {}", loss.name(), value[0]);
            // Components of a gradient with respect to logits always sum to zero.
            prop_assert!(gradient.iter().sum::<f32>().abs() < 1e-5, "{}", loss.name());
            for j in 0..student.len() {
                let at = |step: f32| {
                    let mut moved = student.clone();
                    moved[j] += step;
                    run(&*loss, &[&moved], &[&teacher], &[2]).0[0]
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                prop_assert!((slope - gradient[j]).abs() < 3e-3, "{} [{j}]: {slope} and {}", loss.name(), gradient[j]);
            }
        }
    }

    #[test]
    fn equal_distributions_cost_nothing(z in prop::collection::vec(-4.0f32..4.0, 7), shift in -5.0f32..5.0) {
        let shifted: Vec<f32> = z.iter().map(|z| z + shift).collect();
        let mut divergences = every();
        divergences.pop();
        divergences.retain(|loss| loss.needs_teacher() && !["hard", "minillm"].contains(&loss.name()));
        for loss in divergences {
            let (value, gradient) = run(&*loss, &[&shifted], &[&z], &[0]);
            prop_assert!(value[0].abs() < 2e-6, "{}: {}", loss.name(), value[0]);
            // Total variation has a kink there.
            let smooth = loss.name() != "total-variation";
            prop_assert!(!smooth || gradient.iter().all(|g| g.abs() < 2e-6), "{}", loss.name());
        }
    }

    #[test]
    fn inequalities(student in prop::collection::vec(-4.0f32..4.0, 6), teacher in prop::collection::vec(-4.0f32..4.0, 6)) {
        let value = |loss: &dyn DistillLoss| run(loss, &[&student], &[&teacher], &[0]).0[0];
        let (forward, reverse, tv) = (value(&ForwardKl), value(&ReverseKl), value(&TotalVariation));
        prop_assert!(tv <= (forward / 2.0).sqrt() + 1e-5 && tv <= (reverse / 2.0).sqrt() + 1e-5 && tv <= 1.0 + 1e-6);
        let (jsd, skewed, mirrored) = (Jsd { beta: 0.5 }, SkewedForwardKl { alpha: 0.1 }, Jsd { beta: 0.3 });
        prop_assert!(value(&jsd) <= std::f32::consts::LN_2 + 1e-6);
        prop_assert!(value(&skewed) <= 0.9 * forward + 1e-5);
        // Exchanging the two turns β around.
        let swapped = run(&Jsd { beta: 0.7 }, &[&teacher], &[&student], &[0]).0[0];
        prop_assert!((value(&mirrored) - swapped).abs() < 1e-5);
    }
}
