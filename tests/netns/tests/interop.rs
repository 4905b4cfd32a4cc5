//! HTTP between pods with other people's proxies, servers, clients and load generators, on real eBPF (FEATURES D5): Envoy 1.40 as server
//! and as client, h2load, Go's client in hey, h11, hypercorn, and what curl knows beyond a GET.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_testkit::programs::program;
use heddle_tests_netns::exposition::{scrape, sum};
use heddle_tests_netns::peers::{curl, hypercorn, nginx, run, run_script, serve_script, start_envoy};
use heddle_tests_netns::{SOON, wait_logged};
use serde_json::Value;

/// `client` on node a, `web` on node b, and the Service of web: 80 → 8080, 82 → 8082.
fn mesh(test: &str) -> Result<Mesh> {
    Mesh::declare(test)
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .service("web")
        .port(80, 8080)
        .port(82, 8082)
        .backed_by("web")
        .start()
}

/// In the pod `web`: Envoy on 8080, and behind it servers of HTTP/1, gRPC and WebSocket.
struct Front {
    envoy: Process,
    _servers: [Process; 3],
}

impl Front {
    fn start(mesh: &Mesh) -> Result<Self> {
        let web = mesh.pod("web");
        let servers = [
            serve_script(web, "http1_server.py", &["h11"], 9001)?,
            serve_script(web, "grpc_server.py", &["grpcio"], 9002)?,
            serve_script(web, "websocket_server.py", &["websockets"], 9003)?,
        ];
        let run = &mesh.node("b").paths().run;
        Ok(Self { envoy: start_envoy(web, run, "envoy_upstream.yaml", &[], &[8080])?, _servers: servers })
    }

    /// Waits for a line of Envoy's own access log: protocol, method, path, status, flags, client.
    fn wait_logged(&self, line: &str) -> Result<()> {
        wait_until(&format!("Envoy logs {line}"), SOON, || self.envoy.stdout().lines().any(|l| l == line))
            .with_context(|| self.envoy.tail())
    }
}

/// Everything that goes over a client's HTTP at `at`, whoever serves it: bodies, trailers, interim responses, WebSocket, gRPC.
fn speaks_everything(from: &Place, at: &str) -> Result<()> {
    run_script(from, "http1_client.py", &["h11"], &[at, "1"])?;
    run_script(from, "websocket_client.py", &["websockets"], &[&format!("ws://{at}")])?;
    run_script(from, "grpc_client.py", &["grpcio"], &[at])?;
    Ok(())
}

/// What `/echo` saw of a request.
fn echo(printed: &str) -> Result<Value> {
    serde_json::from_str(printed.trim()).with_context(|| printed.to_owned())
}

