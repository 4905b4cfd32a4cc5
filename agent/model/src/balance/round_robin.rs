//! One after the other.

use std::net::SocketAddr;

use super::draw::untried;
use super::{Pick, PickReason, Weight, Weights, at};
use crate::resolve::Candidates;

/// Whose turn it is. Each worker has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundRobin {
    pub(super) turn: u64,
}

impl RoundRobin {
    /// Begins anywhere, so that the workers of many agents do not march in step. `random` is 64 uniformly random bits.
    #[must_use]
    pub const fn starting_at(random: u64) -> Self {
        // Far from the end, where the order would break.
        Self { turn: random >> 32 }
    }

    /// The next in turn that was not tried; `None` means that every eligible endpoint was.
    ///
    /// With weights an endpoint is passed over in as many rounds as its share is short of a full one, evenly spaced.
    pub fn next<'a>(
        &mut self,
        candidates: &'a Candidates,
        weights: Weights<'_>,
        tried: &[SocketAddr],
    ) -> Option<Pick<'a>> {
        let left = if tried.is_empty() { candidates.len() } else { untried(candidates, tried).count() };
        let why = match left {
            0 => return None,
            1 => PickReason::OnlyOne,
            _ => PickReason::InTurn,
        };
        let count = candidates.len() as u64;
        // The least weight has a turn in every 64th round.
        let rounds_max = u64::from(Weight::FULL.get() / Weight::LEAST.get());
        let steps_max = if weights.is_none() { count } else { count * (rounds_max + 1) };
        for _ in 0..steps_max {
            let (round, place) = (self.turn / count, self.turn % count);
            self.turn = self.turn.wrapping_add(1);
            let index = candidates.index(usize::try_from(place).ok()?)?;
            let endpoint = candidates.endpoints.get(index)?;
            if tried.contains(&endpoint.addr) || weights.is_some_and(|of| !has_turn(round, place, of(endpoint))) {
                continue;
            }
            return at(candidates, index, why);
        }
        None
    }
}

/// Whether an endpoint takes its turn in a round: in `weight` of every full number of rounds. The rounds of endpoints with equal weights are
/// shifted against each other, so that they do not all rest at once.
fn has_turn(round: u64, place: u64, weight: Weight) -> bool {
    let (weight, full) = (u64::from(weight.get()), u64::from(Weight::FULL.get()));
    let shift = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
    let round = (round.wrapping_add(shift)) % full;
    (round + 1) * weight / full > round * weight / full
}
