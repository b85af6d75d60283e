//! A recipe against the methods there are and the layers of a model.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use kindling_core::options::{OptionsError, nearest, unknown};
use kindling_core::{Family, LayerShape, Method, MethodEntry};

use super::targets::Pattern;
use super::{Located, Recipe, SHARED_KEYS, Stage};

/// What a recipe means for one model.
pub(crate) struct Resolved {
    /// What to do, in order.
    pub(crate) stages: Vec<ResolvedStage>,
    /// What the user should know although the run can go on.
    pub(crate) warnings: Vec<String>,
}

/// A configured method and the layers it works on.
pub(crate) struct ResolvedStage {
    /// The method's line in the list of its crate.
    pub(crate) entry: &'static MethodEntry,
    /// The method with the options of the stage.
    pub(crate) method: Method,
    /// Module names without the `model.layers.N.` prefix.
    pub(crate) layers: BTreeSet<String>,
    /// Everything that defines the stage, as text: a resumed run must share it.
    pub(crate) identity: String,
}

impl ResolvedStage {
    /// Whether the stage works on this layer.
    pub(crate) fn selects(&self, shape: &LayerShape) -> bool {
        self.layers.contains(&shape.name)
    }

    /// The stage as the compression of a model takes it.
    pub(crate) fn into_stage(self) -> kindling_model::compress::Stage {
        let Self { entry, method, layers, identity } = self;
        kindling_model::compress::Stage {
            name: entry.name.into(),
            family: entry.family,
            method,
            targets: Box::new(move |shape| layers.contains(&shape.name)),
            identity,
        }
    }
}

