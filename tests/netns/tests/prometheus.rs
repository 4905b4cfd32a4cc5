//! A real Prometheus scrapes real agents that carried HTTP/1, HTTP/2, gRPC and TCP: what it then answers is what was sent; promtool finds
//! nothing to say but what `prometheus/lint.txt` explains; names and labels are Istio's, as `prometheus/istio.txt` lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_testkit::programs::program;
use heddle_tests_netns::SOON;
use heddle_tests_netns::exposition::{samples, sum};
use heddle_tests_netns::peers::{PATIENCE, curl, nginx, run, run_script, serve, serve_script};
use serde_json::Value;

const ISTIO: &str = include_str!("prometheus/istio.txt");
const LINT: &str = include_str!("prometheus/lint.txt");

/// Body of every POST.
const POSTED_BYTES: usize = 1000;
/// Each way of every TCP connection.
const TCP_BYTES: usize = 100_000;

/// Sends a known number of everything: 22 requests of HTTP, 15 calls of gRPC, 3 connections of TCP. Returns the bytes of all answers 200.
fn traffic(client: &Place, vip: IpAddr) -> Result<usize> {
    let at = |port| SocketAddr::new(vip, port);
    let mut answered = 0;
    let who = |port| format!("http://{}/who", at(port));
    answered += curl(client, &[&*who(80); 7])?.len();
    for _ in 0..5 {
        // Debian's curl 7.88 cannot use one HTTP/2 connection twice, with or without us.
        answered += curl(client, &["--http2-prior-knowledge", &who(82)])?.len();
    }
    let missing = format!("http://{}/nothing", at(80));
    curl(client, &[&*missing; 3])?;
    let body = "x".repeat(POSTED_BYTES);
    for (version, port) in [("--http1.1", 80), ("--http2-prior-knowledge", 82)] {
        curl(client, &[version, "--data", &body, &format!("http://{}/post", at(port))])?;
    }
    run_script(client, "grpc_client.py", &["grpcio"], &[&at(50051).to_string(), "counted"])?;
    for _ in 0..3 {
        client.connect(&dial(vip, 9000).bytes(TCP_BYTES))?.assert_succeeded()?;
    }
    Ok(answered)
}

/// A Prometheus in a place, asked there.
struct Prometheus<'a> {
    place: &'a Place,
    process: Process,
}

impl<'a> Prometheus<'a> {
    fn start(place: &'a Place, directory: &std::path::Path, agents: &[&Node]) -> Result<Self> {
        let targets: Vec<_> = agents.iter().map(|node| format!("'{}:15020'", node.v4())).collect();
        let configuration = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\n\
             scrape_configs: [{{job_name: heddle, static_configs: [{{targets: [{}]}}]}}]\n",
            targets.join(", ")
        );
        let path = directory.join("prometheus.yaml");
        fs::write(&path, configuration)?;
        let mut command = program("prometheus", "prometheus")?;
        command.arg("--config.file").arg(&path).arg("--storage.tsdb.path").arg(directory.join("tsdb"));
        command.args(["--web.listen-address", "127.0.0.1:9090", "--log.level", "warn"]);
        let prometheus = Self { place, process: serve(place, "prometheus", command, &[9090])? };
        // It listens up to five seconds before it takes up its targets (its reloader's pause), which is no matter of ours.
        let expected = agents.len() as f64;
        wait_until("the agents are scraped", PATIENCE, || prometheus.number("sum(up)").is_ok_and(|up| up == expected))?;
        Ok(prometheus)
    }

    /// An answer of its API.
    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let url = format!("http://127.0.0.1:9090/api/v1/{path}");
        let mut arguments = vec!["--get".to_owned(), url];
        for (name, value) in parameters {
            arguments.extend(["--data-urlencode".to_owned(), format!("{name}={value}")]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let answer: Value = serde_json::from_str(&curl(self.place, &arguments)?)?;
        ensure!(answer["status"] == "success", "{path} {parameters:?}: {answer}\n{}", self.process.tail());
        Ok(answer["data"].clone())
    }

    /// The series a query yields: labels and value.
    fn query(&self, query: &str) -> Result<Vec<(BTreeMap<String, String>, f64)>> {
        let answer = self.ask("query", &[("query", query)])?;
        let series = answer["result"].as_array().with_context(|| answer.to_string())?;
        let read = |s: &Value| -> Result<(BTreeMap<String, String>, f64)> {
            let value = s["value"][1].as_str().context("no value")?.parse()?;
            Ok((serde_json::from_value(s["metric"].clone())?, value))
        };
        series.iter().map(read).collect()
    }

    /// The one number a query yields.
    fn number(&self, query: &str) -> Result<f64> {
        match &self.query(query)?[..] {
            [(_, value)] => Ok(*value),
            other => bail!("{query}: {other:?}"),
        }
    }
}

