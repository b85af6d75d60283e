//! Every drafter, honest, random and hostile, on a target whose logits depend on the whole text.

use std::sync::{Arc, Mutex};

use kindling_core::draft::Logits;
use kindling_core::sampling::SamplingConfig;
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;
use crate::Learned;
use crate::drafters::infinigram::{Infinigram, InfinigramConfig};
use crate::drafters::lookup::Lookup;
use crate::drafters::model::{ModelConfig, ModelDrafter};
use crate::drafters::ngram::Ngram;
use crate::drafters::recycling::{Candidates, Recycling};
use crate::drafters::rest::{Rest, RestConfig};
use crate::drafters::suffix::{OutputPool, Suffix, SuffixConfig};
use crate::drafters::{METHODS, Nothing};
use crate::index::{BuildOptions, Index, IndexBuilder};

/// A model of a few tokens: its logits are a function of the last three tokens of the path, and it checks its cache.
#[derive(Clone)]
pub(crate) struct Toy {
    vocab: usize,
    seed: u64,
    caches: Vec<Vec<u32>>,
    trees: bool,
    passes: usize,
}

impl Toy {
    fn new(vocab: usize, seed: u64, texts: usize, trees: bool) -> Self {
        Self { vocab, seed, caches: vec![Vec::new(); texts], trees, passes: 0 }
    }

