//! The chapters about traffic: what the clients in the pods do, what they and the servers saw, and what the agents say of it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use heddle_testkit::prelude::*;
use heddle_testkit::probe;
use serde_json::Value;

use crate::account::{self, Counted, Record};
use crate::apps::{self, Call, Connections, Fetches, HTTP_1, HTTP_2, LEDGER_PORT, PRICES_PORT, Told, WEB_PORT};
use crate::interrupt;
use crate::page::{NONE, Page};
use crate::row;
use crate::story::{Demo, OUTSIDER};

/// Requests of a client that opens a connection for each.
const REQUESTS: usize = 20;
/// Requests of a client that keeps its one connection.
const KEPT_REQUESTS: usize = 40;
/// Requests by HTTP/2, each on a connection of its own.
const H2_REQUESTS: usize = 10;
const OUTSIDERS_REQUESTS: usize = 5;
/// The least part that either of two pods must have served: of 40 requests, chance alone gives less once in ten million runs.
const FAIR_SHARE_MIN: f64 = 0.1;
/// The agent's listener in every captured pod.
const OUTBOUND_PORT: u16 = 15001;
const RECORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// Metrics shown, with the labels that select the samples. Those of Istio's names are the callers' agents'.
const METRICS: [(&str, &str, Show); 14] = [
    ("istio_requests_total", "request_protocol=\"http\" response_code=\"200\"", Show::Sum),
    ("istio_requests_total", "request_protocol=\"http\" response_code=\"404\"", Show::Sum),
    ("istio_requests_total", "request_protocol=\"http\" response_code=\"503\"", Show::Sum),
    ("istio_requests_total", "grpc_response_status=\"0\"", Show::Sum),
    ("istio_requests_total", "grpc_response_status=\"7\"", Show::Sum),
    ("istio_request_messages_total", "", Show::Sum),
    ("istio_response_messages_total", "", Show::Sum),
    (DURATION, "", Show::Mean),
    (DURATION, "", Show::Quantile(0.5)),
    (DURATION, "", Show::Quantile(0.99)),
    ("istio_tcp_connections_opened_total", "", Show::Sum),
    ("istio_tcp_received_bytes_total", "", Show::Sum),
    ("heddle_datapath_connections_total", "direction=\"outbound\" verdict=\"captured\"", Show::Sum),
    ("heddle_datapath_connections_total", "direction=\"inbound\" verdict=\"captured\"", Show::Sum),
];
const DURATION: &str = "istio_request_duration_milliseconds";
const AT_SOURCE: &str = "reporter=\"source\"";

/// What is made of a metric's samples.
#[derive(Clone, Copy)]
enum Show {
    Sum,
    Mean,
    Quantile(f64),
}

/// Everything the applications did and saw, and everything the agents logged of it.
pub struct Traffic {
    /// frontend → web, a connection for each request.
    one_each: Fetches,
    /// frontend → web, one HTTP/1.1 connection.
    kept: Fetches,
    /// reports → web, by HTTP/2.
    h2: Fetches,
    by_outsider: Fetches,
    /// frontend → a page that web does not have, as curl shows it.
    missing: String,
    /// frontend → cart, as curl shows it.
    unserved: String,
    /// reports → prices.
    calls: Vec<Call>,
    /// frontend → db.
    told: Told,
    /// What the kernel says of that conversation: the application's socket, and the agent's.
    sockets: (Vec<String>, Vec<String>),
    records: Vec<Value>,
}

