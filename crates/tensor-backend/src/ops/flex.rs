//! The kernels as operations of the Flex backend, and their gradients for autodiff.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchTensorKind, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Bytes, DType, Int, Shape, Tensor};
use burn_flex::{FlexTensor, Layout};
use kindling_core::AttendSpec;

use super::rows::Rows;
use super::{
    attention as attention_kernel, cross_entropy as cross_entropy_kernel, product as product_kernel,
    rms_norm as norm_kernel, tree as tree_kernel,
};
use super::{rotary as rotary_kernel, swiglu as swiglu_kernel};

/// Whether the kernels can take this tensor.
pub(super) fn has_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32
        && match x.clone().into_dispatch().kind {
            DispatchTensorKind::Flex(_) => true,
            #[cfg(feature = "autodiff")]
            DispatchTensorKind::Autodiff(inner) => matches!(*inner, DispatchTensorKind::Flex(_)),
            #[allow(unreachable_patterns, reason = "reached in builds with more backends")]
            _ => false,
        }
}

/// Whether the tensor belongs to autodiff.
pub(super) fn is_tracked<const D: usize>(x: &Tensor<D>) -> bool {
    !matches!(x.clone().into_dispatch().kind, DispatchTensorKind::Flex(_))
}

pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, eps: f64) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::rms_norm(x.into_dispatch(), gain.into_dispatch(), eps as f32))
}

pub(super) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

pub(super) fn rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let (x, cos, sin) = (x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::rotary(x, cos, sin))
}

pub(super) fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, spec: &AttendSpec) -> Tensor<4> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::attention(q, k, v, spec.clone()))
}

/// None is tracked by autodiff.
pub(super) fn attention_tree(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    parents: &[Option<usize>],
    spec: &AttendSpec,
) -> Tensor<4> {
    let flex = |x: Tensor<4>| with_rows(x.try_into_primitive::<Flex>().expect("the wrapper looked"));
    let (q, k, v) = (flex(q), flex(k), flex(v));
    let (q, k, v) = (rows(&q), rows(&k), rows(&v));
    let [batch, heads, tokens, _] = q.shape;
    let shape = [batch, heads, tokens, v.shape[3]];
    let out = tree_kernel::forward(&q, &k, &v, parents, spec);
    Tensor::from_primitive::<Flex>(heads_inside(attention_kernel::tokens_first(&out, shape), shape))
}

/// `logits` are not tracked by autodiff.
pub(super) fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> (Tensor<1>, Tensor<2>) {
    let [rows, vocabulary] = logits.dims();
    let labels = labels.into_data().convert::<i32>().try_into_vec::<i32>().expect("just converted");
    let primitive = logits.try_into_primitive::<Flex>().expect("the wrapper looked");
    let mut logits = primitive.to_contiguous();
    drop(primitive);
    let losses =
        cross_entropy_kernel::in_place(&mut logits.storage_mut::<f32>()[..rows * vocabulary], vocabulary, &labels);
    (Tensor::from_primitive::<Flex>(tensor(losses, Shape::new([rows]))), Tensor::from_primitive::<Flex>(logits))
}

/// Neither is tracked by autodiff.
pub(super) fn product(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let ([rows, _], [_, outputs]) = (x.dims(), weight.dims());
    let flex = |x: Tensor<2>| x.try_into_primitive::<Flex>().expect("the wrapper looked");
    let (x, weight) = (flex(x).to_contiguous(), HostMatrix::new(flex(weight)));
    Tensor::from_primitive::<Flex>(tensor(weight.few(values(&x), rows), Shape::new([rows, outputs])))
}

/// A matrix `[in, out]` of f32 whose memory the product of a few rows reads as it lies.
#[derive(Debug, Clone)]
pub struct HostMatrix {
    weight: FlexTensor,
    by_outputs: bool,
}

impl HostMatrix {
    /// `None` for a tensor that is elsewhere, or tracked by autodiff.
    pub(crate) fn of(matrix: &Tensor<2>) -> Option<Self> {
        let here = has_kernels(matrix) && !is_tracked(matrix);
        here.then(|| Self::new(matrix.clone().try_into_primitive::<Flex>().expect("just looked")))
    }

    fn new(weight: FlexTensor) -> Self {
        let (inputs, outputs) = (weight.shape()[0] as isize, weight.shape()[1] as isize);
        let by_inputs = *weight.layout().strides() == [outputs, 1];
        let by_outputs = !by_inputs && *weight.layout().strides() == [1, inputs];
        Self { weight: if by_inputs || by_outputs { weight } else { weight.to_contiguous() }, by_outputs }
    }

