//! The context of a run: randomness, progress, cancellation. There are no globals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::{Error, Result};

/// Receives progress. Every call may come from any thread.
pub trait Progress: Send + Sync {
    /// A unit of work named `what` has begun; `total` steps are expected (0: unknown).
    fn begin(&self, what: &str, total: u64) {
        let _ = (what, total);
    }
    /// `steps` more steps of the current unit are done.
    fn advance(&self, steps: u64) {
        let _ = steps;
    }
    /// `steps` of the current unit were done in an earlier run: they count, and tell nothing of the pace.
    fn skip(&self, steps: u64) {
        self.advance(steps);
    }
    /// How the current unit fares, in a few words beside its count: a rate, a loss.
    fn status(&self, message: &str) {
        let _ = message;
    }
    /// The current unit is done.
    fn end(&self) {}
    /// How the current unit fares, in a line of its own.
    fn note(&self, message: &str) {
        tracing::info!("{message}");
    }
    /// Something the user should know, although the run goes on.
    fn warn(&self, message: &str) {
        tracing::warn!("{message}");
    }
}

/// Reports nothing.
struct Silent;
impl Progress for Silent {}

/// Seed, cancellation flag and progress sink of one run.
///
/// ```
/// use kindling_core::Cx;
/// use rand_chacha::rand_core::Rng;
///
/// let cx = Cx::new(42);
/// // A stream is a function of seed and name only: order of use and threads do not matter.
/// assert_eq!(cx.rng("layer 3").next_u64(), cx.rng("layer 3").next_u64());
/// assert_ne!(cx.rng("layer 3").next_u64(), cx.rng("layer 4").next_u64());
/// ```
#[derive(Clone)]
pub struct Cx {
    seed: u64,
    cancel: Arc<AtomicBool>,
    progress: Arc<dyn Progress>,
}

impl Cx {
    /// A context that reports nothing and is never cancelled from outside.
    pub fn new(seed: u64) -> Self {
        Self { seed, cancel: Arc::default(), progress: Arc::new(Silent) }
    }

    /// The same context with another progress sink.
    pub fn with_progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// The same context that stops when `flag` becomes true.
    pub fn with_cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = flag;
        self
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The progress sink.
    pub fn progress(&self) -> &dyn Progress {
        &*self.progress
    }

    /// A random stream of its own for `name`, the same in every run with this seed.
    pub fn rng(&self, name: &str) -> ChaCha8Rng {
        // FNV-1a: a stable hash of the name, so that streams do not depend on the standard library's hasher.
        let stream = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        rng
    }

    /// [`Error::Cancelled`] once the user has asked to stop. Call it between units of work.
    pub fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}
