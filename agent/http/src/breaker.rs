//! The circuit breaker: how much of an upstream may be in use at once, per Service and per endpoint.
//!
//! A place is taken before the thing is made (a connection, a place in the queue for one, a request, a retry) and given back when its
//! [`Permit`] is dropped. There are no states to go through: the circuit is open exactly while all places are taken. What finds none is
//! answered at once with [`Reason::UpstreamOverflow`], so that a slow upstream costs its callers an error instead of this agent its memory.
//!
//! Shared by the workers with plain atomics; a limit is never exceeded, and no place is refused that was free.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

pub use heddle_model::traffic::{CircuitLimits, Limits};
use heddle_telemetry::Reason;

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Resource {
    /// Connections, open or being opened.
    Connections,
    /// Requests that wait for a connection or a stream.
    Pending,
    /// Requests in flight.
    Requests,
    /// Retries in flight.
    Retries,
}

/// The places in use of one Service or one endpoint, shared by all workers.
#[derive(Debug, Default)]
pub struct Breaker {
    used: [AtomicU32; Resource::ALL.len()],
    overflowed: [AtomicU64; Resource::ALL.len()],
}

/// One place, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    resource: Resource,
}

/// The breakers on the way to one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Circuit<'a> {
    /// The Service's.
    pub service: &'a Arc<Breaker>,
    /// The endpoint's.
    pub endpoint: &'a Arc<Breaker>,
}

/// A place at the Service and one at the endpoint.
#[derive(Debug)]
pub struct CircuitPermit {
    _service: Permit,
    _endpoint: Permit,
}

/// A place that was not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{scope} has no more {resource}")]
pub struct Overflow {
    /// Whose limit.
    pub scope: Scope,
    /// Which limit.
    pub resource: Resource,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The whole Service's: another endpoint has no place either.
    Service,
    /// One endpoint's: another may have room.
    Endpoint,
}

/// The use of one resource at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Places taken.
    pub used: u32,
    /// Times that none was free.
    pub overflowed: u64,
}

impl Circuit<'_> {
    /// Takes a place at the Service and one at the endpoint, or neither.
    ///
    /// # Errors
    /// [`Overflow`] with the limit that is reached, the Service's before the endpoint's.
    pub fn take(&self, resource: Resource, limits: &CircuitLimits) -> Result<CircuitPermit, Overflow> {
        let full = |scope| Overflow { scope, resource };
        let service = self.service.take(resource, &limits.service).ok_or(full(Scope::Service))?;
        let endpoint = self.endpoint.take(resource, &limits.endpoint).ok_or(full(Scope::Endpoint))?;
        Ok(CircuitPermit { _service: service, _endpoint: endpoint })
    }
}

impl Breaker {
    /// Takes a place, or counts that there was none. Limits come with each call, so a change holds at once; a lower one takes back no
    /// place that is in use.
    #[must_use]
    pub fn take(self: &Arc<Self>, resource: Resource, limits: &Limits) -> Option<Permit> {
        let max = limit(limits, resource);
        let place = |used: u32| (used < max).then(|| used + 1);
        if self.used[resource as usize].fetch_update(Relaxed, Relaxed, place).is_err() {
            self.overflowed[resource as usize].fetch_add(1, Relaxed);
            return None;
        }
        Some(Permit { breaker: Arc::clone(self), resource })
    }

    /// Whether all places are taken at this moment.
    #[must_use]
    pub fn is_open(&self, resource: Resource, limits: &Limits) -> bool {
        self.usage(resource).used >= limit(limits, resource)
    }

    /// The use of one resource.
    #[must_use]
    pub fn usage(&self, resource: Resource) -> Usage {
        Usage {
            used: self.used[resource as usize].load(Relaxed),
            overflowed: self.overflowed[resource as usize].load(Relaxed),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breaker.used[self.resource as usize].fetch_sub(1, Relaxed);
    }
}

/// The limit of one resource.
#[must_use]
pub const fn limit(limits: &Limits, resource: Resource) -> u32 {
    match resource {
        Resource::Connections => limits.connections_max,
        Resource::Pending => limits.pending_max,
        Resource::Requests => limits.requests_max,
        Resource::Retries => match limits.retries_max {
            Some(max) => max,
            None => u32::MAX,
        },
    }
}

impl Overflow {
    /// The reason for log, metrics and answer.
    #[must_use]
    pub const fn reason(self) -> Reason {
        Reason::UpstreamOverflow
    }
}

impl Resource {
    /// Every resource, in declaration order: `ALL[r as usize] == r`.
    pub const ALL: &'static [Self] = &[Self::Connections, Self::Pending, Self::Requests, Self::Retries];

    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::Endpoint => "endpoint",
        })
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
