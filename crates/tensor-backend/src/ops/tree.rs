//! Attention of a tree of tokens: drafts that share a beginning, behind the same text.
//!
//! A query sees what is older than the tree, its ancestors and itself. Its scores are brought side by side before the softmax, in
//! the order in which the tokens would stand if they were the text: the result has the bits of decoding them one by one.

use burn::tensor::Tensor;
use kindling_core::AttendSpec;
use rayon::prelude::*;

use super::attention::{masked_reference, softmax_row};
use super::few_rows;
use super::rows::Rows;
use super::simd::vectorised;

/// The plain twin: all scores, a mask, a softmax. Shapes as in [`attention_reference`](super::attention_reference);
/// `parents[t]` is the earlier of the newest positions that position `t` follows, `None` the older text.
pub fn attention_tree_reference(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    parents: &[Option<usize>],
    spec: &AttendSpec,
) -> Tensor<4> {
    let older = k.dims()[2] - parents.len();
    let mut hidden = Vec::with_capacity(parents.len() * (older + parents.len()));
    for path in paths(older, parents, spec.window) {
        let seen = |position: usize| match position.checked_sub(older) {
            None => position >= path.oldest,
            Some(node) => path.nodes.contains(&node),
        };
        hidden.extend((0..older + parents.len()).map(|position| !seen(position)));
    }
    masked_reference(q, k, v, hidden, spec)
}

/// What a node sees.
struct Path {
    /// The first of the older positions; their number, if it sees none.
    oldest: usize,
    /// Its ancestors and itself, ascending, as far as its window reaches.
    nodes: Vec<usize>,
}

fn paths(older: usize, parents: &[Option<usize>], window: Option<usize>) -> Vec<Path> {
    let mut depths: Vec<usize> = Vec::with_capacity(parents.len());
    let path = |(t, parent): (usize, &Option<usize>)| {
        depths.push(parent.map_or(0, |parent| depths[parent] + 1));
        let oldest = window.map_or(0, |w| (older + depths[t] + 1).saturating_sub(w));
        let mut nodes = Vec::with_capacity(depths[t] + 1);
        let mut at = Some(t);
        while let Some(node) = at.filter(|&node| older + depths[node] >= oldest) {
            nodes.push(node);
            at = parents[node];
        }
        nodes.reverse();
        Path { oldest: oldest.min(older), nodes }
    };
    parents.iter().enumerate().map(path).collect()
}

vectorised! {
    /// Scores `[rows, keys]` become weights in place; row `r` is node `r % paths` of the tree behind `older` keys.
    fn softmax_paths(scores: &mut [f32], older: usize, paths: &[Path], softcap: Option<f32>) {
        let keys = older + paths.len();
        for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
            let Path { oldest, nodes } = &paths[row % paths.len()];
            // A node stands nowhere before its place in the path: nothing is overwritten that is still to be moved.
            for (place, node) in nodes.iter().enumerate() {
                scores[older + place] = scores[older + node];
            }
            scores[..*oldest].fill(0.0);
            softmax_row::<FMA>(&mut scores[*oldest..older + nodes.len()], softcap);
            let mut end = keys;
            for (place, &node) in nodes.iter().enumerate().rev() {
                let weight = scores[older + place];
                scores[older + node + 1..end].fill(0.0);
                scores[older + node] = weight;
                end = older + node;
            }
            scores[older..end].fill(0.0);
        }
    }
}

