//! One method, one file, one entry in the crate's list, one line in the README.

use kindling_core::{MethodEntry, Needs};

use super::Violation;
use super::workspace::{Crate, Source};

const BEGIN: &str = "<!-- methods:begin -->";
const END: &str = "<!-- methods:end -->";

/// How files begin what describes a method.
const ENTRIES: [&str; 4] = ["= MethodEntry {", "= LossEntry {", "= LayerEntry {", "= DrafterEntry {"];

/// Every file that defines a method is in a list `METHODS` of the crate, and every entry there has its file.
pub(super) fn list_matches_files(krate: &Crate) -> Vec<Violation> {
    let defines = |code: &str| ENTRIES.iter().any(|entry| code.contains(entry));
    let mut files: Vec<(&str, &str)> = krate
        .sources
        .iter()
        .filter(|source| source.path.contains("/src/") && !source.is_test() && defines(&source.code_without_tests()))
        .map(|source| (module(&source.path), source.path.as_str()))
        .collect();
    files.sort_unstable();

    let list = |source| Some((source, listed(&Source::code_without_tests(source))?));
    let lists: Vec<(&Source, Vec<String>)> = krate.sources.iter().filter_map(list).collect();
    if lists.is_empty() {
        let no_list =
            |(_, path): &(&str, &str)| Violation::of(path, "defines a method, but the crate has no list `METHODS`");
        return files.iter().map(no_list).collect();
    }
    let missing =
        files.iter().filter(|(module, _)| !lists.iter().any(|(_, list)| list.iter().any(|name| name == module)));
    let missing = missing.map(|(module, path)| {
        // The list in the same folder, if there are several.
        let folder = |path: &str| path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_string());
        let near = lists.iter().find(|(source, _)| folder(&source.path) == folder(path)).unwrap_or(&lists[0]);
        Violation::of(path, format!("add `{module}::ENTRY` to `METHODS` in {}", near.0.path))
    });
    let strange = lists.iter().flat_map(|(source, list)| list.iter().map(move |name| (source, name)));
    let strange = strange.filter(|(_, name)| !files.iter().any(|(module, _)| module == name)).map(|(source, name)| {
        Violation::of(&source.path, format!("`METHODS` lists `{name}`, but no file {name}.rs defines an entry"))
    });
    missing.chain(strange).collect()
}

/// The module that a file holds: `gptq` for `gptq.rs` and `gptq/mod.rs`.
fn module(path: &str) -> &str {
    let stem = path.trim_end_matches(".rs").trim_end_matches("/mod");
    stem.rsplit('/').next().unwrap_or(stem)
}

/// The modules in `const METHODS: … = &[a::ENTRY, b::ENTRY]`.
fn listed(code: &str) -> Option<Vec<String>> {
    let (_, list) = code.split_once("const METHODS:")?;
    let (_, list) = list.split_once('=')?;
    let (_, list) = list.split_once('[')?;
    let (list, _) = list.split_once(']')?;
    let paths = list.split(',').map(str::trim).filter(|path| !path.is_empty());
    Some(paths.map(|path| path.rsplit("::").nth(1).unwrap_or(path).to_string()).collect())
}

/// The table of methods in Markdown.
pub(super) fn table(entries: &[&MethodEntry]) -> String {
    let mut table =
        "| method | family | needs | what it does | source |\n| --- | --- | --- | --- | --- |\n".to_string();
    for entry in entries {
        let needs = match entry.needs {
            Needs::Nothing => "nothing",
            Needs::Norms => "norms",
            Needs::Moments => "moments",
        };
        let cells = [&format!("`{}`", entry.name), entry.family.name(), needs, entry.summary, entry.paper];
        table += &format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    table
}

/// The README with a current table between its marks; `None` if it lacks them.
pub(super) fn with_table(readme: &str, entries: &[&MethodEntry]) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}{END}{after}", table(entries)))
}

/// The README shows the methods that exist.
pub(super) fn readme_is_current(readme: Option<&str>, entries: &[&MethodEntry]) -> Option<Violation> {
    let path = "README.md";
    let Some(readme) = readme else {
        return Some(Violation::of(path, "there is none"));
    };
    let Some(current) = with_table(readme, entries) else {
        return Some(Violation::of(path, format!("put `{BEGIN}` and `{END}` where the table of methods belongs")));
    };
    let line = readme.lines().position(|line| line.contains(BEGIN)).map_or(1, |i| i + 1);
    (current != readme)
        .then(|| Violation::at(path, line, "the table of methods is out of date; run `cargo xtask tidy --fix`"))
}

#[cfg(test)]
mod tests {
    use kindling_core::{Family, Options};

    use super::*;

    const FILE: &str = "const ENTRY: MethodEntry = MethodEntry { name: \"x\" };";
    const LIST: &str = "pub const METHODS: &[MethodEntry] = &[\n    wanda::ENTRY,\n    crate::dass::ENTRY,\n];";

    fn breaks(sources: &[(&str, &str)]) -> Vec<String> {
        list_matches_files(&Crate::new("crates/prune", "", sources)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_and_list_agree() {
        assert!(breaks(&[("src/lib.rs", LIST), ("src/wanda.rs", FILE), ("src/dass/mod.rs", FILE)]).is_empty());
        assert!(
            breaks(&[("src/lib.rs", "//! No methods here."), ("src/select.rs", "fn f() -> MethodEntry {}")]).is_empty()
        );
    }

    #[test]
    fn a_file_that_is_not_listed_is_found() {
        let found =
            breaks(&[("src/lib.rs", LIST), ("src/wanda.rs", FILE), ("src/dass.rs", FILE), ("src/new.rs", FILE)]);
        assert_eq!(found, ["crates/prune/src/new.rs: add `new::ENTRY` to `METHODS` in crates/prune/src/lib.rs"]);
        assert_eq!(breaks(&[("src/lib.rs", ""), ("src/new.rs", FILE)]).len(), 1);
    }

    #[test]
    fn an_entry_without_its_file_is_found() {
        let found = breaks(&[("src/lib.rs", LIST), ("src/wanda.rs", FILE), ("src/other.rs", "//! MethodEntry")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("`dass`"), "{found:?}");
    }

    #[test]
    fn the_readme_follows_the_entries() {
        let entry = MethodEntry {
            name: "wanda",
            family: Family::Prune,
            summary: "Weight times norm, |w|·‖x‖.",
            paper: "arXiv 2306.11695",
            needs: Needs::Norms,
            build: |_: &Options| unreachable!("not built here"),
        };
        let old = format!("# Title\n{BEGIN}\n{END}\nEnd.\n");
        let violation = readme_is_current(Some(&old), &[&entry]).unwrap();
        assert_eq!(violation.line, Some(2));
        let new = with_table(&old, &[&entry]).unwrap();
        assert!(
            new.contains("| `wanda` | prune | norms | Weight times norm, \\|w\\|·‖x‖. | arXiv 2306.11695 |\n"),
            "{new}"
        );
        assert!(new.starts_with("# Title\n") && new.ends_with("\nEnd.\n"));
        assert!(readme_is_current(Some(&new), &[&entry]).is_none());
        assert!(readme_is_current(Some("# Title\n"), &[&entry]).is_some());
        assert!(readme_is_current(None, &[&entry]).is_some());
    }
}
