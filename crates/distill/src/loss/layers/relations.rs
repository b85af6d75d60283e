//! How the queries, the keys and the values of a block relate among each other: divergence of the student's from the
//! teacher's, with heads cut anew, so that numbers of heads and widths may differ.
//!
//! Queries and keys are compared as attention reads them, with their positions applied.

use burn::tensor::Tensor;
use kindling_core::AttentionInputs;

use super::{Compare, LayerEntry, LayerOptions, last_block, relation_divergence, relations};
use crate::error::{DistillError, Result};

/// What lists show.
pub(super) const ENTRY: LayerEntry = LayerEntry {
    name: "relations",
    summary: "divergence of how queries, keys and values relate, with heads cut anew",
    paper: "MiniLMv2: Multi-Head Self-Attention Relation Distillation, arXiv 2012.15828",
    pairs: last_block,
    compare: Compare::Attention(compare),
};

fn compare(student: &AttentionInputs, teacher: &AttentionInputs, options: &LayerOptions) -> Result<Tensor<1>> {
    let count = options.relation_heads;
    let each = [
        ("queries", &student.queries, &teacher.queries),
        ("keys", &student.keys, &teacher.keys),
        ("values", &student.values, &teacher.values),
    ];
    let mut sum: Option<Tensor<1>> = None;
    for (what, student, teacher) in each {
        let of = |x: &Tensor<4>| Ok::<_, DistillError>(relations(relation_heads(x.clone(), count, what)?, true));
        let part = relation_divergence(of(student)?, of(teacher)?);
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }
    sum.ok_or_else(|| DistillError::Input("nothing to relate".into()))
}

/// `[rows, heads, tokens, width]` as `count` heads of every row, whatever heads the model has:
/// `[rows · count, tokens, heads · width / count]`.
///
/// # Errors
/// `count` does not divide what all heads have together; `what` names it.
pub fn relation_heads(x: Tensor<4>, count: usize, what: &str) -> Result<Tensor<3>> {
    let [rows, heads, tokens, width] = x.dims();
    let features = heads * width;
    if count == 0 || !features.is_multiple_of(count) {
        return Err(DistillError::Input(format!(
            "{count} relation heads do not divide the {features} features of the {what}: choose a divisor"
        )));
    }
    let joined = x.swap_dims(1, 2).reshape([rows, tokens, count, features / count]);
    Ok(joined.swap_dims(1, 2).reshape([rows * count, tokens, features / count]))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn heads_are_cut_anew() {
        // One row, one head, two tokens of four features.
        let x = Tensor::<4>::from_data([[[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]]], &Device::default());
        let heads = relation_heads(x.clone(), 2, "keys").unwrap().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(heads, [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
        // Cut from two heads of two it is the same.
        let two = x.reshape([1, 2, 2, 2]).swap_dims(1, 2);
        let again = relation_heads(two, 2, "keys").unwrap().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(again, [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
        let uneven = relation_heads(Tensor::zeros([1, 1, 1, 4], &Device::default()), 3, "keys").unwrap_err();
        assert!(uneven.to_string().contains("3 relation heads"), "{uneven}");
    }
}
