//! Look-ups of many keys: their memory accesses overlap.

use std::mem;

use super::bucket::Buckets;
use super::fan::Entry;
use super::node::{Kind, Node};
use super::prefetch::prefetch_ahead;
use super::simd;
use super::tree::{Leaf, Project, Tree};

/// Look-ups that are under way at the same time in a batch.
pub(crate) const GROUP: usize = 64;

impl<K: Copy + Ord, V, P: Project<K>> Tree<K, V, P> {
    /// Calls `found` with the pair of every key, in order. The memory accesses of [`GROUP`] keys overlap.
    /// `coordinates` are those of `keys`.
    pub(crate) fn get_each<'a>(
        &'a self,
        keys: &[K],
        coordinates: impl Fn(usize) -> P::C,
        mut found: impl FnMut(Option<&'a (K, V)>),
    ) {
        simd::run(
            #[inline(always)]
            || self.get_groups(keys, &coordinates, &mut found),
        );
    }

    #[inline(always)]
    fn get_groups<'a>(
        &'a self,
        keys: &[K],
        coordinates: &impl Fn(usize) -> P::C,
        found: &mut impl FnMut(Option<&'a (K, V)>),
    ) {
        // The memory of a group is on its way while the group before is looked at.
        let mut before = [Leaf { node: &raw const self.root, bucket: 0 }; GROUP];
        let mut next = before;
        for begin in (0..keys.len() + GROUP).step_by(GROUP) {
            self.leaves(keys.len().saturating_sub(begin), |i| coordinates(begin + i), &mut next);
            if let Some(begin) = begin.checked_sub(GROUP) {
                for (i, leaf) in before.iter().enumerate().take(keys.len() - begin) {
                    let at = begin + i;
                    // SAFETY: `leaves` gives leaves of this tree; invariants 2 and 4.
                    found(unsafe { Self::find(*leaf, coordinates(at), &keys[at]).as_ref() });
                }
            }
            mem::swap(&mut before, &mut next);
        }
    }

    /// Finds the leaves of `n` coordinates, up to [`GROUP`], all at the same time: every step of the way asks for the
    /// memory of the next step, and takes it when all others have asked for theirs.
    #[inline(always)]
    fn leaves(&self, n: usize, coordinate: impl Fn(usize) -> P::C, leaves: &mut [Leaf<P::C>; GROUP]) {
        let leaves = &mut leaves[..n.min(GROUP)];
        leaves.iter_mut().for_each(|leaf| leaf.node = &raw const self.root);
        // SAFETY: invariants 1 to 3.
        unsafe {
            // Those that are at fans, and where the tables of these say how it goes on.
            let mut above: [u8; GROUP] = std::array::from_fn(|i| i as u8);
            let mut entries = [Entry::NONE; GROUP];
            let mut left = leaves.len();
            while left > 0 {
                let mut kept = 0;
                for at in 0..left {
                    let i = usize::from(above[at]);
                    let node = leaves[i].node;
                    if (*node).kind == Kind::Fan {
                        entries[kept] = (*node).entry_of(coordinate(i));
                        prefetch_ahead(entries[kept].later);
                        above[kept] = i as u8;
                        kept += 1;
                    }
                }
                left = kept;
                for (i, entry) in above.iter().zip(&entries[..left]) {
                    let leaf = &mut leaves[usize::from(*i)];
                    leaf.node = (*leaf.node).data.cast::<Node<P::C>>().add(entry.child());
                    prefetch_ahead(leaf.node);
                    prefetch_ahead(&raw const (*leaf.node).knots);
                }
            }
            for (i, leaf) in leaves.iter_mut().enumerate() {
                let node = &*leaf.node;
                if node.kind == Kind::Model {
                    let buckets = Buckets::<K, V>::of(node);
                    leaf.bucket = node.place(coordinate(i));
                    prefetch_ahead(buckets.state_address(leaf.bucket));
                    prefetch_ahead(buckets.pairs(leaf.bucket));
                } else {
                    prefetch_ahead(node.data.wrapping_add(node.len / 2 * size_of::<(K, V)>()));
                }
            }
            for (i, leaf) in leaves.iter_mut().enumerate() {
                let node = &*leaf.node;
                if node.kind == Kind::Model {
                    let buckets = Buckets::<K, V>::of(node);
                    let state = buckets.state(leaf.bucket);
                    if state.is_child() {
                        *leaf = Self::leaf(buckets.child(leaf.bucket), coordinate(i));
                    } else {
                        prefetch_ahead(buckets.pairs(leaf.bucket + state.next()));
                    }
                }
            }
        }
    }

    /// The leaf of a coordinate below a node.
    ///
    /// # Safety
    /// It is a node of this tree.
    unsafe fn leaf(mut node: *const Node<P::C>, coordinate: P::C) -> Leaf<P::C> {
        // SAFETY: the caller's promise, invariants 1 to 3.
        unsafe {
            loop {
                match (*node).kind {
                    Kind::Fan => node = Self::child(node, coordinate),
                    Kind::Flat => return Leaf { node, bucket: 0 },
                    Kind::Model => {
                        let (buckets, bucket) = (Buckets::<K, V>::of(&*node), (*node).place(coordinate));
                        if !buckets.state(bucket).is_child() {
                            return Leaf { node, bucket };
                        }
                        node = buckets.child(bucket);
                    }
                }
            }
        }
    }

    /// Asks for the memory that inserts at these `n` coordinates will touch, up to [`GROUP`].
    pub(crate) fn warm(&self, n: usize, coordinates: impl Fn(usize) -> P::C) {
        self.leaves(n, coordinates, &mut [Leaf { node: &raw const self.root, bucket: 0 }; GROUP]);
    }
}
