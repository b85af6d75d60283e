//! How examples are made.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::Task;
use super::vocabulary::{
    ANSWER, ASSIGN, BEGINS, BOS, CWE, EOS, FIELDS, FWE, KEY, KEYS, NOISE, QUERY, SEP, VALUES, VAR, WORDS, after_noise,
};

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// What the model reads.
    pub question: Vec<u32>,
    /// What it should say.
    pub answer: Vec<u32>,
}

/// A context with questions about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// What it asks.
    pub task: Task,
    /// Exactly as many tokens as were wanted.
    pub context: Vec<u32>,
    /// Asked one after the other.
    pub turns: Vec<Turn>,
    /// In which tenth of the context the evidence of the first question begins.
    pub depth: Option<usize>,
    /// Where in the context that evidence stands.
    pub evidence: Vec<usize>,
}

impl Example {
    /// Context, questions and answers and the end, and what predicting each token but the first counts: 1 for answers and
    /// the end, `other` for the rest.
    pub fn sequence(&self, other: f32) -> (Vec<u32>, Vec<f32>) {
        let mut ids = self.context.clone();
        // Most of what an induction row holds can be known.
        let other = if matches!(self.task, Task::Induction | Task::Contexts | Task::Pairs) { 1.0 } else { other };
        let mut weights = vec![other; ids.len()];
        for turn in &self.turns {
            ids.extend(&turn.question);
            weights.resize(ids.len(), other);
            ids.extend(&turn.answer);
            weights.resize(ids.len(), 1.0);
        }
        ids.push(EOS);
        weights.push(1.0);
        weights.remove(0);
        (ids, weights)
    }
}

/// One example with a context of `length` tokens. `depth` (0 to 9) says in which tenth the evidence should begin; tasks
/// without one place leave it out.
///
/// # Panics
/// If the task does not [fit](Task::fits).
pub fn generate_example(task: Task, length: usize, depth: Option<usize>, rng: &mut ChaCha8Rng) -> Example {
    assert!(task.fits(length), "{task} does not fit {length} tokens");
    let body = length - BEGINS;
    match task {
        Task::NiahSingle => records(task, body, 1, depth, rng),
        Task::NiahMultikey(count) => records(task, body, count, depth, rng),
        Task::NiahMultikeyAll => records(task, body, (body / 6).min(64), depth, rng),
        Task::NiahMultivalue => multivalue(body, depth, rng),
        Task::NiahMultiquery => records(task, body, 4, depth, rng),
        Task::VariableTracking(hops) => tracking(body, hops, rng),
        Task::CommonWords => common_words(body, rng),
        Task::FreqWords => freq_words(body, rng),
        Task::Copy => copy(body, depth, rng),
        Task::KvQa => fields(body, false, depth, rng),
        Task::KvQaTwoHop => fields(body, true, depth, rng),
        Task::Lm => lm(length, rng),
        Task::Induction => induction(task, length, VALUES.end - NOISE.start, rng),
        Task::Contexts => induction(task, length, 8, rng),
        Task::Pairs => pairs(length, rng),
        Task::Recall => recall(body, rng),
    }
}

/// A number below `n`.
fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    // Without the bias of a remainder, which is below 2⁻⁵⁰ here anyway.
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}

/// So many different symbols of a range.
fn distinct(range: std::ops::Range<u32>, count: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut all: Vec<u32> = range.collect();
    shuffle(&mut all, rng);
    all.truncate(count);
    all
}

fn value(rng: &mut ChaCha8Rng) -> u32 {
    VALUES.start + below(rng, VALUES.len()) as u32
}

fn noise(count: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut symbols = Vec::with_capacity(count);
    let mut last = NOISE.start + below(rng, NOISE.len()) as u32;
    for _ in 0..count {
        symbols.push(last);
        let mut tenth = below(rng, 10) as u32;
        for (next, tenths) in after_noise(last) {
            if tenth < tenths {
                last = next;
                break;
            }
            tenth -= tenths;
        }
    }
    symbols
}

/// A context around units, and where each begins.
struct Placed {
    context: Vec<u32>,
    starts: Vec<usize>,
}

/// Puts units into one chain of filler, in an order of their own if `keep_order`, else in any.
fn place(units: &[Vec<u32>], body: usize, keep_order: bool, rng: &mut ChaCha8Rng) -> Placed {
    let filler = noise(body - units.iter().map(Vec::len).sum::<usize>(), rng);
    let mut gaps: Vec<usize> = units.iter().map(|_| below(rng, filler.len() + 1)).collect();
    gaps.sort_unstable();
    let mut order: Vec<usize> = (0..units.len()).collect();
    if !keep_order {
        shuffle(&mut order, rng);
    }
    let mut context = vec![BOS; BEGINS];
    let mut starts = vec![0; units.len()];
    let mut used = 0;
    for (&unit, &gap) in order.iter().zip(&gaps) {
        context.extend(&filler[used..gap]);
        used = gap;
        starts[unit] = context.len();
        context.extend(&units[unit]);
    }
    context.extend(&filler[used..]);
    Placed { context, starts }
}

