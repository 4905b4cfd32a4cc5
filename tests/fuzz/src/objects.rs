//! What users write and what clients of the keeper send: files of objects, packets, contents of the pinned maps.

use std::collections::{BTreeMap, BTreeSet};

use heddle_abi::{Heartbeat, Ip};
use heddle_datapath::enrol::{Desired, Namespace, PodSpec, plan};
use heddle_datapath::kernel::{excluded_cidr, ip, ip_addr};
use heddle_proto::keeper::v1::{Reply, Request, request};
use prost::Message;

const BEFORE: &[u8] = b"apiVersion: v1\nkind: Namespace\nmetadata: {name: before-the-fuzz}\n---\n";
const AFTER: &[u8] = b"\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: after-the-fuzz}\n";

/// Files of objects: whatever the bytes, reading ends, does not panic, and keeps the documents around them.
pub fn yaml_objects(bytes: &[u8]) {
    let reading = heddle_api::read("fuzz", &[BEFORE, bytes, AFTER].concat());
    let named = |name: &str| reading.items.iter().any(|item| &*item.object.key().name == name);
    assert!(named("before-the-fuzz") && named("after-the-fuzz"));
}

/// Any packet a client may send: decoded, parsed and planned without a panic.
pub fn keeper_protocol(bytes: &[u8]) {
    let _ = Reply::decode(bytes);
    let Ok(Request { request: Some(request::Request::SetPods(set)) }) = Request::decode(bytes) else {
        return;
    };
    let desired: Vec<Desired> = set
        .pods
        .into_iter()
        .filter_map(|pod| PodSpec::parse(pod).ok())
        .zip(0..)
        .map(|(spec, cookie)| Desired { spec, namespace: Namespace::Found(cookie) })
        .collect();
    let _ = plan(&desired, &BTreeSet::new(), &BTreeMap::new());
}

/// Any bytes in the pinned maps: read without a panic, and written back to the same key, so that they can be removed.
pub fn map_contents(bytes: &[u8]) {
    let mut rest = bytes;
    let address: [u8; 16] = take(&mut rest);
    let (prefix_bits, family) = (u32::from_le_bytes(take(&mut rest)), u32::from_le_bytes(take(&mut rest)));
    let (stamp_ns, streak) = (u64::from_le_bytes(take(&mut rest)), u32::from_le_bytes(take(&mut rest)));
    let now = u64::from_le_bytes(take(&mut rest));
    assert_eq!(ip(ip_addr(Ip::from_octets(address))).octets(), address);
    if let Some(cidr) = excluded_cidr(prefix_bits, family, address) {
        assert_eq!(ip(cidr.addr()).octets(), address);
    }
    let beat = Heartbeat { stamp_ns, streak, reserved: 0 };
    let _ = beat.is_alive(now);
    assert!(beat.next(now).next(now).is_alive(now));
}

/// The next bytes; zeros where there are no more.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_at(bytes.len().min(N));
    *bytes = rest;
    let mut array = [0; N];
    array[..taken.len()].copy_from_slice(taken);
    array
}
