//! Worked numbers, the exact gradient by enumeration, and what must hold of sampled texts.

use burn::tensor::activation::tanh;
use burn::tensor::{Device, Int, Tensor, TensorData};
use kindling_core::{Decoding, LanguageModel, OutputHead, ParameterMut, Replay, Tap};

use super::minillm::whiten;
use super::*;
use crate::loss::{DistillLoss, ForwardKl, Jsd, KnownRows, Logits, MiniLlmLoss};
use crate::{Known, LayerOptions, Precision, Row, TrainOptions, Trainer};

fn close(name: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance, "{name}[{i}]: found {f}, expected {e}");
    }
}

const LOG_P: [f32; 4] = [-0.5, -1.2, -0.3, -2.0];
const LOG_Q: [f32; 4] = [-0.9, -0.7, -0.4, -1.0];

#[test]
fn weights_and_advantages_of_four_tokens() {
    let code = MiniLlm { reward_divisor: 1.0, discount: 1.0, ..MiniLlm::default() };
    let weights: Vec<f64> = LOG_P.iter().zip(&LOG_Q).map(|(&p, &q)| code.weight(f64::from(p), f64::from(q))).collect();
    close("weights", &weights, &[0.910444, 1.085416, 0.979399, 1.14472], 1e-6);
    let mut advantages = vec![code.advantages(&LOG_P, &LOG_Q)];
    close("code", &advantages[0], &[-0.25, -0.466667, -0.45, -1.0], 1e-6);
    whiten(&mut advantages);
    close("whitened", &advantages[0], &[1.049109, 0.269771, 0.32972, -1.648599], 1e-5);
    let paper = MiniLlm::as_published();
    close("paper", &paper.advantages(&LOG_P, &LOG_Q), &[-0.466667, -0.45, -1.0, 0.0], 1e-6);
    let sums = MiniLlm { length_normalised: false, ..paper };
    close("sums", &sums.advantages(&LOG_P, &LOG_Q), &[-1.4, -0.9, -1.0, 0.0], 1e-6);
    let discounted = MiniLlm { discount: 0.95, ..code };
    close("discounted", &discounted.advantages(&LOG_P, &LOG_Q), &[-0.210531, -0.435833, -0.425, -1.0], 1e-6);
    // Rewards beyond the limit are cut.
    let limited = MiniLlm { reward_limit: 0.3, ..discounted };
    close("limited", &limited.advantages(&[-9.0], &[-1.0]), &[-0.3], 1e-12);
}

#[test]
fn weights_survive_tiny_probabilities() {
    let options = MiniLlm::default();
    assert!((options.weight(-2000.0, -2000.0) - 1.0).abs() < 1e-12);
    assert!(options.weight(-2000.0, -3000.0) < 1e-12);
    assert!((options.weight(-3000.0, -2000.0) - 1.25).abs() < 1e-12);
}

/// A student and a teacher of two tokens that write two of them: logits of the first token, and of the second after either.
const FIRST: [f64; 2] = [0.5, -0.5];
const SECOND: [[f64; 2]; 2] = [[1.0, 0.0], [-0.5, 0.5]];
const TEACHER_FIRST: [f64; 2] = [0.8, 0.2];
const TEACHER_SECOND: [[f64; 2]; 2] = [[0.3, 0.7], [0.6, 0.4]];

fn softmax(z: [f64; 2]) -> [f64; 2] {
    let sum = z[0].exp() + z[1].exp();
    [z[0].exp() / sum, z[1].exp() / sum]
}

