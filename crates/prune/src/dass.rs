//! DaSS: a weight of a gated MLP matters as much as the intermediate neuron it feeds or reads. Gate and up
//! are scored by the norm of the neuron they produce, down by the norm of the neuron it consumes, and in all
//! three matrices the neurons compete with each other.
//!
//! Source: "Dependency-Aware Semi-Structured Sparsity of GLU Variants in Large Language Models"
//! (arXiv 2405.01943). Needs the norms of the inputs of the down projection, no forward pass of its own.
//! Cost: one pass over the weights and one partial selection. Attention stays dense, so half of the MLP is
//! about a third of a block. The N:M groups of gate and up run along the outputs, where sparse matrix units
//! cannot use them.

use kindling_core::options::OptionsError;
use kindling_core::{
    Block, BlockMethod, Compressed, Cx, Error, Family, Layer, LayerShape, Mask, Method, MethodEntry, NM, Needs,
    Options, Result, Role,
};
use serde::Deserialize;

use crate::{Axis, Keys, Per, Selection, host};

/// The line of the method list.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "dass",
    family: Family::Prune,
    summary: "removes MLP weights by magnitude and importance of the intermediate neuron they belong to",
    paper: "Dependency-Aware Semi-Structured Sparsity of GLU Variants in Large Language Models (arXiv 2405.01943)",
    needs: Needs::Norms,
    build,
};

/// The keys of a stage with `method = "dass"`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `"N:M"`: keep N of every M neurons' weights.
    pub pattern: Option<NM>,
    /// The fraction to remove: of each column of gate and up, of each row of down. Exactly one of `pattern`
    /// and `sparsity`.
    pub sparsity: Option<f64>,
    /// The power of the neuron's norm in the scores of gate and up; 0 is magnitude.
    pub alpha: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { pattern: None, sparsity: None, alpha: 0.5 }
    }
}

fn build(options: &Options) -> Result<Method, OptionsError> {
    let Config { pattern, sparsity, alpha } = options.read("dass")?;
    let keys = Keys { pattern, sparsity, ..Keys::default() };
    if !(alpha.is_finite() && alpha >= 0.0) {
        return Err(OptionsError(format!("dass: `alpha = {alpha}`: expected a number of at least 0")));
    }
    let consumer = keys.selection("dass", Per::Row)?;
    let producer = match consumer {
        Selection::Pattern { nm, .. } => Selection::Pattern { nm, axis: Axis::Outputs },
        _ => keys.selection("dass", Per::Column)?,
    };
    Ok(Method::Block(Box::new(Dass { producer, consumer, alpha })))
}

/// Whether the method prunes projections of this role: those of an MLP.
pub fn prunes(role: Role) -> bool {
    matches!(role, Role::Gate | Role::Up | Role::GateUp | Role::Down)
}

/// DaSS, configured.
#[derive(Debug, Clone, Copy)]
pub struct Dass {
    /// Who goes from gate and up, where neurons are rows.
    pub producer: Selection,
    /// Who goes from down, where neurons are columns.
    pub consumer: Selection,
    /// The power of the norm for gate and up.
    pub alpha: f64,
}

/// `|W_ij| · a_i^alpha` for `weight` `[rows, cols]`; row `i` feeds neuron `i mod a.len()`.
pub fn producer_scores(weight: &[f32], cols: usize, norms: &[f64], alpha: f64) -> Vec<f32> {
    let mut scores = host::magnitudes(weight);
    for (i, row) in scores.chunks_mut(cols.max(1)).enumerate() {
        let factor = norms[i % norms.len()].powf(alpha) as f32;
        row.iter_mut().for_each(|score| *score *= factor);
    }
    scores
}

/// `|W_ji| · a_i` for `weight` `[rows, a.len()]`.
pub fn consumer_scores(weight: &[f32], norms: &[f64]) -> Vec<f32> {
    weight.iter().zip(norms.iter().cycle()).map(|(w, &norm)| w.abs() * norm as f32).collect()
}

