//! The retry budget of one Service in one agent: retries may add a share to the load, never a storm.
//!
//! Two bounds hold at once. **In flight**: retries that wait or run are at most `percent` of the active requests (rounded up), so a
//! burst of failures meets a small burst of retries. **Over time**: each request earns `percent` of a retry, and a retry spends one, so
//! that however short retries are beside the requests that fail, a dead backend sees at most `percent` more than the offered load. What
//! is earned and not spent keeps up to a bound. Beside both stands a **floor** of retries per second, for Services with few requests.
//!
//! Shared by the workers with plain atomics: one addition when a request begins, one when it ends; a retry, which is rare, compares and
//! swaps. Nothing is over-spent; the number in flight may be exceeded by what ends between the reading and the writing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use heddle_model::traffic::BudgetLimits;

/// The budget of one Service; see the module documentation.
#[derive(Debug, Default)]
pub struct Budget {
    /// Requests that began (upper half, wrapping), and of these the active ones (lower half).
    requests: AtomicU64,
    /// What was earned and not spent, in hundredths of a retry (lower half), as of that many requests begun (upper half).
    saved: AtomicU64,
    /// Retries in flight that were paid from what was saved.
    retries: AtomicU32,
    /// When the floor grants its next, in nanoseconds of the caller's time.
    floor_next_nanos: AtomicU64,
    /// Retries refused.
    refused: AtomicU64,
}

/// A request that counts as active until this is dropped.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Budget>);

/// A retry that was granted; given back when dropped, at the end of the retry.
#[derive(Debug)]
pub struct Token {
    budget: Arc<Budget>,
    is_floor: bool,
}

/// A budget's use at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetUse {
    /// Active requests.
    pub requests: u32,
    /// Retries waiting or running, those of the floor not counted.
    pub retries: u32,
    /// Retries refused so far.
    pub refused: u64,
}

/// One retry, in the unit of what is saved.
const RETRY: u64 = 100;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl Budget {
    /// A request (not an attempt) begins.
    #[must_use]
    pub fn request(self: &Arc<Self>) -> ActiveRequest {
        self.requests.fetch_add(1 << 32 | 1, Relaxed);
        ActiveRequest(Arc::clone(self))
    }

    /// Takes the token for a retry of a request that is active.
    ///
    /// `now` is monotonic, counted from a start of the caller's choosing that is the same for all workers. Limits come with each call, so
    /// a change holds at once.
    #[must_use]
    pub fn withdraw(self: &Arc<Self>, limits: &BudgetLimits, now: Duration) -> Option<Token> {
        if self.enter(limits) {
            let token = Token { budget: Arc::clone(self), is_floor: false };
            if self.spend(limits) {
                return Some(token);
            }
        }
        if self.take_floor(limits, now) {
            return Some(Token { budget: Arc::clone(self), is_floor: true });
        }
        self.refused.fetch_add(1, Relaxed);
        None
    }

    /// How it is used.
    #[must_use]
    pub fn usage(&self) -> BudgetUse {
        BudgetUse { requests: self.active(), retries: self.retries.load(Relaxed), refused: self.refused.load(Relaxed) }
    }

    fn active(&self) -> u32 {
        self.requests.load(Relaxed) as u32
    }

    /// Takes a place among the retries in flight.
    fn enter(&self, limits: &BudgetLimits) -> bool {
        let place = |retries: u32| {
            let most = (u64::from(self.active()) * u64::from(limits.percent.min(100))).div_ceil(100);
            (u64::from(retries) < most).then_some(retries + 1)
        };
        self.retries.fetch_update(Relaxed, Relaxed, place).is_ok()
    }

    /// Pays for one retry.
    fn spend(&self, limits: &BudgetLimits) -> bool {
        let pay = |word: u64| {
            // Never behind what the word counted: who wrote it had read that number before, and this reading happens after.
            let begun = (self.requests.load(Relaxed) >> 32) as u32;
            let (counted, saved) = ((word >> 32) as u32, word & 0xffff_ffff);
            let earned = u64::from(begun.wrapping_sub(counted)) * u64::from(limits.percent.min(100));
            let kept = (saved + earned).min(u64::from(limits.saved_max.min(u32::MAX / RETRY as u32)) * RETRY);
            Some(u64::from(begun) << 32 | kept.checked_sub(RETRY)?)
        };
        self.saved.fetch_update(AcqRel, Acquire, pay).is_ok()
    }

    /// Takes what the floor grants; it saves nothing up.
    fn take_floor(&self, limits: &BudgetLimits, now: Duration) -> bool {
        if limits.floor_per_second == 0 {
            return false;
        }
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let pause = NANOS_PER_SECOND / u64::from(limits.floor_per_second);
        let take = |next: u64| (now >= next).then(|| now.saturating_add(pause));
        self.floor_next_nanos.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if !self.is_floor {
            self.budget.retries.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
