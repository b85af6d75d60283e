//! Kernels and their plain twins agree, in values and gradients, at odd sizes.

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use kindling_core::AttendSpec;
use proptest::prelude::*;

use super::*;

fn close(name: &str, left: TensorData, right: TensorData, tolerance: f32) {
    let values = |data: TensorData| data.convert::<f32>().try_into_vec::<f32>().unwrap();
    let (left, right) = (values(left), values(right));
    assert_eq!(left.len(), right.len(), "{name}");
    for (i, (l, r)) in left.iter().zip(&right).enumerate() {
        assert!((l - r).abs() <= tolerance * (1.0 + r.abs()), "{name}[{i}]: kernel {l}, twin {r}");
    }
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Values and gradients of two functions of the same inputs.
fn compare<const D: usize, const N: usize>(
    inputs: [Tensor<D>; N],
    kernel: impl Fn([Tensor<D>; N]) -> Tensor<D>,
    twin: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) {
    let run = |f: &dyn Fn([Tensor<D>; N]) -> Tensor<D>| {
        let leaves = inputs.clone().map(|x| x.require_grad());
        let y = f(leaves.clone());
        let weight = Tensor::from_data(
            TensorData::new((0..y.shape().num_elements()).map(|i| (i as f32 * 0.7).sin()).collect(), y.dims()),
            &y.device(),
        );
        let grads = (y.clone() * weight).sum().backward();
        (y.into_data(), leaves.map(|leaf| leaf.grad(&grads).expect("tracked").into_data()))
    };
    let (y, dy) = run(&kernel);
    let (z, dz) = run(&twin);
    close("value", y, z, 2e-5);
    for (i, (dy, dz)) in dy.into_iter().zip(dz).enumerate() {
        close(&format!("gradient {i}"), dy, dz, 1e-4);
    }
}

fn tracked() -> Device {
    Device::flex().autodiff()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn product_of_a_few_rows(rows in 1usize..40, inputs in 1usize..70, outputs in 1usize..100, transposed in any::<bool>()) {
        let device = Device::flex();
        let (x, weight) = (random([rows, inputs], &device), random([inputs, outputs], &device));
        let held = if transposed { Tensor::from_data(weight.clone().transpose().into_data(), &device).transpose() } else { weight.clone() };
        let y = product(x.clone(), held.clone());
        close("product", y.clone().into_data(), product_reference(x.clone(), weight).into_data(), 2e-5);
        // Alone a row gives what it gives beside others, to the bit.
        if rows <= 32 {
            let row = rows / 2;
            let alone = product(x.slice(burn::tensor::s![row..row + 1, ..]), held);
            let values = |x: Tensor<2>| x.into_data().try_into_vec::<f32>().unwrap();
            prop_assert_eq!(values(alone), values(y.slice(burn::tensor::s![row..row + 1, ..])));
        }
    }

    #[test]
    fn rms_norm_is_its_twin(rows in 1usize..300, width in 1usize..70) {
        let device = tracked();
        let gain: Tensor<1> = random([width], &device);
        compare([random([rows, width], &device)],
            |[x]| rms_norm(x, gain.clone(), 1e-5), |[x]| rms_norm_reference(x, gain.clone(), 1e-5));
        // And the gain's gradient.
        let x: Tensor<2> = random([rows, width], &device);
        compare([gain], |[g]| rms_norm(x.clone(), g, 1e-5).sum_dim(0).reshape([width]),
            |[g]| rms_norm_reference(x.clone(), g, 1e-5).sum_dim(0).reshape([width]));
    }

    #[test]
    fn swiglu_is_its_twin(rows in 1usize..200, width in 1usize..200) {
        let device = tracked();
        let inputs = [random([rows, width], &device).mul_scalar(4.0), random([rows, width], &device)];
        compare(inputs, |[g, u]| swiglu(g, u), |[g, u]| swiglu_reference(g, u));
    }

    #[test]
    fn rotary_is_its_twin(batch in 1usize..3, heads in 1usize..4, tokens in 1usize..70, half in 1usize..20,
            rest in 0usize..4, own in any::<bool>()) {
        let device = tracked();
        let angles: Tensor<4> = random([if own { batch } else { 1 }, 1, tokens, half], &device);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        // As projections give it: heads inside tokens.
        let x: Tensor<4> = random([batch, tokens, heads, 2 * half + rest], &device);
        compare([x], |[x]| rotary(x.swap_dims(1, 2), cos.clone(), sin.clone()),
            |[x]| rotary_reference(x.swap_dims(1, 2), cos.clone(), sin.clone()));
    }

    #[test]
    fn attention_is_its_twin(batch in 1usize..3, kv_heads in 1usize..3, group in 1usize..4, tokens in 1usize..150,
            earlier in 0usize..20, width in 1usize..20, value_width in 1usize..20, window in 0usize..90, cap in 0usize..2) {
        let device = tracked();
        let spec = AttendSpec {
            scale: 0.7 / (width as f64).sqrt(),
            softcap: (cap == 1).then_some(2.0),
            window: (window > 0).then_some(window),
        };
        let positions = tokens + earlier;
        let inputs = [
            random([batch, tokens, kv_heads * group, width], &device).swap_dims(1, 2),
            random([batch, positions, kv_heads, width], &device).swap_dims(1, 2),
            random([batch, kv_heads, positions, value_width], &device),
        ];
        compare(inputs, |[q, k, v]| attention(q, k, v, &spec), |[q, k, v]| attention_reference(q, k, v, &spec));
    }

    #[test]
    fn cross_entropy_is_its_twin(rows in 1usize..40, vocabulary in 1usize..200) {
        let device = Device::flex();
        let logits: Tensor<2> = random([rows, vocabulary], &device).mul_scalar(5.0);
        let labels: Vec<i32> = (0..rows).map(|i| (i * 7 % vocabulary) as i32).collect();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [rows]), &device);
        let (loss, gradient) = cross_entropy(logits.clone(), labels.clone());
        let (twin_loss, twin_gradient) = cross_entropy_reference(logits, labels);
        close("loss", loss.into_data(), twin_loss.into_data(), 1e-5);
        close("gradient", gradient.into_data(), twin_gradient.into_data(), 1e-5);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let device = tracked();
            let ramp = |shape: [usize; 4]| {
                let n: usize = shape.iter().product();
                let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
                Tensor::<4>::from_data(TensorData::new(values, shape), &device).require_grad()
            };
            let (q, k) = (ramp([2, 4, 130, 8]), ramp([2, 2, 130, 8]));
            let spec = AttendSpec { scale: 0.3, softcap: None, window: None };
            let y = attention(q.clone(), k.clone(), k.clone(), &spec);
            let gain = Tensor::<1>::ones([8], &device).require_grad();
            let y = rms_norm(y, gain.clone(), 1e-5);
            let grads = y.clone().powi_scalar(3).sum().backward();
            let gradient = |data: TensorData| data.try_into_vec::<f32>().unwrap();
            [
                y.into_data(),
                q.grad(&grads).unwrap().into_data(),
                k.grad(&grads).unwrap().into_data(),
                gain.grad(&grads).unwrap().into_data(),
            ]
            .map(gradient)
        })
    };
    assert_eq!(run(1), run(3));
}
