//! Slower or simpler ways to choose tokens, to compare with.
//!
//! All take centred keys or none, score every token, and return the `budget` best, lower tokens first among equals.

use super::KvIndex;
use super::dense::{dot, products};

/// The `budget` tokens with the highest scores.
pub fn top(scores: &[f32], budget: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..scores.len() as u32).collect();
    let by_score = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
    if budget < tokens.len() {
        tokens.select_nth_unstable_by(budget, by_score);
        tokens.truncate(budget);
    }
    tokens.sort_unstable_by(by_score);
    tokens
}

/// Exact scores of all keys, `[tokens, dim]`.
pub fn exact(keys: &[f32], query: &[f32]) -> Vec<f32> {
    let mut scores = vec![0.0; keys.len() / query.len()];
    products(keys, query, &mut scores);
    scores
}

/// The estimate of [`KvIndex::select`] for every token, without its thresholds: its twin. `None` in `coordinate` scores a
/// token by its centroid alone.
pub fn estimated(index: &KvIndex, query: &[f32], coordinate: bool) -> Vec<f32> {
    let mut scores = vec![f32::NEG_INFINITY; index.indexed()];
    for cell in 0..index.cells().len() {
        let a = dot(index.cells().centroid(cell), query);
        let s = if coordinate { dot(index.cells().slope(cell), query) } else { 0.0 };
        let all = (f32::NEG_INFINITY, f32::INFINITY);
        let y = index.cells().y(cell, all.0);
        index.access.range(cell as u32, y, all.0, all.1, |token, t| scores[token as usize] = a + s * t);
    }
    scores
}

/// Bounds of pages of consecutive tokens.
///
/// Source: "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", arXiv 2406.10774.
#[derive(Debug, Clone)]
pub struct QuestPages {
    dim: usize,
    page: usize,
    tokens: usize,
    /// Smallest and largest entries of every page.
    bounds: Vec<(Vec<f32>, Vec<f32>)>,
}

impl QuestPages {
    /// Pages of `page` keys, `[tokens, dim]`.
    pub fn new(keys: &[f32], dim: usize, page: usize) -> Self {
        let bounds = |rows: &[f32]| {
            let (mut low, mut high) = (vec![f32::INFINITY; dim], vec![f32::NEG_INFINITY; dim]);
            for row in rows.chunks_exact(dim) {
                for (i, &x) in row.iter().enumerate() {
                    (low[i], high[i]) = (low[i].min(x), high[i].max(x));
                }
            }
            (low, high)
        };
        Self { dim, page, tokens: keys.len() / dim, bounds: keys.chunks(page * dim).map(bounds).collect() }
    }

    /// Every token's score: no key of its page scores higher.
    pub fn scores(&self, query: &[f32]) -> Vec<f32> {
        let bound = |(low, high): &(Vec<f32>, Vec<f32>)| -> f32 {
            (0..self.dim).map(|i| (query[i] * low[i]).max(query[i] * high[i])).sum()
        };
        let pages: Vec<f32> = self.bounds.iter().map(bound).collect();
        (0..self.tokens).map(|token| pages[token / self.page]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::access::AccessKind;
    use crate::attention::cells::Aligned;
    use crate::attention::{KvConfig, Selected};
    use crate::data::kv::{KvData, KvSetting};

    fn index(data: &KvData, config: KvConfig) -> KvIndex {
        KvIndex::build(&data.keys, &data.prefill, data.dim, config).unwrap()
    }

    /// Mean share of the exact top 100 among the tokens that `choose` gives.
    fn recall(data: &KvData, mut choose: impl FnMut(&[f32]) -> Vec<u32>) -> f64 {
        let queries = data.queries.chunks_exact(data.dim);
        let n = queries.len() as f64;
        let one = |query: &[f32]| {
            let best = top(&exact(&data.keys, query), 100);
            let chosen = choose(query);
            best.iter().filter(|token| chosen.contains(token)).count() as f64 / 100.0
        };
        queries.map(one).sum::<f64>() / n
    }

    fn setting(tokens: usize, dim: usize, topics: usize, noise: (f64, f64), seed: u64) -> KvData {
        KvSetting { tokens, dim, topics, key_noise: noise.0, query_noise: noise.1, seed }.generate()
    }

    /// Recall of query-aligned, centroid-aligned, cells only, Quest.
    fn recalls(data: &KvData, budget: usize) -> [f64; 4] {
        let queries = index(data, KvConfig::default());
        let centroid = index(data, KvConfig { aligned: Aligned::Centroid, ..KvConfig::default() });
        let quest = QuestPages::new(&data.keys, data.dim, 16);
        [
            recall(data, |q| top(&estimated(&queries, q, true), budget)),
            recall(data, |q| top(&estimated(&centroid, q, true), budget)),
            recall(data, |q| top(&estimated(&queries, q, false), budget)),
            recall(data, |q| top(&quest.scores(q), budget)),
        ]
    }

    #[test]
    fn recall_on_small_settings_is_the_published_one() {
        let published = [
            (setting(8192, 64, 200, (0.9, 0.8), 42), [0.519, 0.442, 0.333, 0.183]),
            (setting(8192, 64, 0, (1.5, 1.5), 42), [0.398, 0.292, 0.175, 0.037]),
            (setting(16_384, 64, 200, (0.9, 0.8), 42), [0.712, 0.643, 0.489, 0.290]),
        ];
        for (data, expected) in published {
            let found = recalls(
                &data,
                (data.keys.len() / data.dim) / 100 + usize::from(data.keys.len() / data.dim % 100 >= 50),
            );
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 0.011, "{found} {expected}");
            }
            assert!(found.windows(2).all(|two| two[0] > two[1]), "{found:?}");
        }
    }

