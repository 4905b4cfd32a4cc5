//! What all objects have in common: names, labels, annotations, and the rules for single values.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::Timestamp;
use ipnet::IpNet;
use serde::Deserialize;

use crate::node::{Node, Value, shortened};
use crate::problem::Problems;

/// The namespace of a namespaced object that names none, as with `kubectl`.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Longest DNS label and value of a label, in bytes.
pub(crate) const LABEL_BYTES_MAX: usize = 63;
/// Longest name of most objects, in bytes.
pub(crate) const SUBDOMAIN_BYTES_MAX: usize = 253;

/// Opt-in label of namespaces and override of pods: `enabled` or `disabled`.
pub const MESH_LABEL: &str = "heddle.dev/mesh";
/// Namespace annotation: `Closed` or `Open`.
pub const FAILURE_POLICY: &str = "heddle.dev/failure-policy";
/// Namespace annotation: `true` lets the namespace's pods carry exclusion annotations, and opt out by their label although something guards
/// them; `false` is the default.
pub const ALLOW_EXCLUSIONS: &str = "heddle.dev/allow-exclusions";
/// Pod annotation: comma-separated CIDRs.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "heddle.dev/exclude-outbound-cidrs";
/// Pod annotation: comma-separated ports.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "heddle.dev/exclude-outbound-ports";
/// Pod annotation: comma-separated ports.
pub const EXCLUDE_INBOUND_PORTS: &str = "heddle.dev/exclude-inbound-ports";
/// Pod annotation: comma-separated ports.
pub const OPAQUE_PORTS: &str = "heddle.dev/opaque-ports";
/// Pod annotation in stand-alone mode: path of the network namespace.
pub const STANDALONE_NETNS: &str = "standalone.heddle.dev/netns";
/// Pod annotation in stand-alone mode: path of the cgroup2 directory.
pub const STANDALONE_CGROUP: &str = "standalone.heddle.dev/cgroup";

/// Pod annotation of Istio's ambient mode: `enabled` says that the pod is reached by HBONE.
pub const ISTIO_REDIRECTION: &str = "ambient.istio.io/redirection";

/// `metadata`, the fields we read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// `name`.
    pub name: String,
    /// `namespace`.
    pub namespace: Option<String>,
    /// `uid`.
    pub uid: Option<String>,
    /// `creationTimestamp`, RFC 3339.
    pub creation_timestamp: Option<String>,
    /// `deletionTimestamp`, RFC 3339.
    pub deletion_timestamp: Option<String>,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `ownerReferences`.
    pub owner_references: Vec<OwnerReference>,
}

/// An item of `metadata.ownerReferences`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// `kind`.
    pub kind: String,
    /// `name`.
    pub name: String,
    /// `controller`.
    pub controller: bool,
}

impl ObjectMeta {
    /// A label, empty if absent.
    #[must_use]
    pub fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }

    /// A label as the model keeps it, the first of several keys that is set.
    pub(crate) fn first_label(&self, keys: &[&str]) -> Arc<str> {
        keys.iter().map(|key| self.label(key)).find(|value| !value.is_empty()).unwrap_or_default().into()
    }

    pub(crate) fn created(&self, problems: &mut Problems) -> Option<Timestamp> {
        let text = self.creation_timestamp.as_deref()?;
        match Timestamp::parse(text) {
            Ok(created) => Some(created),
            Err(error) => {
                problems.error("metadata.creationTimestamp", format!("`{}` is {error}", shortened(text)));
                None
            }
        }
    }

    /// Kubernetes' rules for labels; they end in metrics and logs. Whether all keep to them.
    pub(crate) fn check_labels(&self, problems: &mut Problems) -> bool {
        let before = problems.errors.len();
        for (key, value) in &self.labels {
            if !is_label_value(value) {
                let message = format!(
                    "`{}` is no label value: at most 63 letters, digits, `-`, `_`, `.`, beginning and ending with a letter or digit",
                    shortened(value)
                );
                problems.error(label_path(key), message);
            }
        }
        problems.errors.len() == before
    }
}

/// A mapping in the `metadata` of an object that was rejected.
pub(crate) enum Salvaged<'r, 'n> {
    /// There is none.
    Absent,
    /// It is no mapping, or there is another.
    Illegible,
    /// It, perhaps not to its end.
    Node(&'r Node<'n>),
}

/// `metadata.labels` or `metadata.annotations` of an object that was rejected before its fields were.
pub(crate) fn salvaged<'r, 'n>(root: &'r Node<'n>, field: &str) -> Salvaged<'r, 'n> {
    let Some(meta) = root.get("metadata") else { return Salvaged::Absent };
    match meta.get(field) {
        _ if root.is_contested("metadata") || meta.is_contested(field) => Salvaged::Illegible,
        None => Salvaged::Absent,
        Some(node) if node.value == Value::Null => Salvaged::Absent,
        Some(node) if matches!(node.value, Value::Mapping(_)) => Salvaged::Node(node),
        Some(_) => Salvaged::Illegible,
    }
}