/// The tenth of the body in which a unit begins.
fn tenth(start: usize, body: usize, length: usize) -> usize {
    10 * (start - BEGINS) / (body - length + 1)
}

/// Places units until the first of them begins in the wanted tenth.
fn place_at(units: &[Vec<u32>], body: usize, depth: Option<usize>, rng: &mut ChaCha8Rng) -> (Placed, usize) {
    loop {
        let placed = place(units, body, false, rng);
        let found = tenth(placed.starts[0], body, units[0].len());
        if depth.is_none_or(|depth| depth == found) {
            return (placed, found);
        }
        // Units that leave no filler have few places: any order of theirs is tried in the end.
    }
}

fn record(key: u32, values: [u32; 2]) -> Vec<u32> {
    vec![KEY, key, ASSIGN, values[0], values[1], SEP]
}

fn span(start: usize, length: usize) -> Vec<usize> {
    (start..start + length).collect()
}

fn records(task: Task, body: usize, count: usize, depth: Option<usize>, rng: &mut ChaCha8Rng) -> Example {
    let keys = distinct(KEYS, count, rng);
    let values: Vec<[u32; 2]> = (0..count).map(|_| [value(rng), value(rng)]).collect();
    let units: Vec<Vec<u32>> = keys.iter().zip(&values).map(|(&key, &values)| record(key, values)).collect();
    let (placed, depth) = place_at(&units, body, depth, rng);
    let turn = |i: usize| Turn { question: vec![QUERY, keys[i], ANSWER], answer: values[i].to_vec() };
    let turns = if task == Task::NiahMultiquery {
        let mut others: Vec<usize> = (1..count).collect();
        shuffle(&mut others, rng);
        std::iter::once(0).chain(others).map(turn).collect()
    } else {
        vec![turn(0)]
    };
    Example { task, turns, depth: Some(depth), evidence: span(placed.starts[0], 6), context: placed.context }
}

fn multivalue(body: usize, depth: Option<usize>, rng: &mut ChaCha8Rng) -> Example {
    let key = distinct(KEYS, 1, rng)[0];
    let firsts = distinct(VALUES, 4, rng);
    let pairs: Vec<[u32; 2]> = firsts.into_iter().map(|first| [first, value(rng)]).collect();
    let units: Vec<Vec<u32>> = pairs.iter().map(|&pair| record(key, pair)).collect();
    let (placed, depth) = place_at(&units, body, depth, rng);
    let mut order: Vec<usize> = (0..4).collect();
    order.sort_by_key(|&i| placed.starts[i]);
    let answer = order.iter().flat_map(|&i| pairs[i]).collect();
    let evidence = order.iter().flat_map(|&i| span(placed.starts[i], 6)).collect();
    let turns = vec![Turn { question: vec![QUERY, key, ANSWER], answer }];
    Example { task: Task::NiahMultivalue, turns, depth: Some(depth), evidence, context: placed.context }
}

fn tracking(body: usize, hops: usize, rng: &mut ChaCha8Rng) -> Example {
    let names = distinct(KEYS, 2 * (hops + 1), rng);
    let values = distinct(VALUES, 2, rng);
    let chain = |which: usize| -> Vec<Vec<u32>> {
        let names = &names[which * (hops + 1)..][..hops + 1];
        let first = vec![VAR, names[0], ASSIGN, values[which], SEP];
        let next = names.windows(2).map(|pair| vec![VAR, pair[1], ASSIGN, VAR, pair[0], SEP]);
        std::iter::once(first).chain(next).collect()
    };
    let chains = [chain(0), chain(1)];
    // A random order in which either chain keeps its own.
    let mut turns_of: Vec<usize> = [vec![0; hops + 1], vec![1; hops + 1]].concat();
    shuffle(&mut turns_of, rng);
    let (mut next, mut units, mut asked) = ([0, 0], Vec::new(), Vec::new());
    for which in turns_of {
        if which == 0 {
            asked.push(units.len());
        }
        units.push(chains[which][next[which]].clone());
        next[which] += 1;
    }
    let placed = place(&units, body, true, rng);
    let first = asked[0];
    let evidence = asked.iter().flat_map(|&i| span(placed.starts[i], units[i].len())).collect();
    let turns = vec![Turn { question: vec![QUERY, values[0], ANSWER], answer: names[..=hops].to_vec() }];
    let depth = Some(tenth(placed.starts[first], body, units[first].len()));
    Example { task: Task::VariableTracking(hops), turns, depth, evidence, context: placed.context }
}