/// Gradient of one text's loss with respect to all six logits.
fn gradient(loss: &MiniLlmLoss, text: [usize; 2]) -> [f64; 6] {
    let device = Device::default();
    let matrix = |rows: [[f64; 2]; 2]| {
        Tensor::<2>::from_data(TensorData::new(rows.concat().iter().map(|&x| x as f32).collect(), [2, 2]), &device)
    };
    let column = |values: Vec<f64>| {
        Tensor::<1>::from_data(TensorData::new(values.iter().map(|&x| x as f32).collect::<Vec<_>>(), [2]), &device)
    };
    let q = [softmax(FIRST), softmax(SECOND[text[0]])];
    let p = [TEACHER_FIRST, TEACHER_SECOND[text[0]]];
    let log = |of: [[f64; 2]; 2]| [of[0][text[0]].ln(), of[1][text[1]].ln()];
    let (log_p, log_q) = (log(p), log(q));
    let narrow = |x: [f64; 2]| [x[0] as f32, x[1] as f32];
    let logits = Logits {
        student: matrix([FIRST, SECOND[text[0]]]),
        teacher: Some(matrix([p[0].map(f64::ln), p[1].map(f64::ln)])),
        labels: Tensor::<1, Int>::from_data([text[0] as i32, text[1] as i32], &device),
        known: KnownRows::Sampled {
            log_q: column(log_q.to_vec()),
            weight: column((0..2).map(|i| loss.options.weight(log_p[i], log_q[i])).collect()),
            advantage: column(loss.options.advantages(&narrow(log_p), &narrow(log_q))),
        },
    };
    let slopes: Vec<f32> = loss.rows(logits).unwrap().1.into_data().try_to_vec().unwrap();
    let mut all = [0.0; 6];
    all[..2].copy_from_slice(&[f64::from(slopes[0]), f64::from(slopes[1])]);
    let second = 2 + 2 * text[0];
    all[second..second + 2].copy_from_slice(&[f64::from(slopes[2]), f64::from(slopes[3])]);
    all
}

/// The probability of a text under the mixture.
fn probability(share: f64, text: [usize; 2]) -> f64 {
    let mixed = |p: f64, q: f64| share * p + (1.0 - share) * q;
    mixed(TEACHER_FIRST[text[0]], softmax(FIRST)[text[0]])
        * mixed(TEACHER_SECOND[text[0]][text[1]], softmax(SECOND[text[0]])[text[1]])
}

const TEXTS: [[usize; 2]; 4] = [[0, 0], [0, 1], [1, 0], [1, 1]];

fn expected_gradient(options: MiniLlm) -> [f64; 6] {
    let loss = MiniLlmLoss { options };
    let mut sum = [0.0; 6];
    for text in TEXTS {
        let share = probability(options.teacher_share, text);
        sum.iter_mut().zip(gradient(&loss, text)).for_each(|(sum, g)| *sum += share * g);
    }
    sum
}

/// Sums of rewards and nothing that biases them.
fn exact() -> MiniLlm {
    MiniLlm { teacher_share: 0.0, length_normalised: false, clip: 1.0, ..MiniLlm::as_published() }
}

#[test]
fn enumerated_texts_give_the_true_gradient() {
    let truth = [-0.042751, 0.042751, 0.265521, -0.265521, -0.074317, 0.074317];
    close("whole", &expected_gradient(exact()), &truth, 2e-6);
    let mixed = MiniLlm { teacher_share: 0.2, ..exact() };
    let biased = [-0.055767, 0.055767, 0.270529, -0.270529, -0.070507, 0.070507];
    close("weights of one token", &expected_gradient(mixed), &biased, 2e-6);
    // Leaving the weight out of the single step changes no expectation of it.
    let unweighted = MiniLlm { weigh_single_step: false, ..mixed };
    close("first token", &expected_gradient(unweighted)[..2], &biased[..2], 2e-6);
}

#[test]
fn samples_approach_the_enumeration() {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let loss = MiniLlmLoss { options: exact() };
    let each = TEXTS.map(|text| gradient(&loss, text));
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut error_at = |n: usize| {
        let mut sum = [0.0; 6];
        for _ in 0..n {
            let mut left = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            let text = TEXTS.iter().position(|&text| {
                left -= probability(0.0, text);
                left < 0.0
            });
            sum.iter_mut().zip(each[text.unwrap_or(3)]).for_each(|(sum, g)| *sum += g / n as f64);
        }
        let truth = expected_gradient(exact());
        sum.iter().zip(truth).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    };
    let (few, many) = (error_at(1_000), error_at(1_000_000));
    // A thousand times the samples: about a thirtieth of the error.
    assert!(many < 2e-3 && many < few / 5.0, "{few} and {many}");
}

