//! Any drafter with confidences that can be relied on.
//!
//! What a drafter thinks of its guesses is a feature, not a probability. How often guesses of that depth and of that
//! opinion were right is learned while decoding, from every guess, verified or not; so the [planner](crate::planner) can
//! leave out what does not pay, down to plain decoding, and take guessing up again when it would.

use std::sync::{Arc, Mutex, PoisonError};

use kindling_core::draft::Room;
use kindling_core::{Draft, Drafter, Result};

use crate::calibration::{Calibration, Key};

/// `D` with learned confidences. For drafters that cost little: what guessing itself costs is not planned.
#[derive(Debug)]
pub struct Learned<D> {
    inner: D,
    calibration: Arc<Mutex<Calibration>>,
    /// The last guesses, before anything was cut, and where each is filed.
    guessed: Draft,
    keys: Vec<Key>,
}

impl<D: Drafter> Learned<D> {
    /// `inner` with what was learned before, by it or others of its kind.
    pub fn new(inner: D, calibration: Arc<Mutex<Calibration>>) -> Self {
        Self { inner, calibration, guessed: Draft::default(), keys: Vec::new() }
    }
}

impl<D: Drafter> Drafter for Learned<D> {
    fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.guessed.clear();
        self.inner.begin(prompt)
    }

    fn propose(&mut self, room: &Room, draft: &mut Draft) -> Result<()> {
        self.inner.propose(room, draft)?;
        let calibration = self.calibration.lock().unwrap_or_else(PoisonError::into_inner);
        self.keys.clear();
        let mut learned = Draft::default();
        let mut depths: Vec<usize> = Vec::with_capacity(draft.len());
        for guess in draft.nodes() {
            let (above, sure, depth) = match guess.parent {
                None => (1.0, 1.0, 1),
                Some(parent) => {
                    (draft.nodes()[parent].confidence, learned.nodes()[parent].confidence, depths[parent] + 1)
                }
            };
            let opinion = if above > 0.0 { f64::from(guess.confidence / above) } else { 0.0 };
            let key = calibration.key(0, depth, 1, opinion);
            learned.push(guess.parent, guess.token, sure * calibration.probability(key, opinion) as f32)?;
            depths.push(depth);
            self.keys.push(key);
        }
        for row in 0..=draft.len() {
            if let Some(law) = draft.law(row) {
                learned.drawn_from(row, law.to_vec());
            }
        }
        self.guessed = learned.clone();
        *draft = learned;
        Ok(())
    }

    fn commit(&mut self, tokens: &[u32]) -> Result<()> {
        let mut calibration = self.calibration.lock().unwrap_or_else(PoisonError::into_inner);
        let mut row = Some(0);
        for token in tokens {
            let Some(at) = row.take() else { break };
            for child in self.guessed.children(at) {
                let right = self.guessed.nodes()[child].token == *token;
                calibration.learn(self.keys[child], right);
                row = if right { Some(child + 1) } else { row };
            }
        }
        drop(calibration);
        self.guessed.clear();
        self.inner.commit(tokens)
    }

    fn looks_at(&self) -> usize {
        self.inner.looks_at()
    }

    fn observe(&mut self, token: u32, best: &[u32]) {
        self.inner.observe(token, best);
    }

    fn is_calibrated(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guesses 1 2 and, as an alternative it believes in less, 3.
    struct Fixed;

    impl Drafter for Fixed {
        fn begin(&mut self, _: &[u32]) -> Result<()> {
            Ok(())
        }
        fn propose(&mut self, _: &Room, draft: &mut Draft) -> Result<()> {
            let one = draft.push(None, 1, 0.6)?;
            draft.push(None, 3, 0.3)?;
            draft.push(Some(one), 2, 0.3)?;
            Ok(())
        }
        fn commit(&mut self, _: &[u32]) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn opinions_become_rates() {
        let mut drafter = Learned::new(Fixed, Arc::default());
        let room = Room { nodes: 8, depth: 8, trees: true, batch: 1 };
        let mut draft = Draft::default();
        for round in 0..800 {
            draft.clear();
            drafter.propose(&room, &mut draft).unwrap();
            // One in four is right, and then the next one always.
            drafter.commit(if round % 4 == 0 { &[1, 2, 9] } else { &[7, 2] }).unwrap();
        }
        draft.clear();
        drafter.propose(&room, &mut draft).unwrap();
        let found: Vec<f32> = draft.nodes().iter().map(|node| node.confidence).collect();
        for (found, expected) in found.iter().zip([0.25, 0.0, 0.25]) {
            assert!((found - expected).abs() < 0.04, "{found:?}");
        }
    }
}
