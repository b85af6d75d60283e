//! A suffix automaton that grows token by token.
//!
//! Its states are the classes of n-grams that occur at the same places; an edge leads from a class to that of its
//! n-grams continued by one token. Adding a token creates at most two states and three edges on average, whatever the
//! text. Several texts share one automaton, each with a [`Location`] of its own; removing one takes back its counts.
//!
//! Accesses to memory decide its speed: a node is half a cache line and holds its first edge, its other edges lie together,
//! and an edge knows what the lengths at its ends would tell.
//!
//! Counts are of occurrences of n-grams up to the depth given; they are kept by walking from the class of the text's end
//! through those of its shorter ends. Guessing only reads, so there is nothing to undo after a refusal; a text that is
//! cut back is removed and added again up to the cut, see [`remove`](SuffixAutomaton::remove).
//!
//! Source: "The smallest automaton recognizing the subwords of a text", Blumer et al., Theoretical Computer Science 1985;
//! its use for drafting after "SAM Decoding: Speculative Decoding via Suffix Automaton", arXiv 2411.10666.

use std::ops::{Index, IndexMut};

use super::edges::{Block, Edge, FREE, Pool, SOLID};

/// A class of n-grams.
pub type State = u32;

const ROOT: State = 0;
const NONE: u32 = u32::MAX;

/// Half a cache line. Most classes have one edge only; it lies in the node, so that following it is no further access.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Node {
    /// Length of the longest n-gram of the class.
    len: u32,
    /// The class of the longest shorter end.
    link: u32,
    /// Where its first occurrence ends.
    first: u32,
    /// Occurrences, as far as counted.
    count: u32,
    /// The first edge.
    edge: Edge,
    others: Block,
}

/// All nodes, in chunks: none ever moves, so that no token waits for megabytes to be copied.
#[derive(Debug, Clone, Default)]
struct Nodes {
    chunks: Vec<Vec<Node>>,
    len: usize,
}

/// Nodes of a chunk.
const CHUNK: usize = 1024;

impl Nodes {
    fn push(&mut self, node: Node) -> State {
        let at = self.len;
        if at == self.chunks.len() * CHUNK {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[at / CHUNK].push(node);
        self.len += 1;
        at as State
    }

    fn clear(&mut self) {
        self.chunks.iter_mut().for_each(Vec::clear);
        self.len = 0;
    }
}

impl Index<State> for Nodes {
    type Output = Node;

    fn index(&self, state: State) -> &Node {
        &self.chunks[state as usize / CHUNK][state as usize % CHUNK]
    }
}

impl IndexMut<State> for Nodes {
    fn index_mut(&mut self, state: State) -> &mut Node {
        &mut self.chunks[state as usize / CHUNK][state as usize % CHUNK]
    }
}

/// Where a text ends: its class, and that of its last tokens up to the depth of counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    last: State,
    counted: State,
    depth: u32,
}

impl Location {
    /// Before the first token of a text.
    pub const START: Self = Self { last: ROOT, counted: ROOT, depth: 0 };
}

/// The n-grams of texts that grow: how often each occurs, where first, what follows.
#[derive(Debug, Clone)]
pub struct SuffixAutomaton {
    nodes: Nodes,
    pool: Pool,
    depth: u32,
    tokens: u32,
}

/// Where an edge lies.
#[derive(Debug, Clone, Copy)]
enum Place {
    Node,
    Pool(usize),
}

impl SuffixAutomaton {
    /// An empty automaton that counts n-grams up to `depth` tokens; 0 counts nothing.
    pub fn new(depth: usize) -> Self {
        let depth = depth.min(1 << 20) as u32;
        let mut automaton = Self { nodes: Nodes::default(), pool: Pool::default(), depth, tokens: 0 };
        automaton.clear();
        automaton
    }

    /// Forgets all texts; their memory is used for the next ones.
    pub fn clear(&mut self) {
        self.tokens = 0;
        self.pool.clear();
        self.nodes.clear();
        self.nodes.push(Node { len: 0, link: NONE, first: 0, count: 0, edge: FREE, others: Block::default() });
    }

