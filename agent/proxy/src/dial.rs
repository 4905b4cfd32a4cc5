//! Connecting upstream: one attempt, bounded in time, given up when the downstream is reset, with the failure named.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use heddle_model::Family;
use heddle_telemetry::Reason;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::budget::Pod;
use crate::config::{Config, KEEPALIVE};
use crate::copy;
use crate::mesh::way::Way;
use crate::registry::Conn;

/// Where to connect, and how.
#[derive(Clone)]
pub(crate) struct Hop {
    pub(crate) addr: SocketAddr,
    /// The application is in this very pod: tell the kernel who the client is.
    pub(crate) publish: bool,
    /// Who named the address.
    pub(crate) named_by: NamedBy,
    pub(crate) timeout: Duration,
    /// By what it is reached.
    pub(crate) way: Way,
}

/// Who named the address that is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// The application itself connected to it.
    Application,
    /// An object did (an EndpointSlice): whoever may write one must not reach what is local to a node through other pods.
    Object,
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    /// Whether the same address might answer the next time (no answer, as opposed to a refusal).
    pub(crate) retryable: bool,
    /// The agent of the called side said so, of its own side.
    pub(crate) told: bool,
}

impl Failure {
    pub(crate) const fn last(reason: Reason) -> Self {
        Self { reason, retryable: false, told: false }
    }

    pub(crate) const fn retryable(reason: Reason) -> Self {
        Self { reason, retryable: true, told: false }
    }

    pub(crate) const fn told(reason: Reason) -> Self {
        Self { reason, retryable: false, told: true }
    }

    /// Whether the trouble is on this side, so that another endpoint would not help.
    pub(crate) const fn is_ours(self) -> bool {
        !self.told
            && matches!(
                self.reason,
                Reason::DownstreamReset
                    | Reason::SocketUnavailable
                    | Reason::ClientNotPublished
                    | Reason::TlsNoOwnCertificate
                    | Reason::PodConnectionsMax
                    | Reason::PodBufferedBytesMax
            )
    }
}

/// Of what was not there in time.
impl From<Reason> for Failure {
    fn from(late: Reason) -> Self {
        Self::retryable(late)
    }
}

/// How often an address that has no alternative is tried.
pub(crate) fn attempts_max(conn: &Conn, hop: &Hop) -> u32 {
    let config = &conn.worker.config;
    // An external address has a timeout long enough for its own retransmissions.
    if hop.timeout > config.connect_timeout { 1 } else { config.connect_attempts_max }
}

/// One attempt. A downstream that is reset meanwhile ends it; one that only ended its own direction does not: a client may
/// send its request, close that direction and wait for the answer.
pub(crate) async fn once(conn: &Rc<Conn>, downstream: &TcpStream, hop: &Hop) -> Result<TcpStream, Failure> {
    conn.attempts.set(conn.attempts.get() + 1);
    let result = tokio::select! {
        biased;
        _ = copy::watch(downstream) => Err(Failure::last(Reason::DownstreamReset)),
        result = connect(conn, hop) => result,
    };
    if let Err(failure) = &result
        && failure.reason != Reason::DownstreamReset
    {
        conn.worker.metrics().count_dial_failure(failure.reason);
    }
    result
}

/// One attempt on behalf of a stream: its connection's end drops it.
pub(crate) async fn unwatched(conn: &Rc<Conn>, hop: &Hop) -> Result<TcpStream, Failure> {
    let result = connect(conn, hop).await;
    if let Err(failure) = &result {
        conn.worker.metrics().count_dial_failure(failure.reason);
    }
    result
}

async fn connect(conn: &Rc<Conn>, hop: &Hop) -> Result<TcpStream, Failure> {
    if !may_dial(hop.addr.ip(), hop.named_by, &conn.worker.config) {
        return Err(Failure::last(Reason::ForbiddenAddress));
    }
    let addr = hop.way.address(hop.addr);
    // From the namespace of the pod that calls, or of the one that is handed the call.
    let pod = if let Way::Handover(pod) = &hop.way { pod } else { &conn.pod };
    let socket = socket(conn, pod, Family::of(addr.ip())).await?;
    if hop.publish
        && let Err(error) = conn.worker.sockets.publish_client(socket.as_fd(), conn.client)
    {
        tracing::warn!(pod = %conn.pod.uid(), client = %conn.client, %error, "cannot publish the true client, refusing");
        return Err(Failure::last(Reason::ClientNotPublished));
    }
    let socket = TcpSocket::from_std_stream(socket.into());
    let unset = |e: io::Error| failure(&e);
    socket.set_nodelay(true).map_err(unset)?;
    set_keepalive(&SockRef::from(&socket)).map_err(unset)?;
    let connected = timeout(hop.timeout, socket.connect(addr)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failure(&error)),
        Err(_) => return Err(Failure::retryable(Reason::UpstreamConnectTimeout)),
    };
    let local = stream.local_addr().map_err(unset)?;
    // The kernel's word for "the true client did not reach the accepting side": give up rather than show a wrong address.
    if local.port() == 0 {
        return Err(Failure::last(Reason::ClientNotPublished));
    }
    // On one host a SYN to a port where nobody listens can meet its own source port and connect the socket to itself.
    if local == addr {
        return Err(Failure::last(Reason::UpstreamConnectRefused));
    }
    Ok(stream)
}

