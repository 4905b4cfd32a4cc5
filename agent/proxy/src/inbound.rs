//! Inbound: someone called the pod; the agent calls the application at the very same address, shown as that someone.

use std::rc::Rc;
use std::time::Duration;

use heddle_identity::Alpn;
use heddle_model::{MtlsMode, OriginalDst, Transport};
use heddle_telemetry::Reason;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::config::AGENT_PORTS;
use crate::copy::Side;
use crate::mesh;
use crate::mesh::greeting::{self, Greeting};
use crate::protocol;
use crate::registry::Conn;
use crate::route::Route;
use crate::task::Ended;
use crate::worker::Current;

/// How long a pod of the mesh may take to begin its handshake before the application is called as if it had none. Its greeting may be lost on
/// the way, twice (0.2 and 0.6 s); what it says in plain text instead decides at once. Only one that waits in plain text for the server's
/// first word pays, which happens where the caller goes round its own agent.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

/// Carries one inbound connection from accept to end.
pub(crate) async fn run(conn: Rc<Conn>, original: OriginalDst, snapshot: Rc<Current>, downstream: TcpStream) -> Ended {
    let route = Route::of(&conn, original, &snapshot);
    conn.set_target(route.target());
    if AGENT_PORTS.contains(&original.port()) {
        return Ended::refused(Reason::AgentPort, downstream);
    }
    let mode = conn.mode(&snapshot);
    // A peer of the mesh greets at once. Where it is not known whether one comes, the application is called meanwhile.
    let is_peer = conn.source.as_ref().is_some_and(|source| source.transport == Transport::Heddle);
    let handshake_timeout = conn.worker.config.mesh_handshake_timeout;
    let patience = match mode {
        // Nobody can prove anything to an agent without identities: what is STRICT is closed.
        _ if conn.worker.tls.is_none() => Duration::ZERO,
        MtlsMode::Strict => handshake_timeout,
        // Nobody is expected to.
        MtlsMode::Disabled => Duration::ZERO,
        MtlsMode::Permissive if is_peer => GREETING_TIMEOUT,
        MtlsMode::Permissive => Duration::ZERO,
    };
    let now = Instant::now();
    drop(snapshot);
    let mut downstream = downstream;
    if !patience.is_zero() {
        let heard = match Box::pin(greeting::listen(&conn, &downstream, now + patience)).await {
            Ok(heard) => heard,
            Err(error) => return Ended::refused(Side::Downstream.broke(&error), downstream),
        };
        match heard.greeting {
            // What it took to greet is part of its time.
            Greeting::Ours => return serve(conn, downstream, heard.is_unwatched, now + handshake_timeout).await,
            Greeting::Other if mode == MtlsMode::Strict => {
                return Ended::refused(Reason::PlaintextRefused, downstream);
            }
            Greeting::Other => {}
        }
        if heard.is_unwatched {
            match protocol::watched_anew(downstream) {
                Ok(again) => downstream = again,
                Err(reason) => return Ended::lost(reason),
            }
        }
    }
    conn.is_plaintext.set(true);
    // It may have become STRICT while it was listened to.
    if conn.mode(&conn.worker.refresh()) == MtlsMode::Strict {
        return Ended::refused(Reason::PlaintextRefused, downstream);
    }
    protocol::run(&conn, route, downstream).await
}

/// Serves a peer of the mesh whose greeting was peeked at only now.
pub(crate) async fn greeted(conn: Rc<Conn>, downstream: TcpStream, is_unwatched: bool) -> Ended {
    let until = Instant::now() + conn.worker.config.mesh_handshake_timeout;
    serve(conn, downstream, is_unwatched, until).await
}

async fn serve(conn: Rc<Conn>, downstream: TcpStream, is_unwatched: bool, until: Instant) -> Ended {
    conn.is_plaintext.set(false);
    let watched = if is_unwatched { protocol::watched_anew(downstream) } else { Ok(downstream) };
    let downstream = match watched {
        Ok(downstream) => downstream,
        Err(reason) => return Ended::lost(reason),
    };
    mesh::accept::run(conn, downstream, Alpn::Heddle, until).await
}
