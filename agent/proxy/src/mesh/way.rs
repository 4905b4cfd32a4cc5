//! By what an endpoint is reached, and who must be there.

use std::rc::Rc;
use std::sync::Arc;

use heddle_identity::{Alpn, ExpectedIds};
use heddle_model::{MeshConfig, PodUid, SameNode, Transport, Workload};
use heddle_telemetry::{Direction, Via};

use crate::budget::Pod;
use crate::registry::Conn;

/// The port of HBONE.
const HBONE_PORT: u16 = 15008;

/// A pod of the mesh that is called: which, and who must be there. Its address may have been another's, and will be.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Called(Rc<(PodUid, ExpectedIds)>);

impl Called {
    pub(crate) fn new(pod: &PodUid, expected: ExpectedIds) -> Self {
        Self(Rc::new((pod.clone(), expected)))
    }
}

/// By what an address is reached.
#[derive(Clone)]
pub(crate) enum Way {
    /// As it is.
    Direct,
    /// The application in another pod of this node, from that pod's network namespace.
    Handover(Rc<Pod>),
    /// TLS with ALPN `heddle/h2`, on the port itself.
    Heddle(Called),
    /// HBONE.
    Hbone(Called),
}

/// By what an agent with identities reaches a port of another pod, which `is_here` if this agent serves both.
pub(crate) fn via(workload: &Workload, port: u16, mesh: &MeshConfig, is_here: bool) -> Via {
    if workload.capture.exclude_inbound_ports.contains(&port) {
        return Via::Plain;
    }
    match workload.transport_to(port, mesh) {
        Transport::Plain => Via::Plain,
        Transport::Heddle if is_here && mesh.same_node != SameNode::Wire => Via::Handover,
        Transport::Heddle => Via::Heddle,
        Transport::Hbone => Via::Hbone,
    }
}

impl Way {
    /// The way from the pod of `conn` to a port of a workload.
    pub(crate) fn to(conn: &Conn, workload: Option<&Arc<Workload>>, addr: std::net::SocketAddr) -> Self {
        let (Some(tls), Some(workload), Direction::Outbound) = (&conn.worker.tls, workload, conn.direction) else {
            return Self::Direct;
        };
        // Its own calls to itself never leave the pod.
        if conn.pod.has_address(addr.ip()) {
            return Self::Direct;
        }
        let snapshot = conn.worker.snapshot();
        let pods = conn.worker.pods.borrow();
        let here = pods.get(&workload.uid).filter(|_| conn.pod.identity.is_some());
        let called = || tls.called(workload, &snapshot.mesh.trust_domain);
        match (via(workload, addr.port(), &snapshot.mesh, here.is_some()), here) {
            (Via::Plain, _) => Self::Direct,
            (Via::Handover, Some(pod)) => Self::Handover(pod.clone()),
            (Via::Heddle | Via::Handover, _) => Self::Heddle(called()),
            (Via::Hbone, _) => Self::Hbone(called()),
        }
    }

    /// What is spoken inside TLS and who must be there; none without TLS.
    pub(crate) fn tls(&self) -> Option<(Alpn, &ExpectedIds)> {
        match self {
            Self::Direct | Self::Handover(_) => None,
            Self::Heddle(called) => Some((Alpn::Heddle, &called.0.1)),
            Self::Hbone(called) => Some((Alpn::Hbone, &called.0.1)),
        }
    }

    /// The pod that TLS is spoken with.
    pub(crate) fn called(&self) -> Option<&Called> {
        match self {
            Self::Direct | Self::Handover(_) => None,
            Self::Heddle(called) | Self::Hbone(called) => Some(called),
        }
    }

    /// The same for log and metrics.
    pub(crate) fn via(&self) -> Via {
        match self {
            Self::Direct => Via::Plain,
            Self::Handover(_) => Via::Handover,
            Self::Heddle(_) => Via::Heddle,
            Self::Hbone(_) => Via::Hbone,
        }
    }

    /// The address that is connected to for `addr`.
    pub(crate) fn address(&self, addr: std::net::SocketAddr) -> std::net::SocketAddr {
        match self {
            Self::Hbone(_) => std::net::SocketAddr::new(addr.ip(), HBONE_PORT),
            Self::Direct | Self::Handover(_) | Self::Heddle(_) => addr,
        }
    }
}