    #[test]
    fn both_structures_select_the_same_near_the_budget() {
        let data = setting(8192, 64, 200, (0.9, 0.8), 42);
        let csr = index(&data, KvConfig::default());
        let learned = index(&data, KvConfig { access: AccessKind::Learned, ..KvConfig::default() });
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for query in data.queries.chunks_exact(data.dim) {
            for budget in [82, 164, 410] {
                csr.select(query, budget, &mut a).unwrap();
                learned.select(query, budget, &mut b).unwrap();
                assert_eq!(a, b);
                assert!((0.7..1.3).contains(&(a.len() as f64 / budget as f64)), "{} of {budget}", a.len());
                // Exactly the twin's tokens above the same score, among the visited cells.
                let lowest = a.iter().map(|s| s.score).fold(f32::INFINITY, f32::min);
                let twin = estimated(&csr, query, true);
                for Selected { token, score } in &a {
                    assert!((twin[*token as usize] - score).abs() <= 1e-4 * score.abs().max(1.0));
                }
                assert!(a.len() <= twin.iter().filter(|&&score| score >= lowest - 1e-3).count());
            }
        }
        // Nothing is left out with the whole budget and all cells.
        let whole = KvIndex { config: KvConfig { visited: usize::MAX, ..KvConfig::default() }, ..csr };
        whole.select(&data.queries[..data.dim], 8192, &mut a).unwrap();
        assert_eq!(a.len(), 8192);
    }

    #[test]
    fn bounds_hold() {
        let data = setting(2048, 32, 50, (0.9, 0.8), 7);
        let index = index(&data, KvConfig::default());
        let query = &data.queries[..32];
        let norm = dot(query, query).sqrt();
        let twin = estimated(&index, query, true);
        let shift = dot(query, &index.mean);
        let scores = exact(&data.keys, query);
        let widest = (0..index.cells().len()).map(|j| index.cells().spread(j).residual).fold(0.0, f32::max);
        for (estimate, score) in twin.iter().zip(scores) {
            assert!((estimate - (score - shift)).abs() <= norm * widest + 1e-3);
        }
        let quest = QuestPages::new(&data.keys, 32, 16);
        assert!(quest.scores(query).iter().zip(exact(&data.keys, query)).all(|(bound, score)| *bound >= score - 1e-4));
    }

    #[test]
    fn appended_tokens_are_found_and_taken_back() {
        let data = setting(4096, 32, 50, (0.9, 0.8), 3);
        let (old, new) = data.keys.split_at(2048 * 32);
        for access in [AccessKind::Csr, AccessKind::Learned] {
            let config = KvConfig { access, visited: usize::MAX, flush: 512, ..KvConfig::default() };
            let mut index = KvIndex::build(old, &data.prefill, 32, config).unwrap();
            for rows in new.chunks(100 * 32) {
                index.append(rows).unwrap();
            }
            assert_eq!(index.len(), 4096);
            let indexed = index.indexed();
            assert!((2048 + 1536..4096).contains(&indexed));
            let mut selected = Vec::new();
            index.select(&data.queries[..32], 4096, &mut selected).unwrap();
            let mut tokens: Vec<u32> = selected.iter().map(|s| s.token).collect();
            tokens.sort_unstable();
            assert!(tokens.into_iter().eq(0..indexed as u32));
            index.truncate(indexed + 3).unwrap();
            assert_eq!(index.len(), indexed + 3);
            assert!(index.truncate(indexed - 1).unwrap_err().to_string().contains("indexed for good"));
            index.select_group(&data.queries[..4 * 32], 400, &mut selected).unwrap();
            assert!(selected.is_sorted_by(|a, b| a.token < b.token) && selected.len() > 100);
        }
        let mut empty = KvIndex::build(&[], &[], 32, KvConfig { flush: 4, ..KvConfig::default() }).unwrap();
        empty.append(&data.keys[..8 * 32]).unwrap();
        assert_eq!((empty.indexed(), empty.len()), (8, 8));
    }

