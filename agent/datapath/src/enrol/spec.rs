//! What the agent asks for one pod, parsed from the wire once, so that nothing later can be surprised by it.

use std::net::IpAddr;
use std::path::PathBuf;

use heddle_proto::keeper::v1 as wire;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Exclusions of one kind one pod may have.
pub const EXCLUSIONS_MAX: usize = 256;
/// Ports of one pod whose mTLS mode is told to the kernel; of more, all are STRICT there.
pub const STRICT_EXCEPTIONS_MAX: usize = 256;
/// Addresses one pod may have.
pub const ADDRESSES_MAX: usize = 16;
const NAME_MAX: usize = 253;
const PATH_MAX: usize = 4096;

/// One pod to capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// Pod uid.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Network namespace file.
    pub netns_path: PathBuf,
    /// Pod addresses, canonical, without duplicates.
    pub addresses: Vec<IpAddr>,
    /// `heddle.dev/failure-policy: Open`.
    pub fail_open: bool,
    /// Permitted outbound exclusions.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Permitted outbound exclusions.
    pub exclude_outbound_ports: Vec<u16>,
    /// Permitted inbound exclusions.
    pub exclude_inbound_ports: Vec<u16>,
    /// The agent serves HBONE for it.
    #[serde(default)]
    pub hbone: bool,
    /// Ports not in `strict_except` are STRICT.
    #[serde(default)]
    pub strict: bool,
    /// Ports for which the contrary of `strict` holds, in order, each once.
    #[serde(default)]
    pub strict_except: Vec<u16>,
}

impl PodSpec {
    /// From the wire.
    ///
    /// # Errors
    /// Names the pod and the field.
    pub fn parse(spec: wire::PodSpec) -> Result<Self, String> {
        let pod = format!("pod {}/{}", spec.namespace, spec.name);
        let fail = |field: &str, why: &str| -> Result<Self, String> { Err(format!("{pod}: {field}: {why}")) };
        for (field, value) in [("uid", &spec.uid), ("namespace", &spec.namespace), ("name", &spec.name)] {
            if value.is_empty() || value.len() > NAME_MAX || value.chars().any(char::is_control) {
                return fail(field, "must be 1 to 253 printable characters");
            }
        }
        let netns_path = PathBuf::from(&spec.netns_path);
        if !netns_path.is_absolute() || spec.netns_path.len() > PATH_MAX {
            return fail("netns_path", "must be an absolute path of at most 4096 bytes");
        }
        if spec.addresses.len() > ADDRESSES_MAX {
            return fail("addresses", "more than 16");
        }
        let mut addresses = Vec::with_capacity(spec.addresses.len());
        for text in &spec.addresses {
            let Ok(address) = text.parse::<IpAddr>() else {
                return fail("addresses", &format!("`{text}` is not an IP address"));
            };
            let address = address.to_canonical();
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                return fail("addresses", &format!("{address} cannot be a pod's address"));
            }
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let counts =
            [spec.exclude_outbound_cidrs.len(), spec.exclude_outbound_ports.len(), spec.exclude_inbound_ports.len()];
        if counts.iter().any(|&n| n > EXCLUSIONS_MAX) {
            return fail("exclusions", "more than 256 of one kind");
        }
        let mut cidrs = Vec::with_capacity(spec.exclude_outbound_cidrs.len());
        for text in &spec.exclude_outbound_cidrs {
            let Ok(cidr) = text.parse::<IpNet>() else {
                return fail("exclude_outbound_cidrs", &format!("`{text}` is not a CIDR"));
            };
            cidrs.push(cidr.trunc());
        }
        let exclude_outbound_ports = match ports(&spec.exclude_outbound_ports) {
            Ok(ports) => ports,
            Err(wrong) => return fail("exclude_outbound_ports", &format!("{wrong} is not a port")),
        };
        let exclude_inbound_ports = match ports(&spec.exclude_inbound_ports) {
            Ok(ports) => ports,
            Err(wrong) => return fail("exclude_inbound_ports", &format!("{wrong} is not a port")),
        };
        let Ok(mut strict_except) = ports(&spec.strict_except) else {
            return fail("strict_except", "has a number that is not a port");
        };
        strict_except.sort_unstable();
        strict_except.dedup();
        let crowded = strict_except.len() > STRICT_EXCEPTIONS_MAX;
        if crowded {
            tracing::warn!(pod, "more than {STRICT_EXCEPTIONS_MAX} ports with a mode of their own: all are STRICT");
            strict_except.clear();
        }
        let mut parsed = Self {
            netns_path,
            addresses,
            fail_open: spec.fail_open,
            exclude_outbound_cidrs: cidrs,
            exclude_outbound_ports,
            exclude_inbound_ports,
            hbone: spec.hbone,
            strict: spec.strict || crowded,
            strict_except,
            uid: spec.uid,
            namespace: spec.namespace,
            name: spec.name,
        };
        // The agent does not ask for it; that nothing goes round it to such a port must not hang on that.
        let excluded = std::mem::take(&mut parsed.exclude_inbound_ports);
        parsed.exclude_inbound_ports = excluded.into_iter().filter(|&port| !parsed.is_strict(port)).collect();
        Ok(parsed)
    }

