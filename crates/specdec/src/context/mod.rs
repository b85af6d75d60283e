//! What a text has said so far, arranged so that the longest earlier match of its end is at hand.
//!
//! | structure | append | answers |
//! | --- | --- | --- |
//! | [`SuffixAutomaton`] | amortised O(1), with counts O(matches) | every n-gram of any length: how often, where first, what follows how often |
//! | [`HashChain`] | O(1) | the newest occurrences of the end of the text, with the length of each match |

mod automaton;
mod chain;
mod edges;

pub use automaton::{Location, State, SuffixAutomaton};
pub use chain::{Earlier, HashChain};
