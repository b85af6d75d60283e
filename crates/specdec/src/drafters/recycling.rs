//! Token Recycling: the runners-up of every token ever seen, as a fixed tree.
//!
//! Each forward pass ranks the tokens that may follow each of its inputs. A table keeps the eight best of each token's
//! latest ranking; a guess is a fixed tree of 80 nodes over that table.
//!
//! Source: "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling", arXiv
//! 2408.08696. A token that was never seen has no children (the original guesses token 0). Memory: 32 bytes a token.

use std::sync::{Arc, Mutex, PoisonError};

use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter, DrafterEntry, Result};

/// The list entry.
pub const ENTRY: DrafterEntry = DrafterEntry {
    name: "recycling",
    summary: "The runners-up of earlier passes, token by token, as a fixed tree.",
    paper: "Token Recycling, arXiv 2408.08696",
    trees: true,
};

/// Candidates kept per token.
const RANKS: usize = 8;
const UNKNOWN: u32 = u32::MAX;

/// How many children the nodes of the tree have that have any: a node is named by the ranks that lead to it.
const TREE: &[(usize, &[&str])] = &[
    (8, &["", "0", "00"]),
    (5, &["000"]),
    (4, &["1"]),
    (3, &["2", "01", "0000"]),
    (2, &["3", "02", "10", "001", "00000"]),
    (1, &["4", "5", "6", "7", "03", "04", "05", "06", "07", "11", "20", "30", "40", "50"]),
    (1, &["002", "003", "004", "010", "020", "100", "200", "300", "0001", "0002", "0010", "0100", "1000", "00010"]),
];

fn children_of(path: &str) -> usize {
    TREE.iter().find(|(_, paths)| paths.contains(&path)).map_or(0, |(count, _)| *count)
}

/// The tree, breadth first: the parent and rank of every node.
fn tree() -> Vec<(Option<usize>, usize)> {
    let mut nodes = Vec::new();
    let mut level = vec![(None, String::new())];
    while !level.is_empty() {
        let mut below = Vec::new();
        for (parent, path) in level {
            for rank in 0..children_of(&path) {
                nodes.push((parent, rank));
                below.push((Some(nodes.len() - 1), format!("{path}{rank}")));
            }
        }
        level = below;
    }
    nodes
}

/// What followed each token, best first; shared by all requests.
#[derive(Debug)]
pub struct Candidates(Vec<[u32; RANKS]>);

impl Candidates {
    /// A table for a vocabulary, with nothing in it.
    pub fn new(vocab: usize) -> Self {
        Self(vec![[UNKNOWN; RANKS]; vocab])
    }
}

/// The drafter.
#[derive(Debug)]
pub struct Recycling {
    table: Arc<Mutex<Candidates>>,
    tree: Vec<(Option<usize>, usize)>,
    last: Option<u32>,
}

impl Recycling {
    /// A drafter over this table.
    pub fn new(table: Arc<Mutex<Candidates>>) -> Self {
        Self { table, tree: tree(), last: None }
    }
}

impl Drafter for Recycling {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.last = prompt.last().copied();
        Ok(())
    }

    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut numbers: Vec<Option<usize>> = Vec::with_capacity(self.tree.len());
        for &(parent, rank) in &self.tree {
            let above = match parent {
                None => self.last.map(|token| (None, token)),
                Some(parent) => numbers[parent].map(|node| (Some(node), draft.nodes()[node].token)),
            };
            let wanted = (room.trees || rank == 0) && draft.len() < room.nodes;
            let number = match above.filter(|_| wanted) {
                Some((parent, token)) if parent.map_or(0, |parent| draft.depth(parent)) < room.depth => {
                    let guess = table.0.get(token as usize).map_or(UNKNOWN, |best| best[rank]);
                    let above = parent.map_or(1.0, |parent| draft.nodes()[parent].confidence);
                    (guess != UNKNOWN)
                        .then(|| draft.push(parent, guess, above * 0.5 / (1.0 + rank as f32)))
                        .transpose()?
                }
                _ => None,
            };
            numbers.push(number);
        }
        Ok(())
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<()> {
        self.last = tokens.last().copied().or(self.last);
        Ok(())
    }

    fn looks_at(&self) -> usize {
        RANKS
    }

    fn observe(&mut self, token: u32, best: &[u32]) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = table.0.get_mut(token as usize) {
            *row = [UNKNOWN; RANKS];
            row.iter_mut().zip(best).for_each(|(kept, &best)| *kept = best);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_that_of_the_paper() {
        let nodes = tree();
        let mut depths: Vec<usize> = Vec::new();
        for (parent, _) in &nodes {
            depths.push(parent.map_or(1, |parent| depths[parent] + 1));
        }
        let levels: Vec<usize> = (1..=6).map(|level| depths.iter().filter(|&&depth| depth == level).count()).collect();
        assert_eq!((nodes.len(), levels), (80, vec![8, 21, 25, 15, 8, 3]));
        assert_eq!(size_of::<[u32; RANKS]>(), 32);
    }

    #[test]
    fn runners_up_become_guesses() {
        let table = Arc::new(Mutex::new(Candidates::new(10)));
        let mut drafter = Recycling::new(table);
        drafter.begin(&[3]).unwrap();
        drafter.observe(3, &[4, 5]);
        drafter.observe(4, &[6]);
        let mut draft = Draft::default();
        let room = Room { nodes: 80, depth: 9, trees: true, batch: 1 };
        drafter.propose(&room, &mut draft).unwrap();
        let nodes: Vec<(u32, Option<usize>)> = draft.nodes().iter().map(|node| (node.token, node.parent)).collect();
        assert_eq!(nodes, [(4, None), (5, None), (6, Some(0))]);
        draft.clear();
        drafter.propose(&Room { trees: false, ..room }, &mut draft).unwrap();
        assert!(draft.is_chain() && draft.len() == 2);
    }
}
