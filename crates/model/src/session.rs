//! A model with the caches of several texts: the [`Target`] of speculative decoding, or what drafts for one.
//!
//! New tokens of all texts run as one row through projections and MLPs, however many each has, so nothing is padded;
//! only attention looks at each text apart.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Tensor, s};
use kindling_core::draft::{Input, Logits};
use kindling_core::{AttendSpec, Error, KvMemory, KvStore, Result, Target};

use crate::decoder::Decoder;
use crate::error::ModelError;

/// See the [module](self).
pub struct Session {
    model: Arc<Decoder>,
    texts: Vec<Box<dyn KvStore>>,
}

impl Session {
    /// `model` with empty caches for so many texts.
    pub fn new(model: Arc<Decoder>, texts: usize) -> Self {
        let texts = (0..texts).map(|_| Box::new(model.new_kv()) as Box<dyn KvStore>).collect();
        Self::with_caches(model, texts)
    }

    /// `model` with these caches, one per text, each empty and of the model's number of layers.
    pub fn with_caches(model: Arc<Decoder>, texts: Vec<Box<dyn KvStore>>) -> Self {
        Self { model, texts }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Decoder> {
        &self.model
    }

    fn text(&self, text: usize) -> Result<&dyn KvStore> {
        let count = self.texts.len();
        let found =
            self.texts.get(text).ok_or_else(|| Error::Invalid(format!("text {text} of a session of {count} texts")));
        found.map(|text| &**text)
    }
}

fn failed(error: ModelError) -> Error {
    match error {
        ModelError::Core(error) => error,
        error => Error::Invalid(error.to_string()),
    }
}

impl Target for Session {
    fn vocab_size(&self) -> usize {
        self.model.spec().vocab_size
    }

    fn len(&self, text: usize) -> usize {
        self.texts.get(text).map_or(0, |text| text.len(0))
    }

    fn takes_trees(&self) -> bool {
        self.texts.iter().all(|text| text.takes_trees())
    }

    fn forward(&mut self, inputs: &[Input], last_only: bool) -> Result<Logits> {
        let (mut ids, mut places, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        let mut parts: Vec<Part> = Vec::with_capacity(inputs.len());
        for input in inputs {
            let held = self.text(input.text)?.len(0);
            if input.tokens.is_empty()
                || input.parents.len() != input.tokens.len()
                || parts.iter().any(|part| part.text == input.text)
            {
                return Err(Error::Invalid(format!(
                    "text {}: {} tokens with {} parents; a pass takes at least one of each, once per text",
                    input.text,
                    input.tokens.len(),
                    input.parents.len()
                )));
            }
            let start = ids.len();
            let mut depths: Vec<usize> = Vec::with_capacity(input.tokens.len());
            for (t, parent) in input.parents.iter().enumerate() {
                if parent.is_some_and(|parent| parent >= t) {
                    return Err(Error::Invalid(format!(
                        "text {}: token {t} follows token {parent:?}, which is not earlier",
                        input.text
                    )));
                }
                depths.push(parent.map_or(0, |parent| depths[parent] + 1));
            }
            // Read at once, a prompt is a text of its whole length; tokens of a draft come one after the other.
            let length = |depth: usize| held + if last_only { input.tokens.len() } else { depth + 1 };
            places.extend(depths.iter().map(|&depth| (held + depth, length(depth))));
            ids.extend(&input.tokens);
            wanted.extend(if last_only { ids.len() - 1..ids.len() } else { start..ids.len() });
            let parents = (!input.is_chain()).then(|| input.parents.clone());
            parts.push(Part { text: input.text, rows: start..ids.len(), parents });
        }
        if ids.is_empty() {
            return Err(Error::Invalid("a pass without tokens".into()));
        }
        let held: Vec<usize> = parts.iter().map(|part| self.texts[part.text].len(0)).collect();
        let mut kv = Ragged { texts: &mut self.texts, parts: &parts };
        let logits = self.model.forward_at(ids, &places, &mut kv, &wanted);
        if logits.is_err() {
            // Some layers may have the new positions already.
            parts.iter().zip(held).try_for_each(|(part, held)| self.texts[part.text].truncate(held))?;
        }
        Ok(Logits { values: logits.map_err(failed)?, vocab: self.vocab_size() })
    }

    fn keep(&mut self, text: usize, from: usize, rows: &[usize]) -> Result<()> {
        self.text(text)?;
        self.texts[text].gather(from, rows)
    }
}

/// The tokens of one text in a row of several.
struct Part {
    text: usize,
    rows: Range<usize>,
    /// `None`: a chain.
    parents: Option<Vec<Option<usize>>>,
}

/// The caches of several texts as one.
struct Ragged<'a> {
    texts: &'a mut [Box<dyn KvStore>],
    parts: &'a [Part],
}

impl Ragged<'_> {
    /// `x` `[1, heads, tokens, width]`, only the tokens of one text.
    fn of(&self, part: &Part, x: &Tensor<4>) -> Tensor<4> {
        if self.parts.len() == 1 { x.clone() } else { x.clone().slice(s![.., .., part.rows.clone(), ..]) }
    }
}

impl KvStore for Ragged<'_> {
    fn len(&self, layer: usize) -> usize {
        self.parts.first().map_or(0, |part| self.texts[part.text].len(layer))
    }

    fn append(&mut self, layer: usize, keys: Tensor<4>, values: Tensor<4>) -> Result<()> {
        for part in self.parts {
            let (keys, values) = (self.of(part, &keys), self.of(part, &values));
            self.texts[part.text].append(layer, keys, values)?;
        }
        Ok(())
    }

    fn attend(&mut self, layer: usize, queries: Tensor<4>, spec: &AttendSpec) -> Result<Tensor<4>> {
        let mut outputs = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            let queries = self.of(part, &queries);
            let text = &mut self.texts[part.text];
            outputs.push(match &part.parents {
                None => text.attend(layer, queries, spec)?,
                Some(parents) => text.attend_tree(layer, queries, parents, spec)?,
            });
        }
        Ok(if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(outputs, 2) })
    }

    fn in_memory(&mut self, layer: usize, tokens: usize) -> Option<KvMemory<'_>> {
        let [part] = self.parts else { return None };
        let parents = part.parents.as_deref();
        self.texts[part.text].in_memory(layer, tokens).map(|memory| KvMemory { parents, ..memory })
    }

    fn truncate(&mut self, _: usize) -> Result<()> {
        Err(Error::Invalid("texts of a batch are cut one by one".into()))
    }

    fn set_padding(&mut self, _: Vec<usize>) {}
}
