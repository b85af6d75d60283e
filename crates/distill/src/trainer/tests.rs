//! A model of two blocks, small enough to see through, and what must hold of every run.

use burn::tensor::activation::tanh;
use burn::tensor::{Device, Int, TensorData, s};
use kindling_core::{AttentionInputs, OutputHead, Tap};

use super::*;
use crate::head::fused_head;
use crate::loss::{LossOptions, build};
use crate::schedule::Decay;

mod compared;

const VOCABULARY: usize = 11;
const HIDDEN: usize = 6;

/// `x + tanh(x W + b)` twice, tied output.
#[derive(Clone)]
struct Toy {
    embedding: Tensor<2>,
    weights: [Tensor<2>; 2],
    biases: [Tensor<1>; 2],
    device: Device,
}

fn wave(n: usize, phase: f32) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 + phase) * 1.3).sin() * 0.4).collect()
}

impl Toy {
    fn new(device: Device) -> Self {
        Self::of_width(HIDDEN, 0.0, device)
    }

    fn of_width(hidden: usize, phase: f32, device: Device) -> Self {
        let matrix = |rows: usize, more: f32| {
            Tensor::from_data(TensorData::new(wave(rows * hidden, phase + more), [rows, hidden]), &device)
        };
        let bias = |more| Tensor::from_data(TensorData::new(wave(hidden, phase + more), [hidden]), &device);
        Self {
            embedding: matrix(VOCABULARY, 0.0),
            weights: [matrix(hidden, 3.0), matrix(hidden, 7.0)],
            biases: [bias(1.0), bias(2.0)],
            device: device.clone(),
        }
    }
}

impl LanguageModel for Toy {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }
    fn block_count(&self) -> usize {
        2
    }
    fn device(&self) -> Device {
        self.device.clone()
    }
    fn embed(&self, ids: &[Vec<u32>]) -> kindling_core::Result<Tensor<3>> {
        let flat: Vec<i32> = ids.iter().flatten().map(|&id| id as i32).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(flat, [ids.len() * ids[0].len()]), &self.device);
        Ok(self.embedding.clone().select(0, index).reshape([ids.len() as i64, ids[0].len() as i64, -1]))
    }
    fn block(&self, index: usize, x: Tensor<3>, _: Option<&mut dyn Tap>) -> kindling_core::Result<Tensor<3>> {
        Ok(x.clone() + tanh(self.inner(index, x)))
    }
    /// Nothing here attends, but the numbers might as well be two query heads over one key head.
    fn block_and_attention(&self, index: usize, x: Tensor<3>) -> kindling_core::Result<(Tensor<3>, AttentionInputs)> {
        let [rows, tokens, hidden] = x.dims();
        let heads = |x: Tensor<3>, count: usize| x.reshape([rows, tokens, count, hidden / 2]).swap_dims(1, 2);
        let y = self.inner(index, x.clone());
        let half = |x: &Tensor<3>, from: usize| heads(x.clone().slice(s![.., .., from..from + hidden / 2]), 1);
        let (keys, values) = (half(&x, 0), half(&y, hidden / 2));
        let seen = AttentionInputs { queries: heads(y.clone(), 2), keys, values, scale: 0.7 };
        Ok((x + tanh(y), seen))
    }
    fn last_norm(&self, x: Tensor<3>) -> Tensor<3> {
        x
    }
    fn output(&self) -> kindling_core::Result<OutputHead> {
        Ok(OutputHead { matrix: self.embedding.clone(), softcap: None })
    }
    fn output_parameter(&self) -> &'static str {
        "embedding"
    }
    fn decode(&self) -> Box<dyn kindling_core::Decoding + '_> {
        Box::new(kindling_core::Replay::new(self))
    }
    fn parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        let mut list = vec![("embedding".to_string(), ParameterMut::Matrix(&mut self.embedding))];
        list.extend(self.weights.iter_mut().enumerate().map(|(i, w)| (format!("w{i}"), ParameterMut::Matrix(w))));
        list.extend(self.biases.iter_mut().enumerate().map(|(i, b)| (format!("b{i}"), ParameterMut::Vector(b))));
        list
    }
}

