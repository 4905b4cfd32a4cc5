//! HTTP between pods on real eBPF, with peers of other people: curl, nginx, Python's grpcio (FEATURES D5, D7).

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::programs::program;
use heddle_tests_netns::exposition::{scrape, sum};
use heddle_tests_netns::peers::{PATIENCE, curl, nginx, run_script, serve_script};
use heddle_tests_netns::{SOON, wait_logged};

#[test]
fn curl_and_nginx_speak_both_versions_through_two_agents() -> Result<()> {
    let mesh = Mesh::declare("http_nginx")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .service("web")
        .port(80, 8080)
        .port(82, 8082)
        .backed_by("web")
        .start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let _nginx = nginx(web, &mesh.node("b").paths().run.join("nginx"))?;
    let plan = mesh.service("web");
    for (ip, own) in [(plan.cluster_v4(), client.v4()), (plan.cluster_v6(), client.v6())] {
        let at = |port| SocketAddr::new(ip, port);
        let who = curl(client, &["--http1.1", &format!("http://{}/who", at(80))])?;
        ensure!(who.starts_with(&format!("{own} HTTP/1.1 ")), "nginx sees the client and the version: {who}");
        let who = curl(client, &["--http2-prior-knowledge", &format!("http://{}/who", at(82))])?;
        ensure!(who.starts_with(&format!("{own} HTTP/2.0 ")), "nginx sees the client and the version: {who}");
        for (version, port) in [("--http1.1", 80), ("--http2-prior-knowledge", 82)] {
            let url = format!("http://{}/", at(port));
            // Several requests of one connection, large bodies, HEAD, and an expectation.
            let big = format!("{url}big");
            // Debian's curl 7.88 cannot read two large bodies of one HTTP/2 connection, with or without us.
            let urls = if port == 80 { vec![&*big, &big] } else { vec![&*big] };
            let discard = ["-o", "/dev/null"].repeat(urls.len());
            let sizes = curl(client, &[&[version, "-w", "%{size_download}\n"][..], &discard, &urls].concat())?;
            ensure!(sizes.lines().count() == urls.len() && sizes.lines().all(|l| l == "3145728"), "{sizes}");
            let head = curl(client, &[version, "--head", &big])?;
            ensure!(head.to_ascii_lowercase().contains("content-length: 3145728"), "{head}");
            let post = format!("{url}post");
            let body = format!("@{}", mesh.node("b").paths().run.join("nginx/big").display());
            let posted = curl(client, &[version, "-H", "Expect: 100-continue", "--data-binary", &body, &post])?;
            ensure!(posted.trim() == "3145728", "{posted}");
            let missing = curl(client, &[version, "-o", "/dev/null", "-w", "%{http_code}", &format!("{url}nothing")])?;
            ensure!(missing == "404", "{missing}");
        }
    }
    for node in ["a", "b"] {
        let node = mesh.node(node);
        for (protocol, status) in [("HTTP/1.1", 404), ("HTTP/2", 404), ("HTTP/1.1", 201), ("HTTP/2", 201)] {
            wait_logged(node, &format!("{protocol} {status}"), |r| {
                r["protocol"] == protocol
                    && r["status"] == status
                    && r["source_pod"] == "client"
                    && r["destination_pod"] == "web"
            })?;
        }
        let metrics = node.metrics()?;
        let counted = |code: &str| {
            metrics
                .lines()
                .any(|l| l.starts_with("istio_requests_total{") && l.contains(&format!("response_code=\"{code}\"")))
        };
        ensure!(counted("200") && counted("404") && counted("201"), "{metrics}");
    }
    Ok(())
}

