//! Which pods of this node are to be enrolled, from the snapshot, in the keeper's words.

use std::net::IpAddr;

use heddle_model::workload::FailurePolicy;
use heddle_model::{MtlsMode, Snapshot, Workload};
use heddle_proto::keeper::v1::PodSpec;

/// The desired pods, ordered by uid so that the same set is the same list. With `hbone` the agent serves HBONE for them.
#[must_use]
pub fn desired(snapshot: &Snapshot, hbone: bool) -> Vec<PodSpec> {
    let mut pods: Vec<PodSpec> = snapshot.workloads().filter_map(|pod| spec(pod, snapshot, hbone)).collect();
    pods.sort_by(|a, b| a.uid.cmp(&b.uid));
    pods
}

/// A pod of this node that wants capture and whose namespace is known.
fn spec(pod: &Workload, snapshot: &Snapshot, hbone: bool) -> Option<PodSpec> {
    if *pod.node != *snapshot.node || !pod.wants_capture() {
        return None;
    }
    let paths = pod.standalone.as_ref()?;
    let strict = pod.mtls.mode.unwrap_or(snapshot.mesh.mtls) == MtlsMode::Strict;
    let contrary = pod.mtls.ports.iter().filter(|(_, mode)| (**mode == MtlsMode::Strict) != strict);
    let ports = |list: &[u16]| list.iter().map(|&port| u32::from(port)).collect();
    Some(PodSpec {
        uid: pod.uid.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        netns_path: paths.netns.to_string(),
        addresses: pod.addresses.iter().map(IpAddr::to_string).collect(),
        fail_open: pod.capture.failure_policy == FailurePolicy::Open,
        exclude_outbound_cidrs: pod.capture.exclude_outbound_cidrs.iter().map(ToString::to_string).collect(),
        exclude_outbound_ports: ports(&pod.capture.exclude_outbound_ports),
        exclude_inbound_ports: ports(&pod.capture.exclude_inbound_ports),
        hbone,
        strict,
        strict_except: contrary.map(|(&port, _)| u32::from(port)).collect(),
    })
}
