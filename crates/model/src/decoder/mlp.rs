//! The gated MLP.

use burn::tensor::{Tensor, activation, s};
use kindling_tensor_backend::ops::swiglu;

use super::{ForwardCx, Projection};
use crate::config::Activation;
use crate::error::Result;

/// `down(act(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
pub(super) struct GatedMlp {
    pub(super) inputs: GateUp,
    pub(super) down: Projection,
    pub(super) activation: Activation,
}

/// Gate and up.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one per block, and never moved in a hot loop")]
pub(super) enum GateUp {
    Separate { gate: Projection, up: Projection },
    Fused(Projection),
}

impl GatedMlp {
    /// `[batch, tokens, hidden]` → the same shape.
    pub(super) fn forward(&self, x: Tensor<3>, cx: &mut ForwardCx<'_>) -> Result<Tensor<3>> {
        cx.tap(|| self.first().shape.site.clone(), &x)?;
        let (gate, up) = match &self.inputs {
            GateUp::Separate { gate, up } => (gate.forward(x.clone())?, up.forward(x)?),
            GateUp::Fused(both) => {
                let both = both.forward(x)?;
                let inner = both.dims()[2] / 2;
                (both.clone().slice(s![.., .., 0..inner]), both.slice(s![.., .., inner..2 * inner]))
            }
        };
        let inner = match self.activation {
            Activation::Silu => swiglu(gate, up),
            Activation::Gelu => activation::gelu(gate) * up,
            Activation::GeluTanh => gelu_tanh(gate) * up,
        };
        cx.tap(|| self.down.shape.site.clone(), &inner)?;
        self.down.forward(inner)
    }

    fn first(&self) -> &Projection {
        match &self.inputs {
            GateUp::Separate { gate, .. } => gate,
            GateUp::Fused(both) => both,
        }
    }

    pub(super) fn projections_mut(&mut self) -> Vec<&mut Projection> {
        match &mut self.inputs {
            GateUp::Separate { gate, up } => vec![gate, up, &mut self.down],
            GateUp::Fused(both) => vec![both, &mut self.down],
        }
    }

    pub(super) fn projections(&self) -> Vec<&Projection> {
        match &self.inputs {
            GateUp::Separate { gate, up } => vec![gate, up, &self.down],
            GateUp::Fused(both) => vec![both, &self.down],
        }
    }
}

/// GELU by its tanh approximation, as transformers' `gelu_pytorch_tanh`.
fn gelu_tanh(x: Tensor<3>) -> Tensor<3> {
    let cubic = x.clone().powi_scalar(3).mul_scalar(0.044_715) + x.clone();
    let inner = cubic.mul_scalar((2.0 / std::f64::consts::PI).sqrt()).tanh();
    x.mul_scalar(0.5) * inner.add_scalar(1.0)
}
