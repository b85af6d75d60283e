//! What the sources must and must not say.

use super::Violation;
use super::workspace::{Crate, Source, has_word};

/// Where backends, kernels and their `unsafe` live.
const HOME: &str = "crates/tensor-backend/";
/// The one module elsewhere that manages memory, and asks the processor to fetch it.
const TREE: &str = "crates/learned-index/src/raw/";
/// The two files elsewhere with an `unsafe` block: one maps a checkpoint into memory, one tells the allocator to keep its own.
const MMAP: &str = "crates/model/src/checkpoint/mmap.rs";
const ALLOCATOR: &str = "xtask/src/memory.rs";
/// Files above this many lines say why.
const LONG: usize = 800;

/// `unsafe` stands in tensor-backend, in the tree of learned-index, and once each where a file is mapped into memory and where the
/// allocator gets its options.
pub(super) fn unsafe_stays_home(source: &Source) -> Vec<Violation> {
    let allowed = match source.path.as_str() {
        path if path.starts_with(HOME) || path.starts_with(TREE) => return Vec::new(),
        MMAP | ALLOCATOR => 1,
        _ => 0,
    };
    let uses = source.lines().filter(|(_, line)| has_word(line, "unsafe"));
    uses.skip(allowed)
        .map(|(line, _)| {
            Violation::at(
                &source.path,
                line,
                "`unsafe` belongs to tensor-backend (to the tree of learned-index, and where files are mapped and the allocator is told)",
            )
        })
        .collect()
}

/// Only tensor-backend knows which backends and processors there are.
pub(super) fn backends_stay_home(source: &Source) -> Vec<Violation> {
    let names = ["Flex", "NdArray", "Device::flex", "Device::ndarray", "std::arch", "core::arch"];
    if source.path.starts_with(HOME) || source.path.starts_with(TREE) {
        return Vec::new();
    }
    let named = |(line, text)| names.iter().find(|name| has_word(text, name)).map(|name| (line, *name));
    source
        .lines()
        .filter_map(named)
        .map(|(line, name)| {
            Violation::at(&source.path, line, format!("`{name}`: only tensor-backend names a backend or a processor"))
        })
        .collect()
}

/// Only the driver prints; libraries return, or log with `tracing`. Tests and examples may print.
pub(super) fn only_the_driver_prints(source: &Source) -> Vec<Violation> {
    if source.path.starts_with("xtask/") || source.is_test() || source.path.contains("/examples/") {
        return Vec::new();
    }
    let macros = ["println!", "eprintln!", "print!", "eprint!"];
    let code = source.code_without_tests();
    let prints = code
        .lines()
        .enumerate()
        .filter_map(|(i, line)| Some((i + 1, macros.iter().find(|name| has_word(line, name))?)));
    prints
        .map(|(line, name)| {
            Violation::at(&source.path, line, format!("`{name}`: only xtask prints; return the text or use `tracing`"))
        })
        .collect()
}

/// A long file says at its top why it is long.
pub(super) fn length_has_a_reason(source: &Source) -> Option<Violation> {
    let lines = source.text.lines().count();
    let reason = source.text.lines().take(15).any(|line| line.starts_with("//! Long because"));
    (lines > LONG && !reason).then(|| {
        Violation::of(
            &source.path,
            format!("{lines} lines: split it, or say why near its top with a line `//! Long because …`"),
        )
    })
}

/// Nothing is unfinished, and no test is switched off.
pub(super) fn nothing_is_left_over(source: &Source) -> Vec<Violation> {
    // Taken apart, so that this file does not find itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let stubs = ["todo!", "unimplemented!", "#[ignore"];
    let lines = source.text.lines().zip(source.lines());
    let found = lines.filter_map(|(text, (line, code))| {
        let mark = marks.iter().find(|mark| has_word(text, mark));
        mark.or_else(|| stubs.iter().find(|stub| has_word(code, stub))).map(|name| (line, *name))
    });
    found
        .map(|(line, name)| Violation::at(&source.path, line, format!("`{name}`: finish it, or leave it out")))
        .collect()
}

