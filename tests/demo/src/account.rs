//! What can be said about the traffic from what the agents wrote: edges and lines from access logs, sums and quantiles from
//! metrics.
//!
//! Pure: text and JSON in, rows out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// One access record, read by the names of its fields.
#[derive(Clone, Copy)]
pub struct Record<'a>(pub &'a Value);

impl<'a> Record<'a> {
    /// A text field, empty if it is not there.
    pub fn text(self, field: &str) -> &'a str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// A whole number, 0 if it is not there.
    pub fn number(self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_default()
    }

    /// Whether the caller's agent wrote it.
    pub fn is_at_source(self) -> bool {
        self.text("reporter") == "source"
    }

    /// Whether it is about a request; else it is about a connection.
    pub fn is_request(self) -> bool {
        !self.text("method").is_empty()
    }

    /// What was spoken: `HTTP/1.1`, `HTTP/2`, `gRPC` or `TCP`.
    pub fn protocol(self) -> &'a str {
        match self.text("protocol") {
            "" => "TCP",
            _ if self.grpc_code().is_some() => "gRPC",
            protocol => protocol,
        }
    }

    /// The name of the gRPC status, where one was sent.
    fn grpc_code(self) -> Option<&'static str> {
        let status = usize::try_from(self.0["grpc_status"].as_u64()?).ok()?;
        Some(GRPC_CODES.get(status).copied().unwrap_or("an unknown status"))
    }

    /// How it came out: the status, in gRPC's words for gRPC; why it ended, for a connection.
    pub fn outcome(self) -> String {
        match self.grpc_code() {
            Some(code) => code.to_owned(),
            None if self.is_request() => self.number("status").to_string(),
            None => self.text("reason").to_owned(),
        }
    }

    /// Where it went: the pod, and if no agent knows it `name_of` its address; nobody, if no pod was asked.
    fn callee(self, name_of: impl Fn(&str) -> String) -> String {
        match (self.text("destination_pod"), self.text("upstream_address")) {
            ("", "") if self.is_request() => "nobody".to_owned(),
            ("", "") => name_of(ip(self.text("original_destination"))),
            ("", address) => name_of(ip(address)),
            (pod, _) => pod.to_owned(),
        }
    }

    fn caller(self, name_of: impl Fn(&str) -> String) -> String {
        match self.text("source_pod") {
            "" => name_of(ip(self.text("source_address"))),
            pod => pod.to_owned(),
        }
    }

    /// The Service asked for and its port, `web:80`; empty if a pod's own address was.
    fn service(self) -> String {
        let service = self.text("destination_service");
        let (host, port) = service.rsplit_once(':').unwrap_or((service, ""));
        let name = host.split('.').next().unwrap_or_default();
        if name.is_empty() { String::new() } else { format!("{name}:{port}") }
    }
}

/// gRPC's status codes by number.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Caller, callee, what they spoke.
pub type Way = (String, String, String);

/// What went one way, and who carried it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edge {
    /// The Service asked for, `name:port`, empty if a pod's own address was.
    pub service: String,
    source: Side,
    destination: Side,
}

/// An edge as the agent of one of its ends counted it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Side {
    node: Option<String>,
    /// How often, by outcome.
    outcomes: BTreeMap<String, u64>,
    /// From the caller to the callee, and back.
    bytes: (u64, u64),
}

/// Edges by way, from the access records of all nodes. A pod that no agent knows is named by `name_of`, from its address.
pub fn edges(records: &[Value], name_of: impl Fn(&str) -> String) -> BTreeMap<Way, Edge> {
    let mut edges: BTreeMap<Way, Edge> = BTreeMap::new();
    for record in records.iter().map(Record) {
        let way = (record.caller(&name_of), record.callee(&name_of), record.protocol().to_owned());
        let edge = edges.entry(way).or_default();
        let side = if record.is_at_source() {
            edge.service = record.service();
            &mut edge.source
        } else {
            &mut edge.destination
        };
        side.node = Some(record.text("node").to_owned());
        *side.outcomes.entry(record.outcome()).or_default() += 1;
        side.bytes.0 += record.number("bytes_received");
        side.bytes.1 += record.number("bytes_sent");
    }
    edges
}

impl Edge {
    /// The agents on the way: one if it stood at both ends, a dash for an end that has none.
    pub fn agents(&self) -> String {
        match (&self.source.node, &self.destination.node) {
            (Some(from), Some(to)) if from == to => from.clone(),
            (from, to) => {
                let name = |node: &Option<String>| node.clone().unwrap_or_else(|| "–".to_owned());
                format!("{} → {}", name(from), name(to))
            }
        }
    }

    /// The side that speaks: both count the same, so the caller's does if it has an agent.
    fn side(&self) -> &Side {
        if self.source.node.is_some() { &self.source } else { &self.destination }
    }

    /// How often, in the words of what was spoken.
    pub fn count(&self, protocol: &str) -> String {
        let count: u64 = self.side().outcomes.values().sum();
        let noun = match protocol {
            "TCP" => "connection",
            "gRPC" => "call",
            _ => "request",
        };
        format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
    }

    /// How they came out; of connections that all completed, what they carried.
    pub fn outcome(&self, protocol: &str) -> String {
        let Side { outcomes, bytes: (there, back), .. } = self.side();
        let mut told: Vec<(&String, &u64)> = outcomes.iter().collect();
        told.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        match &told[..] {
            [(only, _)] if protocol == "TCP" && *only == "completed" => format!("{there} bytes there, {back} back"),
            [(only, _)] => (*only).clone(),
            _ => told.iter().map(|(outcome, count)| format!("{outcome} ×{count}")).collect::<Vec<_>>().join(", "),
        }
    }
}

