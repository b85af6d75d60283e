//! Which modules an entry of `targets` or `ignore` means.

use regex::bytes::{Regex, RegexBuilder};

use super::CompressedTensorsError;

/// The class that [`crate::compressed_tensors`] is asked about.
const LINEAR: &str = "Linear";

/// An entry of `targets` or `ignore`.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// A module's full name.
    Exact(String),
    /// A pattern, anchored at the start of the full name and free at its end.
    Pattern(Regex),
    /// Every linear module.
    Linear,
}

/// How closely an entry names a module; the closest one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Closeness {
    Class,
    Pattern,
    Exact,
}

impl Target {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, CompressedTensorsError> {
        let Some(pattern) = text.strip_prefix("re:") else {
            return Ok(if text == LINEAR { Target::Linear } else { Target::Exact(text.to_owned()) });
        };
        // On bytes, as the classes of the regex crate for Unicode text are not compiled in; module names are ASCII.
        match RegexBuilder::new(&format!("^(?:{pattern})")).unicode(false).build() {
            Ok(regex) => Ok(Target::Pattern(regex)),
            Err(error) => Err(CompressedTensorsError::Config {
                key: key.to_owned(),
                reason: format!(
                    "`{text}` is not a regular expression this reader knows ({error}): list the modules by name"
                ),
            }),
        }
    }

    pub(super) fn matches(&self, module: &str) -> Option<Closeness> {
        match self {
            Target::Exact(name) => (name == module).then_some(Closeness::Exact),
            Target::Pattern(regex) => regex.is_match(module.as_bytes()).then_some(Closeness::Pattern),
            Target::Linear => Some(Closeness::Class),
        }
    }
}