#[test]
fn a_clipped_ratio_stops_learning_on_its_side() {
    let device = Device::default();
    let run = |log_q_old: f32, advantage: f32| -> (f32, Vec<f32>) {
        let logits = Logits {
            student: Tensor::<2>::from_data([[0.0f32, 0.0]], &device),
            teacher: Some(Tensor::<2>::from_data([[0.0f32, 0.0]], &device)),
            labels: Tensor::<1, Int>::from_data([0], &device),
            known: KnownRows::Sampled {
                log_q: Tensor::<1>::from_data([log_q_old], &device),
                weight: Tensor::<1>::from_data([1.0f32], &device),
                advantage: Tensor::<1>::from_data([advantage], &device),
            },
        };
        let loss = MiniLlmLoss { options: MiniLlm { single_step: false, ..MiniLlm::default() } };
        let (value, slope) = loss.rows(logits).unwrap();
        (value.into_scalar::<f32>(), slope.into_data().try_to_vec().unwrap())
    };
    // Twice as likely as when it was sampled: a gain is not pressed further, a loss is.
    let twice = 0.25f32.ln();
    let (value, slope) = run(twice, 1.0);
    assert!((value + 1.2).abs() < 1e-6 && slope.iter().all(|s| s.abs() < 1e-7), "{value} {slope:?}");
    let (value, slope) = run(twice, -1.0);
    assert!((value - 2.0).abs() < 1e-5 && (slope[0] - 1.0).abs() < 1e-5, "{value} {slope:?}");
    // Inside the bounds the slope is that of the plain policy gradient.
    let (value, slope) = run(0.5f32.ln(), 2.0);
    assert!((value + 2.0).abs() < 1e-5 && (slope[0] + 1.0).abs() < 1e-5, "{value} {slope:?}");
}

const VOCABULARY: usize = 7;
const HIDDEN: usize = 4;

/// `tanh` of a sum over all tokens before, so that what is written matters.
#[derive(Clone)]
struct Toy {
    embedding: Tensor<2>,
    device: Device,
}

impl Toy {
    fn new(phase: f32, device: Device) -> Self {
        let values: Vec<f32> = (0..VOCABULARY * HIDDEN).map(|i| ((i as f32 + phase) * 1.7).sin()).collect();
        Self { embedding: Tensor::from_data(TensorData::new(values, [VOCABULARY, HIDDEN]), &device), device }
    }
}

impl LanguageModel for Toy {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }
    fn block_count(&self) -> usize {
        1
    }
    fn device(&self) -> Device {
        self.device.clone()
    }
    fn embed(&self, ids: &[Vec<u32>]) -> kindling_core::Result<Tensor<3>> {
        let flat: Vec<i32> = ids.iter().flatten().map(|&id| id as i32).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(flat, [ids.len() * ids[0].len()]), &self.device);
        Ok(self.embedding.clone().select(0, index).reshape([ids.len(), ids[0].len(), HIDDEN]))
    }
    fn block(&self, _: usize, x: Tensor<3>, _: Option<&mut dyn Tap>) -> kindling_core::Result<Tensor<3>> {
        Ok(tanh(x.cumsum(1)))
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
    fn parameters_mut(&mut self) -> Vec<(String, ParameterMut<'_>)> {
        vec![("embedding".into(), ParameterMut::Matrix(&mut self.embedding))]
    }
    fn decode(&self) -> Box<dyn Decoding + '_> {
        Box::new(Replay::new(self))
    }
}

fn sampling() -> Sampling {
    Sampling { temperature: 1.0, end: vec![0], seed: 11 }
}

fn data() -> Vec<Row> {
    (0..3).map(|i| Row::plain((0..9).map(|t| 1 + (t * 5 + i) % 6).collect())).collect()
}

