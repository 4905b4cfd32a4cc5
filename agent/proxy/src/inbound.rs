//! Inbound: someone called the pod; the agent calls the application at the very same address, shown as that someone.

use std::rc::Rc;

use heddle_model::OriginalDst;
use heddle_telemetry::Reason;
use tokio::net::TcpStream;

use crate::config::AGENT_PORTS;
use crate::copy;
use crate::dial::{self, Hop, NamedBy};
use crate::registry::{Conn, State, Target};
use crate::task::Ended;
use crate::worker::Current;

/// Carries one inbound connection from accept to end.
pub(crate) async fn run(conn: Rc<Conn>, original: OriginalDst, snapshot: Rc<Current>, downstream: TcpStream) -> Ended {
    let workload = conn.pod.workload(&snapshot);
    let service = snapshot.service_of_endpoint(original.get()).map(|(service, port)| (service.clone(), port));
    drop(snapshot);
    conn.set_target(Target { service, workload, ..Target::default() });
    if AGENT_PORTS.contains(&original.port()) {
        return Ended::refused(Reason::AgentPort, downstream);
    }
    conn.state.set(State::Dialling);
    conn.upstream.set(Some(original.get()));
    let timeout = conn.worker.config.connect_timeout;
    let hop = Hop { addr: original.get(), publish: true, named_by: NamedBy::Application, timeout };
    match dial::same_address(&conn, &downstream, hop).await {
        Ok(upstream) => copy::run(&conn, downstream, upstream).await,
        Err(reason) => Ended::refused(reason, downstream),
    }
}
