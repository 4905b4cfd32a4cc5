//! Outbound: a pod called an address; the agent finds out what it means, picks an endpoint and calls that.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use heddle_model::balance::{self, Affinity};
use heddle_model::{Candidates, Endpoint, OriginalDst, Resolution, Service};
use heddle_telemetry::Reason;
use tokio::net::TcpStream;

use crate::affinity::Key;
use crate::config::AGENT_PORTS;
use crate::copy;
use crate::dial::{self, Failure, Hop, NamedBy};
use crate::registry::{Conn, State, Target};
use crate::task::Ended;
use crate::worker::{Current, Load};

/// Carries one outbound connection from accept to end.
pub(crate) async fn run(conn: Rc<Conn>, original: OriginalDst, snapshot: Rc<Current>, downstream: TcpStream) -> Ended {
    if let Err(reason) = check_original(original) {
        return Ended::refused(reason, downstream);
    }
    let resolution = snapshot.resolve(conn.source.as_deref(), original);
    // A dial may wait; what it needs it has, and the rest of an old snapshot can go.
    drop(snapshot);
    let config = &conn.worker.config;
    let dialled = match resolution {
        Resolution::Refused(refusal) => Err(Reason::from(refusal)),
        Resolution::Service { service, port_index, candidates } => {
            let port = service.ports.get(port_index).map_or(original.port(), |p| p.port);
            conn.set_target(Target { service: Some((service.clone(), port)), ..Target::default() });
            conn.state.set(State::Dialling);
            dial_service(&conn, &downstream, &service, port, &candidates).await
        }
        Resolution::Workload { workload, addr } => {
            conn.set_target(Target { workload: Some(workload), ..Target::default() });
            conn.state.set(State::Dialling);
            dial_address(&conn, &downstream, addr, config.connect_timeout).await
        }
        Resolution::External { addr } => {
            conn.set_target(Target { external: true, ..Target::default() });
            conn.state.set(State::Dialling);
            dial_address(&conn, &downstream, addr, config.connect_timeout_external).await
        }
    };
    match dialled {
        Ok((upstream, load)) => {
            let ended = copy::run(&conn, downstream, upstream).await;
            drop(load);
            ended
        }
        Err(reason) => Ended::refused(reason, downstream),
    }
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

async fn dial_address(
    conn: &Rc<Conn>,
    downstream: &TcpStream,
    addr: SocketAddr,
    timeout: Duration,
) -> Result<(TcpStream, Load), Reason> {
    conn.upstream.set(Some(addr));
    let load = conn.worker.load(addr);
    let publish = conn.pod.has_address(addr.ip());
    let hop = Hop { addr, publish, named_by: NamedBy::Application, timeout };
    Ok((dial::same_address(conn, downstream, hop).await?, load))
}

/// Picks endpoints until one answers: the remembered one under session affinity, else the less loaded of two; never one that
/// failed for this connection while there is another.
async fn dial_service(
    conn: &Rc<Conn>,
    downstream: &TcpStream,
    service: &Service,
    port: u16,
    candidates: &Candidates,
) -> Result<(TcpStream, Load), Reason> {
    let worker = &conn.worker;
    let affinity = service
        .session_affinity
        .map(|timeout| (Key { service: service.key(), port, client: conn.client.get().ip() }, timeout));
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut last = Failure { reason: Reason::NoReadyEndpoint, retryable: false };
    while conn.attempts.get() < worker.config.connect_attempts_max {
        let Some(endpoint) = pick(conn, affinity.as_ref(), candidates, &tried) else {
            // Every endpoint failed once. A lost SYN is worth another; a refusal is final, and the application learns at once.
            if last.retryable {
                tried.clear();
                continue;
            }
            break;
        };
        let addr = endpoint.addr;
        conn.set_endpoint(addr, endpoint.workload.as_ref());
        let load = worker.load(addr);
        let publish = conn.pod.has_address(addr.ip());
        let hop = Hop { addr, publish, named_by: NamedBy::Object, timeout: worker.config.connect_timeout };
        match dial::once(conn, downstream, hop).await {
            Ok(upstream) => {
                if let Some((key, timeout)) = affinity {
                    worker.affinity.remember(key, addr, timeout, Instant::now());
                }
                return Ok((upstream, load));
            }
            Err(failure) if failure.is_ours() => return Err(failure.reason),
            Err(failure) => {
                tried.push(addr);
                last = failure;
            }
        }
    }
    Err(last.reason)
}

fn pick<'a>(
    conn: &Conn,
    affinity: Option<&(Key, Duration)>,
    candidates: &'a Candidates,
    tried: &[SocketAddr],
) -> Option<&'a Endpoint> {
    let worker = &conn.worker;
    if let Some((key, timeout)) = affinity {
        let remembered = worker.affinity.get(key, Instant::now());
        if let Affinity::Keep(index) = balance::affinity(candidates, remembered, *timeout, tried) {
            return candidates.endpoints.get(index);
        }
    }
    let load = |e: &Endpoint| worker.load_of(e.addr);
    balance::least_request(candidates, load, fastrand::u64(..), tried).map(|p| p.endpoint)
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
