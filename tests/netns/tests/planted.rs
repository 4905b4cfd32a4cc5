//! Whatever is in the pinned maps when a keeper starts (demand 4): it starts, answers, and once it is told which pods
//! there are, nothing else is left; the pods that are wanted are as wanted, whatever was made of their entries.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Pod as Plain;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData};
use heddle_abi::names;
use heddle_datapath::client::KeeperClient;
use heddle_proto::keeper::v1::Role;
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, SOON, assert_carried, both_families};
use nix::sys::signal::Signal;

/// splitmix64, so that a seed in a message makes the same bytes again.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

fn data(node: &Node, name: &str) -> Result<MapData> {
    MapData::from_pin(node.paths().pins.join("maps").join(name)).with_context(|| name.to_owned())
}

fn table<K: Plain, V: Plain>(node: &Node, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(Map::HashMap(data(node, name)?).try_into()?)
}

fn cidrs(node: &Node) -> Result<LpmTrie<MapData, [u8; 28], u32>> {
    Ok(Map::LpmTrie(data(node, names::EXCLUDED_CIDRS)?).try_into()?)
}

fn contents<K: Plain + Ord + Debug, V: Plain + Ord + Debug>(node: &Node, name: &str) -> Result<Vec<(K, V)>> {
    let mut all = table::<K, V>(node, name)?.iter().collect::<Result<Vec<_>, _>>()?;
    all.sort();
    Ok(all)
}

/// Everything that says who is captured, byte by byte.
type Enrolment =
    (Vec<(u64, [u8; 24])>, Vec<([u8; 16], [u8; 16])>, Vec<([u8; 16], u32)>, Vec<([u8; 16], u32)>, Vec<(u32, [u8; 28])>);

fn enrolment(node: &Node) -> Result<Enrolment> {
    let mut prefixes =
        cidrs(node)?.keys().map(|k| k.map(|k| (k.prefix_len(), k.data()))).collect::<Result<Vec<_>, _>>()?;
    prefixes.sort();
    Ok((
        contents(node, names::PODS)?,
        contents(node, names::ADDRESSES)?,
        contents(node, names::EXCLUDED_PORTS)?,
        contents(node, names::PORT_MODES)?,
        prefixes,
    ))
}

/// Adds noise of every kind, and spoils what is there.
fn spoil(node: &Node, noise: &mut Noise, cookies: &[u64]) -> Result<()> {
    let mut pods = table::<u64, [u8; 24]>(node, names::PODS)?;
    let mut addresses = table::<[u8; 16], [u8; 16]>(node, names::ADDRESSES)?;
    let mut ports = table::<[u8; 16], u32>(node, names::EXCLUDED_PORTS)?;
    let mut modes = table::<[u8; 16], u32>(node, names::PORT_MODES)?;
    let mut prefixes = cidrs(node)?;
    for cookie in cookies {
        pods.insert(cookie, noise.bytes::<24>(), 0)?;
    }
    let known: Vec<[u8; 16]> = addresses.keys().collect::<Result<_, _>>()?;
    for address in known {
        addresses.insert(address, noise.bytes::<16>(), 0)?;
    }
    for number in 0..200_usize {
        let whose = if number % 2 == 0 { cookies[number / 2 % cookies.len()] } else { noise.next() };
        let mut own = noise.bytes::<16>();
        own[..8].copy_from_slice(&whose.to_ne_bytes());
        pods.insert(noise.next(), noise.bytes::<24>(), 0)?;
        addresses.insert(noise.bytes::<16>(), own, 0)?;
        ports.insert(own, noise.next() as u32, 0)?;
        modes.insert(own, noise.next() as u32, 0)?;
        let mut network = noise.bytes::<28>();
        network[8..12].copy_from_slice(&(4 + (number as u32 % 3)).to_ne_bytes());
        network[..8].copy_from_slice(&whose.to_ne_bytes());
        prefixes.insert(&Key::new(noise.next() as u32 % 225, network), 1, 0)?;
    }
    let mut beat: Array<MapData, [u8; 16]> = Map::Array(data(node, names::HEARTBEAT)?).try_into()?;
    beat.set(0, noise.bytes::<16>(), 0)?;
    Ok(())
}

