//! Mutual TLS between agents, on the application's own port (issue 4, demand 3): everything is carried as before, nothing of it can be read
//! on the wire, and both sides know who the other is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::{Authority, claims};
use heddle_testkit::prelude::*;
use heddle_testkit::programs::program;
use heddle_tests_netns::peers::{curl, hypercorn, run, run_script, script, serve, serve_script};
use heddle_tests_netns::secure_peers::{handshakes, id_of, mtls_client, wait_certified, wait_identified};
use heddle_tests_netns::{HBONE_PORT, SOON, both_families, wait_logged, wait_reason};

const SECRET: &str = "the-word-nobody-may-read";
/// A record of TLS that is part of a handshake.
const TLS_HANDSHAKE: u8 = 22;

/// `client` on node a, `web` on node b with byte-stream servers, and the Service of web.
fn declaration(test: &str) -> impl Declare {
    Mesh::declare(test)
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(1001).server_first("220 welcome"))
        .serves(tcp(1002).echoes_after_half_close())
        .serves(tcp(1003).greets_and_half_closes("bye"))
        .serves(tcp(1004))
        .serves(tcp(1005).resets_on_data())
        .service("web")
        .port(80, 8080)
        .port(82, 8082)
        .port(50051, 50051)
        .backed_by("web")
}

fn mesh(test: &str) -> Result<Mesh> {
    let mesh = declaration(test).with_ca().start()?;
    wait_certified(&mesh)?;
    Ok(mesh)
}

/// Says the secret in a request's field, in its body and in a byte stream.
fn say_the_secret(mesh: &Mesh) -> Result<()> {
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let field = format!("x-secret: {SECRET}");
    for ip in [mesh.service("web").cluster_v4(), mesh.service("web").cluster_v6()] {
        let url = format!("http://{}/echo", SocketAddr::new(ip, 80));
        let told = curl(client, &["-H", &field, "--data", SECRET, &url])?;
        ensure!(told.contains(SECRET), "{told}");
    }
    for ip in both_families(web) {
        client.connect(&dial(ip, 1004).send(SECRET))?.assert_succeeded()?;
    }
    Ok(())
}

#[test]
fn what_can_be_read_on_the_wire_without_identities_cannot_be_read_with_them() -> Result<()> {
    for has_identities in [false, true] {
        let mesh = if has_identities { mesh("wire")? } else { declaration("plain_wire").start()? };
        let (client, web) = (mesh.pod("client"), mesh.pod("web"));
        let _server = serve_script(web, "http1_server.py", &["h11"], 8080)?;
        let uplinks = [mesh.node("a").capture("uplink")?, mesh.node("b").capture("uplink")?];
        say_the_secret(&mesh)?;
        for uplink in &uplinks {
            if !has_identities {
                must_contain(uplink, SECRET.as_bytes())?;
                continue;
            }
            ensure!(!uplink.contains(SECRET.as_bytes())?, "the secret is on the wire");
            let packets = uplink.between(client, web)?;
            // The CNI sees the true ports, and no tunnel's.
            let port =
                |p: &heddle_testkit::capture::Packet| if web.addresses().contains(&p.to.ip()) { p.to } else { p.from };
            let mut ports: Vec<u16> = packets.iter().map(|p| port(p).port()).collect();
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(ports, [1004, 8080], "ports between the pods");
            // The first words of every connection are a ClientHello.
            let mut seen = std::collections::BTreeSet::new();
            for packet in packets.iter().filter(|p| client.addresses().contains(&p.from.ip())) {
                if seen.insert(packet.from) {
                    assert_eq!(packet.payload[0], TLS_HANDSHAKE, "{packet:?}");
                }
            }
            ensure!(seen.len() >= 4, "connections of two ports by two families: {seen:?}");
            ensure!(uplink.bytes_of_port(HBONE_PORT)? == 0, "HBONE between two agents of ours");
        }
        if has_identities {
            for node in [mesh.node("a"), mesh.node("b")] {
                ensure!(!node.access_log().iter().any(|r| r["transport"] == "plain"), "{}", node.agent_tail());
            }
        }
    }
    Ok(())
}