#[test]
fn a_port_that_declares_a_version_is_called_with_it() -> Result<()> {
    let declares = |port: u16, target: u16, protocol: &str| {
        let name = format!("port-{port}");
        serde_json::json!([{"name": name, "port": port, "targetPort": target, "appProtocol": protocol}])
    };
    let mesh = Mesh::declare("http_versions")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .service("h2c")
        .port(80, 8082)
        .with("ports", declares(80, 8082, "kubernetes.io/h2c"))
        .backed_by("web")
        .service("ws")
        .port(80, 8080)
        .with("ports", declares(80, 8080, "kubernetes.io/ws"))
        .backed_by("web")
        .service("grpc")
        .port(50051, 50051)
        .with("ports", declares(50051, 50051, "kubernetes.io/h2c"))
        .backed_by("web")
        .start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    // Each of its ports speaks one version and no other.
    let _nginx = nginx(web, &mesh.node("b").paths().run.join("nginx"))?;
    for (service, version, upstream) in [
        ("h2c", "--http1.1", "HTTP/2.0"),
        ("h2c", "--http1.0", "HTTP/2.0"),
        ("ws", "--http2-prior-knowledge", "HTTP/1.1"),
    ] {
        let plan = mesh.service(service);
        for (ip, own) in [(plan.cluster_v4(), client.v4()), (plan.cluster_v6(), client.v6())] {
            let url = format!("http://{}", SocketAddr::new(ip, 80));
            let who = curl(client, &[version, &format!("{url}/who")])?;
            let host = url.trim_start_matches("http://").trim_end_matches(":80");
            ensure!(who == format!("{own} {upstream} {host}\n"), "{service} {version}: {who}");
            let big = format!("{url}/big");
            let size = curl(client, &[version, "-o", "/dev/null", "-w", "%{size_download}", &big])?;
            ensure!(size == "3145728", "{service} {version}: {size}");
            let head = curl(client, &[version, "--head", &big])?;
            ensure!(head.to_ascii_lowercase().contains("content-length: 3145728"), "{service} {version}: {head}");
            let body = format!("@{}", mesh.node("b").paths().run.join("nginx/big").display());
            let posted = curl(client, &[version, "--data-binary", &body, &format!("{url}/post")])?;
            ensure!(posted.trim() == "3145728", "{service} {version}: {posted}");
        }
    }
    // Several requests of one HTTP/1.1 connection, which stays in step.
    let url = format!("http://{}/big", SocketAddr::new(mesh.service("h2c").cluster_v4(), 80));
    let sizes = curl(
        client,
        &[&["--http1.1", "-w", "%{size_download} %{num_connects}\n"][..], &["-o", "/dev/null", &url].repeat(3)]
            .concat(),
    )?;
    ensure!(sizes == "3145728 1\n3145728 0\n3145728 0\n", "{sizes}");
    for node in ["a", "b"] {
        // The client's own version is logged where the client is, what it became where the server is.
        let is_ws = |r: &serde_json::Value| {
            r["path"] == "/post" && r["protocol"] == if node == "a" { "HTTP/2" } else { "HTTP/1.1" }
        };
        wait_logged(mesh.node(node), "a translated request", |r| is_ws(r) && r["status"] == 201)?;
    }
    let _server = serve_script(web, "grpc_server.py", &["grpcio"], 50051)?;
    let target = format!("{}:50051", mesh.service("grpc").cluster_v4());
    run_script(client, "grpc_client.py", &["grpcio"], &[&target])?;
    Ok(())
}

