//! The Mesh: its fields, and that nothing unknown or unbuilt slips through.

use super::*;
use crate::object::{Object, read};

/// The config, `None` if rejected, and the problems.
fn mesh(yaml: &str) -> (Option<Option<MeshConfig>>, Vec<String>) {
    let text = format!("apiVersion: heddle.dev/v1alpha1\nkind: Mesh\n{yaml}");
    let reading = read("f.yaml", text.as_bytes());
    let invalid = reading.invalid.iter().map(|i| format!("{}: {}: {}", i.line, i.field, i.message)).collect();
    let config = reading.items.into_iter().find_map(|item| match item.object {
        Object::Mesh(config) => Some(config),
        _ => None,
    });
    (config, invalid)
}

#[test]
fn every_field_is_read() {
    let (config, invalid) = mesh(
        "
metadata: {name: default}
spec:
  trustDomain: td.example
  clusterDomain: c.example
  clusterName: prod-1
  outboundPolicy: Deny
  limits: {connectionsMax: 100, bufferedBytesMax: 1048576, requestsMax: 50}
  mtls: {mode: Strict}
  sameNode: Wire
",
    );
    assert_eq!(invalid, Vec::<String>::new());
    let config = config.flatten().unwrap();
    assert_eq!(
        (&*config.trust_domain, &*config.cluster_domain, &*config.cluster_name),
        ("td.example", "c.example", "prod-1")
    );
    assert_eq!(config.outbound_policy, OutboundPolicy::Deny);
    let limits = config.limits;
    assert_eq!((limits.connections_max, limits.buffered_bytes_max, limits.requests_max), (100, 1_048_576, 50));
    assert_eq!((config.mtls, config.same_node), (MtlsMode::Strict, SameNode::Wire));
}

#[test]
fn modes_and_same_node_table() {
    let table = [
        ("mtls: {}", MtlsMode::Permissive, SameNode::Auto),
        ("mtls: {mode: Strict}", MtlsMode::Strict, SameNode::Auto),
        ("mtls: {mode: Permissive}, sameNode: Auto", MtlsMode::Permissive, SameNode::Auto),
        ("mtls: {mode: Disabled}, sameNode: Handover", MtlsMode::Disabled, SameNode::Handover),
        ("sameNode: Wire", MtlsMode::Permissive, SameNode::Wire),
    ];
    for (yaml, mtls, same_node) in table {
        let (config, invalid) = mesh(&format!("metadata: {{name: default}}\nspec: {{{yaml}}}\n"));
        let config = config.flatten().unwrap_or_else(|| panic!("{yaml}: {invalid:?}"));
        assert_eq!((config.mtls, config.same_node), (mtls, same_node), "{yaml}");
    }
}

#[test]
fn an_empty_mesh_has_the_defaults() {
    assert_eq!(mesh("metadata: {name: default}\n").0.flatten(), Some(MeshConfig::default()));
}

#[test]
fn what_makes_a_mesh_invalid_table() {
    let table = [
        ("outboundPolicy: deny", "4: spec.outboundPolicy: `deny` is unknown: `Allow` or `Deny`"),
        ("trustDomain: Cluster.Local", "4: spec.trustDomain: `Cluster.Local` is no SPIFFE trust domain"),
        ("trustDomain: ''", "4: spec.trustDomain: `` is no SPIFFE trust domain"),
        ("clusterDomain: a..b", "4: spec.clusterDomain: `a..b` is no DNS domain"),
        ("clusterName: a b", "4: spec.clusterName: `a b` is no cluster name"),
        ("limits: {connectionsMax: 0}", "4: spec.limits.connectionsMax: 0 is out of range: 1 to 1000000"),
        ("limits: {requestsMax: 0}", "4: spec.limits.requestsMax: 0 is out of range: 1 to 1000000"),
        ("limits: {bufferedBytesMax: 1}", "4: spec.limits.bufferedBytesMax: 1 is out of range"),
        (
            "limits: {bufferedBytesMax: 16Mi}",
            "4: spec.limits.bufferedBytesMax: must be a whole number, not the text `16Mi`",
        ),
        ("mtls: {mode: STRICT}", "4: spec.mtls.mode: `STRICT` is unknown: `Strict` or `Permissive` or `Disabled`"),
        ("mtls: Strict", "4: spec.mtls: must be a mapping, not the text `Strict`"),
        ("mtls: {port: 80}", "4: spec.mtls.port: unknown field `port`"),
        ("sameNode: wire", "4: spec.sameNode: `wire` is unknown: `Auto` or `Handover` or `Wire`"),
        ("telemetry: {}", "4: spec.telemetry: is not supported yet: remove it"),
        (
            "outboundpolicy: Deny",
            "4: spec.outboundpolicy: unknown field `outboundpolicy`, expected one of `trustDomain`",
        ),
        ("limits: {connections: 1}", "4: spec.limits.connections: unknown field `connections`"),
    ];
    for (yaml, expected) in table {
        let (config, invalid) = mesh(&format!("metadata: {{name: default}}\nspec: {{{yaml}}}\n"));
        assert_eq!(config, Some(None), "present but rejected: {yaml}");
        assert!(invalid.len() == 1 && invalid[0].starts_with(expected), "{yaml}:\n{invalid:?}\n{expected}");
    }
}

#[test]
fn a_mesh_of_another_name_has_no_effect_on_the_one_that_counts() {
    let (config, invalid) = mesh("metadata: {name: other}\n");
    assert_eq!(config, None);
    assert_eq!(invalid, ["3: metadata.name: `other` has no effect: the Mesh is named `default`"]);
}
