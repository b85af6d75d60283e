//! Conversations to text: the chat templates of Hugging Face checkpoints, rendered byte for byte as transformers does.
//!
//! A template comes from `chat_template.jinja` or from `tokenizer_config.json`. It is rendered with `trim_blocks`,
//! `lstrip_blocks`, loop controls, Python's methods of strings and dictionaries, `raise_exception`, `strftime_now` and
//! `json.dumps` as `tojson`. `{% generation %}` marks are accepted and give their content. One difference is known: a
//! float joined to a text by `~` has no exponent here (`1e20` has one in Python); printed alone it is the same.
//!
//! ```
//! use kindling_model::chat::{ChatTemplate, RenderOptions, message};
//!
//! let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}")?;
//! assert_eq!(template.render(&[message("user", "Hi ")], &RenderOptions::default())?, "<user>Hi");
//! # Ok::<(), kindling_model::chat::ChatError>(())
//! ```

mod clock;
mod python;

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value, json};

pub use clock::DateTime;

use crate::tokenizer::{SpecialTokens, TokenizerError, read_json};

/// What can go wrong with a chat template.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file beside the template is unusable.
    #[error(transparent)]
    File(#[from] TokenizerError),
    /// The template is no valid Jinja.
    #[error("{origin}: the chat template is malformed: {reason}")]
    Syntax {
        /// The file, or `chat template`.
        origin: String,
        /// Where and what.
        reason: String,
    },
    /// The template refuses the conversation through `raise_exception`.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// The template fails on the conversation.
    #[error("the chat template fails on these messages: {0}")]
    Render(String),
}

/// A result with [`ChatError`].
pub type Result<T, E = ChatError> = std::result::Result<T, E>;

/// A message with a role (`system`, `user`, `assistant`, `tool`) and a text. Any JSON object may be a message.
pub fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// What a template is told beside the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Ends the text where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// In place of the checkpoint's BOS.
    pub bos_token: Option<String>,
    /// In place of the checkpoint's EOS.
    pub eos_token: Option<String>,
    /// Descriptions (JSON schemas) of the tools that the model may call.
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from.
    pub documents: Option<Vec<Value>>,
    /// Further variables; they hide others of the same name.
    pub extra: Map<String, Value>,
    /// What `strftime_now` takes for now; else the clock, in UTC.
    pub now: Option<DateTime>,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// The chat template of a checkpoint.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTokens,
    /// Whether there is a template of its own for conversations with tools.
    tool_use: bool,
}

impl ChatTemplate {
    /// A template from its source, without special tokens.
    ///
    /// # Errors
    /// [`ChatError::Syntax`] if the source is no valid template.
    pub fn new(source: &str) -> Result<Self> {
        let mut template = Self { environment: environment(), special: SpecialTokens::default(), tool_use: false };
        template.add(DEFAULT, source, "chat template")?;
        Ok(template)
    }

    /// The template of the checkpoint directory `dir`: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json`, a text or a list of named ones. Of those, `tool_use` renders conversations with tools
    /// and `default` all others. `None` if the checkpoint has no template.
    ///
    /// # Errors
    /// [`ChatError::File`] if a file is unusable, [`ChatError::Syntax`] if a template is.
    pub fn open(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let dir = dir.as_ref();
        let mut template = Self { environment: environment(), special: SpecialTokens::read(dir)?, tool_use: false };
        let (path, sources) = sources(dir)?;
        for (name, source) in &sources {
            template.add(name, source, &path.display().to_string())?;
        }
        if sources.is_empty() {
            return Ok(None);
        }
        if !sources.iter().any(|(name, _)| name == DEFAULT) {
            let names: Vec<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
            let reason = format!("`chat_template` has no template named `{DEFAULT}`, only {names:?}");
            return Err(TokenizerError::File { path, reason }.into());
        }
        Ok(Some(template))
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`ChatError::Refused`] with the template's own words, or [`ChatError::Render`] if it fails.
    pub fn render(&self, messages: &[Value], options: &RenderOptions) -> Result<String> {
        let name = if self.tool_use && options.tools.is_some() { TOOL_USE } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(render_error)?;
        template.render(self.context(messages, options)).map_err(render_error)
    }