#[test]
fn a_keeper_copes_with_anything_in_its_maps() -> Result<()> {
    let mesh = Mesh::declare("planted")
        .namespace("free")
        .meshed()
        .annotated("heddle.dev/allow-exclusions", "true")
        .node("a")
        .pod("client")
        .in_namespace("free")
        .annotated("heddle.dev/exclude-outbound-ports", "9999")
        .annotated("heddle.dev/exclude-outbound-cidrs", "192.0.2.0/24")
        .pod("web")
        .serves(tcp(8080))
        .start()?;
    let modes = "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\nmetadata: {name: free, namespace: free}\n\
                 spec: {ports: [{port: 9999, mode: Strict}]}\n";
    mesh.source().write_text("modes.yaml", modes)?;
    let (node, client, web) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"));
    wait_until("the mode of a port is in the kernel", SOON, || enrolment(node).is_ok_and(|e| e.3.len() == 1))?;
    let before = enrolment(node)?;
    let cookies: Vec<u64> = before.0.iter().map(|(cookie, _)| *cookie).collect();
    ensure!(cookies.len() == 2 && before.1.len() == 4, "positive control: {before:?}");
    ensure!(before.2.len() == 1 && before.4.len() == 1, "positive control: exclusions are in force: {before:?}");
    for (seed, agent_dies) in [(1, false), (2, true), (3, false)] {
        node.end_keeper(Signal::SIGKILL)?;
        if agent_dies {
            node.kill_agent()?;
        }
        spoil(node, &mut Noise(seed), &cookies)?;
        ensure!(enrolment(node)? != before, "positive control: seed {seed}");
        node.start_keeper()?;
        let inspected = KeeperClient::connect(&node.paths().run, Role::Cli, "test")?.inspect()?;
        ensure!(inspected.pods.len() == 2, "seed {seed}: {inspected:?}");
        if agent_dies {
            node.start_agent()?;
        }
        let mut now = enrolment(node)?;
        let swept = wait_until("only what is wanted is left", SOON, || {
            now = enrolment(node).unwrap_or_default();
            now == before
        });
        swept.with_context(|| format!("seed {seed}: before {before:?}, now {now:?}\n{}", node.agent_tail()))?;
        for ip in both_families(web) {
            assert_carried(client, web, &dial(ip, 8080), 8080, Carried::BothSides)
                .with_context(|| format!("seed {seed}"))?;
        }
        let inspected = KeeperClient::connect(&node.paths().run, Role::Cli, "test")?.inspect()?;
        ensure!(inspected.discrepancies.is_empty(), "seed {seed}: {:?}", inspected.discrepancies);
    }
    Ok(())
}

#[test]
fn strict_ports_that_do_not_fit_close_their_pod() -> Result<()> {
    let mesh = Mesh::declare("planted-full")
        .namespace("free")
        .meshed()
        .annotated("heddle.dev/failure-policy", "Open")
        .external("internet")
        .node("a")
        .pod("web")
        .in_namespace("free")
        .labelled("app", "web")
        .serves(tcp(8080))
        .serves(tcp(9090))
        .pod("other")
        .in_namespace("free")
        .serves(tcp(8080))
        .start()?;
    let (node, web, other, internet) = (mesh.node("a"), mesh.pod("web"), mesh.pod("other"), mesh.external("internet"));
    let mut modes = table::<[u8; 16], u32>(node, names::PORT_MODES)?;
    let mut noise = Noise(7);
    let planted = (0..2 * heddle_abi::PORT_MODES_MAX)
        .take_while(|_| modes.insert(noise.bytes::<16>(), heddle_abi::port_mode::LENIENT, 0).is_ok())
        .count();
    ensure!(planted >= heddle_abi::PORT_MODES_MAX, "positive control: the map is full after {planted}");
    let object = "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\nmetadata: {name: web, namespace: free}\n\
                  spec: {selector: {matchLabels: {app: web}}, ports: [{port: 8080, mode: Strict}]}\n";
    mesh.source().write_text("modes.yaml", object)?;
    // The keeper sweeps what nobody asked for, once it has done what was.
    wait_until("the pod was told", SOON, || {
        contents::<[u8; 16], u32>(node, names::PORT_MODES).is_ok_and(|m| m.is_empty())
    })?;
    node.kill_agent()?;
    wait_until("a pod without STRICT ports is open", Duration::from_secs(9), || {
        let dial = dial(other.v4(), 8080).within(Duration::from_millis(500));
        internet.connect(&dial).is_ok_and(|o| o.assert_succeeded().is_ok())
    })?;
    for ip in both_families(web) {
        for port in [8080, 9090] {
            internet.connect(&dial(ip, port))?.assert_refused()?;
        }
    }
    // Told again, it fits.
    mesh.source().write_text("modes.yaml", &object.replace("8080", "9090"))?;
    node.start_agent()?;
    wait_until("the port is in the map", SOON, || {
        contents::<[u8; 16], u32>(node, names::PORT_MODES).is_ok_and(|m| m.len() == 1)
    })?;
    node.kill_agent()?;
    wait_until("the other port is open", Duration::from_secs(9), || {
        let dial = dial(web.v4(), 8080).within(Duration::from_millis(500));
        internet.connect(&dial).is_ok_and(|o| o.assert_succeeded().is_ok())
    })?;
    internet.connect(&dial(web.v4(), 9090))?.assert_refused()
}
