//! Kernels against their plain twins on the processor. They run on any device that WebGPU finds, a software one included.

use burn::tensor::{Device, Tensor, TensorData, s};
use kindling_core::AttendSpec;
use kindling_core::quantized::{Granularity, Quantized, ScaleType};

use crate::formats::{Packed, Resident, Weight};
use crate::{DeviceError, DeviceName, device, ops};

/// The GPU. Where there is none, tests end at once; in CI there must be one.
fn gpu() -> Option<Device> {
    match device(DeviceName::WebGpu) {
        Ok(device) => Some(device),
        Err(DeviceError::Absent { .. }) if std::env::var_os("CI").is_none() => None,
        Err(error) => panic!("{error}"),
    }
}

fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let len = shape.iter().product::<usize>();
    Tensor::from_data(TensorData::new(numbers(len, seed), shape), device)
}

/// Reproducible numbers from -1 to 1.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn close<const D: usize>(what: &str, found: Tensor<D>, expected: Tensor<D>, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let values = |x: Tensor<D>| x.into_data().convert::<f32>().try_into_vec::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    let size = expected.iter().fold(1e-6_f32, |most, x| most.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * size, "{what}, element {i}: {found}, expected {expected}");
    }
}

#[test]
fn pointwise_kernels_give_what_their_twins_give() {
    let (Some(gpu), cpu) = (gpu(), Device::flex()) else { return };
    for (rows, width) in [(1, 1), (3, 48), (2, 64), (5, 130), (1, 512)] {
        let (x, gain) = (random([rows, 2, width], 1, &cpu), random([width], 2, &cpu));
        let expected = ops::rms_norm_reference(x.clone(), gain.clone(), 1e-5);
        close("norm", ops::rms_norm(x.clone().to_device(&gpu), gain.to_device(&gpu), 1e-5), expected, 1e-5);
        let up = random([rows, 2, width], 3, &cpu);
        let expected = ops::swiglu_reference(x.clone(), up.clone());
        close("swiglu", ops::swiglu(x.to_device(&gpu), up.to_device(&gpu)), expected, 1e-5);
    }
    for (batch, tables, heads, tokens, half, width) in [(1, 1, 2, 3, 8, 16), (2, 2, 3, 4, 4, 12), (2, 1, 1, 1, 3, 6)] {
        // A view with heads inside, as projections leave it.
        let x = random([batch, tokens, heads, width], 4, &cpu);
        let (cos, sin) = (random([tables, 1, tokens, half], 5, &cpu), random([tables, 1, tokens, half], 6, &cpu));
        let expected = ops::rotary_reference(x.clone().swap_dims(1, 2), cos.clone(), sin.clone());
        let found = ops::rotary(x.to_device(&gpu).swap_dims(1, 2), cos.to_device(&gpu), sin.to_device(&gpu));
        close("rotary", found, expected, 1e-5);
    }
}

#[test]
fn attention_over_a_cache_gives_what_its_twin_gives() {
    let (Some(gpu), cpu) = (gpu(), Device::flex()) else { return };
    let spec = |softcap, window| AttendSpec { scale: 0.3, softcap, window };
    for (heads, kv_heads, tokens, positions, width, value_width, spec) in [
        (1, 1, 1, 1, 4, 4, spec(None, None)),
        (4, 2, 1, 70, 16, 16, spec(None, None)),
        (6, 2, 3, 130, 8, 80, spec(Some(2.0), None)),
        (4, 1, 8, 200, 16, 16, spec(None, Some(65))),
        (2, 2, 2, 64, 8, 8, spec(None, Some(1))),
    ] {
        // Keys and values are the filled part of larger buffers.
        let q = random([2, heads, tokens, width], 1, &cpu);
        let (k, v) = (
            random([2, kv_heads, positions + 9, width], 2, &cpu),
            random([2, kv_heads, positions + 9, value_width], 3, &cpu),
        );
        let filled = |x: Tensor<4>| x.slice(s![.., .., 0..positions, ..]);
        let expected = ops::attention_reference(q.clone(), filled(k.clone()), filled(v.clone()), &spec);
        let found = ops::attention(q.to_device(&gpu), filled(k.to_device(&gpu)), filled(v.to_device(&gpu)), &spec);
        close(&format!("{heads} heads, {tokens} queries, {positions} positions"), found, expected, 1e-5);
    }
}

