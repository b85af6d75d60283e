//! Batches, sampling and stopping.

use std::ops::ControlFlow;

use kindling_model::generate::{Event, Finish, Request, generate};
use kindling_model::sampling::SamplingConfig;

use crate::common::{fixture, load};

fn request(id: u64, prompt: &[u32], sampling: SamplingConfig) -> Request {
    Request { id, prompt: prompt.to_vec(), sampling, max_new_tokens: 12, eos: Vec::new(), stop: Vec::new() }
}

#[test]
fn a_batch_of_uneven_prompts_gives_what_each_gives_alone() {
    let sampled = SamplingConfig { temperature: 0.9, top_k: 40, top_p: 0.95, seed: 7, ..Default::default() };
    for family in ["llama", "mistral", "gemma2", "qwen3", "deepseek_v3", "mixtral", "phi3", "olmo2"] {
        let model = load(&fixture(&format!("hf/{family}")));
        let requests = [
            request(0, &[5, 9, 200, 31, 7, 7, 8, 12, 13, 14, 15], Default::default()),
            request(1, &[17], Default::default()),
            request(2, &[17, 4, 99], sampled.clone()),
            request(3, &[17, 4, 99], sampled.clone()),
        ];
        let go_on = |_: Event| ControlFlow::Continue(());
        let together = generate(&model, None, &requests, go_on).unwrap();
        for (request, batched) in requests.iter().zip(&together) {
            let alone = generate(&model, None, std::slice::from_ref(request), go_on).unwrap().remove(0);
            assert_eq!(&alone, batched, "{family}, request {}", request.id);
        }
        // The same prompt under another request id draws other numbers.
        assert_ne!(together[2].ids, together[3].ids, "{family}");
    }
}

#[test]
fn end_tokens_limits_and_interruptions_end_a_text() {
    let model = load(&fixture("hf/llama"));
    let plain = request(0, &[5, 9, 200], Default::default());
    let go_on = |_: Event| ControlFlow::Continue(());
    let whole = generate(&model, None, std::slice::from_ref(&plain), go_on).unwrap().remove(0);
    assert_eq!((whole.ids.len(), whole.finish), (12, Finish::Length));

    let end = whole.ids[5];
    let first = whole.ids.iter().position(|&id| id == end).unwrap();
    let ended = Request { eos: vec![9999, end], ..plain.clone() };
    let ended = generate(&model, None, &[ended], go_on).unwrap().remove(0);
    assert_eq!((ended.ids.as_slice(), ended.finish), (&whole.ids[..first], Finish::Eos));

    let mut steps = 0;
    let stopped = generate(&model, None, &[plain], |event| {
        steps += usize::from(matches!(event, Event::Step(_)));
        if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let stopped = stopped.unwrap().remove(0);
    assert_eq!((stopped.ids.as_slice(), stopped.finish), (&whole.ids[..3], Finish::Interrupted));
}

#[test]
fn bad_prompts_are_errors() {
    let model = load(&fixture("hf/llama"));
    let error = |prompt: &[u32]| {
        generate(&model, None, &[request(0, prompt, Default::default())], |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
    };
    assert!(error(&[]).contains("no tokens"));
    assert!(error(&[320]).contains("token id 320 is outside the vocabulary of 320"));
}