fn common_words(body: usize, rng: &mut ChaCha8Rng) -> Example {
    let rare = body / 98;
    let mut common = distinct(WORDS, 10, rng);
    common.sort_unstable();
    let mut words: Vec<u32> = WORDS
        .flat_map(|word| std::iter::repeat_n(word, if common.contains(&word) { 6 * rare } else { rare }))
        .collect();
    shuffle(&mut words, rng);
    let filler = noise(body - words.len(), rng);
    let mut is_word: Vec<bool> = (0..body).map(|i| i < words.len()).collect();
    shuffle(&mut is_word, rng);
    let (mut words, mut filler) = (words.into_iter(), filler.into_iter());
    let inside = is_word.into_iter().filter_map(|is_word| if is_word { words.next() } else { filler.next() });
    let context = [BOS; BEGINS].into_iter().chain(inside).collect();
    let turns = vec![Turn { question: vec![QUERY, CWE, ANSWER], answer: common }];
    Example { task: Task::CommonWords, turns, depth: None, evidence: Vec::new(), context }
}

fn freq_words(body: usize, rng: &mut ChaCha8Rng) -> Example {
    let harmonic: f64 = (1..=48).map(|r| 1.0 / f64::from(r * r)).sum();
    let mut symbols = vec![NOISE.start];
    symbols.extend(distinct(WORDS, WORDS.len() - 1, rng));
    let mut counts: Vec<usize> = (1..=48).map(|r| (body as f64 / (f64::from(r * r) * harmonic)) as usize).collect();
    counts[0] += body - counts.iter().sum::<usize>();
    let mut inside: Vec<u32> =
        symbols.iter().zip(&counts).flat_map(|(&symbol, &count)| std::iter::repeat_n(symbol, count)).collect();
    shuffle(&mut inside, rng);
    let context = [BOS; BEGINS].into_iter().chain(inside).collect();
    let turns = vec![Turn { question: vec![QUERY, FWE, ANSWER], answer: symbols[1..4].to_vec() }];
    Example { task: Task::FreqWords, turns, depth: None, evidence: Vec::new(), context }
}

fn copy(body: usize, depth: Option<usize>, rng: &mut ChaCha8Rng) -> Example {
    const PASSAGE: usize = 16;
    loop {
        let passage: Vec<u32> = (0..PASSAGE).map(|_| NOISE.start + below(rng, NOISE.len()) as u32).collect();
        if after_noise(passage[0]).iter().any(|(next, _)| *next == passage[1]) {
            continue;
        }
        let (placed, depth) = place_at(std::slice::from_ref(&passage), body, depth, rng);
        if placed.context.windows(2).filter(|pair| *pair == &passage[..2]).count() != 1 {
            continue;
        }
        let turns = vec![Turn { question: passage[..2].to_vec(), answer: passage[2..].to_vec() }];
        let evidence = span(placed.starts[0], PASSAGE);
        return Example { task: Task::Copy, turns, depth: Some(depth), evidence, context: placed.context };
    }
}

fn field_record(key: u32, values: [u32; 3], rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut order = [0, 1, 2];
    shuffle(&mut order, rng);
    let pairs = order.into_iter().flat_map(|field| [FIELDS[field], values[field]]);
    [KEY, key].into_iter().chain(pairs).chain([SEP]).collect()
}

fn fields(body: usize, two_hop: bool, depth: Option<usize>, rng: &mut ChaCha8Rng) -> Example {
    let count = (body / 18).min(64);
    let keys = distinct(KEYS, count, rng);
    // Record i points to the next one of a random cycle.
    let mut cycle: Vec<usize> = (0..count).collect();
    shuffle(&mut cycle, rng);
    let mut next = vec![0; count];
    for (position, &i) in cycle.iter().enumerate() {
        next[i] = cycle[(position + 1) % count];
    }
    let values: Vec<[u32; 3]> =
        (0..count).map(|i| [value(rng), value(rng), if two_hop { keys[next[i]] } else { value(rng) }]).collect();
    let units: Vec<Vec<u32>> = keys.iter().zip(&values).map(|(&key, &values)| field_record(key, values, rng)).collect();
    let (placed, depth) = place_at(&units, body, depth, rng);
    let field = below(rng, if two_hop { 2 } else { 3 });
    let mut evidence = span(placed.starts[0], 9);
    let turn = if two_hop {
        evidence.extend(span(placed.starts[next[0]], 9));
        Turn { question: vec![QUERY, keys[0], FIELDS[2], FIELDS[field], ANSWER], answer: vec![values[next[0]][field]] }
    } else {
        Turn { question: vec![QUERY, keys[0], FIELDS[field], ANSWER], answer: vec![values[0][field]] }
    };
    let task = if two_hop { Task::KvQaTwoHop } else { Task::KvQa };
    Example { task, turns: vec![turn], depth: Some(depth), evidence, context: placed.context }
}

