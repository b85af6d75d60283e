//! How much to verify: as long as the tokens to be expected grow faster than the time.
//!
//! A round of `b` texts that verifies `k` guesses takes `T(k)` and gives `b + Σ A` tokens on average, `A` being the
//! probability that a guess and all before it are right. Guesses of all texts are sorted by `A`, and the best beginning
//! of that order is verified: a text that is easy to guess gets the share of one that is not, and where nothing pays
//! nothing is verified.
//!
//! What guessing cost and did not bring back is a debt, which may grow with the time spent only so far, and farther after gains:
//! beyond, a text is decoded plainly until it may again. So guessing may bring much, and loses little, whatever was wrong about it.

use std::collections::BTreeMap;

use kindling_core::draft::Input;
use kindling_core::{Draft, Result, Target};

/// One in so many rounds that few measurements hold back verifies a guess more, until there are enough of them: they may
/// have been taken while the machine had other work.
const LOOK_AGAIN: u32 = 16;
/// Measured rounds remembered for each number of guesses.
const KEPT: usize = 15;
/// The cost of a guess, in rounds without any, where nothing was measured.
const ASSUMED: f64 = 0.05;
/// What guessing may lose, of the time spent.
const ALLOWED: f64 = 0.005;
/// What it may lose beyond, of the time spent, where it gained as much before.
const CREDIT: f64 = 0.03;
/// What it may lose before anything was gained, in rounds without guesses.
const GRACE: f64 = 2.0;
/// What remains of both after a round: what was not lost long ago may not be lost now.
const FADING: f64 = 0.999;
/// After so many rounds with guesses one without tells what such a round takes by now.
const PLAIN_AGAIN: u32 = 64;
/// A pass that takes longer, in seconds, is too dear to be repeated for measurements.
const SLOW: f64 = 0.01;

/// What a pass of the target verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// Texts that take part.
    pub batch: usize,
    /// Tokens of the longest of them.
    pub context: usize,
    /// Guesses of all of them.
    pub guesses: usize,
    /// Whether some text's guesses are a tree and no chain: what each token sees must then be told.
    pub tree: bool,
}

/// Time of a pass by number of guesses, as chains and as trees: lower quartiles of the newest measurements, by powers of two of texts and
/// context. Whatever else the machine does only adds to a time, so low ones tell more than high ones.
#[derive(Debug, Clone, Default)]
pub struct CostModel {
    rows: BTreeMap<(u32, u32), Row>,
    /// Rounds in which less was verified than assumed costs would have paid for.
    held_back: u32,
    /// Rounds with guesses since the last without.
    since_plain: u32,
    /// Seconds of rounds.
    spent: f64,
    /// Seconds that guessing cost more than it brought; below zero where it brought more, as far as that is remembered.
    debt: f64,
}

/// The newest times of rounds of as many guesses, in a ring.
#[derive(Debug, Clone, Default)]
struct Times {
    newest: Vec<f64>,
    pushed: usize,
    /// Their lower quartile.
    usual: f64,
}

impl Times {
    fn push(&mut self, seconds: f64) {
        if self.newest.len() < KEPT {
            self.newest.push(seconds);
        } else {
            self.newest[self.pushed % KEPT] = seconds;
        }
        self.pushed += 1;
        let mut times = [f64::INFINITY; KEPT];
        times[..self.newest.len()].copy_from_slice(&self.newest);
        times.sort_unstable_by(f64::total_cmp);
        self.usual = times[self.newest.len() / 4];
    }
}

/// By number of guesses. No guess is a chain.
#[derive(Debug, Clone, Default)]
struct Row {
    chains: BTreeMap<usize, Times>,
    trees: BTreeMap<usize, Times>,
}

impl Row {
    fn of(&self, pass: Pass) -> &BTreeMap<usize, Times> {
        if pass.tree { &self.trees } else { &self.chains }
    }

