//! A worker and a connection without a socket, and what `examples/record_bench.rs` measures with them: the recording of one
//! request, as the data plane does it and no other way.

use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_model::{ClientAddr, Family, OriginalDst, PodUid, Service, Snapshot, Workload};
use heddle_telemetry::{
    AccessLog, Direction, HttpMetrics, PolicyMetrics, ProxyMetrics, Reason, TcpMetrics, UpstreamMetrics,
};
use tokio::sync::{Semaphore, watch};

use crate::affinity::AffinityTable;
use crate::budget::{Pod, PodBudget};
use crate::http::Record;
use crate::registry::{Conn, Target};
use crate::route::EndpointRef;
use crate::worker::{Seed, Worker};
use crate::{Config, SocketError, SocketFuture, SocketSource, Telemetry};

/// Label sets recorded in turn: endpoints, and statuses of each.
const ENDPOINTS: u16 = 16;
const STATUSES: [u16; 4] = [200, 204, 404, 503];

struct NoSockets;

impl SocketSource for NoSockets {
    fn try_take(&self, _worker: usize, _pod: &PodUid, _family: Family) -> Option<OwnedFd> {
        None
    }

    fn take<'a>(&'a self, _worker: usize, _pod: &'a PodUid, _family: Family) -> SocketFuture<'a> {
        Box::pin(ready(Err(SocketError::PodGone)))
    }

    fn publish_client(&self, _socket: BorrowedFd<'_>, _client: ClientAddr) -> std::io::Result<()> {
        Ok(())
    }
}

/// A worker that serves nothing.
pub(crate) fn worker(http: HttpMetrics) -> Rc<Worker> {
    let (_snapshots, snapshots) = watch::channel(Arc::new(Snapshot::new("node-1")));
    let (_stop, stopped) = watch::channel(());
    Rc::new(Worker::new(Seed {
        index: 0,
        config: Arc::new(Config::default()),
        snapshots,
        stopped,
        sockets: Arc::new(NoSockets),
        identity: None,
        handshakes: Arc::new(Semaphore::new(0)),
        telemetry: Telemetry {
            tcp: TcpMetrics::new(1, 1000),
            http,
            proxy: ProxyMetrics::new(1),
            policy: PolicyMetrics::new(1, 1000),
            upstream: UpstreamMetrics::new(1000),
            access: AccessLog::none(),
        },
        affinity: Arc::new(AffinityTable::new(1)),
        upstreams: Arc::default(),
    }))
}

/// A connection of that worker, of a pod that calls `shop/web`.
pub(crate) fn connection(worker: &Rc<Worker>) -> Rc<Conn> {
    let pod = Rc::new(Pod::new(Arc::new(PodBudget::new(PodUid::new("caller"), 1)), Vec::new(), None));
    let source = Some(Arc::new(Workload::new("caller", "shop", "caller")));
    let (client, original) = (ClientAddr::new(at(40_000)), Some(OriginalDst::new(at(80))));
    let conn = Conn::enter(worker, &pod, Direction::Outbound, client, original, source);
    conn.carries_http();
    conn.set_target(Target { service: Some((Arc::new(Service::new("shop", "web")), 80)), ..Target::default() });
    conn
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 1, 0, 1), port))
}

/// Records `count` requests of one connection, spread over 64 label sets, without an access log; the time that took, and what
/// was recorded.
#[must_use]
pub fn record_requests(count: u32) -> (Duration, HttpMetrics) {
    let metrics = HttpMetrics::new(1, 1000);
    let conn = connection(&worker(metrics.clone()));
    let endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|number| {
            let name = format!("web-{number}");
            (at(9000 + number), Arc::new(Workload::new(&name, "shop", &name)))
        })
        .collect();

    let started = Instant::now();
    for (number, (addr, workload)) in (0..count).zip(endpoints.iter().cycle()) {
        let mut record = Record::begin(&conn);
        let _ = record.take_budget();
        record.set_endpoint(&EndpointRef::of(*addr, workload));
        record.status = STATUSES[(number / u32::from(ENDPOINTS)) as usize % STATUSES.len()];
        (record.request_bytes, record.response_bytes) = (u64::from(number % 7), 1024);
        record.finish(Reason::Completed);
    }
    let taken = started.elapsed();
    conn.end(Reason::Completed);
    (taken, metrics)
}

#[cfg(test)]
mod tests {
    use heddle_telemetry::Registry;
    use heddle_telemetry::encode::{Format, encode};

    #[test]
    fn what_is_measured_is_the_recording_of_every_request() {
        let (_, metrics) = super::record_requests(6400);
        let registry = Registry::new();
        registry.register(metrics.collector()).unwrap();
        let text = encode(&registry.gather(), Format::Text);
        let counts: Vec<&str> = text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
        assert!(counts.len() == 64 && counts.iter().all(|line| line.ends_with(" 100")), "{counts:?}");
    }
}