#[test]
fn every_protocol_is_carried_and_both_sides_are_known() -> Result<()> {
    let mesh = mesh("mtls_all")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let vip = mesh.service("web");
    let at = |port| SocketAddr::new(vip.cluster_v4(), port).to_string();
    let mut server = Some(serve_script(web, "http1_server.py", &["h11"], 8080)?);
    let _hypercorn = hypercorn(web, 8082)?;
    let _grpc = serve_script(web, "grpc_server.py", &["grpcio"], 50051)?;
    run_script(client, "http1_client.py", &["h11"], &[&at(80)])?;
    wait_identified(&mesh, [client, web], "heddle", "a request of HTTP/1.1", |r| {
        r["protocol"] == "HTTP/1.1" && r["path"] == "/trailers" && r["status"] == 200
    })?;
    let told = curl(client, &["-i", "--http2-prior-knowledge", &format!("http://{}/hints", at(82))])?;
    ensure!(told.matches("HTTP/2 103").count() == 2, "{told}");
    wait_identified(&mesh, [client, web], "heddle", "a request of HTTP/2", |r| r["protocol"] == "HTTP/2")?;
    let printed = run_script(client, "grpc_client.py", &["grpcio"], &[&at(50051)])?;
    ensure!(printed.contains(&format!("peer ipv4:{}:", client.v4())), "the server sees the client: {printed}");
    wait_identified(&mesh, [client, web], "heddle", "a call of gRPC", |r| r["path"] == "/test.Peer/Bidi")?;
    run_script(client, "websocket_h2_client.py", &["h2", "wsproto"], &[&at(82), &client.v4().to_string()])?;
    server.take();
    let _server = serve_script(web, "websocket_server.py", &["websockets"], 8080)?;
    let url = format!("ws://{}", at(80));
    run_script(client, "websocket_client.py", &["websockets"], &[&url, &client.v4().to_string()])?;
    wait_identified(&mesh, [client, web], "heddle", "a WebSocket", |r| r["path"] == "/talk")?;
    Ok(())
}

#[test]
fn byte_streams_keep_their_order_their_ends_and_their_clients() -> Result<()> {
    let mesh = mesh("mtls_streams")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    for (ip, own) in both_families(web).into_iter().zip(both_families(client)) {
        let first = client.connect(&dial(ip, 1001).expect("220 welcome"))?;
        first.assert_succeeded()?;
        ensure!(first.one()?.exchange().is_some_and(|t| t < Duration::from_secs(2)), "{first:?}");
        let whole = client.connect(&dial(ip, 1002).bytes(1_000_000).half_close())?;
        whole.assert_succeeded()?;
        assert_eq!((whole.one()?.received, &whole.one()?.end), (1_000_000, &End::Eof));
        let half = client.connect(&dial(ip, 1003).expect("bye").without_echo().bytes(100_000).half_close())?;
        half.assert_succeeded()?;
        assert_eq!(half.one()?.end, End::Eof);
        client.connect(&dial(ip, 1004).bytes(8_000_000))?.assert_succeeded()?;
        let last = web.server(3).accepted()?.last().cloned().context("nobody came")?;
        assert_eq!(last.accept.ip().to_canonical(), own, "the application sees the true client");
        let by_server = client.connect(&dial(ip, 1005).without_echo().wait_end())?;
        assert_eq!(by_server.one()?.end, End::Reset, "{by_server:?}");
        client.connect(&dial(ip, 1004).reset())?;
        refused_but("a port without listener", || client.connect(&dial(ip, 9999)), || client.connect(&dial(ip, 1004)))?;
    }
    let mut ends = web.server(3).wait_ended(8)?;
    ends.sort();
    ends.dedup();
    assert_eq!(ends, [End::Eof, End::Reset], "a close arrives as a close and a reset as a reset");
    wait_identified(&mesh, [client, web], "heddle", "a byte stream", |r| r["bytes_sent"] == 8_000_000)?;
    wait_reason(mesh.node("a"), "upstream_connect_refused")?;
    Ok(())
}

/// An application's own TLS on its own port: with ALPN, with another, without; from in the mesh and from outside of it.
#[test]
fn an_applications_own_tls_is_not_touched() -> Result<()> {
    let mesh = Mesh::declare("own_tls")
        .node("a")
        .pod("client")
        .pod("stranger")
        .unmeshed()
        .node("b")
        .pod("web")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let web = mesh.pod("web");
    let (directory, own_id) = (mesh.ca().credentials(), "spiffe://application.example/own");
    let authority = Authority::new("root of the application")?;
    let own = authority.issue(directory, "application", &claims(own_id))?;
    let mut command = script("tls_echo.py", &[])?;
    command.arg("8443").args([&own.chain, &own.key]).arg("h2,http/1.1,echo");
    let server = serve(web, "tls-echo", command, &[8443])?;
    for ip in both_families(web) {
        let to = SocketAddr::new(ip, 8443);
        for from in [mesh.pod("client"), mesh.pod("stranger")] {
            for alpn in ["echo", "h2", "heddle/h3,http/1.1", ""] {
                let told = mtls_client(to, &own)
                    .expects(own_id)
                    .with(&[
                        "--no-certificate",
                        "--alpn",
                        alpn,
                        "--raw",
                        SECRET,
                        "--raw-back",
                        &SECRET.len().to_string(),
                    ])
                    .run(from)
                    .with_context(|| server.tail())?;
                let what = || format!("{} with ALPN {alpn:?}: {}", from.name(), told.0);
                // The certificate is the application's: nobody in between has ended this TLS.
                ensure!(told.0["peer"] == own_id && told.0["raw"] == SECRET && told.0["end"] == "ours", "{}", what());
                let agreed = alpn.split(',').find(|name| ["h2", "http/1.1", "echo"].contains(name));
                ensure!(told.0["alpn"].as_str() == agreed, "{}", what());
            }
        }
    }
    // Inside the mesh it is carried as bytes, in TLS of ours.
    let record = wait_logged(mesh.node("b"), "TLS in TLS", |r| r["transport"] == "heddle")?;
    assert_eq!(record["source_principal"], id_of(mesh.pod("client")).as_str());
    wait_logged(mesh.node("b"), "a stranger's", |r| r["transport"] == "plain" && r["reason"] == "completed")?;
    Ok(())
}