/// The down projection of the MLP that `shape` belongs to, and a check that the sizes agree.
fn down_of<'a>(shape: &LayerShape, mut all: impl Iterator<Item = &'a LayerShape>) -> Result<&'a LayerShape> {
    let down = all.find(|other| other.role == Role::Down && other.unit == shape.unit).ok_or_else(|| {
        let reason = "dass needs the statistics of the down projection of the same MLP, which is not among the \
                      targets; add it (for example targets = [\"mlp.*\"])";
        Error::layer(&shape.name, reason)
    })?;
    let neurons = match shape.role {
        Role::Down => shape.cols,
        Role::GateUp if shape.rows.is_multiple_of(2) => shape.rows / 2,
        _ => shape.rows,
    };
    if neurons == down.cols {
        return Ok(down);
    }
    let reason = format!("it has {neurons} intermediate neurons, but `{}` reads {}", down.name, down.cols);
    Err(Error::layer(&shape.name, reason))
}

impl Dass {
    fn select(&self, layer: &Layer, weight: &[f32], norms: &[f64]) -> Result<Mask> {
        let shape = &layer.shape;
        if shape.role == Role::Down {
            return self.consumer.select(shape, consumer_scores(weight, norms), layer.mask.as_ref());
        }
        // Gate and up in one matrix are two: their neurons do not compete with each other.
        let half = LayerShape { rows: norms.len(), ..shape.clone() };
        let size = half.rows * half.cols;
        let earlier = host::kept(layer)?;
        let mut keep = Vec::with_capacity(weight.len());
        let scores = producer_scores(weight, shape.cols, norms, self.alpha);
        for (scores, earlier) in scores.chunks(size.max(1)).zip(earlier.chunks(size.max(1))) {
            let earlier = Mask::new(half.rows, half.cols, earlier.to_vec())?;
            let mask = self.producer.select(&half, scores.to_vec(), Some(&earlier))?;
            keep.extend_from_slice(mask.as_slice());
        }
        Mask::new(shape.rows, shape.cols, keep)
    }
}

impl BlockMethod for Dass {
    fn needs(&self, shape: &LayerShape) -> Needs {
        if shape.role == Role::Down { Needs::Norms } else { Needs::Nothing }
    }

    fn check(&self, shapes: &[LayerShape]) -> Result<()> {
        for shape in shapes {
            if !prunes(shape.role) {
                let reason = "dass prunes the weights of MLPs only; write targets = [\"mlp.*\"] (or the names of the \
                              gate, up and down projections), and give attention a stage of its own";
                return Err(Error::layer(&shape.name, reason));
            }
            let down = down_of(shape, shapes.iter())?;
            match shape.role {
                Role::Down => self.consumer.check(shape)?,
                _ => self.producer.check(&LayerShape { rows: down.cols, ..shape.clone() })?,
            }
        }
        Ok(())
    }

    fn bits_per_weight(&self, _shape: &LayerShape, dense_bits: f64) -> f64 {
        dense_bits
    }

    fn compress(&self, block: &Block<'_>, cx: &Cx) -> Result<Vec<Compressed>> {
        let shapes: Vec<LayerShape> = block.layers.iter().map(|layer| layer.shape.clone()).collect();
        self.check(&shapes)?;
        let compress = |layer: &Layer| {
            cx.check()?;
            let weight = host::values(layer, "weight", &layer.weight)?;
            let down = down_of(&layer.shape, shapes.iter())?;
            let stats = block.stats_of(down)?;
            stats.require(&down.name, Needs::Norms, down.cols)?;
            let mut notes = Vec::new();
            let norms = if stats.tokens == 0 {
                notes.push(host::UNSEEN.into());
                vec![1.0; down.cols]
            } else {
                stats.norms()
            };
            if let (Selection::Pattern { nm, .. }, false) = (self.producer, layer.shape.role == Role::Down) {
                notes.push(format!("the groups of {nm} run along the outputs"));
            }
            let mask = self.select(layer, &weight, &norms)?;
            Ok(host::pruned(layer, weight, mask, notes))
        };
        block.layers.iter().map(compress).collect()
    }
}

#[cfg(test)]
mod tests {
    use kindling_core::Stats;
    use kindling_core::options::Value;

    use super::*;
    use crate::testing::{Random, build, close, dense, digits, layer, product, shape, stats, text};

