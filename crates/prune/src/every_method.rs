//! What every method must do, whatever its score.

use kindling_core::options::Value;
use kindling_core::{Block, Compressed, Cx, Layer, LayerShape, Mask, Method, NM, Needs, Role, Stats};

use crate::METHODS;
use crate::testing::{Random, build, dense, layer, shape, stats, text};

const WIDTH: usize = 16;
const NEURONS: usize = 24;

/// An MLP and the statistics of its two sites.
fn mlp() -> (Vec<Layer>, [Stats; 2]) {
    let mut random = Random(11);
    let producer = |role| LayerShape { site: "in".into(), ..shape(role, NEURONS, WIDTH) };
    let consumer = LayerShape { site: "hidden".into(), ..shape(Role::Down, WIDTH, NEURONS) };
    let layers = [producer(Role::Gate), producer(Role::Up), consumer]
        .map(|shape| layer(shape, &random.normals(WIDTH * NEURONS)))
        .to_vec();
    (layers, [stats(&random.tokens(64, WIDTH), WIDTH), stats(&random.tokens(64, NEURONS), NEURONS)])
}

fn run(method: &Method, layers: &[Layer], [input, hidden]: &[Stats; 2]) -> Vec<Compressed> {
    let shapes: Vec<LayerShape> = layers.iter().map(|layer| layer.shape.clone()).collect();
    method.check(&shapes).unwrap();
    let block = Block { layers: layers.to_vec(), stats: vec![("in", input), ("hidden", hidden)] };
    match method {
        Method::Layer(method) => layers
            .iter()
            .map(|layer| method.compress(layer, block.stats_of(&layer.shape).unwrap(), &Cx::new(0)).unwrap())
            .collect(),
        Method::Block(method) => method.compress(&block, &Cx::new(0)).unwrap(),
    }
}

/// Every amount of the matrix that a method's config can hold.
fn amounts(name: &str) -> Vec<Vec<(&'static str, Value)>> {
    let mut amounts: Vec<_> = ["2:4", "4:8", "1:4"].iter().map(|nm| vec![("pattern", text(nm))]).collect();
    amounts.extend([0.5, 0.3, 0.0, 1.0].map(|sparsity| vec![("sparsity", Value::Float(sparsity))]));
    if matches!(name, "magnitude" | "wanda") {
        let half = ("sparsity", Value::Float(0.5));
        amounts.extend(["rows", "columns"].map(|whole| vec![half.clone(), ("structure", text(whole))]));
        amounts.extend(["matrix", "row", "column"].map(|per| vec![half.clone(), ("per", text(per))]));
        amounts.extend(["inputs", "outputs"].map(|axis| vec![("pattern", text("2:4")), ("axis", text(axis))]));
    }
    amounts
}

/// How many weights go from a `[rows, cols]` matrix: groups are whole rows, columns or the matrix.
fn expected_count(name: &str, amount: &[(&str, Value)], layer: &LayerShape) -> usize {
    let (rows, cols) = (layer.rows, layer.cols);
    let key = |key: &str| amount.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
    if let Some(Value::Text(pattern)) = key("pattern") {
        let nm: NM = pattern.parse().unwrap();
        return rows * cols / nm.of * (nm.of - nm.keep);
    }
    let Some(Value::Float(sparsity)) = key("sparsity") else { panic!("an amount") };
    let of = |group: usize| (group as f64 * sparsity).floor() as usize;
    let dass_producer = name == "dass" && layer.role != Role::Down;
    match (key("structure"), key("per")) {
        (Some(Value::Text(whole)), _) if whole == "rows" => of(rows) * cols,
        (Some(_), _) => of(cols) * rows,
        (_, Some(Value::Text(per))) if per == "column" => of(rows) * cols,
        (_, Some(Value::Text(per))) if per == "row" => of(cols) * rows,
        (_, None) if dass_producer => of(rows) * cols,
        (_, None) if matches!(name, "wanda" | "dass") => of(cols) * rows,
        _ => of(rows * cols),
    }
}

