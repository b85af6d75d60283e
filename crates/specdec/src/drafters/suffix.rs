//! SuffixDecoding: the statistics of everything that this text, and earlier outputs, continued with.
//!
//! Every end of the text that occurred before is a pattern. From each, the likeliest continuation is followed, by counts,
//! for as many tokens as the pattern is long: a long match earns a long guess. The one with the largest sum of
//! probabilities is proposed; the text itself and the pool of earlier outputs compete.
//!
//! Source: "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications", arXiv 2411.04975. The counts are
//! those of a suffix automaton where the original keeps a suffix tree: patterns that occur at the same places share a
//! state, and only the longest of them needs to be tried. The end of the text itself is not counted as evidence,
//! unless asked for. Cost: amortised O(1) per token and one count per pattern; a guess is some microseconds.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter, DrafterEntry, Result};
use serde::{Deserialize, Serialize};

use crate::context::{Location, State, SuffixAutomaton};

/// The list entry.
pub const ENTRY: DrafterEntry = DrafterEntry {
    name: "suffix",
    summary: "The likeliest continuation of the best pattern in this text and in earlier outputs.",
    paper: "SuffixDecoding, arXiv 2411.04975",
    trees: true,
};

/// Settings; the defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SuffixConfig {
    /// Tokens of the longest pattern with its continuation.
    pub depth: usize,
    /// Guessed tokens per token of the pattern.
    pub factor: f64,
    /// Guessed tokens in addition.
    pub offset: f64,
    /// Tokens guessed at most.
    pub most: usize,
    /// Less likely tokens are not guessed.
    pub min_probability: f64,
    /// Whether guesses are trees.
    pub tree: bool,
    /// Whether the end of the text counts as an occurrence of its own pattern, as in the reference implementation.
    pub count_end: bool,
}

impl Default for SuffixConfig {
    fn default() -> Self {
        Self { depth: 64, factor: 1.0, offset: 0.0, most: 16, min_probability: 0.1, tree: false, count_end: false }
    }
}

/// A guess with its score.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Guess {
    /// The tokens.
    pub draft: Draft,
    /// Tokens of the pattern it continues.
    pub matched: usize,
    /// Expected number of right tokens: the sum of the probabilities.
    pub score: f64,
}

/// The best guess for what follows `context` in `automaton`, given that the last `own` occurrences of the whole context
/// (0 or 1) are the context itself.
///
/// # Errors
/// None in practice: the guess is built parents first.
pub fn speculate(automaton: &SuffixAutomaton, context: &[u32], own: u32, config: &SuffixConfig) -> Result<Guess> {
    let context = &context[context.len().saturating_sub(config.depth)..];
    let (mut state, mut len) = longest(automaton, context);
    len = len.min(context.len().saturating_sub(1));
    let mut best = Guess::default();
    while len > 0 {
        while let Some(shorter) = automaton.shorter(state).filter(|&shorter| automaton.longest(shorter) >= len) {
            state = shorter;
        }
        let limit = (len as f64 * config.factor + config.offset + 1e-6).floor().max(0.0) as usize;
        let limit = limit.min(config.most).min(if config.tree { usize::MAX } else { config.depth - len });
        let total = automaton.count(state).saturating_sub(if config.count_end { 0 } else { own });
        if limit > 0 && total > 0 {
            let guess = expand(automaton, state, total, limit, config.depth - len, config)?;
            // Among equals the longer pattern, which came first.
            if guess.score > best.score {
                best = Guess { matched: len, ..guess };
            }
        }
        let Some(shorter) = automaton.shorter(state) else { break };
        (state, len) = (shorter, automaton.longest(shorter));
    }
    Ok(best)
}

/// The class of the longest end of `context` that occurs, and its length.
fn longest(automaton: &SuffixAutomaton, context: &[u32]) -> (State, usize) {
    let (mut state, mut len) = (automaton.root(), 0);
    for &token in context {
        loop {
            match automaton.next(state, token).filter(|&next| automaton.count(next) > 0) {
                Some(next) => {
                    (state, len) = (next, len + 1);
                    break;
                }
                None => match automaton.shorter(state) {
                    Some(shorter) => (state, len) = (shorter, automaton.longest(shorter)),
                    None => {
                        len = 0;
                        break;
                    }
                },
            }
        }
    }
    (state, len)
}

/// A node that may be guessed next.
struct Candidate {
    probability: f64,
    age: usize,
    parent: Option<usize>,
    token: u32,
    state: State,
    depth: usize,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Candidate {}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.probability.total_cmp(&other.probability).then(other.age.cmp(&self.age))
    }
}

