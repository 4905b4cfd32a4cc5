//! What [`super`] makes of records and metrics.

use super::*;
use serde_json::json;

fn connection(reporter: &str, node: &str, from: &str, to: &str) -> Value {
    json!({
        "reporter": reporter, "node": node, "source_pod": from, "destination_pod": to, "reason": "completed",
        "source_address": "10.77.1.10:4000", "upstream_address": "10.77.2.11:8080", "connection_id": 7,
        "destination_service": "web.boutique.svc.cluster.local:80", "bytes_sent": 300, "bytes_received": 70,
    })
}

fn with(mut record: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        record[name] = value.clone();
    }
    record
}

fn request(reporter: &str, to: &str, status: u16) -> Value {
    let fields = json!({
        "protocol": "HTTP/1.1", "method": "GET", "path": "/item/12", "status": status, "duration_ms": 1.26,
        "start_time": "2026-01-02T03:04:05.678901Z",
    });
    with(connection(reporter, if reporter == "source" { "a" } else { "b" }, "frontend", to), fields)
}

fn way(caller: &str, callee: &str, protocol: &str) -> Way {
    (caller.to_owned(), callee.to_owned(), protocol.to_owned())
}

fn edges_of(records: &[Value]) -> BTreeMap<Way, Edge> {
    edges(records, |ip| format!("host {ip}"))
}

#[test]
fn both_sides_of_a_connection_are_one_edge_counted_once() {
    let records = [connection("destination", "b", "frontend", "web-2"), connection("source", "a", "frontend", "web-2")];
    let edges = edges_of(&records);
    let edge = &edges[&way("frontend", "web-2", "TCP")];
    assert_eq!((edges.len(), edge.count("TCP").as_str()), (1, "1 connection"));
    assert_eq!(edge.outcome("TCP"), "70 bytes there, 300 back");
    assert_eq!((edge.agents().as_str(), edge.service.as_str()), ("a → b", "web:80"));
}

#[test]
fn a_connection_that_did_not_complete_says_why_instead_of_how_much() {
    let records = [with(connection("source", "a", "f", "w"), json!({"reason": "upstream_reset"}))];
    assert_eq!(edges_of(&records)[&way("f", "w", "TCP")].outcome("TCP"), "upstream_reset");
}

#[test]
fn requests_connections_and_calls_between_the_same_two_are_told_apart() {
    let records = [
        connection("source", "a", "frontend", "web-2"),
        request("source", "web-2", 200),
        request("destination", "web-2", 200),
        request("source", "web-2", 404),
        request("source", "web-2", 200),
        with(request("source", "web-2", 200), json!({"protocol": "HTTP/2", "grpc_status": 7})),
    ];
    let edges = edges_of(&records);
    let told = |protocol: &str| {
        let edge = &edges[&way("frontend", "web-2", protocol)];
        (edge.count(protocol), edge.outcome(protocol))
    };
    assert_eq!(edges.len(), 3);
    assert_eq!(told("TCP").0, "1 connection");
    assert_eq!(told("HTTP/1.1"), ("3 requests".to_owned(), "200 ×2, 404 ×1".to_owned()));
    assert_eq!(told("gRPC"), ("1 call".to_owned(), "PERMISSION_DENIED".to_owned()));
}

#[test]
fn a_caller_outside_the_mesh_is_named_by_its_address() {
    let edges = edges_of(&[connection("destination", "b", "", "web-2")]);
    let edge = &edges[&way("host 10.77.1.10", "web-2", "TCP")];
    assert_eq!((edge.agents().as_str(), edge.count("TCP").as_str()), ("– → b", "1 connection"));
    assert_eq!(edge.outcome("TCP"), "70 bytes there, 300 back");
}

#[test]
fn a_request_the_agent_answered_went_to_nobody() {
    let record = with(request("source", "", 503), json!({"upstream_address": null, "reason": "no_ready_endpoint"}));
    let edges = edges_of(&[record]);
    let edge = &edges[&way("frontend", "nobody", "HTTP/1.1")];
    assert_eq!((edge.outcome("HTTP/1.1").as_str(), edge.agents().as_str()), ("503", "a → –"));
}

#[test]
fn the_same_node_is_recognised() {
    let records = [connection("source", "a", "f", "w"), connection("destination", "a", "f", "w")];
    let edges = edges_of(&records);
    let edge = &edges[&way("f", "w", "TCP")];
    assert_eq!((edge.agents().as_str(), edge.count("TCP").as_str()), ("a", "1 connection"));
}

#[test]
fn records_are_counted_by_side() {
    let records = [
        request("source", "web-1", 200),
        request("source", "web-1", 200),
        request("destination", "web-1", 200),
        connection("source", "a", "f", "w"),
    ];
    assert_eq!(count(&records, |record| record.is_request()), Counted { at_source: 2, at_destination: 1 });
}

