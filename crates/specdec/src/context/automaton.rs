//! A suffix automaton that grows token by token.
//!
//! Its states are the classes of n-grams that occur at the same places; an edge leads from a class to that of its
//! n-grams continued by one token. Adding a token creates at most two states and three edges on average, whatever the
//! text. Several texts share one automaton, each with a [`Location`] of its own; removing one takes back its counts.
//!
//! Counts are of occurrences of n-grams up to the depth given; they are kept by walking from the class of the text's end
//! through those of its shorter ends. Guessing only reads, so there is nothing to undo after a refusal; a text that is
//! cut back is removed and added again up to the cut, see [`remove`](SuffixAutomaton::remove).
//!
//! Source: "The smallest automaton recognizing the subwords of a text", Blumer et al., Theoretical Computer Science 1985;
//! its use for drafting after "SAM Decoding: Speculative Decoding via Suffix Automaton", arXiv 2411.10666.

/// A class of n-grams.
pub type State = u32;

const ROOT: State = 0;
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Node {
    /// Length of the longest n-gram of the class.
    len: u32,
    /// The class of the longest shorter end.
    link: u32,
    /// Where its first occurrence ends.
    first: u32,
    /// Occurrences, as far as counted.
    count: u32,
    /// The token of its newest edge; `NONE`: it has none.
    newest: u32,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    /// `NONE`: the slot is free.
    from: State,
    token: u32,
    to: State,
    /// The token of the next older edge of the same state.
    older: u32,
}

const FREE: Edge = Edge { from: NONE, token: 0, to: 0, older: NONE };

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
    nodes: Vec<Node>,
    /// Open addressing by state and token, a power of two long: finding an edge is one access to memory.
    table: Vec<Edge>,
    edges: usize,
    depth: u32,
    tokens: u32,
}

impl SuffixAutomaton {
    /// An empty automaton that counts n-grams up to `depth` tokens; 0 counts nothing.
    pub fn new(depth: usize) -> Self {
        let root = Node { len: 0, link: NONE, first: 0, count: 0, newest: NONE };
        Self { nodes: vec![root], edges: 0, table: vec![FREE; 64], depth: depth.min(1 << 20) as u32, tokens: 0 }
    }

    /// The class of the empty n-gram.
    pub fn root(&self) -> State {
        ROOT
    }

