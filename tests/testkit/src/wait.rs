//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Pause between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds; the error says `what` was waited for.
///
/// # Errors
/// The condition did not hold within `timeout`.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    wait_for(what, timeout, || Ok(condition().then_some(())))
}

/// Waits until `probe` yields a value.
///
/// # Errors
/// No value within `timeout`, or the probe failed for good.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        // The clock is read first: a slow probe gets its last chance after the deadline.
        let late = start.elapsed() >= timeout;
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if late {
            bail!("waited {timeout:?} in vain: {what}");
        }
        std::thread::sleep(INTERVAL);
    }
}