    /// The class of the empty n-gram.
    pub fn root(&self) -> State {
        ROOT
    }

    /// Tokens added, over all texts.
    pub fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// Classes, at most two for each token ever added.
    pub fn states(&self) -> usize {
        self.nodes.len
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.nodes.chunks.len() * CHUNK * size_of::<Node>() + self.pool.bytes()
    }

    fn place(&self, node: &Node, token: u32) -> Option<Place> {
        if node.edge.to == 0 {
            return None;
        }
        if node.edge.token == token {
            return Some(Place::Node);
        }
        self.pool.find(node.others, token).map(Place::Pool)
    }

    fn edge(&self, state: State, token: u32) -> Option<Edge> {
        let node = &self.nodes[state];
        self.place(node, token).map(|place| match place {
            Place::Node => node.edge,
            Place::Pool(at) => self.pool.edges[at],
        })
    }

    /// The class of the n-grams of `state` continued by `token`, if they occur.
    pub fn next(&self, state: State, token: u32) -> Option<State> {
        self.edge(state, token).map(Edge::state)
    }

    /// Adds an edge where there is none of its token.
    fn add_edge(&mut self, from: State, edge: Edge) {
        let node = &mut self.nodes[from];
        if node.edge.to == 0 {
            node.edge = edge;
        } else {
            self.pool.insert(&mut node.others, edge);
        }
    }

    /// Adds `token` at the end of the text that is at `location`.
    pub fn append(&mut self, location: &mut Location, token: u32) {
        let position = self.tokens;
        self.tokens += 1;
        location.last = self.extend(location.last, token, position);
        if self.depth > 0 {
            let depth = self.depth.min(location.depth + 1);
            if self.longest(self.nodes[location.last].link) < depth as usize {
                // The end of this depth occurs where the whole text does: seldom otherwise.
                (location.counted, location.depth) = (location.last, depth);
            } else {
                self.follow(location, token);
            }
            self.add_counts(location.counted, 1);
        }
    }

    /// The class of the text that ends in class `last`, continued by `token`.
    fn extend(&mut self, last: State, token: u32, position: u32) -> State {
        // A text after the first may repeat what is known.
        if let Some(known) = self.edge(last, token) {
            return if known.is_solid() { known.state() } else { self.split(last, token, known.state()) };
        }
        let len = self.nodes[last].len + 1;
        let node = Node { len, link: ROOT, first: position, count: 0, edge: FREE, others: Block::default() };
        let new = self.nodes.push(node);
        self.add_edge(last, Edge { token, to: new | SOLID });
        let mut at = self.nodes[last].link;
        while at != NONE {
            if let Some(known) = self.edge(at, token) {
                let link = if known.is_solid() { known.state() } else { self.split(at, token, known.state()) };
                self.nodes[new].link = link;
                break;
            }
            self.add_edge(at, Edge { token, to: new });
            at = self.nodes[at].link;
        }
        new
    }

    /// Parts the class `known` in two: what follows `at` by `token` becomes a class of its own.
    fn split(&mut self, at: State, token: u32, known: State) -> State {
        let len = self.nodes[at].len + 1;
        let Node { link, first, count, edge, others, .. } = self.nodes[known];
        // Its n-grams are shorter, so none of its edges is solid.
        let edge = Edge { to: edge.state(), ..edge };
        let others = self.pool.copy(others, |edge| Edge { to: edge.state(), ..edge });
        let copy = self.nodes.push(Node { len, link, first, count, edge, others });
        self.nodes[known].link = copy;
        let (mut at, mut to) = (at, copy | SOLID);
        while at != NONE {
            let node = &self.nodes[at];
            let (place, link) = (self.place(node, token), node.link);
            let edge = match place {
                Some(Place::Node) => &mut self.nodes[at].edge,
                Some(Place::Pool(place)) => &mut self.pool.edges[place],
                None => break,
            };
            if edge.state() != known {
                break;
            }
            edge.to = to;
            (at, to) = (link, copy);
        }
        copy
    }

