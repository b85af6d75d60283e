//! Suffix arrays by induced sorting, in plain Rust: the reference of the builder, and its sorter where no C compiler is.
//!
//! A suffix is of type S if it sorts before the one after it, else of type L. The S suffixes that follow an L suffix are
//! few (at most half, a third in natural text) and, once they are sorted, two scans put all others in place. They are
//! sorted by the same two scans up to the next of their kind, named, and where names collide sorted recursively.
//! Linear time, `4 n` bytes for the result, `n / 8` for the types, and at most as much again for the recursion.
//!
//! Source: "Two Efficient Algorithms for Linear Time Suffix Array Construction", Nong, Zhang, Chan, IEEE Transactions on
//! Computers 2011.

const EMPTY: u32 = u32::MAX;

/// A symbol of a text.
pub trait Symbol: Copy + Ord {
    /// Its number, from 0.
    fn number(self) -> usize;
}

impl Symbol for u8 {
    fn number(self) -> usize {
        usize::from(self)
    }
}
impl Symbol for u16 {
    fn number(self) -> usize {
        usize::from(self)
    }
}
impl Symbol for u32 {
    fn number(self) -> usize {
        self as usize
    }
}

/// The starts of all suffixes of `text` in order; a suffix that is the beginning of another comes first.
///
/// `symbols` is above every number in `text`, and `text` is shorter than 2³² − 1.
///
/// ```
/// use kindling_specdec::index::suffix_array;
///
/// assert_eq!(suffix_array(&[5u8, 1, 2, 3, 1, 2, 4, 1, 2, 3, 5], 6), [1, 7, 4, 2, 8, 5, 3, 9, 6, 10, 0]);
/// ```
pub fn suffix_array<T: Symbol>(text: &[T], symbols: usize) -> Vec<u32> {
    let mut order = vec![EMPTY; text.len()];
    sort(text, symbols, &mut order);
    order
}

fn sort<T: Symbol>(text: &[T], symbols: usize, order: &mut [u32]) {
    let n = text.len();
    if n < 2 {
        order.fill(0);
        return;
    }
    let types = Types::of(text);
    let mut counts = vec![0u32; symbols];
    text.iter().for_each(|symbol| counts[symbol.number()] += 1);

    // Order the leftmost S suffixes by what lies between them.
    let lms: Vec<u32> = (1..n).filter(|&i| types.is_leftmost(i)).map(|i| i as u32).collect();
    induce(text, &types, &counts, lms.iter().copied(), order);
    let (names, distinct) = name(text, &types, &lms, order);
    let mut sorted = vec![0; lms.len()];
    if distinct < lms.len() {
        sort(&names, distinct, &mut sorted);
    } else {
        names.iter().enumerate().for_each(|(i, &name)| sorted[name as usize] = i as u32);
    }
    drop(names);
    // The scan fills each bucket from its end.
    sorted.iter_mut().for_each(|place| *place = lms[*place as usize]);
    drop(lms);
    induce(text, &types, &counts, sorted.iter().rev().copied(), order);
}

/// Which suffixes are of type S, one bit each.
struct Types(Vec<u64>);

impl Types {
    fn of<T: Symbol>(text: &[T]) -> Self {
        let mut bits = vec![0u64; text.len().div_ceil(64)];
        let mut smaller = false;
        for i in (0..text.len() - 1).rev() {
            smaller = text[i] < text[i + 1] || (text[i] == text[i + 1] && smaller);
            bits[i / 64] |= u64::from(smaller) << (i % 64);
        }
        Self(bits)
    }