/// A weight with every code somewhere.
fn packed(rows: usize, cols: usize, bits: u8, granularity: Granularity, zeros: bool, scale_type: ScaleType) -> Packed {
    let groups = granularity.groups(cols);
    let count = if granularity == Granularity::Tensor { 1 } else { rows * groups };
    let scale = |i: usize| {
        let value = 0.01 + (i % 7) as f32 * 0.013;
        // One scale is below the smallest normal number of 16 bits.
        let value = if i == 3 { 2e-5 } else { value };
        match scale_type {
            ScaleType::F32 => value,
            ScaleType::F16 => half::f16::from_f32(value).to_f32(),
            ScaleType::BF16 => half::bf16::from_f32(value).to_f32(),
        }
    };
    Packed::from_quantized(&Quantized {
        rows,
        cols,
        bits,
        granularity,
        scale_type,
        codes: (0..rows * cols).map(|i| ((i * 37 + i / 11) % (1 << bits)) as u8).collect(),
        scales: (0..count).map(scale).collect(),
        zeros: zeros.then(|| (0..count).map(|i| (i % (1 << bits)) as u8).collect()),
        group_index: None,
    })
    .unwrap()
}

fn check_product(packed: &Packed, rows: usize, gpu: &Device) {
    let cpu = Device::flex();
    let what = format!("{} {:?}, {rows} rows", packed.format_name(), packed.shape());
    let resident = Resident::from_packed(packed, gpu).expect("whole blocks");
    assert_eq!(resident.to_dense(gpu).into_data().try_into_vec::<f32>().unwrap(), packed.to_host(), "{what}");
    let x = random([1, rows, packed.shape()[1]], 7, &cpu);
    let expected = Weight::Packed(packed.clone()).forward(x.clone()).unwrap();
    close(&what, Weight::Resident(resident).forward(x.to_device(gpu)).unwrap(), expected, 1e-5);
}

#[test]
fn products_with_codes_give_what_the_unfolded_weight_gives() {
    let Some(gpu) = gpu() else { return };
    for bits in 1..=8 {
        check_product(&packed(21, 96, bits, Granularity::Group(32), bits % 2 == 0, ScaleType::F16), 1, &gpu);
    }
    for (rows, cols) in [(1, 1), (3, 33), (40, 1100)] {
        check_product(&packed(rows, cols, 4, Granularity::Channel, true, ScaleType::BF16), 1, &gpu);
    }
    check_product(&packed(5, 70, 4, Granularity::Tensor, true, ScaleType::F32), 3, &gpu);
    check_product(&packed(9, 128, 4, Granularity::Group(64), false, ScaleType::F32), 8, &gpu);
    check_product(&packed(9, 128, 3, Granularity::Group(64), true, ScaleType::F16), 11, &gpu);
}

#[test]
fn groups_out_of_order_are_read_in_theirs() {
    let Some(gpu) = gpu() else { return };
    let mut q = packed(6, 64, 4, Granularity::Group(32), true, ScaleType::F16).to_quantized().unwrap();
    q.group_index = Some((0..64).map(|i| (i % 2) as u32).collect());
    let packed = Packed::from_quantized(&q).unwrap();
    check_product(&packed, 1, &gpu);
    check_product(&packed, 12, &gpu);
}

#[test]
fn stacked_weights_give_their_outputs_in_turn() {
    let Some(gpu) = gpu() else { return };
    let part = |rows| packed(rows, 64, 4, Granularity::Group(32), true, ScaleType::F16);
    let parts = [part(8), part(4), part(3)].map(|part| Resident::from_packed(&part, &gpu).unwrap());
    let x = random([1, 2, 64], 1, &gpu);
    let alone = parts.iter().map(|part| Weight::Resident(part.clone()).forward(x.clone()).unwrap()).collect();
    let stacked = Resident::stacked(&parts.iter().collect::<Vec<_>>()).unwrap();
    close("stacked", Weight::Resident(stacked).forward(x).unwrap(), Tensor::cat(alone, 2), 1e-6);
    let narrow = Resident::from_packed(&packed(4, 32, 4, Granularity::Group(32), true, ScaleType::F16), &gpu).unwrap();
    assert!(Resident::stacked(&[&parts[0], &narrow]).is_none());
}

#[test]
fn what_the_kernels_do_not_take_is_refused() {
    let Some(gpu) = gpu() else { return };
    let thin = packed(4, 64, 4, Granularity::Group(16), false, ScaleType::F16);
    assert!(Resident::from_packed(&thin, &gpu).is_none());
    let fine = packed(4, 64, 4, Granularity::Group(32), false, ScaleType::F16);
    assert!(Resident::from_packed(&fine, &Device::flex()).is_none());
}
