//! Every question can be answered from its context.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::vocabulary::*;
use super::*;

/// The answer from context and question alone.
fn solve(task: Task, context: &[u32], question: &[u32]) -> Vec<u32> {
    let record = |key: u32| -> Vec<usize> {
        (0..context.len() - 1).filter(|&i| context[i] == KEY && context[i + 1] == key).collect()
    };
    let field = |key: u32, field: u32| -> u32 {
        let start = record(key)[0];
        let at = (1..4).map(|i| start + 2 * i).find(|&i| context[i] == field).unwrap();
        context[at + 1]
    };
    let count = |symbol: u32| context.iter().filter(|&&s| s == symbol).count();
    match task {
        Task::NiahSingle
        | Task::NiahMultikey(_)
        | Task::NiahMultikeyAll
        | Task::NiahMultivalue
        | Task::NiahMultiquery => {
            record(question[1]).into_iter().flat_map(|at| [context[at + 3], context[at + 4]]).collect()
        }
        Task::VariableTracking(_) => {
            let mut names = Vec::new();
            let mut at = (0..context.len() - 3)
                .find(|&i| context[i] == VAR && context[i + 2] == ASSIGN && context[i + 3] == question[1]);
            while let Some(i) = at {
                names.push(context[i + 1]);
                let wanted = [ASSIGN, VAR, context[i + 1]];
                at = (0..context.len() - 4).find(|&i| context[i] == VAR && context[i + 2..i + 5] == wanted);
            }
            names
        }
        Task::CommonWords => {
            let mut words: Vec<u32> = WORDS.collect();
            words.sort_by_key(|&word| std::cmp::Reverse(count(word)));
            let mut common = words[..10].to_vec();
            common.sort_unstable();
            common
        }
        Task::FreqWords => {
            let mut words: Vec<u32> = WORDS.collect();
            words.sort_by_key(|&word| std::cmp::Reverse(count(word)));
            words[..3].to_vec()
        }
        Task::Copy => {
            let at = context.windows(2).position(|pair| pair == question).unwrap();
            context[at + 2..at + 16].to_vec()
        }
        Task::KvQa => vec![field(question[1], question[2])],
        Task::KvQaTwoHop => vec![field(field(question[1], question[2]), question[3])],
        Task::Recall if !FIELDS.contains(&question[2]) => {
            let at = record(question[1])[0];
            context[at + 3..at + 5].to_vec()
        }
        Task::Recall => vec![field(question[1], question[2])],
        Task::Lm | Task::Induction | Task::Contexts | Task::Pairs => Vec::new(),
    }
}

#[test]
fn a_solver_that_sees_context_and_question_only_is_always_right() {
    for length in [64, 96, 128, 256, 512, 1024] {
        for task in Task::ALL.into_iter().chain(Task::LESSONS).filter(|task| task.fits(length)) {
            for index in 0..20 {
                let mut rng = ChaCha8Rng::seed_from_u64(index);
                let depth = Some(index as usize % 10);
                let example = generate_example(task, length, depth, &mut rng);
                assert_eq!(example.context.len(), length, "{task}");
                assert_eq!(example.context[..BEGINS], [BOS; BEGINS]);
                assert!(example.context.iter().all(|&id| (id as usize) < SIZE));
                for turn in &example.turns {
                    assert_eq!(solve(task, &example.context, &turn.question), turn.answer, "{task} at {length}");
                }
                if !matches!(
                    task,
                    Task::VariableTracking(_)
                        | Task::CommonWords
                        | Task::FreqWords
                        | Task::Lm
                        | Task::Induction
                        | Task::Contexts
                        | Task::Pairs
                        | Task::Recall
                ) {
                    assert_eq!(example.depth, depth, "{task} at {length}");
                }
                assert!(example.evidence.iter().all(|&i| i < length));
                assert!(example.sequence(0.1).0.len() <= length + task.room(), "{task} at {length}");
            }
        }
    }
}

#[test]
fn examples_depend_on_the_seed_alone() {
    let make = |seed| generate_example(Task::KvQa, 256, None, &mut ChaCha8Rng::seed_from_u64(seed));
    assert_eq!(make(1), make(1));
    assert_ne!(make(1), make(2));
}

#[test]
fn sequences_end_and_weigh_the_answers() {
    let example = generate_example(Task::NiahMultiquery, 64, None, &mut ChaCha8Rng::seed_from_u64(4));
    let (ids, weights) = example.sequence(0.1);
    assert_eq!((ids.len(), weights.len(), ids.last()), (64 + 4 * 5 + 1, 64 + 4 * 5, Some(&EOS)));
    assert_eq!(weights.iter().filter(|&&w| w == 1.0).count(), 4 * 2 + 1);
    // The weight of a token is that of predicting it.
    assert_eq!(weights[64 + 3 - 1], 1.0);
    assert_eq!(ids[64 + 3], example.turns[0].answer[0]);
}

#[test]
fn counts_of_frequent_words() {
    let example = generate_example(Task::FreqWords, 256, None, &mut ChaCha8Rng::seed_from_u64(1));
    let answer = &example.turns[0].answer;
    let count = |symbol: u32| example.context.iter().filter(|&&s| s == symbol).count();
    assert_eq!((count(16), answer.iter().map(|&w| count(w)).collect::<Vec<_>>()), (169, vec![38, 17, 9]));
}

#[test]
fn filler_follows_its_chain() {
    assert_eq!(after_noise(16).map(|next| next.0), [19, 30, 41, 52]);
    assert_eq!(after_noise(79).map(|next| next.0), [78, 25, 36, 47]);
}

#[test]
fn names_round_trip() {
    for task in Task::ALL.into_iter().chain(Task::LESSONS) {
        assert_eq!(task.to_string().parse(), Ok(task));
    }
    assert!("niah_singel".parse::<Task>().unwrap_err().contains("`niah_single`"));
}

#[test]
fn the_tokenizer_knows_every_token() {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer(dir.path(), 1024).unwrap();
    let tokenizer = crate::tokenizer::Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), SIZE);
    assert_eq!(tokenizer.encode("query k3 answer v0", true).unwrap(), [1, 1, 1, 1, 3, 83, 4, 144]);
}
