//! The chapters about identities: what a wiretap between the nodes reads before and after, and who the agents know each other to be.

use anyhow::{Context, Result, ensure};
use heddle_testkit::capture::Packet;
use heddle_testkit::pki::spiffe_id;
use heddle_testkit::prelude::*;
use serde_json::Value;

use crate::account::Record;
use crate::apps::{self, WEB_PORT};
use crate::page::Page;
use crate::row;
use crate::story::{Demo, NAMESPACE};

/// What frontend asks web-2 for; nobody else ought to read it.
const SECRET: &str = "/?card=4111-1111-1111-1111";
/// Caller and callee, on two nodes.
const PAIR: [&str; 2] = ["frontend", "web-2"];
/// First byte of a record of TLS that is part of a handshake, and of one that carries data.
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// Bytes of a packet that are shown.
const SHOWN: usize = 24;

/// What crossed the wire between the two while frontend asked.
fn asked(demo: &Demo) -> Result<(Capture, Vec<Packet>)> {
    let [caller, callee] = PAIR.map(|name| demo.mesh.pod(name));
    let tap = demo.mesh.node_of(caller).capture("uplink")?;
    let page = apps::curl_page(caller, demo.pod(callee.name(), WEB_PORT), SECRET)?;
    ensure!(page.starts_with("HTTP/1.1 "), "{} did not answer {}: {page}", callee.name(), caller.name());
    let packets = tap.between(caller, callee)?;
    Ok((tap, packets))
}

/// Before: whoever listens reads along.
pub fn before(demo: &Demo, page: &Page) -> Result<()> {
    let (tap, packets) = asked(demo)?;
    let is_read = tap.contains(SECRET.as_bytes())?;
    let told = packets.iter().find_map(|packet| first_line(&packet.payload)).unwrap_or_default();
    page.verdict(is_read, format!("a wiretap between the nodes reads frontend → web-2 in plain text: {told}"));
    Ok(())
}

/// After: it reads nothing, and both ends know each other.
pub fn after(demo: &Demo, page: &mut Page) -> Result<()> {
    page.chapter("Between the nodes: mutual TLS on the application's own port, and who is who");
    let (tap, packets) = asked(demo)?;
    let [caller, callee] = PAIR.map(|name| demo.mesh.pod(name));
    page.say(format!("frontend$ curl 'http://{}{SECRET}'", demo.pod("web-2", WEB_PORT)));
    let mut rows = vec![row!["the wiretap", "bytes", "begins with", "which is"]];
    let mut shown = packets.iter().map(|packet| shown(packet, caller)).collect::<Vec<_>>();
    shown.truncate(4);
    rows.extend(shown);
    page.table(&rows);
    let bytes: usize = packets.iter().map(|packet| packet.payload.len()).sum();
    let of_callee = |packet: &Packet| [packet.from, packet.to].iter().any(|end| end.port() == WEB_PORT);
    page.verdict(
        !packets.is_empty() && !tap.contains(SECRET.as_bytes())? && !tap.contains(b"HTTP/1.1")?,
        format!("{} packets, {bytes} bytes: neither the request nor the answer can be read", packets.len()),
    );
    page.verdict(
        packets.iter().all(of_callee),
        format!("all of them to or from port {WEB_PORT}, nginx's own: policies of the network see the true port"),
    );

    let mut records = Vec::new();
    let wanted = |records: &[Value], reporter: &str| {
        records
            .iter()
            .rev()
            .map(Record)
            .find(|r| r.text("path") == SECRET && r.text("reporter") == reporter)
            .map(|r| r.0.clone())
    };
    let both = wait_for("both agents' records", crate::story::ENROL_TIMEOUT, || {
        records = demo.mesh_nodes().iter().flat_map(|node| node.access_log()).collect();
        // Those of before the label had no agent.
        Ok(wanted(&records, "source").zip(wanted(&records, "destination")))
    })?;
    let mut rows = vec![row!["agent", "transport", "caller proved to be", "callee proved to be"]];
    let mut is_known = true;
    for record in [&both.0, &both.1].map(Record) {
        let (from, to) = (record.text("source_principal"), record.text("destination_principal"));
        is_known &= (from, to) == (&*spiffe_id(NAMESPACE, caller.name()), &*spiffe_id(NAMESPACE, callee.name()));
        is_known &= record.text("transport") == "heddle";
        rows.push(row![record.text("node"), record.text("transport"), from, to]);
    }
    page.table(&rows);
    page.verdict(is_known, "both agents checked the other's certificate, and name the same two");

    certificates(demo, page)
}

fn certificates(demo: &Demo, page: &Page) -> Result<()> {
    let node = demo.mesh.node("a");
    let answer = node.heddle(&["certs"])?;
    ensure!(answer.status.success(), "heddle certs on node {}: {}", node.name(), answer.stderr);
    page.remark(format!(
        "heddle certs    # node {}, whose agent made the keys itself and never shows them",
        node.name()
    ));
    for line in answer.stdout.lines() {
        page.say(format!("  {line}"));
    }
    let has_all = node.pods().iter().all(|pod| answer.stdout.contains(&spiffe_id(NAMESPACE, pod.name())));
    let has_others =
        demo.mesh.node("b").pods().iter().any(|pod| answer.stdout.contains(&spiffe_id(NAMESPACE, pod.name())));
    page.verdict(has_all && !has_others, "a node has the certificates of its own pods, and of no others");
    Ok(())
}

/// Waits until every pod's certificate has come.
pub fn wait_certified(demo: &Demo, pods: &[&str]) -> Result<()> {
    for pod in pods.iter().map(|name| demo.mesh.pod(name)) {
        let (node, id) = (demo.mesh.node_of(pod), spiffe_id(NAMESPACE, pod.name()));
        let has = || node.metrics().is_ok_and(|text| has_certificate(&text, &id));
        wait_until(&format!("{id} has a certificate"), crate::story::ENROL_TIMEOUT, has)
            .with_context(|| node.agent_tail())?;
    }
    Ok(())
}

fn has_certificate(exposition: &str, id: &str) -> bool {
    let series = format!("heddle_certificate_not_after_timestamp_seconds{{identity=\"{id}\"}}");
    exposition.lines().any(|line| line.starts_with(&series))
}

fn shown(packet: &Packet, caller: &Place) -> Vec<String> {
    let way = if caller.addresses().contains(&packet.from.ip()) { "frontend → web-2" } else { "web-2 → frontend" };
    let hex: Vec<String> = packet.payload.iter().take(SHOWN / 2).map(|byte| format!("{byte:02x}")).collect();
    let which = match packet.payload.first() {
        Some(&HANDSHAKE) => "a handshake of TLS",
        Some(&DATA) => "ciphertext",
        _ => "the middle of a record",
    };
    row![way, packet.payload.len(), hex.join(" "), which]
}

fn first_line(payload: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(payload).ok()?;
    text.starts_with("GET ").then(|| text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_ciphertext_is_not() {
        assert_eq!(first_line(b"GET /x HTTP/1.1\r\nHost: web\r\n\r\n").as_deref(), Some("GET /x HTTP/1.1"));
        assert_eq!(first_line(b"\x17\x03\x03GET /"), None);
        assert_eq!(first_line(b"\x16\xff\xff"), None);
    }

    #[test]
    fn a_certificate_is_found_by_its_whole_id() {
        let text = "heddle_certificate_not_after_timestamp_seconds{identity=\"spiffe://a/ns/b/sa/web-1\"} 17\n";
        assert!(has_certificate(text, "spiffe://a/ns/b/sa/web-1") && !has_certificate(text, "spiffe://a/ns/b/sa/web"));
    }
}
