//! From an original destination to where the connection should go, with the reason.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::service::{Endpoint, Service};
use crate::workload::Workload;

/// Where an outbound connection should go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The address and port belong to a Service.
    Service {
        /// The Service.
        service: Arc<Service>,
        /// Index into `service.ports`.
        port_index: usize,
        /// The endpoints to choose from, best class only (see [`crate::balance::candidates`]); never empty.
        candidates: Candidates,
    },
    /// The address is a workload's own (headless Services, StatefulSet pods by name, direct calls).
    Workload {
        /// The pod.
        workload: Arc<Workload>,
        /// Where to dial: the original destination.
        addr: SocketAddr,
    },
    /// Nobody we know: passed through to the original address.
    External {
        /// Where to dial: the original destination.
        addr: SocketAddr,
    },
    /// The address and port belong to a Service that has nothing to offer there.
    Unserved {
        /// The Service.
        service: Arc<Service>,
        /// Index into `service.ports`.
        port_index: usize,
        /// Why not.
        refusal: Refusal,
    },
    /// Not allowed, or nobody's.
    Refused(Refusal),
}

impl Resolution {
    /// Why it leads nowhere, if so.
    #[must_use]
    pub const fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Unserved { refusal, .. } | Self::Refused(refusal) => Some(*refusal),
            Self::Service { .. } | Self::Workload { .. } | Self::External { .. } => None,
        }
    }
}

/// Indices into `service.ports[port_index].endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidates {
    /// The endpoints of the port.
    pub endpoints: Arc<[Endpoint]>,
    /// Indices of the eligible ones; never empty, ascending. `None` means all of them (the usual case, no allocation).
    pub eligible: Option<Arc<[u32]>>,
    /// Why these.
    pub class: Class,
}

/// What the eligible endpoints have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// They are ready.
    Ready,
    /// None is ready; these still serve while they terminate.
    ServingTerminating,
    /// The Service publishes addresses whether ready or not.
    Published,
}

/// Why a destination was refused. `telemetry::Reason` has the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The Service has no such port (and the address is a Service's alone).
    NoSuchServicePort,
    /// The Service port has no endpoint that is ready, nor one that still serves while terminating.
    NoReadyEndpoint,
    /// `internalTrafficPolicy: Local` and no endpoint on this node.
    NoLocalEndpoint,
    /// The mesh's outbound policy is Deny and the address belongs to nobody we know.
    OutboundDenied,
    /// The address belongs to a Service whose object was rejected; `heddle check` names the object and the field.
    InvalidObject,
}
