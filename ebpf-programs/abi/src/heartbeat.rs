//! The agent's sign of life, and when the kernel believes it (DESIGN §4, failure policy).

/// No beat for this long: the agent counts as down.
pub const THRESHOLD_NS: i64 = 5_000_000_000;
/// Beats in a row before an agent that was down counts as up again.
pub const GOOD_BEATS: u32 = 2;

/// One beat, written by the agent, read by every hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Heartbeat {
    /// CLOCK_MONOTONIC in nanoseconds at the last beat.
    pub stamp_ns: u64,
    /// Beats since the agent was last down, saturating.
    pub streak: u32,
    /// Zero.
    pub reserved: u32,
}

impl Heartbeat {
    /// Whether the agent counts as up at `now_ns`. Signed: a stamp from the future is young, not ancient.
    #[must_use]
    #[inline(always)]
    pub const fn is_alive(&self, now_ns: u64) -> bool {
        self.is_fresh(now_ns) && self.streak >= GOOD_BEATS
    }

    /// The beat to write at `now_ns` after this one. A new agent that takes over in time continues the streak.
    #[must_use]
    pub const fn next(&self, now_ns: u64) -> Self {
        let streak = if self.is_fresh(now_ns) && self.streak > 0 { self.streak.saturating_add(1) } else { 1 };
        Self { stamp_ns: now_ns, streak, reserved: 0 }
    }

    #[inline(always)]
    const fn is_fresh(&self, now_ns: u64) -> bool {
        (now_ns.wrapping_sub(self.stamp_ns) as i64) <= THRESHOLD_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn up_only_after_two_good_beats_and_down_after_five_seconds() {
        let first = Heartbeat::default().next(100 * SECOND);
        assert!(!first.is_alive(100 * SECOND), "one beat is not enough");
        let second = first.next(101 * SECOND);
        assert!(second.is_alive(101 * SECOND));
        assert!(second.is_alive(106 * SECOND), "exactly at the threshold still up");
        assert!(!second.is_alive(106 * SECOND + 1));
    }

    #[test]
    fn a_successor_within_the_threshold_continues_the_streak() {
        let old = Heartbeat { stamp_ns: 100 * SECOND, streak: 40, reserved: 0 };
        assert!(old.next(104 * SECOND).is_alive(104 * SECOND));
        assert!(!old.next(106 * SECOND).is_alive(106 * SECOND), "too late: starts again at one");
    }

    #[test]
    fn a_stamp_from_the_future_does_not_wrap() {
        let beat = Heartbeat { stamp_ns: 100 * SECOND, streak: 2, reserved: 0 };
        assert!(beat.is_alive(99 * SECOND));
    }

    #[test]
    fn nothing_written_is_down() {
        assert!(!Heartbeat::default().is_alive(SECOND), "even in the first seconds after boot");
        assert!(!Heartbeat::default().is_alive(60 * SECOND));
    }

    #[test]
    fn the_streak_saturates() {
        let beat = Heartbeat { stamp_ns: 1, streak: u32::MAX, reserved: 0 };
        assert_eq!(beat.next(2).streak, u32::MAX);
    }
}
