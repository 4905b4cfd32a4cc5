//! The parts of the debug API that follow from a snapshot alone. The binary adds what other rooms know.

use std::sync::Arc;

use heddle_model::workload::{FailurePolicy, Membership};
use heddle_model::{Endpoint, InvalidObject, MeshConfig, Service, Snapshot, Transport, Workload};
use heddle_proto::debug::v1;

/// Pods in order of namespace and name; `add` fills in what the snapshot does not know (capture, use).
#[must_use]
pub fn workloads(
    snapshot: &Snapshot,
    namespace: Option<&str>,
    add: impl Fn(&Workload, &mut v1::Workload),
) -> v1::Workloads {
    let mut chosen: Vec<_> = snapshot.workloads().filter(|w| namespace.is_none_or(|n| *w.namespace == *n)).collect();
    chosen.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    let view = |w: &Arc<Workload>| {
        let mut view = workload(w, &snapshot.mesh);
        add(w, &mut view);
        view
    };
    v1::Workloads { workloads: chosen.into_iter().map(view).collect() }
}

fn workload(w: &Workload, settings: &MeshConfig) -> v1::Workload {
    let (mesh, mesh_reason) = match w.membership {
        Membership::Enabled => ("enabled", ""),
        Membership::Disabled(why) => ("disabled", why.as_str()),
    };
    let failure_policy = match (&w.membership, w.capture.failure_policy) {
        (Membership::Disabled(_), _) => "",
        (Membership::Enabled, FailurePolicy::Closed) => "Closed",
        (Membership::Enabled, FailurePolicy::Open) => "Open",
    };
    v1::Workload {
        uid: w.uid.to_string(),
        namespace: w.namespace.to_string(),
        name: w.name.to_string(),
        workload_name: w.workload_name.to_string(),
        service_account: w.service_account.to_string(),
        node: w.node.to_string(),
        addresses: w.addresses.iter().map(ToString::to_string).collect(),
        mesh: mesh.to_owned(),
        mesh_reason: mesh_reason.to_owned(),
        terminating: w.terminating,
        finished: w.finished,
        failure_policy: failure_policy.to_owned(),
        app: w.app.to_string(),
        version: w.version.to_string(),
        zone: w.zone.to_string(),
        mtls: mtls(w, settings),
        ..v1::Workload::default()
    }
}

/// The mode of all ports, then those of the ports that differ. Of a pod that nobody takes mTLS for, nothing.
fn mtls(w: &Workload, mesh: &MeshConfig) -> String {
    if w.transport == Transport::Plain {
        return String::new();
    }
    let mode = w.mtls.mode.unwrap_or(mesh.mtls);
    let ports = w.mtls.ports.iter().filter(|(_, of_port)| **of_port != mode);
    let ports: String = ports.map(|(port, mode)| format!(", {port} {}", mode.as_str())).collect();
    format!("{}{ports}", mode.as_str())
}

/// Services in order of namespace and name, with their endpoints.
#[must_use]
pub fn services(snapshot: &Snapshot, namespace: Option<&str>) -> v1::Services {
    let mut chosen: Vec<_> = snapshot.services().filter(|s| namespace.is_none_or(|n| *s.namespace == *n)).collect();
    chosen.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    v1::Services { services: chosen.into_iter().map(|s| service(s)).collect() }
}

fn service(s: &Service) -> v1::Service {
    let ports = s.ports.iter().map(|port| v1::ServicePort {
        name: port.name.to_string(),
        port: port.port.into(),
        app_protocol: port.app_protocol.as_deref().unwrap_or_default().to_owned(),
        endpoints: port.endpoints.iter().map(endpoint).collect(),
    });
    v1::Service {
        namespace: s.namespace.to_string(),
        name: s.name.to_string(),
        addresses: s.vips.iter().map(ToString::to_string).collect(),
        headless: s.headless,
        session_affinity_seconds: s.session_affinity.map_or(0, |t| t.as_secs()),
        internal_traffic_local: s.internal_local,
        publish_not_ready_addresses: s.publish_not_ready,
        invalid: s.invalid,
        ports: ports.collect(),
    }
}

fn endpoint(e: &Endpoint) -> v1::Endpoint {
    v1::Endpoint {
        address: e.addr.to_string(),
        pod: e.workload.as_ref().map(|w| format!("{}/{}", w.namespace, w.name)).unwrap_or_default(),
        node: e.node.to_string(),
        zone: e.zone.to_string(),
        ready: e.ready,
        serving: e.serving,
        terminating: e.terminating,
    }
}

