//! The same code compiled for several processors, chosen at run time.

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicU8, Ordering};

/// What the processor offers: 0 not asked yet, 1 the baseline, 2 AVX2, 3 AVX-512.
#[cfg(target_arch = "x86_64")]
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// Runs `work`, compiled for the best instructions that this processor has. Results do not depend on the choice: there
/// is no fused arithmetic and nothing is reordered.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn run<R>(work: impl FnOnce() -> R) -> R {
    match LEVEL.load(Ordering::Relaxed) {
        // SAFETY (both): `detect` found these features.
        3 => unsafe { with_avx512(work) },
        2 => unsafe { with_avx2(work) },
        1 => work(),
        _ => {
            detect();
            run_baseline(work)
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn run<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[cold]
fn run_baseline<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[cold]
fn detect() {
    let avx2 =
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("popcnt");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    LEVEL.store(
        if avx2 && avx512 {
            3
        } else if avx2 {
            2
        } else {
            1
        },
        Ordering::Relaxed,
    );
}

/// # Safety
/// The processor has these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// # Safety
/// The processor has these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}