impl Toy {
    fn inner(&self, index: usize, x: Tensor<3>) -> Tensor<3> {
        // As a decoder's projections do: rounded weights multiply rounded activations.
        let (weight, dtype) = (self.weights[index].clone(), self.weights[index].dtype());
        let y = x.cast(dtype).matmul(weight.unsqueeze()).cast(DType::F32);
        y + self.biases[index].clone().unsqueeze()
    }
}

fn options() -> TrainOptions {
    TrainOptions {
        schedule: Schedule { peak: 0.02, warmup: 3, decay: Decay::Cosine, last: 0.1, steps: 40 },
        adamw: AdamW::default(),
        muon: None,
        clip: Some(1.0),
        micro_rows: 0,
        workers: 1,
        checkpoint_blocks: false,
        spike: 2.0,
        layers: LayerOptions::default(),
        precision: Precision::F32,
    }
}

fn trainer(options: TrainOptions) -> Trainer<Toy> {
    let model = Toy::new(Device::default().autodiff());
    Trainer::new(model, None, Box::new(CrossEntropy), options, &|_| true).unwrap()
}

fn rows(step: u64) -> Vec<Row> {
    let row = |r: u64| (0..8).map(|t| ((3 * t + r * r + step) % VOCABULARY as u64) as u32).collect();
    (0..6).map(|r| Row::plain(row(r))).collect()
}

fn losses(trainer: &mut Trainer<Toy>, steps: std::ops::Range<u64>) -> Vec<f64> {
    steps.map(|step| trainer.step(&rows(step)).unwrap().loss).collect()
}

#[test]
fn it_learns() {
    let mut quick = options();
    quick.schedule.peak = 0.1;
    let mut trainer = trainer(quick);
    let seen = losses(&mut trainer, 0..40);
    assert!(seen[39] < 0.6 * seen[0], "from {} to {}", seen[0], seen[39]);
    assert_eq!((trainer.steps_done(), trainer.tokens_seen()), (40, 40 * 6 * 7));
    assert_eq!(trainer.trained().map(|(_, size)| size).sum::<usize>(), 11 * 6 + 2 * (36 + 6));
    // Looking changes nothing.
    let before = trainer.evaluate(&rows(3)).unwrap();
    assert_eq!(before, trainer.evaluate(&rows(3)).unwrap());
}

#[test]
fn a_run_taken_up_anywhere_is_the_run() {
    for muon in [None, Some(Muon::default())] {
        let options = || TrainOptions { muon, ..options() };
        let mut whole = trainer(options());
        let expected = losses(&mut whole, 0..12);
        for cut in [1, 5, 11] {
            let mut first = trainer(options());
            losses(&mut first, 0..cut);
            let mut second = trainer(options());
            second.restore(first.snapshot().unwrap()).unwrap();
            assert_eq!(losses(&mut second, cut..12), expected[cut as usize..]);
            assert_eq!(second.snapshot().unwrap(), whole.snapshot().unwrap());
        }
    }
}

#[test]
fn a_state_of_another_model_is_refused() {
    let mut trainer = trainer(options());
    let mut snapshot = trainer.snapshot().unwrap();
    snapshot.tensors[0].name = "weight.other".into();
    assert!(trainer.restore(snapshot).unwrap_err().to_string().contains("`embedding` is missing"));
    let mut snapshot = trainer.snapshot().unwrap();
    snapshot.tensors[0].shape = vec![HIDDEN, VOCABULARY];
    assert!(trainer.restore(snapshot).unwrap_err().to_string().contains("expected [11, 6]"));
}

#[test]
fn muon_moves_hidden_matrices_only_and_keeps_zeros() {
    let mut model = Toy::new(Device::default().autodiff());
    let hole = Tensor::<2>::eye(HIDDEN, &model.device).equal_scalar(0.0).float();
    model.weights[0] = model.weights[0].clone() * hole;
    let options = TrainOptions { muon: Some(Muon::default()), ..options() };
    let mut trainer = Trainer::new(model, None, Box::new(CrossEntropy), options, &|_| true).unwrap();
    trainer.keep_zeros().unwrap();
    let seen = losses(&mut trainer, 0..40);
    assert!(seen[39] < 0.9 * seen[0], "from {} to {}", seen[0], seen[39]);
    let snapshot = trainer.snapshot().unwrap();
    let names: Vec<&str> = snapshot.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert!(names.contains(&"second.embedding") && names.contains(&"second.b1") && names.contains(&"first.w1"));
    assert!(!names.contains(&"second.w0") && !names.contains(&"second.w1"));
    let w0 = snapshot.tensors.iter().find(|tensor| tensor.name == "weight.w0").unwrap();
    assert!((0..HIDDEN).all(|i| w0.values[i * HIDDEN + i] == 0.0) && w0.values[1] != 0.0);
}