    fn context(&self, messages: &[Value], options: &RenderOptions) -> minijinja::Value {
        let mut context: Vec<(&str, minijinja::Value)> = Vec::new();
        let special = [
            ("bos_token", options.bos_token.as_ref().or(self.special.bos.as_ref())),
            ("eos_token", options.eos_token.as_ref().or(self.special.eos.as_ref())),
            ("unk_token", self.special.unk.as_ref()),
            ("pad_token", self.special.pad.as_ref()),
        ];
        // An absent special token is undefined and prints nothing; absent tools are defined as none.
        context.extend(special.iter().filter_map(|(name, token)| token.map(|token| (*name, token.into()))));
        context.push(("messages", minijinja::Value::from(minijinja::value::Serde(messages))));
        context.push(("tools", minijinja::Value::from(minijinja::value::Serde(&options.tools))));
        context.push(("documents", minijinja::Value::from(minijinja::value::Serde(&options.documents))));
        context.push(("add_generation_prompt", options.add_generation_prompt.into()));
        let now = options.now;
        let strftime_now = move |format: &str| {
            now.unwrap_or_else(DateTime::now_utc).strftime(format).map_err(|directive| {
                let reason = format!("strftime_now does not know the directive `{directive}`");
                minijinja::Error::new(ErrorKind::InvalidOperation, reason)
            })
        };
        context.push(("strftime_now", minijinja::Value::from_function(strftime_now)));
        let extra = options
            .extra
            .iter()
            .map(|(name, value)| (name.as_str(), minijinja::Value::from(minijinja::value::Serde(value))));
        context.extend(extra);
        minijinja::Value::from_pairs(context)
    }

    fn add(&mut self, name: &str, source: &str, origin: &str) -> Result<()> {
        self.tool_use |= name == TOOL_USE;
        self.environment
            .add_template_owned(name.to_owned(), without_generation_marks(source))
            .map_err(|error| ChatError::Syntax { origin: origin.to_owned(), reason: error.to_string() })
    }
}

/// The templates of a checkpoint directory by name, and the file they are from.
fn sources(dir: &Path) -> Result<(PathBuf, Vec<(String, String)>)> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok((path, vec![(DEFAULT.to_owned(), source)])),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(TokenizerError::Io { path, source }.into()),
    }
    let path = dir.join("tokenizer_config.json");
    let found = read_json(&path)?.and_then(|config| config.get("chat_template").cloned()).unwrap_or(Value::Null);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let sources = match &found {
        Value::Null => Some(Vec::new()),
        Value::String(source) => Some(vec![(DEFAULT.to_owned(), source.clone())]),
        Value::Array(list) => list.iter().map(|one| text(one, "name").zip(text(one, "template"))).collect(),
        _ => None,
    };
    match sources {
        Some(sources) => Ok((path, sources)),
        None => {
            let reason = "`chat_template` must be a text or a list of {name, template}".to_owned();
            Err(TokenizerError::File { path, reason }.into())
        }
    }
}

/// What `raise_exception` was called with, carried through minijinja's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn render_error(error: minijinja::Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(one) = cause {
        if let Some(refusal) = one.downcast_ref::<Refusal>() {
            return ChatError::Refused(refusal.0.clone());
        }
        cause = one.source();
    }
    ChatError::Render(error.to_string())
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
        Err(error.with_source(Refusal(message)))
    });
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            let number = f64::try_from(value.clone())?;
            out.write_str(&python::float(number)).map_err(minijinja::Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment
}

