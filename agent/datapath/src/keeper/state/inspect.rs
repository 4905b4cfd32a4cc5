//! What a keeper shows: pods, programs, map use, and where the kernel differs from what was told. Reads only.

use std::collections::BTreeSet;
use std::net::IpAddr;

use heddle_proto::keeper::v1 as wire;

use super::{Refusal, State};

impl State {
    /// All pods that were asked for.
    pub(super) fn pod_states(&self) -> Vec<wire::PodState> {
        let enrolled = self.pods.values().map(|pod| wire::PodState {
            uid: pod.spec.uid.clone(),
            namespace: pod.spec.namespace.clone(),
            name: pod.spec.name.clone(),
            enrolled: true,
            reason: self.refused.get(&pod.spec.uid).map(|(_, reason)| reason.clone()).unwrap_or_default(),
            netns_cookie: pod.netns_cookie,
            addresses: pod.spec.addresses.iter().map(IpAddr::to_string).collect(),
            listener_generation: pod.listener_generation,
        });
        let refused = self.refused.iter().filter(|(uid, _)| !self.pods.contains_key(*uid)).map(|(uid, (spec, why))| {
            wire::PodState {
                uid: uid.clone(),
                namespace: spec.namespace.clone(),
                name: spec.name.clone(),
                enrolled: false,
                reason: why.clone(),
                netns_cookie: 0,
                addresses: spec.addresses.iter().map(IpAddr::to_string).collect(),
                listener_generation: 0,
            }
        });
        enrolled.chain(refused).collect()
    }

    /// What was told versus what is in the kernel.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn inspect(&self) -> Result<wire::InspectReply, Refusal> {
        let programs = self.kernel.programs().map_err(super::kernel_refusal)?;
        let config = self.kernel.config();
        Ok(wire::InspectReply {
            programs: programs
                .into_iter()
                .map(|p| wire::ProgramInfo { name: p.name, id: p.id, tag: p.tag, attached_to: p.link })
                .collect(),
            maps: self
                .kernel
                .maps
                .usage()
                .into_iter()
                .map(|m| wire::MapInfo {
                    name: m.name.into(),
                    id: m.id,
                    entries: m.entries,
                    max_entries: m.max_entries,
                })
                .collect(),
            pods: self.pod_states(),
            discrepancies: self.discrepancies(),
            unended: self.unended_reports(),
            pin_dir: config.pin_dir.display().to_string(),
            cgroup: config.cgroup.display().to_string(),
            agent_attached: self.agent_session.is_some(),
            released: self.released,
            keys_present: self.keys.is_some(),
            open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, |d| u32::try_from(d.count()).unwrap_or(u32::MAX)),
            binary_version: self.config.version.into(),
            pid: std::process::id(),
        })
    }

    fn discrepancies(&self) -> Vec<String> {
        let mut found = Vec::new();
        let captured: BTreeSet<u64> = self.kernel.maps.pods().into_iter().map(|e| e.netns_cookie).collect();
        for pod in self.pods.values() {
            let name = pod.spec.display();
            if !captured.contains(&pod.netns_cookie) {
                found.push(format!("pod {name}: enrolled, but not in the pods map"));
            }
            if !self.kernel.has_lookup(pod.netns_cookie) {
                found.push(format!("pod {name}: enrolled, but inbound capture is not attached"));
            }
            for &address in &pod.spec.addresses {
                if self.kernel.maps.address(address).map(|a| a.netns_cookie) != Some(pod.netns_cookie) {
                    found.push(format!("pod {name}: address {address} is not the pod's in the addresses map"));
                }
            }
        }
        let known: BTreeSet<u64> = self.pods.values().map(|pod| pod.netns_cookie).collect();
        found.extend(
            captured.difference(&known).map(|cookie| format!("netns {cookie}: captured, but nobody asked for it")),
        );
        found
    }
}

/// Without what an agent knows anyhow: a node's pods must fit into one packet.
pub(super) fn compact(states: Vec<wire::PodState>) -> Vec<wire::PodState> {
    let bare = |state: wire::PodState| wire::PodState {
        namespace: String::new(),
        name: String::new(),
        addresses: Vec::new(),
        ..state
    };
    states.into_iter().map(bare).collect()
}
