//! The peers of the mTLS suites among themselves, without Heddle: Envoy 1.40 and Python's stack carry HBONE for each other both ways, and
//! refuse each other for every reason for which Heddle is to refuse them. What fails here is not Heddle's fault.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::{Authority, claims, spiffe_id};
use heddle_testkit::prelude::*;
use heddle_tests_netns::secure_peers::{envoy_hbone_client, envoy_hbone_server, hbone_server, mtls_client};
use heddle_tests_netns::{HBONE_PORT, SOON, both_families};

struct Scene {
    mesh: Mesh,
    authority: Authority,
    directory: PathBuf,
    client_id: String,
    server_id: String,
}

/// Two nodes without Heddle; in `web` an echo server on 8080 and one that speaks first on 8081.
fn scene(test: &str) -> Result<Scene> {
    let mesh = Mesh::declare(test)
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .serves(tcp(8081).server_first("welcome"))
        .serves(tcp(8082).resets_on_data())
        .start_without_heddle()?;
    let directory = mesh.node("a").paths().run.clone();
    let (client_id, server_id) = (spiffe_id("shop", "client"), spiffe_id("shop", "web"));
    Ok(Scene { mesh, authority: Authority::new("root of the test")?, directory, client_id, server_id })
}

#[test]
fn envoy_carries_hbone_to_envoy() -> Result<()> {
    let Scene { mesh, authority, directory, client_id, server_id } = scene("envoy_to_envoy")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let ours = authority.issue(&directory, "client", &claims(&client_id))?;
    let theirs = authority.issue(&directory, "web", &claims(&server_id))?;
    let authorities = [SocketAddr::new(web.v4(), 8080), SocketAddr::new(web.v4(), 8081)];
    let uplink = mesh.node("a").capture("uplink")?;
    let server = envoy_hbone_server(web, &directory, &theirs, &client_id, authorities)?;
    let _client = envoy_hbone_client(client, &directory, &ours, web.v4(), &server_id, authorities)?;
    let loopback = "127.0.0.1".parse()?;
    client.connect(&dial(loopback, 10001).send("a word in private"))?.assert_succeeded()?;
    client.connect(&dial(loopback, 10001).bytes(3_000_000).half_close())?.assert_succeeded()?;
    client.connect(&dial(loopback, 10002).expect("welcome"))?.assert_succeeded()?;
    let line = format!("CONNECT {} 200 {client_id} TLSv1.3 {}", authorities[1], client.v4());
    wait_until("Envoy logs both identities", SOON, || server.stdout().contains(&line))
        .with_context(|| server.tail())?;
    ensure!(!uplink.contains(b"a word in private")? && uplink.bytes_of_port(HBONE_PORT)? > 3_000_000);
    client.connect(&dial(web.v4(), 8080).send("a word in private"))?.assert_succeeded()?;
    must_contain(&uplink, b"a word in private")?;

    // The server is another than the client wants, and the client another than the server wants.
    drop(server);
    let stranger = spiffe_id("shop", "stranger");
    let wrong = authority.issue(&directory, "stranger", &claims(&stranger))?;
    for (credential, wanted) in [(&wrong, &client_id), (&theirs, &stranger)] {
        let _server = envoy_hbone_server(web, &directory, credential, wanted, authorities)?;
        let outcome = client.connect(&dial(loopback, 10001))?;
        ensure!(outcome.summary.succeeded == 0, "{outcome:?}");
    }
    let _server = envoy_hbone_server(web, &directory, &theirs, &client_id, authorities)?;
    client.connect(&dial(loopback, 10001))?.assert_succeeded()
}

#[test]
fn python_carries_hbone_to_envoy_and_back() -> Result<()> {
    let Scene { mesh, authority, directory, client_id, server_id } = scene("python_envoy")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let ours = authority.issue(&directory, "client", &claims(&client_id))?;
    let theirs = authority.issue(&directory, "web", &claims(&server_id))?;
    let loopback = "127.0.0.1".parse()?;
    for ip in both_families(web) {
        let authorities = [SocketAddr::new(ip, 8080), SocketAddr::new(ip, 8081)];
        let server = envoy_hbone_server(web, &directory, &theirs, &client_id, authorities)?;
        let to = mtls_client(SocketAddr::new(ip, HBONE_PORT), &ours).expects(&server_id);
        let many = to.clone().tunnel(authorities[0], "stream {n}").with(&["--streams", "50", "--ping"]).run(client)?;
        many.assert_echoed("stream {n}")?;
        ensure!(many.0["pongs"] == 1 && many.0["alpn"] == "h2" && many.0["version"] == "TLSv1.3", "{}", many.0);
        let nowhere = to.clone().tunnel(SocketAddr::new(ip, 9999), "x").run(client)?;
        assert_eq!(nowhere.status()?, "404");
        drop(server);

        let server = hbone_server(web, &theirs, &["--expect", &client_id])?;
        let envoy = envoy_hbone_client(client, &directory, &ours, ip, &server_id, authorities)?;
        client.connect(&dial(loopback, 10001).bytes(3_000_000).half_close())?.assert_succeeded()?;
        client.connect(&dial(loopback, 10002).expect("welcome"))?.assert_succeeded()?;
        client.connect(&dial(loopback, 10001).many(8, 5))?.assert_succeeded()?;
        server.wait("handshake", |e| e["peer"] == client_id && e["alpn"] == "h2" && e["version"] == "TLSv1.3")?;
        server.wait("connect", |e| e["fields"][":authority"] == authorities[1].to_string())?;
        drop(envoy);
    }
    Ok(())
}

