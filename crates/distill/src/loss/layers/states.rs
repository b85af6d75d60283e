//! States between the blocks: mean squared difference, every block's output with that of the teacher's block it stands for.
//!
//! Where the widths differ the student's states go through one learnt linear map, shared by all layers, that is dropped
//! after training. The embedding is the first state. The student's depth must divide the teacher's.

use burn::tensor::Tensor;

use super::{Compare, Depths, LayerEntry, LayerOptions, mean_squared};
use crate::error::Result;

/// What lists show.
pub(super) const ENTRY: LayerEntry = LayerEntry {
    name: "states",
    summary: "squared difference of the states between blocks, through a learnt map where widths differ",
    paper: "TinyBERT: Distilling BERT for Natural Language Understanding, arXiv 1909.10351",
    pairs,
    compare: Compare::States(mean_squared),
};

fn pairs(depths: Depths, _: &LayerOptions) -> Result<Vec<[usize; 2]>> {
    let step = depths.step(ENTRY.name)?;
    Ok((0..=depths.student).map(|i| [i, i * step]).collect())
}

/// Mean squared difference of states after linear maps into a common width (right-multiplied): the map learns what of the
/// teacher's state a narrower student should match.
///
/// Sources: TinyBERT (one map, of the student only); Liang et al., "Less is More" (TED), arXiv 2210.01351 (a map for either
/// side).
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn filters_on_both_sides() {
        let device = Device::default().autodiff();
        let teacher = Tensor::<2>::from_data([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], &device);
        let teacher_map = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]], &device);
        let student = Tensor::<2>::from_data([[1.0, 1.0], [2.0, 0.0]], &device).require_grad();
        let student_map = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 2.0]], &device);
        let loss = mapped_states(student.clone(), Some(student_map), teacher, Some(teacher_map));
        assert!((loss.clone().into_scalar::<f32>() - 3.0625).abs() < 1e-6);
        let gradient = student.grad(&loss.backward()).unwrap().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(gradient, [-0.5, 2.0, 1.25, -1.0]);
    }

    #[test]
    fn the_embedding_is_the_first_state() {
        let pairs = |student, teacher| pairs(Depths { student, teacher }, &LayerOptions::default());
        let teachers: Vec<usize> = pairs(4, 12).unwrap().iter().map(|pair| pair[1]).collect();
        assert_eq!(teachers, [0, 3, 6, 9, 12]);
        let uneven = pairs(5, 12).unwrap_err().to_string();
        assert!(uneven.contains("5 blocks") && uneven.contains("12"), "{uneven}");
    }
}
