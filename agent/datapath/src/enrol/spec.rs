//! What the agent asks for one pod, parsed from the wire once, so that nothing later can be surprised by it.

use std::net::IpAddr;
use std::path::PathBuf;

use heddle_proto::keeper::v1 as wire;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Exclusions of one kind one pod may have.
pub const EXCLUSIONS_MAX: usize = 256;
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
        Ok(Self {
            netns_path,
            addresses,
            fail_open: spec.fail_open,
            exclude_outbound_cidrs: cidrs,
            exclude_outbound_ports,
            exclude_inbound_ports,
            hbone: spec.hbone,
            uid: spec.uid,
            namespace: spec.namespace,
            name: spec.name,
        })
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
