//! Generated tasks that tell whether a model still finds what stands far back: needles, key-value records, variable
//! tracking, copying, word counts.
//!
//! They speak a small vocabulary of their own ([`vocabulary`]), so that a model of under a million parameters can learn
//! all of them. Names and forms follow RULER (Hsieh et al., arXiv 2404.06654), needle tests and induction heads (Olsson et
//! al., arXiv 2209.11895).

mod example;
mod score;
mod tokenizer;
pub mod vocabulary;

#[cfg(test)]
mod tests;

pub use example::{Example, Turn, generate_example};
pub use score::{TaskScore, score};
pub use tokenizer::write_tokenizer;

use std::fmt;
use std::str::FromStr;

use kindling_core::options::unknown;

/// What an example asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// One record, its value wanted.
    NiahSingle,
    /// So many records, one wanted.
    NiahMultikey(usize),
    /// As many records as fit, up to one for every key, one wanted.
    NiahMultikeyAll,
    /// Four records of one key, all values wanted in order.
    NiahMultivalue,
    /// Four records, all wanted one after the other.
    NiahMultiquery,
    /// Which variables hold a value, through so many assignments; another chain distracts.
    VariableTracking(usize),
    /// The ten words that occur six times as often as the others.
    CommonWords,
    /// The three most frequent words of a Zipf distribution, the filler apart.
    FreqWords,
    /// A passage again from its first two symbols.
    Copy,
    /// A field of a record.
    KvQa,
    /// A field of the record that another record's third field names.
    KvQaTwoHop,
    /// Examples of the others one after the other: for perplexity.
    Lm,
    /// A few passages again and again in any order: teaches a model to look for what came after a symbol before. It asks
    /// nothing.
    Induction,
    /// The same with passages of eight symbols only, so that one symbol does not tell what follows but two or three do. It asks
    /// nothing.
    Contexts,
    /// Keys and their values, again and again, with markers between: what stood several places back tells what follows.
    Pairs,
    /// A few records, plain or with fields, and nine turns about them, questions or the record again: teaches the look-up
    /// with many answers to a row.
    Recall,
}

impl Task {
    /// Every variant that is measured.
    pub const ALL: [Task; 14] = [
        Task::NiahSingle,
        Task::NiahMultikey(4),
        Task::NiahMultikeyAll,
        Task::NiahMultivalue,
        Task::NiahMultiquery,
        Task::VariableTracking(1),
        Task::VariableTracking(2),
        Task::VariableTracking(4),
        Task::CommonWords,
        Task::FreqWords,
        Task::Copy,
        Task::KvQa,
        Task::KvQaTwoHop,
        Task::Lm,
    ];

    /// Variants that only teach.
    pub const LESSONS: [Task; 4] = [Task::Induction, Task::Contexts, Task::Pairs, Task::Recall];

    /// Tokens that questions, answers and the end take at most.
    pub fn room(self) -> usize {
        match self {
            Task::NiahSingle | Task::NiahMultikey(_) | Task::NiahMultikeyAll | Task::KvQa => 6,
            Task::NiahMultivalue => 12,
            Task::NiahMultiquery => 21,
            Task::VariableTracking(hops) => 5 + hops,
            Task::CommonWords => 14,
            Task::FreqWords | Task::KvQaTwoHop => 7,
            Task::Copy => 17,
            Task::Lm | Task::Induction | Task::Contexts | Task::Pairs => 1,
            Task::Recall => 46,
        }
    }

    /// Whether a context of `length` tokens can hold it.
    pub fn fits(self, length: usize) -> bool {
        let body = length.saturating_sub(vocabulary::BEGINS);
        match self {
            Task::NiahSingle | Task::NiahMultikeyAll => body >= 6,
            Task::NiahMultikey(count) => body >= 6 * count && (1..=64).contains(&count),
            Task::NiahMultivalue | Task::NiahMultiquery => body >= 24,
            Task::VariableTracking(hops) => body >= 2 * (5 + 6 * hops) && 2 * (hops + 1) <= 64,
            Task::CommonWords => length >= 128,
            Task::FreqWords => body >= 60,
            Task::Copy => body >= 32,
            Task::KvQa | Task::Recall => body >= 18,
            Task::KvQaTwoHop => body >= 36,
            Task::Lm => length > 64,
            Task::Induction | Task::Contexts | Task::Pairs => body >= 32,
        }
    }

    /// Whether it has questions.
    pub fn asks(self) -> bool {
        !matches!(self, Task::Lm | Task::Induction | Task::Contexts | Task::Pairs)
    }

    /// Whether an answer with some right parts counts in part.
    pub fn counts_recall(self) -> bool {
        matches!(self, Task::NiahMultivalue | Task::VariableTracking(_) | Task::CommonWords | Task::FreqWords)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::NiahSingle => f.write_str("niah_single"),
            Task::NiahMultikey(count) => write!(f, "niah_multikey_{count}"),
            Task::NiahMultikeyAll => f.write_str("niah_multikey_all"),
            Task::NiahMultivalue => f.write_str("niah_multivalue"),
            Task::NiahMultiquery => f.write_str("niah_multiquery"),
            Task::VariableTracking(hops) => write!(f, "variable_tracking_{hops}"),
            Task::CommonWords => f.write_str("common_words"),
            Task::FreqWords => f.write_str("freq_words"),
            Task::Copy => f.write_str("copy"),
            Task::KvQa => f.write_str("kv_qa"),
            Task::KvQaTwoHop => f.write_str("kv_qa_two_hop"),
            Task::Lm => f.write_str("lm"),
            Task::Induction => f.write_str("induction"),
            Task::Contexts => f.write_str("contexts"),
            Task::Pairs => f.write_str("pairs"),
            Task::Recall => f.write_str("recall"),
        }
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all: Vec<Task> = Task::ALL.into_iter().chain(Task::LESSONS).collect();
        let known: Vec<String> = all.iter().map(ToString::to_string).collect();
        match known.iter().position(|known| known == name) {
            Some(i) => Ok(all[i]),
            None => Err(unknown("task", name, &known.iter().map(String::as_str).collect::<Vec<_>>())),
        }
    }
}