/// The lines of a data file that say something.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// `istio.txt`: family → type and label names.
fn istio() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>)> {
    let words: Vec<Vec<&str>> = rows(ISTIO).map(|row| row.split(' ').collect()).collect();
    let labels = |set: &str| {
        let of_set = words.iter().filter(|w| w[..2] == ["labels", set]);
        of_set.flat_map(|w| w[2..].iter().copied()).collect::<BTreeSet<_>>()
    };
    let families = words.iter().filter(|w| w[0] == "family");
    families.map(|w| (w[1], (w[2], labels(w[3])))).collect()
}

/// Every Istio family is there, with its type, and every sample of it has Istio's labels and no others.
fn labels_are_istios(exposition: &str) -> Result<()> {
    let all = samples(exposition)?;
    let of = |sample: &str, family: &str, kind: &str| match kind {
        "histogram" => sample.strip_prefix(family).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end)),
        _ => sample == family,
    };
    let families = istio();
    for (family, (kind, labels)) in &families {
        ensure!(exposition.contains(&format!("# TYPE {family} {kind}\n")), "{family} is no {kind}\n{exposition}");
        let mut its = all.iter().filter(|s| of(&s.name, family, kind)).peekable();
        ensure!(its.peek().is_some(), "no sample of {family}");
        for sample in its {
            let mut found: BTreeSet<&str> = sample.labels.keys().map(String::as_str).collect();
            ensure!(sample.name.ends_with("_bucket") == found.remove("le"), "{sample:?}");
            let differ: Vec<_> = found.symmetric_difference(labels).collect();
            ensure!(differ.is_empty(), "{} and prometheus/istio.txt differ in {differ:?}", sample.name);
        }
    }
    let known = |name: &str| families.iter().any(|(family, (kind, _))| of(name, family, kind));
    let names: BTreeSet<&str> = all.iter().map(|sample| &*sample.name).collect();
    let unknown: Vec<_> = names.iter().filter(|name| name.starts_with("istio_") && !known(name)).collect();
    ensure!(unknown.is_empty(), "not in prometheus/istio.txt: {unknown:?}");
    Ok(())
}

/// What promtool says about an exposition is what `lint.txt` says it does.
fn lint_is_explained(exposition: &str, file: &std::path::Path) -> Result<()> {
    fs::write(file, exposition)?;
    let mut command = program("promtool", "prometheus")?;
    let output = command.args(["check", "metrics"]).stdin(fs::File::open(file)?).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let found: BTreeSet<&str> = said.lines().collect();
    let mut explained = BTreeSet::new();
    for row in rows(LINT) {
        let (finding, why) = row.split_once(" | ").with_context(|| format!("no reason: {row}"))?;
        ensure!(why.len() > 20 && why.ends_with('.'), "a reason is a sentence: {row}");
        ensure!(explained.insert(finding), "twice: {finding}");
    }
    ensure!(
        found == explained,
        "promtool says and prometheus/lint.txt does not, or the other way round: {:#?}",
        found.symmetric_difference(&explained).collect::<Vec<_>>()
    );
    Ok(())
}

