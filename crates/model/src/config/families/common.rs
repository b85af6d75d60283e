//! What the families share: the plain case, which each file changes where it differs.

use crate::checkpoint::DType;
use crate::config::{
    Activation, AttentionSpec, BlockNorms, BlockSpec, ConfigError, MlpSpec, NormSpec, QkNorm, RawConfig, RopeSpec, Spec,
};

/// The sizes that every configuration names alike.
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) inner: usize,
    pub(super) max_positions: usize,
}

impl Sizes {
    pub(super) fn read(raw: &RawConfig) -> Result<Self, ConfigError> {
        let hidden = raw.size("hidden_size")?;
        let layers = raw.size("num_hidden_layers")?;
        if layers > 100_000 {
            return Err(raw.bad("num_hidden_layers", "at most 100000 blocks"));
        }
        let heads = raw.size("num_attention_heads")?;
        let head_dim = match raw.maybe_size("head_dim")? {
            Some(width) => width,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(raw.bad("num_attention_heads", "a divisor of hidden_size (or give head_dim)")),
        };
        Ok(Self {
            hidden,
            layers,
            heads,
            kv_heads: raw.maybe_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            inner: raw.size("intermediate_size")?,
            max_positions: raw.maybe_size("max_position_embeddings")?.unwrap_or(2048),
        })
    }

    /// Grouped attention without biases or norms, scores scaled by the root of the head width.
    pub(super) fn attention(&self) -> Grouped {
        Grouped { qkv_bias: false, out_bias: false, fused: false, qk_norm: QkNorm::None, scale: None, softcap: None }
    }

    /// A gated MLP without biases.
    pub(super) fn mlp(&self, activation: Activation) -> MlpSpec {
        MlpSpec::Gated { inner: self.inner, fused: false, bias: false, activation }
    }
}

/// The choices within grouped attention.
pub(super) struct Grouped {
    pub(super) qkv_bias: bool,
    pub(super) out_bias: bool,
    pub(super) fused: bool,
    pub(super) qk_norm: QkNorm,
    pub(super) scale: Option<f64>,
    pub(super) softcap: Option<f64>,
}

impl Grouped {
    pub(super) fn spec(self, sizes: &Sizes) -> AttentionSpec {
        AttentionSpec::Grouped {
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            fused: self.fused,
            qkv_bias: self.qkv_bias,
            out_bias: self.out_bias,
            qk_norm: self.qk_norm,
            scale: self.scale.unwrap_or((sizes.head_dim as f64).powf(-0.5)),
            softcap: self.softcap,
        }
    }
}

/// The activation named by `key`, `silu` when absent.
pub(super) fn activation(raw: &RawConfig, key: &str) -> Result<Activation, ConfigError> {
    match raw.maybe_text(key)?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        _ => Err(raw.bad(key, "one of silu, gelu, gelu_new, gelu_pytorch_tanh")),
    }
}

/// The window of every block, from `sliding_window` and, where given, `layer_types`.
///
/// `slides` tells which blocks slide when the configuration has no `layer_types`.
pub(super) fn windows(
    raw: &RawConfig,
    layers: usize,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let Some(window) = raw.maybe_size("sliding_window")? else {
        return Ok(vec![None; layers]);
    };
    let Some(types) = raw.maybe_texts("layer_types")? else {
        return Ok((0..layers).map(|i| slides(i).then_some(window)).collect());
    };
    if types.len() != layers {
        return Err(raw.bad("layer_types", &format!("{layers} entries, one per block")));
    }
    types
        .iter()
        .map(|kind| match *kind {
            "full_attention" => Ok(None),
            "sliding_attention" => Ok(Some(window)),
            _ => Err(raw.bad("layer_types", "full_attention or sliding_attention")),
        })
        .collect()
}

/// A model of equal blocks; the caller changes what differs.
pub(super) fn plain(
    family: &'static str,
    raw: &RawConfig,
    sizes: &Sizes,
    attention: AttentionSpec,
    mlp: MlpSpec,
) -> Result<Spec, ConfigError> {
    let block = BlockSpec { attention, window: None, mlp, norms: BlockNorms::PRE };
    let dtype = match raw.maybe_text("dtype")? {
        Some(name) => Some(name),
        None => raw.maybe_text("torch_dtype")?,
    };
    let dtype = match dtype {
        None | Some("auto") => None,
        Some("float32") => Some(DType::F32),
        Some("float16") => Some(DType::F16),
        Some("bfloat16") => Some(DType::BF16),
        Some(other) => {
            let expected = "float32, float16 or bfloat16".into();
            return Err(ConfigError::Value { key: "dtype".into(), expected, found: other.into() });
        }
    };
    Ok(Spec {
        family,
        vocab_size: raw.size("vocab_size")?,
        hidden_size: sizes.hidden,
        max_positions: sizes.max_positions,
        norm: NormSpec { eps: raw.number_or("rms_norm_eps", 1e-6)?, unit_offset: false },
        embedding_scale: None,
        logit_softcap: None,
        tied: raw.flag_or("tie_word_embeddings", false)?,
        rope: RopeSpec::read(raw, sizes.head_dim, sizes.max_positions)?,
        blocks: vec![block; sizes.layers],
        dtype,
        bos: raw.token_ids("bos_token_id")?.first().copied(),
        eos: raw.token_ids("eos_token_id")?,
    })
}

/// Gives every block its window.
pub(super) fn set_windows(spec: &mut Spec, windows: Vec<Option<usize>>) {
    for (block, window) in spec.blocks.iter_mut().zip(windows) {
        block.window = window;
    }
}
