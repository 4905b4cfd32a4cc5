//! WebSocket between pods, with peers of other people: `websockets` over HTTP/1.1 (RFC 6455), h2 and hypercorn over HTTP/2 (RFC 8441).

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::peers::{hypercorn, run_script, serve_script};
use heddle_tests_netns::{SOON, both_families, wait_logged};
use std::net::SocketAddr;

fn mesh(test: &str) -> Result<Mesh> {
    Mesh::declare(test)
        .node("a")
        .pod("client")
        .node("b")
        .pod("chat")
        .service("chat")
        .port(80, 8080)
        .backed_by("chat")
        .start()
}

/// The clients are gone, and with them everything the agent held for them but idle connections to others.
fn nothing_is_left(client: &Node) -> Result<()> {
    wait_until("no connection is left", SOON, || client.connections().is_ok_and(|all| all.is_empty()))
        .with_context(|| format!("{:?}", client.connections()))
}

#[test]
fn a_websocket_over_http1_is_a_tunnel_with_all_its_frames_and_ends() -> Result<()> {
    let mesh = mesh("ws_http1")?;
    let (client, chat) = (mesh.pod("client"), mesh.pod("chat"));
    let server = serve_script(chat, "websocket_server.py", &["websockets"], 8080)?;
    let vip = mesh.service("chat");
    for (ip, own) in [vip.cluster_v4(), vip.cluster_v6()].into_iter().zip(both_families(client)) {
        let url = format!("ws://{}", SocketAddr::new(ip, 80));
        run_script(client, "websocket_client.py", &["websockets"], &[&url, &own.to_string()])
            .with_context(|| server.tail())?;
    }
    // What the client said last reached the server, and so did its vanishing.
    let lines = ["/talk closed 1000", "/code closed 4001 bye", "/away closed 1001 bye", "/vanish closed 1006"];
    for line in lines {
        wait_until(&format!("the server prints {line:?} twice"), SOON, || server.stdout().matches(line).count() == 2)
            .with_context(|| server.stdout())?;
    }
    for (node, reporter) in [("a", "source"), ("b", "destination")] {
        let node = mesh.node(node);
        for (path, status) in [("/talk", 101), ("/large", 101), ("/forbidden", 403), ("/many", 101)] {
            wait_logged(node, path, |r| {
                r["path"] == path && r["status"] == status && r["reporter"] == reporter && r["reason"] == "completed"
            })?;
        }
        // Bytes of a tunnel are the exchange's: 24 MiB to the client, 8 MiB from it, frames and handshake.
        let large = wait_logged(node, "/large", |r| r["path"] == "/large")?;
        let count = |field: &str| large[field].as_u64().unwrap_or_default();
        ensure!(count("bytes_sent") > 24 << 20 && count("bytes_sent") < 25 << 20, "{large}");
        ensure!(count("bytes_received") > 8 << 20 && count("bytes_received") < 9 << 20, "{large}");
        // An end without a close frame is told as what it was.
        wait_logged(node, "the server's reset", |r| r["path"] == "/abrupt" && r["reason"] == "upstream_reset")?;
    }
    nothing_is_left(mesh.node("a"))
}

#[test]
fn websockets_over_http2_share_a_connection_with_requests() -> Result<()> {
    let mesh = mesh("ws_http2")?;
    let (client, chat) = (mesh.pod("client"), mesh.pod("chat"));
    let vip = mesh.service("chat");
    for (ip, own) in [vip.cluster_v4(), vip.cluster_v6()].into_iter().zip(both_families(client)) {
        // The last thing the client asks of the server is to die.
        let server = hypercorn(chat, 8080)?;
        let at = SocketAddr::new(ip, 80).to_string();
        run_script(client, "websocket_h2_client.py", &["h2", "wsproto"], &[&at, &own.to_string()])
            .with_context(|| server.tail())?;
        let closed = ["/one closed 1000", "/vanish closed 1006"];
        ensure!(closed.iter().all(|line| server.stdout().contains(line)), "{}", server.stdout());
    }
    for node in ["a", "b"] {
        let node = mesh.node(node);
        let is = |r: &serde_json::Value, path: &str| r["path"] == path && r["protocol"] == "HTTP/2";
        wait_logged(node, "/one", |r| is(r, "/one") && r["status"] == 200 && r["method"] == "CONNECT")?;
        wait_logged(node, "/forbidden", |r| is(r, "/forbidden") && r["status"] == 403)?;
        wait_logged(node, "/vanish", |r| is(r, "/vanish") && r["reason"] == "request_cancelled")?;
        wait_logged(node, "/other", |r| is(r, "/other") && r["reason"] != "completed" && r["status"] == 200)?;
    }
    nothing_is_left(mesh.node("a"))
}

#[test]
fn websockets_over_http2_reach_a_server_of_http1() -> Result<()> {
    let declared = serde_json::json!([
        {"name": "port-80", "port": 80, "targetPort": 8080, "appProtocol": "kubernetes.io/ws"}
    ]);
    let mesh = Mesh::declare("ws_crossing")
        .node("a")
        .pod("client")
        .node("b")
        .pod("chat")
        .service("chat")
        .port(80, 8080)
        .with("ports", declared)
        .backed_by("chat")
        .start()?;
    let (client, chat) = (mesh.pod("client"), mesh.pod("chat"));
    let vip = mesh.service("chat");
    for (ip, own) in [vip.cluster_v4(), vip.cluster_v6()].into_iter().zip(both_families(client)) {
        let server = hypercorn(chat, 8080)?;
        let at = SocketAddr::new(ip, 80).to_string();
        run_script(client, "websocket_h2_client.py", &["h2", "wsproto"], &[&at, &own.to_string(), "1.1"])
            .with_context(|| server.tail())?;
        let closed = ["/one closed 1000", "/vanish closed 1006"];
        ensure!(closed.iter().all(|line| server.stdout().contains(line)), "{}", server.stdout());
    }
    for (node, protocol, status) in [("a", "HTTP/2", 200), ("b", "HTTP/1.1", 101)] {
        let node = mesh.node(node);
        let is = |r: &serde_json::Value, path: &str| r["path"] == path && r["protocol"] == protocol;
        wait_logged(node, "/one", |r| is(r, "/one") && r["status"] == status)?;
        wait_logged(node, "/forbidden", |r| is(r, "/forbidden") && r["status"] == 403)?;
    }
    nothing_is_left(mesh.node("a"))
}
