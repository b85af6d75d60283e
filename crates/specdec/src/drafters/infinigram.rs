//! Infinigram drafting: the longest match in a corpus and in the text itself, on one scale of confidence.
//!
//! Two sources each follow the majority of their longest match that occurs often enough: a corpus [`Index`], broad and
//! noisy, and the text so far, narrow and precise. Each guess gets the probability that it is right, learned online from
//! its source, the length and frequency of its match and the share in favour ([`Calibration`]). The two chains become one
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
use crate::index::{Cursor, Index, Match};

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
    /// Places in the text that are looked at.
    pub links: usize,
}

impl Default for InfinigramConfig {
    fn default() -> Self {
        Self { longest: 32, min_count: 4, backoff: 3, floor: 0.01, depth: 16, copy_depth: 64, order: 2, links: 64 }
    }
}

const CORPUS: usize = 0;
const TEXT: usize = 1;

/// A guess of one source.
#[derive(Debug, Clone, Copy)]
struct Step {
    token: u32,
    key: Key,
    /// That it and all before it are right.
    confidence: f64,
}

/// The drafter.
#[derive(Debug)]
pub struct Infinigram<B> {
    index: Option<Arc<Index<B>>>,
    calibration: Arc<Mutex<Calibration>>,
    config: InfinigramConfig,
    cursor: Option<Cursor>,
    text: HashChain,
    earlier: Vec<Earlier>,
    /// What each source guessed last, before anything was cut: it is learned from whatever becomes of it.
    guessed: [Vec<Step>; 2],
}

impl<B: AsRef<[u8]>> Infinigram<B> {
    /// A drafter over a corpus, if there is one, and the text. What it learns of its own reliability is shared.
    pub fn new(index: Option<Arc<Index<B>>>, calibration: Arc<Mutex<Calibration>>, config: InfinigramConfig) -> Self {
        let cursor = index.as_ref().map(|index| Cursor::new(index, config.longest));
        let text = HashChain::new(config.order, config.links);
        Self { index, calibration, config, cursor, text, earlier: Vec::new(), guessed: Default::default() }
    }

    /// The majority's way through the corpus.
    fn follow_corpus(&mut self, most: usize) {
        let steps = &mut self.guessed[CORPUS];
        steps.clear();
        let (Some(index), Some(cursor)) = (&self.index, &self.cursor) else { return };
        let calibration = self.calibration.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = cursor.longest().clone();
        for _ in 0..self.config.backoff {
            if found.len <= 1 || found.count() >= self.config.min_count {
                break;
            }
            found = cursor.last(index, found.len - 1);
        }
        let mut shorter = (found.len > 1).then(|| cursor.last(index, found.len - 1));
        let mut confidence = 1.0;
        while steps.len() < most.min(self.config.depth) && found.len > 0 {
            let Some((token, agree)) = index.majority(&found) else { break };
            let narrowed: Option<Match> = shorter.as_ref().map(|shorter| index.narrow(shorter, token));
            let below = shorter.as_ref().zip(narrowed.as_ref()).map(|(all, agree)| (agree.count(), all.count()));
            let share = share(agree, found.count(), below);
            let key = calibration.key(CORPUS, found.len, found.count(), share);
            confidence *= calibration.probability(key, share);
            if confidence < self.config.floor {
                break;
            }
            steps.push(Step { token, key, confidence });
            found = index.narrow(&found, token);
            shorter = narrowed;
        }
    }