/// Path of a label.
pub(crate) fn label_path(key: &str) -> String {
    let mut path = "metadata.labels".to_owned();
    crate::node::join(&mut path, key);
    path
}

/// Path of an annotation.
pub(crate) fn annotation_path(key: &str) -> String {
    let mut path = "metadata.annotations".to_owned();
    crate::node::join(&mut path, key);
    path
}

/// RFC 1123 label: names of namespaces, ports and Services (for which Kubernetes also forbids a leading digit).
pub(crate) fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    !text.is_empty()
        && text.len() <= LABEL_BYTES_MAX
        && bytes.iter().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// RFC 1123 subdomain: names of most objects.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_BYTES_MAX && text.split('.').all(is_dns_label)
}

/// Kubernetes' rule for the value of a label.
pub(crate) fn is_label_value(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= LABEL_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.chars().next())
        && edge(text.chars().last())
}

/// Kubernetes' rule for the name of a container port (RFC 6335 §5.1, in lower case).
pub(crate) fn is_port_name(text: &str) -> bool {
    is_dns_label(text) && text.len() <= 15 && text.bytes().any(|b| b.is_ascii_lowercase()) && !text.contains("--")
}

/// Kubernetes' rule for the name of a label: an optional domain and `/`, then what a value may be, but not empty.
pub(crate) fn is_label_key(text: &str) -> bool {
    let (domain, name) = text.split_once('/').map_or((None, text), |(domain, name)| (Some(domain), name));
    domain.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

/// A port number.
pub(crate) fn port(problems: &mut Problems, field: impl Into<String>, number: i64) -> Option<u16> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            problems.error(field, format!("{number} is no port: 1 to 65535"));
            None
        }
    }
}

/// An address something may be reached at: canonical, never loopback, link-local, multicast or unspecified.
pub(crate) fn address(problems: &mut Problems, field: impl Into<String>, text: &str) -> Option<IpAddr> {
    let field = field.into();
    match text.parse::<IpAddr>() {
        Err(_) => {
            problems.error(field, format!("`{}` is no IP address", shortened(text)));
            None
        }
        Ok(ip) => match unreachable_kind(ip.to_canonical()) {
            Some(kind) => {
                problems.error(field, format!("{ip} is {kind}: an address other hosts can reach is wanted"));
                None
            }
            None => Some(ip.to_canonical()),
        },
    }
}

fn unreachable_kind(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some("the unspecified address")
    } else if ip.is_loopback() {
        Some("a loopback address")
    } else if link_local {
        Some("a link-local or broadcast address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else {
        None
    }
}

/// A network as clients' addresses are held against it: without bits behind its prefix, IPv4 never inside IPv6.
pub(crate) fn canonical(net: IpNet) -> IpNet {
    let net = net.trunc();
    let (bits, mapped) = (net.prefix_len().checked_sub(96), net.addr().to_canonical());
    let as_v4 = bits.filter(|_| net.addr() != mapped).and_then(|bits| IpNet::new(mapped, bits).ok());
    as_v4.unwrap_or(net)
}

/// One of a few words; `None` and a problem for any other.
pub(crate) fn one_of<T: Copy>(problems: &mut Problems, field: &str, text: &str, words: &[(&str, T)]) -> Option<T> {
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    if found.is_none() {
        let list: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        problems.error(field, format!("`{}` is unknown: {}", shortened(text), list.join(" or ")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_table() {
        let long = "a".repeat(64);
        let table = [
            ("web", true, true),
            ("web-0", true, true),
            ("a.b", false, true),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("A", false, false),
            ("a..b", false, false),
            ("a/b", false, false),
            ("ä", false, false),
            (long.as_str(), false, false),
        ];
        for (text, label, subdomain) in table {
            assert_eq!((is_dns_label(text), is_dns_subdomain(text)), (label, subdomain), "{text}");
        }
    }

    #[test]
    fn label_keys_table() {
        let table = [
            ("app", true),
            ("App_1.x", true),
            ("app.kubernetes.io/name", true),
            ("", false),
            ("/app", false),
            ("a/", false),
            ("A.b/app", false),
            ("a/b/c", false),
            ("a b", false),
            ("-a", false),
        ];
        for (text, expected) in table {
            assert_eq!(is_label_key(text), expected, "{text}");
        }
    }

    #[test]
    fn addresses_table() {
        let table = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("10.0.0", None),
            ("10.0.0.1/32", None),
            ("", None),
            ("127.0.0.1", None),
            ("::1", None),
            ("::ffff:127.0.0.1", None),
            ("0.0.0.0", None),
            ("169.254.169.254", None),
            ("fe80::1", None),
            ("224.0.0.1", None),
            ("255.255.255.255", None),
        ];
        for (text, expected) in table {
            let mut problems = Problems::default();
            let actual = address(&mut problems, "spec.clusterIP", text).map(|ip| ip.to_string());
            assert_eq!(actual.as_deref(), expected, "{text}");
            assert_eq!(problems.errors.len(), usize::from(expected.is_none()), "{text}");
        }
    }
}
