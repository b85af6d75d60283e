//! Learning by comparison: pairs of answers, layers of a teacher; and rounded products.

use std::collections::BTreeMap;

use super::*;
use crate::loss::Dpo;
use crate::preferences::{AnswerPair, PreferencePairs};

fn teacher(width: usize) -> Option<Box<dyn LanguageModel>> {
    Some(Box::new(Toy::of_width(width, 20.0, Device::default())))
}

fn with_layers(names: &[(&str, f64)], width: usize, options: TrainOptions, model: Toy) -> Trainer<Toy> {
    let weights: BTreeMap<String, f64> = names.iter().map(|(name, weight)| (name.to_string(), *weight)).collect();
    let layers = LayerOptions { weights, relation_heads: 1, ..LayerOptions::default() };
    let loss = build(&LossOptions::default()).unwrap();
    Trainer::new(model, teacher(width), loss, TrainOptions { layers, ..options }, &|_| true).unwrap()
}

/// The gradient of the second weight's entries, as the trainer finds it and from differences of the loss.
fn check_gradients(make: &dyn Fn(Toy) -> Trainer<Toy>, rows: &[Row]) {
    let model = || Toy::new(Device::default().autodiff());
    let mut trainer = make(model());
    let (length, total) = trainer.check(rows).unwrap();
    let found = trainer.gradients(rows, length, total).unwrap();
    trainer.release();
    assert!((found.loss - trainer.evaluate(rows).unwrap()).abs() < 1e-5 * found.loss.abs().max(1.0));
    let place = trainer.slots.iter().position(|slot| slot.name == "w1").unwrap();
    let Some(Values::Matrix(gradient)) = found.gradients[place].clone() else { panic!("a matrix has a matrix") };
    let gradient = gradient.into_data().try_to_vec::<f32>().unwrap();
    for entry in [0, 7, 20, 35] {
        let moved = |by: f32| {
            let mut model = model();
            let mut values = wave(HIDDEN * HIDDEN, 7.0);
            values[entry] += by;
            model.weights[1] = Tensor::from_data(TensorData::new(values, [HIDDEN, HIDDEN]), &model.device);
            make(model).evaluate(rows).unwrap()
        };
        let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        let found = f64::from(gradient[entry]);
        assert!((found - slope).abs() < 2e-2 * slope.abs() + 2e-4, "entry {entry}: {found} and {slope}");
    }
}

fn pairs() -> PreferencePairs {
    let ids = |from: u32, count: u32| (0..count).map(|i| (from + 3 * i) % VOCABULARY as u32).collect();
    let pair = |n: u32| AnswerPair { prompt: ids(n, 3), chosen: ids(n + 5, 2 + n % 3), rejected: ids(n + 2, 4) };
    PreferencePairs::new((0..6).map(pair).collect(), 12, 3, 1).unwrap().0
}

fn preferring(options: TrainOptions, model: Toy) -> Trainer<Toy> {
    Trainer::new(model, None, Box::new(Dpo { beta: 0.5 }), options, &|_| true).unwrap()
}

/// The pairs with the scores of the model before it learns.
fn scored(trainer: &Trainer<Toy>) -> PreferencePairs {
    let mut pairs = pairs();
    let scores = pairs.each().map(|rows| trainer.scores(&rows).unwrap()).map(|s| [s[0], s[1]]).collect();
    pairs.set_reference(scores).unwrap();
    pairs
}

#[test]
fn preferences_begin_at_ln_2_and_are_learnt() {
    let run = |options: TrainOptions| {
        let mut trainer = preferring(options, Toy::new(Device::default().autodiff()));
        let pairs = scored(&trainer);
        let reports: Vec<StepReport> = (0..30).map(|step| trainer.step(&pairs.rows(step)).unwrap()).collect();
        reports
    };
    let reports = run(options());
    assert!((reports[0].loss - std::f64::consts::LN_2).abs() < 1e-6, "{:?}", reports[0]);
    let last = reports[29].preferences.unwrap();
    assert!(reports[29].loss < 0.5 && last.accuracy == 1.0 && last.chosen > last.rejected + 0.3, "{last:?}");
    // However the pairs are dealt out.
    let split = run(TrainOptions { micro_rows: 2, workers: 2, ..options() });
    for (a, b) in reports.iter().zip(&split) {
        assert!((a.loss - b.loss).abs() < 1e-4, "{a:?} and {b:?}");
    }
}

#[test]
fn the_gradient_of_preferences() {
    let reference = scored(&preferring(options(), Toy::of_width(HIDDEN, 0.3, Device::default().autodiff())));
    for checkpoint_blocks in [false, true] {
        let make = |model| preferring(TrainOptions { micro_rows: 2, checkpoint_blocks, ..options() }, model);
        check_gradients(&make, &reference.rows(0));
    }
}

