//! Infinigram drafting: the longest match in a corpus, in earlier outputs and in the text itself, on one scale of confidence.
//!
//! Three sources each follow the majority of their longest match that occurs often enough: a corpus [`Index`], broad and
//! noisy; earlier [`Outputs`]; and the text so far, narrow and precise. Of many occurrences some, evenly spaced, stand for
//! all, and from then on only they are read. Each guess gets the probability that it is right, learned online from
//! its source, the length and frequency of its match and the share in favour ([`Calibration`]). The chains become one
//! tree, and the [planner](crate::planner) verifies as much of it as pays on this machine, down to nothing.
//!
//! Source: the idea after "Optimizing Large Language Models: Algorithmic Advancements and Model Design Strategies",
//! Fengxiang Bie, thesis, University of Sydney, 2026, of which the abstract is public; the index after "Infini-gram",
//! arXiv 2401.17377; rules and constants are ours. Cost: some microseconds a round.

use std::sync::{Arc, Mutex, PoisonError};

use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter, DrafterEntry, Result};
use serde::{Deserialize, Serialize};

use crate::calibration::{Calibration, Key, share};
use crate::context::{Earlier, HashChain};
use crate::index::{Cursor, Index, Place};

/// The list entry.
pub const ENTRY: DrafterEntry = DrafterEntry {
    name: "infinigram",
    summary: "Longest matches in a corpus and in the text, by learned confidence, as many as pay.",
    paper: "Infini-gram, arXiv 2401.17377",
    trees: true,
};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InfinigramConfig {
    /// The longest match that is looked for.
    pub longest: usize,
    /// A shorter match is taken while the match occurs less often than this.
    pub min_count: u64,
    /// At most so much shorter.
    pub backoff: usize,
    /// Guesses less likely to be right, with all before them, are dropped.
    pub floor: f64,
    /// Tokens guessed in a row.
    pub depth: usize,
    /// The same after a match in the text that is as long as looked for: a copy is under way.
    pub copy_depth: usize,
    /// Matches in the text have at least so many tokens.
    pub order: usize,
    /// Places in the text, and in earlier outputs, that are looked at.
    pub links: usize,
    /// Places in the corpus that are looked at.
    pub places: usize,
}

impl Default for InfinigramConfig {
    fn default() -> Self {
        Self {
            longest: 32,
            min_count: 4,
            backoff: 3,
            floor: 0.02,
            depth: 16,
            copy_depth: 64,
            order: 2,
            links: 64,
            places: 16,
        }
    }
}

const CORPUS: usize = 0;
const TEXT: usize = 1;
const OUTPUTS: usize = 2;
const SOURCES: usize = 3;
/// Whose guess is the better one among equals.
const RANKING: [usize; SOURCES] = [TEXT, OUTPUTS, CORPUS];

/// A guess of one source.
#[derive(Debug, Clone, Copy)]
struct Step {
    token: u32,
    key: Key,
    /// That it and all before it are right.
    confidence: f64,
}

/// Earlier outputs, shared by all requests; the oldest are forgotten.
#[derive(Debug)]
pub struct Outputs {
    chain: HashChain,
    most: usize,
}

/// Ends an output: no text has this token.
const END: u32 = u32::MAX;

impl Outputs {
    /// A pool of at most `tokens` tokens, which looks for matches as `config` says.
    pub fn new(tokens: usize, config: &InfinigramConfig) -> Self {
        Self { chain: HashChain::new(config.order, config.links), most: tokens }
    }

    /// Adds a finished output. One that is longer than the whole pool is cut at its front.
    pub fn push(&mut self, output: &[u32]) {
        let output = &output[output.len().saturating_sub(self.most.saturating_sub(1))..];
        if self.chain.tokens().len() + output.len() >= self.most {
            // Half is forgotten at once, so that a token costs O(1) on average.
            let kept = self.chain.tokens().len().min((self.most / 2).saturating_sub(output.len()));
            let newest = self.chain.tokens()[self.chain.tokens().len() - kept..].to_vec();
            self.chain.clear();
            newest.iter().for_each(|&token| self.chain.append(token));
        }
        output.iter().chain([&END]).for_each(|&token| self.chain.append(token));
    }

