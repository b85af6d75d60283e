//! The loop: guess, verify, keep what was right.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use kindling_core::draft::{Input, Room};
use kindling_core::sampling::{Sampler, SamplingError};
use kindling_core::{Draft, Drafter, Error, Result, Target};

use crate::planner::{CostModel, Pass, plan};
use crate::verify::{SeededDice, Verdict, follow, reject};

/// One text to write.
#[derive(Debug, Clone)]
pub struct Request {
    /// Seeds its draws together with the sampler's seed; texts of one batch need different ids.
    pub id: u64,
    /// Tokens to go on from, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampler: Sampler,
    /// Tokens to write at most.
    pub max_new_tokens: usize,
    /// Tokens that end the text; the one that does is its last.
    pub ends: Vec<u32>,
}

/// What may be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Guesses per text and round.
    pub guesses: usize,
    /// Tokens that exist. A guess beyond is dropped: it pads a matrix.
    pub tokens: usize,
}

/// What guessing was worth.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Passes of the target in which this text took part, the one that read the prompt not counted.
    pub rounds: u64,
    /// Tokens that these passes gave.
    pub emitted: u64,
    /// Guesses verified.
    pub drafted: u64,
    /// Guesses accepted.
    pub accepted: u64,
    /// By depth of the guess, from the first on: rounds that guessed so deep, and rounds that accepted so deep.
    pub by_position: Vec<(u64, u64)>,
    /// Seconds spent guessing for this text.
    pub draft_seconds: f64,
    /// Seconds of passes in which this text took part, with the choice of tokens.
    pub verify_seconds: f64,
}

impl Stats {
    /// Tokens per pass of the target: 1 without guesses. `None` before the first round.
    pub fn acceptance_length(&self) -> Option<f64> {
        (self.rounds > 0).then(|| self.emitted as f64 / self.rounds as f64)
    }
}

/// A written text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Written {
    /// The new tokens, an end token included.
    pub tokens: Vec<u32>,
    /// What guessing was worth.
    pub stats: Stats,
}

/// One text on its way.
struct Growing<'a> {
    request: &'a Request,
    drafter: &'a mut dyn Drafter,
    history: Vec<u32>,
    written: Written,
    draft: Draft,
    /// Whether there is guessing in this round.
    guesses: bool,
    ended: bool,
}

