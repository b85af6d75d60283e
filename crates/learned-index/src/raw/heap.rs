//! Memory in few large regions, so that the processor needs few translations to reach ten million keys.
//!
//! Regions from a megabyte on are mapped and advised to use huge pages. Inside, blocks are managed by a two-level
//! segregated fit, which joins free neighbours: a tree that grows block by block would otherwise leave as much behind
//! as it holds. A large block is a region of its own, and goes back to the system. Under Miri every block is an allocation of its own, so that Miri sees each border.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;

#[cfg(not(miri))]
pub(crate) use regions::Heap;
#[cfg(miri)]
pub(crate) use single::Heap;

/// From here on a block is a region of its own.
pub(crate) const LARGE: usize = 4 << 20;

/// The layout of `n` items.
fn layout<T>(n: usize) -> Layout {
    let layout = Layout::array::<T>(n.max(1)).unwrap_or_else(|_| panic!("{n} items are more than memory can hold"));
    Layout::from_size_align(layout.size().max(1), layout.align()).unwrap_or(layout)
}

impl Heap {
    /// Memory of a layout that is not empty, uninitialised.
    pub(crate) fn take(&mut self, layout: Layout) -> *mut u8 {
        self.allocate(layout).unwrap_or_else(|| handle_alloc_error(layout)).as_ptr()
    }

    /// Takes back what [`Heap::take`] gave for the same layout.
    ///
    /// # Safety
    /// `block` came from there, was not taken back before and is not used afterwards.
    pub(crate) unsafe fn give_back(&mut self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller's promise.
            unsafe { self.free(block, layout) }
        }
    }

    /// Room for `n` items, uninitialised.
    pub(crate) fn array<T>(&mut self, n: usize) -> *mut T {
        self.take(layout::<T>(n)).cast()
    }

    /// Takes back what [`Heap::array`] gave for the same `n`.
    ///
    /// # Safety
    /// `items` came from `self.array::<T>(n)`, was not taken back before and is not used afterwards.
    pub(crate) unsafe fn free_array<T>(&mut self, items: *mut T, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.give_back(items.cast(), layout::<T>(n)) }
    }
}

#[cfg(not(miri))]
mod regions {
    use std::alloc::{Layout, alloc, dealloc};
    use std::ptr::NonNull;

    use memmap2::MmapMut;
    use rlsf::Tlsf;

    use super::LARGE;

    /// From here on a region is mapped.
    const MAPPED: usize = 1 << 20;
    /// What a page holds at least, and where maps begin.
    const PAGE: usize = 4096;
    /// What a huge page holds on common systems.
    const HUGE: usize = 2 << 20;
    /// Room for the borders of a block and of a region.
    const BORDER: usize = 256;

    enum Region {
        Allocated(NonNull<u8>, Layout),
        Mapped(#[expect(dead_code, reason = "kept until the heap goes")] MmapMut),
    }

    /// Gives out blocks of memory and takes them back.
    #[derive(Default)]
    pub(crate) struct Heap {
        blocks: Tlsf<'static, u32, u16, 28, 16>,
        regions: Vec<Region>,
        large: Vec<MmapMut>,
        reserved: usize,
    }

    /// Fresh memory, on huge pages where the system has them.
    fn map(bytes: usize) -> Option<MmapMut> {
        let bytes = bytes.next_multiple_of(if bytes >= 4 * HUGE { HUGE } else { PAGE });
        let map = MmapMut::map_anon(bytes).ok()?;
        #[cfg(target_os = "linux")]
        // Only a hint: without huge pages everything works, slower.
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(map)
    }

    impl Heap {
        /// Prepares for blocks of `bytes` in all.
        pub(crate) fn reserve(&mut self, bytes: usize) {
            // A failure is reported when the blocks are asked for.
            let _ = self.grow(bytes);
        }

        /// Bytes of all regions.
        pub(crate) fn reserved(&self) -> usize {
            self.reserved
        }

