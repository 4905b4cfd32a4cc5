//! The one place where this room reads clocks; everything that decides takes the time as an argument.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::time::Instant;

use crate::rotation::Now;

/// Both clocks.
pub trait Clock: Send + Sync + fmt::Debug {
    /// What they show.
    fn now(&self) -> Now;
}

/// The machine's.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { monotonic: self.origin.elapsed(), unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }
}

/// A clock as rustls asks for it.
#[derive(Debug)]
pub(crate) struct TlsTime(pub(crate) Arc<dyn Clock>);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.now().unix.as_secs())))
    }
}
