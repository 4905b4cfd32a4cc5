//! The accept loop of one listener: from the kernel's queue to a task of its own, or to a refusal, without reading a byte.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use heddle_identity::Alpn;
use heddle_model::{ClientAddr, OriginalDst};
use heddle_telemetry::proxy::AcceptError;
use heddle_telemetry::{Direction, Reason};
use tokio::net::{TcpListener, TcpStream};

use crate::budget::Pod;
use crate::config::{ACCEPT_BACKOFF, ACCEPT_BURST_MAX};
use crate::registry::Conn;
use crate::task::{ConnectionTask, refuse};
use crate::worker::Worker;
use crate::{inbound, mesh, outbound};

/// The listeners of a pod (DESIGN §10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// 15001.
    Outbound,
    /// 15006.
    Inbound,
    /// 15008.
    Hbone,
}

impl Port {
    fn direction(self) -> Direction {
        match self {
            Self::Outbound => Direction::Outbound,
            Self::Inbound | Self::Hbone => Direction::Inbound,
        }
    }
}

/// Accepts until the task is aborted or the listener is shut down.
pub(crate) async fn run(worker: Rc<Worker>, pod: Rc<Pod>, port: Port, listener: TcpListener) {
    let mut backoff = ACCEPT_BACKOFF.0;
    let mut burst = 0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                backoff = ACCEPT_BACKOFF.0;
                start(&worker, &pod, port, stream, ClientAddr::new(peer));
                burst += 1;
                if burst >= ACCEPT_BURST_MAX {
                    burst = 0;
                    tokio::task::yield_now().await;
                }
            }
            // EINVAL: it does not listen any more, because the pod is being released.
            Err(error) if error.raw_os_error() == Some(22) => return,
            Err(error) => {
                let kind = classify(&error);
                worker.metrics().count_accept_error(kind);
                if kind != AcceptError::Aborted {
                    tracing::warn!(pod = %pod.uid(), direction = port.direction().as_str(), %error, "accept failed, pausing {backoff:?}");
                    tokio::time::sleep(jittered(backoff)).await;
                    backoff = (backoff * 2).min(ACCEPT_BACKOFF.1);
                }
            }
        }
    }
}

/// Record, registry entry, budget; then the task, or the reset.
fn start(worker: &Rc<Worker>, pod: &Rc<Pod>, port: Port, stream: TcpStream, peer: ClientAddr) {
    let (snapshot, direction) = (worker.refresh(), port.direction());
    let original = stream.local_addr().ok().map(OriginalDst::new);
    let own = pod.workload(&snapshot);
    let (client, source) = match direction {
        Direction::Outbound => (pod.client(peer.get()), own),
        Direction::Inbound => (peer, snapshot.workload_by_ip(peer.get().ip()).cloned()),
    };
    let conn = Conn::enter(worker, pod, direction, client, original, source);
    if let Err(reason) = conn.take_budget() {
        return refuse(&conn, stream, reason);
    }
    let Some(original) = original else { return refuse(&conn, stream, Reason::NoOriginalDestination) };
    // The local set owns the task, the registry can list and end it, the drain waits for it.
    match port {
        Port::Outbound => {
            let run = outbound::run(conn.clone(), original, snapshot, stream);
            tokio::task::spawn_local(ConnectionTask::new(conn, run));
        }
        Port::Inbound => {
            let run = inbound::run(conn.clone(), original, snapshot, stream);
            tokio::task::spawn_local(ConnectionTask::new(conn, run));
        }
        Port::Hbone => {
            let until = tokio::time::Instant::now() + worker.config.mesh_handshake_timeout;
            let run = mesh::accept::run(conn.clone(), stream, Alpn::Hbone, until);
            tokio::task::spawn_local(ConnectionTask::new(conn, run));
        }
    }
}

fn classify(error: &io::Error) -> AcceptError {
    // Numbers of Linux: ENFILE 23, EMFILE 24, ENOBUFS 105, ENOMEM 12.
    match error.raw_os_error() {
        Some(23 | 24 | 105 | 12) => AcceptError::Exhausted,
        _ if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
            AcceptError::Aborted
        }
        _ => AcceptError::Other,
    }
}

/// Listeners that ran dry together should not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhaustion_is_told_from_a_client_that_left() {
        for (errno, kind) in [
            (24, AcceptError::Exhausted),
            (23, AcceptError::Exhausted),
            (105, AcceptError::Exhausted),
            (103, AcceptError::Aborted),
            (1, AcceptError::Other),
        ] {
            assert_eq!(classify(&io::Error::from_raw_os_error(errno)), kind, "errno {errno}");
        }
    }
}
