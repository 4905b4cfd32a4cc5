//! Names, addresses, membership and exclusions of pods.

use heddle_model::workload::FailurePolicy;

use super::*;
use crate::object::{Object, read};

fn pod(yaml: &str) -> (Pod, Vec<String>, Vec<String>) {
    let text = format!("apiVersion: v1\nkind: Pod\n{yaml}");
    let reading = read("f.yaml", text.as_bytes());
    let text = |list: &[heddle_model::InvalidObject]| {
        list.iter().map(|i| format!("{}: {}: {}", i.line, i.field, i.message)).collect()
    };
    let pod = reading.items.iter().find_map(|item| match &item.object {
        Object::Pod(pod) => Some((**pod).clone()),
        _ => None,
    });
    (pod.expect("a pod"), text(&reading.invalid), text(&reading.warnings))
}

fn namespace(mesh: MeshLabel, allow_exclusions: bool) -> Namespace {
    Namespace { mesh, allow_exclusions, ..Namespace::absent("shop") }
}

#[test]
fn every_field_is_read() {
    let (pod, invalid, warnings) = pod("
metadata:
  name: web-7d4b9-x2x4z
  namespace: shop
  uid: 6a7b
  creationTimestamp: 2026-08-09T10:11:12Z
  deletionTimestamp: 2026-08-09T10:11:13Z
  generateName: ignored
  labels: {app: web, version: v2, app.kubernetes.io/name: shop-web, topology.kubernetes.io/zone: z1}
  annotations: {standalone.heddle.dev/netns: /run/netns/web, standalone.heddle.dev/cgroup: /sys/fs/cgroup/web}
  ownerReferences: [{kind: Node, name: x}, {kind: ReplicaSet, name: web-7d4b9, controller: true}]
spec:
  nodeName: a
  serviceAccountName: web
  hostNetwork: null
  containers:
  - {name: c}
  - {name: d, ports: [{name: http, containerPort: 8080}, {containerPort: 81}, {name: dns, containerPort: 53, protocol: UDP}]}
  - {name: e, ports: [{name: http, containerPort: 8081, protocol: TCP, hostPort: 1}]}
  initContainers:
  - {name: once, ports: [{name: init, containerPort: 1}]}
  - {name: sidecar, restartPolicy: Always, ports: [{name: metrics, containerPort: 9100}]}
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}, {ip: '::ffff:10.1.0.2'}]}
");
    assert_eq!((invalid, warnings), (vec![], vec![]));
    let w = pod.workload();
    assert_eq!((w.uid.as_str(), &*w.namespace, &*w.name), ("6a7b", "shop", "web-7d4b9-x2x4z"));
    assert_eq!((&*w.app, &*w.version, &*w.zone, &*w.node), ("shop-web", "v2", "z1", "a"));
    assert_eq!(&*w.service_account, "web");
    let ports: Vec<_> = w.named_ports.iter().map(|(name, port)| (&**name, *port)).collect();
    assert_eq!(ports, [("http", 8080), ("http", 8081), ("metrics", 9100)]);
    assert_eq!((w.labels.len(), w.labels["app"].as_str()), (4, "web"));
    assert_eq!(w.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.0.1", "fd00::1", "10.1.0.2"]);
    assert!(w.terminating && !w.finished && !w.host_network);
    assert_eq!(w.created.map(heddle_model::Timestamp::unix), Some(1_786_270_272));
    let paths = w.standalone.as_ref().unwrap();
    assert_eq!((&*paths.netns, paths.cgroup.as_deref()), ("/run/netns/web", Some("/sys/fs/cgroup/web")));
}

#[test]
fn a_container_port_that_is_none_is_warned_of() {
    let (pod, invalid, warnings) = pod(
        "metadata: {name: web}\nspec: {containers: [{ports: [{name: a, containerPort: 0}, {name: b, containerPort: 80}]}]}\n",
    );
    let told = "4: spec.containers[0].ports[0].containerPort: 0 is no port, so `a` names none";
    assert_eq!((invalid, warnings), (vec![], vec![told.to_owned()]));
    assert_eq!(*pod.workload().named_ports, [("b".into(), 80)]);
}

#[test]
fn defaults() {
    let (pod, invalid, _) = pod("metadata: {name: web}\n");
    assert_eq!(invalid, Vec::<String>::new());
    let w = pod.workload();
    assert_eq!((w.uid.as_str(), &*w.namespace, &*w.service_account), ("default/web", "default", "default"));
    assert_eq!((&*w.workload_name, &*w.node, w.created), ("web", "", None));
}