#[test]
fn texts_depend_on_their_stream_and_end_at_the_end_token() {
    let model = Toy::new(0.0, Device::default());
    let prompts: Vec<Vec<u32>> = (1..6).map(|i| vec![i, 2, 3]).collect();
    let texts = |stream| sample(&model, None, &prompts, 40, &sampling(), stream).unwrap();
    assert_eq!(texts(1), texts(1));
    assert_ne!(texts(1), texts(2));
    let some = texts(1);
    assert!(some.iter().any(|text| text.ids.len() < 40), "none ended");
    for (i, text) in some.iter().enumerate() {
        let body = &text.ids[..text.ids.len() - 1];
        assert!(!body.contains(&0) && (text.ids.len() == 40 || text.ids.ends_with(&[0])));
        // What is written beside a text does not change it, if its place is the same.
        let alone = sample(&model, None, &prompts[..=i], 40, &sampling(), 1).unwrap().pop().unwrap();
        assert_eq!(alone.ids, text.ids);
        // The log-probabilities are those of the model over the whole text.
        let whole: Vec<u32> = [prompts[i].clone(), text.ids.clone()].concat();
        let states = model.states(&[whole]).unwrap();
        let [_, tokens, hidden] = states.dims();
        let logits = model.output().unwrap().logits(states.reshape([tokens, hidden]));
        let log_q = burn::tensor::activation::log_softmax(logits, 1).into_data().try_to_vec::<f32>().unwrap();
        for (t, (&id, &found)) in text.ids.iter().zip(&text.log_q).enumerate() {
            let expected = log_q[(prompts[i].len() - 1 + t) * VOCABULARY + id as usize];
            assert!((found - expected).abs() < 1e-4, "{found} and {expected}");
        }
    }
    let greedy = Sampling { temperature: 0.0, ..sampling() };
    let of = |stream| sample(&model, None, &prompts, 5, &greedy, stream).unwrap();
    assert_eq!(of(1), of(2));
    assert!(sample(&model, None, &prompts, 5, &Sampling { temperature: -1.0, ..sampling() }, 0).is_err());
}

#[test]
fn a_mixture_of_one_is_the_teacher() {
    let (student, teacher) = (Toy::new(0.0, Device::default()), Toy::new(3.0, Device::default()));
    let prompts = vec![vec![1, 2], vec![4, 5]];
    let mixed = |share| sample(&student, Some((&teacher, share)), &prompts, 12, &sampling(), 3).unwrap();
    let alone = |model: &Toy| sample(model, None, &prompts, 12, &sampling(), 3).unwrap();
    for (mixed, alone) in mixed(1.0).iter().zip(alone(&teacher)) {
        assert_eq!(mixed.ids, alone.ids);
        assert_eq!(mixed.log_p, alone.log_q);
    }
    for (mixed, alone) in mixed(0.0).iter().zip(alone(&student)) {
        assert_eq!((&mixed.ids, &mixed.log_q), (&alone.ids, &alone.log_q));
    }
}

fn on_policy(share: f64) -> OnPolicy {
    OnPolicy { share, teacher_writes: false, prompt: 3, sampling: sampling() }
}

