//! Policies at the called side: by hand-over, by mutual TLS, by plain text; requests and bytes; what is under way when they change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use heddle_model::policy::{
    Action, AuthorizationPolicy, HeaderMatch, IdentityMatch, Operation, PathMatch, Rule, Rules, Source, Target,
    TextMatch,
};
use heddle_model::{Delta, PodUid, PolicyDelta, Service, WorkloadPolicies};
use heddle_telemetry::PolicyVerdict;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::http2::client as h2_client;
use super::mesh::{CALLED, Ca, Node, read_until};
use super::support::*;
use crate::{Config, ShardListeners};

/// A policy for every pod.
pub(super) fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let rules = Rules::Any(rules);
    let target = Target::Namespace;
    AuthorizationPolicy { namespace: "shop".into(), name: name.into(), target, action, dry_run: false, rules }
}

pub(super) fn from(account: &str) -> Source {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    Source { identities: vec![IdentityMatch::Exact(id.into())], ..Source::default() }
}

pub(super) fn to_path(prefix: &str) -> Operation {
    Operation { paths: vec![PathMatch::prefix(prefix).unwrap()], ..Operation::default() }
}

fn rule(from: impl IntoIterator<Item = Source>, to: impl IntoIterator<Item = Operation>) -> Rule {
    Rule { from: from.into_iter().collect(), to: to.into_iter().collect() }
}

/// Puts policies in force for `shop/server`, in place of those before.
pub(super) fn enforce(mesh: &Mesh, policies: Vec<AuthorizationPolicy>) {
    let authorization: Vec<_> = policies.into_iter().map(Arc::new).collect();
    let all = authorization.iter().map(|p| ((p.namespace.clone(), p.name.clone()), Some(p.clone()))).collect();
    let of_pod = WorkloadPolicies { authorization, network: Vec::new() };
    let policies = PolicyDelta {
        authorization: all,
        workloads: vec![(PodUid::new("server"), Some(of_pod))],
        ..PolicyDelta::default()
    };
    mesh.apply(Delta { policies, ..Delta::default() });
}

/// A node with both pods: the application listens where the called pod is, and is handed what the client sends to the Service.
pub(super) async fn handed_over(change: impl Fn(&mut Service)) -> (Node, TcpListener, SocketAddr) {
    let node = Node::with(&Ca::new(), Config { socket_wait: PATIENCE, workers: 2, ..Config::default() });
    let application = TcpListener::bind((CALLED.as_str(), 0)).await.unwrap();
    let called = application.local_addr().unwrap();
    node.attach("server", &CALLED, ShardListeners::default()).await;
    let vip = node.caller(called, change).await;
    (node, application, vip)
}

