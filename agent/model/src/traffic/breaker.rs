//! The circuit breaker's limits.

/// The places of one Service, or of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. Default 1024.
    pub connections_max: u32,
    /// Requests that wait for a connection at once. Default 1024.
    pub pending_max: u32,
    /// Requests at once. Default 1024.
    pub requests_max: u32,
    /// Retries at once, beside what the [retry budget](super::BudgetLimits) grants. Default none: the budget alone bounds them.
    pub retries_max: Option<u32>,
}

/// The limits of a Service and of each of its endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitLimits {
    /// All endpoints together.
    pub service: Limits,
    /// Each endpoint.
    pub endpoint: Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections_max: 1024, pending_max: 1024, requests_max: 1024, retries_max: None }
    }
}
