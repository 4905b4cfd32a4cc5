//! Weights of the endpoints of one Service among each other.

use std::time::Duration;

use crate::service::Endpoint;

/// The share of requests that an endpoint takes, beside one with [`Weight::FULL`]; from a 64th to all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

/// The weight of each endpoint; `None` where all have the same, which is cheaper.
pub type Weights<'a> = Option<&'a dyn Fn(&Endpoint) -> Weight>;

/// Slow start: a new endpoint's weight grows while its caches fill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// How long until it takes its full share; zero is at once.
    pub window: Duration,
    /// How the weight grows: with 1 evenly, above 1 fast at first, below 1 slowly at first. Default 1; what is not above 0 counts as 1.
    pub aggression: f64,
    /// The share that it takes from the beginning. Default 0.1.
    pub share_min: f64,
}

impl Weight {
    /// A full share.
    pub const FULL: Self = Self(4096);
    /// The least, a 64th.
    pub const LEAST: Self = Self(64);

    /// This share of a full one; below the least it is the least, above 1 it is full.
    #[must_use]
    pub fn of_share(share: f64) -> Self {
        // The cast saturates, and makes what is not a number zero.
        Self((share * f64::from(Self::FULL.0)).round() as u16).clamp(Self::LEAST, Self::FULL)
    }

    /// In 4096ths of a full share.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl SlowStart {
    /// Even growth over a window, from a tenth.
    #[must_use]
    pub const fn over(window: Duration) -> Self {
        Self { window, aggression: 1.0, share_min: 0.1 }
    }

    /// The weight of an endpoint that has been there for `age`.
    #[must_use]
    pub fn weight(&self, age: Duration) -> Weight {
        if age >= self.window {
            return Weight::FULL;
        }
        let share = age.as_secs_f64() / self.window.as_secs_f64();
        let share = if self.aggression > 0.0 { share.powf(1.0 / self.aggression) } else { share };
        Weight::of_share(share.max(self.share_min))
    }
}
