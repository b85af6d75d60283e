//! The workspace as the checks see it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All crates and the README.
pub(super) struct Workspace {
    pub(super) crates: Vec<Crate>,
    pub(super) readme: Option<String>,
}

/// One crate.
pub(super) struct Crate {
    /// Folder, relative to the root: `crates/prune`.
    pub(super) dir: String,
    pub(super) manifest: toml::Table,
    pub(super) sources: Vec<Source>,
}

/// One Rust file.
pub(super) struct Source {
    /// Path, relative to the root, with `/`.
    pub(super) path: String,
    /// The file as it is.
    pub(super) text: String,
    /// The same lines with comments and the insides of strings blanked.
    pub(super) code: String,
}

impl Workspace {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut dirs = vec!["xtask".to_string(), "benches".to_string()];
        for entry in list(&root.join("crates"))? {
            dirs.extend(entry.file_name().map(|name| format!("crates/{}", name.to_string_lossy())));
        }
        dirs.sort();
        let present = dirs.into_iter().filter(|dir| root.join(dir).join("Cargo.toml").is_file());
        let crates = present.map(|dir| Crate::read(root, dir)).collect::<Result<_>>()?;
        let readme = root.join("README.md");
        let readme = if readme.is_file() { Some(text(&readme)?) } else { None };
        Ok(Self { crates, readme })
    }
}

impl Crate {
    fn read(root: &Path, dir: String) -> Result<Self> {
        let path = root.join(&dir).join("Cargo.toml");
        let manifest = text(&path)?.parse().with_context(|| format!("{}: not a manifest", path.display()))?;
        let mut files = Vec::new();
        rust_files(&root.join(&dir), &mut files)?;
        let source = |path: PathBuf| {
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            Ok(Source::new(relative, text(&path)?))
        };
        Ok(Self { dir, manifest, sources: files.into_iter().map(source).collect::<Result<_>>()? })
    }

    /// The path of the manifest.
    pub(super) fn manifest_path(&self) -> String {
        format!("{}/Cargo.toml", self.dir)
    }

    /// The folder's name, which is the crate's name without its prefix.
    pub(super) fn name(&self) -> &str {
        self.dir.rsplit('/').next().unwrap_or(&self.dir)
    }

    /// The lines of a dependency table (`dependencies`, `dev-dependencies`, …), those of single targets included.
    pub(super) fn dependencies<'a>(&'a self, table: &'a str) -> impl Iterator<Item = (&'a str, &'a toml::Value)> {
        let targets = self.manifest.get("target").and_then(toml::Value::as_table);
        let targets = targets.into_iter().flat_map(|targets| targets.values()).filter_map(toml::Value::as_table);
        let tables = std::iter::once(&self.manifest).chain(targets);
        let tables = tables.filter_map(move |owner| owner.get(table)?.as_table());
        tables.flat_map(|table| table.iter().map(|(name, value)| (name.as_str(), value)))
    }

    /// A crate of made-up content.
    #[cfg(test)]
    pub(super) fn new(dir: &str, manifest: &str, sources: &[(&str, &str)]) -> Self {
        let source = |(path, text): &(&str, &str)| Source::new(format!("{dir}/{path}"), text.to_string());
        Self { dir: dir.into(), manifest: manifest.parse().unwrap(), sources: sources.iter().map(source).collect() }
    }
}

impl Source {
    pub(super) fn new(path: String, text: String) -> Self {
        let code = blank_comments_and_strings(&text);
        Self { path, text, code }
    }

    /// The lines of code from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(i, line)| (i + 1, line))
    }

    /// The code without its test modules.
    pub(super) fn code_without_tests(&self) -> String {
        let mut code = self.code.clone();
        let mark = "#[cfg(test)]";
        while let Some(start) = code.find(mark) {
            let end = end_of_item(&code, start + mark.len());
            let blank = blanked(&code[start..end]);
            code.replace_range(start..end, &blank);
        }
        code
    }

    /// Whether the whole file serves tests.
    pub(super) fn is_test(&self) -> bool {
        ["/tests/", "/tests.rs", "/testing.rs"].iter().any(|part| self.path.contains(part))
    }
}

/// Whether `line` holds `word` with no letter, digit or underscore on either side.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let opens = !line[..at].ends_with(inside);
        let closes = !word.ends_with(inside) || !line[at + word.len()..].starts_with(inside);
        opens && closes
    })
}

/// Where the item that begins at `start` ends: behind its `;` or its closing brace.
fn end_of_item(code: &str, start: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Spaces in place of everything but line ends.
fn blanked(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect()
}

/// The text with comments and the insides of string and character literals as spaces.
fn blank_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_name = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (kept, hidden) = match first {
            '/' if rest.starts_with("//") => (0, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (0, block_comment(rest)),
            'r' if !after_name || code.ends_with(['b', 'c']) => match raw_string(&rest[1..]) {
                Some((quote, length)) => (1 + quote, length),
                None => (1, 0),
            },
            '"' => (1, quoted(&rest[1..], '"')),
            '\'' => (1, character(&rest[1..])),
            other => (other.len_utf8(), 0),
        };
        code.push_str(&rest[..kept]);
        code.push_str(&blanked(&rest[kept..kept + hidden]));
        rest = &rest[kept + hidden..];
    }
    code
}

/// Length of the block comment at the start of `rest`; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// For the text behind an `r`: length of the opening `##"` and of all that follows up to and with the end.
fn raw_string(rest: &str) -> Option<(usize, usize)> {
    let hashes = rest.bytes().take_while(|&byte| byte == b'#').count();
    let inside = rest[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some((hashes + 1, length))
}

/// Length of the rest of a literal up to and with the closing `quote`.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Length of the rest of a character literal; 0 behind the quote of a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => quoted(rest, '\''),
        _ => 0,
    }
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))
}

/// What is inside a folder, sorted; nothing where there is none.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(dir).with_context(|| format!("{}: cannot list", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for path in list(dir)? {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new("x.rs".into(), text.into()).code
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        for (text, visible) in [
            ("a // unsafe", "a"),
            ("a /* x /* y */ unsafe */ b", "a b"),
            ("f(\"unsafe \\\" unsafe\") g", "f(\" ) g"),
            ("r#\"unsafe \" unsafe\"# g", "r#\" g"),
            ("br\"\\\" g", "br\" g"),
            ("'{' '\\'' g", "' ' g"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("number\"x\" g", "number\" g"),
            ("//! ünïcode\ng", "\ng"),
        ] {
            let words = |text: &str| text.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ");
            assert_eq!(words(&code(text)), visible, "{text}");
        }
        assert_eq!(code("a\n/* b\nc */\nd").lines().count(), 4);
    }

    #[test]
    fn test_modules_are_cut_out_and_lines_stay() {
        let source = Source::new(
            "x.rs".into(),
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { {} }\n}\nfn c() {}\n".into(),
        );
        let code = source.code_without_tests();
        assert!(code.contains("fn a") && code.contains("fn c") && !code.contains("fn b"));
        assert_eq!(code.lines().count(), 6);
        let source = Source::new("x.rs".into(), "#[cfg(test)]\nmod testing;\nfn c() {}\n".into());
        assert!(source.code_without_tests().contains("fn c"));
    }

    #[test]
    fn words_have_edges() {
        assert!(has_word("x = unsafe { }", "unsafe"));
        assert!(!has_word("allow(unsafe_code)", "unsafe"));
        assert!(has_word("println!(\"\")", "println!"));
        assert!(!has_word("eprintln!()", "println!"));
    }
}
