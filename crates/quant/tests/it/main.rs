//! Every method under every combination of the shared options, through the traits alone.

use burn::tensor::{Device, Tensor, TensorData};
use kindling_core::options::Value;
use kindling_core::{
    Compressed, CompressedWeight, Cx, Layer, LayerMethod, LayerShape, Mask, Method, MethodEntry, Needs, Options,
    Quantized, Role, Stats,
};
use kindling_quant::METHODS;

const ROWS: usize = 6;

/// Sums of twelve uniform numbers: close to normal. The seed is the start of a linear congruential sequence.
fn normals(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

/// A layer of `[ROWS, cols]` and its correlated inputs.
fn layer(cols: usize, masked: bool) -> (Layer, Vec<f32>, Stats) {
    let mut values = normals(ROWS * cols, 1);
    let mask = masked.then(|| Mask::new(ROWS, cols, (0..ROWS * cols).map(|i| i % 4 < 2).collect()).unwrap());
    mask.iter().for_each(|mask| mask.apply(&mut values));
    let shape = LayerShape {
        name: "mlp.down_proj".into(),
        role: Role::Down,
        unit: 0,
        site: "mlp.down".into(),
        rows: ROWS,
        cols,
    };
    let weight = Tensor::from_data(TensorData::new(values.clone(), [ROWS, cols]), &Device::default());
    let mut stats = Stats::new(cols, Needs::Moments);
    let (common, own) = (normals(3 * cols, 2), normals(3 * cols * cols, 3));
    for (common, own) in common.iter().zip(own.chunks(cols)) {
        stats.add_rows(&own.iter().map(|own| own + 2.0 * common).collect::<Vec<_>>()).unwrap();
    }
    (Layer { shape, weight, mask }, values, stats)
}

fn build(entry: &MethodEntry, options: &[(&str, Value)]) -> Box<dyn LayerMethod> {
    match (entry.build)(&options.iter().cloned().collect::<Options>()) {
        Ok(Method::Layer(method)) => method,
        Ok(Method::Block(_)) => panic!("{} is a block method: give it a test of its own", entry.name),
        Err(error) => panic!("{}: {error}", entry.name),
    }
}

fn run(method: &dyn LayerMethod, layer: &Layer, stats: &Stats, threads: usize) -> (Quantized, Compressed) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let compressed = pool.install(|| method.compress(layer, stats, &Cx::new(0))).unwrap();
    let CompressedWeight::Quantized(quantized) = &compressed.weight else { panic!("a quantiser gives codes") };
    (quantized.clone(), compressed)
}

/// `tr(D H Dᵀ)` with the damping that the methods use.
fn output_error(weight: &[f32], quantized: &Quantized, stats: &Stats) -> f64 {
    let n = quantized.cols;
    let mean = (0..n).map(|j| stats.gram[j * n + j]).sum::<f64>() / n as f64;
    let h = |i: usize, j: usize| stats.gram[i * n + j] + if i == j { 0.01 * mean } else { 0.0 };
    let change: Vec<f64> =
        weight.iter().zip(quantized.dequantize()).map(|(&w, q)| f64::from(w) - f64::from(q)).collect();
    let row = |d: &[f64]| -> f64 { (0..n * n).map(|at| d[at / n] * h(at / n, at % n) * d[at % n]).sum() };
    change.chunks(n).map(row).sum()
}

