//! A root is replaced under load (issue 4, demand 7): from the first step to the last no request fails, and what was signed under the old
//! root is worth nothing afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::claims;
use heddle_testkit::prelude::*;
use heddle_testkit::programs::program;
use heddle_tests_netns::exposition::{scrape, sum};
use heddle_tests_netns::peers::nginx;
use heddle_tests_netns::secure_peers::{handshakes, id_of, mtls_client, wait_certified};

/// How long agents may take to hear of a step.
const HEARD: Duration = Duration::from_secs(40);

fn roots(node: &Node) -> u64 {
    let samples = scrape(node).unwrap_or_default();
    sum(&samples, "heddle_trust_bundle_roots", &[("trust_domain", "cluster.local")]) as u64
}

fn all_have_roots(mesh: &Mesh, count: u64) -> Result<()> {
    wait_until(&format!("both agents trust {count} roots"), HEARD, || mesh.nodes().iter().all(|n| roots(n) == count))
        .with_context(|| mesh.nodes().iter().map(Node::agent_tail).collect::<String>())
}

/// Serial numbers of the certificates of a node's pods.
fn serials(node: &Node) -> Vec<String> {
    let all = node.json(&["certs"]).unwrap_or_default().to_string();
    let mut found: Vec<String> =
        all.split("\"serial\":\"").skip(1).filter_map(|t| Some(t.split('"').next()?.to_owned())).collect();
    found.sort();
    found
}

#[test]
fn a_root_is_replaced_under_load_and_no_request_fails() -> Result<()> {
    let mesh = Mesh::declare("rotation")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(1004))
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let _nginx = nginx(web, &mesh.node("b").paths().run.join("nginx"))?;
    let before: Vec<Vec<String>> = mesh.nodes().iter().map(serials).collect();
    let shaken = handshakes(mesh.node("b"), "server")?;

    // Requests on connections that stay, and byte streams of which each is new.
    let url = format!("http://{}/who", SocketAddr::new(mesh.service("web").cluster_v4(), 80));
    let mut command = program("hey", "hey")?;
    command.args(["-z", "600s", "-c", "8", "-q", "50", &url]);
    let requests = client.spawn("hey", command)?;
    let held = client.hold(&dial(web.v4(), 1004), 4)?;
    let streams = client.start_client(&dial(web.v6(), 1004).rate(40, Duration::from_secs(60)))?;

    let told = |step: &str| mesh.ca().rotate(&[step]).with_context(|| format!("step {step}"));
    // A step out of its turn is refused, and changes nothing.
    ensure!(mesh.ca().rotate(&["activate"]).is_err() && mesh.ca().rotate(&["finish"]).is_err(), "out of turn");
    told("prepare")?;
    all_have_roots(&mesh, 2)?;
    wait_step(&mesh, "activate")?;
    let old = mesh.ca().issue("old", &claims(&id_of(client)))?;
    let with_old = |expected: bool| -> Result<bool> {
        let to = SocketAddr::new(web.v4(), heddle_tests_netns::HBONE_PORT);
        // The client trusts nobody in particular here: whom it meets is not the question.
        let told = mtls_client(to, &old).tunnel(SocketAddr::new(web.v4(), 1004), "x").run(mesh.node("a"))?;
        Ok(told.assert_echoed("x").is_ok() == expected)
    };
    wait_until("certificates of the new root are in use", HEARD, || {
        mesh.nodes().iter().zip(&before).all(|(n, before)| serials(n).iter().all(|serial| !before.contains(serial)))
    })?;
    wait_step(&mesh, "finish")?;
    all_have_roots(&mesh, 1)?;
    ensure!(with_old(false)?, "what the old root signed is still taken");

    ensure!(handshakes(mesh.node("b"), "server")? > shaken, "positive control: connections were made anew");
    assert_eq!(held.ping()?, (4, 0), "connections from before the first step go on");
    streams.finish()?.assert_succeeded().context("new byte streams all along")?;
    requests.signal(nix::sys::signal::Signal::SIGINT)?;
    requests.wait(Duration::from_secs(20))?;
    let printed = requests.stdout();
    ensure!(printed.contains("[200]") && !printed.contains("Error distribution"), "{printed}");
    ensure!(
        printed.matches("] \t").count() <= 1 && !printed.contains("[503]") && !printed.contains("[502]"),
        "{printed}"
    );
    for node in mesh.nodes() {
        let failed: Vec<_> =
            node.access_log().into_iter().filter(|r| r["status"].as_u64().is_some_and(|s| s >= 500)).collect();
        ensure!(failed.is_empty(), "{failed:?}");
    }
    Ok(())
}

/// Takes the next step when it is no longer too early for it.
fn wait_step(mesh: &Mesh, step: &str) -> Result<()> {
    let mut last = String::new();
    wait_until(&format!("`ca rotate {step}` is not too early"), HEARD, || match mesh.ca().rotate(&[step]) {
        Ok(_) => true,
        Err(error) => {
            last = format!("{error:#}");
            false
        }
    })
    .context(last)
}
