//! REST: what a corpus continues with, all of it, as one tree.
//!
//! The longest end of the text, 16 tokens down to 2, that occurs in the corpus; up to 5000 of its continuations by 10
//! tokens; the 64 most frequent beginnings of those are the tree.
//!
//! Source: "REST: Retrieval-Based Speculative Decoding", arXiv 2311.08252. Where nothing matches nothing is guessed
//! (the original guesses an arbitrary token), and the verification is exact when sampling too. Cost: up to 15 searches,
//! then up to 50,000 counts.

use std::collections::HashMap;
use std::sync::Arc;

use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter, DrafterEntry, Result};
use serde::{Deserialize, Serialize};

use crate::index::Index;

/// The list entry.
pub const ENTRY: DrafterEntry = DrafterEntry {
    name: "rest",
    summary: "The most frequent continuations of the longest match in a corpus, as a tree.",
    paper: "REST, arXiv 2311.08252",
    trees: true,
};

/// Settings; the defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestConfig {
    /// The longest end of the text to look for.
    pub longest: usize,
    /// The shortest.
    pub shortest: usize,
    /// Occurrences to look at.
    pub hits: usize,
    /// Tokens of a continuation.
    pub length: usize,
    /// Nodes of the tree.
    pub nodes: usize,
}

impl Default for RestConfig {
    fn default() -> Self {
        Self { longest: 16, shortest: 2, hits: 5000, length: 10, nodes: 64 }
    }
}

/// The tree of the `nodes` most frequent beginnings of `continuations`, shorter ones and then smaller tokens first.
///
/// # Errors
/// None in practice: the tree is built parents first.
pub fn most_frequent(continuations: &[Vec<u32>], nodes: usize) -> Result<Draft> {
    struct Beginning {
        path: Vec<u32>,
        parent: Option<usize>,
        count: usize,
    }
    let mut all: Vec<Beginning> = Vec::new();
    let mut places: HashMap<(Option<usize>, u32), usize> = HashMap::new();
    for continuation in continuations {
        let mut parent = None;
        for (depth, &token) in continuation.iter().enumerate() {
            let place = *places.entry((parent, token)).or_insert_with(|| {
                all.push(Beginning { path: continuation[..=depth].to_vec(), parent, count: 0 });
                all.len() - 1
            });
            all[place].count += 1;
            parent = Some(place);
        }
    }
    let mut order: Vec<usize> = (0..all.len()).collect();
    // A beginning is at least as frequent as what it begins, and shorter: it always comes before it.
    let key = |place: usize| (std::cmp::Reverse(all[place].count), all[place].path.len());
    order.sort_unstable_by(|&a, &b| key(a).cmp(&key(b)).then_with(|| all[a].path.cmp(&all[b].path)));
    let mut draft = Draft::default();
    let mut numbers = vec![None; all.len()];
    for place in order.into_iter().take(nodes) {
        let Beginning { path, parent, count } = &all[place];
        let parent = parent.and_then(|parent| numbers[parent]);
        numbers[place] = Some(draft.push(parent, path[path.len() - 1], *count as f32 / continuations.len() as f32)?);
    }
    Ok(draft)
}

/// The drafter.
#[derive(Debug, Clone)]
pub struct Rest<B> {
    index: Arc<Index<B>>,
    config: RestConfig,
    /// The newest tokens, as many as are looked for.
    recent: Vec<u32>,
}

impl<B: AsRef<[u8]>> Rest<B> {
    /// A drafter over this corpus.
    pub fn new(index: Arc<Index<B>>, config: RestConfig) -> Self {
        Self { index, config, recent: Vec::new() }
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Drafter for Rest<B> {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.recent.clear();
        self.commit(prompt)
    }

    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        for len in (self.config.shortest.max(1)..=self.config.longest.min(self.recent.len())).rev() {
            let found = self.index.find(&self.recent[self.recent.len() - len..]);
            if found.count() > 0 {
                let continuations =
                    self.index.continuations(&found, self.config.hits, self.config.length.min(room.depth));
                *draft = most_frequent(&continuations, self.config.nodes)?;
                if !room.trees {
                    super::suffix::keep_best_chain(draft);
                }
                draft.truncate(room.nodes);
                return Ok(());
            }
        }
        Ok(())
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<()> {
        self.recent.extend_from_slice(tokens);
        let old = self.recent.len().saturating_sub(self.config.longest);
        self.recent.drain(..old);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_beginnings_are_a_tree() {
        let continuations = [vec![1, 2, 3], vec![1, 2, 4], vec![1, 5], vec![6, 7], vec![]];
        let draft = most_frequent(&continuations, 5).unwrap();
        let nodes: Vec<(u32, Option<usize>)> = draft.nodes().iter().map(|node| (node.token, node.parent)).collect();
        assert_eq!(nodes, [(1, None), (2, Some(0)), (6, None), (5, Some(0)), (7, Some(2))]);
        assert_eq!(draft.nodes()[0].confidence, 0.6);
    }
}