    /// The majority's way through the text.
    fn follow_text(&mut self, most: usize) {
        let steps = &mut self.guessed[TEXT];
        steps.clear();
        self.text.earlier(self.config.longest, &mut self.earlier);
        let tokens = self.text.tokens();
        let calibration = self.calibration.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(longest) = self.earlier.iter().map(|place| place.len).max() else { return };
        let count = |order: usize| self.earlier.iter().filter(|place| place.len >= order).count() as u64;
        let mut order = longest;
        for _ in 0..self.config.backoff {
            if order <= self.config.order || count(order) >= self.config.min_count {
                break;
            }
            order -= 1;
        }
        let has_shorter = order > self.config.order;
        let depth = if longest >= self.config.longest { self.config.copy_depth } else { self.config.depth };
        let mut places: Vec<Earlier> = std::mem::take(&mut self.earlier);
        places.retain(|place| place.len + usize::from(has_shorter) >= order);
        let mut confidence = 1.0;
        while steps.len() < most.min(depth) {
            let at = steps.len();
            // Newest first, so the newest of equal candidates is met first and stays.
            let mut votes: Vec<(u32, u64)> = Vec::new();
            for place in places.iter().filter(|place| place.len >= order) {
                let Some(&token) = tokens.get(place.next + at) else { continue };
                match votes.iter_mut().find(|(known, _)| *known == token) {
                    Some((_, votes)) => *votes += 1,
                    None => votes.push((token, 1)),
                }
            }
            let best = votes.iter().copied().reduce(|best, vote| if vote.1 > best.1 { vote } else { best });
            let Some((token, agree)) = best else { break };
            let all = places.iter().filter(|place| place.len >= order).count() as u64;
            let says = |place: &Earlier| tokens.get(place.next + at) == Some(&token);
            let below =
                has_shorter.then(|| (places.iter().filter(|place| says(place)).count() as u64, places.len() as u64));
            let share = share(agree, all, below);
            let key = calibration.key(TEXT, order + at, all, share);
            confidence *= calibration.probability(key, share);
            if confidence < self.config.floor {
                break;
            }
            steps.push(Step { token, key, confidence });
            places.retain(says);
        }
        self.earlier = places;
    }

    /// Both chains as one tree, the likeliest guesses first.
    fn tree(&self, draft: &mut Draft) -> Result<()> {
        // Where the chains agree they are one node, as sure as the surer of them.
        let (corpus, text) = (&self.guessed[CORPUS], &self.guessed[TEXT]);
        let common = corpus.iter().zip(text).take_while(|(a, b)| a.token == b.token).count();
        let mut steps: Vec<(f64, usize, usize, u32)> = Vec::with_capacity(corpus.len() + text.len());
        for (source, chain, other) in [(TEXT, text, corpus), (CORPUS, corpus, text)] {
            let mut above = 1.0f64;
            for (depth, step) in chain.iter().enumerate() {
                let shared = depth < common;
                let sure = if shared { step.confidence.max(other[depth].confidence) } else { step.confidence };
                above = above.min(sure);
                if !(shared && source == CORPUS) {
                    steps.push((above, depth, if shared { TEXT } else { source }, step.token));
                }
            }
        }
        // The text's before the corpus's among equals.
        steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(b.2.cmp(&a.2)));
        let mut ends: [Vec<usize>; 2] = Default::default();
        for (confidence, depth, source, token) in steps {
            let parent = match depth {
                0 => None,
                depth if depth <= common => Some(ends[TEXT][depth - 1]),
                depth => Some(ends[source][depth - common - 1 + if source == TEXT { common } else { 0 }]),
            };
            let node = draft.push(parent, token, confidence as f32)?;
            ends[source].push(node);
        }
        Ok(())
    }

    /// The chain with more right tokens to be expected; the text's among equals.
    fn better_chain(&self, draft: &mut Draft) -> Result<()> {
        let sum = |source: usize| self.guessed[source].iter().map(|step| step.confidence).sum::<f64>();
        let source = if sum(TEXT) >= sum(CORPUS) { TEXT } else { CORPUS };
        *draft = Draft::chain(self.guessed[source].iter().map(|step| (step.token, step.confidence as f32)))?;
        Ok(())
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Drafter for Infinigram<B> {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.text.clear();
        self.guessed = Default::default();
        prompt.iter().for_each(|&token| self.text.append(token));
        if let (Some(index), Some(cursor)) = (&self.index, &mut self.cursor) {
            cursor.reset(index);
            cursor.extend(index, prompt);
        }
        Ok(())
    }

    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        let most = room.depth.min(room.nodes);
        self.follow_text(most);
        self.follow_corpus(most);
        if room.trees {
            self.tree(draft)?
        } else {
            self.better_chain(draft)?
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
        if let (Some(index), Some(cursor)) = (&self.index, &mut self.cursor) {
            cursor.extend(index, tokens);
        }
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
