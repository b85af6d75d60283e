//! Keys and queries of one attention head, made of topics and noise.

use super::rng::{SplitMix64, exp, ln};

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvSetting {
    /// Tokens.
    pub tokens: usize,
    /// Width of a head.
    pub dim: usize,
    /// Topics that tokens and queries belong to; 0: a single one at the origin.
    pub topics: usize,
    /// Noise on keys.
    pub key_noise: f64,
    /// Noise on queries.
    pub query_noise: f64,
    /// Seed.
    pub seed: u64,
}

/// Rows of one head, in the order of time.
#[derive(Debug, Clone)]
pub struct KvData {
    /// Width of a row.
    pub dim: usize,
    /// `[tokens, dim]`.
    pub keys: Vec<f32>,
    /// `[192, dim]`: the last queries of the prompt.
    pub prefill: Vec<f32>,
    /// `[64, dim]`: queries to answer. They are scaled already: the logit is `q · k`.
    pub queries: Vec<f32>,
}

const QUERIES: usize = 256;
const PREFILL: usize = 192;

impl KvSetting {
    fn stream(&self, j: u64) -> SplitMix64 {
        SplitMix64::new(1000 * self.seed + j)
    }

    /// Keys and queries.
    pub fn generate(&self) -> KvData {
        let (keys, queries, _) = self.rows();
        let (prefill, queries) = queries.split_at(PREFILL * self.dim);
        let single = |rows: &[f64]| rows.iter().map(|&x| x as f32).collect();
        KvData { dim: self.dim, keys: single(&keys), prefill: single(prefill), queries: single(queries) }
    }

    /// Values `[tokens, dim]`, standard normal.
    pub fn values(&self) -> Vec<f32> {
        let mut rng = self.stream(8);
        (0..self.tokens * self.dim).map(|_| rng.normal() as f32).collect()
    }

    /// Keys `[tokens, dim]`, queries `[256, dim]`, the topic of every token.
    fn rows(&self) -> (Vec<f64>, Vec<f64>, Vec<u64>) {
        let d = self.dim;
        let scale: Vec<f64> = (1..=d).map(|i| exp(-0.4 * ln(i as f64))).collect();
        let rotation = orthonormal(d, &mut self.stream(0));

        let mut rng = self.stream(1);
        let topics = if self.topics == 0 {
            vec![0.0; d]
        } else {
            (0..self.topics * d).map(|i| scale[i % d] * rng.normal()).collect()
        };
        let topic = |t: u64| &topics[t as usize * d..][..d];
        let topic_count = self.topics.max(1) as u64;

        let mut rng = self.stream(2);
        let mut topic_of = Vec::with_capacity(self.tokens);
        while topic_of.len() < self.tokens {
            let run = 1 + (ln(1.0 - rng.f64()) / ln(39.0 / 40.0)).floor() as usize;
            let t = rng.below(topic_count);
            topic_of.extend(std::iter::repeat_n(t, run.min(self.tokens - topic_of.len())));
        }

        let row = |strength: f64, t: u64, noise: f64, shift: f64, rng: &mut SplitMix64| {
            let plain: Vec<f64> = (0..d).map(|i| strength * topic(t)[i] + noise * (scale[i] * rng.normal())).collect();
            // Row vector times the transposed rotation, then the mean on the first four coordinates.
            let rotated = rotation.chunks_exact(d).enumerate().map(|(i, axis)| {
                let dot: f64 = axis.iter().zip(&plain).map(|(a, b)| a * b).sum();
                dot + if i < 4 { shift } else { 0.0 }
            });
            rotated.collect::<Vec<f64>>()
        };
        let mut rng = self.stream(3);
        let keys: Vec<f64> = topic_of.iter().flat_map(|&t| row(1.0, t, self.key_noise, 4.0, &mut rng)).collect();
        let mut rng = self.stream(4);
        let asked: Vec<u64> = (0..QUERIES).map(|_| rng.below(topic_count)).collect();
        let mut rng = self.stream(5);
        let queries = asked.iter().flat_map(|&t| row(1.2, t, self.query_noise, -2.0, &mut rng)).collect();
        (keys, queries, topic_of)
    }
}

/// Gram–Schmidt of the rows of a random matrix `[d, d]`.
fn orthonormal(d: usize, rng: &mut SplitMix64) -> Vec<f64> {
    let mut rows: Vec<f64> = (0..d * d).map(|_| rng.normal()).collect();
    for i in 0..d {
        let (before, rest) = rows.split_at_mut(i * d);
        let row = &mut rest[..d];
        for earlier in before.chunks_exact(d) {
            let dot: f64 = earlier.iter().zip(&*row).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(earlier).for_each(|(x, e)| *x -= dot * e);
        }
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(tokens: usize, dim: usize) -> KvSetting {
        KvSetting { tokens, dim, topics: 200, key_noise: 0.9, query_noise: 0.8, seed: 42 }
    }

    #[test]
    fn rows_are_the_published_ones() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-8, "{a} {b}");
        let (keys, queries, topics) = setting(8192, 64).rows();
        near(keys[0], 3.440_840_147);
        near(keys[1], 3.691_932_841);
        near(keys[8192 * 64 - 1], -0.399_416_038);
        near(queries[0], -1.861_268_351);
        near(queries[256 * 64 - 1], -0.230_920_091);
        assert_eq!(topics.iter().sum::<u64>(), 855_432);
        assert_eq!(topics[0], 150);

        let (keys, queries, topics) = setting(32_768, 128).rows();
        near(keys[0], 3.419_228_734);
        near(keys[1], 4.237_917_777);
        near(keys[32_768 * 128 - 1], -0.328_582_827);
        near(queries[0], -1.550_546_218);
        near(queries[256 * 128 - 1], 0.013_578_665);
        assert_eq!(topics.iter().sum::<u64>(), 3_343_771);
    }
}
