//! A loaded block made ready to run: packed weights laid out for the device, and projections of one input as one product.

use burn::tensor::{Device, Tensor};
use kindling_core::{LayerShape, Role};
use kindling_tensor_backend::formats::Weight;
use kindling_tensor_backend::kernels::Arithmetic;

use std::sync::Arc;

use super::attention::Inputs;
use super::block::{DecoderBlock, Mlp};
use super::host::HostDecoder;
use super::mlp::GateUp;
use super::{Decoder, Projection};

impl Decoder {
    /// Chooses how packed weights on the processor meet their inputs: rounded to 8 bits, as fast as the memory gives the
    /// weights, or in f32 (the choice of a loaded model).
    pub fn set_arithmetic(&mut self, arithmetic: Arithmetic) {
        self.ends.set_arithmetic(arithmetic);
        for projection in self.blocks.iter_mut().flat_map(DecoderBlock::projections_mut) {
            projection.weight.set_arithmetic(arithmetic);
        }
        if self.host.is_some() {
            self.host = HostDecoder::of(self).map(Arc::new);
        }
    }
}

impl DecoderBlock {
    /// Lays packed weights out for the device; then queries, keys and values become one projection, gate and up another,
    /// where their formats allow it. No value changes.
    pub(super) fn stack(&mut self, device: &Device) {
        for projection in self.projections_mut() {
            let weight = match &mut projection.weight {
                Weight::Adapted(adapted) => adapted.base_mut(),
                weight => weight,
            };
            if let Some(ready) = weight.laid_out(device) {
                *weight = ready;
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
    let weight = Weight::stacked(&parts.iter().map(|part| &part.weight).collect::<Vec<_>>())?;
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
