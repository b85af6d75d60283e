//! A loaded block made ready to run: packed weights laid out for the processor, and projections of one input as one product.

use burn::tensor::Tensor;
use kindling_core::{LayerShape, Role};
use kindling_tensor_backend::formats::{Half, Tiled, Weight};
use kindling_tensor_backend::kernels::Arithmetic;

use super::attention::Inputs;
use super::block::{DecoderBlock, Mlp};
use super::mlp::GateUp;
use super::{Decoder, Projection};

impl Decoder {
    /// Chooses how packed weights meet their inputs: rounded to 8 bits, as fast as the memory gives the weights, or in f32
    /// (the choice of a loaded model).
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) {
        self.ends.set_arithmetic(arithmetic);
        for projection in self.blocks.iter_mut().flat_map(DecoderBlock::projections_mut) {
            let chosen = |weight: &Weight| match weight {
                Weight::Tiled(tiled) => Some(Weight::Tiled(tiled.clone().with_arithmetic(arithmetic))),
                _ => None,
            };
            match &mut projection.weight {
                Weight::Adapted(adapted) => {
                    if let Some(base) = chosen(adapted.base()) {
                        adapted.hold_base_as(base);
                    }
                }
                weight => {
                    if let Some(chosen) = chosen(weight) {
                        *weight = chosen;
                    }
                }
            }
        }
    }
}

impl DecoderBlock {
    /// Lays packed weights out for the processor; then queries, keys and values become one projection, gate and up another,
    /// where their formats allow it. No value changes.
    pub(super) fn stack(&mut self) {
        for projection in self.projections_mut() {
            let base = match &projection.weight {
                Weight::Adapted(adapted) => adapted.base(),
                weight => weight,
            };
            let Weight::Packed(packed) = base else { continue };
            let Some(tiled) = Tiled::from_packed(packed, Arithmetic::F32).map(Weight::Tiled) else { continue };
            match &mut projection.weight {
                Weight::Adapted(adapted) => adapted.hold_base_as(tiled),
                weight => *weight = tiled,
            }
        }
        if let Inputs::Separate { query, key, value, norms } = &self.attention.inputs
            && let Some(qkv) = stacked(&[query, key, value], "self_attn.qkv_proj", Role::QueryKeyValue)
        {
            self.attention.inputs = Inputs::Fused { qkv, norms: norms.clone() };
        }
        if let Mlp::Gated(mlp) = &mut self.mlp
            && let GateUp::Separate { gate, up } = &mlp.inputs
            && let Some(both) = stacked(&[gate, up], "mlp.gate_up_proj", Role::GateUp)
        {
            mlp.inputs = GateUp::Fused(both);
        }
    }
}

/// One projection with the outputs of all parts in turn.
fn stacked(parts: &[&Projection], name: &str, role: Role) -> Option<Projection> {
    let tiled = |part: &&Projection| if let Weight::Tiled(tiled) = &part.weight { Some(tiled.clone()) } else { None };
    let half = |part: &&Projection| if let Weight::Half(half) = &part.weight { Some(half.clone()) } else { None };
    let weight = if let Some(weights) = parts.iter().map(tiled).collect::<Option<Vec<Tiled>>>() {
        Weight::Tiled(Tiled::stacked(&weights.iter().collect::<Vec<_>>())?)
    } else {
        let weights: Vec<Half> = parts.iter().map(half).collect::<Option<_>>()?;
        Weight::Half(Half::stacked(&weights.iter().collect::<Vec<_>>())?)
    };
    let biases: Vec<Tensor<1>> = parts.iter().filter_map(|part| part.bias.clone()).collect();
    let bias = match biases.len() {
        0 => None,
        count if count == parts.len() => Some(Tensor::cat(biases, 0)),
        _ => return None,
    };
    let [rows, cols] = weight.shape();
    let site = parts[0].shape.site.clone();
    let shape = LayerShape { name: name.into(), role, unit: 0, site, rows, cols };
    Some(Projection { shape, weight, bias })
}
