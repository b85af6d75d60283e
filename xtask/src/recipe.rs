//! A recipe: which methods, in which order, on which layers.
//!
//! Reading has two steps. [`Recipe::parse`] needs the text only; [`resolve()`] checks it against the methods
//! and the layers of a model, before any weight is read. Every message starts with `FILE:LINE:`.

mod resolve;
mod targets;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use kindling_core::options::{Value, nearest, unknown};
use kindling_core::{Family, Options};
use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) use self::resolve::{ResolvedStage, resolve};
use self::targets::Pattern;
use crate::error::user;

/// The recipe of a run that names none.
const DEFAULT: &str = include_str!("../../recipes/default.toml");

/// The keys of a stage that belong to no method.
const SHARED_KEYS: [&str; 3] = ["method", "targets", "ignore"];

/// A recipe that has been read but not yet compared with a model.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// Where it came from, as messages name it.
    pub(crate) name: String,
    /// What to do, in order.
    pub(crate) stages: Vec<Stage>,
}

/// One `[[stage]]`.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The method's name, not yet looked up.
    pub(crate) method: Located<String>,
    /// Which layers; `None` if the recipe leaves it to the method.
    targets: Option<Located<Vec<Located<Pattern>>>>,
    /// Which layers not.
    ignore: Vec<Located<Pattern>>,
    /// The method's own keys.
    pub(crate) options: Options,
    /// The line of each of the method's own keys.
    lines: BTreeMap<String, usize>,
}

/// Something with the line of the recipe it stands in, counted from 1.
#[derive(Debug, Clone)]
pub(crate) struct Located<T> {
    pub(crate) line: usize,
    pub(crate) value: T,
}

impl Recipe {
    /// The recipe that is used when the user names none.
    pub(crate) fn default_recipe() -> Self {
        Self::parse("recipes/default.toml", DEFAULT).expect("the built-in recipe is valid: a test reads it")
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            user(format!("recipe {name}: {error}; name a TOML file, for example one of recipes/*.toml"))
        })?;
        Self::parse(&name, &text)
    }

    /// Reads a text; `name` is what messages call it.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        Reader { name, text }.recipe()
    }

    /// Sets `key` in every stage of a method of this family that leaves it open.
    pub(crate) fn default_option(&mut self, family: Family, key: &str, value: &Value) {
        let known: Vec<_> = crate::methods::all().into_iter().filter(|method| method.family == family).collect();
        for stage in &mut self.stages {
            if known.iter().any(|method| method.name == stage.method.value) {
                stage.options.0.entry(key.into()).or_insert_with(|| value.clone());
            }
        }
    }

    /// The recipe as TOML without comments, with the options that were set since it was read.
    pub(crate) fn normalised(&self) -> Result<String> {
        #[derive(Serialize)]
        struct File<'a> {
            stage: Vec<Table<'a>>,
        }
        #[derive(Serialize)]
        struct Table<'a> {
            method: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            targets: Option<Vec<&'a str>>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            ignore: Vec<&'a str>,
            #[serde(flatten)]
            options: &'a Options,
        }
        fn texts(patterns: &[Located<Pattern>]) -> Vec<&str> {
            patterns.iter().map(|pattern| pattern.value.text()).collect()
        }
        let stage = self.stages.iter().map(|stage| Table {
            method: &stage.method.value,
            targets: stage.targets.as_ref().map(|targets| texts(&targets.value)),
            ignore: texts(&stage.ignore),
            options: &stage.options,
        });
        toml::to_string(&File { stage: stage.collect() }).context("the recipe cannot be written as TOML")
    }

    /// A mistake in this line.
    fn mistake(&self, line: usize, message: impl std::fmt::Display) -> anyhow::Error {
        user(format!("{}:{line}: {message}", self.name))
    }
}

