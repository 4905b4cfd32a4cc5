//! Kept upstream connections follow the snapshot: what leads to an endpoint that left is closed soon, what is under way ends first.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use heddle_model::{Delta, Endpoint, PodUid, Workload};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::support::*;

/// A change shows within a second, about; the test machine may be slow. The pool lets go of what is idle much later.
const SOON: Duration = Duration::from_secs(15);
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn http_pod(mesh: &Mesh, endpoint: SocketAddr) -> SocketAddr {
    mesh.pod_calling("web", &[endpoint], |s| s.ports[0].name = "http".into()).await
}

/// The Service as it is now, its endpoints given.
fn set_endpoints(mesh: &Mesh, vip: SocketAddr, endpoints: Vec<Endpoint>) {
    let mut service = service("web", vip, &[]);
    service.ports[0].name = "http".into();
    service.ports[0].endpoints = endpoints.into();
    mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
}

/// Sends a request and plays the server's part.
async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    passes(client, server, GET).await;
    passes(server, client, OK).await;
}

/// The server sees a clean end soon.
async fn ends(server: &mut TcpStream) {
    let start = Instant::now();
    assert_eq!(rest(server).await, b"");
    assert!(start.elapsed() < SOON, "only after {:?}", start.elapsed());
}

/// What is known of a port, of its endpoints and of its use goes with it, also where its Service stays.
#[tokio::test]
async fn what_is_known_of_a_port_goes_with_it() {
    for (what, stays) in [("the Service went", false), ("another port took its place", true)] {
        let mesh = Mesh::new(2);
        let (listener, addr) = backend().await;
        let vip = http_pod(&mesh, addr).await;
        let mut client = connect(vip).await;
        soon(client.write_all(GET)).await.unwrap();
        let (mut server, _) = soon(listener.accept()).await.unwrap();
        soon(server.write_all(OK)).await.unwrap();
        mesh.records(1).await;
        let mut service = service("web", vip, &[addr]);
        let key = service.key();
        let usage = || mesh.proxy.usage(&key, vip.port());
        assert_eq!(usage().map(|usage| usage.endpoints.len()), Some(1), "{what}");
        service.ports[0].port = vip.port().wrapping_add(1);
        mesh.apply(Delta { services: vec![(key.clone(), stays.then_some(service))], ..Delta::default() });
        // Its next request would find out.
        drop(client);
        until(what, || usage().is_none()).await;
    }
}

#[tokio::test]
async fn idle_connections_go_with_their_endpoint() {
    type Change = fn(&Mesh, SocketAddr, SocketAddr);
    let left: Change = |mesh, vip, _| set_endpoints(mesh, vip, vec![]);
    let unready: Change = |mesh, vip, addr| {
        set_endpoints(mesh, vip, vec![Endpoint { ready: false, serving: false, ..Endpoint::ready(addr) }]);
    };
    let another_pod: Change = |mesh, _, addr| {
        let mut pod = Workload::new("b", "shop", "b");
        pod.addresses = vec![addr.ip()];
        mesh.apply(Delta { workloads: vec![(pod.uid.clone(), Some(pod))], ..Delta::default() });
    };
    for (what, change) in
        [("it left", left), ("it is not ready", unready), ("its address is another pod's", another_pod)]
    {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = http_pod(&mesh, addr).await;
        let mut client = connect(vip).await;
        soon(client.write_all(GET)).await.unwrap();
        let mut server = soon(listener.accept()).await.unwrap().0;
        let mut got = vec![0; GET.len()];
        soon(tokio::io::AsyncReadExt::read_exact(&mut server, &mut got)).await.unwrap();
        passes(&mut server, &mut client, OK).await;
        mesh.records(1).await;
        // Other changes leave it alone.
        mesh.limits(heddle_model::mesh::PodLimits::default());
        tokio::time::sleep(Duration::from_millis(1500)).await;
        exchange(&mut client, &mut server).await;
        mesh.records(2).await;
        println!("{what}");
        change(&mesh, vip, addr);
        ends(&mut server).await;
    }
}

#[tokio::test]
async fn what_is_under_way_ends_in_peace_and_is_not_kept() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, addr).await;
    let mut client = connect(vip).await;
    soon(client.write_all(GET)).await.unwrap();
    let mut server = soon(listener.accept()).await.unwrap().0;
    let mut got = vec![0; GET.len()];
    soon(tokio::io::AsyncReadExt::read_exact(&mut server, &mut got)).await.unwrap();
    set_endpoints(&mesh, vip, vec![]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    passes(&mut server, &mut client, OK).await;
    ends(&mut server).await;
    assert_eq!(mesh.only_reason().await, "completed");
}

#[tokio::test]
async fn the_connections_of_a_pod_that_leaves_go_with_it() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, addr).await;
    let mut client = connect(vip).await;
    soon(client.write_all(GET)).await.unwrap();
    let mut server = soon(listener.accept()).await.unwrap().0;
    let mut got = vec![0; GET.len()];
    soon(tokio::io::AsyncReadExt::read_exact(&mut server, &mut got)).await.unwrap();
    passes(&mut server, &mut client, OK).await;
    mesh.records(1).await;
    soon(mesh.proxy.detach(&PodUid::new("web"))).await;
    ends(&mut server).await;
}

#[tokio::test]
async fn shared_http2_connections_go_with_their_endpoint_behind_their_streams() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "grpc".into()).await;
    let (mut sender, connection) = soon(h2::client::handshake(connect(vip).await)).await.unwrap();
    tokio::spawn(connection);
    let get = || http::Request::get("http://web/").body(()).unwrap();
    let (response, _) = sender.send_request(get(), true).unwrap();
    let stream = soon(listener.accept()).await.unwrap().0;
    let mut server = soon(h2::server::handshake(stream)).await.unwrap();
    let (_, mut respond) = soon(server.accept()).await.unwrap().unwrap();
    let mut told = respond.send_response(http::Response::new(()), false).unwrap();
    let ended = tokio::spawn(async move { while let Some(Ok(_)) = server.accept().await {} });
    let mut body = soon(response).await.unwrap().into_body();
    set_endpoints(&mesh, vip, vec![]);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!ended.is_finished(), "a stream is under way");
    told.send_data("late".into(), true).unwrap();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "late");
    assert_eq!(mesh.only_reason().await, "completed");
    let start = Instant::now();
    soon(ended).await.unwrap();
    assert!(start.elapsed() < SOON, "only after {:?}", start.elapsed());
}
