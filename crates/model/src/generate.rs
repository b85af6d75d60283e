//! Decoding: prompts in, tokens out, one at a time or many together.

use kindling_core::KvStore;

use crate::decoder::{Decoder, StepRoom, Wanted, to_host};
use crate::error::{ModelError, Result};
use crate::sampling::{Sampler, SamplingConfig};
use crate::tokenizer::Tokenizer;

/// New tokens that memory is asked for at once.
const EXPECTED: usize = 4096;

/// A prompt and how to go on from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Names the stream of random numbers: a request gives the same text alone and in any batch.
    pub id: u64,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// At most this many tokens are added.
    pub max_new_tokens: usize,
    /// Tokens that end the text; they are not part of it.
    pub eos: Vec<u32>,
    /// Texts that end the text; neither they nor what follows is part of it. They need a tokenizer.
    pub stop: Vec<String>,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end token came.
    Eos,
    /// A stop text came.
    Stop,
    /// The limit of new tokens was reached.
    Length,
    /// The caller asked to stop.
    Interrupted,
}

/// A finished text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The new tokens.
    pub ids: Vec<u32>,
    /// Their text, cut at a stop text; empty without a tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// What a caller sees while texts grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All prompts have been read.
    Prefilled,
    /// Request number `.0` has `.1` more text that is certain.
    Text(usize, String),
    /// A round of decoding is done; so many rows are still growing.
    Step(usize),
}

/// Whether to go on.
pub type Flow = std::ops::ControlFlow<()>;

/// One growing text: takes tokens, gives the text that is certain, knows when it has ended.
pub struct Growing<'a> {
    request: &'a Request,
    sampler: Sampler,
    history: Vec<u32>,
    ids: Vec<u32>,
    stream: Option<crate::tokenizer::StreamDecoder<'a>>,
    /// Text that is complete, and how much of it has been shown.
    text: String,
    shown: usize,
    finish: Option<Finish>,
}

impl<'a> Growing<'a> {
    /// An empty continuation of `request`. Without a tokenizer there is no text.
    ///
    /// # Errors
    /// If the settings of the sampler are out of range, or the prompt cannot be decoded.
    pub fn new(request: &'a Request, tokenizer: Option<&'a Tokenizer>) -> Result<Self> {
        Ok(Self {
            request,
            sampler: Sampler::new(request.sampling.clone()).map_err(input)?,
            history: request.prompt.clone(),
            ids: Vec::new(),
            stream: tokenizer.map(|t| t.stream(&request.prompt, true)).transpose().map_err(input)?,
            text: String::new(),
            shown: 0,
            finish: (request.max_new_tokens == 0).then_some(Finish::Length),
        })
    }

    /// Why it ended; `None` while it grows.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// What became of it; one that still grew was interrupted.
    pub fn into_completion(self) -> Completion {
        Completion { ids: self.ids, text: self.text, finish: self.finish.unwrap_or(Finish::Interrupted) }
    }

    /// Takes the next token; gives text to show.
    ///
    /// # Errors
    /// If the token cannot be decoded.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.history.push(id);
        if self.request.eos.contains(&id) {
            self.finish = Some(Finish::Eos);
            return self.flush();
        }
        self.ids.push(id);
        if let Some(stream) = &mut self.stream
            && let Some(piece) = stream.push(id).map_err(input)?
        {
            self.text.push_str(&piece);
        }
        if let Some(cut) = self.request.stop.iter().filter_map(|stop| self.text.find(stop.as_str())).min() {
            self.text.truncate(cut);
            self.finish = Some(Finish::Stop);
            return Ok(self.show(cut));
        }
        if self.ids.len() >= self.request.max_new_tokens {
            self.finish = Some(Finish::Length);
            return self.flush();
        }
        // The end of the text may be the beginning of a stop text: it is held back.
        let held = self.request.stop.iter().map(|stop| overlap(&self.text, stop)).max().unwrap_or(0);
        Ok(self.show(self.text.len() - held))
    }

    /// Shows whatever was held back.
    fn flush(&mut self) -> Result<Option<String>> {
        if let Some(stream) = self.stream.take()
            && let Some(rest) = stream.finish().map_err(input)?
        {
            self.text.push_str(&rest);
        }
        Ok(self.show(self.text.len()))
    }

    fn show(&mut self, to: usize) -> Option<String> {
        let new = self.text.get(self.shown..to).filter(|new| !new.is_empty()).map(str::to_string);
        self.shown = self.shown.max(to);
        new
    }
}

