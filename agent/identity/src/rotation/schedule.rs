//! The numbers of rotation: half-life, jitter, back-off.

use std::time::Duration;

use super::Now;
use crate::certificate::Validity;
use crate::issuer::Retry;

/// Longest Retry-After that is obeyed to the letter.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// What rotation goes by. The default is what runs in production.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Requests open at the issuer at once.
    pub requests_max: usize,
    /// The share of a certificate's lifetime after which it is renewed.
    pub renew_at: f64,
    /// Renewal comes earlier or later by up to this share of that time.
    pub renew_jitter: f64,
    /// Shortest time between a certificate's issue and its renewal, whatever its lifetime.
    pub renew_in_min: Duration,
    /// Renewals that are overdue when certificates are taken over from a former agent are spread over this time.
    pub restore_spread: Duration,
    /// First wait after a failure; it doubles with each.
    pub backoff_min: Duration,
    /// Longest wait after a failure.
    pub backoff_max: Duration,
    /// When the issuer works again, those who wait for that are spread over this time.
    pub recovery_spread: Duration,
    /// How often the clocks are compared at least.
    pub clock_check: Duration,
    /// How far they may move apart before everything is timed anew.
    pub clock_drift_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            requests_max: 8,
            renew_at: 0.5,
            renew_jitter: 0.1,
            renew_in_min: Duration::from_secs(1),
            restore_spread: Duration::from_secs(30),
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(150),
            recovery_spread: Duration::from_secs(5),
            clock_check: Duration::from_secs(30),
            clock_drift_max: Duration::from_secs(1),
        }
    }
}

impl Settings {
    /// Of a certificate just issued: a share of what is left of it. (Its beginning says little: issuers date it back.)
    pub(super) fn renew_in(&self, rng: &mut fastrand::Rng, now: Now, validity: Validity) -> Duration {
        let start = now.unix.max(validity.not_before);
        let share = self.renew_share(rng);
        (validity.not_after.saturating_sub(start).mul_f64(share) + start.saturating_sub(now.unix))
            .max(self.renew_in_min)
    }

    /// Of one taken over: the same share of its whole lifetime; what is overdue is spread, so that a restart is no storm.
    pub(super) fn renew_in_restored(&self, rng: &mut fastrand::Rng, now: Now, validity: Validity) -> Duration {
        let lifetime = validity.not_after.saturating_sub(validity.not_before);
        let due = validity.not_before + lifetime.mul_f64(self.renew_share(rng));
        let left = validity.not_after.saturating_sub(now.unix);
        let spread = self.restore_spread.min(left / 4).mul_f64(rng.f64());
        due.saturating_sub(now.unix).max(spread)
    }

    fn renew_share(&self, rng: &mut fastrand::Rng) -> f64 {
        self.renew_at * (1.0 + self.renew_jitter * (2.0 * rng.f64() - 1.0))
    }

    /// How long to wait after the `failures`-th failure in a row; `left` is what remains of a certificate still held.
    pub(super) fn backoff(
        &self,
        rng: &mut fastrand::Rng,
        failures: u32,
        retry: Retry,
        left: Option<Duration>,
    ) -> Duration {
        // Between half and all of it: two nodes that failed together do not return together.
        let mut jittered = |wait: Duration| wait.mul_f64(0.5 + 0.5 * rng.f64());
        let doubled = self.backoff_min * 2_u32.saturating_pow(failures.min(31));
        let wait = match retry {
            Retry::Hopeless => return jittered(self.backoff_max).max(self.backoff_min),
            Retry::After(wait) => {
                let wait = wait.min(RETRY_AFTER_MAX);
                return wait + jittered(wait / 10) + jittered(doubled.min(self.backoff_min * 2));
            }
            Retry::Backoff => jittered(doubled.min(self.backoff_max)),
        };
        // Closer to the end of what is held, more often: halving what is left costs a handful of attempts more in all.
        let wait = match left {
            Some(left) if left > Duration::ZERO => wait.min(left / 2),
            _ => wait,
        };
        wait.max(self.backoff_min)
    }
}