    /// Moves the counted end of a location on by a token that the automaton knows there.
    fn follow(&self, location: &mut Location, token: u32) {
        let mut at = location.counted;
        // The n-gram without its first token, where it would become too long; and where a split has moved it.
        let length = location.depth.min(self.depth - 1);
        while at != ROOT && self.nodes[self.nodes[at].link].len >= length {
            at = self.nodes[at].link;
        }
        location.counted = self.next(at, token).unwrap_or(ROOT);
        location.depth = length + 1;
    }

    fn add_counts(&mut self, mut at: State, change: i32) {
        while at != NONE {
            let node = &mut self.nodes[at];
            node.count = node.count.saturating_add_signed(change);
            at = node.link;
        }
    }

    /// Takes back the counts of a whole text that was added from [`Location::START`] on. Its n-grams stay known, with
    /// the count 0 where no other text has them: build a new automaton once they are too many.
    pub fn remove(&mut self, text: &[u32]) {
        if self.depth == 0 {
            return;
        }
        let mut location = Location::START;
        for &token in text {
            self.follow(&mut location, token);
            self.add_counts(location.counted, -1);
        }
        self.tokens -= text.len() as u32;
    }

    /// The class of an n-gram; `None` if it does not occur.
    pub fn find(&self, ngram: &[u32]) -> Option<State> {
        ngram
            .iter()
            .try_fold(ROOT, |state, &token| self.next(state, token))
            .filter(|&state| self.depth == 0 || self.count(state) > 0 || state == ROOT)
    }

    /// How often the n-grams of a class occur; of the empty one, how many tokens there are.
    pub fn count(&self, state: State) -> u32 {
        self.nodes[state].count
    }

    /// The position at which the first occurrence of a class ends, counting tokens in the order they were added.
    pub fn first_end(&self, state: State) -> usize {
        self.nodes[state].first as usize
    }

    /// Length of the longest n-gram of a class.
    pub fn longest(&self, state: State) -> usize {
        self.nodes[state].len as usize
    }

    /// The longest end of the text at `location` that also occurs before, and its length. The end itself is no evidence.
    pub fn earlier(&self, location: &Location) -> (State, usize) {
        match self.nodes[location.last].link {
            NONE => (ROOT, 0),
            link => (link, self.nodes[link].len as usize),
        }
    }

    /// The class of a class's longest shorter end; `None` for that of the empty n-gram.
    pub fn shorter(&self, state: State) -> Option<State> {
        Some(self.nodes[state].link).filter(|&link| link != NONE)
    }