    fn is_smaller(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    /// Type S after type L.
    fn is_leftmost(&self, i: usize) -> bool {
        i > 0 && self.is_smaller(i) && !self.is_smaller(i - 1)
    }
}

/// Puts `seeds` at the ends of their buckets, last first, and sorts everything else by them.
fn induce<T: Symbol>(text: &[T], types: &Types, counts: &[u32], seeds: impl Iterator<Item = u32>, order: &mut [u32]) {
    order.fill(EMPTY);
    let mut ends = sums(counts, true);
    for seed in seeds {
        let end = &mut ends[text[seed as usize].number()];
        *end -= 1;
        order[*end as usize] = seed;
    }
    let mut starts = sums(counts, false);
    let mut place = |i: usize, order: &mut [u32]| {
        let start = &mut starts[text[i].number()];
        order[*start as usize] = i as u32;
        *start += 1;
    };
    // The suffix of one symbol is of type L: nothing follows, and that is smaller than anything.
    place(text.len() - 1, order);
    for at in 0..order.len() {
        let next = order[at];
        if next != EMPTY && next > 0 && !types.is_smaller(next as usize - 1) {
            place(next as usize - 1, order);
        }
    }
    let mut ends = sums(counts, true);
    for at in (0..order.len()).rev() {
        let next = order[at];
        if next != EMPTY && next > 0 && types.is_smaller(next as usize - 1) {
            let end = &mut ends[text[next as usize - 1].number()];
            *end -= 1;
            order[*end as usize] = next - 1;
        }
    }
}

/// Where each bucket begins, or ends.
fn sums(counts: &[u32], end: bool) -> Vec<u32> {
    let mut total = 0;
    counts
        .iter()
        .map(|&count| {
            let start = total;
            total += count;
            if end { total } else { start }
        })
        .collect()
}

/// The rank of what lies between each leftmost S suffix and the next, in the order of the text; and how many ranks.
fn name<T: Symbol>(text: &[T], types: &Types, lms: &[u32], order: &[u32]) -> (Vec<u32>, usize) {
    // No two of them are neighbours, so half the position is a place of its own.
    let mut by_half = vec![EMPTY; text.len() / 2 + 1];
    let mut distinct = 0;
    let mut previous: Option<usize> = None;
    for &at in order.iter().filter(|&&at| at != EMPTY && types.is_leftmost(at as usize)) {
        let at = at as usize;
        if previous.is_none_or(|previous| !same(text, types, previous, at)) {
            distinct += 1;
        }
        by_half[at / 2] = distinct - 1;
        previous = Some(at);
    }
    (lms.iter().map(|&at| by_half[at as usize / 2]).collect(), distinct as usize)
}

/// Whether the stretches from `a` and from `b` to the next leftmost S suffix are equal.
fn same<T: Symbol>(text: &[T], types: &Types, a: usize, b: usize) -> bool {
    for k in 0.. {
        if a + k >= text.len() || b + k >= text.len() || text[a + k] != text[b + k] {
            return false;
        }
        if k > 0 {
            match (types.is_leftmost(a + k), types.is_leftmost(b + k)) {
                (true, true) => return true,
                (false, false) => {}
                _ => return false,
            }
        }
    }
    unreachable!("the text ends")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn brute(text: &[u32]) -> Vec<u32> {
        let mut order: Vec<u32> = (0..text.len() as u32).collect();
        order.sort_by_key(|&i| &text[i as usize..]);
        order
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_sorting(
            text in prop_oneof![prop::collection::vec(0u32..2, 0..200), prop::collection::vec(0u32..5, 0..200), prop::collection::vec(0u32..300, 0..200)],
            repeats in 1usize..4,
        ) {
            let text = text.repeat(repeats);
            prop_assert_eq!(suffix_array(&text, 300), brute(&text));
        }
    }

    #[test]
    fn widths_agree() {
        let bytes = b"she sells sea shells by the sea shore; the shells she sells are sea shells";
        let wide: Vec<u16> = bytes.iter().map(|&b| u16::from(b)).collect();
        let order = suffix_array(bytes, 256);
        assert_eq!(order, suffix_array(&wide, 256));
        assert_eq!(order, brute(&bytes.map(u32::from)));
    }
}
