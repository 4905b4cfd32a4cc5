//! A root is replaced under load (issue 4, demand 7): from the first step to the last no request fails, and what was signed under the old
//! root is worth nothing afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::claims;
use heddle_testkit::prelude::*;
use heddle_testkit::programs::program;
use heddle_tests_netns::HBONE_PORT;
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

/// Certificates live as short as the authority lets them: agents hear of a step when they renew, about half of it later.
const LIFETIME_SECONDS: &str = "60";
/// Every byte stream of the load is a new connection.
const STREAMS_PER_SECOND: u32 = 20;
/// Longer than all three steps take.
const LOAD: Duration = Duration::from_secs(125);

#[test]
fn a_root_is_replaced_under_load_and_no_request_fails() -> Result<()> {
    let short = ["--certificate-lifetime-seconds", LIFETIME_SECONDS];
    let mesh = Mesh::declare("rotation")
        .node("a")
        .agent_arguments(&short)
        .pod("client")
        .node("b")
        .agent_arguments(&short)
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
    let shaken = handshakes(mesh.node("b"), "server")?;

    // Requests on connections that stay, and byte streams of which each is new.
    let url = format!("http://{}/who", SocketAddr::new(mesh.service("web").cluster_v4(), 80));
    let mut command = program("hey", "hey")?;
    command.args(["-z", "600s", "-c", "4", "-q", "25", &url]);
    let requests = client.spawn("hey", command)?;
    let held = client.hold(&dial(web.v4(), 1004), 4)?;
    let streams = client.start_client(&dial(web.v6(), 1004).rate(STREAMS_PER_SECOND, LOAD))?;

    // What the first root has signed, as a peer outside the mesh shows it to web's agent.
    let old = mesh.ca().issue("old", &claims(&id_of(client)))?;
    let is_taken = || -> Result<bool> {
        let to = SocketAddr::new(web.v4(), HBONE_PORT);
        // The roots of now, for what web shows.
        let roots = mesh.ca().directory().join("root.pem");
        let told = mtls_client(to, &old).trusts(&roots).tunnel(SocketAddr::new(web.v4(), 1004), "x");
        Ok(told.run(mesh.node("a"))?.assert_echoed("x").is_ok())
    };
    ensure!(is_taken()?, "positive control: the first root's signature counts");

    // A step out of its turn, or before everybody can have heard of the last one, is refused and changes nothing.
    let step = |arguments: &[&str]| mesh.ca().rotate(arguments).with_context(|| format!("ca rotate {arguments:?}"));
    ensure!(step(&["activate"]).is_err() && step(&["finish"]).is_err(), "out of turn");
    step(&["prepare"])?;
    let early = step(&["activate"]).expect_err("activated before anybody knew of the new root");
    ensure!(format!("{early:#}").contains("too early") || format!("{early:#}").contains("wait"), "{early:#}");
    all_have_roots(&mesh, 2)?;
    let before: Vec<Vec<String>> = mesh.nodes().iter().map(serials).collect();
    ensure!(before.iter().all(|serials| !serials.is_empty()), "{before:?}");
    // This test has seen what the authority could only wait for.
    step(&["activate", "--force"])?;
    wait_until("certificates of the new root are in use", HEARD, || {
        mesh.nodes().iter().zip(&before).all(|(n, before)| serials(n).iter().all(|serial| !before.contains(serial)))
    })?;
    ensure!(is_taken()?, "both roots count");
    ensure!(step(&["finish"]).is_err(), "finished too early");
    step(&["finish", "--force"])?;
    all_have_roots(&mesh, 1)?;
    ensure!(!is_taken()?, "what the old root signed is still taken");

    ensure!(handshakes(mesh.node("b"), "server")? > shaken, "positive control: connections were made anew");
    assert_eq!(held.ping()?, (4, 0), "connections from before the first step go on");
    streams.finish()?.assert_succeeded().context("new byte streams all along")?;
    requests.signal(nix::sys::signal::Signal::SIGINT)?;
    requests.wait(Duration::from_secs(20))?;
    let printed = requests.stdout();
    let answered =
        printed.lines().find_map(|l| l.trim().strip_prefix("[200]\t")?.split(' ').next()?.parse::<u64>().ok());
    ensure!(answered.is_some_and(|n| n > 1000), "{printed}");
    ensure!(!printed.contains("Error distribution") && printed.matches(" responses").count() == 1, "{printed}");
    for node in mesh.nodes() {
        let is_failed = |r: &serde_json::Value| r["status"].as_u64().is_some_and(|s| s >= 500);
        let failed: Vec<_> = node.access_log().into_iter().filter(is_failed).collect();
        ensure!(failed.is_empty(), "{failed:?}");
    }
    Ok(())
}