#[test]
fn a_real_prometheus_reads_what_was_sent() -> Result<()> {
    let mesh = Mesh::declare("prometheus")
        .node("a")
        .pod("client")
        .labelled("app", "shopper")
        .labelled("version", "v1")
        .node("b")
        .pod("web")
        .labelled("app", "shop")
        .labelled("version", "v2")
        .serves(tcp(9000))
        .service("web")
        .port(80, 8080)
        .port(82, 8082)
        .port(50051, 50051)
        .port(9000, 9000)
        .backed_by("web")
        .start()?;
    let (a, b) = (mesh.node("a"), mesh.node("b"));
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let _nginx = nginx(web, &b.paths().run.join("nginx"))?;
    let _grpc = serve_script(web, "grpc_server.py", &["grpcio"], 50051)?;
    let prometheus = Prometheus::start(a, &a.paths().run, &[a, b])?;
    let answered = traffic(client, mesh.service("web").cluster_v4())?;

    // As each side's agent tells it, through Prometheus's own parser and storage.
    let http = "request_protocol=\"http\"";
    let grpc = "request_protocol=\"grpc\"";
    let ok = "response_code=\"200\"";
    for (reporter, instance) in [("source", a.v4()), ("destination", b.v4())] {
        let sum = |family: &str, labels: &str| {
            format!("sum({family}{{reporter=\"{reporter}\",instance=\"{instance}:15020\",{labels}}})")
        };
        for (family, labels, expected) in [
            ("istio_requests_total", format!("{http},{ok},response_flags=\"-\""), 12),
            ("istio_requests_total", format!("{http},response_code=\"404\""), 3),
            ("istio_requests_total", format!("{http},response_code=\"201\""), 2),
            ("istio_requests_total", format!("{grpc},{ok},grpc_response_status=\"0\""), 13),
            ("istio_requests_total", format!("{grpc},{ok},grpc_response_status=\"5\""), 2),
            ("istio_requests_total", String::new(), 32),
            ("istio_request_duration_milliseconds_count", http.to_owned(), 17),
            ("istio_request_duration_milliseconds_bucket", format!("{http},le=\"+Inf\""), 17),
            ("istio_request_bytes_sum", http.to_owned(), 2 * POSTED_BYTES),
            ("istio_response_bytes_sum", format!("{http},{ok}"), answered),
            ("istio_response_bytes_count", grpc.to_owned(), 15),
            ("istio_request_messages_total", String::new(), 94),
            ("istio_response_messages_total", String::new(), 134),
            ("istio_tcp_connections_opened_total", String::new(), 3),
            ("istio_tcp_connections_closed_total", String::new(), 3),
            ("istio_tcp_sent_bytes_total", String::new(), 3 * TCP_BYTES),
            ("istio_tcp_received_bytes_total", String::new(), 3 * TCP_BYTES),
        ] {
            let query = sum(family, &labels);
            let mut last = None;
            wait_until(&format!("{query} = {expected}"), SOON, || {
                last = prometheus.number(&query).ok();
                last == Some(expected as f64)
            })
            .with_context(|| format!("it is {last:?}"))?;
        }
        // Every label of one series, by value: who called whom, and as what.
        let one = format!("istio_requests_total{{reporter=\"{reporter}\",response_code=\"404\"}}");
        let [(labels, _)] = &prometheus.query(&one)?[..] else { bail!("{one} is not one series") };
        for (label, value) in [
            ("source_workload", "client"),
            ("source_workload_namespace", "shop"),
            ("source_app", "shopper"),
            ("source_version", "v1"),
            ("source_canonical_service", "shopper"),
            ("source_canonical_revision", "v1"),
            ("destination_workload", "web"),
            ("destination_workload_namespace", "shop"),
            ("destination_app", "shop"),
            ("destination_version", "v2"),
            ("destination_canonical_service", "shop"),
            ("destination_canonical_revision", "v2"),
            ("destination_service", "web.shop.svc.cluster.local"),
            ("destination_service_name", "web"),
            ("destination_service_namespace", "shop"),
            ("request_protocol", "http"),
            ("response_flags", "-"),
        ] {
            ensure!(labels.get(label).map(String::as_str) == Some(value), "{label} is not {value}: {labels:?}");
        }
        // What a dashboard asks: a quantile that makes sense.
        let quantile = sum("istio_request_duration_milliseconds_bucket", http).replace("sum(", "sum by (le) (");
        let p99 = prometheus.number(&format!("histogram_quantile(0.99, {quantile})"))?;
        ensure!(p99 > 0.0 && p99 < 5000.0, "p99 of {p99} ms");
    }
    ensure!(prometheus.number("sum(up)")? == 2.0, "an agent is not up");
    let metadata = prometheus.ask("metadata", &[])?;
    for (family, (kind, _)) in istio() {
        // In OpenMetrics, which Prometheus prefers, a counter's family has no suffix.
        let name = family.strip_suffix("_total").filter(|_| metadata[family].is_null()).unwrap_or(family);
        ensure!(metadata[name][0]["type"] == kind, "{family}: {}", metadata[name]);
    }

    for node in [a, b] {
        let answer = node.metrics()?;
        let (_, exposition) = answer.split_once("\r\n\r\n").context("no head in front of the metrics")?;
        labels_are_istios(exposition).with_context(|| format!("node {}", node.name()))?;
        lint_is_explained(exposition, &a.paths().run.join("exposition"))?;
    }
    Ok(())
}

