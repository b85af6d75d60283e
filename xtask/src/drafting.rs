//! What `--draft` names, and texts written with it.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use burn::tensor::Device;
use kindling_core::sampling::Sampler;
use kindling_core::{Drafter, Target};
use kindling_model::checkpoint::MappedFile;
use kindling_model::tokenizer::Tokenizer;
use kindling_model::{Decoder, ModelFiles, Session};
use kindling_specdec::drafters::Nothing;
use kindling_specdec::drafters::infinigram::{Infinigram, InfinigramConfig, Outputs};
use kindling_specdec::drafters::lookup::Lookup;
use kindling_specdec::drafters::model::{ModelConfig, ModelDrafter};
use kindling_specdec::drafters::ngram::Ngram;
use kindling_specdec::drafters::recycling::{Candidates, Recycling};
use kindling_specdec::drafters::rest::{Rest, RestConfig};
use kindling_specdec::drafters::suffix::{OutputPool, Suffix, SuffixConfig};
use kindling_specdec::planner::Pass;
use kindling_specdec::{Calibration, CostModel, Index, Learned, Limits, Request, Written};

use crate::error::{OrUser, user};

/// Tokens of earlier outputs that `suffix` and `infinigram` remember.
const POOL: usize = 1 << 20;

/// Who guesses, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Draft {
    None,
    Lookup,
    Ngram,
    Suffix,
    Recycling,
    Infinigram(Option<PathBuf>),
    Rest(PathBuf),
    Model(PathBuf),
    Skip(usize),
}

impl FromStr for Draft {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, of) = text.split_once(':').map_or((text, None), |(name, of)| (name, Some(of)));
        match (name, of.filter(|of| !of.is_empty())) {
            ("none", None) => Ok(Self::None),
            ("lookup", None) => Ok(Self::Lookup),
            ("ngram", None) => Ok(Self::Ngram),
            ("suffix", None) => Ok(Self::Suffix),
            ("recycling", None) => Ok(Self::Recycling),
            ("infinigram", index) => Ok(Self::Infinigram(index.map(PathBuf::from))),
            ("rest", Some(index)) => Ok(Self::Rest(index.into())),
            ("model", Some(dir)) => Ok(Self::Model(dir.into())),
            ("skip", Some(blocks)) => blocks.parse().map(Self::Skip).map_err(|_| format!("skip:{blocks}: expected a number of blocks")),
            _ => Err("expected none, lookup, ngram, suffix, recycling, infinigram, infinigram:INDEX, rest:INDEX, model:DIR or skip:N".into()),
        }
    }
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lookup => f.write_str("lookup"),
            Self::Ngram => f.write_str("ngram"),
            Self::Suffix => f.write_str("suffix"),
            Self::Recycling => f.write_str("recycling"),
            Self::Infinigram(None) => f.write_str("infinigram"),
            Self::Infinigram(Some(index)) => write!(f, "infinigram:{}", index.display()),
            Self::Rest(index) => write!(f, "rest:{}", index.display()),
            Self::Model(dir) => write!(f, "model:{}", dir.display()),
            Self::Skip(blocks) => write!(f, "skip:{blocks}"),
        }
    }
}

/// What the drafters of all requests share.
pub(crate) struct Drafting {
    draft: Draft,
    target: Arc<Decoder>,
    tokens: usize,
    index: Option<Arc<Index<MappedFile>>>,
    model: Option<Arc<Decoder>>,
    calibration: Arc<Mutex<Calibration>>,
    pool: Arc<Mutex<OutputPool>>,
    outputs: Arc<Mutex<Outputs>>,
    candidates: Arc<Mutex<Candidates>>,
    costs: CostModel,
    measured: bool,
}

impl Drafting {
    /// Opens what `draft` names and refuses what does not fit the target.
    pub(crate) fn new(draft: &Draft, target: Arc<Decoder>, tokenizer: &Tokenizer, device: &Device) -> Result<Self> {
        let index = match draft {
            Draft::Infinigram(Some(path)) | Draft::Rest(path) => Some(Arc::new(open_index(path, tokenizer)?)),
            _ => None,
        };
        let model = match draft {
            Draft::Model(dir) => {
                let files = ModelFiles::open(dir)?;
                let theirs = crate::tokens::tokenizer(&files)?;
                if theirs.fingerprint() != tokenizer.fingerprint() {
                    return Err(user(format!(
                        "{}: its tokenizer is not the target's: a drafting model must use the same tokens",
                        dir.display()
                    )));
                }
                Some(Arc::new(Decoder::load(&files, device)?))
            }
            Draft::Skip(skipped) => Some(Arc::new(without_middle(&target, *skipped)?)),
            _ => None,
        };
        let vocab = target.spec().vocab_size;
        Ok(Self {
            draft: draft.clone(),
            tokens: tokenizer.vocab_size().min(vocab),
            target,
            index,
            model,
            calibration: Arc::default(),
            pool: Arc::new(Mutex::new(OutputPool::new(POOL, SuffixConfig::default().depth))),
            outputs: Arc::new(Mutex::new(Outputs::new(POOL, &InfinigramConfig::default()))),
            candidates: Arc::new(Mutex::new(Candidates::new(vocab))),
            costs: CostModel::default(),
            measured: false,
        })
    }