    /// Whether nothing unauthenticated may reach a port.
    #[must_use]
    pub fn is_strict(&self, port: u16) -> bool {
        self.strict != self.strict_except.contains(&port)
    }

    /// Whether there is a STRICT port that was none under `former`.
    #[must_use]
    pub fn is_stricter_than(&self, former: &Self) -> bool {
        let differs = |port: &u16| self.is_strict(*port) && !former.is_strict(*port);
        (self.strict && !former.strict) || self.strict_except.iter().chain(&former.strict_except).any(differs)
    }

    /// `namespace/name`, as messages call it.
    #[must_use]
    pub fn display(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn ports(list: &[u32]) -> Result<Vec<u16>, u32> {
    list.iter().map(|&p| u16::try_from(p).ok().filter(|&p| p != 0).ok_or(p)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(strict: bool, strict_except: Vec<u32>) -> PodSpec {
        let wire = wire::PodSpec {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            netns_path: "/run/netns/web".into(),
            exclude_inbound_ports: vec![80, 90],
            strict,
            strict_except,
            ..Default::default()
        };
        PodSpec::parse(wire).expect("a pod")
    }

    #[test]
    fn strict_ports_table() {
        let table = [
            (false, vec![], [false, false], vec![80, 90]),
            (true, vec![], [true, true], vec![]),
            (false, vec![80, 80], [true, false], vec![90]),
            (true, vec![80], [false, true], vec![80]),
        ];
        for (strict, except, expected, excluded) in table {
            let spec = parsed(strict, except.clone());
            assert_eq!([spec.is_strict(80), spec.is_strict(90)], expected, "{strict} {except:?}");
            assert_eq!(spec.exclude_inbound_ports, excluded, "{strict} {except:?}");
        }
        let wire = wire::PodSpec { strict_except: vec![0], ..Default::default() };
        assert!(PodSpec::parse(wire).is_err());
    }

    #[test]
    fn more_exceptions_than_fit_are_closed_not_open() {
        let fitting = parsed(true, (1..=256).collect());
        assert!(!fitting.is_strict(256) && fitting.is_strict(257));
        let crowded = parsed(true, (1..=257).collect());
        assert!(crowded.is_strict(1) && crowded.is_strict(257));
        assert!(parsed(false, (1..=257).collect()).is_strict(9999));
    }

    #[test]
    fn stricter_table() {
        let table = [
            ((false, vec![]), (false, vec![]), false),
            ((false, vec![]), (false, vec![80]), true),
            ((false, vec![]), (true, vec![]), true),
            ((true, vec![]), (false, vec![80]), false),
            ((false, vec![80]), (false, vec![90]), true),
            ((true, vec![80]), (true, vec![90]), true),
            ((true, vec![80]), (true, vec![80]), false),
            ((true, vec![80, 90]), (true, vec![80]), true),
            ((false, vec![80]), (true, vec![80]), true),
        ];
        for ((strict, except), (then, then_except), expected) in table {
            let (former, next) = (parsed(strict, except.clone()), parsed(then, then_except.clone()));
            assert_eq!(next.is_stricter_than(&former), expected, "{strict} {except:?} → {then} {then_except:?}");
        }
    }
}
