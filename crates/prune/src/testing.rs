//! What the unit tests share: one small worked layer, synthetic layers, shortcuts.

use burn::tensor::{Device, Tensor, TensorData};
use kindling_core::options::Value;
use kindling_core::{
    Block, Compressed, CompressedWeight, Cx, Layer, LayerShape, Method, Needs, Options, Result, Role, Stats,
};

/// The worked example: a weight `[2, 4]` and six tokens `[6, 4]`.
pub(crate) const W: [f32; 8] = [1.0, -0.5, 0.2, 0.8, 0.3, 0.9, -1.2, 0.1];
pub(crate) const X: [f32; 24] =
    [1., 0., 2., 0.5, 0., 1., 1., 0., 2., 1., 0., 0.5, 1., 0., 1., 1., 0., 2., 1., 0., 1., 1., 3., 0.5];

pub(crate) fn shape(role: Role, rows: usize, cols: usize) -> LayerShape {
    LayerShape { name: format!("{role:?}"), role, unit: 0, site: format!("{role:?}.in"), rows, cols }
}

pub(crate) fn layer(shape: LayerShape, weight: &[f32]) -> Layer {
    let data = TensorData::new(weight.to_vec(), [shape.rows, shape.cols]);
    Layer { shape, weight: Tensor::from_data(data, &Device::default()), mask: None }
}

/// The worked weight as an attention output projection.
pub(crate) fn worked() -> Layer {
    layer(shape(Role::AttentionOutput, 2, 4), &W)
}

pub(crate) fn stats(x: &[f32], width: usize) -> Stats {
    let mut stats = Stats::new(width, Needs::Moments);
    stats.add_rows(x).unwrap();
    stats
}

pub(crate) fn text(value: &str) -> Value {
    Value::Text(value.into())
}

pub(crate) fn build(name: &str, options: &[(&str, Value)]) -> std::result::Result<Method, String> {
    let entry = crate::METHODS.iter().find(|entry| entry.name == name).unwrap();
    let options = Options::from_iter(options.iter().map(|(key, value)| (*key, value.clone())));
    (entry.build)(&options).map_err(|error| error.to_string())
}

/// Runs a method on one layer; a block method sees a block of this layer and `stats` at its site.
pub(crate) fn try_prune(name: &str, options: &[(&str, Value)], layer: &Layer, stats: &Stats) -> Result<Compressed> {
    match build(name, options).unwrap() {
        Method::Layer(method) => method.compress(layer, stats, &Cx::new(0)),
        Method::Block(method) => {
            let block = Block { layers: vec![layer.clone()], stats: vec![(&layer.shape.site, stats)] };
            Ok(method.compress(&block, &Cx::new(0))?.remove(0))
        }
    }
}

pub(crate) fn prune(name: &str, options: &[(&str, Value)], layer: &Layer, stats: &Stats) -> Compressed {
    try_prune(name, options, layer, stats).unwrap()
}

pub(crate) fn dense(compressed: &Compressed) -> Vec<f32> {
    let CompressedWeight::Dense(weight) = &compressed.weight else { panic!("a dense weight") };
    weight.to_data().try_into_vec().unwrap()
}

/// The mask as digits, row after row.
pub(crate) fn digits(compressed: &Compressed) -> String {
    flags(compressed.mask.as_ref().unwrap().as_slice())
}

pub(crate) fn flags(keep: &[bool]) -> String {
    keep.iter().map(|&keep| if keep { '1' } else { '0' }).collect()
}

/// `x wᵀ` in f64 for `x` `[T, cols]` and `w` `[rows, cols]`.
pub(crate) fn product(x: &[f32], w: &[f32], cols: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
    x.chunks_exact(cols).flat_map(|x| w.chunks_exact(cols).map(move |w| dot(x, w))).collect()
}

/// `‖x (new − old)ᵀ‖²`.
pub(crate) fn error(x: &[f32], old: &[f32], new: &[f32], cols: usize) -> f64 {
    product(x, old, cols).iter().zip(product(x, new, cols)).map(|(a, b)| (a - b).powi(2)).sum()
}

pub(crate) fn close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "expected {expected}, found {found}");
}

/// A small generator (splitmix64), enough for test layers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal() as f32).collect()
    }

    /// Tokens `[tokens, width]`: features correlated along a random order, with log-normal scales.
    pub(crate) fn tokens(&mut self, tokens: usize, width: usize) -> Vec<f32> {
        let mut order: Vec<usize> = (0..width).collect();
        (1..width).rev().for_each(|i| order.swap(i, (self.uniform() * (i + 1) as f64) as usize));
        let scales: Vec<f64> = (0..width).map(|_| self.normal().exp()).collect();
        let mut x = vec![0.0; tokens * width];
        for row in x.chunks_exact_mut(width) {
            let mut value = self.normal();
            for &j in &order {
                row[j] = (value * scales[j]) as f32;
                value = 0.6 * value + 0.8 * self.normal();
            }
        }
        x
    }
}
