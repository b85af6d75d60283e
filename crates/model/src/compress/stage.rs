//! A method with its targets.

use kindling_core::{Family, LayerShape, Method};
use serde::{Deserialize, Serialize};

use crate::config::Spec;
use crate::error::{ModelError, Result};
use crate::layers::projections_of_block;

/// One step of a recipe, ready to act.
pub struct Stage {
    /// The method's name.
    pub name: String,
    /// What it is for.
    pub family: Family,
    /// The configured method.
    pub method: Method,
    /// Which projections it acts on, by their name within the block.
    pub targets: Box<dyn Fn(&LayerShape) -> bool + Send + Sync>,
    /// Everything that defines the stage, as text: part of what a resumed run must share.
    pub identity: String,
}

/// How a projection ends up, by name of the stages that act on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targeted {
    /// The projection's name within the block.
    pub name: String,
    /// Indices of the stages, in order.
    pub stages: Vec<usize>,
}

/// Checks every stage against every block and tells which stages act on which projections.
///
/// An error if a stage acts on nothing, its options do not fit a layer, or a layer would be changed again after it was
/// quantised.
pub fn resolve_targets(spec: &Spec, stages: &[Stage]) -> Result<Vec<Vec<Targeted>>> {
    let mut acted = vec![false; stages.len()];
    let mut blocks = Vec::with_capacity(spec.blocks.len());
    for block in 0..spec.blocks.len() {
        let shapes: Vec<LayerShape> = projections_of_block(spec, block).into_iter().map(|p| p.shape).collect();
        let mut targeted: Vec<Targeted> =
            shapes.iter().map(|s| Targeted { name: s.name.clone(), stages: Vec::new() }).collect();
        for (index, stage) in stages.iter().enumerate() {
            let mine: Vec<LayerShape> = shapes.iter().filter(|s| (stage.targets)(s)).cloned().collect();
            if mine.is_empty() {
                continue;
            }
            acted[index] = true;
            stage.method.check(&mine)?;
            for (shape, target) in shapes.iter().zip(&mut targeted).filter(|(s, _)| (stage.targets)(s)) {
                if let Some(&before) = target.stages.iter().find(|&&s| stages[s].family == Family::Quantise) {
                    return Err(ModelError::Input(format!(
                        "stage {} (`{}`) would change `{}` after stage {} (`{}`) has quantised it: put the quantising \
                         stage last, or exclude the layer with `ignore`",
                        index + 1,
                        stage.name,
                        shape.name,
                        before + 1,
                        stages[before].name,
                    )));
                }
                target.stages.push(index);
            }
        }
        blocks.push(targeted);
    }
    if let Some(index) = acted.iter().position(|acted| !acted) {
        let names: Vec<String> = projections_of_block(spec, 0).into_iter().map(|p| p.shape.name).collect();
        return Err(ModelError::Input(format!(
            "stage {} (`{}`) matches no projection of this model; block 0 has: {}",
            index + 1,
            stages[index].name,
            names.join(", ")
        )));
    }
    Ok(blocks)
}
