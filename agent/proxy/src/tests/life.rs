//! Budgets, cuts, drains, faults, and nothing left behind.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use heddle_model::PodUid;
use heddle_model::mesh::PodLimits;
use heddle_telemetry::{Direction, Reason};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::support::*;

/// A backend that answers every connection with what it got, for ever.
async fn echo() -> std::net::SocketAddr {
    let (listener, addr) = backend().await;
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    addr
}

async fn echoes(addr: std::net::SocketAddr) -> TcpStream {
    let mut client = connect(addr).await;
    soon(tokio::io::AsyncWriteExt::write_all(&mut client, b"ping")).await.unwrap();
    let mut got = [0; 4];
    soon(client.read_exact(&mut got)).await.unwrap();
    client
}

#[tokio::test]
async fn a_flooding_pod_is_refused_and_a_quiet_one_is_not_disturbed() {
    let mesh = Mesh::new(1);
    mesh.limits(PodLimits { connections_max: 20, ..PodLimits::default() });
    let backend = echo().await;
    let noisy = mesh.pod("noisy", &[backend]).await;
    let quiet = mesh.pod("quiet", &[backend]).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(echoes(noisy).await);
    }
    let flood = tokio::spawn(async move {
        loop {
            if let Ok(mut stream) = TcpStream::connect(noisy).await {
                let _ = stream.read(&mut [0; 1]).await;
            }
        }
    });
    until("the flood to be refused", || mesh.metrics.ended(Direction::Outbound, Reason::PodConnectionsMax) > 200).await;
    let mut waited = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        drop(echoes(quiet).await);
        waited.push(start.elapsed());
    }
    // All but a few, that a machine had no time for.
    waited.sort_unstable();
    assert!(waited[44] < Duration::from_secs(1), "the quiet pod waited {waited:?}");
    flood.abort();
    let usage = mesh.proxy.pods();
    let of = |name: &str| usage.iter().find(|p| p.uid.as_str() == name).unwrap();
    assert_eq!((of("noisy").connections, of("quiet").connections_refused), (20, 0));
    assert!(of("noisy").connections_refused > 200);
    // The ones within budget are as good as ever, and places come back.
    drop(held);
    mesh.is_empty().await;
    drop(echoes(noisy).await);
}

#[tokio::test]
async fn limits_change_with_the_snapshot() {
    let mesh = Mesh::new(1);
    let vip = mesh.pod("a", &[echo().await]).await;
    mesh.limits(PodLimits { connections_max: 0, ..PodLimits::default() });
    is_refused(vip).await;
    assert_eq!(mesh.only_reason().await, "pod_connections_max");
    mesh.limits(PodLimits::default());
    drop(echoes(vip).await);
}

#[tokio::test]
async fn closing_by_predicate_resets_the_chosen_ones_on_every_worker() {
    let mesh = Mesh::new(2);
    let backend = echo().await;
    let (a, b) = (mesh.pod("a", &[backend]).await, mesh.pod("b", &[backend]).await);
    let mut of_a = [echoes(a).await, echoes(a).await, echoes(a).await];
    let mut of_b = echoes(b).await;
    let registry = mesh.proxy.registry();
    let closed = registry.close(Reason::PolicyClosed, |c| c.pod.as_str() == "a").await;
    assert_eq!(closed, 3);
    for client in &mut of_a {
        is_reset(client).await;
    }
    let records = mesh.records(3).await;
    assert!(records.iter().all(|r| r["reason"] == "policy_closed" && r["bytes_received"] == 4), "{records:?}");
    soon(tokio::io::AsyncWriteExt::write_all(&mut of_b, b"ping")).await.unwrap();
    soon(of_b.read_exact(&mut [0; 4])).await.unwrap();
    assert_eq!(registry.list(10, |_| true).await.total, 1);
}

#[tokio::test]
async fn a_drain_waits_then_lists_then_resets() {
    let mesh = Mesh::new(2);
    let vip = mesh.pod("a", &[echo().await]).await;
    let ends = echoes(vip).await;
    let mut stays = echoes(vip).await;
    let registry = mesh.proxy.registry();
    let drain = mesh.proxy.drain(Instant::now() + Duration::from_secs(4));
    let client = async {
        // No more is accepted, what is open goes on. Not faster: a full queue would drop SYNs, and those wait a second.
        while TcpStream::connect(vip).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        soon(tokio::io::AsyncWriteExt::write_all(&mut stays, b"ping")).await.unwrap();
        soon(stays.read_exact(&mut [0; 4])).await.unwrap();
        drop(ends);
    };
    let (report, ()) = soon(async { tokio::join!(drain, client) }).await;
    assert_eq!(report.cut.len(), 1);
    assert_eq!(report.cut[0].bytes_received, 8);
    is_reset(&mut stays).await;
    assert_eq!(registry.list(10, |_| true).await.total, 0);
    let records = mesh.records(2).await;
    assert!(records.iter().any(|r| r["reason"] == "drain_deadline"), "{records:?}");
    assert!(records.iter().any(|r| r["reason"] == "completed"), "{records:?}");
}