#[test]
fn a_spread_counts_the_callers_connections_and_the_pods_that_served() {
    let other = |id: u64| with(request("source", "web-1", 200), json!({"connection_id": id, "path": "/other"}));
    let records = [
        request("source", "web-1", 200),
        request("source", "web-2", 200),
        request("source", "web-2", 200),
        // Neither the other side's view, nor other callers, nor other requests.
        request("destination", "web-2", 200),
        with(request("source", "web-2", 200), json!({"source_pod": "reports"})),
        other(8),
    ];
    let is_item = |record: Record<'_>| record.text("path").starts_with("/item");
    let served = BTreeMap::from([("web-1".to_owned(), 1), ("web-2".to_owned(), 2)]);
    assert_eq!(spread(&records, "frontend", is_item), Spread { connections: 1, served });
    assert_eq!(spread(&records, "frontend", |_| true).connections, 2);
}

#[test]
fn one_line_for_each_kind_of_request_in_the_order_they_began() {
    let at = |second: u8, record: Value, path: &str| {
        with(record, json!({"start_time": format!("2026-01-02T03:04:{second:02}.678901Z"), "path": path}))
    };
    let refused = with(
        request("source", "", 503),
        json!({"upstream_address": null, "destination_pod": "", "reason": "no_ready_endpoint"}),
    );
    let call = with(
        request("source", "prices-1", 200),
        json!({"source_pod": "reports", "method": "POST", "protocol": "HTTP/2", "grpc_status": 7}),
    );
    let records = [
        connection("source", "a", "frontend", "db"),
        at(9, refused, "/"),
        at(1, request("destination", "web-2", 200), "/item/1"),
        at(2, request("source", "web-2", 200), "/item/2"),
        at(3, request("source", "web-1", 200), "/item/3"),
        at(4, call, "/shop.Prices/Set"),
    ];
    let lines = lines(&records, |ip| ip.to_owned());
    let text: Vec<String> = lines.iter().map(|line| line.join(" ")).collect();
    assert_eq!(
        text,
        [
            "03:04:02.678 frontend web-2 GET /item/2 200 1.3 completed",
            "03:04:04.678 reports prices-1 POST /shop.Prices/Set 200 grpc 7 1.3 completed",
            "03:04:09.678 frontend nobody GET / 503 1.3 no_ready_endpoint",
        ]
    );
}

#[test]
fn addresses_lose_their_port() {
    assert_eq!((ip("10.0.0.1:80"), ip("[fd77::1]:80"), ip("10.0.0.1")), ("10.0.0.1", "fd77::1", "10.0.0.1"));
}

#[test]
fn metrics_are_summed_over_the_samples_that_match() {
    let text = "# TYPE m counter\nm{a=\"x\",b=\"1\"} 3\nm{a=\"y\",b=\"1\"} 4 1700\nm_other 9\nplain 5\n";
    assert_eq!(sum(text, "m", &[]), Some(7.0));
    assert_eq!(sum(text, "m", &["a=\"x\""]), Some(3.0));
    assert_eq!(sum(text, "plain", &[]), Some(5.0));
    assert_eq!(sum(text, "m", &["a=\"z\""]), None);
}

const HISTOGRAM: &str = "h_bucket{r=\"s\",le=\"1\"} 10\nh_bucket{r=\"s\",le=\"5\"} 10\nh_bucket{r=\"s\",le=\"+Inf\"} 10\n\
    h_sum{r=\"s\"} 5\nh_count{r=\"s\"} 10\nh_bucket{r=\"t\",le=\"1\"} 0\nh_bucket{r=\"t\",le=\"5\"} 8\n\
    h_bucket{r=\"t\",le=\"+Inf\"} 10\nh_sum{r=\"t\"} 45\nh_count{r=\"t\"} 10\n";

#[test]
fn a_mean_is_of_all_series_that_match() {
    assert_eq!(mean(HISTOGRAM, "h", &[]), Some(2.5));
    assert_eq!(mean(HISTOGRAM, "h", &["r=\"t\""]), Some(4.5));
    assert_eq!(mean(HISTOGRAM, "h", &["r=\"z\""]), None);
    assert_eq!(mean("h_sum 0\nh_count 0\n", "h", &[]), None);
}

#[test]
fn quantiles_are_those_of_prometheus() {
    // 10 of 20 in (0, 1], 8 in (1, 5], 2 beyond.
    assert_eq!(quantile(HISTOGRAM, "h", &[], 0.25), Some(0.5));
    assert_eq!(quantile(HISTOGRAM, "h", &[], 0.5), Some(1.0));
    assert_eq!(quantile(HISTOGRAM, "h", &[], 0.7), Some(3.0));
    assert_eq!(quantile(HISTOGRAM, "h", &[], 0.99), Some(5.0));
    assert_eq!(quantile(HISTOGRAM, "h", &["r=\"s\""], 0.99), Some(0.99));
    assert_eq!(quantile(HISTOGRAM, "h", &["r=\"z\""], 0.5), None);
    assert_eq!(quantile("h_bucket{le=\"+Inf\"} 0\n", "h", &[], 0.5), None);
}