    /// Times of 0, 1, …, guesses; never less for more.
    fn times(&self, Pass { guesses: most, tree, .. }: Pass) -> Vec<f64> {
        // Trees of which nothing is known take as long as chains.
        let tree = tree && !self.trees.is_empty();
        let plain = self.chains.iter().take_while(|&(&k, _)| tree && k == 0);
        let measured = plain.chain(if tree { &self.trees } else { &self.chains });
        let mut known: Vec<(usize, f64)> = measured.map(|(&k, times)| (k, times.usual)).collect();
        // More guesses never take less time: where they seem to, the time of the fewer ones was disturbed.
        let mut lowest = f64::INFINITY;
        for (_, time) in known.iter_mut().rev() {
            lowest = lowest.min(*time);
            *time = lowest;
        }
        let Some(&(first, base)) = known.first() else { return assumed(most) };
        (0..=most)
            .map(|k| match known.partition_point(|&(at, _)| at <= k) {
                // Fewer guesses than were ever measured: no cheaper than assumed.
                0 => base / (1.0 + ASSUMED * (first - k) as f64),
                n if n == known.len() => {
                    let (at, time) = known[n - 1];
                    time + ASSUMED * base * (k - at) as f64
                }
                n => {
                    let ((a, low), (b, high)) = (known[n - 1], known[n]);
                    low + (high - low) * (k - a) as f64 / (b - a) as f64
                }
            })
            .collect()
    }
}

/// Times where nothing was measured, in rounds without guesses.
fn assumed(most: usize) -> Vec<f64> {
    (0..=most).map(|k| 1.0 + ASSUMED * k as f64).collect()
}

impl CostModel {
    fn key(pass: Pass) -> (u32, u32) {
        (pass.batch.max(1).ilog2(), pass.context.max(1).ilog2())
    }

    /// A pass took this long.
    pub fn push(&mut self, pass: Pass, seconds: f64) {
        if !(seconds.is_finite() && seconds > 0.0) {
            return;
        }
        let key = Self::key(pass);
        if !self.rows.contains_key(&key) {
            // A new row begins as the nearest one.
            let row = self.nearest(pass).cloned().unwrap_or_default();
            self.rows.insert(key, row);
        }
        let row = self.rows.entry(key).or_default();
        let times = if pass.tree { &mut row.trees } else { &mut row.chains };
        times.entry(pass.guesses).or_default().push(seconds);
    }

    /// Books a round whose pass gave so many `tokens` and whose guesses took `guessing` seconds to make. What
    /// the pass took longer than passes for as many tokens without guesses is told by the usual times: its own may be
    /// that of other work on the machine.
    pub fn book(&mut self, pass: Pass, tokens: usize, guessing: f64) {
        let times = self.times(pass);
        let (plain, taken) = (times[0], times[pass.guesses]);
        self.since_plain = if pass.guesses == 0 { 0 } else { self.since_plain + 1 };
        self.spent = FADING * self.spent + guessing + taken;
        let beyond = taken - plain * tokens as f64 / pass.batch.max(1) as f64;
        let lost = guessing + if pass.guesses > 0 { beyond } else { 0.0 };
        self.debt = (FADING * self.debt + lost).max(-CREDIT * self.spent);
    }

    /// Whether guessing has not yet lost as much as it may.
    pub fn may_guess(&self, batch: usize, context: usize) -> bool {
        let beyond = self.debt - ALLOWED * self.spent;
        beyond <= 0.0 || beyond <= GRACE * self.times(Pass { batch, context, guesses: 0, tree: false })[0]
    }

    /// How many passes of this kind were measured, of those remembered.
    fn measured(&self, pass: Pass) -> usize {
        let row = self.rows.get(&Self::key(pass)).and_then(|row| row.of(pass).get(&pass.guesses));
        row.map_or(0, |times| times.newest.len())
    }

    /// Times of such passes with 0, 1, … guesses up to those of `pass`, in seconds or, before the first measurement, in
    /// passes.
    pub fn times(&self, pass: Pass) -> Vec<f64> {
        self.nearest(pass).map_or_else(|| assumed(pass.guesses), |row| row.times(pass))
    }

    /// The row to go by: that of as many texts with about as much context. What a pass of fewer texts takes tells nothing of
    /// one of more: not even which costs less.
    fn nearest(&self, pass: Pass) -> Option<&Row> {
        let (texts, context) = Self::key(pass);
        let rows = self.rows.range((texts, 0)..=(texts, u32::MAX));
        rows.min_by_key(|((_, at), _)| at.abs_diff(context)).map(|(_, row)| row)
    }