impl Growing<'_> {
    fn room(&self) -> usize {
        self.request.max_new_tokens - self.written.tokens.len()
    }

    /// Takes tokens into the text.
    fn take(&mut self, tokens: &[u32]) -> Result<()> {
        self.history.extend_from_slice(tokens);
        self.written.tokens.extend_from_slice(tokens);
        let end = tokens.last().is_some_and(|token| self.request.ends.contains(token));
        self.ended = end || self.room() == 0;
        self.drafter.commit(tokens)
    }

    /// Guesses, within what may be guessed.
    fn guess(&mut self, limits: &Limits, trees: bool, batch: usize) -> Result<()> {
        let start = Instant::now();
        // The last token of the text is the target's own.
        let room = Room { nodes: limits.guesses, depth: self.room() - 1, trees, batch };
        if room.nodes > 0 && room.depth > 0 {
            self.drafter.propose(&room, &mut self.draft)?;
            let draft = &self.draft;
            let too_many = draft.len() > room.nodes || !trees && !draft.is_chain();
            let strange = draft.nodes().iter().any(|node| node.token as usize >= limits.tokens);
            if too_many || strange || draft.len() > room.depth {
                let deep: Vec<bool> = (0..draft.len()).map(|node| draft.depth(node) > room.depth).collect();
                let mut row = 0;
                self.draft.retain(|node, guess| {
                    let on_chain = trees || guess.parent.map_or(0, |parent| parent + 1) == row;
                    let keep = on_chain && !deep[node] && (guess.token as usize) < limits.tokens;
                    row = if keep { node + 1 } else { row };
                    keep
                });
                self.draft.truncate(room.nodes);
            }
        }
        self.written.stats.draft_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Judges the guesses by the rows of logits of `[newest token, guesses…]`.
    fn judge(&mut self, rows: &mut [f32], vocab: usize) -> Result<Verdict> {
        let Self { request: Request { id, sampler, ends, .. }, history, draft, .. } = self;
        let committed = history.len();
        let failed = |error: SamplingError| Error::Invalid(error.to_string());
        // Processors see the guessed tokens before theirs as if they were text.
        let read = |history: &mut Vec<u32>, prefix: &[u32]| {
            history.truncate(committed);
            history.extend_from_slice(prefix);
        };
        let logits = |row: usize| row * vocab..(row + 1) * vocab;
        let drawn = !sampler.is_greedy() && (0..=draft.len()).any(|row| draft.law(row).is_some());
        let verdict = if drawn {
            let mut dice = SeededDice::new(sampler.config().seed, "verify", *id, committed as u64);
            let law = |row: usize, prefix: &[u32]| {
                read(history, prefix);
                sampler.probabilities(&mut rows[logits(row)], history).map_err(failed)
            };
            reject(draft, law, &mut dice)
        } else {
            let choose = |row: usize, prefix: &[u32]| {
                read(history, prefix);
                sampler.sample(&mut rows[logits(row)], history, *id, history.len() as u64).map_err(failed)
            };
            follow(draft, choose)
        };
        history.truncate(committed);
        let mut verdict = verdict?;
        verdict.end_at(ends);
        Ok(verdict)
    }

    fn count(&mut self, verdict: &Verdict) {
        let stats = &mut self.written.stats;
        let accepted = verdict.path.len();
        stats.rounds += 1;
        stats.emitted += verdict.tokens.len() as u64;
        stats.drafted += self.draft.len() as u64;
        stats.accepted += accepted as u64;
        let deepest = (0..self.draft.len()).map(|node| self.draft.depth(node)).max().unwrap_or(0);
        stats.by_position.resize(stats.by_position.len().max(deepest), (0, 0));
        for (depth, (tried, right)) in stats.by_position.iter_mut().enumerate().take(deepest) {
            *tried += 1;
            *right += u64::from(depth < accepted);
        }
    }
}