/// `{% generation %}` … `{% endgeneration %}` tell transformers which tokens the assistant wrote. Their content counts.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        match tag.trim_matches(|c: char| "{}%-+".contains(c) || c.is_whitespace()) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One recorded rendering of transformers.
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        name: String,
        template: String,
        messages: Vec<Value>,
        add_generation_prompt: bool,
        bos_token: String,
        eos_token: String,
        now: String,
        tools: Option<Vec<Value>>,
        #[serde(default)]
        extra: Map<String, Value>,
        expected: Option<String>,
        error: Option<String>,
    }

    fn check(style: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat").join(format!("{style}.json"));
        let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let number = |range: std::ops::Range<usize>| case.now[range].parse().unwrap();
            let options = RenderOptions {
                add_generation_prompt: case.add_generation_prompt,
                bos_token: Some(case.bos_token),
                eos_token: Some(case.eos_token),
                tools: case.tools,
                documents: None,
                extra: case.extra,
                now: Some(DateTime {
                    year: case.now[..4].parse().unwrap(),
                    month: number(5..7),
                    day: number(8..10),
                    hour: number(11..13),
                    minute: number(14..16),
                    second: number(17..19),
                }),
            };
            let rendered = ChatTemplate::new(&case.template).unwrap().render(&case.messages, &options);
            match (rendered, case.expected, case.error) {
                (Ok(found), Some(expected), None) => assert_eq!(found, expected, "{style}, {}", case.name),
                (Err(ChatError::Refused(found)), None, Some(expected)) => assert_eq!(found, expected),
                (found, expected, error) => {
                    panic!("{style}, {}: {found:?}, transformers: {expected:?} {error:?}", case.name)
                }
            }
        }
    }

    #[test]
    fn llama3_style() {
        check("llama3");
    }

    #[test]
    fn mistral_style() {
        check("mistral");
    }

    #[test]
    fn qwen_style() {
        check("qwen");
    }

    #[test]
    fn gemma2_style() {
        check("gemma2");
    }

    #[test]
    fn phi3_style() {
        check("phi3");
    }

    #[test]
    fn chatml_style() {
        check("chatml");
    }

    #[test]
    fn deepseek_style() {
        check("deepseek");
    }

    #[test]
    fn what_templates_borrow_from_python() {
        check("python");
    }

    fn open(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        ChatTemplate::open(dir.path())
    }

    fn say(template: &ChatTemplate, options: &RenderOptions) -> String {
        template.render(&[message("user", "Hi")], options).unwrap()
    }

    #[test]
    fn a_jinja_file_wins_and_special_tokens_come_from_the_checkpoint() {
        let config = r#"{"bos_token": {"content": "<b>"}, "chat_template": "{{ bos_token }}config{{ eos_token }}"}"#;
        let options = RenderOptions::default();
        assert!(open(&[]).unwrap().is_none());
        let from_config = open(&[("tokenizer_config.json", config)]).unwrap().unwrap();
        assert_eq!(say(&from_config, &options), "<b>config");
        let both = [("tokenizer_config.json", config), ("chat_template.jinja", "{{ bos_token }}file {{ colour }}\n")];
        let from_file = open(&both).unwrap().unwrap();
        assert_eq!(say(&from_file, &options), "<b>file ");
        let mut changed = RenderOptions { bos_token: Some("<x>".to_owned()), ..options };
        changed.extra.insert("colour".to_owned(), json!("red"));
        assert_eq!(say(&from_file, &changed), "<x>file red");
    }

    #[test]
    fn tools_have_a_template_of_their_own_if_there_is_one() {
        let config = r#"{"chat_template": [
            {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]}"#;
        let template = open(&[("tokenizer_config.json", config)]).unwrap().unwrap();
        assert_eq!(say(&template, &RenderOptions::default()), "plain");
        let options = RenderOptions { tools: Some(vec![json!({}), json!({})]), ..Default::default() };
        assert_eq!(say(&template, &options), "2 tools");
    }

    #[test]
    fn errors_say_what_is_wrong_where() {
        let message = |name, text| open(&[(name, text)]).unwrap_err().to_string();
        let syntax = message("chat_template.jinja", "{% for %}");
        assert!(syntax.contains("chat_template.jinja") && syntax.contains("malformed"), "{syntax}");
        let names = message("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#);
        assert!(names.contains("no template named `default`, only [\"rag\"]"), "{names}");
        assert!(message("tokenizer_config.json", r#"{"chat_template": 3}"#).contains("a text or a list"));
        let failing = ChatTemplate::new("{{ messages[0].name.first }}").unwrap();
        let error = failing.render(&[json!({"role": "user"})], &RenderOptions::default()).unwrap_err();
        assert!(matches!(error, ChatError::Render(_)), "{error}");
        let undefined = ChatTemplate::new("{{ nothing | tojson }}").unwrap();
        assert!(undefined.render(&[], &RenderOptions::default()).is_err());
        let clock = ChatTemplate::new("{{ strftime_now('%Q') }}").unwrap();
        let error = clock.render(&[], &RenderOptions::default()).unwrap_err().to_string();
        assert!(error.contains("`%Q`"), "{error}");
    }

    #[test]
    fn the_clock_is_read_when_no_time_is_given() {
        let template = ChatTemplate::new("{{ strftime_now('%Y') }}").unwrap();
        let year: i64 = template.render(&[], &RenderOptions::default()).unwrap().parse().unwrap();
        assert!(year >= 2024);
    }

    #[test]
    fn generation_marks_become_blocks_with_the_same_white_space() {
        let source = "{%- generation -%} a {%+ endgeneration %}{% set generation = 1 %}";
        assert_eq!(without_generation_marks(source), "{%- if true -%} a {%+ endif %}{% set generation = 1 %}");
    }
}