#[test]
fn envoy_serves_every_client() -> Result<()> {
    let mesh = mesh("envoy_server")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let front = Front::start(&mesh)?;
    let vip = mesh.service("web");
    speaks_everything(client, &SocketAddr::new(vip.cluster_v4(), 80).to_string())?;
    let body = mesh.node("a").paths().run.join("body");
    fs::write(&body, vec![b'x'; 3 << 20])?;
    let data = format!("@{}", body.display());
    for (ip, own) in [(vip.cluster_v4(), client.v4()), (vip.cluster_v6(), client.v6())] {
        for (version, protocol) in [("--http1.0", "1.0"), ("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
            let url = format!("http://{}/echo?{protocol}", SocketAddr::new(ip, 80));
            let told = echo(&curl(client, &[version, "--data-binary", &data, &url])?)?;
            ensure!(told["length"] == 3 << 20 && told["method"] == "POST", "{told}");
            // A client of 1.0 is served by our 1.1.
            let spoken = if protocol == "2" { "2" } else { "1.1" };
            front.wait_logged(&format!("HTTP/{spoken} POST /echo?{protocol} 200 - {own}"))?;
        }
        // Envoy ends CONNECT itself and carries the bytes to the HTTP/1 server: curl's request inside is not HTTP to the agents.
        let proxy = format!("http://{}", SocketAddr::new(ip, 80));
        let told = echo(&curl(client, &["--proxytunnel", "--proxy", &proxy, "http://origin/echo?inside"])?)?;
        ensure!(told["headers"]["host"] == "origin", "{told}");
    }
    for node in [mesh.node("a"), mesh.node("b")] {
        for (protocol, version) in [("HTTP/1.0", "1.0"), ("HTTP/1.1", "1.1"), ("HTTP/2", "2")] {
            // Between the agents 1.0 is 1.1.
            let spoken = if version == "1.0" && node.name() == "b" { "HTTP/1.1" } else { protocol };
            wait_logged(node, protocol, |r| {
                r["protocol"] == spoken
                    && r["path"] == format!("/echo?{version}")
                    && r["status"] == 200
                    && r["bytes_received"] == 3 << 20
                    && r["destination_pod"] == web.name()
            })?;
        }
        wait_logged(node, "CONNECT", |r| {
            r["method"] == "CONNECT" && r["status"] == 200 && r["authority"] == "origin:80"
        })?;
        ensure!(!node.access_log().iter().any(|r| r["path"] == "/echo?inside"), "the inside of a tunnel was read");
    }
    Ok(())
}

#[test]
fn envoy_calls_a_service_by_either_version() -> Result<()> {
    let mesh = mesh("envoy_client")?;
    let client = mesh.pod("client");
    let front = Front::start(&mesh)?;
    let vip = mesh.service("web").cluster_v6().to_string();
    let words = [("SERVICE", &*format!("\"{vip}\""))];
    let run = &mesh.node("a").paths().run;
    let ports = [10001, 10002, 10003, 10004];
    let _envoy = start_envoy(client, run, "envoy_downstream.yaml", &words, &ports)?;
    for (port, protocol) in [(10001, "HTTP/1.1"), (10002, "HTTP/2")] {
        speaks_everything(client, &format!("127.0.0.1:{port}")).with_context(|| format!("by {protocol}"))?;
        // Both Envoys agree on the version between them, and on whose pod called.
        let url = format!("http://127.0.0.1:{port}/echo?{port}");
        ensure!(echo(&curl(client, &[&url])?)?["length"] == 0);
        front.wait_logged(&format!("{protocol} GET /echo?{port} 200 - {}", client.v6()))?;
    }
    for port in [10003, 10004] {
        let told = echo(&curl(client, &[&format!("http://127.0.0.1:{port}/echo")])?)?;
        ensure!(told["headers"]["host"] == format!("127.0.0.1:{port}"), "{told}");
    }
    for node in [mesh.node("a"), mesh.node("b")] {
        let logged = |what: &str, protocol: &str, is: &dyn Fn(&Value) -> bool| {
            wait_logged(node, &format!("{what} by {protocol}"), |r| r["protocol"] == protocol && is(r))
        };
        for protocol in ["HTTP/1.1", "HTTP/2"] {
            logged("trailers", protocol, &|r| r["path"] == "/trailers" && r["status"] == 200)?;
            logged("CONNECT", protocol, &|r| r["method"] == "CONNECT" && r["authority"] == "origin:80")?;
            // gRPC crossed the mesh by both: Envoy carries it over HTTP/1.1 with chunks and trailers.
            logged("gRPC", protocol, &|r| r["path"] == "/test.Peer/Bidi" && r["grpc_status"] == 0)?;
            logged("a gRPC error", protocol, &|r| r["path"] == "/test.Peer/Unary" && r["grpc_status"] == 7)?;
        }
        // WebSocket over HTTP/2 is extended CONNECT.
        logged("WebSocket", "HTTP/1.1", &|r| r["path"] == "/talk" && r["status"] == 101 && r["method"] == "GET")?;
        logged("WebSocket", "HTTP/2", &|r| r["path"] == "/talk" && r["status"] == 200 && r["method"] == "CONNECT")?;
    }
    Ok(())
}

/// How many requests one run of a load generator makes.
const REQUESTS: u64 = 4000;

/// Requests with status `code` that both agents counted so far.
fn counted(mesh: &Mesh, code: &str) -> Result<[u64; 2]> {
    let count = |node: &str, reporter: &str| -> Result<u64> {
        let labels = [("reporter", reporter), ("response_code", code), ("response_flags", "-")];
        Ok(sum(&scrape(mesh.node(node))?, "istio_requests_total", &labels) as u64)
    };
    Ok([count("a", "source")?, count("b", "destination")?])
}

/// Runs a load generator; both agents count exactly what it sent.
fn counts_agree(mesh: &Mesh, code: &str, command: Command) -> Result<String> {
    let before = counted(mesh, code)?;
    let printed = run(mesh.pod("client"), "load", command)?;
    let mut last = [0; 2];
    wait_until("both agents count every request", SOON, || {
        last = counted(mesh, code).unwrap_or_default();
        last == before.map(|n| n + REQUESTS)
    })
    .with_context(|| format!("from {before:?} to {last:?}\n{printed}"))?;
    Ok(printed)
}

#[test]
fn h2load_and_the_agents_count_the_same() -> Result<()> {
    let mesh = mesh("h2load")?;
    let run = mesh.node("b").paths().run.join("nginx");
    let _nginx = nginx(mesh.pod("web"), &run)?;
    let vip = mesh.service("web").cluster_v4();
    let body = run.join("body");
    fs::write(&body, vec![b'x'; 20_000])?;
    let post = ["-d".to_owned(), body.display().to_string()];
    for (port, path, code, arguments) in [
        // Pipelined eight deep, then one by one with bodies; then many streams of few connections and of many.
        (80, "who", "200", vec!["--h1", "-c16", "-m8"]),
        (80, "post", "201", vec!["--h1", "-c16", &post[0], &post[1]]),
        (82, "who", "200", vec!["-c4", "-m100"]),
        (82, "who", "200", vec!["-c64", "-m4"]),
        (82, "post", "201", vec!["-c8", "-m16", &post[0], &post[1]]),
    ] {
        let mut command = program("h2load", "nghttp2-client")?;
        command.args(["-n", &REQUESTS.to_string()]).args(&arguments).arg(format!("http://{vip}:{port}/{path}"));
        let printed = counts_agree(&mesh, code, command)?;
        let good = format!(
            "requests: {REQUESTS} total, {REQUESTS} started, {REQUESTS} done, {REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout"
        );
        ensure!(printed.contains(&good), "h2load {arguments:?}\n{printed}");
    }
    Ok(())
}

#[test]
fn gos_client_keeps_its_connections() -> Result<()> {
    let mesh = mesh("hey")?;
    let run = mesh.node("b").paths().run.join("nginx");
    let _nginx = nginx(mesh.pod("web"), &run)?;
    let url = format!("http://{}/", SocketAddr::new(mesh.service("web").cluster_v6(), 80));
    let body = run.join("big");
    // hey speaks HTTP/2 only behind TLS.
    for (path, code, arguments) in [
        ("who", "200", vec![]),
        ("who", "200", vec!["-disable-keepalive"]),
        ("post", "201", vec!["-m", "POST", "-d", "a body of Go's"]),
    ] {
        let mut command = program("hey", "hey")?;
        command.args(["-n", &REQUESTS.to_string(), "-c", "20"]).args(&arguments).arg(format!("{url}{path}"));
        let printed = counts_agree(&mesh, code, command)?;
        ensure!(printed.contains(&format!("[{code}]\t{REQUESTS} responses")), "hey {arguments:?}\n{printed}");
        ensure!(!printed.contains("Error distribution"), "hey {arguments:?}\n{printed}");
    }
    let mut command = program("hey", "hey")?;
    command.args(["-n", "20", "-c", "4", "-m", "POST", "-D"]).arg(&body).arg(format!("{url}post"));
    let printed = heddle_tests_netns::peers::run(mesh.pod("client"), "hey", command)?;
    ensure!(printed.contains("[201]\t20 responses"), "{printed}");
    Ok(())
}

#[test]
fn curl_knows_more_than_get() -> Result<()> {
    let mesh = mesh("curl_more")?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let server = serve_script(web, "http1_server.py", &["h11"], 8080)?;
    let _hypercorn = hypercorn(web, 8082)?;
    let body = mesh.node("a").paths().run.join("body");
    fs::write(&body, vec![b'x'; 3 << 20])?;
    let upload = body.display().to_string();
    let vip = mesh.service("web");
    for ip in [vip.cluster_v4(), vip.cluster_v6()] {
        let (h1, h2) = (SocketAddr::new(ip, 80).to_string(), SocketAddr::new(ip, 82).to_string());
        run_script(client, "http1_client.py", &["h11"], &[&h1])?;
        let get =
            |path: &str, arguments: &[&str]| curl(client, &[arguments, &[&format!("http://{h1}{path}")]].concat());

        // HTTP/1.0 to a server of 1.1: whatever framing that chooses, the client can read.
        let told = get("/trailers", &["--http1.0", "-i"])?;
        ensure!(told.contains("one two three\n") && !told.to_ascii_lowercase().contains("chunked"), "{told}");
        ensure!(get("/close", &["--http1.0", "-o", "/dev/null", "-w", "%{size_download}"])? == "100000");
        ensure!(get("/close", &["-o", "/dev/null", "-w", "%{size_download}"])? == "100000");

        // Uploads of unknown length, with and without the server's word first.
        for expect in ["Expect:", "Expect: 100-continue"] {
            let told = echo(&get("/echo", &["-T", &upload, "-H", "Transfer-Encoding: chunked", "-H", expect])?)?;
            ensure!(told["length"] == 3 << 20 && told["method"] == "PUT", "{told}");
            ensure!(told["headers"]["transfer-encoding"] == "chunked", "{told}");
        }
        // A server that never says 100: curl's patience ends, the body comes. One that says no at once: it does not.
        let patient =
            ["-T", &upload, "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-w", "%{size_upload}"];
        let refused = get("/refuse", &patient)?;
        ensure!(refused == "no, thank you\n0", "{refused}");
        ensure!(get("/refuse", &["-T", &upload, "-H", "Expect:", "-o", "/dev/null", "-w", "%{http_code}"])? == "403");

        // 103 twice, and trailers, by both versions.
        let hints = get("/hints", &["-i"])?;
        ensure!(
            hints.matches("HTTP/1.1 103 ").count() == 2 && hints.contains("Link: </b.css>; rel=preload"),
            "{hints}"
        );
        ensure!(hints.ends_with("hinted\n"), "{hints}");
        let trailers = get("/trailers", &["-i", "-H", "TE: trailers"])?;
        ensure!(trailers.to_ascii_lowercase().contains("one two three\nx-sum: 6"), "{trailers}");
        let h2 = |path: &str| {
            let url = format!("http://{h2}{path}");
            curl(client, &["-i", "--http2-prior-knowledge", "-H", "TE: trailers", "-T", &upload, &url])
        };
        let hints = h2("/hints")?;
        ensure!(hints.matches("HTTP/2 103").count() == 2 && hints.contains("link: </b.css>; rel=preload"), "{hints}");
        let trailers = h2("/trailers")?;
        ensure!(trailers.contains("\"length\": 3145728") && trailers.contains("\nx-sum: 6"), "{trailers}");

        // Half a body is no body: curl is told (18: transfer closed with outstanding data, 56: reset).
        let cut = get("/cut", &["-o", "/dev/null"]).expect_err("half a body passed for a whole one");
        ensure!(
            format!("{cut:#}").contains("exit status: 18") || format!("{cut:#}").contains("exit status: 56"),
            "{cut:#}"
        );
    }
    for node in [mesh.node("a"), mesh.node("b")] {
        wait_logged(node, "the cut body", |r| r["path"] == "/cut" && r["reason"] != "completed" && r["status"] == 200)?;
        wait_logged(node, "the refused body", |r| {
            r["path"] == "/refuse" && r["status"] == 403 && r["bytes_received"] == 0
        })?;
    }
    ensure!(!server.stdout().contains("error LocalProtocolError"), "{}", server.stdout());
    Ok(())
}