/// Writes all texts together, one pass of the target per round, each text `i` in the target's cache number `i`.
///
/// `drafters[i]` guesses for `requests[i]`. The texts are those that the target alone would write: token for token where
/// guesses are fixed, in distribution where they are drawn. A text that has ended leaves the batch. `costs` learns what
/// rounds take, and tells calibrated drafters' guesses that pay from those that do not. `each` sees every text's new
/// tokens and may stop everything by breaking; the first call for a text comes after its prompt was read.
///
/// # Errors
/// [`Error::Invalid`] if a prompt is empty or drafters are missing; those of the target and of drafters.
pub fn generate(
    target: &mut dyn Target,
    requests: &[Request],
    drafters: &mut [Box<dyn Drafter>],
    limits: &Limits,
    costs: &mut CostModel,
    mut each: impl FnMut(usize, &[u32]) -> ControlFlow<()>,
) -> Result<Vec<Written>> {
    if drafters.len() != requests.len() {
        let (texts, found) = (requests.len(), drafters.len());
        return Err(Error::Invalid(format!("{texts} texts need {texts} drafters, {found} were given")));
    }
    if let Some(empty) = requests.iter().position(|request| request.prompt.is_empty()) {
        return Err(Error::Invalid(format!("prompt {} has no tokens: at least one is needed", empty + 1)));
    }
    let vocab = target.vocab_size();
    let mut texts: Vec<Growing<'_>> = requests
        .iter()
        .zip(drafters)
        .map(|(request, drafter)| Growing {
            request,
            drafter: &mut **drafter,
            history: request.prompt.clone(),
            written: Written::default(),
            draft: Draft::default(),
            guesses: false,
            ended: request.max_new_tokens == 0,
        })
        .collect();

    // The prompts; their last rows give the first tokens.
    let reading: Vec<usize> = (0..texts.len()).filter(|&text| !texts[text].ended).collect();
    if reading.is_empty() {
        return Ok(texts.into_iter().map(|text| text.written).collect());
    }
    let inputs: Vec<Input> = reading.iter().map(|&text| Input::chain(text, requests[text].prompt.clone())).collect();
    let mut logits = target.forward(&inputs, true)?;
    for (i, &text) in reading.iter().enumerate() {
        let growing = &mut texts[text];
        growing.drafter.begin(&growing.request.prompt)?;
        let verdict = growing.judge(logits.rows_mut(i..i + 1), vocab)?;
        growing.take(&verdict.tokens)?;
        if each(text, &verdict.tokens).is_break() {
            return Ok(texts.into_iter().map(|text| text.written).collect());
        }
    }

    loop {
        let start = Instant::now();
        let active: Vec<usize> = (0..texts.len()).filter(|&text| !texts[text].ended).collect();
        if active.is_empty() {
            break;
        }
        let context = active.iter().map(|&text| texts[text].history.len()).max().unwrap_or(0);
        let may_guess = costs.may_guess(active.len(), context);
        for &text in &active {
            let growing = &mut texts[text];
            growing.draft.clear();
            growing.guesses = may_guess || !growing.drafter.is_calibrated();
            if growing.guesses {
                growing.guess(limits, target.takes_trees(), active.len())?;
            }
        }
        let planned = texts.iter_mut().filter(|text| !text.ended && text.drafter.is_calibrated());
        plan(costs, context, &mut planned.map(|text| &mut text.draft).collect::<Vec<_>>());

        let verifying = Instant::now();
        let guessing = verifying - start;
        let inputs: Vec<Input> = active
            .iter()
            .map(|&text| Input::draft(text, texts[text].history[texts[text].history.len() - 1], &texts[text].draft))
            .collect();
        let held: Vec<usize> = active.iter().map(|&text| target.len(text)).collect();
        let mut logits = target.forward(&inputs, false)?;
        let mut row = 0;
        let (mut stop, mut emitted, mut observing) = (false, 0, Duration::ZERO);
        for ((&text, input), from) in active.iter().zip(&inputs).zip(held) {
            let growing = &mut texts[text];
            let rows = logits.rows_mut(row..row + input.tokens.len());
            row += input.tokens.len();
            let wanted = growing.drafter.looks_at();
            if wanted > 0 && growing.guesses {
                let start = Instant::now();
                for (&token, row) in input.tokens.iter().zip(rows.chunks_exact(vocab)) {
                    growing.drafter.observe(token, &largest(row, wanted.min(limits.tokens)));
                }
                observing += start.elapsed();
            }
            let verdict = growing.judge(rows, vocab)?;
            if verdict.rows().len() < input.tokens.len() {
                target.keep(text, from, &verdict.rows())?;
            }
            growing.count(&verdict);
            growing.take(&verdict.tokens)?;
            emitted += verdict.tokens.len();
            stop |= each(text, &verdict.tokens).is_break();
        }
        let passing = verifying.elapsed();
        let seconds = passing.as_secs_f64();
        active.iter().for_each(|&text| texts[text].written.stats.verify_seconds += seconds);
        let guesses = inputs.iter().map(|input| input.tokens.len() - 1).sum();
        let pass = Pass { batch: active.len(), context, guesses, tree: !inputs.iter().all(Input::is_chain) };
        costs.push(pass, (passing - observing).as_secs_f64());
        costs.book(pass, emitted, (guessing + observing).as_secs_f64());
        if stop {
            break;
        }
    }
    Ok(texts.into_iter().map(|text| text.written).collect())
}

/// The places of the largest values, largest first, the first among equals.
fn largest(row: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(count + 1);
    for (place, value) in row.iter().enumerate() {
        if best.len() == count && best.last().is_some_and(|&last| row[last as usize] >= *value) {
            continue;
        }
        let at = best.partition_point(|&known| row[known as usize] >= *value);
        best.insert(at, place as u32);
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests;
