//! Adapters against what PEFT computes, and around the circle of attaching, saving, loading and merging.

use std::fs;

use kindling_core::Cx;
use kindling_model::adapter::{AdapterConfig, attach, load as load_adapter, merge, save};
use kindling_model::checkpoint::Checkpoint;
use kindling_model::{Decoder, ModelFiles, Wanted};

use crate::common::{device, distance, fixture, ids, values};

fn base() -> Decoder {
    Decoder::load(&ModelFiles::open(fixture("hf/llama")).unwrap(), &device()).unwrap()
}

fn logits(model: &Decoder) -> Vec<f32> {
    let expected = Checkpoint::open(fixture("hf/llama").join("expected.safetensors")).unwrap();
    values(model.forward(&ids(&expected, "input_ids"), &[], &mut model.new_kv(), Wanted::AllLogits).unwrap())
}

#[test]
fn logits_equal_those_of_peft() {
    for name in ["lora", "patterns", "dora"] {
        let dir = fixture("adapters").join(name);
        let expected = Checkpoint::open(dir.join("expected.safetensors")).unwrap().tensor_f32("logits").unwrap();
        let mut model = base();
        assert!(distance(&logits(&model), &expected) > 1e-2, "{name} changes nothing");
        load_adapter(&mut model, &dir).unwrap();
        let difference = distance(&logits(&model), &expected);
        assert!(difference <= 2e-4, "{name}: logits differ by {difference}");
        assert!(merge(&mut model).unwrap() > 0);
        let difference = distance(&logits(&model), &expected);
        assert!(difference <= 2e-4, "{name}: merged logits differ by {difference}");
        assert_eq!(merge(&mut model).unwrap(), 0);
    }
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    for dora in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let config =
            AdapterConfig { rank: 2, dora, targets: vec!["v_proj".into(), "up_proj".into()], ..Default::default() };
        let mut model = base();
        let before = logits(&model);
        assert_eq!(attach(&mut model, &config, &Cx::new(3)).unwrap(), 6);
        // A fresh adapter changes nothing; with DoRA the norms are divided by themselves.
        assert!(distance(&logits(&model), &before) < 1e-5);
        use kindling_core::{LanguageModel, ParameterMut};
        let mut adapters = 0;
        for (name, parameter) in model.parameters_mut() {
            if let (true, ParameterMut::Matrix(b)) = (name.ends_with("lora_B.weight"), parameter) {
                *b = b.clone().add_scalar(0.05);
                adapters += 1;
            }
        }
        assert_eq!(adapters, 6);
        save(&model, &config, "somewhere", dir.path()).unwrap();
        let mut again = base();
        let read = load_adapter(&mut again, dir.path()).unwrap();
        assert_eq!((read.rank, read.alpha, read.dora), (2, 16.0, dora));
        assert_eq!(logits(&again), logits(&model));
        assert!(distance(&logits(&again), &before) > 1e-3);
        assert!(attach(&mut again, &config, &Cx::new(3)).unwrap_err().to_string().contains("already"));
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let source = fixture("adapters/lora");
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(source.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors")).unwrap();
        let text = fs::read_to_string(source.join("adapter_config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        change(&mut config);
        fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        load_adapter(&mut base(), dir.path()).unwrap_err().to_string()
    };
    assert!(refused(&|c| c["peft_type"] = "IA3".into()).contains("only LORA"));
    assert!(refused(&|c| c["bias"] = "all".into()).contains("biases"));
    assert!(refused(&|c| c["use_qalora"] = true.into()).contains("`use_qalora`"));
    assert!(refused(&|c| c["r"] = 8.into()).contains("has rank 4"));
    let mut other = Decoder::load(&ModelFiles::open(fixture("hf/deepseek_v3")).unwrap(), &device()).unwrap();
    assert!(load_adapter(&mut other, &source).is_err());
    assert!(load_adapter(&mut base(), &fixture("hf")).unwrap_err().to_string().contains("adapter_config.json"));
    let nothing = AdapterConfig { targets: vec!["z_proj".into()], ..Default::default() };
    assert!(attach(&mut base(), &nothing, &Cx::new(1)).unwrap_err().to_string().contains("z_proj"));
    let zero = AdapterConfig { rank: 0, ..Default::default() };
    assert!(attach(&mut base(), &zero, &Cx::new(1)).is_err());
}