#[test]
fn every_method_keeps_its_promises() {
    for (cols, group) in [(96, 32), (172, 32), (20, 128)] {
        for masked in [false, true] {
            let (layer, values, stats) = layer(cols, masked);
            for bits in [2, 3, 4, 8] {
                for symmetric in [false, true] {
                    for granularity in ["tensor", "channel", "group"] {
                        for scale_type in ["f32", "f16"] {
                            let options = [
                                ("bits", Value::Int(bits)),
                                ("group_size", Value::Int(group)),
                                ("symmetric", Value::Bool(symmetric)),
                                ("granularity", Value::Text(granularity.into())),
                                ("scale_type", Value::Text(scale_type.into())),
                            ];
                            let case = format!("[{ROWS}, {cols}] {masked} {options:?}");
                            let errors = METHODS.iter().map(|entry| {
                                let method = build(entry, &options);
                                check(&*method, &layer, &values, &stats, &format!("{} {case}", entry.name))
                            });
                            let errors: Vec<f64> = errors.collect();
                            // RTN comes first; with the same grid nobody may be worse on the output. Grids of
                            // fewer than four codes' width are too coarse for that to be a law.
                            let slack = if bits == 2 { 1.25 } else { 1.0 };
                            assert!(errors.iter().all(|&error| error <= errors[0] * slack), "{case}: {errors:?}");
                        }
                    }
                }
            }
        }
    }
}

/// Runs one configuration and gives its error on the output.
fn check(method: &dyn LayerMethod, layer: &Layer, values: &[f32], stats: &Stats, case: &str) -> f64 {
    let (quantized, compressed) = run(method, layer, stats, 1);
    quantized.validate().unwrap();
    assert_eq!(quantized, run(method, layer, stats, 3).0, "{case}: depends on the number of threads");
    assert_eq!(compressed.mask, layer.mask, "{case}");
    let restored = quantized.dequantize();
    if let Some(mask) = &layer.mask {
        assert!(restored.iter().zip(mask.as_slice()).all(|(&w, &keep)| keep || w == 0.0), "{case}: mask broken");
    }
    if method.needs() == Needs::Nothing {
        for (i, (&w, &restored)) in values.iter().zip(&restored).enumerate() {
            let scale = quantized.scales[quantized.scale_index(i / quantized.cols, i % quantized.cols)];
            // Half a step, and what rounding the scale to f16 takes off the range.
            let bound = scale * (0.5 + 2f32.powi(-11) * f32::from(quantized.max_code()) + 1e-4);
            assert!((w - restored).abs() <= bound, "{case}: {w} became {restored}");
        }
    }
    let ragged = matches!(quantized.granularity, kindling_core::Granularity::Group(g) if quantized.cols % g != 0);
    assert_eq!(compressed.notes.len(), usize::from(ragged), "{case}: {:?}", compressed.notes);
    output_error(values, &quantized, stats)
}

#[test]
fn mistakes_are_errors_that_name_the_layer() {
    let (good, _, stats) = layer(20, false);
    for entry in METHODS {
        let method = build(entry, &[("portable", Value::Bool(true)), ("group_size", Value::Int(16))]);
        let message = method.check(&good.shape).unwrap_err().to_string();
        assert!(message.contains("mlp.down_proj") && message.contains("16"), "{message}");

        let method = build(entry, &[]);
        let fails = |layer: &Layer, stats: &Stats| {
            let message = method.compress(layer, stats, &Cx::new(0)).unwrap_err().to_string();
            assert!(message.contains("mlp.down_proj"), "{}: {message}", entry.name);
        };
        let mut wrong = good.clone();
        wrong.shape.cols = 21;
        fails(&wrong, &stats);
        let mut wrong = good.clone();
        wrong.mask = Some(Mask::new(1, 20, vec![true; 20]).unwrap());
        fails(&wrong, &stats);
        let mut wrong = good.clone();
        wrong.weight = wrong.weight * f32::NAN;
        fails(&wrong, &stats);
        if entry.needs > Needs::Nothing {
            fails(&good, &Stats::new(20, Needs::Nothing));
            fails(&good, &Stats::new(19, entry.needs));
        }
    }
}

#[test]
fn names_are_unique_and_unknown_options_refused() {
    for (i, entry) in METHODS.iter().enumerate() {
        assert!(METHODS[..i].iter().all(|other| other.name != entry.name));
        let options = Options::from_iter([("bit", Value::Int(4))]);
        let message = (entry.build)(&options).err().unwrap().to_string();
        assert!(message.contains(entry.name) && message.contains("did you mean `bits`"), "{message}");
    }
}