/// What the agents counted of something: at the callers' side, and at the callees'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub at_source: usize,
    pub at_destination: usize,
}

/// Records that a condition holds for, by side.
pub fn count(records: &[Value], is_wanted: impl Fn(Record<'_>) -> bool) -> Counted {
    let wanted = records.iter().map(Record).filter(|record| is_wanted(*record));
    wanted.fold(Counted::default(), |counted, record| match record.is_at_source() {
        true => Counted { at_source: counted.at_source + 1, ..counted },
        false => Counted { at_destination: counted.at_destination + 1, ..counted },
    })
}

/// Requests of one caller's connection, spread by its agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spread {
    /// The caller's connections they came on.
    pub connections: usize,
    /// Requests by the pod that served them.
    pub served: BTreeMap<String, u64>,
}

/// How a caller's requests were spread, of those that a condition holds for, as its own agent tells.
pub fn spread(records: &[Value], caller: &str, is_wanted: impl Fn(Record<'_>) -> bool) -> Spread {
    let mut served: BTreeMap<String, u64> = BTreeMap::new();
    let mut connections = BTreeSet::new();
    let of_caller = |record: &Record<'_>| record.is_at_source() && record.text("source_pod") == caller;
    for record in records.iter().map(Record).filter(of_caller).filter(|record| is_wanted(*record)) {
        *served.entry(record.text("destination_pod").to_owned()).or_default() += 1;
        connections.insert((record.text("node").to_owned(), record.number("connection_id")));
    }
    Spread { connections: connections.len(), served }
}

/// One request of each kind, in the order they began, as rows: time, from, to, method, path, status, milliseconds, reason.
/// Requests are of one kind if they differ in numbers at the end of their paths only; the caller's agent speaks if there is one.
pub fn lines(records: &[Value], name_of: impl Fn(&str) -> String) -> Vec<[String; 8]> {
    let mut requests: Vec<Record<'_>> = records.iter().map(Record).filter(|record| record.is_request()).collect();
    // Of the two sides of a request the caller's began first; times are of one length, so texts compare as times do.
    requests.sort_by_key(|record| (!record.is_at_source(), record.text("start_time")));
    let mut kinds = BTreeSet::new();
    requests.retain(|record| {
        let path = record.text("path").trim_end_matches(|c: char| c.is_ascii_digit());
        kinds.insert((record.caller(&name_of), record.text("method"), path, record.protocol(), record.outcome()))
    });
    requests.sort_by_key(|record| record.text("start_time"));
    requests.iter().map(|record| line(*record, &name_of)).collect()
}

fn line(record: Record<'_>, name_of: impl Fn(&str) -> String) -> [String; 8] {
    let time = record.text("start_time");
    let time = time.split_once('T').map_or(time, |(_, time)| time);
    let status = match record.0["grpc_status"].as_u64() {
        Some(status) => format!("{} grpc {status}", record.number("status")),
        None => record.number("status").to_string(),
    };
    [
        time.get(..12).unwrap_or(time).to_owned(),
        record.caller(&name_of),
        record.callee(&name_of),
        record.text("method").to_owned(),
        record.text("path").to_owned(),
        status,
        format!("{:.1}", record.0["duration_ms"].as_f64().unwrap_or_default()),
        record.text("reason").to_owned(),
    ]
}

/// The address without its port.
pub fn ip(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(ip, _)| ip.trim_matches(['[', ']']))
}

/// The sum of a metric's samples that carry all of these `label="value"` texts; `None` if there is no such sample.
pub fn sum(exposition: &str, metric: &str, labels: &[&str]) -> Option<f64> {
    samples(exposition, metric)
        .filter(|(text, _)| labels.iter().all(|label| text.contains(label)))
        .map(|(_, value)| value)
        .reduce(|sum, value| sum + value)
}

/// The mean of what a histogram recorded.
pub fn mean(exposition: &str, histogram: &str, labels: &[&str]) -> Option<f64> {
    let count = sum(exposition, &format!("{histogram}_count"), labels)?;
    Some(sum(exposition, &format!("{histogram}_sum"), labels)? / count).filter(|mean| mean.is_finite())
}

/// A quantile of what a histogram recorded, as Prometheus' `histogram_quantile` reckons it: linear within a bucket.
pub fn quantile(exposition: &str, histogram: &str, labels: &[&str], quantile: f64) -> Option<f64> {
    let name = format!("{histogram}_bucket");
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (text, value) in samples(exposition, &name).filter(|(text, _)| labels.iter().all(|label| text.contains(label)))
    {
        let bound = text.split("le=\"").nth(1)?.split('"').next()?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        match buckets.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, count)) => *count += value,
            None => buckets.push((bound, value)),
        }
    }
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let rank = quantile * buckets.last().map(|(_, all)| *all).filter(|all| *all > 0.0)?;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (low, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    let (high, upto) = buckets[at];
    // Beyond the last bound there is nothing to reckon with but that bound.
    Some(if high.is_infinite() { low } else { low + (high - low) * (rank - below) / (upto - below) })
}

fn samples<'a>(exposition: &'a str, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    exposition.lines().filter_map(move |line| {
        let rest = line.strip_prefix(metric)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels, value.split(' ').next()?.parse().ok()?))
    })
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