/// The text of a recipe, to turn places in it into lines.
struct Reader<'a> {
    name: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn recipe(&self) -> Result<Recipe> {
        let table = DeTable::parse(self.text)
            .map_err(|error| self.mistake(error.span().unwrap_or(0..0), format!("not TOML: {}", error.message())))?;
        let mut stages = Vec::new();
        for (key, value) in table.get_ref().iter() {
            let name: &str = key.get_ref();
            if name != "stage" {
                let method_key = if name == "method" { "; put it below a `[[stage]]` line" } else { "" };
                return Err(self.mistake(key.span(), unknown("key", name, &["stage"]) + method_key));
            }
            match value.get_ref() {
                DeValue::Array(tables) => {
                    for table in tables.iter() {
                        stages.push(self.stage(table)?);
                    }
                }
                _ => return Err(self.mistake(key.span(), "a stage begins with `[[stage]]`, in double brackets")),
            }
        }
        if stages.is_empty() {
            return Err(user(format!(
                "{}: no `[[stage]]`, so nothing to do: add one, for example `[[stage]]` and below it \
                 `method = \"rtn\"`",
                self.name
            )));
        }
        Ok(Recipe { name: self.name.into(), stages })
    }

    fn stage(&self, value: &Spanned<DeValue<'_>>) -> Result<Stage> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.mistake(value.span(), "a stage begins with `[[stage]]`, in double brackets"));
        };
        let (mut method, mut targets, mut ignore) = (None, None, Vec::new());
        let (mut options, mut lines) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in table.iter() {
            let (name, line): (&str, _) = (key.get_ref(), self.line(key.span()));
            match name {
                "method" => method = Some(Located { line, value: self.text_of("method", value)? }),
                "targets" => targets = Some(Located { line, value: self.patterns(name, value)? }),
                "ignore" => ignore = self.patterns(name, value)?,
                _ => {
                    options.insert(name.to_string(), self.option(name, value)?);
                    lines.insert(name.to_string(), line);
                }
            }
        }
        let method = method.ok_or_else(|| {
            let keys: Vec<&str> = options.keys().map(String::as_str).collect();
            match nearest("method", &keys) {
                Some(typo) => {
                    user(format!("{}:{}: unknown key `{typo}`, did you mean `method`?", self.name, lines[typo]))
                }
                None => self
                    .mistake(value.span(), "the stage names no method: add `method = \"…\"`, see `cargo xtask list`"),
            }
        })?;
        Ok(Stage { method, targets, ignore, options: Options(options), lines })
    }

    fn patterns(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Located<Pattern>>> {
        let DeValue::Array(entries) = value.get_ref() else {
            return Err(
                self.mistake(value.span(), format!("`{key}` must be a list, for example `{key} = [\"mlp.*\"]`"))
            );
        };
        let read = |entry: &Spanned<DeValue<'_>>| {
            let pattern = self.text_of(key, entry)?.parse().map_err(|reason| self.mistake(entry.span(), reason))?;
            Ok(Located { line: self.line(entry.span()), value: pattern })
        };
        entries.iter().map(read).collect()
    }

    fn text_of(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<String> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            other => {
                let found = other.type_str();
                Err(self.mistake(value.span(), format!("`{key}`: expected a text in quotes, found {found}")))
            }
        }
    }

    fn option(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Value> {
        let refuse = |reason: &str| self.mistake(value.span(), format!("`{key}`: {reason}"));
        Ok(match value.get_ref() {
            DeValue::Boolean(flag) => Value::Bool(*flag),
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map(Value::Int)
                .map_err(|_| refuse("the number is too large"))?,
            DeValue::Float(number) => {
                let number: f64 = number.as_str().parse().map_err(|_| refuse("not a number"))?;
                if !number.is_finite() {
                    return Err(refuse("expected a finite number"));
                }
                Value::Float(number)
            }
            DeValue::Array(values) => {
                Value::List(values.iter().map(|value| self.option(key, value)).collect::<Result<_>>()?)
            }
            DeValue::Table(table) => Value::Table(
                table
                    .iter()
                    .map(|(k, v)| Ok((k.get_ref().to_string(), self.option(key, v)?)))
                    .collect::<Result<_>>()?,
            ),
            DeValue::Datetime(_) => return Err(refuse("no method takes a date")),
        })
    }

    fn line(&self, span: Range<usize>) -> usize {
        1 + self.text.bytes().take(span.start).filter(|&byte| byte == b'\n').count()
    }

    fn mistake(&self, span: Range<usize>, message: impl std::fmt::Display) -> anyhow::Error {
        user(format!("{}:{}: {message}", self.name, self.line(span)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Recipe::parse("r.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn reads_every_key() {
        let text = "\n[[stage]]\nmethod = \"gptq\"\nbits = 0x4\ndamping = 1e-2\nsymmetric = false\n\
                    targets = [\n  \"mlp.*\",\n  \"re:self_attn\",\n]\nignore = [\"lm_head\"]\n";
        let recipe = Recipe::parse("r.toml", text).unwrap();
        let [stage] = &recipe.stages[..] else { panic!("{recipe:?}") };
        assert_eq!((stage.method.line, stage.method.value.as_str()), (3, "gptq"));
        let expected = [("bits", Value::Int(4)), ("damping", Value::Float(0.01)), ("symmetric", Value::Bool(false))];
        assert_eq!(stage.options, Options::from_iter(expected));
        assert_eq!(stage.lines["damping"], 5);
        let targets = &stage.targets.as_ref().unwrap().value;
        assert_eq!(
            targets.iter().map(|t| (t.line, t.value.text())).collect::<Vec<_>>(),
            [(8, "mlp.*"), (9, "re:self_attn")]
        );
        assert_eq!(stage.ignore.len(), 1);
    }

    #[test]
    fn the_normalised_text_means_the_same() {
        let text = "[[stage]]\nmethod = \"sparsegpt\" # first\npattern = \"2:4\"\ntargets = [\"mlp.*\"]\n\n\
                    [[stage]]\nmethod = \"gptq\"\nbits = 3\nignore = [\"lm_head\"]\n";
        let mut recipe = Recipe::parse("r.toml", text).unwrap();
        recipe.default_option(Family::Quantise, "scale_type", &Value::Text("f16".into()));
        recipe.default_option(Family::Quantise, "bits", &Value::Int(8));
        let text = recipe.normalised().unwrap();
        insta::assert_snapshot!(text, @r#"
        [[stage]]
        method = "sparsegpt"
        targets = ["mlp.*"]
        pattern = "2:4"

        [[stage]]
        method = "gptq"
        ignore = ["lm_head"]
        bits = 3
        scale_type = "f16"
        "#);
        let again = Recipe::parse("again.toml", &text).unwrap();
        assert_eq!(again.stages.len(), 2);
        for (a, b) in again.stages.iter().zip(&recipe.stages) {
            assert_eq!(a.options, b.options);
        }
        assert_eq!(again.normalised().unwrap(), text);
    }

    #[test]
    fn the_default_recipe_is_valid() {
        assert!(!Recipe::default_recipe().stages.is_empty());
    }

    #[test]
    fn messages_say_where_and_what_to_do() {
        assert_eq!(
            refused("[[stages]]\nmethod = \"rtn\""),
            "r.toml:1: unknown key `stages`, did you mean `stage`? (known: stage)"
        );
        assert_eq!(
            refused("# top\nmethod = \"rtn\""),
            "r.toml:2: unknown key `method` (known: stage); put it below a `[[stage]]` line"
        );
        assert_eq!(
            refused("[stage]\nmethod = \"rtn\""),
            "r.toml:1: a stage begins with `[[stage]]`, in double brackets"
        );
        assert_eq!(
            refused("# nothing"),
            "r.toml: no `[[stage]]`, so nothing to do: add one, for example `[[stage]]` and below it `method = \"rtn\"`"
        );
        assert_eq!(
            refused("\n[[stage]]\nbits = 4"),
            "r.toml:2: the stage names no method: add `method = \"…\"`, see `cargo xtask list`"
        );
        assert_eq!(
            refused("[[stage]]\nbits = 4\nmetod = \"rtn\""),
            "r.toml:3: unknown key `metod`, did you mean `method`?"
        );
        assert_eq!(refused("[[stage]]\nmethod = 4"), "r.toml:2: `method`: expected a text in quotes, found integer");
        assert_eq!(
            refused("[[stage]]\nmethod = \"rtn\"\ntargets = \"mlp.*\""),
            "r.toml:3: `targets` must be a list, for example `targets = [\"mlp.*\"]`"
        );
        assert_eq!(
            refused("[[stage]]\nmethod = \"rtn\"\nignore = [\"lm_head\",\n  3]"),
            "r.toml:4: `ignore`: expected a text in quotes, found integer"
        );
        assert_eq!(
            refused("[[stage]]\nmethod = \"rtn\"\nsince = 2024-01-01"),
            "r.toml:3: `since`: no method takes a date"
        );
        assert_eq!(
            refused("[[stage]]\nmethod = \"rtn\"\nbits = 99999999999999999999"),
            "r.toml:3: `bits`: the number is too large"
        );
        assert_eq!(refused("[[stage]]\nratio = nan"), "r.toml:2: `ratio`: expected a finite number");
    }

    #[test]
    fn broken_toml_is_one_line_with_its_place() {
        let message = refused("[[stage]]\nmethod = \"rtn");
        assert!(message.starts_with("r.toml:2: not TOML: "), "{message}");
        assert!(!message.contains('\n'), "{message}");
        let twice = refused("[[stage]]\nmethod = \"rtn\"\nmethod = \"gptq\"");
        assert_eq!(twice, "r.toml:3: not TOML: duplicate key");
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = Recipe::read(Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(message.starts_with("recipe no/such.toml: "), "{message}");
        assert!(message.ends_with("name a TOML file, for example one of recipes/*.toml"), "{message}");
    }
}
