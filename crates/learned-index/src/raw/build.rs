//! From sorted pairs to nodes.
//!
//! A run of keys becomes a model node if a line spreads it well enough; else it is cut into the cells of a fan, and
//! neighbouring cells join again where a line carries them. So a line is never asked for more than it can do, and most
//! look-ups of a freshly built tree take the same path: fan, line, bucket.

use std::mem::{self, MaybeUninit};
use std::ptr;

use super::bucket::Buckets;
use super::fan::{Cells, PARTS_MOST, RUNS_MOST};
use super::heap::{Heap, LARGE};
use super::node::{BEHIND, Kind, Knots, Node, PIECES, POSITIONS, piece, place, place_on_curve};
use crate::key::Key;

/// How much of its buckets a run fills: when all is loaded at once …
pub(super) const LOADED: f64 = 0.72;
/// … and when a node has grown out of them and will go on growing.
pub(super) const GROWING: f64 = 0.45;
/// Where so many buckets full of pairs would flow on, they go to a child.
const FLOOD: usize = 4;
/// Up to here a run may flow as it likes.
const RUN_MIN: usize = 128;
/// Longer runs are cut, so that there is an end to what a rebuild takes.
const RUN_MAX: usize = 1 << 24;
/// One key in so many may lie beyond the second bucket of a look-up,
const FAR_SHARE: usize = 20;
/// and one in so many may go to a child.
const DEEPER_SHARE: usize = 50;
/// Keys for a cell of a fan, and how many cells a fan has.
const CELL: usize = 16;
const CELLS_MIN: usize = 16;
/// More cells than these only for more than so many keys each: they should stay in a cache.
const CELLS_MANY: usize = 1 << 15;
const CELL_LARGE: usize = 256;
/// Keys for a part of a cell.
const PART: usize = 16;
/// Parts of all cells: with those that are not cut fewer than a table has room for.
const PARTS_OF_ALL: usize = RUNS_MOST / 4;
/// Where lines carry so many of so many keys below a fan there are no curves.
const LINES_OF: usize = 3;
const LINES_MANY: usize = 4;
/// Up to so many keys the ranks of pieces are counted, not searched.
const SHORT: usize = 256;
/// Up to here a sorted array needs no model.
const FLAT: usize = 8;

/// Builds nodes over pairs whose coordinates ascend.
pub(super) struct Builder<'a, C, K, V, F> {
    pub(super) heap: &'a mut Heap,
    pub(super) pairs: *const (K, V),
    /// The coordinate of the pair at a position.
    pub(super) coordinate: F,
    /// Whether keys ascend with coordinates; if not, every bucket is sorted by key.
    pub(super) ordered: bool,
    /// How much of the buckets to fill.
    pub(super) fill: f64,
    /// Whether the first node is likely to need a curve: lines are tried later then.
    pub(super) curved: bool,
    pub(super) marker: std::marker::PhantomData<C>,
}

/// Pairs that become one node.
struct Run<C> {
    /// Where it begins, as a [`point`](Cells::point).
    at: u64,
    begin: usize,
    end: usize,
    model: Option<Curve<C>>,
}

/// What places the keys of a model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Law {
    Line,
    Curve,
}

/// A line or a curve.
struct Curve<C> {
    base: C,
    scale: f64,
    limit: f64,
    buckets: usize,
    knots: Option<Knots>,
}

