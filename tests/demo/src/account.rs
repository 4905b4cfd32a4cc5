//! What can be said about the traffic from what the agents wrote: edges from access logs, sums from metrics.
//!
//! Pure: text and JSON in, rows out.

use std::collections::BTreeMap;

use serde_json::Value;

/// One caller, one callee, and who carried the connections between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edge {
    /// The service asked for, empty if a pod's own address was.
    pub service: String,
    /// Connections as the caller's agent counted them.
    pub at_source: u64,
    /// Connections as the callee's agent counted them.
    pub at_destination: u64,
    pub source_node: Option<String>,
    pub destination_node: Option<String>,
    /// Bytes from the caller to the callee and back, as the caller's agent counted them.
    bytes_at_source: (u64, u64),
    /// Likewise, as the callee's did.
    bytes_at_destination: (u64, u64),
}

/// Edges by caller and callee, from the access records of all nodes. A pod that no agent knows is named by `name_of`, from
/// its address.
pub fn edges(records: &[Value], name_of: impl Fn(&str) -> String) -> BTreeMap<(String, String), Edge> {
    let mut edges: BTreeMap<(String, String), Edge> = BTreeMap::new();
    for record in records {
        let text = |field: &str| record[field].as_str().unwrap_or_default();
        let number = |field: &str| record[field].as_u64().unwrap_or_default();
        let named = |pod: &str, address: &str| if pod.is_empty() { name_of(ip(address)) } else { pod.to_owned() };
        let caller = named(text("source_pod"), text("source_address"));
        let called =
            ["upstream_address", "original_destination"].map(text).into_iter().find(|address| !address.is_empty());
        let callee = named(text("destination_pod"), called.unwrap_or_default());

        let edge = edges.entry((caller, callee)).or_default();
        let node = Some(text("node").to_owned());
        let (there, back) = (number("bytes_received"), number("bytes_sent"));
        let bytes = if text("reporter") == "source" {
            edge.at_source += 1;
            edge.source_node = node;
            text("destination_service").clone_into(&mut edge.service);
            &mut edge.bytes_at_source
        } else {
            edge.at_destination += 1;
            edge.destination_node = node;
            &mut edge.bytes_at_destination
        };
        *bytes = (bytes.0 + there, bytes.1 + back);
    }
    edges
}

impl Edge {
    /// The way in words.
    pub fn path(&self) -> String {
        match (&self.source_node, &self.destination_node) {
            (Some(from), Some(to)) if from == to => format!("same node: agent {from} on both sides"),
            (Some(from), Some(to)) => format!("agent {from} ─ network ─ agent {to}"),
            (Some(from), None) => format!("agent {from}, then plain"),
            (None, Some(to)) => format!("plain, then agent {to}"),
            (None, None) => "no agent".to_owned(),
        }
    }

    /// Bytes there and back. Both sides count the same ones, so one of them speaks.
    pub fn bytes(&self) -> (u64, u64) {
        if self.at_source > 0 { self.bytes_at_source } else { self.bytes_at_destination }
    }

    /// How often, whichever side saw more.
    pub fn connections(&self) -> u64 {
        self.at_source.max(self.at_destination)
    }
}

/// The address without its port.
pub fn ip(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(ip, _)| ip.trim_matches(['[', ']']))
}

/// The sum of a metric's samples that carry all of these `label="value"` texts.
pub fn sum(exposition: &str, metric: &str, labels: &[&str]) -> f64 {
    samples(exposition, metric)
        .filter(|(text, _)| labels.iter().all(|label| text.contains(label)))
        .map(|(_, value)| value)
        .sum()
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
mod tests {
    use super::*;
    use serde_json::json;

    fn record(reporter: &str, node: &str, from: &str, to: &str) -> Value {
        json!({
            "reporter": reporter, "node": node, "source_pod": from, "destination_pod": to, "reason": "closed",
            "source_address": "10.77.1.10:4000", "upstream_address": "10.77.2.11:8080",
            "destination_service": "web.boutique.svc.cluster.local:80", "bytes_sent": 300, "bytes_received": 70,
        })
    }

    #[test]
    fn both_sides_of_a_connection_are_one_edge_counted_once() {
        let records = [record("destination", "b", "frontend", "web-2"), record("source", "a", "frontend", "web-2")];
        let edges = edges(&records, |ip| ip.to_owned());
        let edge = &edges[&("frontend".to_owned(), "web-2".to_owned())];
        assert_eq!((edge.connections(), edge.bytes()), (1, (70, 300)));
        assert_eq!(edge.path(), "agent a ─ network ─ agent b");
        assert_eq!(edge.service, "web.boutique.svc.cluster.local:80");
    }

    #[test]
    fn a_caller_outside_the_mesh_is_named_by_its_address() {
        let records = [record("destination", "b", "", "web-2")];
        let edges = edges(&records, |ip| format!("laptop {ip}"));
        let edge = &edges[&("laptop 10.77.1.10".to_owned(), "web-2".to_owned())];
        assert_eq!((edge.path().as_str(), edge.connections(), edge.bytes()), ("plain, then agent b", 1, (70, 300)));
    }

    #[test]
    fn the_same_node_is_recognised() {
        let records =
            [record("source", "a", "f", "w"), record("destination", "a", "f", "w"), record("source", "a", "f", "w")];
        let edge = &edges(&records, |ip| ip.to_owned())[&("f".to_owned(), "w".to_owned())];
        assert_eq!((edge.path().as_str(), edge.connections()), ("same node: agent a on both sides", 2));
    }

    #[test]
    fn addresses_lose_their_port() {
        assert_eq!((ip("10.0.0.1:80"), ip("[fd77::1]:80"), ip("10.0.0.1")), ("10.0.0.1", "fd77::1", "10.0.0.1"));
    }

    #[test]
    fn metrics_are_summed_over_the_samples_that_match() {
        let text = "# TYPE m counter\nm{a=\"x\",b=\"1\"} 3\nm{a=\"y\",b=\"1\"} 4 1700\nm_other 9\nplain 5\n";
        assert_eq!(sum(text, "m", &[]), 7.0);
        assert_eq!(sum(text, "m", &["a=\"x\""]), 3.0);
        assert_eq!(sum(text, "plain", &[]), 5.0);
    }
}