    /// Tokens held, an end for each output included.
    pub fn len(&self) -> usize {
        self.chain.tokens().len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A match to go on from.
struct Seen {
    source: usize,
    len: usize,
    /// How many occurrences a place stands for.
    weight: f64,
    /// Tokens to guess at most.
    most: usize,
}

/// What following a match takes, kept for the next time.
#[derive(Debug, Default)]
struct Scratch {
    earlier: Vec<Earlier>,
    starts: Vec<usize>,
    places: Vec<Place>,
    votes: Vec<(u32, usize)>,
}

/// The majority's way on from the places of a match; `ahead` tells the token so many tokens after a place.
fn follow<P>(
    seen: &Seen,
    places: &mut Vec<P>,
    ahead: impl Fn(&P, usize) -> Option<u32>,
    floor: f64,
    calibration: &Calibration,
    votes: &mut Vec<(u32, usize)>,
    steps: &mut Vec<Step>,
) {
    let mut confidence = 1.0;
    while steps.len() < seen.most {
        let at = steps.len();
        let best = match &places[..] {
            [only] => ahead(only, at).map(|token| (token, 1)),
            places => majority(places.iter().filter_map(|place| ahead(place, at)), votes),
        };
        let Some((token, agree)) = best else { break };
        let count = places.len() as f64 * seen.weight;
        let share = share(agree as f64 * seen.weight, count);
        let key = calibration.key(seen.source, seen.len + at, count as u64, share);
        confidence *= calibration.probability(key, share);
        if confidence < floor {
            break;
        }
        steps.push(Step { token, key, confidence });
        if agree < places.len() {
            places.retain(|place| ahead(place, at) == Some(token));
        }
    }
}

/// The token with the most votes, the first among equals, and how many these are.
fn majority(tokens: impl Iterator<Item = u32>, votes: &mut Vec<(u32, usize)>) -> Option<(u32, usize)> {
    votes.clear();
    for token in tokens {
        match votes.iter_mut().find(|(known, _)| *known == token) {
            Some((_, votes)) => *votes += 1,
            None => votes.push((token, 1)),
        }
    }
    votes.iter().copied().reduce(|best, vote| if vote.1 > best.1 { vote } else { best })
}

/// The drafter.
#[derive(Debug)]
pub struct Infinigram<B> {
    index: Option<Arc<Index<B>>>,
    calibration: Arc<Mutex<Calibration>>,
    config: InfinigramConfig,
    /// Where the text is in the corpus, and how much of the text it has read: the rest waits until there is guessing.
    cursor: Option<Cursor>,
    read: usize,
    text: HashChain,
    prompt: usize,
    outputs: Option<Arc<Mutex<Outputs>>>,
    /// What each source guessed last, before anything was cut: it is learned from whatever becomes of it.
    guessed: [Vec<Step>; SOURCES],
    scratch: Scratch,
}

impl<B> Infinigram<B> {
    /// Gives the output so far to the pool.
    fn finish(&mut self) {
        let output = self.text.tokens().get(self.prompt..).unwrap_or(&[]);
        if let Some(outputs) = self.outputs.as_ref().filter(|_| !output.is_empty()) {
            outputs.lock().unwrap_or_else(PoisonError::into_inner).push(output);
        }
        self.text.clear();
    }
}

impl<B> Drop for Infinigram<B> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<B: AsRef<[u8]>> Infinigram<B> {
    /// A drafter over a corpus, if there is one, and the text. What it learns of its own reliability is shared.
    pub fn new(index: Option<Arc<Index<B>>>, calibration: Arc<Mutex<Calibration>>, config: InfinigramConfig) -> Self {
        let cursor = index.as_ref().map(|index| Cursor::new(index, config.longest));
        let text = HashChain::new(config.order, config.links);
        let (guessed, scratch) = Default::default();
        Self { index, calibration, config, cursor, read: 0, text, prompt: 0, outputs: None, guessed, scratch }
    }

    /// Also guesses from earlier outputs, and gives its own to them.
    pub fn with_outputs(mut self, outputs: Arc<Mutex<Outputs>>) -> Self {
        self.outputs = Some(outputs);
        self
    }

    /// The majority's way through the corpus.
    fn follow_corpus(&mut self, most: usize, calibration: &Calibration) {
        let (Some(index), Some(cursor), config) = (&self.index, &mut self.cursor, &self.config) else { return };
        cursor.extend(index, &self.text.tokens()[self.read..]);
        self.read = self.text.tokens().len();
        let mut found = cursor.longest().clone();
        for _ in 0..config.backoff {
            if found.len <= 1 || found.count() >= config.min_count {
                break;
            }
            found = cursor.last(index, found.len - 1);
        }
        if found.len == 0 {
            return;
        }
        let Scratch { places, votes, .. } = &mut self.scratch;
        index.places(&found, config.places, places);
        let weight = found.count() as f64 / places.len().max(1) as f64;
        let seen = Seen { source: CORPUS, len: found.len, weight, most: most.min(config.depth) };
        let ahead = |place: &Place, at| index.token(*place, at);
        follow(&seen, places, ahead, config.floor, calibration, votes, &mut self.guessed[CORPUS]);
    }

    /// The majority's way through the text, or through earlier outputs.
    fn follow_text(&mut self, source: usize, most: usize, calibration: &Calibration) {
        let Scratch { earlier, starts, votes, .. } = &mut self.scratch;
        let config = &self.config;
        let outputs = self.outputs.as_ref().filter(|_| source == OUTPUTS);
        let outputs = outputs.map(|outputs| outputs.lock().unwrap_or_else(PoisonError::into_inner));
        let tokens = match &outputs {
            Some(outputs) => {
                outputs.chain.like(self.text.tokens(), config.longest, earlier);
                outputs.chain.tokens()
            }
            None if source == TEXT => {
                self.text.earlier(config.longest, earlier);
                self.text.tokens()
            }
            None => return,
        };
        let Some(longest) = earlier.iter().map(|place| place.len).max() else { return };
        let count = |len: usize| earlier.iter().filter(|place| place.len >= len).count() as u64;
        let mut len = longest;
        for _ in 0..config.backoff {
            if len <= config.order || count(len) >= config.min_count {
                break;
            }
            len -= 1;
        }
        starts.clear();
        starts.extend(earlier.iter().filter(|place| place.len >= len).map(|place| place.next));
        let depth = if longest >= config.longest { config.copy_depth } else { config.depth };
        let seen = Seen { source, len, weight: 1.0, most: most.min(depth) };
        let ahead = |start: &usize, at| tokens.get(start + at).copied().filter(|&token| token != END);
        follow(&seen, starts, ahead, config.floor, calibration, votes, &mut self.guessed[source]);
    }

    /// All chains as one tree, the likeliest guesses first.
    fn tree(&self, draft: &mut Draft) -> Result<()> {
        // Where chains agree they are one node, as sure as the surest of them.
        let mut nodes: Vec<Joined> = Vec::with_capacity(self.guessed.iter().map(Vec::len).sum());
        for (rank, source) in RANKING.into_iter().enumerate() {
            let (mut parent, mut shared) = (None, true);
            for (depth, &Step { token, confidence, .. }) in self.guessed[source].iter().enumerate() {
                let known = |node: &Joined| node.depth == depth && node.parent == parent && node.token == token;
                let at = nodes.iter().position(known).filter(|_| shared);
                shared = at.is_some();
                let at = at.unwrap_or(nodes.len());
                match nodes.get_mut(at) {
                    Some(node) => node.confidence = node.confidence.max(confidence),
                    None => nodes.push(Joined { token, parent, depth, rank, confidence, place: 0 }),
                }
                parent = Some(at);
            }
        }
        // No surer than their parents, which come before them.
        for at in 0..nodes.len() {
            let above = nodes[at].parent.map_or(1.0, |parent| nodes[parent].confidence);
            nodes[at].confidence = nodes[at].confidence.min(above);
        }
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_unstable_by(|&a, &b| {
            let (a, b) = (&nodes[a], &nodes[b]);
            b.confidence.total_cmp(&a.confidence).then(a.depth.cmp(&b.depth)).then(a.rank.cmp(&b.rank))
        });
        for at in order {
            let Joined { token, parent, confidence, .. } = nodes[at];
            nodes[at].place = draft.push(parent.map(|parent| nodes[parent].place), token, confidence as f32)?;
        }
        Ok(())
    }

    /// The chain with the most right tokens to be expected.
    fn best_chain(&self, draft: &mut Draft) -> Result<()> {
        let sum = |source: usize| self.guessed[source].iter().map(|step| step.confidence).sum::<f64>();
        let best = RANKING.into_iter().reduce(|best, source| if sum(source) > sum(best) { source } else { best });
        let steps = best.map_or(&[][..], |source| &self.guessed[source]);
        *draft = Draft::chain(steps.iter().map(|step| (step.token, step.confidence as f32)))?;
        Ok(())
    }
}

/// A guess that one source made, or several.
#[derive(Debug, Clone, Copy)]
struct Joined {
    token: u32,
    parent: Option<usize>,
    depth: usize,
    rank: usize,
    confidence: f64,
    /// In the draft.
    place: usize,
}

impl<B: AsRef<[u8]> + Send + Sync> Drafter for Infinigram<B> {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.finish();
        self.guessed.iter_mut().for_each(Vec::clear);
        self.prompt = prompt.len();
        prompt.iter().for_each(|&token| self.text.append(token));
        self.read = 0;
        if let (Some(index), Some(cursor)) = (&self.index, &mut self.cursor) {
            cursor.reset(index);
        }
        Ok(())
    }

    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        let most = room.depth.min(room.nodes);
        self.guessed.iter_mut().for_each(Vec::clear);
        let calibration = self.calibration.clone();
        let calibration = calibration.lock().unwrap_or_else(PoisonError::into_inner);
        self.follow_text(TEXT, most, &calibration);
        self.follow_text(OUTPUTS, most, &calibration);
        self.follow_corpus(most, &calibration);
        drop(calibration);
        let alone = self.guessed.iter().filter(|steps| !steps.is_empty()).count() <= 1;
        if room.trees && !alone {
            self.tree(draft)?
        } else {
            self.best_chain(draft)?
        }
        draft.truncate(room.nodes);
        Ok(())
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<()> {
        let mut calibration = self.calibration.lock().unwrap_or_else(PoisonError::into_inner);
        for steps in &mut self.guessed {
            for (step, token) in steps.iter().zip(tokens) {
                calibration.learn(step.key, step.token == *token);
                if step.token != *token {
                    break;
                }
            }
            steps.clear();
        }
        drop(calibration);
        tokens.iter().for_each(|&token| self.text.append(token));
        Ok(())
    }

    fn is_calibrated(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{BuildOptions, IndexBuilder};

    const ROOM: Room = Room { nodes: 64, depth: 16, trees: true, batch: 1 };

    fn drafter(corpus: &[&[u32]]) -> Infinigram<Vec<u8>> {
        let mut builder = IndexBuilder::new(100, [0; 32], BuildOptions::default()).unwrap();
        corpus.iter().for_each(|document| builder.push(document).unwrap());
        let index = Index::read(builder.into_bytes().unwrap()).unwrap();
        Infinigram::new(Some(Arc::new(index)), Arc::default(), InfinigramConfig::default())
    }

    fn nodes(drafter: &mut Infinigram<Vec<u8>>, room: &Room) -> Vec<(u32, Option<usize>)> {
        let mut draft = Draft::default();
        drafter.propose(room, &mut draft).unwrap();
        draft.nodes().iter().map(|node| (node.token, node.parent)).collect()
    }

    #[test]
    fn the_two_sources_share_what_they_agree_on() {
        let mut drafter = drafter(&[&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5, 6]]);
        drafter.begin(&[1, 2, 3, 4, 9, 1, 2]).unwrap();
        let found = nodes(&mut drafter, &ROOM);
        let tokens: Vec<u32> = found.iter().map(|(token, _)| *token).collect();
        assert_eq!(&tokens[..2], [3, 4], "both agree: {found:?}");
        let fork: Vec<u32> = found.iter().filter(|(_, parent)| *parent == Some(1)).map(|(token, _)| *token).collect();
        assert_eq!(
            {
                let mut fork = fork.clone();
                fork.sort_unstable();
                fork
            },
            [5, 9],
            "then they part: {found:?}"
        );
        assert_eq!(found.iter().filter(|(token, _)| *token == 6).count(), 1);
        let chain = nodes(&mut drafter, &Room { trees: false, ..ROOM });
        assert!(chain.iter().enumerate().all(|(i, (_, parent))| *parent == i.checked_sub(1)));
    }

    #[test]
    fn earlier_outputs_are_a_source() {
        let outputs = Arc::new(Mutex::new(Outputs::new(100, &InfinigramConfig::default())));
        let drafter = || drafter(&[&[50]]).with_outputs(outputs.clone());
        let mut first = drafter();
        first.begin(&[1]).unwrap();
        first.commit(&[2, 3, 4, 5]).unwrap();
        drop(first);
        let mut second = drafter();
        second.begin(&[9, 2, 3]).unwrap();
        assert_eq!(nodes(&mut second, &ROOM), [(4, None), (5, Some(0))], "not beyond the end of the output");
        second.begin(&[9, 1, 2]).unwrap();
        assert_eq!(nodes(&mut second, &ROOM), [], "prompts are not outputs");
        for output in 10..60 {
            outputs.lock().unwrap().push(&[output; 7]);
            assert!(outputs.lock().unwrap().len() <= 100);
        }
        outputs.lock().unwrap().push(&(1000..2000).collect::<Vec<_>>());
        assert_eq!(outputs.lock().unwrap().len(), 100);
        second.begin(&[1997, 1998]).unwrap();
        assert_eq!(nodes(&mut second, &ROOM), [(1999, None)]);
    }

    #[test]
    fn a_corpus_that_holds_the_answer_is_followed_to_the_depth() {
        let answer: Vec<u32> = (0..60).collect();
        let mut drafter = drafter(&[&answer]);
        drafter.begin(&[0, 1, 2, 3]).unwrap();
        // Every guess is right: confidence grows until whole chains are proposed.
        for at in (4..40).step_by(2) {
            nodes(&mut drafter, &ROOM);
            drafter.commit(&answer[at..at + 2]).unwrap();
        }
        let found = nodes(&mut drafter, &ROOM);
        assert_eq!(found.iter().map(|(token, _)| *token).collect::<Vec<_>>(), (40..56).collect::<Vec<_>>());
    }

    #[test]
    fn wrong_guesses_lose_confidence_although_nobody_verifies_them() {
        let mut drafter = drafter(&[&[1, 2].repeat(50)]);
        drafter.begin(&[1]).unwrap();
        let confidence = |drafter: &mut Infinigram<Vec<u8>>| {
            let mut draft = Draft::default();
            drafter.propose(&ROOM, &mut draft).unwrap();
            draft.nodes().iter().find(|node| node.parent.is_none()).map_or(0.0, |node| node.confidence)
        };
        let before = confidence(&mut drafter);
        for token in 0..200u32 {
            confidence(&mut drafter);
            drafter.commit(&[100 + token, 1]).unwrap();
        }
        assert!(confidence(&mut drafter) < 0.1 * before);
    }

    #[test]
    fn without_a_corpus_the_text_is_enough() {
        let mut drafter: Infinigram<Vec<u8>> = Infinigram::new(None, Arc::default(), InfinigramConfig::default());
        drafter.begin(&[5, 6, 7, 8, 5, 6]).unwrap();
        assert_eq!(nodes(&mut drafter, &ROOM)[0], (7, None));
        drafter.begin(&[1]).unwrap();
        assert!(nodes(&mut drafter, &ROOM).is_empty());
    }
}
