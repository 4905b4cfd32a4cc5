//! Connection records (DESIGN §4): without a fresh one nothing is carried, and a full map refuses, says so, counts, and
//! harms nobody once it has room again.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use heddle_abi::{RECORDS_MAX, names};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{
    Carried, INBOUND_PORT, OUTBOUND_PORT, SOON, assert_carried, both_families, wait_logged, wait_reason,
};

type Key = [u8; 48];
type Value = [u8; 24];

/// The records of a node, as another program with the pin would open them.
struct Records(HashMap<MapData, Key, Value>);

impl Records {
    fn of(node: &Node) -> Result<Self> {
        let pin = node.paths().pins.join("maps").join(names::RECORDS);
        Ok(Self(Map::HashMap(MapData::from_pin(&pin).with_context(|| pin.display().to_string())?).try_into()?))
    }

    /// Keys of no namespace that exists.
    fn key(number: usize) -> Key {
        let mut key = [0xee; 48];
        key[..8].copy_from_slice(&(u64::MAX - number as u64).to_ne_bytes());
        key
    }

    fn fill(&mut self) -> Result<usize> {
        for number in 0..=RECORDS_MAX {
            if let Err(error) = self.0.insert(Self::key(number), [0; 24], 0) {
                ensure!(number >= RECORDS_MAX - 16, "the map refused entry {number}: {error}");
                return Ok(number);
            }
        }
        anyhow::bail!("the map took more than {RECORDS_MAX} entries")
    }

    fn empty(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|number| Ok(self.0.remove(&Self::key(number))?))
    }
}

/// Connects from inside the pod's network namespace, but outside the node's cgroup: no hook sees it. Says how it ended.
fn connect_unseen(pod: &Pod, to: SocketAddr) -> Result<std::io::Result<usize>> {
    pod.netns().inside(|| {
        let mut stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"whose am I?")?;
        stream.read(&mut [0; 16])
    })
}

#[test]
fn a_connection_without_a_record_is_reset_and_counted() -> Result<()> {
    let mesh = Mesh::declare("no_record").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let before = node.counter("record_missing")?;
    let control = connect_unseen(client, SocketAddr::new(web.v4(), 8080))?;
    ensure!(control.as_ref().is_ok_and(|n| *n == 11), "positive control: unseen, but it works: {control:?}");
    for ip in ["127.0.0.1", "::1"] {
        let refused = connect_unseen(client, SocketAddr::new(ip.parse::<IpAddr>()?, OUTBOUND_PORT))?;
        let error = refused.err().with_context(|| format!("{ip}: something was carried"))?;
        ensure!(error.kind() == ErrorKind::ConnectionReset, "{ip}: {error}, not a reset");
    }
    wait_reason(node, "no_original_destination")?;
    let records = || Ok::<_, anyhow::Error>(node.counter("record_missing")? - before);
    assert_eq!(records()?, 2);
    // Nor does the inbound listener loop to itself.
    for ip in ["127.0.0.1", "::1"] {
        let refused = connect_unseen(client, SocketAddr::new(ip.parse::<IpAddr>()?, INBOUND_PORT))?;
        ensure!(refused.is_err(), "{ip} port {INBOUND_PORT}: {refused:?}");
    }
    // A captured connection of the same pod works, and is counted as neither.
    assert_carried(client, web, &dial(web.v4(), 8080), 8080, Carried::BothSides)?;
    assert_eq!(records()?, 2);
    wait_until("nothing is left in the registry", SOON, || node.connections().is_ok_and(|c| c.is_empty()))
}

#[test]
fn a_full_map_refuses_and_recovers() -> Result<()> {
    let mesh = Mesh::declare("full_map")
        .external("internet")
        .serves(tcp(443))
        .node("a")
        .pod("client")
        .pod("web")
        .serves(tcp(8080))
        .start()?;
    let (client, web, node, internet) =
        (mesh.pod("client"), mesh.pod("web"), mesh.node("a"), mesh.external("internet"));
    let out = dial(internet.v4(), 443);
    let held = client.hold(&out, 2)?;
    for ip in both_families(web) {
        internet.connect(&dial(ip, 8080))?.assert_succeeded().context("positive control")?;
    }
    let accepted = web.server(0).accepted()?.len();
    let lost = node.counter("record_refused_map_full")?;

    let mut records = Records::of(node)?;
    let filled = records.fill()?;
    let usage = node.map_entries()?;
    ensure!(usage.get(names::RECORDS).is_some_and(|n| *n as usize >= filled), "heddle bpf: {usage:?}");

    let refused = client.connect(&out)?;
    refused.assert_refused()?;
    wait_reason(node, "no_original_destination")?;
    for ip in both_families(web) {
        internet.connect(&dial(ip, 8080))?.assert_refused()?;
    }
    wait_logged(node, "inbound is refused", |r| r["reason"] == "client_not_published")?;
    ensure!(node.counter("record_refused_map_full")? >= lost + 3, "not counted");
    // And the programs say so themselves: aya-log, by way of the keeper, as a tracing event.
    wait_until("the eBPF programs' warning is in the keeper's log", SOON, || {
        let log = node.agent_tail();
        log.contains("heddle_ebpf") && log.contains("connection record refused: map full")
    })?;
    // The application may see a connection that is gone already; it never gets a byte of it.
    let shown = web.server(0).accepted()?.split_off(accepted);
    let ends = web.server(0).wait_ended(accepted + shown.len())?.split_off(accepted);
    ensure!(ends.iter().all(|end| *end == End::Reset), "ends {ends:?} of {shown:?}");
    assert_eq!(held.ping()?, (2, 0), "open connections need no record");
    web.connect(&dial("127.0.0.1".parse()?, 8080))?
        .assert_succeeded()
        .context("what is not captured is not concerned")?;

    records.empty(filled)?;
    for ip in both_families(web) {
        assert_carried(client, web, &dial(ip, 8080), 8080, Carried::BothSides)?;
    }
    client.connect(&out)?.assert_succeeded()?;
    let last = internet.connect(&dial(web.v4(), 8080))?;
    last.assert_succeeded()?;
    let seen = web.server(0).accepted()?.last().map(|a| a.accept.ip().to_canonical());
    assert_eq!(seen, Some(internet.v4()));
    // What the metrics page says is refreshed every ten seconds; it says the same.
    wait_until("metrics show the map's use", Duration::from_secs(12), || {
        node.metrics().is_ok_and(|page| {
            let line = page.lines().find(|l| l.starts_with("heddle_datapath_map_entries{map=\"HEDDLE_RECORDS\"}"));
            line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).is_some_and(|n| n < 1000.0)
        })
    })
}