    fn row(&self, path: &[u32]) -> Vec<f32> {
        let recent = &path[path.len().saturating_sub(3)..];
        let key = recent.iter().fold(self.seed, |key, &t| (key ^ u64::from(t + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut rng = ChaCha8Rng::seed_from_u64(key);
        (0..self.vocab).map(|_| (rng.next_u32() % 64) as f32 / 10.0).collect()
    }
}

impl Target for Toy {
    fn vocab_size(&self) -> usize {
        self.vocab
    }
    fn len(&self, text: usize) -> usize {
        self.caches[text].len()
    }
    fn takes_trees(&self) -> bool {
        self.trees
    }
    fn forward(&mut self, inputs: &[Input], last_only: bool) -> Result<Logits> {
        self.passes += 1;
        let mut values = Vec::new();
        for input in inputs {
            let cache = self.caches[input.text].clone();
            assert!(self.trees || input.is_chain());
            for at in 0..input.tokens.len() {
                let mut path = vec![input.tokens[at]];
                let mut up = input.parents[at];
                while let Some(parent) = up {
                    path.push(input.tokens[parent]);
                    up = input.parents[parent];
                }
                path.extend(cache.iter().rev());
                path.reverse();
                if !last_only || at + 1 == input.tokens.len() {
                    values.extend(self.row(&path));
                }
            }
            self.caches[input.text].extend(&input.tokens);
        }
        Ok(Logits { values, vocab: self.vocab })
    }
    fn keep(&mut self, text: usize, from: usize, rows: &[usize]) -> Result<()> {
        let kept: Vec<u32> = rows.iter().map(|row| self.caches[text][from + row]).collect();
        self.caches[text].truncate(from);
        self.caches[text].extend(kept);
        Ok(())
    }
}

/// Guesses trees of anything, even of tokens that do not exist.
struct Random(ChaCha8Rng, u32);

impl Drafter for Random {
    fn begin(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }
    fn propose(&mut self, _: &Room, draft: &mut Draft) -> Result<()> {
        for node in 0..self.0.next_u32() as usize % 12 {
            let row = self.0.next_u32() as usize % (node + 1);
            draft.push(row.checked_sub(1), self.0.next_u32() % self.1, 0.7)?;
        }
        Ok(())
    }
    fn commit(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }
    fn is_calibrated(&self) -> bool {
        self.1.is_multiple_of(2)
    }
}

/// Knows what the target will say, and says it, or says one that is off by one.
struct Oracle {
    toy: Toy,
    text: Vec<u32>,
    off: u32,
}

impl Drafter for Oracle {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.text = prompt.to_vec();
        Ok(())
    }
    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        let mut text = self.text.clone();
        let mut parent = None;
        for _ in 0..room.depth.min(room.nodes) {
            let best = kindling_core::sampling::argmax(&self.toy.row(&text)).unwrap();
            let token = (best + self.off) % self.toy.vocab as u32;
            parent = Some(draft.push(parent, token, 1.0)?);
            text.push(token);
        }
        Ok(())
    }
    fn commit(&mut self, tokens: &[u32]) -> Result<()> {
        self.text.extend_from_slice(tokens);
        Ok(())
    }
}

fn sampler(temperature: f32, penalty: f32, seed: u64) -> Sampler {
    let config =
        SamplingConfig { temperature, repetition_penalty: penalty, top_k: 5, top_p: 0.95, seed, ..Default::default() };
    Sampler::new(config).unwrap()
}

/// Every fixed drafter by name: those of the list, nothing, and the strange ones.
fn drafters(toy: &Toy, corpus: &[u32]) -> Vec<(&'static str, Box<dyn Drafter>)> {
    let mut builder = IndexBuilder::new(toy.vocab, [0; 32], BuildOptions::default()).unwrap();
    builder.push(corpus).unwrap();
    let index = Arc::new(Index::read(builder.into_bytes().unwrap()).unwrap());
    let random = |seed: u64, tokens: u32| Box::new(Random(ChaCha8Rng::seed_from_u64(seed), tokens));
    let oracle = |off: u32| Box::new(Oracle { toy: toy.clone(), text: Vec::new(), off });
    let small = Toy::new(toy.vocab + 3, toy.seed, 1, false);
    let greedy = Sampler::new(SamplingConfig::default()).unwrap();
    let tree = SuffixConfig { tree: true, ..SuffixConfig::default() };
    let pool = Arc::new(Mutex::new(OutputPool::new(500, 64)));
    vec![
        ("none", Box::new(Nothing)),
        ("lookup", Box::new(Lookup::default())),
        ("ngram", Box::new(Ngram::default())),
        ("suffix", Box::new(Suffix::new(tree, Some(pool)))),
        ("rest", Box::new(Rest::new(index.clone(), RestConfig::default()))),
        ("recycling", Box::new(Recycling::new(Arc::new(Mutex::new(Candidates::new(toy.vocab)))))),
        ("learned", Box::new(Learned::new(Lookup::default(), Arc::default()))),
        ("infinigram", Box::new(Infinigram::new(Some(index), Arc::default(), InfinigramConfig::default()))),
        ("model", Box::new(ModelDrafter::new(small, toy.vocab, toy.vocab, greedy, 0, ModelConfig::default()).unwrap())),
        ("random", random(1, toy.vocab as u32)),
        ("strange tokens", random(2, 3 * toy.vocab as u32 + 1)),
        ("all right", oracle(0)),
        ("all wrong", oracle(1)),
    ]
}

fn write(toy: &mut Toy, requests: &[Request], drafters: &mut [Box<dyn Drafter>], guesses: usize) -> Vec<Written> {
    let limits = Limits { guesses, tokens: toy.vocab };
    let mut seen = vec![Vec::new(); requests.len()];
    let written = generate(toy, requests, drafters, &limits, &mut CostModel::default(), |text, tokens| {
        seen[text].extend_from_slice(tokens);
        ControlFlow::Continue(())
    })
    .unwrap();
    for (text, written) in written.iter().enumerate() {
        assert_eq!(seen[text], written.tokens);
        // The cache holds the text but for its newest token: what a fresh reading would hold.
        let whole = [&requests[text].prompt[..], &written.tokens].concat();
        assert_eq!(toy.caches[text], whole[..whole.len() - 1]);
    }
    written
}

/// Plain decoding by its definition.
fn plain(toy: &Toy, request: &Request) -> Vec<u32> {
    let mut text = request.prompt.clone();
    while text.len() < request.prompt.len() + request.max_new_tokens {
        let token = request.sampler.sample(&mut toy.row(&text), &text, request.id, text.len() as u64).unwrap();
        text.push(token);
        if request.ends.contains(&token) {
            break;
        }
    }
    text[request.prompt.len()..].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_drafter_leaves_every_token_as_it_was(
        seed in any::<u64>(), vocab in 3usize..40, trees in any::<bool>(), guesses in 1usize..20, max_new_tokens in 1usize..60,
        (temperature, penalty) in prop_oneof![Just((0.0, 1.0)), Just((0.0, 1.3)), Just((0.8, 1.0)), Just((1.2, 1.2))],
        prompt in prop::collection::vec(0u32..3, 1..12), ends in prop::collection::vec(0u32..40, 0..2),
    ) {
        let toy = Toy::new(vocab, seed, 1, trees);
        let request = Request { id: 3, prompt, sampler: sampler(temperature, penalty, seed), max_new_tokens, ends };
        let expected = plain(&toy, &request);
        let other = Request { id: 4, max_new_tokens: 80, ends: Vec::new(), ..request.clone() };
        let corpus = plain(&toy, &other);
        for (name, drafter) in drafters(&toy, &corpus) {
            let written = write(&mut toy.clone(), std::slice::from_ref(&request), &mut [drafter], guesses);
            prop_assert_eq!(&written[0].tokens, &expected, "{}", name);
        }
    }

    #[test]
    fn a_batch_gives_what_each_text_gives_alone(seed in any::<u64>(), guesses in 0usize..12, temperature in prop_oneof![Just(0.0f32), Just(1.0)]) {
        let toy = Toy::new(9, seed, 13, true);
        let corpus = [0, 1, 2, 3];
        let requests: Vec<Request> = (0..13)
            .map(|id| Request { id, prompt: vec![id as u32 % 9; 1 + id as usize % 3], sampler: sampler(temperature, 1.0, 5), max_new_tokens: 5 * id as usize, ends: vec![8] })
            .collect();
        let mut all: Vec<Box<dyn Drafter>> = drafters(&toy, &corpus).into_iter().map(|(_, drafter)| drafter).collect();
        let limits = Limits { guesses, tokens: 9 };
        let written = generate(&mut toy.clone(), &requests, &mut all, &limits, &mut CostModel::default(), |_, _| ControlFlow::Continue(())).unwrap();
        for (request, written) in requests.iter().zip(written) {
            prop_assert_eq!(written.tokens, plain(&toy, request));
        }
    }
}

#[test]
fn the_list_and_the_tests_name_the_same_drafters() {
    let toy = Toy::new(5, 1, 1, true);
    let tested: Vec<&str> = drafters(&toy, &[1, 2]).iter().map(|(name, _)| *name).collect();
    assert!(METHODS.iter().all(|entry| tested.contains(&entry.name)), "{tested:?}");
}

#[test]
fn right_guesses_save_passes() {
    let request = Request {
        id: 0,
        prompt: vec![1, 2],
        sampler: Sampler::new(SamplingConfig::default()).unwrap(),
        max_new_tokens: 61,
        ends: Vec::new(),
    };
    let mut toy = Toy::new(11, 7, 1, false);
    let oracle = Oracle { toy: toy.clone(), text: Vec::new(), off: 0 };
    let written = write(&mut toy, std::slice::from_ref(&request), &mut [Box::new(oracle)], 5);
    assert_eq!(
        (toy.passes, written[0].stats.acceptance_length()),
        (11, Some(6.0)),
        "one for the prompt, sixty tokens by six"
    );
    assert_eq!(written[0].stats.by_position, [(10, 10); 5]);
    let mut toy = Toy::new(11, 7, 1, false);
    let oracle = Oracle { toy: toy.clone(), text: Vec::new(), off: 1 };
    let written = write(&mut toy, std::slice::from_ref(&request), &mut [Box::new(oracle)], 5);
    assert_eq!((toy.passes, written[0].stats.accepted), (61, 0));
}

#[test]
fn an_equal_model_is_always_right_and_drawn_guesses_keep_the_law() {
    // Drawn guesses give other tokens than plain sampling; their distribution is checked on the second token.
    let toy = Toy::new(4, 3, 1, false);
    let (mut counts, mut accepted, mut drafted) = ([0.0f64; 4], 0, 0);
    let rounds = 20_000;
    let hot = |seed: u64| Sampler::new(SamplingConfig { temperature: 1.5, seed, ..Default::default() }).unwrap();
    for seed in 0..rounds {
        let request = Request { id: 0, prompt: vec![1, 2, 3], sampler: hot(seed), max_new_tokens: 3, ends: Vec::new() };
        let other = Toy::new(4, 99, 1, false);
        let drafter = ModelDrafter::new(other, 4, 4, hot(seed), 0, ModelConfig::default()).unwrap();
        let written = generate(
            &mut toy.clone(),
            std::slice::from_ref(&request),
            &mut [Box::new(drafter)],
            &Limits { guesses: 4, tokens: 4 },
            &mut CostModel::default(),
            |_, _| ControlFlow::Continue(()),
        )
        .unwrap();
        counts[written[0].tokens[1] as usize] += 1.0;
        if seed < 50 {
            let drafter = ModelDrafter::new(toy.clone(), 4, 4, hot(seed), 0, ModelConfig::default()).unwrap();
            let request = Request { max_new_tokens: 30, ..request };
            let written = generate(
                &mut toy.clone(),
                &[request],
                &mut [Box::new(drafter)],
                &Limits { guesses: 4, tokens: 4 },
                &mut CostModel::default(),
                |_, _| ControlFlow::Continue(()),
            )
            .unwrap();
            accepted += written[0].stats.accepted;
            drafted += written[0].stats.drafted;
        }
    }
    assert_eq!(accepted, drafted, "equal laws");
    let mut law = [0.0; 4];
    let first = hot(0).probabilities(&mut toy.row(&[1, 2, 3]), &[]).unwrap();
    for (a, p) in first.iter().enumerate() {
        let second = hot(0).probabilities(&mut toy.row(&[1, 2, 3, a as u32]), &[]).unwrap();
        second.iter().enumerate().for_each(|(b, q)| law[b] += p * q);
    }
    let chi: f64 = counts.iter().zip(law).map(|(n, p)| (n - p * rounds as f64).powi(2) / (p * rounds as f64)).sum();
    assert!(chi < 16.3, "chi-square {chi} with 3 degrees of freedom: {counts:?} for {law:?}");
}

#[test]
fn mistakes_are_named() {
    let mut toy = Toy::new(5, 1, 1, true);
    let request =
        Request { id: 0, prompt: Vec::new(), sampler: sampler(0.0, 1.0, 0), max_new_tokens: 3, ends: Vec::new() };
    let limits = Limits { guesses: 4, tokens: 5 };
    let mut run = |drafters: &mut [Box<dyn Drafter>]| {
        generate(&mut toy, std::slice::from_ref(&request), drafters, &limits, &mut CostModel::default(), |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap_err()
        .to_string()
    };
    assert_eq!(run(&mut []), "1 texts need 1 drafters, 0 were given");
    assert_eq!(run(&mut [Box::new(Nothing)]), "prompt 1 has no tokens: at least one is needed");
    let small = Toy::new(4, 1, 1, true);
    let error = ModelDrafter::new(small, 5, 5, sampler(0.0, 1.0, 0), 0, ModelConfig::default())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("the drafting model has 4 logits and the target 5, but their tokenizer has 5 tokens"),
        "{error}"
    );
}

#[test]
fn the_largest_come_first() {
    assert_eq!(largest(&[1.0, 5.0, 3.0, 5.0, -1.0], 3), [1, 3, 2]);
    assert_eq!(largest(&[2.0], 3), [0]);
}