#[test]
fn label_sets_beyond_the_limit_are_one_series_and_lose_no_count() -> Result<()> {
    let mesh = Mesh::declare("cardinality")
        .node("a")
        .pod("client-1")
        .pod("client-2")
        .pod("client-3")
        .node("b")
        .pod("web")
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .start()?;
    let _server = serve_script(mesh.pod("web"), "http1_server.py", &["h11"], 8080)?;
    // 400 statuses with 4 of gRPC each, to three pods: 4800 label sets where 4000 fit.
    const SENT: usize = 4800;
    const FIT: usize = 4000;
    let url = format!("http://{}/status/[200-599]/[0-3]", mesh.service("web").cluster_v4());
    let mut calls = Vec::new();
    for client in ["client-1", "client-2", "client-3"] {
        let mut command = program("curl", "curl")?;
        command.args(["--silent", "--fail-early", "--output", "/dev/null"]);
        command.args(["-H", "Content-Type: application/grpc", &url]);
        calls.push(mesh.pod(client).spawn("curl", command)?);
    }
    for call in &calls {
        let status = call.wait(PATIENCE)?;
        ensure!(status.success(), "{status}\n{}", call.tail());
    }
    // All but the histograms: a full table is 200 MB of them.
    let page =
        "curl --silent --fail http://127.0.0.1:15020/metrics | grep -E '^(istio_requests_total|heddle_metrics_series)'";
    let mut all = Vec::new();
    // The last of them are answered before they are counted.
    wait_for("every request is counted", SOON, || {
        let mut command = program("sh", "dash")?;
        command.args(["-c", page]);
        all = samples(&run(mesh.node("a"), "scrape", command)?)?;
        Ok((sum(&all, "istio_requests_total", &[]) as usize == SENT).then_some(()))
    })?;
    let requests = |labels: &[(&str, &str)]| sum(&all, "istio_requests_total", labels) as usize;
    let beyond = requests(&[("destination_workload", "overflow")]);
    ensure!(beyond == SENT - FIT, "{beyond} are beyond the limit");
    let series = all.iter().filter(|sample| sample.name == "istio_requests_total").count();
    ensure!(series == FIT + 1, "{series} series");
    let usage = |name: &str, bound: &[(&str, &str)]| {
        sum(&all, name, &[&[("family", "istio_request")], bound].concat()) as usize
    };
    for bound in ["used", "max"] {
        let value = usage("heddle_metrics_series", &[("bound", bound)]);
        ensure!(value == FIT, "{bound} {value}");
    }
    let overflowed = usage("heddle_metrics_series_overflow_total", &[]);
    ensure!(overflowed >= beyond, "{overflowed} look-ups overflowed");
    Ok(())
}
