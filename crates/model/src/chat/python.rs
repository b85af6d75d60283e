//! Numbers and JSON in Python's spelling: chat templates were written, and models trained, with it.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: Python's `json.dumps`.
pub(super) fn tojson(value: &Value, positional: Rest<Value>, keys: Kwargs) -> Result<String, Error> {
    let invalid = |reason: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"));
    let argument = |at: usize, name: &'static str| -> Result<Option<Value>, Error> {
        let given = match positional.get(at) {
            Some(value) => Some(value.clone()),
            None => keys.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none()))
    };
    let ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match argument(1, "indent")? {
        None => None,
        Some(value) if value.kind() == ValueKind::String => Some(value.to_string()),
        Some(value) => Some(" ".repeat(usize::try_from(value)?)),
    };
    let (item, key) = match argument(2, "separators")? {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
    };
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    keys.assert_all_used()?;
    if value.is_undefined() {
        return Err(invalid("the value is undefined".to_owned()));
    }
    let json = serde_json::to_value(value).map_err(|error| invalid(error.to_string()))?;
    let mut writer = Writer { out: String::new(), ascii, indent, item, key, sort_keys };
    writer.value(&json, 0);
    Ok(writer.out)
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "nan".to_owned() } else { format!("{value}") };
    }
    let exponential = format!("{value:e}");
    let (digits, exponent) = exponential.split_once('e').unwrap_or((&exponential, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

struct Writer {
    out: String,
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Json, depth: usize) {
        match value {
            Json::Null => self.out.push_str("null"),
            Json::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(value) => self.out.push_str(&float(value)),
                None => self.out.push_str(&number.to_string()),
            },
            Json::String(text) => self.string(text),
            Json::Array(items) => {
                self.list('[', ']', items.len(), depth, |writer, at| writer.value(&items[at], depth + 1));
            }
            Json::Object(map) => {
                let mut pairs: Vec<(&String, &Json)> = map.iter().collect();
                if self.sort_keys {
                    pairs.sort_by_key(|(key, _)| *key);
                }
                self.list('{', '}', pairs.len(), depth, |writer, at| {
                    writer.string(pairs[at].0);
                    let separator = writer.key.clone();
                    writer.out.push_str(&separator);
                    writer.value(pairs[at].1, depth + 1);
                });
            }
        }
    }

    fn list(&mut self, open: char, close: char, len: usize, depth: usize, mut write: impl FnMut(&mut Self, usize)) {
        self.out.push(open);
        for at in 0..len {
            if at > 0 {
                let separator = self.item.clone();
                self.out.push_str(&separator);
            }
            self.line(depth + 1);
            write(self, at);
        }
        if len > 0 {
            self.line(depth);
        }
        self.out.push(close);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_spelt_as_python_does() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.25e-7, "-1.25e-07"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float(value), expected);
        }
    }

    fn dumps(json: Json, template: &str) -> String {
        let mut environment = minijinja::Environment::new();
        environment.add_filter("tojson", tojson);
        environment
            .render_str(template, minijinja::context! { x => minijinja::Value::from(minijinja::value::Serde(json)) })
            .unwrap()
    }

    #[test]
    fn json_is_spelt_as_python_does() {
        let value = || serde_json::json!({"b": ["é🦀", 1.0, null, true], "a": {}, "c": "\u{1}\u{7f}\n\"\\/"});
        assert_eq!(
            dumps(value(), "{{ x | tojson }}"),
            "{\"b\": [\"é🦀\", 1.0, null, true], \"a\": {}, \"c\": \"\\u0001\u{7f}\\n\\\"\\\\/\"}"
        );
        assert_eq!(
            dumps(value(), "{{ x | tojson(true, sort_keys=true, separators=(',', ':')) }}"),
            r#"{"a":{},"b":["\u00e9\ud83e\udd80",1.0,null,true],"c":"\u0001\u007f\n\"\\/"}"#
        );
        assert_eq!(dumps(serde_json::json!([1, []]), "{{ x | tojson(indent='\t') }}"), "[\n\t1,\n\t[]\n]");
        assert_eq!(dumps(serde_json::json!([1, [2]]), "{{ x | tojson(indent=0) }}"), "[\n1,\n[\n2\n]\n]");
    }
}