    /// `[out, in]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.weight.shape()[1], self.weight.shape()[0]]
    }

    fn layout(&self) -> product_kernel::Layout<'_> {
        let [outputs, inputs] = self.shape();
        let held = &self.weight.storage::<f32>()[self.weight.layout().start_offset()..][..inputs * outputs];
        match self.by_outputs {
            true => product_kernel::Layout::Outputs(held),
            false => product_kernel::Layout::Inputs(held),
        }
    }

    fn few(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let [outputs, inputs] = self.shape();
        product_kernel::forward(x, rows, inputs, outputs, self.layout())
    }

    /// `[rows, in]` to `[rows, out]`, for a few rows.
    pub(crate) fn product(&self, x: &[f32], rows: usize, out: &mut [f32]) {
        match rows {
            1 => product_kernel::row(x, self.layout(), out),
            _ => out.copy_from_slice(&self.few(x, rows)),
        }
    }

    /// The weights of output `i`.
    pub(crate) fn row(&self, i: usize, out: &mut [f32]) {
        let [outputs, inputs] = self.shape();
        match self.layout() {
            product_kernel::Layout::Outputs(held) => out.copy_from_slice(&held[i * inputs..][..inputs]),
            product_kernel::Layout::Inputs(held) => {
                out.iter_mut().zip(held[i..].iter().step_by(outputs)).for_each(|(out, x)| *out = *x);
            }
        }
    }
}

/// Operations that Flex computes in one pass. Inputs are f32.
#[backend_extension(Flex, Autodiff: cfg(feature = "autodiff"))]
pub(super) trait FusedOps: Backend {
    fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: AttendSpec,
    ) -> FloatTensor<Self>;
}

impl FusedOps for Flex {
    fn rms_norm(x: FlexTensor, gain: FlexTensor, eps: f32) -> FlexTensor {
        let (x, gain) = (x.to_contiguous(), gain.to_contiguous());
        tensor(norm_kernel::forward(values(&x), values(&gain), eps), x.shape())
    }

    fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        tensor(swiglu_kernel::forward(values(&gate), values(&up)), gate.shape())
    }

    fn rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        turned(x, cos, sin, 1.0)
    }

    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, spec: AttendSpec) -> FlexTensor {
        attend(&with_rows(q), &with_rows(k), &with_rows(v), &spec).0
    }
}

fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("made contiguous, and f32 by the wrapper's check")
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// `x` in a layout that [`rows`] can read.
fn with_rows(x: FlexTensor) -> FlexTensor {
    let strides = x.layout().strides();
    if strides[3] == 1 && strides.iter().all(|&stride| stride >= 0) { x } else { x.to_contiguous() }
}

fn rows(x: &FlexTensor) -> Rows<'_> {
    let (shape, strides) = (x.shape(), x.layout().strides());
    Rows {
        shape: [shape[0], shape[1], shape[2], shape[3]],
        values: &x.storage()[x.layout().start_offset()..],
        strides: [strides[0] as usize, strides[1] as usize, strides[2] as usize],
    }
}

/// `[batch, heads, tokens, width]`, in memory in the order `[batch, tokens, heads, width]`.
fn heads_inside(values: Vec<f32>, [batch, heads, tokens, width]: [usize; 4]) -> FlexTensor {
    tensor(values, Shape::new([batch, tokens, heads, width])).transpose(1, 2)
}

fn turned(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, direction: f32) -> FlexTensor {
    let (x, cos, sin) = (with_rows(x), cos.to_contiguous(), sin.to_contiguous());
    let half = cos.shape()[3];
    let x = rows(&x);
    heads_inside(rotary_kernel::rotate(&x, values(&cos), values(&sin), half, direction), x.shape)
}

/// The output and the logarithms of the sums.
fn attend(q: &FlexTensor, k: &FlexTensor, v: &FlexTensor, spec: &AttendSpec) -> (FlexTensor, FlexTensor) {
    let (q, k, v) = (rows(q), rows(k), rows(v));
    let [batch, heads, tokens, _] = q.shape;
    let (out, sums) = attention_kernel::forward(&q, &k, &v, spec);
    let shape = [batch, heads, tokens, v.shape[3]];
    let out = heads_inside(attention_kernel::tokens_first(&out, shape), shape);
    (out, tensor(sums, Shape::new([batch, heads, tokens])))
}

#[cfg(feature = "autodiff")]
mod gradients {
    use burn::backend::autodiff::{
        Autodiff, NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    };