    /// A drafter for one request.
    fn drafter(&self, request: &Request) -> Result<Box<dyn Drafter>> {
        Ok(match (&self.draft, &self.index, &self.model) {
            (Draft::Lookup, ..) => Box::new(self.learned(Lookup::default())),
            (Draft::Ngram, ..) => Box::new(self.learned(Ngram::default())),
            (Draft::Suffix, ..) => {
                Box::new(self.learned(Suffix::new(SuffixConfig::default(), Some(self.pool.clone()))))
            }
            (Draft::Recycling, ..) => Box::new(self.learned(Recycling::new(self.candidates.clone()))),
            (Draft::Rest(_), Some(index), _) => Box::new(self.learned(Rest::new(index.clone(), RestConfig::default()))),
            (Draft::Infinigram(_), index, _) => {
                let drafter = Infinigram::new(index.clone(), self.calibration.clone(), InfinigramConfig::default());
                Box::new(drafter.with_outputs(self.outputs.clone()))
            }
            (Draft::Model(_) | Draft::Skip(_), _, Some(model)) => {
                let (session, vocab) = (Session::new(model.clone(), 1), self.target.spec().vocab_size);
                let config = ModelConfig::default();
                let sampler: Sampler = request.sampler.clone();
                Box::new(ModelDrafter::new(session, vocab, self.tokens, sampler, request.id, config).or_user()?)
            }
            _ => Box::new(Nothing),
        })
    }

    /// A drafter that learns how far to trust itself.
    fn learned<D: Drafter>(&self, drafter: D) -> Learned<D> {
        Learned::new(drafter, self.calibration.clone())
    }

    /// Writes all requests together. `each` sees new tokens as they come.
    pub(crate) fn write(
        &mut self,
        requests: &[Request],
        guesses: usize,
        each: impl FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Result<Vec<Written>> {
        let mut session = Session::new(self.target.clone(), requests.len());
        // A model that drafts is not planned: most of its cost is spent before there is anything to plan.
        let planned = !matches!(self.draft, Draft::None | Draft::Model(_) | Draft::Skip(_));
        if planned && !self.measured {
            self.measured = true;
            self.measure(&mut session, &requests[0], guesses)?;
        }
        let mut drafters = requests.iter().map(|request| self.drafter(request)).collect::<Result<Vec<_>>>()?;
        let guesses = if self.draft == Draft::None { 0 } else { guesses };
        let limits = Limits { guesses, tokens: self.tokens };
        Ok(kindling_specdec::generate(&mut session, requests, &mut drafters, &limits, &mut self.costs, each)?)
    }

    /// Milliseconds of passes with 0, 1, … guesses up to those of `pass`, as far as measured.
    pub(crate) fn pass_ms(&self, pass: Pass) -> Vec<f64> {
        self.costs.times(pass).iter().map(|seconds| 1e3 * seconds).collect()
    }

    /// Times passes of several lengths once: how much a guess costs on this machine.
    fn measure(&mut self, session: &mut Session, request: &Request, guesses: usize) -> Result<()> {
        let Some(&last) = request.prompt.last() else { return Ok(()) };
        session.forward(&[kindling_core::draft::Input::chain(0, request.prompt.clone())], true)?;
        let lengths: Vec<usize> = [0, 1, 2, 4, 8, 16, 32].into_iter().filter(|&k| k <= guesses).collect();
        self.costs.measure(session, 0, last, &lengths)?;
        Ok(session.keep(0, 0, &[])?)
    }
}

/// The index of a file, if it holds this tokenizer's tokens.
pub(crate) fn open_index(path: &Path, tokenizer: &Tokenizer) -> Result<Index<MappedFile>> {
    let name = path.display();
    let file = MappedFile::open(path).or_user()?;
    let index = Index::read(file).map_err(|error| user(format!("{name}: {error}")))?;
    index
        .check_tokenizer(&hash(tokenizer), tokenizer.vocab_size())
        .map_err(|error| user(format!("{name}: {error}")))?;
    Ok(index)
}

/// The fingerprint of a tokenizer, as indexes keep it.
pub(crate) fn hash(tokenizer: &Tokenizer) -> [u8; 32] {
    let digits = tokenizer.fingerprint().as_bytes();
    let digit = |place: usize| digits.get(place).and_then(|&digit| (digit as char).to_digit(16)).unwrap_or(0) as u8;
    std::array::from_fn(|byte| digit(2 * byte) << 4 | digit(2 * byte + 1))
}

/// The target without so many blocks of its middle: the first and last ones matter most.
fn without_middle(target: &Decoder, skipped: usize) -> Result<Decoder> {
    let count = target.blocks().len();
    if skipped + 2 > count {
        return Err(user(format!(
            "skip:{skipped}: of {count} blocks at most {} can be skipped",
            count.saturating_sub(2)
        )));
    }
    let first = (count - skipped).div_ceil(2);
    let kept: Vec<usize> = (0..count).filter(|block| !(first..first + skipped).contains(block)).collect();
    let mut model = target.clone();
    model.keep_blocks(&kept)?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_read_as_they_are_written() {
        for text in [
            "none",
            "lookup",
            "ngram",
            "suffix",
            "recycling",
            "infinigram",
            "infinigram:a:b",
            "rest:x",
            "model:d",
            "skip:3",
        ] {
            assert_eq!(text.parse::<Draft>().unwrap().to_string(), text);
        }
        for text in ["", "lookup:3", "rest", "rest:", "model", "skip:few", "suffux"] {
            assert!(text.parse::<Draft>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_drafter_of_the_list_can_be_named() {
        for entry in kindling_specdec::METHODS {
            let named = [entry.name.to_string(), format!("{}:3", entry.name)];
            assert!(named.iter().any(|text| text.parse::<Draft>().is_ok()), "{}", entry.name);
        }
    }
}