#[test]
fn workload_name_table() {
    let table = [
        ("labels: {heddle.dev/workload-name: own}", "web-7d4b9-x2x4z", "own"),
        ("labels: {pod-template-hash: 7d4b9}", "web-7d4b9-x2x4z", "web"),
        ("labels: {pod-template-hash: 7d4b9}", "unrelated-name", "unrelated-name"),
        (
            "labels: {pod-template-hash: 7d4b9}, ownerReferences: [{kind: ReplicaSet, name: web-7d4b9, controller: true}]",
            "x-1",
            "web",
        ),
        ("ownerReferences: [{kind: ReplicaSet, name: web-7d4b9, controller: true}]", "x-1", "web-7d4b9"),
        ("ownerReferences: [{kind: StatefulSet, name: db, controller: true}]", "db-0", "db"),
        ("ownerReferences: [{kind: Node, name: n, controller: false}]", "db-0", "db-0"),
        ("labels: {statefulset.kubernetes.io/pod-name: db-0}", "db-0", "db"),
        ("labels: {job-name: load}", "load-x7x7x", "load"),
        ("labels: {}", "web-0", "web-0"),
    ];
    for (meta, name, expected) in table {
        let (pod, invalid, _) = pod(&format!("metadata: {{name: {name}, {meta}}}\n"));
        assert_eq!(invalid, Vec::<String>::new(), "{meta}");
        assert_eq!(&*pod.workload().workload_name, expected, "{name} {meta}");
    }
}

#[test]
fn membership_table() {
    use MeshLabel::{Disabled, Enabled, Invalid, Unset};
    use NotInMesh::{HostNetwork, InvalidLabel, InvalidObject, NotLabelled, PodOptedOut};
    let out = Membership::Disabled;
    let table = [
        ("", Unset, out(NotLabelled)),
        ("", Enabled, Membership::Enabled),
        ("", Disabled, out(NotLabelled)),
        ("", Invalid, out(InvalidLabel)),
        ("label: enabled", Unset, Membership::Enabled),
        ("label: enabled", Disabled, Membership::Enabled),
        ("label: enabled", Invalid, Membership::Enabled),
        ("label: disabled", Enabled, out(PodOptedOut)),
        ("label: disabled", Invalid, out(PodOptedOut)),
        ("label: on", Enabled, out(InvalidLabel)),
        ("host", Enabled, out(HostNetwork)),
        ("host", Unset, out(NotLabelled)),
        ("bad", Enabled, out(InvalidObject)),
        ("bad", Unset, out(NotLabelled)),
    ];
    for (what, namespace_label, expected) in table {
        let label = what.strip_prefix("label: ").map(|value| format!("labels: {{heddle.dev/mesh: '{value}'}}"));
        let status = if what == "bad" { "status: {podIP: nonsense}" } else { "" };
        let yaml = format!(
            "metadata: {{name: web, {}}}\nspec: {{hostNetwork: {}}}\n{status}\n",
            label.unwrap_or_default(),
            what == "host"
        );
        let (pod, ..) = pod(&yaml);
        let (workload, _) = pod.in_namespace(Some(&namespace(namespace_label, false)));
        assert_eq!(workload.membership, expected, "{what} in {namespace_label:?}");
    }
    let (pod, ..) = pod("metadata: {name: web}\n");
    assert_eq!(pod.in_namespace(None).0.membership, out(NotLabelled));
}

#[test]
fn transport_table() {
    use MeshLabel::{Disabled, Enabled, Unset};
    let ambient = "annotations: {ambient.istio.io/redirection: enabled}";
    let table = [
        ("", "", Enabled, Transport::Heddle),
        ("", "", Unset, Transport::Plain),
        (ambient, "", Unset, Transport::Hbone),
        (ambient, "", Disabled, Transport::Hbone),
        (ambient, "", Enabled, Transport::Heddle),
        (ambient, "hostNetwork: true", Enabled, Transport::Plain),
        (ambient, "hostNetwork: true", Unset, Transport::Plain),
        (
            "labels: {heddle.dev/mesh: disabled}, annotations: {ambient.istio.io/redirection: enabled}",
            "",
            Enabled,
            Transport::Hbone,
        ),
        ("annotations: {ambient.istio.io/redirection: disabled}", "", Unset, Transport::Plain),
        ("annotations: {ambient.istio.io/redirection: pending}", "", Unset, Transport::Plain),
    ];
    for (meta, spec, label, expected) in table {
        let (pod, invalid, _) = pod(&format!("metadata: {{name: web, {meta}}}\nspec: {{{spec}}}\n"));
        assert_eq!(invalid, Vec::<String>::new(), "{meta}");
        assert_eq!(pod.in_namespace(Some(&namespace(label, false))).0.transport, expected, "{meta} {spec} {label:?}");
    }
}

const ASKING: &str = "
metadata:
  name: web
  annotations:
    heddle.dev/exclude-outbound-cidrs: 10.9.8.7/8, fd00::/8,192.0.2.1
    heddle.dev/exclude-outbound-ports: '6379, 5432,5432'
    heddle.dev/exclude-inbound-ports: '9100'
    heddle.dev/opaque-ports: '3306'
";