/// Looks up the methods, reads their options, selects their layers and lets each method check them.
///
/// `blocks` holds the projections of every decoder block; one block stands for all if they are alike. A
/// target must exist in at least one block. Fails with the first mistake, in the order of the recipe.
pub(crate) fn resolve(
    recipe: &Recipe,
    methods: &[&'static MethodEntry],
    blocks: &[Vec<LayerShape>],
) -> Result<Resolved> {
    let mut warnings = Vec::new();
    let mut stages: Vec<ResolvedStage> = Vec::new();
    for stage in &recipe.stages {
        let entry = find(recipe, stage, methods)?;
        let method = (entry.build)(&stage.options).map_err(|error| blame(recipe, stage, entry, &error))?;
        let layers = select(recipe, stage, entry, blocks, &mut warnings)?;
        let stage_line = stage.method.line;
        if let Some((layer, earlier)) = already_quantised(&stages, &layers) {
            let message = format!(
                "`{}` comes after `{earlier}`, which has quantised `{layer}`: put quantisation last, \
                 or exclude the layer by `ignore`",
                entry.name
            );
            return Err(recipe.mistake(stage_line, message));
        }
        let identity = serde_json::to_string(&(entry.name, &stage.options, &layers))?;
        let resolved = ResolvedStage { entry, method, layers, identity };
        for block in blocks {
            let shapes: Vec<LayerShape> = block.iter().filter(|shape| resolved.selects(shape)).cloned().collect();
            if !shapes.is_empty() {
                let check = resolved.method.check(&shapes);
                check.map_err(|error| recipe.mistake(stage_line, format!("{}: {error}", entry.name)))?;
            }
        }
        stages.push(resolved);
    }
    Ok(Resolved { stages, warnings })
}

fn find(recipe: &Recipe, stage: &Stage, methods: &[&'static MethodEntry]) -> Result<&'static MethodEntry> {
    let Located { line, value: name } = &stage.method;
    methods.iter().copied().find(|entry| entry.name == name).ok_or_else(|| {
        let names: Vec<&str> = methods.iter().map(|entry| entry.name).collect();
        recipe.mistake(*line, unknown("method", name, &names))
    })
}

/// A method's complaint about its options, at the line of the option it is about.
fn blame(recipe: &Recipe, stage: &Stage, entry: &MethodEntry, error: &OptionsError) -> anyhow::Error {
    let Some(key) = culprit(stage, entry, error) else {
        return recipe.mistake(stage.method.line, error);
    };
    let line = stage.lines[key];
    let is_unknown = error.0.contains(&format!("unknown key `{key}`"));
    if let Some(shared) = nearest(key, &SHARED_KEYS).filter(|_| is_unknown) {
        return recipe.mistake(line, format!("unknown key `{key}`, did you mean `{shared}`?"));
    }
    let named = if error.0.contains(key) { String::new() } else { format!(" (key `{key}`)") };
    recipe.mistake(line, format!("{error}{named}"))
}

/// The option that the message names first, else the only one without which the message would differ:
/// serde's messages about a value do not say whose value it is.
fn culprit<'a>(stage: &'a Stage, entry: &MethodEntry, error: &OptionsError) -> Option<&'a str> {
    let keys = || stage.lines.keys().map(String::as_str);
    let named = keys().filter_map(|key| Some((error.0.find(&format!("`{key}`"))?, key))).min();
    if let Some((_, key)) = named {
        return Some(key);
    }
    let mut guilty = keys().filter(|key| {
        let mut options = stage.options.clone();
        options.0.remove(*key);
        (entry.build)(&options).err().as_ref() != Some(error)
    });
    let first = guilty.next()?;
    guilty.next().is_none().then_some(first)
}

/// The names of the layers that a stage works on; never empty.
fn select(
    recipe: &Recipe,
    stage: &Stage,
    entry: &MethodEntry,
    blocks: &[Vec<LayerShape>],
    warnings: &mut Vec<String>,
) -> Result<BTreeSet<String>> {
    let shapes: BTreeMap<&str, &LayerShape> =
        blocks.iter().flatten().map(|shape| (shape.name.as_str(), shape)).collect();
    let found = |pattern: &Pattern| shapes.keys().any(|name| pattern.matches(name));

    for Located { line, value: pattern } in stage.targets.iter().flat_map(|targets| &targets.value) {
        if !found(pattern) {
            return Err(recipe.mistake(*line, no_such_layer(pattern, &shapes)));
        }
    }
    for Located { line, value: pattern } in &stage.ignore {
        // The output head is no part of any block: recipes exclude it out of habit.
        if !found(pattern) && !pattern.matches("lm_head") {
            warnings.push(format!("{}:{line}: `ignore` entry `{pattern}` matches no layer", recipe.name));
        }
    }

    let targeted = |shape: &LayerShape| match &stage.targets {
        Some(targets) => targets.value.iter().any(|target| target.value.matches(&shape.name)),
        None => crate::methods::is_default_target(entry, shape),
    };
    let ignored = |shape: &LayerShape| stage.ignore.iter().any(|entry| entry.value.matches(&shape.name));
    let layers: BTreeSet<String> =
        shapes.values().filter(|shape| targeted(shape) && !ignored(shape)).map(|shape| shape.name.clone()).collect();
    if layers.is_empty() {
        let message = match &stage.targets {
            Some(targets) if targets.value.is_empty() => "`targets` is empty: leave it out to mean every layer".into(),
            None if stage.ignore.is_empty() => format!("`{}` has no layer to work on in this model", entry.name),
            _ => "`ignore` leaves no layer to work on".to_string(),
        };
        return Err(recipe.mistake(stage.targets.as_ref().map_or(stage.method.line, |targets| targets.line), message));
    }
    Ok(layers)
}

fn no_such_layer(pattern: &Pattern, shapes: &BTreeMap<&str, &LayerShape>) -> String {
    let names: Vec<&str> = shapes.keys().copied().collect();
    let hint = if pattern.text().contains("layers.") {
        "; leave out the prefix `model.layers.N.`".to_string()
    } else if let Some(near) = nearest(pattern.text(), &names) {
        format!(", did you mean `{near}`?")
    } else {
        String::new()
    };
    // Experts differ by a number only: one line names them all.
    let alike: BTreeSet<String> = names
        .iter()
        .map(|name| name.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part }))
        .map(|parts| parts.collect::<Vec<_>>().join("."))
        .collect();
    let alike = alike.into_iter().collect::<Vec<_>>().join(", ");
    format!("`targets` entry `{pattern}` matches no layer{hint} (layers of a block: {alike})")
}

/// A layer that an earlier stage has quantised already, and the method that did: its codes would be lost.
fn already_quantised(stages: &[ResolvedStage], layers: &BTreeSet<String>) -> Option<(String, &'static str)> {
    let quantisers = stages.iter().filter(|stage| stage.entry.family == Family::Quantise);
    quantisers.into_iter().find_map(|stage| {
        let layer = stage.layers.intersection(layers).next()?;
        Some((layer.clone(), stage.entry.name))
    })
}

#[cfg(test)]
mod tests;