    /// Measures passes with some numbers of guesses, as chains and as trees, eight times each, behind the end of `text`, whose newest token is
    /// `last`; leaves the text as it was. A target that takes longer than 10 ms for the first of them is not asked for the
    /// others: it will tell by real rounds, and guesses are cheap beside its weights.
    ///
    /// # Errors
    /// Those of the target.
    pub fn measure(&mut self, target: &mut dyn Target, text: usize, last: u32, guesses: &[usize]) -> Result<()> {
        let from = target.len(text);
        let chain = |&guesses: &usize| Pass { batch: 1, context: from, guesses, tree: false };
        let trees = guesses.iter().filter(|&&k| k > 1 && target.takes_trees()).map(|k| Pass { tree: true, ..chain(k) });
        let passes: Vec<Pass> = guesses.iter().map(chain).chain(trees).collect();
        for round in 0..9 {
            for &pass in &passes {
                let mut input = Input::chain(text, vec![last; pass.guesses + 1]);
                if let Some(parent) = input.parents.last_mut().filter(|_| pass.tree) {
                    *parent = Some(0);
                }
                let start = std::time::Instant::now();
                target.forward(&[input], false)?;
                let seconds = start.elapsed().as_secs_f64();
                target.keep(text, from, &[])?;
                // The first round warms up.
                if round > 0 {
                    self.push(pass, seconds);
                } else if seconds > SLOW {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// How many of the guesses to verify: the `k` with the most tokens per time, the smaller among equals. `expected` are the
/// probabilities `A` in descending order, `times` those of 0, 1, … guesses, one more than there are guesses.
///
/// ```
/// use kindling_specdec::planner::best_length;
///
/// let each = [0.9, 0.9, 0.85, 0.7, 0.4, 0.3, 0.2, 0.1];
/// let expected: Vec<f64> = each.iter().scan(1.0, |a, p| { *a *= p; Some(*a) }).collect();
/// let times: Vec<f64> = (0..=8).map(|k| 1.0 + 0.08 * k as f64).collect();
/// assert_eq!(best_length(1, &expected, &times), 4);
/// ```
pub fn best_length(batch: usize, expected: &[f64], times: &[f64]) -> usize {
    let mut sum = batch as f64;
    let (mut best, mut best_rate) = (0, sum / times[0]);
    for (k, (a, time)) in expected.iter().zip(&times[1..]).enumerate() {
        sum += a;
        if sum / time > best_rate {
            (best, best_rate) = (k + 1, sum / time);
        }
    }
    best
}

/// Guesses of several texts in the order in which they would be verified: text, node, probability.
type Order = Vec<(usize, usize, f64)>;

/// The likeliest guesses first; of forks only the likelier side where `chains` are wanted.
fn in_order(drafts: &[&mut Draft], chains: bool) -> Order {
    let mut order = Order::new();
    for (text, draft) in drafts.iter().enumerate() {
        let nodes = draft.nodes();
        let mut row = 0;
        for (node, guess) in nodes.iter().enumerate() {
            // Parents come before children, and the likelier child of a node is the first that has its confidence.
            let is_best = || {
                let best =
                    draft.children(row).reduce(|a, b| if nodes[b].confidence > nodes[a].confidence { b } else { a });
                best == Some(node)
            };
            if !chains || is_best() {
                order.push((text, node, f64::from(guess.confidence)));
                row = node + 1;
            }
        }
    }
    // Among equals earlier nodes first, so that parents come before children.
    order.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.1.cmp(&b.1)));
    order
}

/// Cuts drafts to what is worth verifying together. Now and then it tries more than measured costs allow, to measure again.
pub fn plan(costs: &mut CostModel, context: usize, drafts: &mut [&mut Draft]) {
    if drafts.iter().all(|draft| draft.is_empty()) {
        return;
    }
    let batch = drafts.len();
    let forks = drafts.iter().any(|draft| !draft.is_chain());
    // The best length, its rate, and the pass that it makes.
    let best = |costs: &CostModel, order: &Order, tree: bool| {
        let expected: Vec<f64> = order.iter().map(|(.., confidence)| *confidence).collect();
        let pass = Pass { batch, context, guesses: order.len(), tree };
        let times = costs.times(pass);
        let taken = best_length(batch, &expected, &times);
        let hoped = best_length(batch, &expected, &assumed(order.len()));
        ((batch as f64 + expected[..taken].iter().sum::<f64>()) / times[taken], taken, hoped, pass)
    };
    let mut order = in_order(drafts, true);
    let (rate, mut taken, hoped, mut pass) = best(costs, &order, false);
    if forks {
        let all = in_order(drafts, false);
        let tree = best(costs, &all, true);
        if tree.0 > rate {
            (order, taken, pass) = (all, tree.1, tree.3);
        }
    }
    if taken < hoped && costs.measured(Pass { guesses: taken + 1, ..pass }) < KEPT {
        costs.held_back += 1;
        taken += usize::from(costs.held_back.is_multiple_of(LOOK_AGAIN));
    }
    let plain_is_known = costs.nearest(pass).is_some_and(|row| row.chains.contains_key(&0));
    if costs.since_plain >= PLAIN_AGAIN || !plain_is_known {
        taken = 0;
    }
    for (text, draft) in drafts.iter_mut().enumerate() {
        let mut wanted = vec![false; draft.len()];
        order[..taken].iter().filter(|(at, ..)| *at == text).for_each(|&(_, node, _)| wanted[node] = true);
        draft.retain(|node, _| wanted[node]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(batch: usize, context: usize, guesses: usize) -> Pass {
        Pass { batch, context, guesses, tree: false }
    }

    #[test]
    fn the_worked_example() {
        let rates = [1.0, 1.759_259, 2.336_207, 2.740_726, 2.939_735, 2.909_450];
        let mut sum = 1.0;
        let mut a = 1.0;
        for (k, p) in [1.0, 0.9, 0.9, 0.85, 0.7, 0.4].into_iter().enumerate() {
            a *= p;
            sum += if k == 0 { 0.0 } else { a };
            assert!((sum / (1.0 + 0.08 * k as f64) - rates[k]).abs() < 1e-6);
        }
    }

    #[test]
    fn the_speed_model_of_independent_acceptance() {
        // Acceptance .8, .02 a verified token: 11 guesses, 3.816723 times as fast.
        let expected: Vec<f64> = (1..=30).map(|i| 0.8f64.powi(i)).collect();
        let times: Vec<f64> = (0..=30).map(|k| 1.0 + 0.02 * f64::from(k)).collect();
        let best = best_length(1, &expected, &times);
        let rate = (1.0 + expected[..best].iter().sum::<f64>()) / times[best];
        assert_eq!(best, 11);
        assert!((rate - 3.816_723).abs() < 1e-6);
    }

    #[test]
    fn free_guesses_on_a_plateau_are_taken() {
        let times = [1.0, 1.5, 1.5, 1.5, 1.5];
        assert_eq!(best_length(1, &[0.3, 0.29, 0.28, 0.27], &times), 4);
        assert_eq!(best_length(1, &[0.1, 0.1, 0.1, 0.1], &times), 0);
    }

    #[test]
    fn a_batch_shares_by_probability() {
        let mut costs = CostModel::default();
        for k in 0..=8 {
            costs.push(chain(2, 100, k), 1.0 + 0.4 * k as f64);
        }
        let mut easy = Draft::chain([(1, 0.95), (2, 0.9), (3, 0.85), (4, 0.8)]).unwrap();
        let mut hard = Draft::chain([(1, 0.3), (2, 0.1)]).unwrap();
        plan(&mut costs, 100, &mut [&mut easy, &mut hard]);
        // 2 / 1, 2.95 / 1.4, 3.85 / 1.8, 4.7 / 2.2: two of the easy text.
        assert_eq!((easy.len(), hard.len()), (2, 0));
    }

    #[test]
    fn outliers_do_not_move_the_costs() {
        let mut costs = CostModel::default();
        for round in 0..40 {
            for k in 0..4 {
                costs.push(chain(1, 64, k), if round % 10 == 3 { 9.0 } else { 1.0 + 0.1 * k as f64 });
            }
        }
        let times = costs.times(chain(1, 70, 6));
        assert!((0..4).all(|k| (times[k] - 1.0 - 0.1 * k as f64).abs() < 1e-12), "{times:?}");
        assert!(times.is_sorted() && times.len() == 7);
        assert_eq!(costs.times(chain(1, 9000, 3)), times[..4], "the nearest row serves until there is a better one");
        // Four texts at once are another matter, from their first pass on.
        assert_eq!(costs.times(chain(4, 64, 3)), assumed(3));
        costs.push(chain(4, 64, 0), 7.0);
        assert_eq!(costs.times(chain(4, 64, 1)), [7.0, 7.35]);
    }

    /// Rounds of one guess that seems sure and costs half a round, right as `right` says; gives how many had a guess, and
    /// the time of a token.
    fn guessed(costs: &mut CostModel, rounds: usize, right: impl Fn(usize) -> bool) -> (usize, f64) {
        let (mut with, mut time, mut tokens) = (0, 0.0, 0.0);
        for round in 0..rounds {
            let may = costs.may_guess(1, 9);
            let mut draft = Draft::chain(may.then_some((1, 0.9))).unwrap();
            plan(costs, 9, &mut [&mut draft]);
            let guesses = draft.len();
            let emitted = 1 + usize::from(guesses > 0 && right(round));
            let (guessing, pass) = (if may { 0.01 } else { 0.0 }, 1.0 + 0.5 * guesses as f64);
            costs.push(chain(1, 9, guesses), pass);
            costs.book(chain(1, 9, guesses), emitted, guessing);
            time += guessing + pass;
            tokens += emitted as f64;
            with += guesses;
        }
        (with, time / tokens)
    }

    #[test]
    fn guesses_that_fail_are_given_up_and_those_that_succeed_again_are_not() {
        let mut costs = CostModel::default();
        let (with, time) = guessed(&mut costs, 2000, |_| false);
        assert!(with > 20 && time < 1.02, "{with} rounds with guesses, {time} a token");
        let (with, time) = guessed(&mut costs, 400, |_| true);
        assert!(with > 330 && time < 0.82, "{with} rounds with guesses, {time} a token");
        // Gains of before pay for little.
        let (with, time) = guessed(&mut costs, 2000, |round| round % 3 == 0);
        assert!(with < 300 && time < 1.025, "{with} rounds with guesses, {time} a token");
    }

    #[test]
    fn a_plain_round_is_measured_now_and_then() {
        let mut costs = CostModel::default();
        let mut plain = 0;
        for _ in 0..200 {
            let mut draft = Draft::chain([(1, 0.99)]).unwrap();
            plan(&mut costs, 9, &mut [&mut draft]);
            costs.push(chain(1, 9, draft.len()), 1.0);
            costs.book(chain(1, 9, draft.len()), 1 + draft.len(), 0.0);
            plain += usize::from(draft.is_empty());
        }
        assert_eq!(plain, 4, "the first round, and three of two hundred");
    }

    #[test]
    fn a_tree_is_verified_where_it_pays_for_itself() {
        let fork = || {
            let mut draft = Draft::default();
            let likely = draft.push(None, 1, 0.5).unwrap();
            draft.push(None, 2, 0.4).unwrap();
            draft.push(Some(likely), 3, 0.4).unwrap();
            draft
        };
        for (dearer, tokens) in [(0.0, vec![1, 2, 3]), (0.5, vec![1, 3])] {
            let mut costs = CostModel::default();
            for k in 0..=3 {
                costs.push(chain(1, 9, k), 1.0 + 0.1 * k as f64);
                costs.push(Pass { tree: true, ..chain(1, 9, k) }, 1.0 + dearer + 0.1 * k as f64);
            }
            let mut draft = fork();
            plan(&mut costs, 9, &mut [&mut draft]);
            assert_eq!(draft.nodes().iter().map(|node| node.token).collect::<Vec<_>>(), tokens);
        }
    }

    proptest! {
        #[test]
        fn the_plan_is_the_best_of_all_lengths(chains in prop::collection::vec(prop::collection::vec(0.0f32..1.0, 0..6), 1..4), slope in 0.0f64..0.6) {
            let mut costs = CostModel::default();
            (0..=20).for_each(|k| costs.push(chain(chains.len(), 9, k), 1.0 + slope * k as f64));
            let mut drafts: Vec<Draft> = chains
                .iter()
                .map(|chain| Draft::chain(chain.iter().scan(1.0, |a, p| { *a *= p; Some((0, *a)) })).unwrap())
                .collect();
            let mut all: Vec<f64> = drafts.iter().flat_map(|d| d.nodes().iter().map(|n| f64::from(n.confidence))).collect();
            all.sort_by(|a, b| b.total_cmp(a));
            let rate = |kept: &[f64]| (chains.len() as f64 + kept.iter().sum::<f64>()) / (1.0 + slope * kept.len() as f64);
            let best = (0..=all.len()).map(|k| rate(&all[..k])).fold(0.0, f64::max);
            plan(&mut costs, 9, &mut drafts.iter_mut().collect::<Vec<_>>());
            let kept: Vec<f64> = drafts.iter().flat_map(|d| d.nodes().iter().map(|n| f64::from(n.confidence))).collect();
            prop_assert!((rate(&kept) - best).abs() < 1e-9);
        }
    }
}