#[test]
fn pythons_server_is_what_it_says() -> Result<()> {
    let Scene { mesh, authority, directory, client_id, server_id } = scene("python_python")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let ours = authority.issue(&directory, "client", &claims(&client_id))?;
    let theirs = authority.issue(&directory, "web", &claims(&server_id))?;
    let to = mtls_client(SocketAddr::new(web.v4(), HBONE_PORT), &ours);
    let at = |port| SocketAddr::new(web.v4(), port);
    let server = hbone_server(web, &theirs, &["--expect", &client_id])?;

    let big = to.clone().with(&["--authority", &at(8080).to_string(), "--bytes", "3000000"]).run(client)?;
    ensure!(big.stream()?["is_echo"] == true && big.stream()?["end"] == "eof", "{}", big.0);
    // A reset by the application, one by the client, and a port where nobody listens.
    let reset = to.clone().tunnel(at(8082), "x").run(client)?;
    assert_eq!(reset.stream()?["end"], "reset 10", "{}", reset.0);
    to.clone().tunnel(at(8080), "x").with(&["--reset-after", "1"]).run(client)?;
    let ends = web.server(0).wait_ended(2)?;
    assert_eq!(ends.last(), Some(&End::Reset), "{ends:?}");
    assert_eq!(to.clone().tunnel(at(9999), "x").run(client)?.status()?, "503");
    drop(server);

    for (words, control) in [
        (&["--status", "401"][..], "401"),
        (&["--reset"], "reset"),
        (&["--truncate"], "truncated"),
        (&["--tls12"], "handshake"),
        (&["--alpn", ""], "alpn"),
    ] {
        let _server = hbone_server(web, &theirs, words)?;
        let told = to.clone().tunnel(at(8080), "x").run(client)?;
        let is_so = match control {
            "401" => told.status()? == "401",
            "reset" => told.stream()?["end"] == "reset 10",
            "truncated" => told.0["end"] == "reset" || told.0["end"] == "truncated",
            "handshake" => told.0["handshake"] != "ok",
            _ => told.0["handshake"] == "ok" && told.0["alpn"].is_null(),
        };
        ensure!(is_so, "{words:?}: {}", told.0);
    }
    Ok(())
}

/// Every wrong credential, shown to both servers: refused, and a good one beside it is not.
#[test]
fn both_servers_refuse_wrong_credentials() -> Result<()> {
    let Scene { mesh, authority, directory, client_id, server_id } = scene("refusals")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let theirs = authority.issue(&directory, "web", &claims(&server_id))?;
    let good = authority.issue(&directory, "good", &claims(&client_id))?;
    let foreign = Authority::new("root of somebody else")?;
    let elsewhere = "spiffe://elsewhere.example/ns/shop/sa/client";
    let wrong = [
        authority.issue(&directory, "expired", &claims(&client_id).expired())?,
        authority.issue(&directory, "early", &claims(&client_id).not_yet_valid())?,
        authority.issue(&directory, "elsewhere", &claims(elsewhere))?,
        authority.issue(&directory, "nobody", &claims(&client_id).of_nobody())?,
        foreign.issue(&directory, "foreign", &claims(&client_id))?,
    ];
    let at = SocketAddr::new(web.v4(), 8080);
    for name in ["envoy", "python"] {
        let _server = match name {
            "envoy" => {
                Ok(envoy_hbone_server(web, &directory, &theirs, &client_id, [at, SocketAddr::new(web.v4(), 8081)])?)
            }
            _ => Err(hbone_server(web, &theirs, &["--expect", &client_id])?),
        };
        let to = SocketAddr::new(web.v4(), HBONE_PORT);
        let echoes = || mtls_client(to, &good).tunnel(at, "x").run(client)?.assert_echoed("x");
        echoes().with_context(|| format!("positive control of {name}"))?;
        for credential in &wrong {
            let told = mtls_client(to, credential).trusts(&good.root).tunnel(at, "x").run(client)?;
            told.assert_refused().with_context(|| format!("{name}: {}", credential.chain.display()))?;
        }
        for words in [&["--no-certificate"][..], &["--tls12"], &["--hello-only", "40", "--timeout", "1"]] {
            mtls_client(to, &good).tunnel(at, "x").with(words).run(client)?.assert_refused()?;
        }
        let slow = mtls_client(to, &good).tunnel(at, "x").with(&["--slow-ms", "2"]).run(client)?;
        slow.assert_echoed("x").context("slow but in time")?;
        echoes().with_context(|| format!("positive control after {name}"))?;
    }
    Ok(())
}
