//! Gradients on their way back from the states to the leaves.

use burn::tensor::Tensor;
use kindling_core::LanguageModel;

use super::{Values, flat};
use crate::error::{DistillError, Result};
use crate::head::HeadGradients;

/// Sends `gradient` of `y`, and of what is added to the loss, back and adds what arrives at the leaves.
pub(super) fn backward(
    y: &Tensor<3>,
    gradient: Tensor<2>,
    added: Option<Tensor<1>>,
    leaves: &[Values],
    sums: &mut [Option<Values>],
) -> burn::tensor::Gradients {
    // A sum with constant weights has just these weights as its gradient.
    let weights = Tensor::from_inner(gradient.reshape(y.dims()));
    let loss = (y.clone() * weights).sum();
    let loss = match added {
        Some(added) => loss + added,
        None => loss,
    };
    let mut grads = loss.backward();
    for (leaf, sum) in leaves.iter().zip(sums) {
        let found = match leaf {
            Values::Vector(x) => x.grad_remove(&mut grads).map(Values::Vector),
            Values::Matrix(x) => x.grad_remove(&mut grads).map(Values::Matrix),
        };
        if let Some(found) = found {
            add(sum, found);
        }
    }
    grads
}

/// As [`backward`], and returns the gradient of `x`.
fn backward_to(
    y: &Tensor<3>,
    gradient: Tensor<2>,
    leaves: &[Values],
    sums: &mut [Option<Values>],
    x: &Tensor<3>,
) -> Result<Tensor<3>> {
    let mut grads = backward(y, gradient, None, leaves, sums);
    x.grad_remove(&mut grads).ok_or_else(|| DistillError::Input("a block does not depend on its input".into()))
}

/// Forward with the inputs of blocks kept only; then block by block back.
pub(super) fn backward_by_blocks(
    model: &dyn LanguageModel,
    ids: &[Vec<u32>],
    leaves: &[Values],
    sums: &mut [Option<Values>],
    score: impl FnOnce(Tensor<3>) -> Result<HeadGradients>,
) -> Result<(f64, Option<Tensor<2>>)> {
    let embedded = model.embed(ids)?;
    let mut inputs = vec![embedded.clone().inner()];
    for index in 0..model.block_count() {
        let x = Tensor::from_inner(inputs[index].clone());
        inputs.push(model.block(index, x, None)?.inner());
    }
    let leaf = |x: &Tensor<3>| Tensor::from_inner(x.clone()).require_grad();
    let last = leaf(&inputs[model.block_count()]);
    let states = model.last_norm(last.clone());
    let found = score(states.clone())?;
    let mut gradient = backward_to(&states, found.states, leaves, sums, &last)?;
    for index in (0..model.block_count()).rev() {
        let x = leaf(&inputs[index]);
        let y = model.block(index, x.clone(), None)?;
        gradient = backward_to(&y, flat(gradient), leaves, sums, &x)?;
    }
    if embedded.is_tracked() {
        backward(&embedded, flat(gradient), None, leaves, sums);
    }
    Ok((found.loss, found.matrix))
}

pub(super) fn add(sum: &mut Option<Values>, more: Values) {
    *sum = Some(match (sum.take(), more) {
        (Some(Values::Vector(a)), Values::Vector(b)) => Values::Vector(a + b),
        (Some(Values::Matrix(a)), Values::Matrix(b)) => Values::Matrix(a + b),
        (_, more) => more,
    });
}
