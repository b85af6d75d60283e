//! Memory for weights: large buffers lie in large pages where the system has them.
//!
//! A product with one row reads every weight once. In pages of 4 KiB the processor looks up an address for every 64 lines of
//! its cache, and prefetches no further than the page.

#![allow(unsafe_code, reason = "advice to the system takes a pointer")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// Bytes of a large page; from so many on a buffer gets pages of its own.
const LARGE: usize = 2 << 20;

/// Whole large pages, where that adds less than a quarter.
fn rounded(bytes: usize) -> usize {
    let whole = bytes.next_multiple_of(LARGE);
    if 4 * (whole - bytes) < bytes { whole } else { bytes }
}

/// Zeros for a tensor whose memory is written later: none of it is touched here, so that it can come in large pages.
pub(crate) fn untouched_zeros(len: usize) -> Vec<f32> {
    let zeros = vec![0.0_f32; len];
    #[cfg(all(target_os = "linux", not(miri)))]
    if size_of_val(&zeros[..]) >= LARGE {
        let start = zeros.as_ptr().addr();
        let (first, end) = (start.next_multiple_of(LARGE), (start + size_of_val(&zeros[..])) & !(LARGE - 1));
        if first < end {
            let from = zeros.as_ptr().cast::<u8>().wrapping_add(first - start).cast_mut();
            // SAFETY: whole pages inside the buffer; the advice changes no byte of them, and where it is refused nothing happens.
            unsafe { libc::madvise(from.cast(), end - first, libc::MADV_HUGEPAGE) };
        }
    }
    zeros
}

/// A buffer of plain values.
#[derive(Debug)]
pub(super) enum Pages<T> {
    Heap(Vec<T>),
    Mapped { map: MmapMut, len: usize, values: PhantomData<T> },
}

impl<T: Pod> Pages<T> {
    /// So many zeros.
    pub(super) fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        if bytes >= LARGE
            && !cfg!(miri)
            && let Ok(map) = MmapMut::map_anon(rounded(bytes))
        {
            // A wish: without such pages the buffer works as well.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Pages::Mapped { map, len, values: PhantomData };
        }
        Pages::Heap(vec![T::zeroed(); len])
    }

    /// The values of all parts, one after the other.
    pub(super) fn joined(parts: &[&[T]]) -> Self {
        let mut all = Self::zeroed(parts.iter().map(|part| part.len()).sum());
        let mut rest = &mut all[..];
        for part in parts {
            let (head, tail) = rest.split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        }
        all
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Pages::Heap(values) => values,
            // A map begins with a page, which is aligned for every type; its last page may be longer than the values.
            Pages::Mapped { map, len, .. } => bytemuck::cast_slice(&map[..len * size_of::<T>()]),
        }
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Pages::Heap(values) => values,
            Pages::Mapped { map, len, .. } => bytemuck::cast_slice_mut(&mut map[..*len * size_of::<T>()]),
        }
    }
}

impl<T: Pod> Clone for Pages<T> {
    fn clone(&self) -> Self {
        Self::joined(&[self])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_buffers_hold_what_they_are_given() {
        // Under Miri all lie on the heap, and a step takes a microsecond.
        for len in [0, 5, if cfg!(miri) { 1000 } else { LARGE / 4 + 3 }] {
            let mut pages = Pages::<u32>::zeroed(len);
            assert!(pages.len() == len && pages.iter().all(|&value| value == 0));
            pages.iter_mut().zip(7..).for_each(|(value, i)| *value = i);
            let twice = Pages::joined(&[&pages, &pages.clone()]);
            assert!(twice.len() == 2 * len && twice[..len] == pages[..] && twice[len..] == pages[..]);
        }
    }
}