#[test]
fn micro_batches_workers_and_recomputed_blocks_change_nothing() {
    let reference = losses(&mut trainer(options()), 0..6);
    let split = losses(&mut trainer(TrainOptions { micro_rows: 2, ..options() }), 0..6);
    for (a, b) in reference.iter().zip(&split) {
        assert!((a - b).abs() < 1e-6 * a.abs(), "{a} and {b}");
    }
    for workers in [2, 3] {
        assert_eq!(losses(&mut trainer(TrainOptions { micro_rows: 2, workers, ..options() }), 0..6), split);
    }
    let again = losses(&mut trainer(TrainOptions { micro_rows: 2, checkpoint_blocks: true, ..options() }), 0..6);
    assert_eq!(again, split);
}

#[test]
fn weights_count_over_the_whole_step() {
    // Losses 2, 1, 3 in one row and 5 in another would give 3.5 as a mean of means, 2.75 as the mean over tokens.
    let weights = |w: [f32; 7]| Some(w.to_vec());
    let mut parts = rows(0);
    parts[0].weights = weights([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    parts[1].weights = weights([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    parts.truncate(2);
    let whole = trainer(options()).step(&parts).unwrap();
    let split = trainer(TrainOptions { micro_rows: 1, ..options() }).step(&parts).unwrap();
    assert!((whole.loss - split.loss).abs() < 1e-6 && (whole.gradient_norm - split.gradient_norm).abs() < 1e-5);
    // No token counts: nothing to learn, and no division by zero.
    parts.iter_mut().for_each(|row| row.weights = weights([0.0; 7]));
    let none = trainer(options()).step(&parts).unwrap();
    assert_eq!((none.loss, none.gradient_norm), (0.0, 0.0));
}

#[test]
fn what_is_not_selected_stays() {
    let model = Toy::new(Device::default().autodiff());
    let before = model.weights[0].clone().into_data();
    let mut trainer =
        Trainer::new(model, None, Box::new(CrossEntropy), options(), &|name| name.starts_with('b')).unwrap();
    losses(&mut trainer, 0..3);
    trainer.model().weights[0].clone().into_data().assert_eq(&before, true);
    assert_eq!(trainer.trained().count(), 2);
    let error =
        Trainer::new(Toy::new(Device::default().autodiff()), None, Box::new(CrossEntropy), options(), &|_| false);
    assert!(error.err().unwrap().to_string().contains("nothing to train"));
    let error = Trainer::new(Toy::new(Device::default()), None, Box::new(CrossEntropy), options(), &|_| true);
    assert!(error.err().unwrap().to_string().contains("autodiff"));
}

#[test]
fn what_is_not_a_number_stops_before_the_step_and_is_named() {
    let mut trainer = trainer(options());
    losses(&mut trainer, 0..2);
    let before = trainer.snapshot().unwrap();
    let mut broken = trainer.snapshot().unwrap();
    let bias = broken.tensors.iter_mut().find(|t| t.name == "weight.b1").unwrap();
    bias.values[2] = f32::NAN;
    trainer.restore(broken).unwrap();
    let error = trainer.step(&rows(2)).unwrap_err().to_string();
    assert!(error.contains("step 2: the loss of rows 0 to 5 of the batch (the weight `b1`"), "{error}");
    assert_eq!(trainer.steps_done(), 2);
    trainer.restore(before.clone()).unwrap();
    assert_eq!(trainer.snapshot().unwrap(), before);
}

#[test]
fn a_jump_of_the_loss_stops() {
    let mut trainer = trainer(TrainOptions { spike: 0.5, ..options() });
    losses(&mut trainer, 0..30);
    let mut broken = trainer.snapshot().unwrap();
    broken.tensors[0].values.iter_mut().for_each(|w| *w *= -30.0);
    trainer.restore(broken).unwrap();
    let error = trainer.step(&rows(30)).unwrap_err();
    assert!(matches!(error, DistillError::Spike { step: 30, .. }), "{error}");
}

#[test]
fn a_teacher_of_its_own_kind_costs_nothing_and_another_vocabulary_is_refused() {
    let loss = || build(&LossOptions::default()).unwrap();
    let teacher = Toy::new(Device::default());
    let model = Toy::new(Device::default().autodiff());
    let mut same = Trainer::new(model.clone(), Some(Box::new(teacher)), loss(), options(), &|_| true).unwrap();
    let report = same.step(&rows(0)).unwrap();
    assert!(report.loss.abs() < 1e-6 && report.gradient_norm < 1e-5, "{report:?}");
    let mut small = Toy::new(Device::default());
    small.embedding = small.embedding.slice([0..10, 0..HIDDEN]);
    struct Small(Toy);
    impl LanguageModel for Small {
        fn vocab_size(&self) -> usize {
            VOCABULARY - 1
        }
        fn block_count(&self) -> usize {
            self.0.block_count()
        }
        fn device(&self) -> Device {
            self.0.device()
        }
        fn embed(&self, ids: &[Vec<u32>]) -> kindling_core::Result<Tensor<3>> {
            self.0.embed(ids)
        }
        fn block(&self, i: usize, x: Tensor<3>, tap: Option<&mut dyn Tap>) -> kindling_core::Result<Tensor<3>> {
            self.0.block(i, x, tap)
        }
        fn last_norm(&self, x: Tensor<3>) -> Tensor<3> {
            x
        }
        fn output(&self) -> kindling_core::Result<OutputHead> {
            self.0.output()
        }
        fn output_parameter(&self) -> &'static str {
            "embedding"
        }
        fn decode(&self) -> Box<dyn kindling_core::Decoding + '_> {
            Box::new(kindling_core::Replay::new(self))
        }
        fn parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
            self.0.parameters_mut()
        }
    }
    let error = Trainer::new(model.clone(), Some(Box::new(Small(small))), loss(), options(), &|_| true).err().unwrap();
    assert!(matches!(error, DistillError::Vocabulary { teacher: 10, student: 11 }), "{error}");
    assert!(matches!(Trainer::new(model, None, loss(), options(), &|_| true), Err(DistillError::NoTeacher(_))));
}

#[test]
fn rows_that_do_not_fit_are_errors() {
    let mut trainer = trainer(options());
    assert!(trainer.step(&[]).is_err());
    assert!(trainer.step(&[Row::plain(vec![1])]).is_err());
    assert!(trainer.step(&[Row::plain(vec![1, 2, 3]), Row::plain(vec![1, 2])]).is_err());
    let error = trainer.step(&[Row::plain(vec![1, 2, 99])]).unwrap_err().to_string();
    assert!(error.contains("99"), "{error}");
    assert!(trainer.step(&[Row { ids: vec![1, 2, 3], weights: Some(vec![1.0]), known: Known::Nothing }]).is_err());
}

mod head {
    use super::*;
    use crate::head::{HeadGradients, Scored, TeacherStates, head_loss};
    use crate::loss::DistillLoss;

    fn matrix(rows: &[&[f32]]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), &Device::default())
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data().try_to_vec().unwrap()
    }

    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= tolerance, "found {found:?}, expected {expected:?}");
        }
    }

    fn half(cross_entropy: f64, temperature: f64) -> Box<dyn DistillLoss> {
        build(&LossOptions { cross_entropy, temperature, ..LossOptions::default() }).unwrap()
    }

    #[test]
    fn worked_numbers() {
        let head = OutputHead {
            matrix: matrix(&[&[1.0, 0.0], &[0.5, 1.0], &[0.0, -1.0], &[-1.0, 0.0], &[0.25, 0.25]]),
            softcap: None,
        };
        let teacher_matrix = matrix(&[&[1.0, 0.0], &[0.5, 1.0], &[0.5, -1.0], &[-1.0, 0.0], &[-0.5, 0.5]]);
        let teacher = TeacherStates {
            states: matrix(&[&[2.0, 0.0], &[0.0, 1.0]]),
            head: OutputHead { matrix: teacher_matrix, softcap: None },
        };
        let states = matrix(&[&[1.0, 0.5], &[-0.5, 2.0]]);
        for chunk in [1, 2, 7] {
            let scored = Scored { labels: &[0, 1], weights: None, normaliser: 2.0, known: &Known::Nothing };
            let found =
                fused_head(states.clone(), &head, Some(&teacher), &scored, &*half(0.5, 1.0), chunk, true).unwrap();
            assert!((found.loss - 0.499028).abs() < 2e-6, "{}", found.loss);
            close(&values(found.states), &[-0.154352, 0.15563, -0.07623, -0.040938], 2e-6);
            let expected = [
                -0.213039, -0.118963, 0.147398, -0.041478, -0.009127, -0.01943, -0.003529, 0.107921, 0.078297, 0.07195,
            ];
            close(&values(found.matrix.unwrap()), &expected, 2e-6);
        }
    }

    #[test]
    fn softcaps_and_temperatures() {
        // With the unit matrix as output matrix states are logits, and their gradients those of the logits.
        let unit: Vec<Vec<f32>> = (0..5).map(|i| (0..5).map(|j| f32::from(u8::from(i == j))).collect()).collect();
        let unit = matrix(&unit.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let teacher = TeacherStates {
            states: matrix(&[&[2.0, 1.0, 0.5, -1.0, -2.0]]),
            head: OutputHead { matrix: unit.clone(), softcap: None },
        };
        let run = |softcap| -> HeadGradients {
            let head = OutputHead { matrix: unit.clone(), softcap };
            let scored = Scored { labels: &[0], weights: None, normaliser: 1.0, known: &Known::Nothing };
            let states = matrix(&[&[1.0, 1.5, 0.0, 0.0, -1.0]]);
            // The share of cross-entropy is 0.7 here.
            fused_head(states, &head, Some(&teacher), &scored, &*half(0.7, 2.0), 1, true).unwrap()
        };
        let plain = run(None);
        assert!((plain.loss - 0.975541).abs() < 3e-6, "{}", plain.loss);
        close(&values(plain.states), &[-0.592053, 0.377913, 0.051039, 0.112392, 0.050709], 3e-6);
        let capped = run(Some(1.5));
        assert!((capped.loss - 0.93463).abs() < 3e-6, "{}", capped.loss);
        close(&values(capped.states), &[-0.382573, 0.128014, 0.072383, 0.133736, 0.045171], 3e-6);
    }

    #[test]
    fn any_chunk_gives_the_same_and_masked_rows_give_nothing() {
        let head = OutputHead { matrix: matrix(&[&[0.3, -0.2], &[0.1, 0.9], &[-0.5, 0.4]]), softcap: Some(3.0) };
        let wave = wave(14, 0.5);
        let states = matrix(&wave.chunks(2).collect::<Vec<_>>());
        let weights = [1.0, 0.5, 0.0, 0.0, 2.0, 1.0, 0.0];
        let scored =
            Scored { labels: &[0, 1, 2, 0, 1, 2, 0], weights: Some(&weights), normaliser: 4.5, known: &Known::Nothing };
        let run = |chunk| fused_head(states.clone(), &head, None, &scored, &CrossEntropy, chunk, true).unwrap();
        let whole = run(7);
        close(&values(whole.states.clone())[4..8], &[0.0; 4], 0.0);
        for chunk in [1, 2, 3, 5] {
            let part = run(chunk);
            assert!((part.loss - whole.loss).abs() < 1e-6);
            close(&values(part.states), &values(whole.states.clone()), 1e-6);
            close(&values(part.matrix.unwrap()), &values(whole.matrix.clone().unwrap()), 1e-6);
            assert!(
                (head_loss(states.clone(), &head, None, &scored, &CrossEntropy, chunk).unwrap() - whole.loss).abs()
                    < 1e-6
            );
        }
    }
}
