//! Patterns over module names: `mlp.*` or `re:mlp\.(up|gate)_proj$`.

use std::fmt;
use std::str::FromStr;

use regex::Regex;

/// A pattern over module names without the `model.layers.N.` prefix.
///
/// A glob must cover the whole name; `*` stands for any characters, dots too, and `?` for one. After `re:`
/// comes a regular expression, anchored at the start of the name and free at its end.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Whether `name` is meant.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }

    /// The pattern as the user wrote it.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let regex = match text.strip_prefix("re:") {
            Some(expression) => format!("^(?:{expression})"),
            None => {
                let escaped = regex::escape(text).replace(r"\*", ".*").replace(r"\?", ".");
                format!("^{escaped}$")
            }
        };
        let regex = Regex::new(&regex).map_err(|error| {
            // The last line of a syntax error says what is wrong; those above draw where.
            let message = error.to_string();
            let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
            format!("`{text}` is not a regular expression: {reason}")
        })?;
        Ok(Self { text: text.into(), regex })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] =
        ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "mlp.experts.0.down_proj"];

    fn matched(pattern: &str) -> Vec<&'static str> {
        let pattern: Pattern = pattern.parse().unwrap();
        NAMES.into_iter().filter(|name| pattern.matches(name)).collect()
    }

    #[test]
    fn globs_cover_the_whole_name() {
        assert_eq!(matched("*"), NAMES);
        assert_eq!(matched("mlp.*"), NAMES[2..]);
        assert_eq!(matched("*.down_proj"), NAMES[3..]);
        assert_eq!(matched("mlp.down_proj"), ["mlp.down_proj"]);
        assert_eq!(matched("self_attn.?_proj"), NAMES[..2]);
        assert!(matched("down_proj").is_empty());
        assert!(matched("mlp.down").is_empty());
        assert!(matched("mlpxdown_proj").is_empty());
    }

    #[test]
    fn regular_expressions_are_anchored_at_the_start_only() {
        assert_eq!(matched("re:mlp"), NAMES[2..]);
        assert!(matched("re:down_proj").is_empty());
        assert_eq!(matched("re:.*down_proj"), NAMES[3..]);
        assert_eq!(matched(r"re:self_attn\.q|mlp\.gate"), ["self_attn.q_proj", "mlp.gate_proj"]);
    }

    #[test]
    fn a_broken_expression_is_explained_in_one_line() {
        let message = "re:mlp.(up".parse::<Pattern>().unwrap_err();
        assert_eq!(message, "`re:mlp.(up` is not a regular expression: unclosed group");
    }
}