        pub(super) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
            if layout.size() >= LARGE && layout.align() <= PAGE {
                let mut map = map(layout.size())?;
                let block = NonNull::from(&mut map[..]);
                self.reserved += block.len();
                self.large.push(map);
                return Some(block.cast());
            }
            self.blocks.allocate(layout).or_else(|| {
                // An eighth more each time: the number of regions stays logarithmic, what is unused small. Blocks are
                // looked for in classes of sizes, a sixteenth apart.
                let bytes = layout.size() + layout.size() / 8 + layout.align() + BORDER;
                self.grow(bytes.max((self.reserved - self.reserved_large()) / 8))?;
                self.blocks.allocate(layout)
            })
        }

        /// # Safety
        /// `block` was given out for `layout` and is not used any more.
        pub(super) unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
            if layout.size() >= LARGE && layout.align() <= PAGE {
                let its = |map: &MmapMut| map.as_ptr() == block.as_ptr();
                if let Some(i) = self.large.iter().position(its) {
                    self.reserved -= self.large.swap_remove(i).len();
                }
                return;
            }
            // SAFETY: the caller's promise.
            unsafe { self.blocks.deallocate(block, layout.align()) }
        }

        fn reserved_large(&self) -> usize {
            self.large.iter().map(|map| map.len()).sum()
        }

        fn grow(&mut self, bytes: usize) -> Option<()> {
            let bytes = bytes.checked_add(BORDER)?;
            let (memory, region) = if bytes >= MAPPED {
                let mut map = map(bytes)?;
                (NonNull::from(&mut map[..]), Region::Mapped(map))
            } else {
                let layout = Layout::from_size_align(bytes.next_power_of_two().max(1024), 64).ok()?;
                // SAFETY: the size is not zero.
                let memory = NonNull::new(unsafe { alloc(layout) })?;
                (NonNull::slice_from_raw_parts(memory, layout.size()), Region::Allocated(memory, layout))
            };
            self.reserved += memory.len();
            self.regions.push(region);
            // SAFETY: the region is ours alone until the heap is dropped, and nobody else writes to it.
            unsafe { self.blocks.insert_free_block_ptr(memory) }.map(drop)
        }
    }

    impl Drop for Heap {
        fn drop(&mut self) {
            for region in self.regions.drain(..) {
                if let Region::Allocated(memory, layout) = region {
                    // SAFETY: allocated in `grow` with this layout, freed once.
                    unsafe { dealloc(memory.as_ptr(), layout) }
                }
            }
        }
    }
}

#[cfg(miri)]
mod single {
    use std::alloc::{Layout, alloc, dealloc};
    use std::collections::HashMap;
    use std::ptr::NonNull;

    /// Gives out blocks of memory and takes them back.
    #[derive(Default)]
    pub(crate) struct Heap {
        blocks: HashMap<NonNull<u8>, Layout>,
        reserved: usize,
    }

    impl Heap {
        pub(crate) fn reserve(&mut self, _: usize) {}

        pub(crate) fn reserved(&self) -> usize {
            self.reserved
        }

        pub(super) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
            // SAFETY: layouts of this module are never empty.
            let block = NonNull::new(unsafe { alloc(layout) })?;
            self.reserved += layout.size();
            self.blocks.insert(block, layout);
            Some(block)
        }

        /// # Safety
        /// `block` was given out for `layout` and is not used any more.
        pub(super) unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
            assert_eq!(self.blocks.remove(&block), Some(layout), "freed as it was given out, and once");
            self.reserved -= layout.size();
            // SAFETY: allocated above with this layout.
            unsafe { dealloc(block.as_ptr(), layout) }
        }
    }

    impl Drop for Heap {
        fn drop(&mut self) {
            for (block, layout) in self.blocks.drain() {
                // SAFETY: allocated above with this layout.
                unsafe { dealloc(block.as_ptr(), layout) }
            }
        }
    }
}