impl Traffic {
    /// Has all clients do what they do, and waits for the agents' records.
    pub fn make(demo: &Demo) -> Result<Traffic> {
        let (web, web_h2, db) = (demo.service("web", 80), demo.service("web", 82), demo.service("db", LEDGER_PORT));
        let (frontend, reports) = (demo.mesh.pod("frontend"), demo.mesh.pod("reports"));
        let outsider = demo.mesh.external(OUTSIDER);
        let one_each = apps::curl(frontend, web, HTTP_1, REQUESTS, Connections::OneEach)?;
        let kept = apps::curl(frontend, web, HTTP_1, KEPT_REQUESTS, Connections::OneForAll)?;
        let h2 = apps::curl(reports, web_h2, HTTP_2, H2_REQUESTS, Connections::OneEach)?;
        let web_2 = demo.pod("web-2", WEB_PORT);
        let by_outsider = apps::curl(outsider, web_2, HTTP_1, OUTSIDERS_REQUESTS, Connections::OneEach)?;
        let missing = apps::curl_page(frontend, web, "/missing")?;
        let unserved = apps::curl_page(frontend, demo.service("cart", 80), "/")?;
        interrupt::check()?;
        let calls = apps::call_prices(reports, demo.service("prices", PRICES_PORT))?;
        // One conversation is held open, so that the kernel's own view of it can be shown.
        let held = apps::call_ledger(frontend, db, Duration::from_secs(1))?;
        let told = held.told()?;
        let sockets = (apps::kernel_view(frontend, OUTBOUND_PORT)?, apps::kernel_view(frontend, LEDGER_PORT)?);
        apps::call_ledger(reports, db, Duration::ZERO)?.finish()?;
        held.finish()?;
        interrupt::check()?;

        let records = Vec::new();
        let mut traffic = Traffic { one_each, kept, h2, by_outsider, missing, unserved, calls, told, sockets, records };
        let wanted = traffic.wanted_requests().at_source + traffic.wanted_requests().at_destination;
        let wanted = wanted + traffic.wanted_connections().at_source + traffic.wanted_connections().at_destination;
        // What is still missing then is told by the verdicts.
        let _ = wait_for("the access records of the traffic", RECORDS_TIMEOUT, || {
            traffic.records = demo.mesh_nodes().iter().flat_map(|node| node.access_log()).collect();
            Ok((traffic.records.len() >= wanted).then_some(()))
        });
        Ok(traffic)
    }

    /// The chapters.
    pub fn tell(&self, demo: &Demo, page: &mut Page) -> Result<()> {
        self.who_talked_to_whom(demo, page);
        self.balanced(page);
        self.lines(demo, page);
        self.unserved(demo, page)?;
        self.seen(demo, page)?;
        self.metrics(demo, page)
    }

    /// Requests, as the clients know it: the outsider has no agent, and what is not served has no destination.
    fn wanted_requests(&self) -> Counted {
        let inside = REQUESTS + KEPT_REQUESTS + H2_REQUESTS + self.calls.len() + [&self.missing, &self.unserved].len();
        Counted { at_source: inside, at_destination: inside - 1 + OUTSIDERS_REQUESTS }
    }

    /// Connections that are no HTTP: two conversations with the ledger.
    fn wanted_connections(&self) -> Counted {
        Counted { at_source: 2, at_destination: 2 }
    }

    fn who_talked_to_whom(&self, demo: &Demo, page: &mut Page) {
        page.chapter("Traffic, and who talked to whom: from the agents' access logs");
        let mut rows = vec![row!["caller", "callee", "asked for", "spoke", "how often", "outcome", "agents"]];
        rows.extend(account::edges(&self.records, |ip| demo.name_of(ip)).iter().map(
            |((caller, callee, protocol), edge)| {
                let asked_for = if edge.service.is_empty() { "the pod itself" } else { &edge.service };
                row![caller, callee, asked_for, protocol, edge.count(protocol), edge.outcome(protocol), edge.agents()]
            },
        ));
        page.table(&rows);
        page.remark("agents: a → b crossed the network between two; a stood at both ends; – is an end without one");

        let fetches = [&self.one_each, &self.kept, &self.h2, &self.by_outsider];
        let failed = fetches.iter().map(|fetches| fetches.failed).sum::<usize>();
        page.verdict(failed == 0, format!("{failed} of the requests that should succeed failed"));
        let requests = account::count(&self.records, |record| record.is_request());
        let connections = account::count(&self.records, |record| !record.is_request());
        page.verdict(
            (requests, connections) == (self.wanted_requests(), self.wanted_connections()),
            format!(
                "none lost, none doubled: callers' agents logged {} requests, {} connections; callees' {} and {}",
                requests.at_source, connections.at_source, requests.at_destination, connections.at_destination
            ),
        );
    }

