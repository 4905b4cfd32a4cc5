//! EndpointSlices, written by Kubernetes and by hand.

use super::*;
use crate::object::{Object, read};

fn slice(yaml: &str) -> (Option<EndpointSlice>, Vec<String>, Vec<String>) {
    let head = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n";
    let meta = "metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\n";
    let reading = read("f.yaml", format!("{head}{meta}{yaml}").as_bytes());
    let text = |list: &[heddle_model::InvalidObject]| {
        list.iter().map(|i| format!("{}: {}: {}", i.line, i.field, i.message)).collect()
    };
    let (invalid, warnings) = (text(&reading.invalid), text(&reading.warnings));
    let slice = reading.items.into_iter().find_map(|item| match item.object {
        Object::EndpointSlice(slice) => Some(slice),
        _ => None,
    });
    (slice, invalid, warnings)
}

#[test]
fn every_field_is_read() {
    let (slice, invalid, warnings) = slice(
        "
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}, {name: any}]
endpoints:
- addresses: [10.1.0.1, 10.1.0.9]
  conditions: {ready: false, serving: true, terminating: true}
  nodeName: a
  zone: z1
  targetRef: {kind: Pod, name: web-0}
- addresses: [10.1.0.2]
- addresses: [10.1.0.3]
  conditions: {ready: false}
- addresses: [10.1.0.4]
  conditions: {ready: null}
",
    );
    assert_eq!((invalid, warnings), (vec![], vec![]));
    let slice = slice.unwrap();
    assert_eq!(slice.ports, [("http".into(), 8080)], "TCP ports with a number");
    assert_eq!(&*slice.service, "web");
    let flags = |e: &SliceEndpoint| (e.ip.to_string(), e.ready, e.serving, e.terminating);
    let expected = [
        ("10.1.0.1".to_owned(), false, true, true),
        ("10.1.0.2".to_owned(), true, true, false),
        ("10.1.0.3".to_owned(), false, false, false),
        ("10.1.0.4".to_owned(), true, true, false),
    ];
    assert_eq!(slice.endpoints.iter().map(flags).collect::<Vec<_>>(), expected);
    let first = &slice.endpoints[0];
    assert_eq!((&*first.node, &*first.zone), ("a", "z1"));
    assert_eq!(first.pod, Some(("shop".into(), "web-0".into())));
    assert_eq!(first.on_port(8080).addr, "10.1.0.1:8080".parse().unwrap());
}

#[test]
fn what_makes_a_slice_invalid_table() {
    let table = [
        ("endpoints: []", "1: addressType: `` is unknown: `IPv4` or `IPv6` or `FQDN`"),
        ("addressType: IPv4\nendpoints: [{addresses: []}]", "5: endpoints[0].addresses: is empty"),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.1.0.256]}]",
            "5: endpoints[0].addresses[0]: `10.1.0.256` is no IP",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]",
            "5: endpoints[0].addresses[0]: fd00::1 is not of the",
        ),
        (
            "addressType: IPv6\nendpoints: [{addresses: [127.0.0.1]}]",
            "5: endpoints[0].addresses[0]: 127.0.0.1 is a loopback",
        ),
        ("addressType: IPv4\nports: [{port: 0}]", "5: ports[0].port: 0 is no port"),
        ("addressType: IPv4\nports: [{port: 1}, {port: 2}]", "5: ports[1].name: `` is there twice"),
        ("addressType: IPv4\nports: {port: 1}", "5: ports: must be a list, not a mapping"),
    ];
    for (yaml, expected) in table {
        let (slice, invalid, _) = slice(yaml);
        assert!(slice.is_none(), "{yaml}: its endpoints are missing");
        assert!(invalid.len() == 1 && invalid[0].starts_with(expected), "{yaml}:\n{invalid:?}\n{expected}");
    }
}

#[test]
fn names_instead_of_addresses_are_warned_of() {
    let (slice, invalid, warnings) = slice("addressType: FQDN\nendpoints: [{addresses: [db.example]}]");
    assert!(slice.is_none() && invalid.is_empty());
    assert_eq!(warnings, ["4: addressType: FQDN is not supported: its endpoints are left out"]);
}
