//! Metrics of what only the binary sees: datapath counters, map use, enrolment, source.

use std::sync::Arc;

use anyhow::{Context, Result};
use heddle_model::Snapshot;
use heddle_proxy::{Proxy, Telemetry};
use heddle_telemetry::Registry;
use heddle_telemetry::collect::{FamilyDesc, FnCollector};
use tokio::sync::watch;

use super::identity::Identities;
use super::link::Link;

const CONNECTIONS: FamilyDesc = FamilyDesc::counter(
    "heddle_datapath_connections_total",
    "Verdicts of the eBPF programs: captured, passed or refused, and why.",
    &["direction", "verdict", "reason"],
);
const RECORDS: FamilyDesc = FamilyDesc::counter(
    "heddle_datapath_records_total",
    "Connection records in the kernel: written, consumed, refused, missing.",
    &["event"],
);
const MAP_ENTRIES: FamilyDesc =
    FamilyDesc::gauge("heddle_datapath_map_entries", "Entries in use of an eBPF map.", &["map"]);
const MAP_MAX: FamilyDesc = FamilyDesc::gauge("heddle_datapath_map_entries_max", "Capacity of an eBPF map.", &["map"]);
const PODS: FamilyDesc = FamilyDesc::gauge("heddle_pods", "Pods of this node by state of capture.", &["state"]);
const KEEPER: FamilyDesc = FamilyDesc::gauge("heddle_keeper_attached", "1 while attached to the keeper.", &[]);
const GENERATION: FamilyDesc =
    FamilyDesc::gauge("heddle_snapshot_generation", "Publications of the snapshot so far.", &[]);
const INVALID: FamilyDesc =
    FamilyDesc::gauge("heddle_invalid_objects", "Objects rejected; each denies its own targets only.", &[]);

const FAMILIES: [FamilyDesc; 8] = [CONNECTIONS, RECORDS, MAP_ENTRIES, MAP_MAX, PODS, KEEPER, GENERATION, INVALID];

/// Registers all families of an agent.
///
/// # Errors
/// A name is used twice.
pub fn register(
    registry: &Registry,
    telemetry: &Telemetry,
    proxy: &Proxy,
    link: &Arc<Link>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Result<()> {
    let register = |collector| registry.register(collector).context("register metrics");
    register(telemetry.tcp.collector())?;
    register(telemetry.http.collector())?;
    register(heddle_telemetry::series::collector(
        &telemetry.tcp,
        &telemetry.http,
        &telemetry.policy,
        &telemetry.upstream,
    ))?;
    register(telemetry.proxy.collector())?;
    register(telemetry.policy.collector())?;
    register(telemetry.upstream.collector())?;
    register(telemetry.access.collector())?;
    register(heddle_telemetry::process::collector())?;
    proxy.register_metrics(registry).context("register metrics")?;
    let link = Arc::clone(link);
    register(FnCollector::boxed(&FAMILIES, move || {
        let [mut connections, mut records, mut entries, mut max, mut pods, mut keeper, mut generation, mut invalid] =
            FAMILIES.map(|family| family.family());
        for (word, count) in link.counters() {
            match split(word) {
                Some((direction, verdict, reason)) => connections.push(&[direction, verdict, reason], count as f64),
                None => records.push(&[word.trim_start_matches("record_")], count as f64),
            }
        }
        link.view(|view| {
            for map in &view.maps {
                entries.push(&[&map.name], map.entries as f64);
                max.push(&[&map.name], map.max_entries as f64);
            }
            let enrolled = view.pods.values().filter(|pod| pod.enrolled).count();
            pods.push(&["enrolled"], enrolled as f64);
            pods.push(&["failed"], (view.pods.len() - enrolled) as f64);
            keeper.push(&[], f64::from(u8::from(view.attached)));
        });
        let snapshot = snapshots.borrow();
        generation.push(&[], snapshot.generation as f64);
        invalid.push(&[], snapshot.invalid.len() as f64);
        vec![connections, records, entries, max, pods, keeper, generation, invalid]
    }))
}

/// Registers the families of an agent that has identities.
///
/// # Errors
/// A name is used twice.
pub fn register_identities(registry: &Registry, identities: &Identities) -> Result<()> {
    let shared = identities.shared();
    for collector in [heddle_identity::metrics::store_collector(&shared.store), shared.handshakes.collector()] {
        registry.register(collector).context("register metrics")?;
    }
    Ok(())
}

/// `outbound_refused_agent_port` → its three words; `None` for records.
pub fn split(word: &'static str) -> Option<(&'static str, &'static str, &'static str)> {
    let (direction, rest) = word.split_once('_')?;
    let (verdict, reason) = rest.split_once('_')?;
    (direction != "record").then_some((direction, verdict, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_abi::Counter;

    #[test]
    fn every_counter_has_its_labels() {
        for counter in Counter::ALL {
            let word = counter.as_str();
            match split(word) {
                Some((direction, verdict, reason)) => {
                    assert!(["outbound", "inbound", "bind"].contains(&direction), "{word}");
                    assert!(["captured", "passed", "refused"].contains(&verdict), "{word}");
                    assert!(!reason.is_empty(), "{word}");
                }
                None => assert!(word.starts_with("record_"), "{word}"),
            }
        }
    }

    #[test]
    fn names_are_legal() {
        for family in FAMILIES {
            assert!(family.desc().is_some(), "{}", family.name);
        }
    }
}
