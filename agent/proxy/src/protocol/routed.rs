//! Connections of bytes that a TCPRoute or TLSRoute leads to another Service than the one that was called.

use std::future::poll_fn;
use std::rc::Rc;

use heddle_http::detect::Protocol;
use heddle_model::routing::RouteKind;
use heddle_telemetry::{Direction, Reason};
use tokio::net::TcpStream;

use super::{opaque, poll_spoken, read_hello, watched_anew};
use crate::copy::Side;
use crate::registry::{Conn, State};
use crate::route::{self, Kind, Route};
use crate::task::Ended;

/// Whether the rules of the called port are about connections.
pub(super) fn is_routed(conn: &Conn, route: &Route) -> bool {
    let Kind::Service { table: Some(table), .. } = &route.kind else { return false };
    conn.direction == Direction::Outbound && table.has_bytes()
}

/// Carries such a connection to its end. Where rules read the server's name, the client's first bytes are waited for: nobody is dialled before.
pub(super) async fn run(conn: &Rc<Conn>, route: Rc<Route>, mut downstream: TcpStream) -> Ended {
    let Kind::Service { table: Some(table), .. } = &route.kind else {
        return Ended::refused(Reason::RouteNotFound, downstream);
    };
    if table.kind() == Some(RouteKind::Tls) {
        let mut seen = 0;
        match poll_fn(|cx| poll_spoken(cx, conn, &downstream, &mut seen)).await {
            Ok(protocol) => {
                if protocol == Protocol::Tls {
                    read_hello(conn, &downstream, None, true).await;
                }
                // Peeked at, and its readiness forgotten.
                match watched_anew(downstream) {
                    Ok(again) => downstream = again,
                    Err(reason) => return Ended::lost(reason),
                }
            }
            Err(error) => return Ended::refused(Side::Downstream.broke(&error), downstream),
        }
    }
    let sni = conn.sni();
    let to = match table.pick_bytes(sni.as_deref()) {
        None => Err(Reason::RouteNotFound),
        Some(rule) if rule.invalid.is_some() => Err(Reason::RouteInvalid),
        Some(rule) => match rule.draw(fastrand::u64(..)) {
            Some(backend) => route.backend(conn, &backend.to),
            None => Err(Reason::BackendInvalid),
        },
    };
    match to {
        Ok(to) => {
            conn.set_target(to.target());
            conn.state.set(State::Dialling);
            let dialled = Box::pin(route::connect(conn, &to, &downstream)).await;
            opaque(conn, downstream, dialled).await
        }
        Err(reason) => Ended::refused(reason, downstream),
    }
}