#[test]
fn shares_of_nothing_and_everything() {
    let model = Toy::new(0.0, Device::default());
    for step in 0..50 {
        let never = on_policy(0.0).rows(step, data(), &model, None).unwrap();
        let weights = Some(vec![0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        for (row, plain) in never.iter().zip(data()) {
            assert_eq!((&row.ids, &row.weights), (&plain.ids, &weights));
        }
        // The texts of the data are never read: only the prompts.
        let mut others = data();
        others.iter_mut().for_each(|row| row.ids[3..].fill(1));
        let always = |data| on_policy(1.0).rows(step, data, &model, None).unwrap();
        assert_eq!(always(others), always(data()));
    }
    let own = (0..400).filter(|&step| on_policy(0.3).rows(step, data(), &model, None).unwrap()[0].ids != data()[0].ids);
    let own = own.count();
    assert!((90..150).contains(&own), "{own} of 400");
    assert!(on_policy(1.5).rows(0, data(), &model, None).is_err());
    assert!(OnPolicy { prompt: 9, ..on_policy(1.0) }.rows(0, data(), &model, None).is_err());
    let seq = OnPolicy { teacher_writes: true, ..on_policy(0.0) };
    assert!(seq.rows(0, data(), &model, None).unwrap_err().to_string().contains("no teacher"));
    let teacher = Toy::new(3.0, Device::default());
    let by_teacher = seq.rows(0, data(), &model, Some(&teacher)).unwrap();
    assert_eq!(by_teacher, on_policy(1.0).rows(0, data(), &teacher, None).unwrap());
}

fn trainer(loss: Box<dyn DistillLoss>) -> Trainer<Toy> {
    let schedule = crate::Schedule { peak: 2e-2, warmup: 0, decay: crate::Decay::Constant, last: 1.0, steps: 60 };
    let options = TrainOptions {
        schedule,
        adamw: crate::AdamW { weight_decay: 0.0, ..crate::AdamW::default() },
        muon: None,
        clip: None,
        micro_rows: 2,
        workers: 0,
        checkpoint_blocks: false,
        spike: 50.0,
        layers: LayerOptions::default(),
        precision: Precision::F32,
    };
    let teacher: Box<dyn LanguageModel> = Box::new(Toy::new(3.0, Device::default()));
    Trainer::new(Toy::new(0.0, Device::default().autodiff()), Some(teacher), loss, options, &|_| true).unwrap()
}

#[test]
fn padding_behind_the_end_changes_no_loss() {
    let trainer = trainer(Box::new(ForwardKl));
    let mut row = gkd::continued(vec![1, 2, 3], &[4, 0], 9);
    let loss = trainer.evaluate(std::slice::from_ref(&row)).unwrap();
    row.ids[5..].fill(6);
    assert!((trainer.evaluate(&[row]).unwrap() - loss).abs() < 1e-7);
}

/// Mean reverse divergence per token along texts of the student.
fn along_own_texts(trainer: &Trainer<Toy>) -> f64 {
    let prompts: Vec<Vec<u32>> = (0..64).map(|i| vec![1 + i % 6, 1 + i / 6 % 6, 2]).collect();
    let teacher = Toy::new(3.0, Device::default());
    let options = MiniLlm { teacher_share: 0.0, ..MiniLlm::default() };
    options.rollouts(trainer.model(), &teacher, &prompts, 8, &sampling(), 99).unwrap().reverse_kl
}

#[test]
fn students_come_closer_to_their_teacher_on_their_own_texts() {
    let mut gkd = trainer(Box::new(Jsd { beta: 0.5 }));
    let before = along_own_texts(&gkd);
    for step in 0..60 {
        let rows = on_policy(1.0).rows(step, data(), gkd.model(), None).unwrap();
        gkd.step(&rows).unwrap();
    }
    let after = along_own_texts(&gkd);
    assert!(after < 0.5 * before, "gkd: {before} to {after}");

    let options = MiniLlm::default();
    let mut mini = trainer(Box::new(MiniLlmLoss { options }));
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| vec![1 + i % 6, 2, 3]).collect();
    for round in 0..15 {
        let teacher = mini.teacher().unwrap();
        let texts = options.rollouts(mini.model(), teacher, &prompts, 8, &sampling(), round).unwrap();
        for part in [&texts.rows[..4], &texts.rows[4..]] {
            // Sampled rows and rows of the corpus in one step.
            let corpus = (0..2).map(|i| Row::plain((0..11).map(|t| 1 + (t + i) % 6).collect()));
            mini.step(&part.iter().cloned().chain(corpus).collect::<Vec<_>>()).unwrap();
        }
    }
    let after = along_own_texts(&mini);
    assert!(after < 0.7 * before, "minillm: {before} to {after}");
}

#[test]
fn what_is_known_must_fit() {
    let mut trainer = trainer(Box::new(MiniLlmLoss::default()));
    let mut row = data().remove(0);
    row.known = Known::Sampled(vec![crate::Sampled::default(); 3]);
    assert!(trainer.step(&[row]).unwrap_err().to_string().contains("3 of 8"));
    let wrong = Sampling { temperature: 0.7, ..sampling() };
    let model = Toy::new(0.0, Device::default());
    assert!(MiniLlm::default().rollouts(&model, &model, &[vec![1]], 2, &wrong, 0).is_err());
    assert!(
        crate::loss::build(&crate::loss::LossOptions {
            minillm: MiniLlm { discount: 2.0, ..MiniLlm::default() },
            ..Default::default()
        })
        .is_err()
    );
}
