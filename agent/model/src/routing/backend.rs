//! Why a backend of a rule cannot be used.

use crate::resolve::Refusal;

/// Why a backend of a rule cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendFailure {
    /// No such Service, or it has no such port: 500, as the Gateway API says.
    NotFound,
    /// It exists, and has nothing to offer: 503.
    Refused(Refusal),
}