/// Rejected objects, and the check item that sums them up.
#[must_use]
pub fn invalid(snapshot: &Snapshot) -> (v1::CheckItem, Vec<v1::InvalidObject>) {
    let all: Vec<_> = snapshot.invalid.iter().map(invalid_object).collect();
    let item = v1::CheckItem {
        name: "objects".to_owned(),
        ok: all.is_empty(),
        detail: match all.len() {
            0 => "every object was accepted".to_owned(),
            1 => "1 object was rejected; its own targets are denied".to_owned(),
            n => format!("{n} objects were rejected; their own targets are denied"),
        },
        fix: snapshot.invalid.first().map(|first| format!("correct {first}")).unwrap_or_default(),
    };
    (item, all)
}

/// Parts of accepted objects that are not in force.
#[must_use]
pub fn warnings(snapshot: &Snapshot) -> Vec<v1::InvalidObject> {
    snapshot.warnings.iter().map(invalid_object).collect()
}

fn invalid_object(o: &InvalidObject) -> v1::InvalidObject {
    v1::InvalidObject {
        origin: o.origin.to_string(),
        line: o.line,
        kind: o.kind.to_string(),
        object: o.object.to_string(),
        field: o.field.to_string(),
        message: o.message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use heddle_model::{Delta, MtlsMode, MtlsModes, ServicePort};

    fn snapshot() -> Snapshot {
        let mut web = Workload::new("u1", "shop", "web-1");
        web.membership = Membership::Enabled;
        web.addresses = vec!["10.0.0.1".parse().unwrap()];
        let other = Workload::new("u2", "bank", "db-1");
        let mut service = Service::new("shop", "web");
        service.vips = vec!["10.96.0.1".parse().unwrap()];
        let mut endpoint = Endpoint::ready("10.0.0.1:8080".parse().unwrap());
        endpoint.workload = Some(Arc::new(web.clone()));
        let port = ServicePort { name: "http".into(), port: 80, app_protocol: None, endpoints: [endpoint].into() };
        service.ports.push(port);
        let object = InvalidObject {
            origin: "a.yaml".into(),
            line: 3,
            kind: "Service".into(),
            object: "shop/bad".into(),
            field: "spec.ports[0].port".into(),
            message: "0 is not a port".into(),
        };
        Snapshot::new("n1").apply(Delta {
            workloads: vec![(web.uid.clone(), Some(web)), (other.uid.clone(), Some(other))],
            services: vec![(service.key(), Some(service))],
            invalid: Some(vec![object]),
            ..Delta::default()
        })
    }

    #[test]
    fn workloads_are_sorted_filtered_and_added_to() {
        let all = workloads(&snapshot(), None, |w, v| v.connections = w.name.len() as u64);
        let names: Vec<_> = all.workloads.iter().map(|w| (&*w.namespace, &*w.name, w.connections)).collect();
        assert_eq!(names, [("bank", "db-1", 4), ("shop", "web-1", 5)]);
        assert_eq!((&*all.workloads[0].mesh, &*all.workloads[0].mesh_reason), ("disabled", "not_labelled"));
        assert_eq!((&*all.workloads[1].mesh, &*all.workloads[1].failure_policy), ("enabled", "Closed"));
        assert_eq!(workloads(&snapshot(), Some("bank"), |_, _| {}).workloads.len(), 1);
    }

    #[test]
    fn services_show_their_endpoints() {
        let all = services(&snapshot(), Some("shop"));
        let endpoint = &all.services[0].ports[0].endpoints[0];
        assert_eq!((&*endpoint.address, &*endpoint.pod, endpoint.ready), ("10.0.0.1:8080", "shop/web-1", true));
        assert!(services(&snapshot(), Some("none")).services.is_empty());
    }

    #[test]
    fn a_rejected_object_is_a_failed_check_with_a_fix() {
        let (item, all) = invalid(&snapshot());
        assert!(!item.ok);
        assert_eq!(item.fix, "correct a.yaml:3: Service shop/bad: spec.ports[0].port: 0 is not a port");
        assert_eq!(all.len(), 1);
        assert!(invalid(&Snapshot::new("n1")).0.ok);
    }

    #[test]
    fn modes_are_shown_where_somebody_takes_mtls() {
        let settings = MeshConfig { mtls: MtlsMode::Strict, ..MeshConfig::default() };
        let mut pod = Workload::new("u", "shop", "web");
        assert_eq!(mtls(&pod, &settings), "");
        pod.transport = Transport::Heddle;
        assert_eq!(mtls(&pod, &settings), "Strict");
        let ports = BTreeMap::from([(80, MtlsMode::Strict), (9100, MtlsMode::Permissive), (9200, MtlsMode::Disabled)]);
        pod.mtls = MtlsModes { mode: None, ports };
        assert_eq!(mtls(&pod, &settings), "Strict, 9100 Permissive, 9200 Disabled");
        pod.mtls.mode = Some(MtlsMode::Disabled);
        assert_eq!(mtls(&pod, &settings), "Disabled, 80 Strict, 9100 Permissive");
    }
}
