//! Losses of states and attention inside a model: what its layers compute, not only what it says.
//!
//! These are chains of tensor operations, so that autodiff gives their gradients. Shapes: states `[tokens, features]`,
//! heads `[heads, tokens, width]`, scores `[heads, tokens, tokens]`.

use burn::tensor::{Bool, Tensor, TensorData, activation::log_softmax};

/// Mean squared difference of two tensors of one shape.
pub fn mean_squared<const D: usize>(student: Tensor<D>, teacher: Tensor<D>) -> Tensor<1> {
    (student - teacher).square().mean()
}

/// Mean squared difference of states after linear maps into a common width (right-multiplied): the map learns what of the
/// teacher's state a narrower student should match.
///
/// Sources: Jiao et al., "TinyBERT", arXiv 1909.10351 (one map, of the student only, shared by all layers); Liang et al.,
/// "Less is More" (TED), arXiv 2210.01351 (a map for either side).
pub fn mapped_states(
    student: Tensor<2>,
    student_map: Option<Tensor<2>>,
    teacher: Tensor<2>,
    teacher_map: Option<Tensor<2>>,
) -> Tensor<1> {
    let mapped = |x: Tensor<2>, map: Option<Tensor<2>>| match map {
        Some(map) => x.matmul(map),
        None => x,
    };
    mean_squared(mapped(student, student_map), mapped(teacher, teacher_map))
}

/// Mean squared difference of attention scores before the softmax; masked scores (−100 and below) count as 0 on both sides.
///
/// Source: Jiao et al., "TinyBERT", arXiv 1909.10351.
pub fn attention_scores(student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
    let open = |x: Tensor<3>| x.clone().mask_fill(x.lower_equal_scalar(-100.0), 0.0);
    mean_squared(open(student), open(teacher))
}

/// How tokens relate: `log softmax(X Xᵀ / √width)` of every head, `[heads, tokens, tokens]`; a token sees itself and
/// those before it if `causal`.
pub fn relations(x: Tensor<3>, causal: bool) -> Tensor<3> {
    let [heads, tokens, width] = x.dims();
    let scores = x.clone().matmul(x.swap_dims(1, 2)).div_scalar((width as f64).sqrt());
    let scores = if causal {
        let later: Vec<bool> = (0..tokens).flat_map(|i| (0..tokens).map(move |j| j > i)).collect();
        let mask = Tensor::<2, Bool>::from_data(TensorData::new(later, [tokens, tokens]), &scores.device());
        scores.mask_fill(mask.reshape([1, tokens, tokens]).expand([heads, tokens, tokens]), -1e30)
    } else {
        scores
    };
    log_softmax(scores, 2)
}

/// Mean over heads and tokens of the divergence of the student's relations from the teacher's. Widths may differ, heads
/// and tokens not.
///
/// Sources: Wang et al., "MiniLM", arXiv 2002.10957 (values; and attention itself, for which the logarithms of the
/// attention weights take the place of [`relations`]); "MiniLMv2", arXiv 2012.15828 (queries, keys and values, with heads
/// cut anew by [`relation_heads`]).
pub fn relation_divergence(student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
    let [heads, tokens, _] = teacher.dims();
    // What is masked has probability 0 and a logarithm of −10³⁰: the product is 0.
    (teacher.clone().exp() * (teacher - student)).sum().div_scalar((heads * tokens) as f64)
}

/// States `[tokens, features]` as `count` heads `[count, tokens, features / count]`, whatever heads the model has.
pub fn relation_heads(x: Tensor<2>, count: usize) -> Tensor<3> {
    let [tokens, features] = x.dims();
    x.reshape([tokens, count, features / count]).swap_dims(0, 1)
}

/// Which layers of a teacher a student's layers learn from: for 4 of 12 layers the attention of 2, 5, 8, 11 and the states
/// 0, 3, 6, 9, 12, the embedding being state 0.
///
/// Returns attention layers and states. `None` if the student's depth does not divide the teacher's.
///
/// ```
/// use kindling_distill::loss::features::uniform_layers;
/// assert_eq!(uniform_layers(12, 4), Some((vec![2, 5, 8, 11], vec![0, 3, 6, 9, 12])));
/// assert_eq!(uniform_layers(12, 5), None);
/// ```
pub fn uniform_layers(teacher: usize, student: usize) -> Option<(Vec<usize>, Vec<usize>)> {
    if student == 0 || !teacher.is_multiple_of(student) {
        return None;
    }
    let step = teacher / student;
    Some(((0..student).map(|i| i * step + step - 1).collect(), (0..=student).map(|i| i * step).collect()))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn tracked() -> Device {
        Device::default().autodiff()
    }

    fn value(x: Tensor<1>) -> f32 {
        x.into_scalar::<f32>()
    }

    #[test]
    fn filters_on_both_sides() {
        let device = tracked();
        let teacher = Tensor::<2>::from_data([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], &device);
        let teacher_map = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]], &device);
        let student = Tensor::<2>::from_data([[1.0, 1.0], [2.0, 0.0]], &device).require_grad();
        let student_map = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 2.0]], &device);
        let loss = mapped_states(student.clone(), Some(student_map), teacher, Some(teacher_map));
        assert!((value(loss.clone()) - 3.0625).abs() < 1e-6);
        let gradient = student.grad(&loss.backward()).unwrap().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(gradient, [-0.5, 2.0, 1.25, -1.0]);
    }

    #[test]
    fn masked_scores_do_not_count() {
        let device = Device::default();
        let scores = |rows: [[f32; 2]; 2]| Tensor::<3>::from_data([rows], &device);
        let loss = attention_scores(scores([[0.5, 0.0], [0.0, 1.0]]), scores([[1.0, -1.0], [0.0, 2.0]]));
        assert!((value(loss) - 0.5625).abs() < 1e-6);
        let masked = attention_scores(scores([[0.5, -10_000.5], [0.0, 1.0]]), scores([[1.0, -10_000.0], [0.0, 2.0]]));
        assert!((value(masked) - 0.3125).abs() < 1e-6);
    }

    #[test]
    fn relations_of_values() {
        let device = Device::default();
        let teacher = Tensor::<3>::from_data([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], &device);
        let student = Tensor::<3>::from_data([[[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]], &device);
        let rows = relations(teacher.clone(), false).exp().into_data().try_to_vec::<f32>().unwrap();
        for (found, expected) in rows.iter().zip([0.401112, 0.197776, 0.401112, 0.197776, 0.401112, 0.401112]) {
            assert!((found - expected).abs() < 1e-6);
        }
        let loss = relation_divergence(relations(student.clone(), false), relations(teacher.clone(), false));
        assert!((value(loss) - 0.048025).abs() < 1e-6);
        // Turning all values by one rotation changes no relation.
        let turn = Tensor::<3>::from_data([[[0.6, -0.8], [0.8, 0.6]]], &device);
        let turned = relations(student.clone().matmul(turn), true);
        assert!(value(relation_divergence(turned, relations(student.clone(), true))).abs() < 1e-6);
        // The first token sees itself alone.
        let causal = relations(student, true).exp().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(causal[..3], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn heads_are_cut_anew() {
        let x = Tensor::<2>::from_data([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], &Device::default());
        let heads = relation_heads(x, 2).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(heads, [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
    }
}
