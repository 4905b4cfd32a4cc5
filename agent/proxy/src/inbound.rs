//! Inbound: someone called the pod; the agent calls the application at the very same address, shown as that someone.

use std::rc::Rc;

use heddle_model::OriginalDst;
use heddle_telemetry::Reason;
use tokio::net::TcpStream;

use crate::config::AGENT_PORTS;
use crate::protocol;
use crate::registry::{Conn, Target};
use crate::route::Route;
use crate::task::Ended;
use crate::worker::Current;

/// Carries one inbound connection from accept to end.
pub(crate) async fn run(conn: Rc<Conn>, original: OriginalDst, snapshot: Rc<Current>, downstream: TcpStream) -> Ended {
    let route = Route::inbound(&conn, original, &snapshot);
    let service = snapshot.service_of_endpoint(original.get()).map(|(service, port)| (service.clone(), port));
    conn.set_target(Target { service, ..route.target() });
    if AGENT_PORTS.contains(&original.port()) {
        return Ended::refused(Reason::AgentPort, downstream);
    }
    let declared = protocol::declared(&route, &snapshot);
    drop(snapshot);
    protocol::run(&conn, declared, route, downstream).await
}