    /// The tokens that follow a class, each with the class it leads to, in no particular order: the class whose
    /// [`first_end`](Self::first_end) is least came first in the text.
    pub fn following(&self, state: State) -> impl Iterator<Item = (u32, State)> + '_ {
        let node = &self.nodes[state];
        let edges = std::iter::once(&node.edge).chain(self.pool.slots(node.others));
        edges.filter(|edge| edge.to != 0).map(|edge| (edge.token, edge.state()))
    }

    /// The token that most often follows a class, with its class; the one that came first among equals.
    pub fn likeliest(&self, state: State) -> Option<(u32, State)> {
        self.following(state)
            .filter(|&(_, to)| self.count(to) > 0)
            .max_by_key(|&(_, to)| (self.count(to), std::cmp::Reverse(self.first_end(to))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn occurrences(texts: &[Vec<u32>], ngram: &[u32]) -> u32 {
        texts.iter().map(|text| text.windows(ngram.len()).filter(|window| *window == ngram).count() as u32).sum()
    }

    fn built(texts: &[Vec<u32>], depth: usize) -> SuffixAutomaton {
        let mut automaton = SuffixAutomaton::new(depth);
        read(&mut automaton, texts);
        automaton
    }

    fn read(automaton: &mut SuffixAutomaton, texts: &[Vec<u32>]) {
        for text in texts {
            let mut location = Location::START;
            text.iter().for_each(|&token| automaton.append(&mut location, token));
        }
    }

    fn texts() -> impl Strategy<Value = Vec<Vec<u32>>> {
        // Few tokens make long repeats; many make classes whose edges are hashed, with any number as a token.
        let many = (0u32..40).prop_map(|token| token.wrapping_mul(0x0fff_ffff).wrapping_sub(3));
        let text = prop_oneof![
            prop::collection::vec(0u32..2, 1..60),
            prop::collection::vec(0u32..4, 1..80),
            prop::collection::vec(many, 1..200)
        ];
        prop::collection::vec(text, 1..4)
    }

    /// Every n-gram up to the depth, and some that do not occur.
    fn ngrams(texts: &[Vec<u32>], depth: usize) -> Vec<Vec<u32>> {
        let mut all: Vec<Vec<u32>> =
            texts.iter().flat_map(|text| (1..=depth).flat_map(|n| text.windows(n).map(<[u32]>::to_vec))).collect();
        all.extend([vec![9], vec![0, 9], vec![1, 0, 1, 0, 0]]);
        all.sort();
        all.dedup();
        all.retain(|ngram| ngram.len() <= depth);
        all
    }

    proptest! {
        #[test]
        fn edges_know_whether_they_are_solid(texts in texts()) {
            let automaton = built(&texts, 0);
            for state in 0..automaton.states() as State {
                for (token, to) in automaton.following(state) {
                    let solid = automaton.longest(to) == automaton.longest(state) + 1;
                    prop_assert_eq!(automaton.edge(state, token).map(Edge::is_solid), Some(solid));
                }
            }
        }

        #[test]
        fn a_cleared_automaton_is_a_new_one(before in texts(), texts in texts(), depth in 0usize..5) {
            let mut automaton = built(&before, depth);
            automaton.clear();
            read(&mut automaton, &texts);
            let new = built(&texts, depth);
            prop_assert_eq!((automaton.states(), automaton.tokens()), (new.states(), new.tokens()));
            for state in 0..new.states() as State {
                let edges = |of: &SuffixAutomaton| { let mut edges: Vec<_> = of.following(state).collect(); edges.sort_unstable(); edges };
                prop_assert_eq!(edges(&automaton), edges(&new));
                prop_assert_eq!(automaton.count(state), new.count(state));
            }
        }

        #[test]
        fn counts_are_those_of_brute_force(texts in texts(), depth in 1usize..9) {
            let automaton = built(&texts, depth);
            for ngram in ngrams(&texts, depth) {
                let found = automaton.find(&ngram);
                prop_assert_eq!(found.map_or(0, |state| automaton.count(state)), occurrences(&texts, &ngram), "{:?}", ngram);
                if let Some(state) = found.filter(|_| ngram.len() < depth) {
                    for (token, to) in automaton.following(state) {
                        prop_assert_eq!(automaton.count(to), occurrences(&texts, &[&ngram[..], &[token]].concat()));
                    }
                }
            }
        }

        #[test]
        fn the_longest_earlier_match_is_found_after_every_token(texts in texts()) {
            let mut automaton = SuffixAutomaton::new(0);
            let text = &texts[0];
            let mut location = Location::START;
            for at in 0..text.len() {
                automaton.append(&mut location, text[at]);
                let (_, length) = automaton.earlier(&location);
                let seen = &text[..at];
                let brute = (1..=at).rev().find(|&n| seen.windows(n).any(|w| *w == text[at + 1 - n..=at])).unwrap_or(0);
                prop_assert_eq!(length, brute);
            }
        }

        #[test]
        fn a_removed_text_leaves_no_trace_in_counts(texts in texts(), depth in 1usize..9) {
            let mut automaton = built(&texts, depth);
            automaton.remove(&texts[0]);
            for ngram in ngrams(&texts, depth) {
                let found = automaton.find(&ngram).map_or(0, |state| automaton.count(state));
                prop_assert_eq!(found, occurrences(&texts[1..], &ngram));
            }
        }
    }

    #[test]
    fn of_equals_the_first_is_likeliest() {
        let automaton = built(&[vec![1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3]], 64);
        let state = automaton.find(&[1, 2, 3]).unwrap();
        assert_eq!(automaton.count(state), 3);
        assert_eq!(automaton.likeliest(state).map(|(token, _)| token), Some(4), "4 and 9 follow once each, 4 first");
    }
}