fn lm(length: usize, rng: &mut ChaCha8Rng) -> Example {
    const INNER: usize = 64;
    let inner: Vec<Task> = Task::ALL.into_iter().filter(|task| *task != Task::Lm && task.fits(INNER)).collect();
    let mut context = vec![BOS; BEGINS];
    while context.len() < length {
        let example = generate_example(inner[below(rng, inner.len())], INNER, None, rng);
        context.extend(&example.sequence(1.0).0[BEGINS..]);
    }
    context.truncate(length);
    Example { task: Task::Lm, turns: Vec::new(), depth: None, evidence: Vec::new(), context }
}

/// Passages of so many symbols, again and again.
fn induction(task: Task, length: usize, symbols: u32, rng: &mut ChaCha8Rng) -> Example {
    let count = 2 + below(rng, (length / 48).max(1) + 1);
    let alphabet = distinct(NOISE.start..VALUES.end, symbols as usize, rng);
    let passages: Vec<Vec<u32>> =
        (0..count).map(|_| (0..6 + below(rng, 7)).map(|_| alphabet[below(rng, alphabet.len())]).collect()).collect();
    let mut context = vec![BOS; BEGINS];
    while context.len() < length {
        context.extend(&passages[below(rng, count)]);
    }
    context.truncate(length);
    Example { task, turns: Vec::new(), depth: None, evidence: Vec::new(), context }
}

/// Two to eight keys with a value each. They come in any order until the context is full, each key with its value behind
/// none to three markers, the markers drawn anew each time: only the key tells the value, and it stands further back than
/// what is always there.
fn pairs(length: usize, rng: &mut ChaCha8Rng) -> Example {
    let keys = distinct(KEYS, 2 + below(rng, 7), rng);
    let values: Vec<u32> = keys.iter().map(|_| value(rng)).collect();
    let (markers, between) = ([ASSIGN, ANSWER], below(rng, 4));
    let mut context = vec![BOS; BEGINS];
    while context.len() < length {
        let i = below(rng, keys.len());
        context.push(keys[i]);
        context.extend((0..between).map(|_| markers[below(rng, 2)]));
        context.push(values[i]);
    }
    context.truncate(length);
    Example { task: Task::Pairs, turns: Vec::new(), depth: None, evidence: Vec::new(), context }
}

/// A few plain records or records with fields, and nine turns about any of them. Half of the turns are questions, half begin
/// the record again: there the token before the answer occurs in every record, and only the key two places back tells
/// which is meant, a step on the way from repeating to looking up.
fn recall(body: usize, rng: &mut ChaCha8Rng) -> Example {
    let plain = below(rng, 2) == 0;
    let most = if plain { (body / 6).min(6) } else { (body / 9).min(4) };
    let count = 1 + below(rng, most);
    let keys = distinct(KEYS, count, rng);
    let values: Vec<[u32; 3]> = (0..count).map(|_| [value(rng), value(rng), value(rng)]).collect();
    let units: Vec<Vec<u32>> = keys
        .iter()
        .zip(&values)
        .map(|(&key, &[a, b, c])| if plain { record(key, [a, b]) } else { field_record(key, [a, b, c], rng) })
        .collect();
    let placed = place(&units, body, false, rng);
    let mut turn = || -> Turn {
        let (i, field, again) = (below(rng, count), below(rng, 3), below(rng, 2) == 0);
        let (key, values) = (keys[i], &values[i]);
        let question = match (plain, again) {
            (true, true) => vec![KEY, key, ASSIGN],
            (true, false) => vec![QUERY, key, ANSWER],
            (false, true) => vec![KEY, key, FIELDS[field]],
            (false, false) => vec![QUERY, key, FIELDS[field], ANSWER],
        };
        let answer = if plain { values[..2].to_vec() } else { vec![values[field]] };
        Turn { question, answer }
    };
    let turns = (0..9).map(|_| turn()).collect();
    let evidence = placed.starts.iter().zip(&units).flat_map(|(&start, unit)| span(start, unit.len())).collect();
    Example { task: Task::Recall, turns, depth: None, evidence, context: placed.context }
}