/// Follows the likeliest continuations of `state`, which occurs `total` times.
fn expand(
    automaton: &SuffixAutomaton,
    state: State,
    total: u32,
    limit: usize,
    room: usize,
    config: &SuffixConfig,
) -> Result<Guess> {
    let mut guess = Guess::default();
    let likely = |share: f64| share >= config.min_probability - 1e-9;
    if !config.tree {
        let (mut state, mut total, mut probability, mut parent) = (state, total, 1.0, None);
        while guess.draft.len() < limit {
            let Some((token, next)) = automaton.likeliest(state) else { break };
            probability *= f64::from(automaton.count(next)) / f64::from(total);
            if !likely(probability) {
                break;
            }
            parent = Some(guess.draft.push(parent, token, probability as f32)?);
            guess.score += probability;
            (state, total) = (next, automaton.count(next));
        }
        return Ok(guess);
    }
    let mut heap = BinaryHeap::new();
    let mut age = 0;
    let mut push_children = |heap: &mut BinaryHeap<Candidate>, state: State, total: u32, above: f64, parent, depth| {
        if depth > room {
            return;
        }
        let mut children: Vec<(u32, State)> =
            automaton.following(state).filter(|&(_, next)| automaton.count(next) > 0).collect();
        children.sort_by_key(|&(_, next)| (std::cmp::Reverse(automaton.count(next)), automaton.first_end(next)));
        for (token, state) in children {
            let probability = above * f64::from(automaton.count(state)) / f64::from(total);
            if likely(probability) {
                heap.push(Candidate { probability, age, parent, token, state, depth });
                age += 1;
            }
        }
    };
    push_children(&mut heap, state, total, 1.0, None, 1);
    while guess.draft.len() < limit
        && let Some(Candidate { probability, parent, token, state, depth, .. }) = heap.pop()
    {
        let node = guess.draft.push(parent, token, probability as f32)?;
        guess.score += probability;
        push_children(&mut heap, state, automaton.count(state), probability, Some(node), depth + 1);
    }
    Ok(guess)
}

/// Keeps of every fork the likeliest branch only.
pub(super) fn keep_best_chain(draft: &mut Draft) {
    let mut kept = vec![false; draft.len()];
    let mut row = 0;
    let best = |draft: &Draft, row: usize| {
        let confidence = |&node: &usize| draft.nodes()[node].confidence;
        draft.children(row).reduce(|a, b| if confidence(&b) > confidence(&a) { b } else { a })
    };
    while let Some(node) = best(draft, row) {
        kept[node] = true;
        row = node + 1;
    }
    draft.retain(|node, _| kept[node]);
}

/// Earlier outputs, shared by all requests; the oldest are forgotten.
#[derive(Debug)]
pub struct OutputPool {
    automaton: SuffixAutomaton,
    outputs: VecDeque<Vec<u32>>,
    held: usize,
    most: usize,
}

impl OutputPool {
    /// A pool of at most `tokens` tokens, of patterns up to `depth`.
    pub fn new(tokens: usize, depth: usize) -> Self {
        Self { automaton: SuffixAutomaton::new(depth), outputs: VecDeque::new(), held: 0, most: tokens }
    }

    /// Adds a finished output. One that is longer than the whole pool is cut at its front.
    pub fn push(&mut self, output: &[u32]) {
        let output = &output[output.len().saturating_sub(self.most)..];
        add(&mut self.automaton, output);
        self.held += output.len();
        self.outputs.push_back(output.to_vec());
        let mut forgot = false;
        while self.held > self.most
            && let Some(oldest) = self.outputs.pop_front()
        {
            self.automaton.remove(&oldest);
            self.held -= oldest.len();
            forgot = true;
        }
        // States of what is gone stay behind; start afresh once they are half: a token has two at most.
        if forgot && self.automaton.states() > 4 * self.most.max(1024) {
            self.automaton.clear();
            self.outputs.iter().for_each(|output| add(&mut self.automaton, output));
        }
    }

    /// The statistics.
    pub fn automaton(&self) -> &SuffixAutomaton {
        &self.automaton
    }
}

fn add(automaton: &mut SuffixAutomaton, text: &[u32]) {
    let mut location = Location::START;
    text.iter().for_each(|&token| automaton.append(&mut location, token));
}

/// The drafter.
#[derive(Debug)]
pub struct Suffix {
    config: SuffixConfig,
    local: SuffixAutomaton,
    location: Location,
    recent: Vec<u32>,
    output: Vec<u32>,
    pool: Option<Arc<Mutex<OutputPool>>>,
}

impl Suffix {
    /// A drafter of these settings, which also learns from a pool and adds to it.
    pub fn new(config: SuffixConfig, pool: Option<Arc<Mutex<OutputPool>>>) -> Self {
        let local = SuffixAutomaton::new(config.depth);
        Self { config, local, location: Location::START, recent: Vec::new(), output: Vec::new(), pool }
    }

    /// Gives the output so far to the pool.
    fn finish(&mut self) {
        let output = std::mem::take(&mut self.output);
        if let Some(pool) = self.pool.as_ref().filter(|_| !output.is_empty()) {
            pool.lock().unwrap_or_else(PoisonError::into_inner).push(&output);
        }
    }

    fn read(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|&token| self.local.append(&mut self.location, token));
        self.recent.extend_from_slice(tokens);
        let old = self.recent.len().saturating_sub(self.config.depth);
        self.recent.drain(..old);
    }
}

impl Drop for Suffix {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Drafter for Suffix {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.finish();
        self.local.clear();
        self.location = Location::START;
        self.recent.clear();
        self.read(prompt);
        Ok(())
    }

    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        let mut config = self.config.clone();
        config.most = config.most.min(room.nodes).min(if config.tree { usize::MAX } else { room.depth });
        config.tree &= room.trees;
        let mut best = speculate(&self.local, &self.recent, 1, &config)?;
        if let Some(pool) = &self.pool {
            let pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
            let other = speculate(pool.automaton(), &self.recent, 0, &config)?;
            if other.score > best.score {
                best = other;
            }
        }
        *draft = best.draft;
        Ok(())
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<()> {
        self.read(tokens);
        self.output.extend_from_slice(tokens);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
