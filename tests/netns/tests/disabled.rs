//! Mode `Disabled` with traffic (issue 4, demand 6): plain text between nodes though both sides have identities, everything works as without
//! a mesh, and other ports are none of its business.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::peers::{curl, serve_script};
use heddle_tests_netns::secure_peers::{handshakes, wait_certified};
use heddle_tests_netns::{SOON, both_families, wait_logged};
use serde_json::{Value, json};

const SECRET: &str = "the-word-everybody-may-read";

fn mesh_tls(mesh: &Mesh, spec: &Value) -> Result<()> {
    let metadata = json!({"name": "web", "namespace": "shop"});
    let object = json!({"apiVersion": "heddle.dev/v1alpha1", "kind": "MeshTLS", "metadata": metadata, "spec": spec});
    mesh.source().write("mesh-tls.yaml", &[object])
}

/// Waits until new connections to this port travel so.
fn wait_transport(mesh: &Mesh, port: u16, transport: &str) -> Result<()> {
    let (client, web, a) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let destination = SocketAddr::new(web.v4(), port).to_string();
    wait_until(&format!("{port} is called by {transport}"), SOON, || {
        let before = a.access_log().len();
        let went = client.connect(&dial(web.v4(), port)).is_ok_and(|o| o.assert_succeeded().is_ok());
        let is_so = |r: &Value| r["transport"] == transport && r.to_string().contains(&destination);
        went && wait_until("its record", SOON / 20, || a.access_log().iter().skip(before).any(is_so)).is_ok()
    })
    .with_context(|| a.agent_tail())
}

/// Requests, bytes, a server that speaks first, and a half-close, each with the secret in it.
fn carries(mesh: &Mesh, path: &str) -> Result<()> {
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let field = format!("x-secret: {SECRET}");
    for ip in [mesh.service("web").cluster_v4(), mesh.service("web").cluster_v6()] {
        let url = format!("http://{}{path}", SocketAddr::new(ip, 80));
        let told = curl(client, &["-H", &field, "--data", SECRET, &url])?;
        ensure!(told.contains(SECRET) && !told.contains("x-heddle"), "{told}");
    }
    for (ip, own) in both_families(web).into_iter().zip(both_families(client)) {
        client.connect(&dial(ip, 8081).send(SECRET))?.assert_succeeded()?;
        let seen = web.server(0).accepted()?.last().cloned().context("nobody came")?;
        assert_eq!(seen.accept.ip().to_canonical(), own, "the application sees the true client");
        client.connect(&dial(ip, 8082).expect("welcome"))?.assert_succeeded().context("a server that speaks first")?;
        let whole = client.connect(&dial(ip, 8083).bytes(1_000_000).half_close())?;
        whole.assert_succeeded()?;
        assert_eq!((whole.one()?.received, &whole.one()?.end), (1_000_000, &End::Eof));
    }
    Ok(())
}

#[test]
fn disabled_ports_are_called_in_plain_text_and_the_others_are_not() -> Result<()> {
    let mesh = Mesh::declare("disabled")
        .node("a")
        .pod("client")
        .pod("stranger")
        .unmeshed()
        .node("b")
        .pod("web")
        .serves(tcp(8081))
        .serves(tcp(8082).server_first("welcome"))
        .serves(tcp(8083).echoes_after_half_close())
        .serves(tcp(8084))
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let (client, web, a, b) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"), mesh.node("b"));
    let _server = serve_script(web, "http1_server.py", &["h11"], 8080)?;
    // Positive control of the capture: the same by mutual TLS.
    wait_transport(&mesh, 8081, "heddle")?;
    let wire = a.capture("uplink")?;
    carries(&mesh, "/echo?secured")?;
    ensure!(!wire.contains(SECRET.as_bytes())?, "the secret is on the wire though it is not disabled");
    wait_logged(b, "a request by mutual TLS", |r| r["path"] == "/echo?secured" && r["transport"] == "heddle")?;
    let from_before = client.hold(&dial(web.v4(), 8081), 2)?;

    mesh_tls(&mesh, &json!({"mode": "Disabled", "ports": [{"port": 8084, "mode": "Permissive"}]}))?;
    wait_transport(&mesh, 8081, "plain")?;
    let shaken = handshakes(a, "client")?;
    let wire = a.capture("uplink")?;
    carries(&mesh, "/echo?disabled")?;
    must_contain(&wire, SECRET.as_bytes())?;
    ensure!(must_contain(&wire, format!("x-secret: {SECRET}").as_bytes()).is_ok(), "requests as well as bytes");
    ensure!(handshakes(a, "client")? == shaken, "no handshake was made for it");
    for node in [a, b] {
        let record = wait_logged(node, "a request in plain text", |r| r["path"] == "/echo?disabled")?;
        ensure!(record["transport"] == "plain" && record["status"] == 200, "{record}");
    }
    // Nobody has proved anything at the other end, and nothing is made up.
    let told = wait_logged(b, "told by the destination", |r| r["path"] == "/echo?disabled")?;
    ensure!(told["source_principal"].as_str().is_none_or(str::is_empty), "{told}");
    mesh.pod("stranger").connect(&dial(web.v4(), 8081))?.assert_succeeded().context("plain text of others")?;
    ensure!(from_before.ping()? == (2, 0), "connections from before go on as they were\n{}", from_before.tail());

    // The port beside it stays what it was.
    let wire = a.capture("uplink")?;
    wait_transport(&mesh, 8084, "heddle")?;
    client.connect(&dial(web.v4(), 8084).send(SECRET))?.assert_succeeded()?;
    ensure!(!wire.contains(SECRET.as_bytes())?, "the secret of another port is on the wire");
    mesh.source().remove("mesh-tls.yaml")?;
    wait_transport(&mesh, 8081, "heddle")
}