    const GATE: [f32; 12] = [0.5, -1., 0.2, 1.5, 0.3, -0.4, -0.2, 0.8, 0.6, 0.9, -0.7, 0.1];
    const UP: [f32; 12] = [1., 0.4, -0.3, -0.6, 0.2, 0.5, 0.7, -0.9, 0.8, 0.1, 0.6, -1.2];
    const DOWN: [f32; 12] = [0.4, -0.8, 0.3, 1.1, -0.5, 0.6, 0.9, -0.2, 1.2, 0.1, -0.7, 0.5];
    const X: [f32; 15] = [1., 0., 2., 0.5, 1., -1., -1., 2., 0., 2., 1., 1., 0., -1., 1.5];
    const PATTERN: &str = "2:4";

    /// `silu(x gateᵀ) ⊙ (x upᵀ)`.
    fn hidden(gate: &[f32], up: &[f32]) -> Vec<f32> {
        let silu = |v: f64| v / (1.0 + (-v).exp());
        product(&X, gate, 3).iter().zip(product(&X, up, 3)).map(|(g, u)| (silu(*g) * u) as f32).collect()
    }

    fn mlp() -> Vec<Layer> {
        let up = LayerShape { site: "Gate.in".into(), ..shape(Role::Up, 4, 3) };
        vec![layer(shape(Role::Gate, 4, 3), &GATE), layer(up, &UP), layer(shape(Role::Down, 3, 4), &DOWN)]
    }

    fn run(layers: Vec<Layer>, stats: &Stats, options: &[(&str, Value)]) -> Result<Vec<Compressed>> {
        let Method::Block(dass) = build("dass", options).unwrap() else { panic!("a block method") };
        dass.compress(&Block { layers, stats: vec![("Down.in", stats)] }, &Cx::new(0))
    }

    fn masks(layers: Vec<Layer>, stats: &Stats, options: &[(&str, Value)]) -> Vec<String> {
        run(layers, stats, options).unwrap().iter().map(digits).collect()
    }

    fn output_error(pruned: &[Vec<f32>]) -> f64 {
        let output = |gate, up, down| product(&hidden(gate, up), down, 4);
        let (old, new) = (output(&GATE, &UP, &DOWN), output(&pruned[0], &pruned[1], &pruned[2]));
        let difference: f64 = old.iter().zip(&new).map(|(a, b)| (a - b).powi(2)).sum();
        difference / old.iter().map(|y| y * y).sum::<f64>()
    }

    #[test]
    fn worked_example() {
        let stats = stats(&hidden(&GATE, &UP), 4);
        let norms = [0.987613, 1.583876, 4.319735, 2.430302];
        stats.norms().iter().zip(norms).for_each(|(&a, expected)| close(a, expected, 1e-5));
        let pruned = run(mlp(), &stats, &[("pattern", text(PATTERN))]).unwrap();
        let found: Vec<String> = pruned.iter().map(digits).collect();
        assert_eq!(found, ["000101011110", "100000111011", "001101100011"]);
        close(output_error(&pruned.iter().map(dense).collect::<Vec<_>>()), 0.180795, 1e-5);
        assert_eq!(pruned[0].notes, ["the groups of 2:4 run along the outputs"]);
        assert!(pruned[2].notes.is_empty());
    }

    #[test]
    fn alpha_zero_is_magnitude_among_the_neurons() {
        let stats = stats(&hidden(&GATE, &UP), 4);
        let options = [("pattern", text(PATTERN)), ("alpha", Value::Int(0))];
        assert_eq!(masks(mlp(), &stats, &options)[0], "010101011100");
        // Nothing seen: magnitude everywhere, down as well.
        let unseen = run(mlp(), &Stats::new(4, Needs::Norms), &[("pattern", text(PATTERN))]).unwrap();
        assert_eq!((digits(&unseen[0]).as_str(), digits(&unseen[2]).as_str()), ("010101011100", "010101101010"));
        assert!(unseen.iter().all(|pruned| pruned.notes.contains(&host::UNSEEN.to_string())));
        close(output_error(&unseen.iter().map(dense).collect::<Vec<_>>()), 0.385880, 1e-5);
    }