/// A crate says what it is for in the first line of its root.
pub(super) fn root_is_documented(krate: &Crate) -> Option<Violation> {
    let roots = ["lib.rs", "main.rs"].map(|file| format!("{}/src/{file}", krate.dir));
    let source = krate.sources.iter().find(|source| roots.contains(&source.path));
    match source {
        None => Some(Violation::of(&krate.manifest_path(), "no src/lib.rs nor src/main.rs")),
        Some(source) if !source.text.starts_with("//!") => {
            Some(Violation::at(&source.path, 1, "begin with `//!`: what the crate is for"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path.into(), text.into())
    }

    fn lines(violations: &[Violation]) -> Vec<usize> {
        violations.iter().filter_map(|violation| violation.line).collect()
    }

    #[test]
    fn unsafe_is_found_where_it_does_not_belong() {
        let text = "// unsafe\nfn f() {\n    unsafe { g() }\n}\nunsafe fn g() {}\n";
        let found = |path| lines(&unsafe_stays_home(&source(path, text)));
        assert_eq!(found("crates/prune/src/wanda.rs"), [3, 5]);
        assert_eq!(found(MMAP), [5]);
        assert_eq!(found(ALLOCATOR), [5]);
        assert!(found("crates/tensor-backend/src/kernels.rs").is_empty());
        assert!(found("crates/learned-index/src/raw/tree.rs").is_empty());
        assert_eq!(found("crates/learned-index/src/map/mod.rs"), [3, 5]);
    }

    #[test]
    fn backends_are_named_in_one_crate() {
        let text =
            "//! Flex\nuse burn::backend::Flex;\nlet a = Flexible;\nlet d = Device::flex();\nuse std::arch::x86_64;\n";
        assert_eq!(lines(&backends_stay_home(&source("xtask/src/main.rs", text))), [2, 4, 5]);
        assert!(backends_stay_home(&source("crates/tensor-backend/src/device.rs", text)).is_empty());
    }

    #[test]
    fn libraries_do_not_print() {
        let text = "fn f() {\n    println!();\n    let s = \"print!\";\n    eprint!();\n}\n#[cfg(test)]\nmod tests {\n    fn g() { println!() }\n}\n";
        let found = |path| lines(&only_the_driver_prints(&source(path, text)));
        assert_eq!(found("crates/model/src/lib.rs"), [2, 4]);
        for free in [
            "xtask/src/main.rs",
            "crates/model/tests/it/main.rs",
            "crates/model/src/load/tests.rs",
            "crates/model/examples/a.rs",
        ] {
            assert!(found(free).is_empty(), "{free}");
        }
    }

    #[test]
    fn long_files_say_why() {
        let long = "x\n".repeat(LONG + 1);
        assert!(length_has_a_reason(&source("a.rs", &long)).is_some());
        assert!(length_has_a_reason(&source("a.rs", &long[2..])).is_none());
        assert!(
            length_has_a_reason(&source("a.rs", &format!("//! Docs.\n//! Long because of tables.\n{long}"))).is_none()
        );
        assert!(length_has_a_reason(&source("a.rs", &format!("{long}//! Long because of tables.\n"))).is_some());
    }

    #[test]
    fn leftovers_are_found() {
        let text = format!(
            "// {}: later\nfn f() {{ todo!() }}\n// {}\n{}]\nfn g() {{ \"todo!\"; unimplemented!() }}\nconst {}S: u8 = 0;\n",
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("#[ig", "nore"),
            concat!("TO", "DO"),
        );
        assert_eq!(lines(&nothing_is_left_over(&source("a.rs", &text))), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn roots_begin_with_their_purpose() {
        let krate = |file, text| Crate::new("crates/x", "", &[(file, text), ("src/other.rs", "fn f() {}")]);
        assert!(root_is_documented(&krate("src/lib.rs", "//! Docs.\n")).is_none());
        assert!(root_is_documented(&krate("src/main.rs", "//! Docs.\n")).is_none());
        assert!(root_is_documented(&krate("src/lib.rs", "use x;\n")).is_some());
        assert!(root_is_documented(&krate("src/more.rs", "//! Docs.\n")).is_some());
    }
}
