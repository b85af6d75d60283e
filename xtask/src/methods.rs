//! Every method of every crate, in one place: what recipes can name and `list` prints.

use kindling_core::{LayerShape, MethodEntry};

/// The methods of one crate.
pub(crate) struct Shelf {
    /// The crate, as a dependant would write it.
    pub(crate) krate: &'static str,
    /// Its list.
    pub(crate) methods: &'static [MethodEntry],
}

/// The crates that have methods.
pub(crate) const SHELVES: [Shelf; 2] = [
    Shelf { krate: "kindling-prune", methods: kindling_prune::METHODS },
    Shelf { krate: "kindling-quant", methods: kindling_quant::METHODS },
];

/// All methods.
pub(crate) fn all() -> Vec<&'static MethodEntry> {
    SHELVES.iter().flat_map(|shelf| shelf.methods).collect()
}

/// What a stage without `targets` works on: everything, except that DaSS speaks about MLPs only.
pub(crate) fn is_default_target(method: &MethodEntry, shape: &LayerShape) -> bool {
    method.name != "dass" || kindling_prune::dass::prunes(shape.role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_entries_complete() {
        let mut names: Vec<&str> = all().iter().map(|method| method.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "two methods share a name: a recipe could not tell them apart");
        for method in all() {
            assert!(!method.summary.is_empty() && !method.paper.is_empty(), "{}", method.name);
        }
    }
}
