use kindling_core::{Compressed, Cx, Layer, LayerMethod, NM, Needs, Options, Role, Stats};
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    bits: u8,
    group_size: usize,
    pattern: Option<NM>,
}

impl Default for Config {
    fn default() -> Self {
        Self { bits: 4, group_size: 32, pattern: None }
    }
}

/// Does nothing but refuse ragged groups.
impl LayerMethod for Config {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
    fn check(&self, shape: &LayerShape) -> kindling_core::Result<()> {
        if shape.cols.is_multiple_of(self.group_size) {
            return Ok(());
        }
        let reason = format!("{} inputs do not divide into groups of {}", shape.cols, self.group_size);
        Err(kindling_core::Error::layer(&shape.name, reason))
    }
    fn bits_per_weight(&self, _: &LayerShape, _: f64) -> f64 {
        f64::from(self.bits)
    }
    fn compress(&self, _: &Layer, _: &Stats, _: &Cx) -> kindling_core::Result<Compressed> {
        unreachable!("resolving computes nothing")
    }
}

fn build(name: &'static str, options: &Options) -> Result<Method, OptionsError> {
    Ok(Method::Layer(Box::new(options.read::<Config>(name)?)))
}

const fn entry(name: &'static str, family: Family, build: fn(&Options) -> Result<Method, OptionsError>) -> MethodEntry {
    MethodEntry { name, family, summary: "", paper: "", needs: Needs::Nothing, build }
}

static METHODS: [MethodEntry; 3] = [
    entry("gptq", Family::Quantise, |options| build("gptq", options)),
    entry("wanda", Family::Prune, |options| build("wanda", options)),
    entry("dass", Family::Prune, |options| build("dass", options)),
];

fn block() -> Vec<LayerShape> {
    let layer =
        |name: &str, role, cols| LayerShape { name: name.into(), role, unit: 0, site: String::new(), rows: 64, cols };
    vec![
        layer("self_attn.q_proj", Role::Query, 64),
        layer("self_attn.o_proj", Role::AttentionOutput, 64),
        layer("mlp.up_proj", Role::Up, 64),
        layer("mlp.down_proj", Role::Down, 172),
    ]
}

fn resolved(text: &str, blocks: &[Vec<LayerShape>]) -> anyhow::Result<Resolved> {
    let methods: Vec<&MethodEntry> = METHODS.iter().collect();
    resolve(&Recipe::parse("r.toml", text).unwrap(), &methods, blocks)
}

fn layers(stage: &str) -> Vec<String> {
    let resolved = resolved(&format!("[[stage]]\ngroup_size = 1\n{stage}"), &[block()]).unwrap();
    resolved.stages[0].layers.iter().cloned().collect()
}

/// The message about a stage whose first line is line 2.
fn refused(stage: &str) -> String {
    resolved(&format!("[[stage]]\n{stage}"), &[block()]).err().expect("a mistake").to_string()
}

#[test]
fn targets_and_ignore_select_layers() {
    assert_eq!(layers("method = 'gptq'").len(), 4);
    assert_eq!(layers("method = 'gptq'\ntargets = ['mlp.*']"), ["mlp.down_proj", "mlp.up_proj"]);
    assert_eq!(
        layers("method = 'gptq'\ntargets = ['*']\nignore = ['re:mlp', 'lm_head']"),
        ["self_attn.o_proj", "self_attn.q_proj"]
    );
}

#[test]
fn dass_means_the_mlp_unless_told_otherwise() {
    assert_eq!(layers("method = 'dass'"), ["mlp.down_proj", "mlp.up_proj"]);
    assert_eq!(layers("method = 'dass'\ntargets = ['*.q_proj']"), ["self_attn.q_proj"]);
}

