//! Short fuzzing without a fuzzer, for every CI run: what a client sends, and what somebody left in the maps. The long
//! runs are `tests/fuzz`, with the same claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use heddle_abi::{EXCLUDED_CIDR_PREFIX_BITS, Heartbeat, Ip};
use heddle_datapath::enrol::{Desired, Namespace, PodSpec, plan};
use heddle_datapath::kernel::{excluded_cidr, ip, ip_addr};
use heddle_proto::keeper::v1::{self as wire, request};
use proptest::prelude::*;
use prost::Message;

const SET_PODS: &[u8] = include_bytes!("../../../tests/fuzz/seeds/keeper_protocol/set_pods");

/// What the keeper does with a packet before it touches the kernel.
fn packet(bytes: &[u8]) -> Vec<PodSpec> {
    let Ok(wire::Request { request: Some(request::Request::SetPods(set)) }) = wire::Request::decode(bytes) else {
        return Vec::new();
    };
    let specs: Vec<PodSpec> = set.pods.into_iter().filter_map(|pod| PodSpec::parse(pod).ok()).collect();
    let desired: Vec<Desired> = (0..)
        .zip(&specs)
        .map(|(cookie, spec)| Desired { spec: spec.clone(), namespace: Namespace::Found(cookie) })
        .collect();
    assert_eq!(plan(&desired, &BTreeSet::new(), &BTreeMap::new()).len(), desired.len(), "each wish has an answer");
    specs
}

fn some_address() -> impl Strategy<Value = String> {
    prop_oneof!["10\\.0\\.0\\.[0-9]{1,3}", "fd00::[0-9a-f]{1,5}", "::ffff:10\\.0\\.0\\.1", "[0-9.:/]{0,12}"]
}

fn some_pod() -> impl Strategy<Value = wire::PodSpec> {
    let words = ("[a-z\u{0}\n]{0,5}", "[a-z]{0,5}", "[a-z]{0,5}", "/?[a-z./]{0,9}");
    let addresses = proptest::collection::vec(some_address(), 0..18);
    let cidr = (some_address(), 0..140_u8).prop_map(|(address, bits)| format!("{address}/{bits}"));
    let ports = proptest::collection::vec(prop_oneof![0..70_000_u32, any::<u32>()], 0..4);
    (words, addresses, proptest::collection::vec(cidr, 0..4), ports).prop_map(
        |((uid, namespace, name, netns_path), addresses, exclude_outbound_cidrs, exclude_outbound_ports)| {
            wire::PodSpec {
                uid,
                namespace,
                name,
                netns_path,
                addresses,
                exclude_outbound_cidrs,
                exclude_outbound_ports,
                ..wire::PodSpec::default()
            }
        },
    )
}

proptest! {
    #[test]
    fn any_packet_ends(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        packet(&bytes);
    }

    #[test]
    fn a_nearly_right_packet_ends(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = SET_PODS.to_vec();
        bytes[at.index(SET_PODS.len())] = byte;
        packet(&bytes);
        packet(&SET_PODS[..cut.index(SET_PODS.len())]);
    }

    #[test]
    fn what_is_let_in_is_what_the_maps_can_hold(pods in proptest::collection::vec(some_pod(), 1..5)) {
        let set = wire::SetPods { pods, last: true, unreadable: Vec::new() };
        for spec in packet(&wire::Request { request: Some(request::Request::SetPods(set)) }.encode_to_vec()) {
            prop_assert!(spec.netns_path.is_absolute() && !spec.uid.is_empty() && spec.addresses.len() <= 16);
            for address in &spec.addresses {
                prop_assert!(!address.is_loopback() && !address.is_unspecified() && address.to_canonical() == *address);
            }
            prop_assert!(spec.exclude_outbound_ports.iter().all(|port| *port != 0));
        }
    }

    #[test]
    fn any_address_in_a_map_can_be_removed_again(bytes in any::<[u8; 16]>()) {
        prop_assert_eq!(ip(ip_addr(Ip::from_octets(bytes))).octets(), bytes);
    }

    #[test]
    fn any_prefix_in_a_map_is_a_cidr_or_none(bits in 0..300_u32, mut network in any::<[u8; 16]>(), mapped in any::<bool>()) {
        if mapped {
            network[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        }
        let base = EXCLUDED_CIDR_PREFIX_BITS + if mapped { 96 } else { 0 };
        let family = if mapped { 4 } else { 6 };
        match excluded_cidr(bits, family, network) {
            Some(cidr) => {
                prop_assert_eq!(u32::from(cidr.prefix_len()) + base, bits);
                prop_assert_eq!(ip(cidr.addr()).octets(), network);
            }
            None => prop_assert!(bits < base || bits > EXCLUDED_CIDR_PREFIX_BITS + 128),
        }
    }

    #[test]
    fn any_beat_can_be_read_and_followed(stamp_ns in any::<u64>(), streak in any::<u32>(), now in any::<u64>()) {
        let beat = Heartbeat { stamp_ns, streak, reserved: 0 };
        let _ = beat.is_alive(now);
        prop_assert!(beat.next(now).next(now).is_alive(now), "two beats and it lives, whatever was there");
    }
}

#[test]
fn the_seed_is_right() {
    let [spec] = &packet(SET_PODS)[..] else { panic!("one pod") };
    assert_eq!((spec.display().as_str(), spec.addresses.len(), spec.fail_open), ("shop/web", 2, true));
    assert_eq!(
        (spec.exclude_outbound_ports.as_slice(), spec.exclude_inbound_ports.as_slice()),
        (&[443, 9000][..], &[8080][..])
    );
}

#[test]
fn addresses_are_read_as_they_are_written() {
    for text in ["10.0.0.1", "fd00::1", "::1", "0.0.0.0"] {
        let address: IpAddr = text.parse().expect("an address");
        assert_eq!(ip_addr(ip(address)), address);
    }
}