    fn balanced(&self, page: &mut Page) {
        page.chapter("One connection, many pods: it is the request that is balanced, not the connection");
        page.remark("kube-proxy, or any balancer of connections, would send all of these to one pod");
        let mut rows = vec![row!["caller", "to", "kept open", "requests", "served by"]];
        let mut is_true = self.kept.connections == 1;
        let fetched: Vec<&str> = self.kept.fetched.iter().map(|fetched| fetched.server.as_str()).collect();
        let called: Vec<&str> = self.calls.iter().map(|call| call.server.as_str()).collect();
        let kept = account::spread(&self.records, "frontend", |record| record.text("path").starts_with("/kept/"));
        let channel = account::spread(&self.records, "reports", |record| record.protocol() == "gRPC");
        for (caller, service, what, servers, spread) in [
            ("frontend", "web", "one HTTP/1.1 connection of curl", fetched, kept),
            ("reports", "prices", "one gRPC channel of Python (HTTP/2)", called, channel),
        ] {
            let logged: u64 = spread.served.values().sum();
            let is_even = spread.served.values().all(|count| *count as f64 >= FAIR_SHARE_MIN * logged as f64);
            // What the client was answered and what its agent logged are the same.
            let is_same = spread.served.iter().all(|(pod, count)| {
                u64::try_from(servers.iter().filter(|server| **server == pod.as_str()).count()) == Ok(*count)
            });
            is_true &= spread.connections == 1 && spread.served.len() == 2 && is_even && is_same;
            let list: Vec<String> = spread.served.iter().map(|(pod, count)| format!("{pod} ×{count}")).collect();
            rows.push(row![caller, service, what, servers.len(), list.join(", ")]);
        }
        page.table(&rows);
        page.verdict(
            is_true,
            "each was one connection, and both pods served it: so say the clients, and so says the log",
        );
    }

    fn lines(&self, demo: &Demo, page: &mut Page) {
        page.chapter("Request by request: the access log, one of each kind, in short");
        let mut rows = vec![row!["time (UTC)", "from", "to", "method", "path", "status", "ms", "reason"]];
        rows.extend(account::lines(&self.records, |ip| demo.name_of(ip)).into_iter().map(Vec::from));
        page.table(&rows);
        page.remark("JSON in truth, with the names of both workloads, bytes, attempts, request id and more.");
    }

    fn unserved(&self, demo: &Demo, page: &mut Page) -> Result<()> {
        page.chapter("When a request fails, the answer and the log say who failed it, and why");
        let cart = demo.service("cart", 80);
        page.say(format!("frontend$ curl -i http://{}/    # service cart, which has no pod now", cart.ip()));
        for line in self.unserved.lines() {
            page.say(format!("  {}", line.trim_end()));
        }
        let head = |name: &str| apps::header(&self.unserved, name);
        let told = head("x-heddle-reason").unwrap_or_default();
        let logged =
            self.records.iter().map(Record).find(|record| record.is_request() && record.number("status") == 503);
        let reason = logged.map(|record| record.text("reason")).unwrap_or_default();
        page.verdict(
            self.unserved.starts_with("HTTP/1.1 503 ") && !told.is_empty() && told == reason,
            format!("503 came from frontend's agent: {told} in the header, {reason} in the log"),
        );
        let logged = self.records.iter().map(Record).find(|record| record.text("path") == "/missing");
        let reason = logged.map(|record| record.text("reason")).unwrap_or_default();
        page.verdict(
            self.missing.starts_with("HTTP/1.1 404 ")
                && apps::header(&self.missing, "x-heddle-reason").is_none()
                && reason == "completed",
            format!("404 (/missing) came from nginx: no such header, and {reason} in the log"),
        );
        let denied = self.calls.iter().find(|call| call.code != "OK").context("no gRPC call was denied")?;
        page.verdict(
            denied.method == "Set" && denied.code == "PERMISSION_DENIED",
            format!("gRPC {} ({}) came from {}: \"{}\"", denied.code, denied.method, denied.server, denied.details),
        );
        Ok(())
    }

