//! What the manifests must say.

use super::Violation;
use super::workspace::Crate;

const TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// The crates of this workspace that a crate may depend on; `None`: all of them.
fn may_depend_on(krate: &str) -> Option<&'static [&'static str]> {
    match krate {
        "xtask" | "benches" => None,
        "core" => Some(&[]),
        "tensor-backend" | "learned-index" => Some(&["core"]),
        "kvcache" => Some(&["core", "tensor-backend", "learned-index"]),
        // A crate of methods meets the others in core's traits, so that a user can take it alone.
        _ => Some(&["core", "tensor-backend"]),
    }
}

/// Crates know only what lies below them: core, tensor-backend, then the model and every crate of methods.
pub(super) fn arrows_point_one_way(krate: &Crate) -> Vec<Violation> {
    let Some(allowed) = may_depend_on(krate.name()) else { return Vec::new() };
    let own = TABLES
        .iter()
        .flat_map(|table| krate.dependencies(table))
        .filter_map(|(name, _)| name.strip_prefix("kindling-"));
    own.filter(|name| !allowed.contains(name))
        .map(|name| {
            let allowed = if allowed.is_empty() { "no crate of this workspace".into() } else { allowed.join(", ") };
            Violation::of(&krate.manifest_path(), format!("depends on kindling-{name}; allowed: {allowed}"))
        })
        .collect()
}

/// Core is what everyone must take: exactly four small dependencies, and burn behind a feature.
pub(super) fn core_stays_small(krate: &Crate) -> Vec<Violation> {
    if krate.dir != "crates/core" {
        return Vec::new();
    }
    let path = krate.manifest_path();
    let expected = ["burn", "rand_chacha", "serde", "thiserror", "tracing"];
    let mut found: Vec<&str> = krate.dependencies("dependencies").map(|(name, _)| name).collect();
    found.sort_unstable();
    let mut violations = Vec::new();
    if found != expected {
        violations.push(Violation::of(
            &path,
            format!("core depends on {}; it may on exactly {}", found.join(", "), expected.join(", ")),
        ));
    }
    let optional = |value: &toml::Value| value.get("optional").and_then(toml::Value::as_bool) == Some(true);
    if krate.dependencies("dependencies").any(|(name, value)| name == "burn" && !optional(value)) {
        violations.push(Violation::of(&path, "core must take burn with `optional = true`"));
    }
    violations
}

/// One set of lints holds everywhere.
pub(super) fn lints_are_inherited(krate: &Crate) -> Option<Violation> {
    let inherited = krate.manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
    (inherited != Some(true)).then(|| Violation::of(&krate.manifest_path(), "add `[lints] workspace = true`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn method_crates_stand_alone() {
        let breaks = |dir: &str, manifest: &str| arrows_point_one_way(&Crate::new(dir, manifest, &[])).len();
        assert_eq!(
            breaks("crates/prune", "[dependencies]\nkindling-core = '1'\nkindling-tensor-backend = '1'\nburn = '1'"),
            0
        );
        assert_eq!(breaks("crates/prune", "[dependencies]\nkindling-model = '1'"), 1);
        assert_eq!(breaks("crates/quant", "[dev-dependencies]\nkindling-prune = '1'"), 1);
        assert_eq!(breaks("crates/quant", "[target.'cfg(unix)'.dependencies]\nkindling-prune = '1'"), 1);
        assert_eq!(breaks("crates/model", "[dependencies]\nkindling-quant = '1'"), 1);
        assert_eq!(breaks("crates/core", "[dependencies]\nkindling-tensor-backend = '1'"), 1);
        assert_eq!(breaks("xtask", "[dependencies]\nkindling-model = '1'\nkindling-quant = '1'"), 0);
    }

    #[test]
    fn core_takes_four_dependencies_and_burn_as_an_option() {
        let breaks = |manifest: &str| core_stays_small(&Crate::new("crates/core", manifest, &[])).len();
        let four = "[dependencies]\nserde = '1'\nthiserror = '1'\nrand_chacha = '1'\ntracing = '1'\n";
        assert_eq!(breaks(&format!("{four}burn = {{ version = '1', optional = true }}")), 0);
        assert_eq!(breaks(&format!("{four}burn = '1'")), 1);
        assert_eq!(breaks(&format!("{four}burn = {{ version = '1', optional = true }}\nrayon = '1'")), 1);
        assert_eq!(breaks(four), 1);
        assert!(core_stays_small(&Crate::new("crates/model", "[dependencies]\nrayon = '1'", &[])).is_empty());
    }

    #[test]
    fn lints_must_be_inherited() {
        assert!(lints_are_inherited(&Crate::new("xtask", "[lints]\nworkspace = true", &[])).is_none());
        assert!(lints_are_inherited(&Crate::new("xtask", "[lints]\nworkspace = false", &[])).is_some());
        assert!(lints_are_inherited(&Crate::new("xtask", "", &[])).is_some());
    }
}
