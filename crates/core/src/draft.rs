//! What speculative decoding is made of: guesses, who makes them, and who judges them.
//!
//! A [`Drafter`] guesses what comes next as a [`Draft`], a tree of tokens. A [`Target`] computes the logits after every
//! node of such trees in one forward pass, and keeps the positions that turned out right.

use std::ops::Range;

use crate::{Error, Result};

/// One guessed token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// The token.
    pub token: u32,
    /// The node it follows; `None`: it follows the text itself. Always an earlier node.
    pub parent: Option<usize>,
    /// How likely the drafter holds it that this node and all its ancestors are right, in [0, 1]; never above the
    /// parent's. Budgets of batches are shared by it; it never decides what is accepted.
    pub confidence: f32,
}

/// A tree of guesses; a chain is a tree in which every node has one child.
///
/// Row 0 of a verification judges the nodes without parent, row `i + 1` the children of node `i`.
///
/// ```
/// use kindling_core::Draft;
///
/// let mut draft = Draft::default();
/// let the = draft.push(None, 7, 0.9)?;
/// draft.push(Some(the), 8, 0.5)?;
/// draft.push(Some(the), 9, 0.3)?;
/// assert_eq!(draft.children(1).collect::<Vec<_>>(), [1, 2]);
/// assert_eq!(draft.depth(2), 2);
/// # Ok::<(), kindling_core::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draft {
    nodes: Vec<Node>,
    /// The distributions that children were drawn from, by row; none: the children are fixed guesses.
    laws: Vec<(usize, Vec<f64>)>,
}

impl Draft {
    /// A chain of tokens, each with its confidence.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn chain(tokens: impl IntoIterator<Item = (u32, f32)>) -> Result<Self> {
        let mut draft = Self::default();
        let mut parent = None;
        for (token, confidence) in tokens {
            parent = Some(draft.push(parent, token, confidence)?);
        }
        Ok(draft)
    }

    /// Adds a token after `parent`; gives its number.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such parent.
    pub fn push(&mut self, parent: Option<usize>, token: u32, confidence: f32) -> Result<usize> {
        let len = self.nodes.len();
        if let Some(parent) = parent.filter(|&parent| parent >= len) {
            return Err(Error::Invalid(format!(
                "draft: node {len} names node {parent} as its parent, an earlier one is needed"
            )));
        }
        let above = parent.map_or(1.0, |parent| self.nodes[parent].confidence);
        let confidence = if confidence.is_nan() { 0.0 } else { confidence.clamp(0.0, above) };
        self.nodes.push(Node { token, parent, confidence });
        Ok(len)
    }

    /// Says that the children of `row` were drawn from `law` (`[vocab]`, summing to 1), independently of each other.
    pub fn drawn_from(&mut self, row: usize, law: Vec<f64>) {
        self.laws.push((row, law));
    }

    /// What the children of `row` were drawn from, if they were drawn.
    pub fn law(&self, row: usize) -> Option<&[f64]> {
        self.laws.iter().find(|(at, _)| *at == row).map(|(_, law)| law.as_slice())
    }

    /// All nodes, parents before children.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing is guessed.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.laws.clear();
    }

    /// The nodes that row `row` judges, in order.
    pub fn children(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        let parent = row.checked_sub(1);
        (row.saturating_sub(1)..self.nodes.len()).filter(move |&node| self.nodes[node].parent == parent)
    }

    /// How many tokens lead to this node, itself included.
    pub fn depth(&self, node: usize) -> usize {
        self.path(node).len()
    }

    /// The nodes that lead to this one, itself last.
    pub fn path(&self, node: usize) -> Vec<usize> {
        let mut path = vec![node];
        while let Some(parent) = self.nodes[path[path.len() - 1]].parent {
            path.push(parent);
        }
        path.reverse();
        path
    }

    /// Whether no node has two children.
    pub fn is_chain(&self) -> bool {
        self.nodes.iter().enumerate().all(|(i, node)| node.parent == i.checked_sub(1))
    }

    /// Keeps the first `len` nodes: always a whole tree, since parents come first.
    pub fn truncate(&mut self, len: usize) {
        self.nodes.truncate(len);
        self.laws.retain(|(row, _)| *row <= len);
    }

    /// Keeps the nodes that `keep` wants and whose ancestors it wants.
    pub fn retain(&mut self, mut keep: impl FnMut(usize, &Node) -> bool) {
        let mut places: Vec<Option<usize>> = Vec::with_capacity(self.nodes.len());
        let mut kept: Vec<Node> = Vec::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let parent = match node.parent {
                None => Some(None),
                Some(parent) => places[parent].map(Some),
            };
            places.push(match parent {
                Some(parent) if keep(i, node) => {
                    kept.push(Node { parent, ..*node });
                    Some(kept.len() - 1)
                }
                _ => None,
            });
        }
        self.nodes = kept;
        let laws = std::mem::take(&mut self.laws);
        self.laws = laws
            .into_iter()
            .filter_map(|(row, law)| match row.checked_sub(1) {
                None => Some((0, law)),
                Some(node) => places[node].map(|node| (node + 1, law)),
            })
            .collect();
    }
}

/// How much may be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// At most this many nodes.
    pub nodes: usize,
    /// At most this many tokens on a path: what is left before the text must end.
    pub depth: usize,
    /// Whether a node may have several children.
    pub trees: bool,
    /// How many texts grow together.
    pub batch: usize,
}