#[tokio::test]
async fn an_empty_drain_ends_at_once() {
    let mesh = Mesh::new(2);
    let vip = mesh.pod("a", &[echo().await]).await;
    drop(echoes(vip).await);
    let report = soon(mesh.proxy.drain(Instant::now() + PATIENCE * 10)).await;
    assert!(report.cut.is_empty());
}

#[tokio::test]
async fn dropping_the_proxy_resets_and_logs_what_is_open() {
    let mut mesh = Mesh::new(1);
    let vip = mesh.pod("a", &[echo().await]).await;
    let mut client = echoes(vip).await;
    let other = Mesh::new(1);
    drop(std::mem::replace(&mut mesh.proxy, other.proxy));
    is_reset(&mut client).await;
    assert_eq!(mesh.only_reason().await, "agent_shutdown");
}

#[tokio::test]
async fn a_panic_ends_one_connection_and_is_logged() {
    let mesh = Mesh::new(1);
    let vip = mesh.pod("a", &[echo().await]).await;
    let before = echoes(vip).await;
    mesh.sockets.panic_on_take.store(true, SeqCst);
    is_refused(vip).await;
    mesh.sockets.panic_on_take.store(false, SeqCst);
    assert_eq!(mesh.only_reason().await, "panic");
    assert_eq!(mesh.metrics.ended(Direction::Outbound, Reason::Panic), 1);
    drop((before, echoes(vip).await));
    assert_eq!(mesh.records(3).await.iter().filter(|r| r["reason"] == "completed").count(), 2);
    mesh.proxy.health().unwrap();
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_dead_worker_is_reported_and_takes_only_its_own_connections() {
    let mesh = Mesh::new(2);
    let backend = echo().await;
    let mut clients = Vec::new();
    // One listener each: the fake attaches one shard, which is worker 0's; the second pod gets two, the first one empty.
    let first = mesh.pod("first", &[backend]).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = listener.local_addr().unwrap();
    let service = service("second", second, &[backend]);
    mesh.apply(heddle_model::Delta { services: vec![(service.key(), Some(service))], ..Default::default() });
    let shards = vec![
        crate::ShardListeners::default(),
        crate::ShardListeners { outbound: vec![listener], inbound: vec![], hbone: vec![] },
    ];
    let pod = crate::PodListeners { uid: PodUid::new("second"), addresses: vec![], identity: None, shards };
    mesh.proxy.attach(pod).await.unwrap();
    clients.push(echoes(first).await);
    clients.push(echoes(second).await);
    // A predicate that panics on worker 0 stands for any fault outside a connection.
    let died = mesh.proxy.died();
    mesh.proxy.registry().list(1, |c| if c.worker == 0 { panic!("planted") } else { true }).await;
    assert_eq!(soon(died).await, 0);
    assert!(mesh.proxy.health().is_err());
    is_reset(&mut clients[0]).await;
    assert_eq!(mesh.only_reason().await, "panic");
    soon(tokio::io::AsyncWriteExt::write_all(&mut clients[1], b"ping")).await.unwrap();
    soon(clients[1].read_exact(&mut [0; 4])).await.unwrap();
    assert!(
        mesh.proxy
            .attach(crate::PodListeners { uid: PodUid::new("x"), addresses: vec![], identity: None, shards: vec![] })
            .await
            .is_err()
    );
}

#[tokio::test]
async fn thousands_of_connections_leave_nothing_behind() {
    const ROUNDS: usize = 60;
    const AT_ONCE: usize = 50;
    let mesh = Mesh::new(2);
    let vip = mesh.pod("a", &[echo().await, dead_address().await]).await;
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let one_round = || async {
        let mut all = JoinSet::new();
        for n in 0..AT_ONCE {
            all.spawn(async move {
                let client = echoes(vip).await;
                if n % 3 == 0 { reset(client) } else { drop(client) }
            });
        }
        while let Some(done) = all.join_next().await {
            done.unwrap();
        }
    };
    one_round().await;
    mesh.is_empty().await;
    let before = fds();
    for _ in 1..ROUNDS {
        one_round().await;
    }
    mesh.is_empty().await;
    let records = mesh.records(ROUNDS * AT_ONCE).await;
    assert_eq!(records.len(), ROUNDS * AT_ONCE, "one record per connection");
    let ids: std::collections::HashSet<_> = records.iter().map(|r| r["connection_id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), records.len(), "numbers are unique");
    assert_eq!(mesh.metrics.accepted(Direction::Outbound), records.len() as u64);
    // Other tests of this process open and close sockets too: no growth with the number of connections is what counts.
    until("file descriptors to come back", || fds() < before + AT_ONCE * 4).await;
}

#[test]
fn this_rooms_metrics_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("docs/metrics.md");
    for family in crate::proxy::FAMILIES {
        let row = text.lines().find(|l| l.contains(&format!("`{}`", family.name)));
        let row = row.unwrap_or_else(|| panic!("{} is not in docs/metrics.md", family.name));
        for label in family.labels {
            assert!(row.contains(&format!("`{label}`")), "label {label} of {} is not in its row", family.name);
        }
    }
}
