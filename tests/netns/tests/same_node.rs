//! Pods of one node (issue 4, demand 5): the agent hands requests and bytes over in memory, or they cross the veth in TLS; either way both
//! are known, and what an application sees is the same.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::peers::{curl, serve_script};
use heddle_tests_netns::secure_peers::{id_of, wait_certified, wait_identified};
use heddle_tests_netns::{SOON, both_families, wait_logged};
use serde_json::json;

const SECRET: &str = "the-word-nobody-may-read";

/// `client` and `web` on one node.
fn mesh(test: &str) -> Result<Mesh> {
    let mesh = Mesh::declare(test)
        .node("a")
        .pod("client")
        .pod("web")
        .serves(tcp(8081))
        .serves(tcp(8082).server_first("welcome"))
        .serves(tcp(8083).echoes_after_half_close())
        .serves(tcp(8084).resets_on_data())
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    Ok(mesh)
}

fn same_node(mesh: &Mesh, way: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "heddle.dev/v1alpha1",
        "kind": "Mesh",
        "metadata": {"name": "default"},
        "spec": {"sameNode": way},
    });
    mesh.source().write("mesh.yaml", &[object])
}

/// Everything goes as it must by this transport; returns once the agent takes it.
fn carries(mesh: &Mesh, transport: &str) -> Result<()> {
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let node = mesh.node("a");
    wait_until(&format!("connections go by {transport}"), SOON, || {
        let before = node.access_log().len();
        let went = client.connect(&dial(web.v4(), 8081)).is_ok_and(|o| o.assert_succeeded().is_ok());
        let logged = || node.access_log().iter().skip(before).any(|r| r["transport"] == transport);
        went && wait_until("its record", SOON / 20, logged).is_ok()
    })
    .with_context(|| node.agent_tail())?;
    for (ip, own) in both_families(web).into_iter().zip(both_families(client)) {
        client.connect(&dial(ip, 8081).bytes(3_000_000))?.assert_succeeded()?;
        let seen = web.server(0).accepted()?.last().cloned().context("nobody came")?;
        assert_eq!(seen.accept.ip().to_canonical(), own, "the application sees the true client");
        client.connect(&dial(ip, 8082).expect("welcome"))?.assert_succeeded()?;
        let whole = client.connect(&dial(ip, 8083).bytes(1_000_000).half_close())?;
        whole.assert_succeeded()?;
        assert_eq!((whole.one()?.received, &whole.one()?.end), (1_000_000, &End::Eof));
        let reset = client.connect(&dial(ip, 8084).without_echo().wait_end())?;
        assert_eq!(reset.one()?.end, End::Reset, "{reset:?}");
        refused_but("a port without listener", || client.connect(&dial(ip, 9999)), || client.connect(&dial(ip, 8081)))?;
    }
    let field = format!("x-secret: {SECRET}");
    for ip in [mesh.service("web").cluster_v4(), mesh.service("web").cluster_v6()] {
        let url = format!("http://{}/echo?{transport}", SocketAddr::new(ip, 80));
        let told = curl(client, &["-H", &field, "--data", SECRET, &url])?;
        ensure!(told.contains(SECRET) && !told.contains("x-heddle"), "{told}");
    }
    client.connect(&dial(web.v4(), 8081).send(SECRET))?.assert_succeeded()?;
    wait_identified(mesh, [client, web], transport, "a byte stream", |r| r["bytes_sent"] == 3_000_000)?;
    let path = format!("/echo?{transport}");
    for reporter in ["source", "destination"] {
        wait_logged(node, &format!("a request, told by the {reporter}"), |r| {
            r["path"] == path.as_str()
                && r["reporter"] == reporter
                && r["transport"] == transport
                && r["source_principal"] == id_of(client)
                && r["destination_principal"] == id_of(web)
        })?;
    }
    Ok(())
}

#[test]
fn hand_over_leaves_the_veth_empty_and_the_wire_does_not() -> Result<()> {
    let mesh = mesh("same_node")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let _server = serve_script(web, "http1_server.py", &["h11"], 8080)?;
    // Auto: v1 NetworkPolicy is the only kind of policy that files have, and the agent could tell.
    carries(&mesh, "handover").context("sameNode unset")?;
    for (way, transport) in [("Wire", "heddle"), ("Handover", "handover"), ("Auto", "handover"), ("Wire", "heddle")] {
        same_node(&mesh, way)?;
        // Connections from before go on as they were: wait until new ones go the new way, then look.
        wait_until(&format!("sameNode {way} is in force"), SOON, || {
            let before = mesh.node("a").access_log().len();
            let went = client.connect(&dial(web.v4(), 8081)).is_ok_and(|o| o.assert_succeeded().is_ok());
            let logged = || mesh.node("a").access_log().iter().skip(before).any(|r| r["transport"] == transport);
            went && wait_until("its record", SOON / 20, logged).is_ok()
        })?;
        let veth = web.capture("eth0")?;
        carries(&mesh, transport).with_context(|| format!("sameNode {way}"))?;
        let packets = veth.between(client, web)?;
        ensure!(!veth.contains(SECRET.as_bytes())?, "{way}: the secret is on the veth");
        match transport {
            "handover" => {
                ensure!(packets.is_empty(), "{way}: {} packets cross the veth: {:?}", packets.len(), packets[0])
            }
            _ => {
                let bytes: usize = packets.iter().map(|p| p.payload.len()).sum();
                ensure!(bytes > 16_000_000, "{way}: only {bytes} bytes cross the veth");
            }
        }
    }
    Ok(())
}

#[test]
fn without_identities_the_secret_crosses_the_veth() -> Result<()> {
    let mesh = Mesh::declare("same_node_plain").node("a").pod("client").pod("web").serves(tcp(8081)).start()?;
    let veth = mesh.pod("web").capture("eth0")?;
    mesh.pod("client").connect(&dial(mesh.pod("web").v4(), 8081).send(SECRET))?.assert_succeeded()?;
    must_contain(&veth, SECRET.as_bytes())
}