    fn seen(&self, demo: &Demo, page: &mut Page) -> Result<()> {
        page.chapter("What each application saw");
        let mut rows = vec![row!["application", "connection", "saw", "which is"]];
        let mut is_true = true;
        let mut note = |application: &str, connection: &str, seen: IpAddr, truth: IpAddr, what: &str| {
            is_true &= seen == truth;
            rows.push(row![
                application,
                connection,
                seen,
                if seen == truth { what.to_owned() } else { format!("WRONG: it is {truth}") }
            ]);
        };
        let (web, db) = (demo.service("web", 80), demo.service("db", LEDGER_PORT));
        let (frontend, reports) = (demo.mesh.pod("frontend"), demo.mesh.pod("reports"));
        let own = "the caller's own address";
        for (name, fetches, caller) in [
            ("frontend", &self.one_each, frontend.v4()),
            ("reports", &self.h2, reports.v4()),
            (OUTSIDER, &self.by_outsider, demo.mesh.external(OUTSIDER).v4()),
        ] {
            for server in ["web-1", "web-2"] {
                let Some(fetched) = fetches.fetched.iter().find(|fetched| fetched.server == server) else { continue };
                note(&format!("nginx on {server}"), &format!("from {name}"), fetched.client_seen, caller, own);
            }
        }
        let call = self.calls.iter().find(|call| call.server == "prices-1").context("prices-1 served no call")?;
        let client_seen = call.client_seen.context("prices-1 did not say whom it saw")?;
        note("gRPC on prices-1", "from reports", client_seen, reports.v4(), own);
        note("ledger on db", "from frontend", self.told.client_seen, frontend.v4(), own);
        let asked = "the address it asked for";
        let seen = self.one_each.fetched.first().context("curl on frontend fetched nothing")?.server_seen;
        note("curl on frontend", "to service web", seen.ip(), web.ip(), asked);
        note("Python on frontend", "to service db", self.told.server_seen, db.ip(), asked);
        page.table(&rows);
        page.verdict(is_true, "the same addresses as without a mesh, on every side");
        let (app_socket, agent_socket) = &self.sockets;
        page.remark("behind it, in the kernel's own words, frontend's connection to the ledger was two:");
        page.remark(format!("  the application's  {}, the agent's listener", app_socket.join(", ")));
        page.remark(format!("  the agent's        {}, from the pod's own address", agent_socket.join(", ")));
        Ok(())
    }

    fn metrics(&self, demo: &Demo, page: &mut Page) -> Result<()> {
        page.chapter("What the metrics say, so far (istio_…: at the callers' side)");
        let nodes = demo.mesh_nodes();
        let pages = nodes.iter().map(|node| node.metrics()).collect::<Result<Vec<String>>>()?;
        let mut rows = vec![row!["metric", "of which", "node a", "node b"]];
        for (metric, labels, show) in METRICS {
            let shown = labels.replace('"', "");
            let mut labels: Vec<&str> = labels.split(' ').filter(|label| !label.is_empty()).collect();
            labels.extend(metric.starts_with("istio_").then_some(AT_SOURCE));
            let of = |text: &String| match show {
                Show::Sum => account::sum(text, metric, &labels).map(|sum| sum.to_string()),
                Show::Mean => account::mean(text, metric, &labels).map(|mean| format!("{mean:.1}")),
                Show::Quantile(q) => account::quantile(text, metric, &labels, q).map(|value| format!("{value:.1}")),
            };
            let cells = pages.iter().map(|text| of(text).unwrap_or_else(|| NONE.to_owned()));
            let which = match show {
                Show::Sum => shown,
                Show::Mean => "mean".to_owned(),
                Show::Quantile(q) => format!("p{:.0}", q * 100.0),
            };
            rows.push([metric.to_owned(), which].into_iter().chain(cells).collect());
        }
        page.table(&rows);
        let sum = |metric: &str, labels: &[&str]| -> f64 {
            pages.iter().filter_map(|text| account::sum(text, metric, labels)).sum::<f64>() + 0.0
        };
        let requests = sum("istio_requests_total", &[AT_SOURCE]);
        let messages = sum("istio_response_messages_total", &[AT_SOURCE]);
        let received: u64 = self.calls.iter().map(|call| call.messages).sum();
        page.verdict(
            requests == self.wanted_requests().at_source as f64 && messages == received as f64,
            format!("{requests} requests and {messages} gRPC answers counted: as many as the clients made and got"),
        );
        let (missing, refused) = (
            sum("heddle_datapath_records_total", &["event=\"missing\""]),
            sum("heddle_datapath_connections_total", &["verdict=\"refused\""]),
        );
        page.verdict(
            missing + refused == 0.0,
            format!("the kernel refused {refused} connections, and lost the destination of {missing}"),
        );
        for node in nodes {
            let memory = probe::usage(node.agent_pid()?)?.rss_kib + probe::usage(node.keeper_pid()?)?.rss_kib;
            page.remark(format!(
                "node {}: agent and keeper together hold {:.1} MiB (a debug build)",
                node.name(),
                memory as f64 / 1024.0
            ));
        }
        Ok(())
    }
}