#[test]
fn counts_are_exact_and_removed_weights_are_zero() {
    let (layers, stats) = mlp();
    for entry in METHODS {
        for amount in amounts(entry.name) {
            let method = build(entry.name, &amount).unwrap();
            let pruned = run(&method, &layers, &stats);
            assert_eq!(pruned.len(), layers.len());
            for (pruned, layer) in pruned.iter().zip(&layers) {
                let mask = pruned.mask.as_ref().unwrap();
                let weight = dense(pruned);
                let case = format!("{} {amount:?} {}", entry.name, layer.shape.name);
                let removed = weight.len() - mask.kept();
                assert_eq!(removed, expected_count(entry.name, &amount, &layer.shape), "{case}");
                assert_eq!(&Mask::of_nonzero(layer.shape.rows, layer.shape.cols, &weight).unwrap(), mask, "{case}");
                assert!(weight.iter().all(|w| w.is_finite()), "{case}");
            }
        }
    }
}

#[test]
fn patterns_hold_along_their_axis() {
    let (layers, stats) = mlp();
    let nm = NM::new(2, 4).unwrap();
    for entry in METHODS {
        let method = build(entry.name, &[("pattern", text("2:4"))]).unwrap();
        for (pruned, layer) in run(&method, &layers, &stats).iter().zip(&layers) {
            let mask = pruned.mask.as_ref().unwrap();
            let along_outputs = entry.name == "dass" && layer.shape.role != Role::Down;
            let transposed = (0..mask.shape()[1]).flat_map(|j| (0..mask.shape()[0]).map(move |i| mask.row(i)[j]));
            let transposed = Mask::new(layer.shape.cols, layer.shape.rows, transposed.collect()).unwrap();
            assert!(if along_outputs { transposed.obeys(nm) } else { mask.obeys(nm) }, "{}", entry.name);
        }
    }
}

#[test]
fn runs_repeat_and_earlier_masks_are_kept() {
    let (mut layers, stats) = mlp();
    for entry in METHODS {
        for amount in amounts(entry.name) {
            let method = build(entry.name, &amount).unwrap();
            let once = run(&method, &layers, &stats);
            let again = run(&method, &layers, &stats);
            once.iter().zip(&again).for_each(|(a, b)| assert_eq!(dense(a), dense(b), "{} {amount:?}", entry.name));
        }
    }
    let mut random = Random(13);
    for layer in &mut layers {
        let mask = Mask::new(layer.shape.rows, layer.shape.cols, (0..384).map(|_| random.uniform() > 0.2).collect());
        layer.mask = Some(mask.unwrap());
    }
    for entry in METHODS {
        for amount in amounts(entry.name) {
            let method = build(entry.name, &amount).unwrap();
            for (pruned, layer) in run(&method, &layers, &stats).iter().zip(&layers) {
                let (mask, earlier) = (pruned.mask.as_ref().unwrap(), layer.mask.as_ref().unwrap());
                let case = format!("{} {amount:?} {}", entry.name, layer.shape.name);
                assert_eq!(&mask.and(earlier).unwrap(), mask, "{case}");
                let mut weight = dense(pruned);
                mask.apply(&mut weight);
                assert_eq!(weight, dense(pruned), "{case}");
            }
        }
    }
}

#[test]
fn ragged_groups_and_typos_are_refused_before_any_work() {
    for entry in METHODS {
        let method = build(entry.name, &[("pattern", text("2:4"))]).unwrap();
        let error = method.check(&[shape(Role::Down, 8, 10)]).unwrap_err().to_string();
        assert!(error.contains("`Down`") && error.contains("10 input columns") && error.contains("2:4"), "{error}");
        for options in [vec![], vec![("pattern", text("4:2"))], vec![("sparcity", Value::Float(0.5))]] {
            let error = build(entry.name, &options).err().unwrap();
            assert!(error.starts_with(&format!("{}: ", entry.name)), "{error}");
        }
        assert!(build(entry.name, &[("sparcity", Value::Float(0.5))]).err().unwrap().contains("`sparsity`?"));
        assert!(build(entry.name, &[("pattern", text("2:4")), ("sparsity", Value::Float(0.5))]).is_err());
    }
}

#[test]
fn entries_say_what_their_methods_need() {
    let shapes = [shape(Role::Up, 8, 8), shape(Role::Down, 8, 8)];
    for entry in METHODS {
        let method = build(entry.name, &[("sparsity", Value::Float(0.5))]).unwrap();
        let most = shapes.iter().map(|shape| method.needs(shape)).max().unwrap();
        assert_eq!(most, entry.needs, "{}", entry.name);
        assert!(entry.needs <= Needs::Moments && !entry.paper.is_empty() && !entry.summary.is_empty());
    }
}
