//! A PGM-index for changing keys: sorted runs, each up to eight times the one before, and a small buffer.
//!
//! Source: "The PGM-index" (arXiv 1910.06169), the logarithmic method.

use kindling_core::{IndexMut, OrderedIndex, PointIndex};

use super::lower_bound;
use super::pgm::{Exact, Pgm};

const BASE: usize = 8;
/// 1 + 8 + 64 + 512.
const BUFFER: usize = 585;
const EPSILON: usize = 16;
/// Runs from here on have an index.
const INDEXED: usize = 1 << 14;

/// Sorted runs, newest first; a key without a value was removed.
#[derive(Debug, Clone)]
pub struct DynamicPgm<K, V> {
    runs: Vec<Run<K, V>>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Run<K, V> {
    keys: Vec<K>,
    values: Vec<Option<V>>,
    index: Option<Pgm<K>>,
}

impl<K: Exact, V> Run<K, V> {
    fn new(keys: Vec<K>, values: Vec<Option<V>>) -> Self {
        let index = (keys.len() >= INDEXED).then(|| Pgm::new(&keys, EPSILON));
        Self { keys, values, index }
    }

    fn lower_bound(&self, key: &K) -> usize {
        match &self.index {
            Some(index) => index.lower_bound(&self.keys, key),
            None => lower_bound(&self.keys, key),
        }
    }

    fn find(&self, key: &K) -> Option<usize> {
        let at = self.lower_bound(key);
        (self.keys.get(at)? == key).then_some(at)
    }

    /// Both runs in one; what `self` says counts.
    fn merge(self, older: Self, last: bool) -> Self {
        let n = self.keys.len() + older.keys.len();
        let (mut keys, mut values) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut new = self.keys.into_iter().zip(self.values).peekable();
        let mut old = older.keys.into_iter().zip(older.values).peekable();
        loop {
            let pair = match (new.peek(), old.peek()) {
                (Some(a), Some(b)) if a.0 == b.0 => {
                    old.next();
                    new.next()
                }
                (Some(a), Some(b)) if a.0 < b.0 => new.next(),
                (_, Some(_)) => old.next(),
                (_, None) => new.next(),
            };
            let Some((key, value)) = pair else { break };
            if value.is_some() || !last {
                keys.push(key);
                values.push(value);
            }
        }
        Self { keys, values, index: None }
    }
}

/// Most keys of run `level`.
fn room(level: usize) -> usize {
    if level == 0 { BUFFER } else { BUFFER.saturating_mul(BASE.saturating_pow(level as u32)) }
}

impl<K: Exact, V> DynamicPgm<K, V> {
    /// Of pairs that ascend.
    pub fn from_ascending(pairs: Vec<(K, V)>) -> Self {
        let len = pairs.len();
        let (keys, values): (Vec<K>, Vec<Option<V>>) = pairs.into_iter().map(|(key, value)| (key, Some(value))).unzip();
        let level = (0..).find(|&level| room(level) >= len).unwrap_or(0).max(1);
        let mut runs: Vec<Run<K, V>> = (0..level).map(|_| Run::new(Vec::new(), Vec::new())).collect();
        runs.push(Run::new(keys, values));
        Self { runs, len }
    }

    fn put(&mut self, key: K, value: Option<V>) {
        let buffer = &mut self.runs[0];
        let at = lower_bound(&buffer.keys, &key);
        if buffer.keys.get(at) == Some(&key) {
            buffer.values[at] = value;
            return;
        }
        buffer.keys.insert(at, key);
        buffer.values.insert(at, value);
        if buffer.keys.len() == BUFFER {
            self.flush();
        }
    }

    /// Merges the buffer and all runs that have no room for it into the first that has.
    fn flush(&mut self) {
        let mut total = 0;
        let level = (1..).find(|&level| {
            total += self.runs.get(level - 1).map_or(0, |run| run.keys.len());
            self.runs.get(level).map_or(0, |run| run.keys.len()) + total <= room(level)
        });
        let level = level.unwrap_or(1);
        while self.runs.len() <= level {
            self.runs.push(Run::new(Vec::new(), Vec::new()));
        }
        let empty = || Run { keys: Vec::new(), values: Vec::new(), index: None };
        let mut merged = empty();
        for i in 0..=level {
            let older = std::mem::replace(&mut self.runs[i], empty());
            merged = merged.merge(older, i + 1 == self.runs.len() && i == level);
        }
        self.runs[level] = Run::new(merged.keys, merged.values);
    }
}

impl<K: Exact, V> PointIndex<K, V> for DynamicPgm<K, V> {
    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.runs.iter().find_map(|run| run.find(key).map(|at| run.values[at].as_ref()))?
    }

    fn bytes(&self) -> usize {
        let run = |run: &Run<K, V>| {
            run.keys.capacity() * size_of::<K>()
                + run.values.capacity() * size_of::<Option<V>>()
                + run.index.as_ref().map_or(0, Pgm::bytes)
        };
        self.runs.iter().map(run).sum()
    }
}

impl<K: Exact, V> OrderedIndex<K, V> for DynamicPgm<K, V> {
    fn scan(&self, from: &K, limit: usize, visit: &mut dyn FnMut(&K, &V)) -> usize {
        let mut at: Vec<usize> = self.runs.iter().map(|run| run.lower_bound(from)).collect();
        let mut visited = 0;
        while visited < limit {
            let heads = self.runs.iter().zip(&at).enumerate();
            let smallest = heads.filter_map(|(i, (run, &at))| run.keys.get(at).map(|key| (*key, i))).min();
            let Some((key, newest)) = smallest else { break };
            if let Some(value) = &self.runs[newest].values[at[newest]] {
                visit(&key, value);
                visited += 1;
            }
            for (run, at) in self.runs.iter().zip(&mut at) {
                *at += usize::from(run.keys.get(*at) == Some(&key));
            }
        }
        visited
    }
}

impl<K: Exact, V: Clone> IndexMut<K, V> for DynamicPgm<K, V> {
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.get(&key).cloned();
        self.len += usize::from(old.is_none());
        self.put(key, Some(value));
        old
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.get(key).cloned()?;
        self.len -= 1;
        self.put(*key, None);
        Some(old)
    }
}
