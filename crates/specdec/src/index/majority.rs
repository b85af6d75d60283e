//! The token that most often follows an n-gram.

use super::{Index, Match, format::separator};

/// Up to so many occurrences every one is looked at, beyond them so many.
const LOOKS: usize = 64;

impl<B: AsRef<[u8]>> Index<B> {
    /// The token that most often follows, the lowest among equals, and how often it does. Ends of documents are no token.
    ///
    /// Beyond 64 occurrences, 64 of them are looked at, evenly spaced in order, and the two tokens seen most often are
    /// counted: a token that follows one time in sixteen or more is missed once in several hundred n-grams, and then by
    /// little.
    pub fn majority(&self, found: &Match) -> Option<(u32, u64)> {
        let total = found.count() as usize;
        let end = separator(self.header.width);
        let mut seen: Vec<(u32, u64)> = Vec::with_capacity(8);
        let mut see = |token: Option<u32>| {
            let Some(token) = token.filter(|&token| token != end) else { return };
            match seen.iter_mut().find(|(known, _)| *known == token) {
                Some((_, count)) => *count += 1,
                None => seen.push((token, 1)),
            }
        };
        if total <= LOOKS {
            for (shard, ranks) in self.shards().zip(&found.ranks) {
                ranks.clone().for_each(|rank| see(shard.token(rank, found.len)));
            }
            return seen.into_iter().max_by_key(|&(token, count)| (count, std::cmp::Reverse(token)));
        }
        for look in 0..LOOKS {
            let mut place = (total as u128 * (2 * look as u128 + 1) / (2 * LOOKS as u128)) as usize;
            for (shard, ranks) in self.shards().zip(&found.ranks) {
                if place < ranks.len() {
                    see(shard.token(ranks.start + place, found.len));
                    break;
                }
                place -= ranks.len();
            }
        }
        seen.sort_unstable_by_key(|&(token, count)| (std::cmp::Reverse(count), token));
        let counted = seen.into_iter().take(2).map(|(token, _)| (token, self.narrow(found, token).count()));
        counted.max_by_key(|&(token, count)| (count, std::cmp::Reverse(token)))
    }
}