    /// Tokens added, over all texts.
    pub fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.table.capacity() * size_of::<Edge>()
    }

    fn slot(&self, from: State, token: u32) -> usize {
        let mask = self.table.len() - 1;
        let key = u64::from(from) << 32 | u64::from(token);
        // The top bits of the product depend on all bits of the key.
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - mask.count_ones())) as usize;
        loop {
            let edge = &self.table[at];
            if edge.from == NONE || (edge.from, edge.token) == (from, token) {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    /// The class of the n-grams of `state` continued by `token`, if they occur.
    pub fn next(&self, state: State, token: u32) -> Option<State> {
        let edge = &self.table[self.slot(state, token)];
        (edge.from != NONE).then_some(edge.to)
    }

    fn add_edge(&mut self, slot: usize, from: State, token: u32, to: State) {
        let older = std::mem::replace(&mut self.nodes[from as usize].newest, token);
        self.table[slot] = Edge { from, token, to, older };
        self.edges += 1;
        if 5 * self.edges > 3 * self.table.len() {
            let larger = vec![FREE; 2 * self.table.len()];
            for edge in std::mem::replace(&mut self.table, larger).into_iter().filter(|edge| edge.from != NONE) {
                let slot = self.slot(edge.from, edge.token);
                self.table[slot] = edge;
            }
        }
    }

    /// Adds `token` at the end of the text that is at `location`.
    pub fn append(&mut self, location: &mut Location, token: u32) {
        let position = self.tokens;
        self.tokens += 1;
        location.last = self.extend(location.last, token, position);
        if self.depth > 0 {
            self.follow(location, token);
            self.add_counts(location.counted, 1);
        }
    }

    /// The class of the text that ends in class `last`, continued by `token`.
    fn extend(&mut self, last: State, token: u32, position: u32) -> State {
        let length = self.nodes[last as usize].len + 1;
        // A text after the first may repeat what is known.
        if let Some(known) = self.next(last, token) {
            return if self.nodes[known as usize].len == length { known } else { self.split(last, token, known) };
        }
        let new = self.nodes.len() as State;
        self.nodes.push(Node { len: length, link: ROOT, first: position, count: 0, newest: NONE });
        let mut at = last;
        loop {
            let slot = self.slot(at, token);
            if self.table[slot].from != NONE {
                let known = self.table[slot].to;
                let fits = self.nodes[known as usize].len == self.nodes[at as usize].len + 1;
                let link = if fits { known } else { self.split(at, token, known) };
                self.nodes[new as usize].link = link;
                return new;
            }
            self.add_edge(slot, at, token, new);
            match self.nodes[at as usize].link {
                NONE => return new,
                link => at = link,
            }
        }
    }

    /// Parts the class `known` in two: what follows `at` by `token` becomes a class of its own.
    fn split(&mut self, at: State, token: u32, known: State) -> State {
        let copy = self.nodes.len() as State;
        let old = self.nodes[known as usize];
        let len = self.nodes[at as usize].len + 1;
        self.nodes.push(Node { len, newest: NONE, ..old });
        self.nodes[known as usize].link = copy;
        // Oldest first, so that the order of edges is kept.
        let mut edges: Vec<(u32, State)> = self.following(known).collect();
        edges.reverse();
        for (token, to) in edges {
            let slot = self.slot(copy, token);
            self.add_edge(slot, copy, token, to);
        }
        let mut at = at;
        loop {
            let slot = self.slot(at, token);
            let edge = &mut self.table[slot];
            if edge.from == NONE || edge.to != known {
                return copy;
            }
            edge.to = copy;
            match self.nodes[at as usize].link {
                NONE => return copy,
                link => at = link,
            }
        }
    }

    /// Moves the counted end of a location on by a token that the automaton knows there.
    fn follow(&self, location: &mut Location, token: u32) {
        let mut at = location.counted;
        // The n-gram without its first token, where it would become too long; and where a split has moved it.
        let length = location.depth.min(self.depth - 1);
        while at != ROOT && self.nodes[self.nodes[at as usize].link as usize].len >= length {
            at = self.nodes[at as usize].link;
        }
        location.counted = self.next(at, token).unwrap_or(ROOT);
        location.depth = length + 1;
    }

    fn add_counts(&mut self, mut at: State, change: i32) {
        while at != NONE {
            let node = &mut self.nodes[at as usize];
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
        self.nodes[state as usize].count
    }

    /// The position at which the first occurrence of a class ends, counting tokens in the order they were added.
    pub fn first_end(&self, state: State) -> usize {
        self.nodes[state as usize].first as usize
    }

    /// Length of the longest n-gram of a class.
    pub fn longest(&self, state: State) -> usize {
        self.nodes[state as usize].len as usize
    }

    /// The longest end of the text at `location` that also occurs before, and its length. The end itself is no evidence.
    pub fn earlier(&self, location: &Location) -> (State, usize) {
        match self.nodes[location.last as usize].link {
            NONE => (ROOT, 0),
            link => (link, self.nodes[link as usize].len as usize),
        }
    }

    /// The class of a class's longest shorter end; `None` for that of the empty n-gram.
    pub fn shorter(&self, state: State) -> Option<State> {
        Some(self.nodes[state as usize].link).filter(|&link| link != NONE)
    }

    /// The tokens that follow a class, each with the class it leads to. The newest edge comes first; the class whose
    /// [`first_end`](Self::first_end) is least came first in the text.
    pub fn following(&self, state: State) -> impl Iterator<Item = (u32, State)> + '_ {
        let edge = move |token: u32| (token != NONE).then(|| self.table[self.slot(state, token)]);
        std::iter::successors(edge(self.nodes[state as usize].newest), move |last| edge(last.older))
            .map(|edge| (edge.token, edge.to))
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
        for text in texts {
            let mut location = Location::START;
            text.iter().for_each(|&token| automaton.append(&mut location, token));
        }
        automaton
    }

    fn texts() -> impl Strategy<Value = Vec<Vec<u32>>> {
        let text = prop_oneof![prop::collection::vec(0u32..2, 1..60), prop::collection::vec(0u32..4, 1..80)];
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
    fn edges_keep_the_order_of_the_text() {
        let automaton = built(&[vec![1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3]], 64);
        let state = automaton.find(&[1, 2, 3]).unwrap();
        assert_eq!(automaton.count(state), 3);
        assert_eq!(automaton.likeliest(state).map(|(token, _)| token), Some(4), "4 and 9 follow once each, 4 first");
    }
}