impl<C: Key, K: Copy + Ord, V, F: Fn(usize) -> C + Copy> Builder<'_, C, K, V, F> {
    /// A node over the pairs `begin..end`, which it moves out.
    ///
    /// # Safety
    /// These pairs are initialised and will not be used again by their owner.
    pub(super) unsafe fn build(&mut self, begin: usize, end: usize) -> Node<C> {
        if end - begin <= FLAT || !Buckets::<K, V>::POSSIBLE || self.one_coordinate(begin, end) {
            // SAFETY: the caller's promise.
            return unsafe { self.flat(begin, end) };
        }
        let laws = if mem::take(&mut self.curved) { [Law::Curve, Law::Line] } else { [Law::Line, Law::Curve] };
        for law in laws {
            if let Some(curve) = self.carrying(begin, end, law) {
                // SAFETY: the caller's promise.
                return unsafe { self.model(begin, end, curve) };
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.fan(begin, end) }
    }

    /// # Safety
    /// As for [`Builder::build`]; the pairs have more than one coordinate.
    unsafe fn fan(&mut self, begin: usize, end: usize) -> Node<C> {
        let coordinate = self.coordinate;
        let n = end - begin;
        let count = (n / CELL).clamp(CELLS_MIN, CELLS_MANY.max(n / CELL_LARGE)).min(PARTS_OF_ALL / 2);
        let mut cells = Cells::over(end - begin, |i| coordinate(begin + i), count);
        if cells.count() < 2 {
            // So near to each other that their distances have lost their digits.
            // SAFETY: the caller's promise.
            return unsafe { self.flat(begin, end) };
        }
        // Where the pairs of every cell begin.
        let mut begins = Vec::with_capacity(cells.count() + 1);
        let mut highest = 0;
        for i in begin..end {
            highest = cells.cell(coordinate(i)).max(highest);
            begins.resize(begins.len().max(highest + 1), i);
        }
        let size = cells.count().next_power_of_two();
        begins.resize(size + 1, end);
        // Lines if they carry most keys: a processor guesses well what all nodes of a fan have in common.
        let mut runs = Vec::new();
        for law in [Law::Line, Law::Curve] {
            runs.clear();
            self.split(&cells, &begins, (0, size), law, &mut runs);
            let carried: usize = runs.iter().filter(|run| run.model.is_some()).map(|run| run.end - run.begin).sum();
            if carried >= (end - begin) / LINES_MANY * LINES_OF {
                break;
            }
        }
        if runs.len() == 1 {
            // Only a key type that breaks its promise has all in one cell.
            // SAFETY: the caller's promise.
            return unsafe { self.flat(begin, end) };
        }
        let table = cells.table(&runs.iter().map(|run| run.at).collect::<Vec<_>>());
        if self.heap.reserved() == 0 {
            self.heap.reserve(self.forecast(&runs));
        }
        let branches = runs.len();
        let children = self.heap.array::<Node<C>>(branches);
        let side = self.heap.array::<u64>(table.len());
        // SAFETY: the block has the length of the table. Runs are disjoint and cover what the caller promised; children
        // have their number.
        unsafe {
            ptr::copy_nonoverlapping(table.as_ptr(), side, table.len());
            for (i, run) in runs.into_iter().enumerate() {
                let child = match run.model {
                    Some(curve) => self.model(run.begin, run.end, curve),
                    None => self.build(run.begin, run.end),
                };
                children.add(i).write(child);
            }
        }
        Node {
            base: MaybeUninit::new(cells.base),
            scale: cells.scale,
            limit: cells.limit,
            shift: cells.shift,
            side: side.cast(),
            ..self.node(Kind::Fan, children.cast(), branches, end - begin)
        }
    }

    /// Bytes that runs will take inside the regions of the heap, about.
    fn forecast(&self, runs: &[Run<C>]) -> usize {
        let per = Buckets::<K, V>::PER as f64;
        let nodes = runs.len() * size_of::<Node<C>>();
        let pairs = runs.iter().map(|run| {
            let buckets = BEHIND + ((run.end - run.begin) as f64 / (self.fill * per)) as usize;
            Some(Buckets::<K, V>::bytes(buckets)).filter(|&bytes| bytes < LARGE).unwrap_or(0)
        });
        nodes + pairs.sum::<usize>() * 17 / 16
    }

    fn node(&self, kind: Kind, data: *mut u8, room: usize, len: usize) -> Node<C> {
        let room = u32::try_from(room).expect("a node has fewer than 2^32 parts");
        Node { data, room, kind, len, built: len, ..Node::empty() }
    }

    /// Sorts a bucket by key, if it is not.
    ///
    /// # Safety
    /// The pairs are initialised and nobody else has them.
    #[inline(always)]
    unsafe fn sort(&self, pairs: *mut (K, V), n: usize) {
        if !self.ordered && n > 1 {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(pairs, n) }.sort_unstable_by_key(|pair| pair.0);
        }
    }

    /// Whether no line and no fan tells the first coordinate from the last.
    fn one_coordinate(&self, begin: usize, end: usize) -> bool {
        begin == end || (self.coordinate)(end - 1).offset_from((self.coordinate)(begin)) <= 0.0
    }

    /// Cuts cells `from..to` into runs that each become one node. Cells without pairs go with the run before them.
    fn split(&self, cells: &Cells<C>, begins: &[usize], (from, to): (usize, usize), law: Law, runs: &mut Vec<Run<C>>) {
        let (begin, end) = (begins[from], begins[to]);
        if self.is_run((from as u64) << cells.shift, begin, end, law, runs) {
            return;
        }
        if to - from == 1 {
            let part = PART.max((begins[begins.len() - 1] - begins[0]) / PARTS_OF_ALL);
            let parts = ((end - begin) / part).max(1).ilog2().min(cells.shift.min(PARTS_MOST).into()) as u8;
            return self.split_cell(cells, (from as u64) << cells.shift, (cells.shift, parts), (begin, end), law, runs);
        }
        let middle = from + (to - from) / 2;
        self.split(cells, begins, (from, middle), law, runs);
        self.split(cells, begins, (middle, to), law, runs);
    }

    /// Cuts what begins at a point and has `width` bits into runs, down to parts with `parts` bits fewer.
    fn split_cell(
        &self,
        cells: &Cells<C>,
        at: u64,
        (width, parts): (u8, u8),
        (begin, end): (usize, usize),
        law: Law,
        runs: &mut Vec<Run<C>>,
    ) {
        if parts == 0 {
            return runs.push(Run { at, begin, end, model: None });
        }
        let middle_point = at + (1 << (width - 1));
        let (mut middle, mut most) = (begin, end);
        while middle < most {
            let probe = middle + (most - middle) / 2;
            if cells.point((self.coordinate)(probe)) < middle_point { middle = probe + 1 } else { most = probe }
        }
        for (at, begin, end) in [(at, begin, middle), (middle_point, middle, end)] {
            if !self.is_run(at, begin, end, law, runs) {
                self.split_cell(cells, at, (width - 1, parts - 1), (begin, end), law, runs);
            }
        }
    }

    /// Whether these pairs need not be cut; notes them as a run unless there are none.
    fn is_run(&self, at: u64, begin: usize, end: usize, law: Law, runs: &mut Vec<Run<C>>) -> bool {
        let small = end - begin <= FLAT || self.one_coordinate(begin, end);
        let model = if small { None } else { self.carrying(begin, end, law) };
        let whole = small || model.is_some();
        if begin < end && whole {
            runs.push(Run { at, begin, end, model });
        }
        whole
    }

    /// The line over a run from its first to its last key; or the curve: lines through the ranks of its keys, each over
    /// an equal part of this way.
    fn curve(&self, begin: usize, end: usize, law: Law) -> Curve<C> {
        let n = end - begin;
        let buckets = (n as f64 / (self.fill * Buckets::<K, V>::PER as f64)).ceil().max(1.0);
        let base = (self.coordinate)(begin);
        let steps = if law == Law::Line { buckets } else { POSITIONS };
        let scale = steps / (self.coordinate)(end - 1).offset_from(base);
        let knots = (law == Law::Curve).then(|| self.knots(begin, end, base, scale));
        Curve { base, scale, limit: buckets - 1.0, buckets: buckets as usize, knots }
    }

    /// Ranks of a run where the pieces of its curve meet.
    fn knots(&self, begin: usize, end: usize, base: C, scale: f64) -> Knots {
        let n = end - begin;
        let of = |i: usize| piece(base, scale, (self.coordinate)(i));
        let mut knots = [u16::MAX; PIECES + 1];
        let mut rank = 0;
        for (number, knot) in knots[..PIECES].iter_mut().enumerate() {
            // Keys of the pieces before this one.
            if n <= SHORT {
                while rank < n && of(begin + rank) < number {
                    rank += 1;
                }
            } else {
                let (mut most, mut step) = (n, n / PIECES);
                while rank + step < most && of(begin + rank + step) < number {
                    (rank, step) = (rank + step + 1, 2 * step);
                }
                most = most.min(rank + step);
                while rank < most {
                    let middle = rank + (most - rank) / 2;
                    if of(begin + middle) < number { rank = middle + 1 } else { most = middle }
                }
            }
            *knot = (rank * usize::from(u16::MAX) / n) as u16;
        }
        knots
    }

    /// Places of a run on its curve. Where a user's key type breaks its promise they still ascend.
    fn places(coordinate: F, curve: &Curve<C>, begin: usize, end: usize) -> impl Iterator<Item = usize> {
        let &Curve { base, scale, limit, buckets, knots } = curve;
        let mut highest = 0;
        (begin..end).map(move |i| {
            let place = match &knots {
                Some(knots) => place_on_curve(base, scale, knots, buckets, coordinate(i)),
                None => place(base, scale, limit, coordinate(i)),
            };
            highest = place.max(highest);
            highest
        })
    }

    /// The curve over a run, if it spreads most of its keys over their buckets.
    fn carrying(&self, begin: usize, end: usize, law: Law) -> Option<Curve<C>> {
        let n = end - begin;
        if n > RUN_MAX {
            return None;
        }
        let curve = self.curve(begin, end, law);
        let most_far = if n <= RUN_MIN { n } else { n / FAR_SHARE };
        let most_deeper = n / DEEPER_SHARE;
        let per = Buckets::<K, V>::PER;
        // Pairs that flow into bucket `at`, and those of them and its own that came so far.
        let (mut at, mut waiting) = (0, 0);
        let (mut far, mut deeper) = (0, 0);
        for place in Self::places(self.coordinate, &curve, begin, end) {
            if place != at {
                if waiting > (FLOOD + 1) * per {
                    (deeper, waiting) = (deeper + waiting, 0);
                }
                waiting = waiting.saturating_sub(per * (place - at));
                at = place;
                if far > most_far || deeper > most_deeper {
                    return None;
                }
            }
            waiting += 1;
            far += usize::from(waiting > 2 * per && waiting <= (FLOOD + 1) * per);
        }
        deeper += if waiting > (FLOOD + 1) * per { waiting } else { 0 };
        (far <= most_far && deeper <= most_deeper).then_some(curve)
    }

    /// # Safety
    /// As for [`Builder::build`].
    unsafe fn flat(&mut self, begin: usize, end: usize) -> Node<C> {
        let n = end - begin;
        if n == 0 {
            return self.node(Kind::Flat, ptr::null_mut(), 0, 0);
        }
        let room = n.next_multiple_of(4);
        let block = self.heap.array::<(K, V)>(room);
        // SAFETY: initialised by the caller's promise, the block is new and large enough.
        unsafe {
            ptr::copy_nonoverlapping(self.pairs.add(begin), block, n);
            self.sort(block, n);
        }
        self.node(Kind::Flat, block.cast(), room, n)
    }

    /// # Safety
    /// As for [`Builder::build`].
    unsafe fn model(&mut self, begin: usize, end: usize, curve: Curve<C>) -> Node<C> {
        let per = Buckets::<K, V>::PER;
        let room = curve.buckets + BEHIND;
        let buckets = Buckets::<K, V>::new(self.heap, room);
        let mut places = Self::places(self.coordinate, &curve, begin, end);
        let mut place = places.next();
        // From `next` on pairs have no bucket yet; those before `come` belong to this one or one before.
        let (mut next, mut come) = (begin, begin);
        for i in 0..room {
            while place.is_some_and(|place| place <= i) {
                come += 1;
                place = places.next();
            }
            let waiting = come - next;
            // SAFETY: the caller's promise; the node has `room` buckets, and no bucket gets more than it holds.
            unsafe {
                if waiting > (FLOOD + 1) * per || i + 1 == room && waiting > per {
                    let child = self.heap.array::<Node<C>>(1);
                    child.write(self.build(next, come));
                    buckets.set_child(i, child);
                    next = come;
                    continue;
                }
                let len = waiting.min(per);
                ptr::copy_nonoverlapping(self.pairs.add(next), buckets.pairs(i), len);
                self.sort(buckets.pairs(i), len);
                buckets.begin(i, len, waiting > len);
                next += len;
                let last = if len > 0 { buckets.pairs(i).add(len - 1) } else { self.pairs.add(begin) };
                buckets.fill(i, len, (*last).0);
            }
        }
        let (data, side) = buckets.parts();
        Node {
            base: MaybeUninit::new(curve.base),
            scale: curve.scale,
            limit: curve.limit,
            curved: curve.knots.is_some(),
            knots: curve.knots.unwrap_or([0; PIECES + 1]),
            side,
            ..self.node(Kind::Model, data, room, end - begin)
        }
    }
}