/// Guesses what comes next in one text.
///
/// A drafter may be wrong in every way: verification never lets it change the text. Only [`begin`](Self::begin) and
/// [`commit`](Self::commit) move it forward, so rejected guesses leave no trace.
pub trait Drafter: Send {
    /// A new text begins with this prompt.
    ///
    /// # Errors
    /// If the prompt cannot be read, for instance by a model that drafts.
    fn begin(&mut self, prompt: &[u32]) -> Result<()>;

    /// Adds guesses to an empty `draft`.
    ///
    /// # Errors
    /// If guessing itself fails; having nothing to guess is no error.
    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()>;

    /// These tokens are now part of the text.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn commit(&mut self, tokens: &[u32]) -> Result<()>;

    /// How many of the target's best next tokens per row [`observe`](Self::observe) wants to see.
    fn looks_at(&self) -> usize {
        0
    }

    /// After `token`, the target held `best` to be the most likely, best first. Called for every row of a round,
    /// before its [`commit`](Self::commit).
    fn observe(&mut self, token: u32, best: &[u32]) {
        let _ = (token, best);
    }

    /// Whether the confidences of its guesses are probabilities that can be relied on: then guesses that cost more time
    /// than they can be expected to save are not verified.
    fn is_calibrated(&self) -> bool {
        false
    }
}

/// New tokens of one text: a chain, or a tree below the last committed token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Input {
    /// Which text.
    pub text: usize,
    /// The tokens, parents before children.
    pub tokens: Vec<u32>,
    /// For each token the place in `tokens` of the one before it; `None`: the text so far.
    pub parents: Vec<Option<usize>>,
}

impl Input {
    /// Tokens one after the other.
    pub fn chain(text: usize, tokens: Vec<u32>) -> Self {
        let parents = (0..tokens.len()).map(|i| i.checked_sub(1)).collect();
        Self { text, tokens, parents }
    }

    /// `last`, the newest token of the text, with a draft below it.
    pub fn draft(text: usize, last: u32, draft: &Draft) -> Self {
        let nodes = draft.nodes();
        Self {
            text,
            tokens: std::iter::once(last).chain(nodes.iter().map(|node| node.token)).collect(),
            parents: std::iter::once(None)
                .chain(nodes.iter().map(|node| Some(node.parent.map_or(0, |p| p + 1))))
                .collect(),
        }
    }

    /// Whether the tokens simply follow each other.
    pub fn is_chain(&self) -> bool {
        self.parents.iter().enumerate().all(|(i, parent)| *parent == i.checked_sub(1))
    }
}

/// The logits of one pass: rows of equal width.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logits {
    /// Row after row.
    pub values: Vec<f32>,
    /// Logits per row.
    pub vocab: usize,
}

impl Logits {
    /// The rows of an input, given how many rows the inputs before it have.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> &mut [f32] {
        &mut self.values[rows.start * self.vocab..rows.end * self.vocab]
    }
}

/// The model whose text must not change: several texts, each with its cache.
pub trait Target {
    /// How many logits a row has.
    fn vocab_size(&self) -> usize;

    /// How many positions of `text` the cache holds.
    fn len(&self, text: usize) -> usize;

    /// Whether the cache of `text` is empty.
    fn is_empty(&self, text: usize) -> bool {
        self.len(text) == 0
    }

    /// Whether inputs may be trees.
    fn takes_trees(&self) -> bool;

    /// Appends the inputs to the caches of their texts; gives the logits after every token, or after the last token of
    /// every input only.
    ///
    /// # Errors
    /// If a text or token does not exist, or the model fails.
    fn forward(&mut self, inputs: &[Input], last_only: bool) -> Result<Logits>;

    /// Of the positions of `text` from `from` on, keeps those at `from + rows[0]`, `from + rows[1]`, … and no others.
    /// `rows` ascend.
    ///
    /// # Errors
    /// If a row does not exist.
    fn keep(&mut self, text: usize, from: usize, rows: &[usize]) -> Result<()>;
}

/// One line of a crate's list of drafters. Lists, tests and benches derive from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrafterEntry {
    /// The name that commands use.
    pub name: &'static str,
    /// One sentence: where its guesses come from.
    pub summary: &'static str,
    /// Title and arXiv id of the source.
    pub paper: &'static str,
    /// Whether it guesses trees.
    pub trees: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_comes_first() {
        let error = Draft::default().push(Some(0), 1, 1.0).unwrap_err();
        assert_eq!(error.to_string(), "draft: node 0 names node 0 as its parent, an earlier one is needed");
    }

    #[test]
    fn what_is_kept_is_a_tree() {
        let mut draft = Draft::default();
        let a = draft.push(None, 1, 0.9).unwrap();
        let b = draft.push(None, 2, 0.8).unwrap();
        let c = draft.push(Some(a), 3, 0.95).unwrap();
        draft.push(Some(b), 4, 0.5).unwrap();
        draft.push(Some(c), 5, 0.5).unwrap();
        draft.drawn_from(b + 1, vec![1.0]);
        assert_eq!(draft.nodes()[c].confidence, 0.9, "no surer than its parent");
        draft.retain(|_, node| node.token != 1);
        assert_eq!(draft.nodes().iter().map(|n| (n.token, n.parent)).collect::<Vec<_>>(), [(2, None), (4, Some(0))]);
        assert!(draft.is_chain());
        assert_eq!(draft.law(1), Some(&[1.0][..]));
    }

    #[test]
    fn an_input_begins_with_the_last_token() {
        let draft = Draft::chain([(5, 1.0), (6, 1.0)]).unwrap();
        let input = Input::draft(0, 4, &draft);
        assert_eq!(input, Input::chain(0, vec![4, 5, 6]));
        assert!(input.is_chain());
    }
}