    #[test]
    fn groups_along_the_inputs_would_be_magnitude() {
        let mut random = Random(5);
        let (w, norms) = (random.normals(64), [0.1, 5.0, 2.0, 0.7, 9.0, 1.0, 3.0, 0.02]);
        let along_inputs = Selection::Pattern { nm: NM::new(2, 4).unwrap(), axis: Axis::Inputs };
        let select = |scores| along_inputs.select(&shape(Role::Gate, 8, 8), scores, None).unwrap();
        for alpha in [0.0, 0.5, 1.0] {
            assert_eq!(select(producer_scores(&w, 8, &norms, alpha)), select(host::magnitudes(&w)));
        }
    }

    #[test]
    fn scale_and_order_of_inputs_do_not_matter() {
        let z = hidden(&GATE, &UP);
        let options = [("sparsity", Value::Float(0.5))];
        let plain = masks(mlp(), &stats(&z, 4), &options);
        let scaled: Vec<f32> = z.iter().map(|z| z * 8.0).collect();
        assert_eq!(masks(mlp(), &stats(&scaled, 4), &options), plain);
        // Swap inputs 0 and 2 of gate: its mask swaps them too.
        let swap = |row: &[f32]| [row[2], row[1], row[0]];
        let mut swapped = mlp();
        swapped[0] = layer(shape(Role::Gate, 4, 3), &GATE.chunks(3).flat_map(swap).collect::<Vec<_>>());
        let mask = plain[0].as_bytes().chunks(3).flat_map(|row| [row[2], row[1], row[0]]).collect::<Vec<_>>();
        assert_eq!(masks(swapped, &stats(&z, 4), &options)[0].as_bytes(), mask);
    }

    #[test]
    fn a_fused_matrix_is_gate_and_up() {
        let stats = stats(&hidden(&GATE, &UP), 4);
        let fused = layer(shape(Role::GateUp, 8, 3), &[GATE, UP].concat());
        for options in [[("pattern", text(PATTERN))], [("sparsity", Value::Float(0.25))]] {
            let separate = masks(mlp(), &stats, &options);
            let together = masks(vec![fused.clone(), mlp().remove(2)], &stats, &options);
            assert_eq!(together, [separate[..2].concat(), separate[2].clone()]);
        }
    }

    #[test]
    fn experts_use_their_own_neurons() {
        let of = |unit: usize, layers: Vec<Layer>| {
            layers.into_iter().map(move |mut layer| {
                (layer.shape.unit, layer.shape.site) = (unit, format!("{unit}.{}", layer.shape.site));
                layer
            })
        };
        let (first, second) = (stats(&hidden(&GATE, &UP), 4), stats(&[3., 0., 1., 0.1], 4));
        let Method::Block(dass) = build("dass", &[("pattern", text(PATTERN))]).unwrap() else {
            panic!("a block method")
        };
        let layers = of(0, mlp()).chain(of(1, mlp())).collect();
        let block = Block { layers, stats: vec![("0.Down.in", &first), ("1.Down.in", &second)] };
        let found: Vec<String> = dass.compress(&block, &Cx::new(0)).unwrap().iter().map(digits).collect();
        let options = [("pattern", text(PATTERN))];
        assert_eq!(found, [masks(mlp(), &first, &options), masks(mlp(), &second, &options)].concat());
        assert_ne!(found[..3], found[3..]);
    }

    #[test]
    fn wrong_targets_say_what_to_write() {
        let Method::Block(dass) = build("dass", &[("pattern", text(PATTERN))]).unwrap() else {
            panic!("a block method")
        };
        let message = |shapes: &[LayerShape]| dass.check(shapes).unwrap_err().to_string();
        assert!(message(&[shape(Role::Query, 4, 4)]).contains("layer `Query`: dass prunes the weights of MLPs only"));
        assert!(message(&[shape(Role::Gate, 4, 4)]).contains("down projection of the same MLP"));
        assert!(message(&[shape(Role::Up, 8, 4), shape(Role::Down, 4, 4)]).contains("8 intermediate neurons"));
        assert!(message(&[shape(Role::Up, 6, 4), shape(Role::Down, 4, 6)]).contains("6 output rows"));
        assert!(dass.check(&[shape(Role::GateUp, 8, 3), shape(Role::Down, 3, 4)]).is_ok());
        assert!(build("dass", &[("sparsity", Value::Float(0.5)), ("alpha", Value::Int(-1))]).is_err());
    }
}
