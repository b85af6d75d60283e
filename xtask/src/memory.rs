//! How much memory a piece of work takes at its worst moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Memory that was freed stays with the process for its next tensors. A pass over a prompt frees and asks for the same dozens of
/// megabytes in every block; the system would clear them each time, a tenth of the time of a whole pass.
pub(crate) fn keep_freed() {
    #[cfg(feature = "mimalloc")]
    {
        /// `mi_option_purge_delay` of mimalloc 3; −1: never.
        const PURGE_DELAY: i32 = 15;
        #[allow(unsafe_code, reason = "a function of C")]
        // SAFETY: it stores a number, and no other thread runs yet.
        unsafe {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        }
    }
}

const EVERY: Duration = Duration::from_millis(20);

/// Watches the memory of this process until it is stopped. Pages of mapped files do not count: the system takes them
/// back whenever it needs them.
pub(crate) struct PeakMemory {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl PeakMemory {
    /// Begins to watch.
    pub(crate) fn watch() -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (flag, highest) = (Arc::clone(&stop), Arc::clone(&peak));
        let watcher = move || {
            while let Some(bytes) = anonymous_memory() {
                highest.fetch_max(bytes, Ordering::Relaxed);
                if flag.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::park_timeout(EVERY);
            }
        };
        // Without the watcher the figure is missing, which is no reason to refuse the work.
        let thread = std::thread::Builder::new().name("memory".into()).spawn(watcher).ok();
        Self { stop, peak, thread }
    }

    /// The most bytes that were in use; `None` where the system does not tell.
    pub(crate) fn stop(mut self) -> Option<u64> {
        self.join();
        Some(self.peak.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic, and a missing figure would be all that is lost.
            let _ = thread.join();
        }
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.join();
    }
}

/// Bytes of memory that belong to no file. Linux alone tells.
fn anonymous_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn sees_memory_that_is_touched() {
        let watch = PeakMemory::watch();
        let block = vec![1u8; 64 << 20];
        std::thread::sleep(5 * EVERY);
        assert_eq!(block[block.len() / 2], 1);
        assert!(watch.stop().unwrap() >= 64 << 20);
    }
}
