//! Drawing one or two endpoints at random, those that were tried excepted.

use std::net::SocketAddr;

use super::{Weight, Weights};
use crate::resolve::Candidates;

/// What was drawn, as indices into [`Candidates::endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drawn {
    /// Every endpoint was tried.
    Nothing,
    /// No other is untried.
    OnlyOne(usize),
    /// Two distinct ones, the first drawn first.
    Two(usize, usize),
    /// With weights: one that was drawn twice.
    Twice(usize),
}

/// Draws two endpoints. Without weights they are distinct; with weights each is drawn on its own, so that even of two endpoints the light
/// one is seen no more often than twice its share.
pub(super) fn two(candidates: &Candidates, weights: Weights<'_>, random: u64, tried: &[SocketAddr]) -> Drawn {
    let Some(weight) = weights else { return evenly(candidates, random, tried) };
    let mut bits = Bits(random);
    let Some(first) = by_weight(candidates, weight, &mut bits, tried) else { return Drawn::Nothing };
    let may_be_alone = candidates.len() == 1 || !tried.is_empty();
    if may_be_alone && untried(candidates, tried).nth(1).is_none() {
        return Drawn::OnlyOne(first);
    }
    match by_weight(candidates, weight, &mut bits, tried) {
        Some(second) if second != first => Drawn::Two(first, second),
        _ => Drawn::Twice(first),
    }
}

fn evenly(candidates: &Candidates, random: u64, tried: &[SocketAddr]) -> Drawn {
    // Walks the candidates only where something was tried before: a retry, not the usual case.
    let nth = |n: usize| {
        if tried.is_empty() { candidates.index(n) } else { untried(candidates, tried).nth(n) }
    };
    let count = if tried.is_empty() { candidates.len() } else { untried(candidates, tried).count() };
    let (first, second) = match count {
        0 => return Drawn::Nothing,
        1 => (nth(0), None),
        _ => {
            let (first, second) = two_of(count, random);
            (nth(first), nth(second))
        }
    };
    match (first, second) {
        (Some(first), Some(second)) => Drawn::Two(first, second),
        (Some(first), None) => Drawn::OnlyOne(first),
        (None, _) => Drawn::Nothing,
    }
}

/// Rejection: an even draw that counts with the probability of its weight needs no table that every change of a weight would rebuild. Where
/// that takes too long (few are left, or most weights are small), the exact draw walks the candidates; the mixture has the same shares.
fn by_weight(
    candidates: &Candidates,
    weight: &dyn Fn(&crate::Endpoint) -> Weight,
    bits: &mut Bits,
    tried: &[SocketAddr],
) -> Option<usize> {
    const DRAWS: usize = 8;
    let weight_of = |index: usize| match candidates.endpoints.get(index) {
        Some(endpoint) if !tried.contains(&endpoint.addr) => u64::from(weight(endpoint).get()),
        _ => 0,
    };
    for _ in 0..DRAWS {
        let word = bits.next();
        let index = candidates.index(below(word, candidates.len()))?;
        if (below(word >> 32, usize::from(Weight::FULL.get())) as u64) < weight_of(index) {
            return Some(index);
        }
    }
    let total: u64 = candidates.indices().map(weight_of).sum();
    let mut point = ((u128::from(bits.next()) * u128::from(total)) >> 64) as u64;
    candidates.indices().find(|index| {
        let here = weight_of(*index);
        let is_here = point < here;
        point = point.saturating_sub(here);
        is_here
    })
}

/// The indices of the candidates that were not tried.
pub(super) fn untried<'a>(candidates: &'a Candidates, tried: &'a [SocketAddr]) -> impl Iterator<Item = usize> + 'a {
    let is_untried = |index: &usize| candidates.endpoints.get(*index).is_some_and(|e| !tried.contains(&e.addr));
    candidates.indices().filter(is_untried)
}

/// Two distinct numbers below `count` (at least 2), every ordered pair as likely as any other.
pub(super) fn two_of(count: usize, random: u64) -> (usize, usize) {
    let first = below(random, count);
    let second = below(random >> 32, count - 1);
    (first, if second >= first { second + 1 } else { second })
}

/// 32 random bits times n, upper half: uniform up to n / 2^32, without a division.
fn below(bits: u64, n: usize) -> usize {
    (((bits & 0xffff_ffff) * n as u64) >> 32) as usize
}

/// More bits from 64 (SplitMix64).
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
