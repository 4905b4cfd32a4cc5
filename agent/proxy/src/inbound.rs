//! Inbound: someone called the pod; the agent calls the application at the very same address, shown as that someone.

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

/// Carries one inbound connection from accept to end.
pub(crate) async fn run(conn: Rc<Conn>, original: OriginalDst, snapshot: Rc<Current>, downstream: TcpStream) -> Ended {
    let route = Route::of(&conn, original, &snapshot);
    conn.set_target(route.target());
    if AGENT_PORTS.contains(&original.port()) {
        return Ended::refused(Reason::AgentPort, downstream);
    }
    drop(snapshot);
    protocol::run(&conn, route, downstream).await
}
