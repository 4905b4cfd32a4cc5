//! Settings and named limits of the data plane.

use std::sync::Arc;
use std::time::Duration;

/// Settings fixed at start; what may change while running comes with the snapshot.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of worker threads, at least 1.
    pub workers: usize,
    /// This node's name, for the access record.
    pub node: Arc<str>,
    /// How long one attempt to connect to an endpoint or pod may take (FEATURES E3: 1 s).
    pub connect_timeout: Duration,
    /// The same for addresses outside the mesh, which may be far away and slow: three SYN transmissions (0, 1, 3 s) and
    /// their answers fit.
    pub connect_timeout_external: Duration,
    /// Attempts to connect for one connection, the first included (FEATURES E1: two retries).
    pub connect_attempts_max: u32,
    /// How long to wait for a socket in the pod's network namespace when the pool is empty.
    pub socket_wait: Duration,
    /// Remembered clients of Services with `sessionAffinity: ClientIP`, per agent. Beyond it the oldest of a shard goes.
    pub affinity_entries_max: usize,
    /// How long a client may take for a request's head, from its first byte, in whole seconds; beyond: 408.
    pub request_head_timeout: Duration,
    /// How long a request's body may stand still while nothing else happens, in whole seconds; beyond: 408.
    pub request_body_idle_timeout: Duration,
    /// How long a client's HTTP connection may be without a request, in whole seconds, before it is closed cleanly (HTTP/2: with
    /// GOAWAY). Envoy's and Istio's default.
    pub client_idle_timeout: Duration,
    /// How long an idle upstream connection is kept, in whole seconds.
    pub pool_idle_timeout: Duration,
    /// How long an HTTP/2 server with streams open may say nothing, in whole seconds, before it is asked by a PING whether it is
    /// there. One that vanished would otherwise be found by TCP, after a quarter of an hour.
    pub upstream_silence_max: Duration,
    /// How long it may take to answer that, in whole seconds; beyond: its streams fail with `upstream_lost`.
    pub upstream_ping_timeout: Duration,
    /// How long a peer of the mesh may take to prove who it is, from its connection, or where it may be somebody else from its ClientHello.
    pub mesh_handshake_timeout: Duration,
    /// Of that, from when it has one of the turns: a crowd that begins and does not go on gives way to others.
    pub mesh_handshake_turn_timeout: Duration,
    /// How long a connection of the mesh takes new streams, in whole seconds, before another takes its place; half of it at least, so that not all
    /// do at once. Its peer then proves anew who it is. One that was accepted is told to leave behind it, a quarter later at most.
    pub mesh_connection_age_max: Duration,
    /// How long what is open goes on, in whole seconds, whose peer no root vouches for any more; it gets no company.
    pub mesh_withdrawn_grace: Duration,
    /// Permits dialling loopback addresses. False in an agent (DESIGN §9); tests on one machine have nothing else.
    pub dial_loopback: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 1,
            node: "".into(),
            connect_timeout: Duration::from_secs(1),
            connect_timeout_external: Duration::from_secs(10),
            connect_attempts_max: 3,
            socket_wait: Duration::from_secs(1),
            affinity_entries_max: 65_536,
            request_head_timeout: Duration::from_secs(10),
            request_body_idle_timeout: Duration::from_secs(60),
            client_idle_timeout: Duration::from_secs(3600),
            pool_idle_timeout: Duration::from_secs(60),
            upstream_silence_max: Duration::from_secs(15),
            upstream_ping_timeout: Duration::from_secs(15),
            mesh_handshake_timeout: Duration::from_secs(10),
            mesh_handshake_turn_timeout: Duration::from_secs(3),
            mesh_connection_age_max: Duration::from_secs(3600),
            mesh_withdrawn_grace: Duration::from_secs(3600),
            dial_loopback: false,
        }
    }
}

/// Ports of the agent inside each pod: outbound, inbound, HBONE (DESIGN §10). No application may address them.
pub(crate) const AGENT_PORTS: [u16; 3] = [15001, 15006, 15008];
/// Connections one listener accepts before its task goes to the back of the worker's queue, so that a pod that opens
/// connections as fast as it can does not keep another pod's listener waiting.
pub(crate) const ACCEPT_BURST_MAX: usize = 16;
/// First and longest pause of a listener when the process is out of file descriptors.
pub(crate) const ACCEPT_BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Bytes one connection may move before its task goes to the back of the worker's queue.
pub(crate) const COPY_BURST_BYTES_MAX: usize = 512 << 10;
/// The same on a worker with many connections.
pub(crate) const COPY_BURST_BYTES_MIN: usize = 16 << 10;
/// Bytes all connections of a worker together may move in one round, about: a few milliseconds of copying.
pub(crate) const COPY_ROUND_BYTES: usize = 4 << 20;
/// Commands waiting for one worker.
pub(crate) const COMMANDS_MAX: usize = 64;
/// TCP keepalive of both legs: a vanished peer is found after about idle + 9 × interval, so it does not hold budget for ever.
pub(crate) const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(30));
