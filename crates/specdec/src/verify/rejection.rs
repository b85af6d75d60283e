//! Rejection sampling of drawn guesses.

use kindling_core::sampling::uniform;
use kindling_core::{Draft, Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::Verdict;

/// Chance. Tests put every outcome here in turn.
pub trait Dice {
    /// True with this probability.
    fn flip(&mut self, probability: f64) -> bool;
    /// A place in `weights` with a probability in proportion to its weight; at least one weight is positive.
    fn pick(&mut self, weights: &[f64]) -> usize;
}

/// Dice that depend on a seed, a request and a position only.
#[derive(Debug, Clone)]
pub struct SeededDice(ChaCha8Rng);

impl SeededDice {
    /// The dice of one position of one request. `purpose` keeps drafting and verifying apart: they must not share luck.
    pub fn new(seed: u64, purpose: &str, request: u64, position: u64) -> Self {
        let purpose = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ purpose);
        rng.set_stream(request);
        // Room for 2^31 numbers of 64 bits per position.
        rng.set_word_pos(u128::from(position) << 32);
        Self(rng)
    }
}

impl Dice for SeededDice {
    fn flip(&mut self, probability: f64) -> bool {
        uniform(&mut self.0) < probability
    }

    fn pick(&mut self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        let point = uniform(&mut self.0) * total;
        let mut below = 0.0;
        let mut last = 0;
        for (place, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            below += weight;
            last = place;
            if point < below {
                break;
            }
        }
        last
    }
}

/// Walks down the tree: a guess `x` drawn from `q` is accepted with probability `min(1, p(x) / q(x))`; after a refusal
/// `p` becomes the normalised `max(p − q, 0)` and the next sibling is tried; where all are refused, a token is drawn from
/// what is left of `p`. A guess that was not drawn counts as drawn from a law that knows only it.
///
/// `law(row, prefix)` is `p` (`[vocab]`, summing to 1) after `prefix` more tokens, given the logits of `row`, with every
/// processor applied. Siblings must be independent draws from their law, or distinct fixed guesses.
///
/// # Errors
/// Those of `law`; [`Error::Shape`] if a draft's law has another length than `p`; [`Error::Invalid`] if a guess is not a
/// token of the vocabulary.
pub fn reject(
    draft: &Draft,
    mut law: impl FnMut(usize, &[u32]) -> Result<Vec<f64>>,
    dice: &mut impl Dice,
) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut row = 0;
    loop {
        let mut p = law(row, &verdict.tokens)?;
        match accepted_child(draft, row, &mut p, dice)? {
            Some(child) => {
                verdict.path.push(child);
                verdict.tokens.push(draft.nodes()[child].token);
                row = child + 1;
            }
            None => {
                verdict.tokens.push(dice.pick(&p) as u32);
                return Ok(verdict);
            }
        }
    }
}

/// The first accepted child of `row`; where there is none, `p` is left as what the next token must follow.
fn accepted_child(draft: &Draft, row: usize, p: &mut [f64], dice: &mut impl Dice) -> Result<Option<usize>> {
    let q = draft.law(row);
    if let Some(q) = q.filter(|q| q.len() != p.len()) {
        return Err(Error::Shape { what: "law of a draft".into(), expected: vec![p.len()], found: vec![q.len()] });
    }
    for child in draft.children(row) {
        let x = draft.nodes()[child].token as usize;
        let likely = *p.get(x).ok_or_else(|| {
            Error::Invalid(format!("draft: token {x} is outside the vocabulary of {} tokens", p.len()))
        })?;
        let asked = q.map_or(1.0, |q| q[x]);
        // A token that its own law could not draw is refused.
        let ratio = if asked > 0.0 { (likely / asked).min(1.0) } else { 0.0 };
        if dice.flip(ratio) {
            return Ok(Some(child));
        }
        let rest = |place: usize, p: f64| match q {
            Some(q) => (p - q[place]).max(0.0),
            None => {
                if place == x {
                    0.0
                } else {
                    p
                }
            }
        };
        let left: f64 = p.iter().enumerate().map(|(place, &p)| rest(place, p)).sum();
        if left > 0.0 {
            p.iter_mut().enumerate().for_each(|(place, p)| *p = rest(place, *p) / left);
        }
        // Nothing left: p and q are equal up to rounding, and the refusal was an accident of it. p stays.
    }
    Ok(None)
}