pub(super) fn http(service: &mut Service) {
    service.ports[0].name = "http".into();
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").into_bytes()
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

/// Serves one request, and returns its head.
async fn answer(server: &mut TcpStream) -> String {
    let head = read_until(server, b"\r\n\r\n").await;
    server.write_all(OK).await.unwrap();
    head
}

async fn read_head(client: &mut TcpStream) -> String {
    read_until(client, b"\r\n\r\n").await
}

/// Reads the rest of an answer of the agent's own.
async fn refused(client: &mut TcpStream) -> String {
    let head = read_head(client).await;
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    soon(client.read_exact(&mut body)).await.unwrap();
    head
}

async fn nobody_called(application: &TcpListener) {
    let called = tokio::time::timeout(Duration::from_millis(50), application.accept()).await;
    if let Ok(Ok((mut stream, _))) = called {
        // A connection that brings nothing is no harm.
        assert_eq!(soon(stream.read(&mut [0; 16])).await.unwrap_or(0), 0, "bytes reached the application");
    }
}

#[tokio::test]
async fn a_request_that_no_rule_lets_in_is_answered_403_and_told_on_both_sides() {
    let (node, application, vip) = handed_over(http).await;
    enforce(&node.mesh, vec![policy("web", Action::Allow, vec![rule([from("client")], [to_path("/open")])])]);
    let mut client = connect(vip).await;
    client.write_all(&get("/secret")).await.unwrap();
    let head = refused(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("x-heddle-reason: policy_denied"), "{head}");
    nobody_called(&application).await;
    // The connection goes on.
    client.write_all(&get("/open/a")).await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    answer(&mut server).await;
    read_until(&mut client, b"hi").await;
    let records = node.mesh.records(4).await;
    for record in &records {
        let (is_called, is_open) = (record["reporter"] == "destination", record["path"] == "/open/a");
        let reason = if is_open { "completed" } else { "policy_denied" };
        assert_eq!(record["reason"], reason, "{record}");
        let policy = match (is_called, is_open) {
            (true, true) => "shop/web[0]".into(),
            (true, false) => "no Allow rule matches (shop/web)".into(),
            (false, _) => serde_json::Value::Null,
        };
        assert_eq!(record["policy"], policy, "{record}");
    }
    let count = |policy: &str, verdict| {
        let counts = node.mesh.policy.counts();
        counts.iter().filter(|(l, _)| *l.policy == *policy && l.verdict == verdict).map(|(_, n)| n).sum::<u64>()
    };
    assert_eq!((count("shop/web", PolicyVerdict::Allowed), count("", PolicyVerdict::Denied)), (1, 1));
}

#[tokio::test]
async fn a_path_is_judged_and_forwarded_in_its_one_form() {
    let (node, application, vip) = handed_over(http).await;
    let deny = policy("admin", Action::Deny, vec![rule([], [to_path("/admin")])]);
    enforce(&node.mesh, vec![deny.clone()]);
    let mut client = connect(vip).await;
    for path in ["/admin", "/x/../admin", "//admin", "/%61dmin/x", "/x/%2e%2e/admin", "/.%2Fadmin", "/x%2F..%2fadmin?q"]
    {
        client.write_all(&get(path)).await.unwrap();
        let head = refused(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{path}: {head}");
    }
    for path in ["/%00", "/..;/admin", "/%zz"] {
        client.write_all(&get(path)).await.unwrap();
        let head = refused(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 400 ") && head.contains("path_ambiguous"), "{path}: {head}");
        if head.to_ascii_lowercase().contains("connection: close") {
            client = connect(vip).await;
        }
    }
    client.write_all(&get("/a//b/../c%2fd?x=%2e%2e//")).await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    assert!(answer(&mut server).await.starts_with("GET /a/c/d?x=%2e%2e// HTTP/1.1\r\n"));
    read_until(&mut client, b"hi").await;
    // What is only tried changes nothing, and without a rule about paths they pass as they are.
    enforce(&node.mesh, vec![AuthorizationPolicy { dry_run: true, ..deny }]);
    client.write_all(&get("/x/..//admin")).await.unwrap();
    assert!(answer(&mut server).await.starts_with("GET /x/..//admin HTTP/1.1\r\n"));
    read_until(&mut client, b"hi").await;
    let tried = |r: &serde_json::Value| r["path"] == "/x/..//admin" && r["policy_would_deny"] == "shop/admin[0]";
    let records = node.mesh.records(24).await;
    assert!(records.iter().any(tried), "{:?}", records.last());
}

#[tokio::test]
async fn over_http2_it_is_the_same_and_grpc_is_told_in_trailers_only() {
    let (node, application, vip) = handed_over(|s| s.ports[0].name = "grpc".into()).await;
    let allow = policy("calls", Action::Allow, vec![rule([from("client")], [to_path("/shop.Cart/Get")])]);
    enforce(&node.mesh, vec![allow]);
    let mut client = h2_client(vip).await;
    let (response, _) = client.send_request(super::http2::call("Delete"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"7".parse().unwrap()));
    assert_eq!(response.headers()["x-heddle-reason"], "policy_denied");
    assert!(response.body().is_end_stream(), "trailers only");
    nobody_called(&application).await;
    let (response, _) = client.send_request(super::http2::call("x/../Get"), true).unwrap();
    let mut server = super::http2::server(&application).await;
    let (asked, mut respond) = super::http2::next(&mut server).await;
    assert_eq!(asked.uri().path(), "/shop.Cart/Get");
    respond.send_response(http::Response::new(()), true).unwrap();
    let _serving = super::http2::keep_going(server);
    assert_eq!(soon(response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn bytes_match_no_rule_about_http_and_get_nowhere() {
    let (node, application, vip) = handed_over(|s| s.ports[0].name = "tcp-db".into()).await;
    for policies in [
        vec![policy("http", Action::Allow, vec![rule([from("client")], [to_path("/")])])],
        vec![policy("http", Action::Deny, vec![rule([from("client")], [to_path("/only")])])],
        vec![policy("none", Action::Allow, vec![])],
        vec![policy("other", Action::Allow, vec![rule([from("other")], [])])],
    ] {
        enforce(&node.mesh, policies.clone());
        let mut client = connect(vip).await;
        client.write_all(b"\x00\x01 no HTTP").await.unwrap();
        is_reset(&mut client).await;
        nobody_called(&application).await;
    }
    // A rule about bytes lets them in, besides one about HTTP.
    let rules = vec![rule([from("other")], [to_path("/")]), rule([from("client")], [])];
    enforce(&node.mesh, vec![policy("bytes", Action::Allow, rules)]);
    let mut client = connect(vip).await;
    client.write_all(b"\x00bytes").await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    soon(server.read_exact(&mut [0; 6])).await.unwrap();
    // And end when they are not let in any more, on every worker.
    let changed = std::time::Instant::now();
    enforce(&node.mesh, vec![policy("none", Action::Allow, vec![])]);
    is_reset(&mut client).await;
    is_reset(&mut server).await;
    assert!(changed.elapsed() < Duration::from_secs(5));
    let records = node.mesh.records(10).await;
    assert_eq!(records.iter().filter(|r| r["reason"] == "policy_closed").count(), 2, "{records:?}");
}

#[tokio::test]
async fn http_on_an_opaque_port_is_parsed_where_a_rule_asks_for_it() {
    let (node, application, vip) = handed_over(|s| s.ports[0].name = "tcp-db".into()).await;
    enforce(&node.mesh, vec![policy("web", Action::Allow, vec![rule([from("client")], [to_path("/open")])])]);
    let mut client = connect(vip).await;
    client.write_all(&get("/secret")).await.unwrap();
    assert!(refused(&mut client).await.starts_with("HTTP/1.1 403 "));
    client.write_all(&get("/open")).await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    answer(&mut server).await;
    read_until(&mut client, b"hi").await;
}

#[tokio::test]
async fn a_change_is_felt_by_requests_under_way_one_by_one() {
    let (node, application, vip) = handed_over(|s| s.ports[0].name = "grpc".into()).await;
    let paths = |paths: &[&str]| paths.iter().map(|path| rule([from("client")], [to_path(path)])).collect();
    enforce(&node.mesh, vec![policy("two", Action::Allow, paths(&["/a", "/b"]))]);
    let mut client = h2_client(vip).await;
    let request = |path: &str| Request::get(format!("http://web{path}")).body(()).unwrap();
    let (a, _) = client.send_request(request("/a"), true).unwrap();
    let (b, _) = client.send_request(request("/b"), true).unwrap();
    let mut server = super::http2::server(&application).await;
    let mut responds = Vec::new();
    for _ in 0..2 {
        let (asked, respond) = super::http2::next(&mut server).await;
        responds.push((asked.uri().path().to_owned(), respond));
    }
    let _serving = super::http2::keep_going(server);
    enforce(&node.mesh, vec![policy("two", Action::Allow, paths(&["/b"]))]);
    let denied = soon(a).await.unwrap();
    assert_eq!(
        (denied.status().as_u16(), &denied.headers()["x-heddle-reason"]),
        (403, &"policy_closed".parse().unwrap())
    );
    let (_, mut respond) = responds.into_iter().find(|(path, _)| path == "/b").unwrap();
    respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(soon(b).await.unwrap().status(), 200, "its neighbour on the same connection goes on");
}

#[tokio::test]
async fn a_tunnel_ends_when_the_request_that_began_it_is_not_let_in_any_more() {
    let (node, application, vip) = handed_over(http).await;
    enforce(&node.mesh, vec![policy("chat", Action::Allow, vec![rule([from("client")], [to_path("/chat")])])]);
    let mut client = connect(vip).await;
    let upgrade = "GET /chat HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.write_all(upgrade.as_bytes()).await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    read_until(&mut server, b"\r\n\r\n").await;
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    server.write_all(accepted.as_bytes()).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
    passes(&mut client, &mut server, b"frames").await;
    // A change that leaves it alone.
    let with_more = vec![rule([from("client")], [to_path("/chat")]), rule([from("other")], [])];
    enforce(&node.mesh, vec![policy("chat", Action::Allow, with_more)]);
    passes(&mut server, &mut client, b"more frames").await;
    enforce(&node.mesh, vec![policy("chat", Action::Allow, vec![rule([from("other")], [])])]);
    is_reset(&mut client).await;
    let records = node.mesh.records(2).await;
    assert!(records.iter().all(|record| record["reason"] == "policy_closed"), "{records:?}");
}

#[tokio::test]
async fn a_rejected_policy_denies_and_says_so_and_one_that_only_tells_does_neither() {
    let (node, application, vip) = handed_over(http).await;
    let rejected = AuthorizationPolicy { rules: Rules::Rejected, ..policy("broken", Action::Allow, vec![]) };
    enforce(&node.mesh, vec![rejected.clone()]);
    let mut client = connect(vip).await;
    client.write_all(&get("/")).await.unwrap();
    let head = refused(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("policy_invalid"), "{head}");
    let audit = policy("audit", Action::Audit, vec![rule([from("client")], [to_path("/")])]);
    let dry = AuthorizationPolicy { dry_run: true, ..policy("tried", Action::Allow, vec![]) };
    let broken_audit = AuthorizationPolicy { action: Action::Audit, ..rejected };
    enforce(&node.mesh, vec![audit, dry, broken_audit]);
    client.write_all(&get("/")).await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    answer(&mut server).await;
    read_until(&mut client, b"hi").await;
    let records = node.mesh.records(4).await;
    let told = records.iter().find(|r| r["reporter"] == "destination" && r["reason"] == "completed").unwrap();
    assert_eq!(told["policy_audit"], "shop/audit[0]", "{told}");
    assert_eq!(told["policy_would_deny"], "no Allow rule matches (shop/tried)", "{told}");
    let counts = node.mesh.policy.counts();
    let verdicts: Vec<_> = counts.iter().map(|(labels, count)| (&*labels.policy, labels.verdict, *count)).collect();
    assert!(verdicts.contains(&("shop/audit", PolicyVerdict::Audited, 1)), "{verdicts:?}");
    assert!(verdicts.contains(&("", PolicyVerdict::WouldDeny, 1)), "{verdicts:?}");
    assert!(verdicts.contains(&("shop/broken", PolicyVerdict::Denied, 1)), "{verdicts:?}");
}

#[tokio::test]
async fn several_values_of_a_header_are_held_against_the_request() {
    let (node, application, vip) = handed_over(http).await;
    let header = HeaderMatch { name: "x-tenant".into(), value: TextMatch::Exact("a".into()) };
    let to = Operation { headers: vec![header], ..Operation::default() };
    let both = "GET / HTTP/1.1\r\nhost: web\r\nx-tenant: a\r\nX-Tenant: b\r\n\r\n";
    for action in [Action::Allow, Action::Deny] {
        enforce(&node.mesh, vec![policy("tenant", action, vec![rule([], [to.clone()])])]);
        let mut client = connect(vip).await;
        client.write_all(both.as_bytes()).await.unwrap();
        assert!(refused(&mut client).await.starts_with("HTTP/1.1 403 "), "{action:?}");
    }
    nobody_called(&application).await;
}

/// Two nodes with a client that has said `first`; policies are in force on the called side's.
async fn two_nodes(
    change: impl Fn(&mut Service),
    policies: Vec<AuthorizationPolicy>,
    first: &[u8],
) -> (Node, Node, SocketAddr, SocketAddr, TcpStream) {
    let ca = Ca::new();
    let (here, there) = (Node::new(&ca), Node::new(&ca));
    let called = there.called().await;
    enforce(&there.mesh, policies);
    let vip = here.caller(called, change).await;
    // Nothing gets as far as the application, which would be the listener itself.
    there.mesh.sockets.closed.store(true, SeqCst);
    let mut client = connect(vip).await;
    soon(client.write_all(first)).await.unwrap();
    (here, there, vip, called, client)
}

/// The application begins to listen, in place of the called pod's listener.
async fn application(there: &Node, called: SocketAddr) -> TcpListener {
    there.mesh.proxy.detach(&PodUid::new("server")).await;
    let application = loop {
        match TcpListener::bind(called).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    there.mesh.sockets.closed.store(false, SeqCst);
    there.mesh.sockets.opened.notify_waiters();
    application
}

#[tokio::test]
async fn between_nodes_the_certificate_counts_and_the_caller_is_told_why() {
    let allow = policy("others", Action::Allow, vec![rule([from("other")], [])]);
    let (here, there, _, called, mut client) = two_nodes(http, vec![allow], &get("/")).await;
    let head = refused(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("x-heddle-reason: policy_denied"), "{head}");
    assert_eq!(here.mesh.records(1).await[0]["reason"], "policy_denied");
    let record = &there.mesh.records(1).await[0];
    assert_eq!(
        (&record["reason"], &record["policy"]),
        (&"policy_denied".into(), &"no Allow rule matches (shop/others)".into())
    );
    assert_eq!(record["source_principal"], "spiffe://cluster.local/ns/shop/sa/client");
    // Who comes in plain text proves nothing, whatever its address: nor does what it says.
    enforce(&there.mesh, vec![policy("clients", Action::Allow, vec![rule([from("client")], [])])]);
    let mut plain = connect(called).await;
    let spoof = "GET / HTTP/1.1\r\nhost: web\r\nx-heddle-client: 127.0.0.1:9\r\nforwarded: for=127.0.0.1\r\n\r\n";
    plain.write_all(spoof.as_bytes()).await.unwrap();
    assert!(refused(&mut plain).await.starts_with("HTTP/1.1 403 "));
    let mut plain = connect(called).await;
    plain.write_all(b"\x00bytes").await.unwrap();
    is_reset(&mut plain).await;
    assert_eq!(there.mesh.sockets.taken.load(SeqCst), 0, "nobody was dialled");
}

#[tokio::test]
async fn bytes_by_connect_are_judged_and_parsed_like_those_that_came_by_themselves() {
    let opaque = |s: &mut Service| s.ports[0].name = "tcp-db".into();
    let allow = policy("open", Action::Allow, vec![rule([from("client")], [to_path("/open")])]);
    let (here, there, vip, _, mut client) = two_nodes(opaque, vec![allow], &get("/secret")).await;
    assert!(refused(&mut client).await.starts_with("HTTP/1.1 403 "), "it is parsed inside of CONNECT");
    // What is no HTTP is refused, as a reset.
    let mut bytes = connect(vip).await;
    bytes.write_all(b"\x00\x01\x02\x03").await.unwrap();
    is_reset(&mut bytes).await;
    assert_eq!(there.mesh.sockets.taken.load(SeqCst), 0, "nobody was dialled");
    // As is a client that only another rule lets in, before a byte of it is read.
    enforce(&there.mesh, vec![policy("open", Action::Allow, vec![rule([from("other")], [])])]);
    is_refused(vip).await;
    let reasons: Vec<_> = here.mesh.records(2).await.iter().map(|r| r["reason"].clone()).collect();
    assert!(reasons.contains(&"policy_denied".into()), "{reasons:?}");
    let told = there.mesh.records(3).await;
    assert!(told.iter().filter(|r| r["reason"] == "policy_denied").count() >= 3, "{told:?}");
}

#[tokio::test]
async fn http_by_connect_reaches_the_application_where_its_path_is_let_in() {
    let opaque = |s: &mut Service| s.ports[0].name = "tcp-db".into();
    let allow = policy("open", Action::Allow, vec![rule([from("client")], [to_path("/open")])]);
    let (_here, there, _, called, mut client) = two_nodes(opaque, vec![allow], &get("/x/../open")).await;
    until("a request at the other node", || there.mesh.proxy.pods().iter().any(|pod| pod.requests > 0)).await;
    let application = application(&there, called).await;
    let (mut server, _) = soon(application.accept()).await.unwrap();
    assert!(answer(&mut server).await.starts_with("GET /open HTTP/1.1\r\n"));
    read_until(&mut client, b"hi").await;
    // Its end is a clean one.
    drop(server);
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
    let record = &there.mesh.records(1).await[0];
    assert_eq!((&record["reason"], &record["policy"]), (&"completed".into(), &"shop/open[0]".into()), "{record}");
}

/// An agent that reads a byte stream reads what an application wrote, whoever carried it.
#[tokio::test]
async fn nobody_speaks_in_the_agents_name_inside_of_connect() {
    let opaque = |s: &mut Service| s.ports[0].name = "tcp-db".into();
    let allow = policy("open", Action::Allow, vec![rule([from("client")], [to_path("/open")])]);
    let (_here, there, _, called, client) = two_nodes(opaque, vec![allow], b"").await;
    let mut client = super::http2::client_on(client).await;
    let mut request = super::http2::get("/open");
    for name in ["x-heddle-attempt", "x-heddle-shadow", "x-heddle-client", "x-heddle-version"] {
        request.headers_mut().insert(name, "1".parse().unwrap());
    }
    let (response, _) = client.send_request(request, true).unwrap();
    until("a request at the other node", || there.mesh.proxy.pods().iter().any(|pod| pod.requests > 0)).await;
    let application = application(&there, called).await;
    let mut server = super::http2::server(&application).await;
    let (asked, mut respond) = super::http2::next(&mut server).await;
    let names: Vec<_> = asked.headers().keys().map(http::HeaderName::as_str).collect();
    assert!(names.iter().all(|name| !name.contains("heddle")), "{names:?}");
    respond.send_response(http::Response::new(()), true).unwrap();
    let _serving = super::http2::keep_going(server);
    assert_eq!(soon(response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_slow_head_inside_of_connect_is_out_of_time() {
    let ca = Ca::new();
    let config = || Config { socket_wait: PATIENCE, request_head_timeout: Duration::from_secs(1), ..Config::default() };
    let (here, there) = (Node::with(&ca, config()), Node::with(&ca, config()));
    let called = there.called().await;
    enforce(&there.mesh, vec![policy("open", Action::Allow, vec![rule([from("client")], [to_path("/open")])])]);
    let vip = here.caller(called, |s| s.ports[0].name = "tcp-db".into()).await;
    let mut client = connect(vip).await;
    client.write_all(b"GET /open HTTP/1.1\r\nhost:").await.unwrap();
    let head = refused(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    drop(client);
    until("the end of it", || there.mesh.proxy.pods().iter().all(|pod| pod.requests == 0)).await;
}

#[tokio::test]
async fn a_pod_whose_object_is_gone_keeps_its_policies() {
    let node = Node::new(&Ca::new());
    let called = node.called().await;
    enforce(&node.mesh, vec![policy("none", Action::Allow, vec![])]);
    // Nothing gets as far as the application, which would be the listener itself.
    node.mesh.sockets.closed.store(true, SeqCst);
    let mut before = connect(called).await;
    before.write_all(&get("/")).await.unwrap();
    assert!(refused(&mut before).await.starts_with("HTTP/1.1 403 "));
    let uid = PodUid::new("server");
    let policies = PolicyDelta { workloads: vec![(uid.clone(), None)], ..PolicyDelta::default() };
    node.mesh.apply(Delta { policies, workloads: vec![(uid, None)], ..Delta::default() });
    let mut client = connect(called).await;
    client.write_all(&get("/")).await.unwrap();
    let head = refused(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
}

#[tokio::test]
async fn bytes_may_flow_while_policies_change_a_thousand_times() {
    let (node, application, vip) = handed_over(|s| s.ports[0].name = "tcp-db".into()).await;
    let mut client = connect(vip).await;
    client.write_all(b"\x00").await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    soon(server.read_u8()).await.unwrap();
    for round in 0..1000 {
        let rules = vec![rule([from("client")], []), rule([from(&format!("other-{round}"))], [to_path("/")])];
        enforce(&node.mesh, vec![policy("changing", Action::Allow, rules)]);
        if round % 100 == 0 {
            passes(&mut client, &mut server, &pattern(10_000)).await;
        }
    }
    passes(&mut server, &mut client, b"still").await;
}

#[tokio::test]
async fn a_tunnel_is_bytes_whatever_its_rules_say_of_requests() {
    let (node, application, vip) = handed_over(http).await;
    for policies in [
        vec![policy("admin", Action::Deny, vec![rule([], [to_path("/admin")])])],
        vec![policy("open", Action::Allow, vec![rule([], [to_path("/")])])],
        vec![policy(
            "get",
            Action::Deny,
            vec![rule([], [Operation { methods: vec!["GET".into()], ..Operation::default() }])],
        )],
    ] {
        enforce(&node.mesh, policies);
        let mut client = connect(vip).await;
        client.write_all(b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n").await.unwrap();
        assert!(refused(&mut client).await.starts_with("HTTP/1.1 403 "));
    }
    nobody_called(&application).await;
    // Where it is listed it is meant.
    let connect_only = Operation { methods: vec!["CONNECT".into()], ..Operation::default() };
    enforce(&node.mesh, vec![policy("tunnel", Action::Allow, vec![rule([from("client")], [connect_only])])]);
    let mut client = connect(vip).await;
    client.write_all(b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n").await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    read_until(&mut server, b"\r\n\r\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    passes(&mut client, &mut server, b"bytes").await;
}

#[tokio::test]
async fn a_silent_client_is_nobodys_business_when_others_change() {
    let node = Node::new(&Ca::new());
    let called = node.called().await;
    enforce(&node.mesh, vec![policy("open", Action::Allow, vec![rule([], [to_path("/")])])]);
    let mut client = connect(called).await;
    until("the connection", || node.mesh.proxy.pods().iter().any(|pod| pod.connections == 1)).await;
    for round in 0..5 {
        let more = vec![rule([], [to_path("/")]), rule([from(&format!("x-{round}"))], [])];
        enforce(&node.mesh, vec![policy("open", Action::Allow, more)]);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    // It is judged when it speaks: here by a path that nobody can misread.
    client.write_all(&get("/%00")).await.unwrap();
    assert!(refused(&mut client).await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn nobody_is_dialled_for_bytes_that_are_refused_at_hand_over() {
    let (node, application, vip) = handed_over(|s| s.ports[0].name = "tcp-db".into()).await;
    enforce(&node.mesh, vec![policy("none", Action::Allow, vec![])]);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(connect(vip).await);
    }
    for client in &mut clients {
        client.write_all(b"\x00bytes").await.unwrap();
        is_reset(client).await;
    }
    assert!(
        tokio::time::timeout(Duration::from_millis(50), application.accept()).await.is_err(),
        "the application was connected to"
    );
    let records = node.mesh.records(40).await;
    let told =
        records.iter().filter(|r| r["reporter"] == "destination" && r["policy"] == "no Allow rule matches (shop/none)");
    assert_eq!(told.count(), 20, "both sides tell of it");
}

#[tokio::test]
async fn what_a_change_ended_is_told_by_its_policy() {
    let (node, application, vip) = handed_over(|s| s.ports[0].name = "tcp-db".into()).await;
    let mut client = connect(vip).await;
    client.write_all(b"\x00").await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    soon(server.read_u8()).await.unwrap();
    enforce(&node.mesh, vec![policy("no-more", Action::Deny, vec![rule([from("client")], [])])]);
    is_reset(&mut client).await;
    let records = node.mesh.records(2).await;
    let told = records.iter().find(|r| r["reporter"] == "destination").unwrap();
    assert_eq!((&told["reason"], &told["policy"]), (&"policy_closed".into(), &"shop/no-more[0]".into()), "{told}");
    let counts = node.mesh.policy.counts();
    assert!(counts.iter().any(|(l, n)| &*l.policy == "shop/no-more" && l.verdict == PolicyVerdict::Denied && *n == 1));
}

#[tokio::test]
async fn a_long_answer_inside_of_connect_arrives_whole_however_slowly_it_is_read() {
    let opaque = |s: &mut Service| s.ports[0].name = "tcp-db".into();
    // For others; this client's bytes are let in, and looked at.
    let rules = vec![rule([from("client")], []), rule([from("other")], [to_path("/open")])];
    let allow = policy("open", Action::Allow, rules);
    let (_here, there, _, called, mut client) = two_nodes(opaque, vec![allow], b"\x00give").await;
    until("a stream at the other node", || there.mesh.proxy.pods().iter().any(|pod| pod.connections > 1)).await;
    let application = application(&there, called).await;
    let (mut server, _) = soon(application.accept()).await.unwrap();
    soon(server.read_exact(&mut [0; 5])).await.unwrap();
    client.shutdown().await.unwrap();
    let sent = pattern(3 << 20);
    let writing = {
        let sent = sent.clone();
        tokio::spawn(async move { server.write_all(&sent).await.unwrap() })
    };
    let mut got = vec![0; 1000];
    soon(client.read_exact(&mut got)).await.unwrap();
    // Longer than anybody would wait for a farewell.
    tokio::time::sleep(Duration::from_secs(3)).await;
    soon(writing).await.unwrap();
    got.extend(rest(&mut client).await);
    assert!(got == sent, "{} of {} bytes arrived", got.len(), sent.len());
}