#[test]
fn a_target_may_exist_in_some_blocks_only() {
    let dense = block();
    let mut sparse = block();
    sparse[2].name = "mlp.experts.11.up_proj".into();
    let blocks = [dense, sparse];
    let stage = "[[stage]]\nmethod = 'gptq'\ntargets = ['mlp.*up_proj']";
    let resolved = resolved(stage, &blocks).unwrap();
    let selected = |block: &Vec<LayerShape>| block.iter().filter(|shape| resolved.stages[0].selects(shape)).count();
    assert_eq!(blocks.iter().map(selected).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn unknown_methods_and_options() {
    assert_eq!(
        refused("method = 'gptk'"),
        "r.toml:2: unknown method `gptk`, did you mean `gptq`? (known: gptq, wanda, dass)"
    );
    assert_eq!(
        refused("method = 'gptq'\nbits = 4\ngroupsize = 8"),
        "r.toml:4: gptq: unknown key `groupsize`, did you mean `group_size`? (known: bits, group_size, pattern)"
    );
    assert_eq!(
        refused("method = 'gptq'\ntarget = ['mlp.*']"),
        "r.toml:3: unknown key `target`, did you mean `targets`?"
    );
}

#[test]
fn values_are_blamed_on_their_key() {
    assert_eq!(
        refused("method = 'gptq'\nbits = 4\ngroup_size = -8"),
        "r.toml:4: gptq: invalid value: integer `-8`, expected usize (key `group_size`)"
    );
    assert_eq!(
        refused("method = 'wanda'\n\npattern = '3:2'"),
        "r.toml:4: wanda: pattern `3:2`: N:M keeps N of every M weights, with 1 <= N < M <= 256 (for example 2:4)"
    );
}

#[test]
fn layers_that_do_not_exist_or_do_not_fit() {
    assert_eq!(
        refused("method = 'gptq'\ntargets = [\n'mlp.*',\n'attn.*']"),
        "r.toml:5: `targets` entry `attn.*` matches no layer (layers of a block: \
         mlp.down_proj, mlp.up_proj, self_attn.o_proj, self_attn.q_proj)"
    );
    assert!(refused("method = 'gptq'\ntargets = ['mlp.up_prj']").contains("did you mean `mlp.up_proj`?"));
    assert!(
        refused("method = 'gptq'\ntargets = ['model.layers.3.mlp.*']")
            .contains("leave out the prefix `model.layers.N.`")
    );
    assert_eq!(refused("method = 'gptq'\nignore = ['*']"), "r.toml:2: `ignore` leaves no layer to work on");
    assert_eq!(
        refused("method = 'gptq'\ntargets = []"),
        "r.toml:3: `targets` is empty: leave it out to mean every layer"
    );
    assert_eq!(
        refused("method = 'gptq'\ngroup_size = 32"),
        "r.toml:2: gptq: layer `mlp.down_proj`: 172 inputs do not divide into groups of 32"
    );
}

#[test]
fn experts_are_listed_once() {
    let mut block = block();
    for expert in 0..64 {
        let shape = LayerShape { name: format!("mlp.experts.{expert}.up_proj"), ..block[2].clone() };
        block.push(shape);
    }
    let message = resolved("[[stage]]\nmethod = 'gptq'\ntargets = ['x']", &[block]).err().unwrap().to_string();
    assert!(message.contains("mlp.experts.*.up_proj, mlp.up_proj"), "{message}");
    assert!(!message.contains("experts.7"), "{message}");
}

#[test]
fn an_ignore_that_matches_nothing_is_a_warning() {
    let text = "[[stage]]\nmethod = 'gptq'\ngroup_size = 1\nignore = ['lm_head', 'lm_*', 'embed_tokens']";
    assert_eq!(
        resolved(text, &[block()]).unwrap().warnings,
        ["r.toml:4: `ignore` entry `embed_tokens` matches no layer"]
    );
}

#[test]
fn nothing_may_follow_quantisation_on_the_same_layer() {
    let stage = |method: &str, targets: &str| {
        format!("[[stage]]\nmethod = '{method}'\ngroup_size = 1\ntargets = ['{targets}']\n")
    };
    let good = [stage("wanda", "*"), stage("gptq", "mlp.*"), stage("wanda", "self_attn.*")].concat();
    assert_eq!(resolved(&good, &[block()]).unwrap().stages.len(), 3);
    let bad = [stage("gptq", "mlp.*"), stage("wanda", "*")].concat();
    assert_eq!(
        resolved(&bad, &[block()]).err().unwrap().to_string(),
        "r.toml:6: `wanda` comes after `gptq`, which has quantised `mlp.down_proj`: put quantisation last, \
         or exclude the layer by `ignore`"
    );
}

#[test]
fn every_recipe_that_ships_fits_a_common_model() {
    let layer =
        |name: &str, role, rows, cols| LayerShape { name: name.into(), role, unit: 0, site: name.into(), rows, cols };
    let block = vec![
        layer("self_attn.q_proj", Role::Query, 768, 768),
        layer("self_attn.k_proj", Role::Key, 256, 768),
        layer("self_attn.v_proj", Role::Value, 256, 768),
        layer("self_attn.o_proj", Role::AttentionOutput, 768, 768),
        layer("mlp.gate_proj", Role::Gate, 3072, 768),
        layer("mlp.up_proj", Role::Up, 3072, 768),
        layer("mlp.down_proj", Role::Down, 768, 3072),
    ];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Folders hold the configurations of other commands.
        if path.is_dir() {
            continue;
        }
        let recipe = Recipe::read(&path).unwrap();
        let resolved = resolve(&recipe, &crate::methods::all(), std::slice::from_ref(&block)).unwrap();
        assert!(resolved.warnings.is_empty(), "{:?}", resolved.warnings);
        count += 1;
    }
    assert!(count >= 4, "{count}");
}

#[test]
fn a_stage_keeps_its_targets_and_its_identity() {
    let stage = |bits: u8| {
        let text = format!("[[stage]]\nmethod = 'gptq'\nbits = {bits}\ntargets = ['self_attn.*']");
        resolved(&text, &[block()]).unwrap().stages.remove(0).into_stage()
    };
    let four = stage(4);
    assert_eq!(block().iter().map(|shape| (four.targets)(shape)).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!(four.identity, r#"["gptq",{"bits":4},["self_attn.o_proj","self_attn.q_proj"]]"#);
    assert_ne!(four.identity, stage(8).identity);
}
