//! Ctrl-C: the first one asks the run to stop, the second ends it.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::error::INTERRUPTED;

/// A flag that the first Ctrl-C sets. The second Ctrl-C leaves at once with status 130. Call it once in a process.
pub(crate) fn cancel_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&flag);
    ctrlc::set_handler(move || match interrupt(&shared) {
        Reaction::Ask if std::io::stderr().is_terminal() => {
            eprintln!("\nstopping … (Ctrl-C again: leave at once)");
        }
        Reaction::Ask => {}
        Reaction::Leave => std::process::exit(INTERRUPTED.into()),
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}

#[derive(Debug, PartialEq)]
enum Reaction {
    Ask,
    Leave,
}

fn interrupt(flag: &AtomicBool) -> Reaction {
    if flag.swap(true, Ordering::Relaxed) { Reaction::Leave } else { Reaction::Ask }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_asks_second_leaves() {
        let flag = AtomicBool::new(false);
        assert_eq!(interrupt(&flag), Reaction::Ask);
        assert!(flag.load(Ordering::Relaxed));
        assert_eq!(interrupt(&flag), Reaction::Leave);
    }
}
