//! A root is replaced under load (issue 4, demand 7): from the first step to the last no request fails, and what was signed under the old
//! root is worth nothing afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::claims;
use heddle_testkit::prelude::*;
use heddle_tests_netns::exposition::{scrape, sum};
use heddle_tests_netns::peers::{curl, hey, nginx};
use heddle_tests_netns::secure_peers::{handshakes, id_of, mtls_client, wait_certified};
use heddle_tests_netns::{HBONE_PORT, SOON, both_families};

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
/// Connections between the agents grow no older, so that the load has new ones shake hands all the time, whatever the moment.
const AGE_SECONDS: &str = "2";
const STREAMS_PER_SECOND: u32 = 20;
/// Longer than all three steps take.
const LOAD: Duration = Duration::from_secs(125);

/// A pod for each phase: it has connected to nobody before, so that its agent has no connection that it could use.
const PHASES: [&str; 5] = ["at-first", "prepared", "activated", "renewed", "finished"];

/// Handshakes that failed on one side, for whatever reason.
fn failed(node: &Node, side: &str) -> Result<u64> {
    Ok(sum(&scrape(node)?, "heddle_tls_handshake_failures_total", &[("side", side)]) as u64)
}

/// Both a pod that is new to it and those of the load have handshakes made in this phase, and what they carry arrives.
fn shakes_hands(mesh: &Mesh, phase: &str, url: &str) -> Result<()> {
    let (a, pod, web) = (mesh.node("a"), mesh.pod(phase), mesh.pod("web"));
    let made = || handshakes(a, "client");
    let before = made()?;
    for ip in both_families(web) {
        pod.connect(&dial(ip, 1004).many(2, 2))?.assert_succeeded()?;
    }
    ensure!(curl(pod, &[url])?.contains("HTTP/1"), "a request");
    let by_pod = made()?;
    ensure!(by_pod >= before + 2, "{phase}: a new pod's connections took {} handshakes", by_pod - before);
    wait_until(&format!("{phase}: the load has new connections made"), SOON * 2, || {
        made().is_ok_and(|now| now >= by_pod + 4)
    })
    .with_context(|| a.agent_tail())?;
    ensure!(failed(a, "client")? == 0, "{phase}: a handshake failed\n{}", a.agent_tail());
    Ok(())
}

#[test]
fn a_root_is_replaced_under_load_and_no_request_fails() -> Result<()> {
    let short = ["--certificate-lifetime-seconds", LIFETIME_SECONDS, "--mesh-connection-age-max-seconds", AGE_SECONDS];
    let mut node_a = Mesh::declare("rotation").node("a").agent_arguments(&short).pod("client");
    for phase in PHASES {
        node_a = node_a.pod(phase);
    }
    let mesh = node_a
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

    // Requests on connections that the application keeps, and byte streams of which each is new.
    let url = format!("http://{}/who", SocketAddr::new(mesh.service("web").cluster_v4(), 80));
    let requests = hey(client, &["-c", "4", "-q", "25"], &url)?;
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
    shakes_hands(&mesh, "at-first", &url)?;

    // A step out of its turn, or before everybody can have heard of the last one, is refused and changes nothing.
    let step = |arguments: &[&str]| mesh.ca().rotate(arguments).with_context(|| format!("ca rotate {arguments:?}"));
    ensure!(step(&["activate"]).is_err() && step(&["finish"]).is_err(), "out of turn");
    step(&["prepare"])?;
    let early = step(&["activate"]).expect_err("activated before anybody knew of the new root");
    ensure!(format!("{early:#}").contains("too early") || format!("{early:#}").contains("wait"), "{early:#}");
    all_have_roots(&mesh, 2)?;
    let before: Vec<Vec<String>> = mesh.nodes().iter().map(serials).collect();
    ensure!(before.iter().all(|serials| !serials.is_empty()), "{before:?}");
    shakes_hands(&mesh, "prepared", &url)?;
    // This test has seen what the authority could only wait for.
    step(&["activate", "--force"])?;
    // Certificates of both roots are in use.
    shakes_hands(&mesh, "activated", &url)?;
    wait_until("certificates of the new root are in use", HEARD, || {
        mesh.nodes().iter().zip(&before).all(|(n, before)| serials(n).iter().all(|serial| !before.contains(serial)))
    })?;
    ensure!(is_taken()?, "both roots count");
    shakes_hands(&mesh, "renewed", &url)?;
    ensure!(step(&["finish"]).is_err(), "finished too early");
    step(&["finish", "--force"])?;
    all_have_roots(&mesh, 1)?;
    shakes_hands(&mesh, "finished", &url)?;
    ensure!(failed(mesh.node("b"), "server")? == 0, "a handshake failed\n{}", mesh.node("b").agent_tail());
    ensure!(!is_taken()?, "what the old root signed is still taken");
    ensure!(failed(mesh.node("b"), "server")? == 1, "positive control: failures are counted");

    assert_eq!(held.ping()?, (4, 0), "connections from before the first step go on");
    streams.finish()?.assert_succeeded().context("new byte streams all along")?;
    let answered = requests.finish()?;
    ensure!(answered > 1000, "{answered} requests");
    for node in mesh.nodes() {
        let is_failed = |r: &serde_json::Value| r["status"].as_u64().is_some_and(|s| s >= 500);
        let failed: Vec<_> = node.access_log().into_iter().filter(is_failed).collect();
        ensure!(failed.is_empty(), "{failed:?}");
    }
    Ok(())
}
