//! Outbound: a pod called an address; the agent finds out what it means, picks an endpoint and calls that.

use std::rc::Rc;

use heddle_model::OriginalDst;
use heddle_telemetry::Reason;
use tokio::net::TcpStream;

use crate::config::AGENT_PORTS;
use crate::protocol;
use crate::registry::Conn;
use crate::route::Route;
use crate::task::Ended;
use crate::worker::Current;

/// Carries one outbound connection from accept to end.
pub(crate) async fn run(conn: Rc<Conn>, original: OriginalDst, snapshot: Rc<Current>, downstream: TcpStream) -> Ended {
    if let Err(reason) = check_original(original) {
        return Ended::refused(reason, downstream);
    }
    let route = Route::of(&conn, original, &snapshot);
    conn.set_target(route.target());
    // A dial may wait; what it needs it has, and the rest of an old snapshot can go.
    drop(snapshot);
    protocol::run(&conn, route, downstream).await
}

/// Without a fresh record the kernel leaves the listener's own address: 15001 on loopback. No application port may be an
/// agent port in any other case either.
fn check_original(original: OriginalDst) -> Result<(), Reason> {
    if !AGENT_PORTS.contains(&original.port()) {
        return Ok(());
    }
    let own = original.get().ip().is_loopback() && original.port() == AGENT_PORTS[0];
    Err(if own { Reason::NoOriginalDestination } else { Reason::AgentPort })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_ports_are_no_destination() {
        for (addr, expected) in [
            ("127.0.0.1:15001", Err(Reason::NoOriginalDestination)),
            ("[::1]:15001", Err(Reason::NoOriginalDestination)),
            ("[::ffff:127.0.0.1]:15001", Err(Reason::NoOriginalDestination)),
            ("10.0.0.1:15001", Err(Reason::AgentPort)),
            ("10.0.0.1:15006", Err(Reason::AgentPort)),
            ("[fd00::1]:15008", Err(Reason::AgentPort)),
            ("10.0.0.1:15020", Ok(())),
        ] {
            assert_eq!(check_original(OriginalDst::new(addr.parse().unwrap())), expected, "{addr}");
        }
    }
}