#[test]
fn requests_spread_over_a_service_wherever_its_pods_are() -> Result<()> {
    // web-1 shares its agent, and so its worker's counters, with the client; the agent's idle connections must not weigh.
    let mesh = Mesh::declare("http_spread")
        .node("a")
        .pod("client")
        .pod("web-1")
        .node("b")
        .pod("web-2")
        .service("web")
        .port(80, 8080)
        .backed_by("web-1")
        .backed_by("web-2")
        .start()?;
    let run = |node: &str, pod: &str| mesh.node(node).paths().run.join(format!("nginx-{pod}"));
    let _peers = [nginx(mesh.pod("web-1"), &run("a", "web-1"))?, nginx(mesh.pod("web-2"), &run("b", "web-2"))?];
    let vip = mesh.service("web").cluster_v4();
    const REQUESTS: usize = 40;
    // web-1 calls itself among others.
    for caller in ["client", "web-1"] {
        let one_each = format!("for i in $(seq {REQUESTS}); do curl -sf --max-time 5 http://{vip}/who?each; done");
        let mut command = program("sh", "dash")?;
        command.args(["-c", &one_each]);
        let process = mesh.pod(caller).spawn("curls", command)?;
        ensure!(process.wait(PATIENCE)?.success(), "{}", process.tail());
        let url = format!("http://{vip}/who?kept");
        curl(mesh.pod(caller), &[&["--fail"][..], &[&*url; REQUESTS]].concat())?;
        for path in ["/who?each", "/who?kept"] {
            let log = || mesh.node("a").access_log();
            let is_of = |r: &serde_json::Value| {
                r["reporter"] == "source" && r["source_pod"] == caller && r["path"] == path && r["status"] == 200
            };
            wait_until("the records", SOON, || log().iter().filter(|r| is_of(r)).count() == REQUESTS)?;
            for pod in ["web-1", "web-2"] {
                let served = log().iter().filter(|r| is_of(r) && r["destination_pod"] == pod).count();
                // One in a million that chance alone falls below.
                ensure!(served >= 6, "{pod} served {served} of {REQUESTS} requests {path} of {caller}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_served_is_told_in_http() -> Result<()> {
    let mesh = Mesh::declare("http_errors")
        .node("a")
        .pod("client")
        .pod("web")
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .start()?;
    let client = mesh.pod("client");
    // `http` by name: the answer comes from the agent, whatever becomes of the dial.
    mesh.source().write_text(
        "service-shop-declared.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: declared, namespace: shop}}\n\
             spec: {{clusterIP: 10.96.77.77, clusterIPs: [10.96.77.77], ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: declared-1, namespace: shop, labels: {{kubernetes.io/service-name: declared}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints: [{{addresses: [\"{}\"]}}]\n",
            mesh.pod("web").v4()
        ),
    )?;
    let mut last = String::new();
    wait_until("the Service is known and the agent answers", SOON, || {
        last = curl(client, &["-i", "http://10.96.77.77/"]).unwrap_or_else(|e| e.to_string());
        last.starts_with("HTTP/1.1 503 ") && last.contains("refused the connection")
    })
    .context(last)?;
    wait_logged(mesh.node("a"), "503", |r| r["status"] == 503 && r["reason"] == "upstream_connect_refused")?;
    Ok(())
}

#[test]
fn grpcio_calls_in_all_four_ways() -> Result<()> {
    let mesh = Mesh::declare("grpc")
        .node("a")
        .pod("client")
        .node("b")
        .pod("peer")
        .service("peer")
        .port(50051, 50051)
        .backed_by("peer")
        .start()?;
    let (client, peer) = (mesh.pod("client"), mesh.pod("peer"));
    let server = serve_script(peer, "grpc_server.py", &["grpcio"], 50051)?;
    let at = format!("{}:50051", mesh.service("peer").cluster_v4());
    let printed = run_script(client, "grpc_client.py", &["grpcio"], &[&at]).with_context(|| server.tail())?;
    ensure!(printed.contains(&format!("peer ipv4:{}:", client.v4())), "the server sees the client: {printed}");
    // The cancels reached the server's handlers: the client's own, and the one of its deadline.
    for (line, count) in [("unary cancelled", 1), ("stream cancelled", 2)] {
        wait_until(line, SOON, || server.stdout().matches(line).count() == count).with_context(|| server.tail())?;
    }
    for node in ["a", "b"] {
        let node = mesh.node(node);
        let logged = |path: &str, what: &str, is: &dyn Fn(&serde_json::Value) -> bool| {
            wait_logged(node, what, |r| r["path"] == path && is(r))
        };
        for (path, grpc_status) in [("/test.Peer/Bidi", 0), ("/test.Peer/ServerStream", 15), ("/test.Peer/Nothing", 12)]
        {
            logged(path, path, &|r| r["grpc_status"] == grpc_status)?;
        }
        for code in 1..=16 {
            logged("/test.Peer/Unary", &format!("status {code}"), &|r| r["grpc_status"] == code)?;
        }
        for path in ["/test.Peer/ServerStream", "/test.Peer/Unary"] {
            logged(path, "the cancel", &|r| r["reason"] == "request_cancelled")?;
        }
        // Compressed it came and compressed it went: of 1 MiB each way little was on the wire.
        let small = |r: &serde_json::Value| {
            ["bytes_sent", "bytes_received"].iter().all(|f| r[f].as_u64().is_some_and(|n| (1000..100_000).contains(&n)))
        };
        logged("/test.Peer/Compressed", "a compressed call", &small)?;
        let samples = scrape(node)?;
        for code in 0..=16 {
            let labels = [("request_protocol", "grpc"), ("grpc_response_status", &*code.to_string())];
            ensure!(sum(&samples, "istio_requests_total", &labels) > 0.0, "no call with status {code} is counted");
        }
        ensure!(sum(&samples, "istio_request_messages_total", &[]) > 1000.0, "{samples:?}");
        ensure!(sum(&samples, "istio_response_messages_total", &[]) > 1000.0, "{samples:?}");
    }
    Ok(())
}