/// Both agents' workers, as the testkit starts them.
const WORKERS: u64 = 2;

#[test]
fn a_burst_of_clients_costs_one_handshake_per_key_and_worker() -> Result<()> {
    let mesh = mesh("burst")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let nodes = [mesh.node("a"), mesh.node("b")];
    let count = || -> Result<[u64; 2]> { Ok([handshakes(nodes[0], "client")?, handshakes(nodes[1], "server")?]) };
    let grown = |what: &str, before: [u64; 2], most: u64| -> Result<()> {
        let now = count()?;
        let grown = [now[0] - before[0], now[1] - before[1]];
        ensure!(grown.iter().all(|n| *n <= most), "{what}: {grown:?} handshakes of client and server, most {most}");
        Ok(())
    };
    let before = count()?;
    client.connect(&dial(web.v4(), 1004).many(256, 2))?.assert_succeeded()?;
    ensure!(count()?[0] > before[0], "positive control: handshakes are counted");
    grown("256 byte streams at once", before, WORKERS)?;

    // They vanish in the middle of what they do, again and again; so do requests.
    let before = count()?;
    for _ in 0..3 {
        let held = client.hold(&dial(web.v4(), 1004), 256)?;
        ensure!(held.opened()? == 256, "{}", held.tail());
        held.reset()?;
    }
    client.connect(&dial(web.v4(), 1004).many(16, 4))?.assert_succeeded()?;
    grown("resets of 256 streams", before, 0)?;

    let _server = hypercorn(web, 8080)?;
    let url = format!("http://{}/", SocketAddr::new(mesh.service("web").cluster_v4(), 80));
    let before = count()?;
    let mut command = program("hey", "hey")?;
    command.args(["-n", "1024", "-c", "256", &format!("{url}who")]);
    let printed = run(client, "hey", command)?;
    ensure!(printed.contains("1024 responses"), "{printed}");
    grown("256 clients of HTTP", before, WORKERS)?;
    let before = count()?;
    let mut command = program("h2load", "nghttp2-client")?;
    // Ended in the middle of it: every request under way is cancelled.
    command.args(["--h1", "-c256", "--duration=1", &format!("{url}who")]);
    run(client, "h2load", command)?;
    grown("256 clients that go away", before, 0)
}

#[test]
fn a_killed_agent_serves_at_once_though_the_ca_is_down() -> Result<()> {
    let mesh = mesh("ca_down")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    client.connect(&dial(web.v4(), 1004))?.assert_succeeded()?;
    mesh.ca().kill()?;
    for name in ["a", "b"] {
        let node = mesh.node(name);
        node.kill_agent()?;
        node.start_agent()?;
        let uplink = mesh.node("a").capture("uplink")?;
        for ip in both_families(web) {
            client.connect(&dial(ip, 1004).send(SECRET))?.assert_succeeded().with_context(|| node.agent_tail())?;
        }
        ensure!(!uplink.contains(SECRET.as_bytes())? && !uplink.between(client, web)?.is_empty());
        wait_logged(node, "it is as before", |r| {
            r["transport"] == "heddle"
                && r["source_principal"] == id_of(client)
                && r["destination_principal"] == id_of(web)
        })?;
    }
    Ok(())
}

#[test]
fn connections_and_certificates_are_shown_without_keys() -> Result<()> {
    let mesh = mesh("shown")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let held = client.hold(&dial(web.v4(), 1004), 2)?;
    ensure!(held.opened()? == 2);
    for (node, own) in [(mesh.node("a"), client), (mesh.node("b"), web)] {
        let mut last = Vec::new();
        wait_until("both connections are listed with both identities", SOON, || {
            last = node.connections().unwrap_or_default();
            let is = |c: &&serde_json::Value| {
                c["transport"] == "heddle"
                    && c["source_principal"] == id_of(client)
                    && c["destination_principal"] == id_of(web)
            };
            last.iter().filter(is).count() >= 2
        })
        .with_context(|| format!("{last:#?}"))?;
        let table = node.heddle(&["certs"])?;
        ensure!(table.status.success() && table.stdout.contains(&id_of(own)), "{table:?}");
        let json = node.json(&["certs"])?.to_string();
        for word in [&id_of(own), "serial", "issuer", "not_after", "state"] {
            ensure!(json.contains(word), "no {word} in {json}");
        }
        ensure!(!json.contains("PRIVATE") && !json.contains("key\""), "{json}");
        let metrics = node.metrics()?;
        ensure!(!metrics.contains("PRIVATE"));
        let check = node.heddle(&["check"])?;
        ensure!(check.stdout.to_lowercase().contains("certificate"), "{check:?}");
    }
    held.close()
}