    #[test]
    fn laws_of_cells_follow_tokens_that_drift() {
        // Two cells; what comes later lies to one side of them, near enough to belong there.
        let mut rng = crate::data::SplitMix64::new(5);
        let mut rows = |n: usize, shift: f64| -> Vec<f32> {
            // No query looks along the last axis, which makes the cells wide.
            let mut number = |i: usize| match i % 8 {
                0 if (i / 8).is_multiple_of(2) => 20.0,
                0 => -20.0,
                7 => 6.0 * rng.normal(),
                _ => shift + rng.normal(),
            };
            (0..n * 8).map(|i| number(i) as f32).collect()
        };
        let (old, new) = (rows(128, 0.0), rows(2048, 0.8));
        let prefill = [[0.0f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]; 4].concat();
        let config = |access, drift| KvConfig { access, drift, flush: 256, ..KvConfig::default() };
        let build = |access, drift| {
            let mut index = KvIndex::build(&old, &prefill, 8, config(access, drift)).unwrap();
            new.chunks(100 * 8).for_each(|rows| index.append(rows).unwrap());
            index
        };
        let (csr, learned) = (build(AccessKind::Csr, 0.2), build(AccessKind::Learned, 0.2));
        assert!(csr.refitted() > 1 && csr.refitted() == learned.refitted());
        let farthest = |index: &KvIndex| {
            // The others have a token or two.
            let distances = (0..2).map(|cell| {
                let mut ts = Vec::new();
                index.access.range(cell as u32, 0.0, f32::NEG_INFINITY, f32::INFINITY, |_, t| ts.push(t));
                index.cells().spread(cell).distance(&ts)
            });
            distances.fold(0.0, f32::max)
        };
        let never = build(AccessKind::Csr, 2.0);
        assert!(farthest(&csr) < farthest(&never), "{} {}", farthest(&csr), farthest(&never));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for budget in [50, 200, 5000] {
            csr.select(&prefill[..8], budget, &mut a).unwrap();
            learned.select(&prefill[..8], budget, &mut b).unwrap();
            assert_eq!(a, b);
            if budget < 1000 {
                assert!((0.7..1.3).contains(&(a.len() as f64 / budget as f64)), "{} of {budget}", a.len());
            }
        }
        assert_eq!(a.len(), csr.indexed());
    }

    #[test]
    fn a_mean_added_to_all_keys_changes_nothing_much() {
        let data = setting(1024, 16, 20, (0.9, 0.8), 5);
        let moved: Vec<f32> = data.keys.iter().enumerate().map(|(i, x)| x + (i % 16) as f32).collect();
        let (a, b) =
            (index(&data, KvConfig::default()), index(&KvData { keys: moved, ..data.clone() }, KvConfig::default()));
        let query = &data.queries[..16];
        let same = estimated(&a, query, true)
            .iter()
            .zip(estimated(&b, query, true))
            .filter(|(x, y)| (**x - y).abs() < 0.01)
            .count();
        assert!(same > 1000, "{same}");
    }

    #[test]
    fn mistakes_are_errors() {
        let config = KvConfig::default;
        assert!(KvIndex::build(&[0.0; 5], &[], 2, config()).is_err());
        assert!(KvIndex::build(&[0.0; 4], &[], 0, config()).is_err());
        assert!(KvIndex::build(&[0.0, f32::NAN], &[], 2, config()).is_err());
        assert!(KvIndex::build(&[0.0; 4], &[], 2, KvConfig { cell: 0, ..config() }).is_err());
        let index = KvIndex::build(&[0.0; 4], &[], 2, config()).unwrap();
        assert!(index.select(&[0.0; 3], 1, &mut Vec::new()).is_err());
        assert!(index.rerank(&[], &[0.0; 2], 1, &mut vec![Selected { token: 0, score: 0.0 }]).is_err());
    }
}