/// The output `[batch, heads, tokens, value width]`.
pub(super) fn forward(
    q: &Rows<'_>,
    k: &Rows<'_>,
    v: &Rows<'_>,
    parents: &[Option<usize>],
    spec: &AttendSpec,
) -> Vec<f32> {
    let ([batch, heads, tokens, width], [_, kv_heads, keys, _], value_width) = (q.shape, k.shape, v.shape[3]);
    let (group, older) = (heads / kv_heads, keys - tokens);
    let paths = paths(older, parents, spec.window);
    let mut out = vec![0.0; batch * heads * tokens * value_width];
    out.par_chunks_mut((group * tokens * value_width).max(1)).enumerate().for_each(|(i, out)| {
        let (b, kv) = (i / kv_heads, i % kv_heads);
        let rows = group * tokens;
        let mut queries = Vec::with_capacity(rows * width);
        for row in 0..rows {
            let query = q.row(b, kv * group + row / tokens, row % tokens);
            queries.extend(query.iter().map(|x| x * spec.scale as f32));
        }
        let mut scores = vec![0.0; rows * keys];
        few_rows::dots(&queries, k.matrix(b, kv, 0, keys), k.token_stride(), width, keys, &mut scores);
        softmax_paths(&mut scores, older, &paths, spec.softcap.map(|cap| cap as f32));
        few_rows::sums(&scores, v.matrix(b, kv, 0, keys), v.token_stride(), value_width, keys, out);
    });
    out
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Device, TensorData, s};
    use proptest::prelude::*;

    use super::super::{attention, attention_tree};
    use super::*;

    fn wave(shape: [usize; 4], phase: f32) -> Tensor<4> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i as f32 + phase) * 0.71).sin() * 2.0).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn trees_are_their_twin_and_paths_have_the_bits_of_single_tokens(
            kv_heads in 1usize..3, group in 1usize..5, width in 1usize..40, older in 0usize..70,
            choices in prop::collection::vec(any::<u8>(), 1..20), window in prop::option::of(1usize..60),
            softcap in prop::option::of(1.0f64..5.0),
        ) {
            let tokens = choices.len();
            // A parent among the earlier ones, or the text.
            let parents: Vec<Option<usize>> =
                choices.iter().enumerate().map(|(t, &c)| (c as usize % (t + 1)).checked_sub(1)).collect();
            // As models scale: scores of a hundred would lose digits on both sides.
            let spec = AttendSpec { scale: (width as f64).sqrt().recip(), softcap, window };
            let (heads, keys) = (kv_heads * group, older + tokens);
            let (q, k) = (wave([1, heads, tokens, width], 0.0), wave([1, kv_heads, keys, width], 5.0));
            let v = wave([1, kv_heads, keys, width + 3], 9.0);
            let found = attention_tree(q.clone(), k.clone(), v.clone(), &parents, &spec);
            let twin = attention_tree_reference(q.clone(), k.clone(), v.clone(), &parents, &spec);
            let worst = (found.clone() - twin).abs().max().into_scalar::<f32>();
            prop_assert!(worst < 1e-5, "{worst}");

            // The last node's path as a text of its own.
            let path = paths(older, &parents, None).pop().unwrap().nodes;
            let alone = |x: &Tensor<4>| {
                let mut parts = vec![x.clone().slice(s![.., .., 0..older, ..])];
                parts.extend(path.iter().map(|&node| x.clone().slice(s![.., .., older + node..older + node + 1, ..])));
                Tensor::cat(parts, 2)
            };
            let query = q.slice(s![.., .., tokens - 1..tokens, ..]);
            let single = attention(query, alone(&k), alone(&v), &spec).into_data();
            found.slice(s![.., .., tokens - 1..tokens, ..]).into_data().assert_eq(&single, true);
        }

        #[test]
        fn a_chain_has_the_bits_of_single_tokens(
            kv_heads in 1usize..3, group in 1usize..5, width in 1usize..40, older in 0usize..70, tokens in 1usize..33,
            window in prop::option::of(1usize..60),
        ) {
            let spec = AttendSpec { scale: 0.4, softcap: None, window };
            let keys = older + tokens;
            let (q, k) = (wave([1, kv_heads * group, tokens, width], 0.0), wave([1, kv_heads, keys, width], 5.0));
            let whole = attention(q.clone(), k.clone(), k.clone(), &spec);
            for t in 0..tokens {
                let seen = k.clone().slice(s![.., .., 0..older + t + 1, ..]);
                let single = attention(q.clone().slice(s![.., .., t..t + 1, ..]), seen.clone(), seen, &spec).into_data();
                whole.clone().slice(s![.., .., t..t + 1, ..]).into_data().assert_eq(&single, true);
            }
        }
    }
}