#[test]
fn rows_that_are_no_pairs_are_refused() {
    let mut trainer = preferring(options(), Toy::new(Device::default().autodiff()));
    let error = trainer.step(&rows(0)).unwrap_err().to_string();
    assert!(error.contains("`dpo` compares pairs of answers"), "{error}");
    let pairs = scored(&trainer);
    assert!(trainer.step(&pairs.rows(0)[..3]).is_err());
    // Without a reference the better answers are rows for any loss.
    let plain = self::pairs().rows(0);
    assert!(super::trainer(options()).step(&plain).unwrap().loss > 0.0);
}

#[test]
fn the_gradients_of_layers() {
    for names in
        [&[("states", 1.0)][..], &[("scores", 0.7)], &[("attention", 2.0)], &[("relations", 1.0), ("states", 0.1)]]
    {
        let make = |model| with_layers(names, HIDDEN, TrainOptions { micro_rows: 2, ..options() }, model);
        check_gradients(&make, &rows(0));
    }
    // A teacher of another width: through a map that learns, too.
    let make = |model| with_layers(&[("states", 1.0), ("relations", 0.5)], 8, options(), model);
    check_gradients(&make, &rows(0));
}

#[test]
fn layers_are_learnt_and_a_run_with_them_is_taken_up() {
    let make = || {
        let options = TrainOptions { micro_rows: 2, workers: 2, ..options() };
        with_layers(&[("states", 5.0), ("attention", 1.0)], 8, options, Toy::new(Device::default().autodiff()))
    };
    let mut whole = make();
    assert!(whole.trained().any(|(name, size)| name == MAP && size == HIDDEN * 8));
    let expected = losses(&mut whole, 0..30);
    assert!(expected[29] < 0.8 * expected[0], "from {} to {}", expected[0], expected[29]);
    let mut first = make();
    losses(&mut first, 0..4);
    let mut second = make();
    second.restore(first.snapshot().unwrap()).unwrap();
    assert_eq!(losses(&mut second, 4..8), expected[4..8]);
}

#[test]
fn a_copy_of_the_teacher_has_its_layers() {
    let model = Toy::of_width(HIDDEN, 20.0, Device::default().autodiff());
    let every = [("states", 1.0), ("scores", 1.0), ("attention", 1.0), ("relations", 1.0)];
    let report = with_layers(&every, HIDDEN, options(), model).step(&rows(0)).unwrap();
    assert!(report.loss.abs() < 1e-6 && report.gradient_norm < 1e-4, "{report:?}");
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let refused = |weights: &[(&str, f64)], more: TrainOptions, teacher| {
        let weights = weights.iter().map(|(name, weight)| (name.to_string(), *weight)).collect();
        let layers = LayerOptions { weights, teacher_block: Some(9), ..LayerOptions::default() };
        let model = Toy::new(Device::default().autodiff());
        let trainer = Trainer::new(model, teacher, Box::new(CrossEntropy), TrainOptions { layers, ..more }, &|_| true);
        trainer.err().unwrap().to_string()
    };
    assert!(refused(&[("sttaes", 1.0)], options(), teacher(HIDDEN)).contains("did you mean `states`"));
    assert!(refused(&[("states", 0.0)], options(), teacher(HIDDEN)).contains("above 0"));
    assert!(refused(&[("states", 1.0)], options(), None).contains("there is none"));
    assert!(refused(&[("attention", 1.0)], options(), teacher(HIDDEN)).contains("no block 9"));
    let checkpointing = TrainOptions { checkpoint_blocks: true, ..options() };
    assert!(refused(&[("states", 1.0)], checkpointing, teacher(HIDDEN)).contains("checkpointing"));
}

#[test]
fn rounded_products_learn_alike_and_leave_no_rounded_weight() {
    let run = |precision| {
        let model = Toy::new(Device::default().autodiff());
        let options = TrainOptions { precision, micro_rows: 2, workers: 2, ..options() };
        // The first bias and the second weight learn; the first weight is rounded, and stays what it was.
        let mut trainer =
            Trainer::new(model, None, Box::new(CrossEntropy), options, &|name| name == "w1" || name == "b0").unwrap();
        let seen = losses(&mut trainer, 0..20);
        (seen, trainer.into_model())
    };
    let embedding = Trainer::new(
        Toy::new(Device::default().autodiff()),
        None,
        Box::new(CrossEntropy),
        TrainOptions { precision: Precision::Bf16, ..options() },
        &|name| name == "embedding",
    );
    assert!(embedding.is_ok(), "frozen weights are rounded, too");
    let (exact, _) = run(Precision::F32);
    let (rounded, mut model) = run(Precision::Bf16);
    assert_ne!(exact, rounded);
    for (a, b) in exact.iter().zip(&rounded) {
        assert!((a - b).abs() < 5e-3 * a, "{a} and {b}");
    }
    for (name, parameter) in model.parameters_mut() {
        if let ParameterMut::Matrix(x) = parameter {
            assert_eq!(x.dtype(), DType::F32, "{name}");
        }
    }
    let untouched = Toy::new(Device::default()).weights[0].clone().into_data();
    model.weights[0].clone().inner().into_data().assert_eq(&untouched, true);
}