/// The length of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
        .unwrap_or(0)
}

fn input(error: impl std::fmt::Display) -> ModelError {
    ModelError::Input(error.to_string())
}

/// Runs all requests together, one forward pass per token of the longest.
///
/// Shorter prompts are padded on the left and masked, so each gives what it gives alone. `each` sees text as it becomes
/// certain and may stop everything by breaking.
pub fn generate(
    model: &Decoder,
    tokenizer: Option<&Tokenizer>,
    requests: &[Request],
    mut each: impl FnMut(Event) -> Flow,
) -> Result<Vec<Completion>> {
    let longest = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0);
    if let Some(empty) = requests.iter().position(|request| request.prompt.is_empty()) {
        return Err(ModelError::Input(format!("prompt {} has no tokens: at least one is needed", empty + 1)));
    }
    if tokenizer.is_none() && requests.iter().any(|request| !request.stop.is_empty()) {
        return Err(ModelError::Input("stop texts need a tokenizer".into()));
    }
    let mut rows = requests.iter().map(|request| Growing::new(request, tokenizer)).collect::<Result<Vec<_>>>()?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }

    let padding: Vec<usize> = requests.iter().map(|request| longest - request.prompt.len()).collect();
    let mut kv = model.new_kv();
    let most = requests.iter().map(|request| request.max_new_tokens).max().unwrap_or(0);
    kv.expect(longest + most.min(EXPECTED));
    let mut room = StepRoom::default();
    let mut next: Vec<Vec<u32>> = requests
        .iter()
        .zip(&padding)
        .map(|(request, &pad)| [vec![request.prompt[0]; pad], request.prompt.clone()].concat())
        .collect();
    let mut prefilled = false;
    while rows.iter().any(|row| row.finish.is_none()) {
        // A single text goes on without tensors where it can.
        let stepped = match next.as_slice() {
            [row] if prefilled => model.step(row[0], &mut kv, &mut room)?,
            _ => None,
        };
        let mut held;
        let logits = match stepped {
            Some(logits) => logits,
            None => {
                held = step(model, &next, &padding, &mut kv)?;
                &mut held
            }
        };
        if !std::mem::replace(&mut prefilled, true) && each(Event::Prefilled).is_break() {
            break;
        }
        let vocab = logits.len() / rows.len();
        for (index, (row, logits)) in rows.iter_mut().zip(logits.chunks_exact_mut(vocab)).enumerate() {
            // A finished row keeps its place in the batch; what it computes is not used.
            let id = match row.finish {
                Some(_) => row.request.prompt[0],
                None => {
                    let position = row.history.len() as u64;
                    let id = row.sampler.sample(logits, &row.history, row.request.id, position).map_err(input)?;
                    if let Some(text) = row.push(id)?
                        && each(Event::Text(index, text)).is_break()
                    {
                        row.finish.get_or_insert(Finish::Interrupted);
                    }
                    id
                }
            };
            next[index].clear();
            next[index].push(id);
        }
        if each(Event::Step(rows.iter().filter(|row| row.finish.is_none()).count())).is_break() {
            break;
        }
    }
    Ok(rows.into_iter().map(Growing::into_completion).collect())
}

/// Logits of the last position of every row, row after row.
fn step(model: &Decoder, ids: &[Vec<u32>], padding: &[usize], kv: &mut dyn KvStore) -> Result<Vec<f32>> {
    to_host(model.forward(ids, padding, kv, Wanted::LastLogits)?)
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn an_end_that_may_become_a_stop_text_is_found() {
        assert_eq!(overlap("see you at the e", "end"), 1);
        assert_eq!(overlap("abab", "abc"), 2);
        assert_eq!(overlap("abc", "abc"), 0);
        assert_eq!(overlap("", "x"), 0);
        assert_eq!(overlap("né", "éa"), 2);
    }
}
