//! Progress on standard error: a bar with the time left on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use kindling_core::Progress;

/// A log gets at most one line of progress per unit of work in this time.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The progress that suits where standard error goes.
pub(crate) fn for_stderr() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Arc::new(Bars::default())
    } else {
        Arc::new(Lines::new(std::io::stderr(), LINE_EVERY))
    }
}

/// One bar per unit of work, an inner unit below its outer one.
#[derive(Default)]
struct Bars {
    screen: MultiProgress,
    units: Mutex<Vec<ProgressBar>>,
}

impl Progress for Bars {
    fn begin(&self, what: &str, total: u64) {
        let bar = if total == 0 { ProgressBar::no_length() } else { ProgressBar::new(total) };
        let template = if total == 0 {
            "{spinner} {prefix} {pos} [{elapsed}] {msg}"
        } else {
            "{prefix:<28!} {wide_bar:.green} {pos}/{len} {elapsed} (left: {eta}) {msg}"
        };
        let style = ProgressStyle::with_template(template).expect("the templates above are valid");
        let bar = self.screen.add(bar.with_style(style).with_prefix(what.to_string()));
        bar.enable_steady_tick(Duration::from_millis(200));
        lock(&self.units).push(bar);
    }

    fn advance(&self, steps: u64) {
        if let Some(bar) = lock(&self.units).last() {
            bar.inc(steps);
        }
    }

    fn skip(&self, steps: u64) {
        if let Some(bar) = lock(&self.units).last() {
            bar.inc(steps);
            bar.reset_eta();
        }
    }

    fn status(&self, message: &str) {
        if let Some(bar) = lock(&self.units).last() {
            bar.set_message(message.to_string());
        }
    }

    fn end(&self) {
        if let Some(bar) = lock(&self.units).pop() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, message: &str) {
        self.screen.suspend(|| eprintln!("{message}"));
    }

    fn warn(&self, message: &str) {
        self.screen.suspend(|| eprintln!("warning: {message}"));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        lock(&self.units).drain(..).for_each(|bar| bar.finish_and_clear());
    }
}

/// Plain lines. A unit that ends before its first line was due is not mentioned at all, unless it is an
/// outermost one.
struct Lines<W> {
    out: Mutex<W>,
    every: Duration,
    units: Mutex<Vec<Unit>>,
}

struct Unit {
    what: String,
    status: String,
    done: u64,
    /// Of these, by an earlier run.
    skipped: u64,
    total: u64,
    begun: Instant,
    printed: Option<Instant>,
}

impl Unit {
    fn count(&self) -> String {
        if self.total == 0 { self.done.to_string() } else { format!("{}/{}", self.done, self.total) }
    }

    fn left(&self) -> String {
        let own = self.done.saturating_sub(self.skipped);
        if own == 0 || self.total < self.done {
            return String::new();
        }
        let left = self.begun.elapsed().mul_f64((self.total - self.done) as f64 / own as f64);
        format!(", about {} left", HumanDuration(left))
    }
}

impl<W: Write> Lines<W> {
    fn new(out: W, every: Duration) -> Self {
        Self { out: Mutex::new(out), every, units: Mutex::default() }
    }

    fn print(&self, line: std::fmt::Arguments<'_>) {
        // Progress that cannot be shown is no reason to stop the work.
        let _ = writeln!(lock(&self.out), "{line}");
    }
}

impl<W: Write + Send> Progress for Lines<W> {
    fn begin(&self, what: &str, total: u64) {
        let mut units = lock(&self.units);
        let outermost = units.is_empty();
        let begun = Instant::now();
        if outermost {
            self.print(format_args!("{what} …"));
        }
        units.push(Unit {
            what: what.into(),
            status: String::new(),
            done: 0,
            skipped: 0,
            total,
            begun,
            printed: outermost.then_some(begun),
        });
    }

    fn advance(&self, steps: u64) {
        let mut units = lock(&self.units);
        let Some(unit) = units.last_mut() else { return };
        unit.done += steps;
        if unit.printed.unwrap_or(unit.begun).elapsed() >= self.every {
            let status = if unit.status.is_empty() { String::new() } else { format!(", {}", unit.status) };
            self.print(format_args!("{}: {}{status}{}", unit.what, unit.count(), unit.left()));
            unit.printed = Some(Instant::now());
        }
    }

    fn skip(&self, steps: u64) {
        if let Some(unit) = lock(&self.units).last_mut() {
            unit.done += steps;
            unit.skipped += steps;
        }
    }

    fn status(&self, message: &str) {
        if let Some(unit) = lock(&self.units).last_mut() {
            unit.status = message.into();
        }
    }

    fn end(&self) {
        let Some(unit) = lock(&self.units).pop() else { return };
        if unit.printed.is_some() {
            self.print(format_args!("{}: done in {:.1} s", unit.what, unit.begun.elapsed().as_secs_f64()));
        }
    }

    fn note(&self, message: &str) {
        self.print(format_args!("{message}"));
    }

    fn warn(&self, message: &str) {
        self.print(format_args!("warning: {message}"));
    }
}

/// A thread that panicked while reporting leaves counters that are still good enough to show.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(every: Duration, run: impl FnOnce(&dyn Progress)) -> Vec<String> {
        let progress = Lines::new(Vec::new(), every);
        run(&progress);
        let text = String::from_utf8(progress.out.into_inner().unwrap()).unwrap();
        text.lines().map(Into::into).collect()
    }

    fn nested(progress: &dyn Progress) {
        progress.begin("compress", 2);
        progress.begin("block 0", 0);
        progress.advance(1);
        progress.end();
        progress.advance(1);
        progress.warn("a ragged group");
        progress.advance(1);
        progress.end();
    }

    #[test]
    fn quick_inner_units_are_not_mentioned() {
        let seen = lines(Duration::from_secs(3600), nested);
        assert_eq!(seen[..2], ["compress …", "warning: a ragged group"]);
        assert!(seen[2].starts_with("compress: done in "), "{seen:?}");
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn lines_count_and_estimate() {
        let seen = lines(Duration::ZERO, nested);
        assert_eq!(seen[1], "block 0: 1");
        assert!(seen[3].starts_with("compress: 1/2, about "), "{seen:?}");
        assert!(seen[5].starts_with("compress: 2/2"), "{seen:?}");
    }

    #[test]
    fn steps_of_an_earlier_run_tell_nothing_of_the_pace() {
        let seen = lines(Duration::ZERO, |progress| {
            progress.begin("training", 1_000_001);
            progress.skip(1_000_000);
            std::thread::sleep(Duration::from_millis(20));
            progress.status("loss 2");
            progress.advance(1);
        });
        assert_eq!(seen[1], "training: 1000001/1000001, loss 2, about 0 seconds left");
        let mut unit = Unit {
            what: String::new(),
            status: String::new(),
            done: 900,
            skipped: 899,
            total: 1000,
            begun: Instant::now(),
            printed: None,
        };
        unit.begun -= Duration::from_secs(6);
        assert_eq!(unit.left(), ", about 10 minutes left");
    }

    #[test]
    fn too_many_ends_do_no_harm() {
        assert!(lines(Duration::ZERO, |p| p.end()).is_empty());
        let bars = Bars::default();
        bars.begin("work", 3);
        bars.advance(1);
        bars.end();
        bars.end();
        assert!(lock(&bars.units).is_empty());
    }
}