/// A socket of the pod's network namespace: from the pool, else after a bounded wait.
async fn socket(conn: &Rc<Conn>, pod: &Pod, family: Family) -> Result<OwnedFd, Failure> {
    let (worker, pod) = (&conn.worker, pod.uid());
    if let Some(socket) = worker.sockets.try_take(worker.index, pod, family) {
        return Ok(socket);
    }
    let unavailable = Failure::last(Reason::SocketUnavailable);
    match timeout(worker.config.socket_wait, worker.sockets.take(worker.index, pod, family)).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => {
            tracing::warn!(%pod, %error, "no socket for an upstream connection");
            Err(unavailable)
        }
        Err(_) => {
            tracing::warn!(%pod, "no socket for an upstream connection within {:?}", worker.config.socket_wait);
            Err(unavailable)
        }
    }
}

/// DESIGN §9: from a pod's netns the agent never dials loopback (an application's own loopback calls are not captured), nor
/// link-local on behalf of an object. An application may call link-local services itself (node-local DNS, cloud metadata).
fn may_dial(ip: IpAddr, named_by: NamedBy, config: &Config) -> bool {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let no_host = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(no_host || (link_local && named_by == NamedBy::Object) || (ip.is_loopback() && !config.dial_loopback))
}

/// Keepalive towards a peer that may vanish.
pub(crate) fn set_keepalive(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1))
}

fn failure(error: &io::Error) -> Failure {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, TimedOut};
    match error.kind() {
        ConnectionRefused => Failure::last(Reason::UpstreamConnectRefused),
        // A SYN is never answered so (that is ECONNREFUSED): it connected, and was reset before we looked.
        ConnectionReset => Failure::last(Reason::UpstreamReset),
        TimedOut => Failure::retryable(Reason::UpstreamConnectTimeout),
        _ => Failure::last(Reason::UpstreamUnreachable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_nobody_may_be_sent_to() {
        let agent = Config::default();
        let test = Config { dial_loopback: true, ..Config::default() };
        for (ip, application, object, in_test) in [
            ("10.0.0.1", true, true, true),
            ("fd00::1", true, true, true),
            ("127.0.0.1", false, false, true),
            ("::1", false, false, true),
            ("::ffff:127.0.0.1", false, false, true),
            ("169.254.169.254", true, false, true),
            ("fe80::1", true, false, true),
            ("0.0.0.0", false, false, false),
            ("::", false, false, false),
            ("224.0.0.1", false, false, false),
            ("255.255.255.255", false, false, false),
        ] {
            let ip = ip.parse().unwrap();
            let got = [(NamedBy::Application, &agent), (NamedBy::Object, &agent), (NamedBy::Application, &test)];
            assert_eq!(got.map(|(by, config)| may_dial(ip, by, config)), [application, object, in_test], "{ip}");
        }
    }

    #[test]
    fn what_the_called_side_lacks_another_may_have() {
        for reason in [Reason::PodConnectionsMax, Reason::SocketUnavailable, Reason::TlsNoOwnCertificate] {
            assert!(Failure::last(reason).is_ours() && !Failure::told(reason).is_ours(), "{reason:?}");
        }
    }

    #[test]
    fn only_silence_is_tried_again_at_the_same_address() {
        for (errno, reason, retryable) in [
            (111, Reason::UpstreamConnectRefused, false),
            (104, Reason::UpstreamReset, false),
            (110, Reason::UpstreamConnectTimeout, true),
            (113, Reason::UpstreamUnreachable, false),
            (101, Reason::UpstreamUnreachable, false),
        ] {
            assert_eq!(
                failure(&io::Error::from_raw_os_error(errno)),
                Failure { reason, retryable, told: false },
                "errno {errno}"
            );
        }
    }
}
