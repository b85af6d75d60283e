use super::*;

fn built(texts: &[&[u32]]) -> SuffixAutomaton {
    let mut automaton = SuffixAutomaton::new(64);
    texts.iter().for_each(|text| add(&mut automaton, text));
    automaton
}

fn reference(factor: f64, tree: bool) -> SuffixConfig {
    SuffixConfig { factor, tree, count_end: true, ..SuffixConfig::default() }
}

fn tokens(guess: &Guess) -> Vec<u32> {
    guess.draft.nodes().iter().map(|node| node.token).collect()
}

fn parents(guess: &Guess) -> Vec<i64> {
    guess.draft.nodes().iter().map(|node| node.parent.map_or(-1, |parent| parent as i64)).collect()
}

const LOCAL: [u32; 12] = [1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3];

#[test]
fn the_reference_numbers_of_one_text() {
    let automaton = built(&[&LOCAL]);
    let context = &LOCAL[6..];
    let path = speculate(&automaton, context, 1, &reference(1.0, false)).unwrap();
    assert_eq!((path.matched, tokens(&path)), (3, vec![4, 5, 1]));
    assert!(path.draft.nodes().iter().all(|node| (node.confidence - 1.0 / 3.0).abs() < 1e-6));
    assert!((path.score - 1.0).abs() < 1e-9);
    let longer = speculate(&automaton, context, 1, &reference(2.0, false)).unwrap();
    assert_eq!(tokens(&longer), [4, 5, 1, 2, 3, 9]);
    assert!((longer.score - 2.0).abs() < 1e-9);
    let tree = speculate(&automaton, context, 1, &reference(2.0, true)).unwrap();
    assert_eq!((tokens(&tree), parents(&tree)), (vec![4, 9, 5, 1, 1, 2], vec![-1, -1, 0, 1, 2, 3]));
    let strict = SuffixConfig { min_probability: 0.5, ..reference(1.0, false) };
    assert!(speculate(&automaton, context, 1, &strict).unwrap().draft.is_empty());
}

#[test]
fn the_end_of_the_text_is_no_evidence() {
    // Two earlier places of 1 2 3, each with its own continuation.
    let guess = speculate(&built(&[&LOCAL]), &LOCAL[6..], 1, &SuffixConfig::default()).unwrap();
    assert_eq!((tokens(&guess), guess.draft.nodes()[0].confidence), (vec![4, 5, 1], 0.5));
}

#[test]
fn the_reference_numbers_of_a_pool() {
    let automaton = built(&[&[1, 2, 3, 4, 5], &[1, 2, 3, 9], &[1, 2, 3, 4, 6]]);
    let path = speculate(&automaton, &[7, 1, 2, 3], 0, &reference(1.0, false)).unwrap();
    assert_eq!(tokens(&path), [4, 5]);
    let confidences: Vec<f32> = path.draft.nodes().iter().map(|node| node.confidence).collect();
    assert!((confidences[0] - 2.0 / 3.0).abs() < 1e-6 && (confidences[1] - 1.0 / 3.0).abs() < 1e-6);
    let tree = speculate(&automaton, &[7, 1, 2, 3], 0, &reference(2.0, true)).unwrap();
    assert_eq!((tokens(&tree), parents(&tree)), (vec![4, 9, 5, 6], vec![-1, -1, 0, 0]));
    assert!((tree.score - 5.0 / 3.0).abs() < 1e-6);
}

#[test]
fn a_pool_forgets_its_oldest_outputs() {
    let mut pool = OutputPool::new(10, 8);
    pool.push(&[1, 2, 3, 4]);
    pool.push(&[1, 2, 9]);
    let count = |pool: &OutputPool, ngram: &[u32]| {
        pool.automaton().find(ngram).map_or(0, |state| pool.automaton().count(state))
    };
    assert_eq!(count(&pool, &[1, 2]), 2);
    pool.push(&[5, 6, 7, 8]);
    assert_eq!((count(&pool, &[1, 2]), count(&pool, &[3, 4]), count(&pool, &[6, 7])), (1, 0, 1));
    for round in 0..5000 {
        pool.push(&[round, round + 1, round + 2]);
    }
    assert_eq!((count(&pool, &[1, 2]), count(&pool, &[4999])), (0, 3), "the three newest outputs fit");
    assert!(pool.automaton().bytes() < 2 * 200 * 1024 + 1_000_000);
}

#[test]
fn what_one_request_wrote_serves_the_next() {
    let pool = Arc::new(Mutex::new(OutputPool::new(1000, 64)));
    let mut drafter = Suffix::new(SuffixConfig::default(), Some(pool.clone()));
    drafter.begin(&[1]).unwrap();
    drafter.commit(&[2, 3, 4, 5]).unwrap();
    drafter.begin(&[8, 9, 2, 3]).unwrap();
    let room = Room { nodes: 8, depth: 8, trees: false, batch: 1 };
    let mut draft = Draft::default();
    drafter.propose(&room, &mut draft).unwrap();
    assert_eq!(draft.nodes().iter().map(|node| node.token).collect::<Vec<_>>(), [4, 5]);
}