#[test]
fn exclusions_count_only_where_the_namespace_allows_them() {
    let (pod, invalid, warnings) = pod(ASKING);
    assert_eq!((invalid, warnings), (vec![], vec![]));
    let allowing = Namespace { failure_policy: FailurePolicy::Open, ..namespace(MeshLabel::Enabled, true) };
    let (workload, warnings) = pod.in_namespace(Some(&allowing));
    assert_eq!(warnings, []);
    let capture = workload.capture;
    let cidrs: Vec<String> = capture.exclude_outbound_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]);
    assert_eq!(capture.exclude_outbound_ports, [5432, 6379]);
    assert_eq!((capture.exclude_inbound_ports, capture.opaque_ports), (vec![9100], vec![3306]));
    assert_eq!(capture.failure_policy, FailurePolicy::Open);

    let (workload, warnings) = pod.in_namespace(Some(&namespace(MeshLabel::Enabled, false)));
    assert_eq!(workload.membership, Membership::Enabled, "it stays captured");
    assert_eq!(workload.capture, Capture::default());
    let fields: Vec<&str> = warnings.iter().map(|w| w.field.as_str()).collect();
    let all = ["exclude-outbound-cidrs", "exclude-outbound-ports", "exclude-inbound-ports", "opaque-ports"];
    assert_eq!(fields, all.map(|name| format!("metadata.annotations[heddle.dev/{name}]")));
    assert!(warnings[0].message.contains("heddle.dev/allow-exclusions: \"true\""), "{}", warnings[0].message);
    assert_eq!(pod.in_namespace(None).1, [], "nothing to warn of outside the mesh");
}

#[test]
fn a_bad_exclusion_is_left_out_and_the_pod_stays_captured() {
    let (pod, invalid, warnings) = pod("
metadata:
  name: web
  annotations:
    heddle.dev/exclude-outbound-cidrs: 10.0.0.0/33, 10.0.0.0/8
    heddle.dev/opaque-ports: '0,70000,x,80'
");
    assert_eq!(invalid, Vec::<String>::new());
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(warnings[0].starts_with("7: metadata.annotations[heddle.dev/exclude-outbound-cidrs]: `10.0.0.0/33`"));
    let (workload, _) = pod.in_namespace(Some(&namespace(MeshLabel::Enabled, true)));
    assert_eq!(workload.membership, Membership::Enabled);
    assert_eq!((workload.capture.exclude_outbound_cidrs.len(), workload.capture.opaque_ports), (1, vec![80]));
}

#[test]
fn what_makes_a_pod_invalid_table() {
    let table = [
        ("metadata: {name: web, labels: {app: 'no spaces'}}", "3: metadata.labels.app: `no spaces` is no label value"),
        ("metadata: {name: web, labels: {app: 7}}", "3: metadata.labels.app: must be text, not the number 7"),
        (
            "metadata: {name: web, creationTimestamp: today}",
            "3: metadata.creationTimestamp: `today` is not an RFC 3339",
        ),
        ("metadata: {name: web}\nspec: {serviceAccountName: A/B}", "4: spec.serviceAccountName: `A/B` is no name"),
        (
            "metadata: {name: web}\nspec: {hostNetwork: 'yes'}",
            "4: spec.hostNetwork: must be true or false, not the text `yes`",
        ),
        ("metadata: {name: web}\nspec: []", "4: spec: must be a mapping, not a list"),
        ("metadata: {name: web}\nstatus: {podIP: 127.0.0.1}", "4: status.podIP: 127.0.0.1 is a loopback address"),
        (
            "metadata: {name: web}\nstatus:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: x\n",
            "7: status.podIPs[1].ip: `x` is no IP",
        ),
        (
            "metadata: {name: web, annotations: {standalone.heddle.dev/netns: netns/web}}",
            "3: metadata.annotations[standalone.heddle.dev/netns]: `netns/web` is no absolute path",
        ),
        (
            "metadata: {name: web, annotations: {standalone.heddle.dev/cgroup: /sys}}",
            "3: metadata.annotations[standalone.heddle.dev/cgroup]: needs standalone.heddle.dev/netns",
        ),
        (
            "metadata: {name: web, labels: {heddle.dev/mesh: 'on'}}",
            "3: metadata.labels[heddle.dev/mesh]: `on` is unknown: `enabled` or `disabled`",
        ),
    ];
    for (yaml, expected) in table {
        let (pod, invalid, _) = pod(yaml);
        assert!(pod.invalid, "{yaml}");
        assert_eq!(invalid.len(), 1, "{yaml}: {invalid:?}");
        assert!(invalid[0].starts_with(expected), "{yaml}:\n{}\n{expected}", invalid[0]);
    }
}

#[test]
fn an_unreadable_pod_keeps_its_name_node_label_and_addresses() {
    let (pod, invalid, _) = pod("
metadata: {name: web, namespace: shop, labels: {heddle.dev/mesh: enabled}}
spec: {nodeName: a, serviceAccountName: [1]}
status: {podIPs: [{ip: 10.1.0.1}, {ip: 7}]}
");
    assert_eq!(invalid.len(), 1);
    let (workload, _) = pod.in_namespace(None);
    assert_eq!(workload.membership, Membership::Disabled(NotInMesh::InvalidObject));
    assert_eq!((&*workload.node, workload.uid.as_str()), ("a", "shop/web"));
    assert_eq!(workload.addresses.len(), 1);
}
