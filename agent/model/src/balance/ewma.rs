//! Peak-EWMA: how slow an endpoint has been lately, and the choice of the faster of two.
//!
//! The average believes a slow answer at once and a fast one only over time, so an endpoint that begins to stall is left alone with its
//! first slow answer, or with the first that somebody waited for in vain. Without either the memory fades, so that it is tried again. A
//! failure that comes fast makes an endpoint look good: that is for outlier ejection to see, not for this.

use std::net::SocketAddr;
use std::time::Duration;

use super::draw::{Drawn, two};
use super::{Pick, PickReason, Weights, at};
use crate::resolve::Candidates;
use crate::service::Endpoint;

/// What is remembered of one endpoint's latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeakEwma {
    nanos: f64,
    at: Duration,
}

impl PeakEwma {
    /// How long until the memory has faded to a third (1/e), by default.
    pub const DECAY: Duration = Duration::from_secs(10);
    /// What is assumed of an endpoint that has not answered yet, by default.
    pub const INITIAL: Duration = Duration::from_millis(30);

    /// An endpoint that has not answered yet. `now` is monotonic, counted from a start of the caller's choosing.
    #[must_use]
    pub const fn new(initial: Duration, now: Duration) -> Self {
        Self { nanos: initial.as_nanos() as f64, at: now }
    }

    /// An answer took so long.
    pub fn observe(&mut self, latency: Duration, now: Duration, decay: Duration) {
        let latency = latency.as_nanos() as f64;
        // A peak counts against what was remembered, not against what has faded of it.
        self.nanos = if latency > self.nanos {
            latency
        } else {
            let kept = self.kept(now, decay);
            self.nanos * kept + latency * (1.0 - kept)
        };
        self.at = self.at.max(now);
    }

    /// An answer was waited for in vain for so long: it would have taken longer. What is remembered is never lowered by that; whether it was
    /// raised.
    pub fn waited(&mut self, waited: Duration, now: Duration, decay: Duration) -> bool {
        let is_longer = waited > self.latency(now, decay);
        if is_longer {
            (self.nanos, self.at) = (waited.as_nanos() as f64, self.at.max(now));
        }
        is_longer
    }

    /// The latency as remembered now.
    #[must_use]
    pub fn latency(&self, now: Duration, decay: Duration) -> Duration {
        Duration::from_nanos((self.nanos * self.kept(now, decay)) as u64)
    }

    /// What one more request would cost, in nanoseconds: the latency times the number of requests that then share the endpoint.
    #[must_use]
    pub fn cost(&self, load: u32, now: Duration, decay: Duration) -> u64 {
        (self.nanos * self.kept(now, decay) * (f64::from(load) + 1.0)) as u64
    }

    /// In one word, for a cell that many share without a lock; never 0, which is for an endpoint that has not answered yet.
    #[must_use]
    pub fn pack(&self) -> u64 {
        let nanos = (self.nanos as f32).max(1.0);
        u64::from(nanos.to_bits()) << 32 | u64::from(millis(self.at))
    }

    /// What was packed not much longer than a month ago: the time comes back to the millisecond, the latency to six digits.
    #[must_use]
    pub fn unpack(word: u64, now: Duration) -> Option<Self> {
        let age = millis(now).wrapping_sub(word as u32);
        // Who packed it may have read the clock a little later.
        let age = if age > u32::MAX - Self::AHEAD_MILLIS_MAX { 0 } else { age };
        let nanos = f64::from(f32::from_bits((word >> 32) as u32));
        (word != 0).then(|| Self { nanos, at: now.saturating_sub(Duration::from_millis(age.into())) })
    }

    const AHEAD_MILLIS_MAX: u32 = 60_000;

    /// How much of the memory is left.
    fn kept(&self, now: Duration, decay: Duration) -> f64 {
        if decay.is_zero() {
            return 0.0;
        }
        (-now.saturating_sub(self.at).as_secs_f64() / decay.as_secs_f64()).exp()
    }
}

/// The last 32 bits of a time's milliseconds.
const fn millis(time: Duration) -> u32 {
    time.as_millis() as u32
}

/// Draws two endpoints and takes the one with the lower `cost` ([`PeakEwma::cost`]). With weights it holds what is said of
/// [`super::least_request_weighted`].
///
/// `random` is 64 uniformly random bits. `tried` are the addresses that already failed for this request and are not chosen again; `None`
/// means that every eligible endpoint was tried.
pub fn peak_ewma<'a>(
    candidates: &'a Candidates,
    cost: impl Fn(&Endpoint) -> u64,
    weights: Weights<'_>,
    random: u64,
    tried: &[SocketAddr],
) -> Option<Pick<'a>> {
    match two(candidates, weights, random, tried) {
        Drawn::Nothing => None,
        Drawn::OnlyOne(index) => at(candidates, index, PickReason::OnlyOne),
        Drawn::Twice(index) => at(candidates, index, PickReason::Drawn),
        Drawn::Two(first, second) => {
            let (mine, other) = (cost(candidates.endpoints.get(first)?), cost(candidates.endpoints.get(second)?));
            if other < mine {
                at(candidates, second, PickReason::LessCostly { cost_nanos: other, other_cost_nanos: mine })
            } else {
                at(candidates, first, PickReason::LessCostly { cost_nanos: mine, other_cost_nanos: other })
            }
        }
    }
}