    use super::*;

    /// An operation that saves a state for its backward pass.
    macro_rules! differentiable {
        ($backward:expr, [$($input:ident),+], |$($value:ident),+| $forward:expr) => {
            match $backward.prepare::<C>([$($input.node()),+]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => {
                    $(let $value = $input.into_primitive();)+
                    let (state, output) = $forward;
                    prep.finish(state, output)
                }
                OpsKind::UnTracked(prep) => {
                    $(let $value = $input.into_primitive();)+
                    let (_, output) = $forward;
                    prep.finish(output)
                }
            }
        };
    }

    impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
        fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
            differentiable!(RmsNormBackward(eps), [x, gain], |x, gain| {
                ((x.clone(), gain.clone()), Flex::rms_norm(x, gain, eps))
            })
        }

        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            differentiable!(SwigluBackward, [gate, up], |gate, up| {
                ((gate.clone(), up.clone()), Flex::swiglu(gate, up))
            })
        }

        fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
            let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
            differentiable!(RotaryBackward, [x], |x| {
                ((cos.clone(), sin.clone()), Flex::rotary(x, cos.clone(), sin.clone()))
            })
        }

        fn attention(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            spec: AttendSpec,
        ) -> FloatTensor<Self> {
            differentiable!(AttentionBackward(spec.clone()), [q, k, v], |q, k, v| {
                let (q, k, v) = (with_rows(q), with_rows(k), with_rows(v));
                let (out, sums) = attend(&q, &k, &v, &spec);
                (([q, k, v, out.clone()], sums), out)
            })
        }
    }

    #[derive(Debug)]
    struct RmsNormBackward(f32);

    impl Backward<Flex, 2> for RmsNormBackward {
        type State = (FlexTensor, FlexTensor);

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
            let (x, gain) = (ops.state.0.to_contiguous(), ops.state.1.to_contiguous());
            let (dx, dgain) = norm_kernel::backward(values(&x), values(&gain), values(&dy), self.0);
            register(
                grads,
                ops.parents.map(|node| node.map(|node| node.id)),
                [tensor(dx, x.shape()), tensor(dgain, gain.shape())],
            );
        }
    }

    #[derive(Debug)]
    struct SwigluBackward;

    impl Backward<Flex, 2> for SwigluBackward {
        type State = (FlexTensor, FlexTensor);

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
            let (gate, up) = (ops.state.0.to_contiguous(), ops.state.1.to_contiguous());
            let (dgate, dup) = swiglu_kernel::backward(values(&gate), values(&up), values(&dy));
            register(
                grads,
                ops.parents.map(|node| node.map(|node| node.id)),
                [tensor(dgate, gate.shape()), tensor(dup, up.shape())],
            );
        }
    }

    #[derive(Debug)]
    struct RotaryBackward;

    impl Backward<Flex, 1> for RotaryBackward {
        type State = (FlexTensor, FlexTensor);

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let dy = grads.consume::<Flex>(&ops.node);
            let (cos, sin) = ops.state;
            register(grads, ops.parents.map(|node| node.map(|node| node.id)), [turned(dy, cos, sin, -1.0)]);
        }
    }

    #[derive(Debug)]
    struct AttentionBackward(AttendSpec);

    impl Backward<Flex, 3> for AttentionBackward {
        /// Queries, keys, values and the output; the logarithms of the sums.
        type State = ([FlexTensor; 4], FlexTensor);

        fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            let d_out = with_rows(grads.consume::<Flex>(&ops.node));
            let ([q, k, v, out], sums) = ops.state;
            let inputs = [&rows(&q), &rows(&k), &rows(&v)];
            let parts = attention_kernel::backward(inputs, &rows(&out), values(&sums), &rows(&d_out), &self.0);
            let shapes = inputs.map(|input| input.shape);
            let mut of = parts.iter().zip(shapes);
            let gradients = std::array::from_fn(|_| {
                let (part, shape) = of.next().expect("three gradients");
                heads_inside(attention_kernel::tokens_first(part, shape), shape)
            });
            register(grads, ops.parents.map(|node| node.map(|node| node.id)), gradients);
        }
    }

    fn register<const N: usize>(grads: &mut Gradients, parents: [Option<NodeId>; N], gradients: [FlexTensor; N]) {
        for (parent, gradient) in parents.into_iter().zip(gradients) {
            if let Some(id) = parent {
                grads.register::<Flex>(id, gradient);
            }
        }
    }
}
