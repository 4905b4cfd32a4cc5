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

/// Under a namespace, with nothing that guards it.
fn unguarded(pod: &Pod, namespace: Option<&Namespace>) -> (Workload, Vec<Problem>) {
    pod.in_namespace(namespace, || None)
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
    // Of one that nothing guards, and whether a guard holds it.
    let table = [
        ("", Unset, out(NotLabelled), false),
        ("", Enabled, Membership::Enabled, false),
        ("", Disabled, out(NotLabelled), false),
        ("", Invalid, out(InvalidLabel), true),
        ("label: enabled", Unset, Membership::Enabled, false),
        ("label: enabled", Disabled, Membership::Enabled, false),
        ("label: enabled", Invalid, Membership::Enabled, false),
        ("label: disabled", Enabled, out(PodOptedOut), true),
        ("label: disabled", Invalid, out(PodOptedOut), true),
        // The namespace's own label has taken it out.
        ("label: disabled", Disabled, out(PodOptedOut), false),
        ("label: disabled", Unset, out(PodOptedOut), false),
        ("label: on", Enabled, out(InvalidLabel), true),
        // It may have been meant to be in, in spite of the namespace.
        ("label: on", Disabled, out(InvalidLabel), true),
        ("label: on", Unset, out(InvalidLabel), true),
        ("host", Enabled, out(HostNetwork), false),
        ("host", Unset, out(NotLabelled), false),
        ("host", Invalid, out(InvalidLabel), false),
        ("bad", Enabled, out(InvalidObject), true),
        ("bad", Unset, out(NotLabelled), false),
        ("bad", Disabled, out(NotLabelled), false),
        ("bad", Invalid, out(InvalidLabel), true),
    ];
    for (what, namespace_label, expected, is_held) in table {
        let label = what.strip_prefix("label: ").map(|value| format!("labels: {{heddle.dev/mesh: '{value}'}}"));
        let status = if what == "bad" { "status: {podIP: nonsense}" } else { "" };
        let yaml = format!(
            "metadata: {{name: web, {}}}\nspec: {{hostNetwork: {}}}\n{status}\n",
            label.unwrap_or_default(),
            what == "host"
        );
        let (pod, ..) = pod(&yaml);
        let of = namespace(namespace_label, false);
        assert_eq!(unguarded(&pod, Some(&of)).0.membership, expected, "{what} in {namespace_label:?}");
        assert_eq!(pod.hinges_on_guard(Some(&of)), is_held, "{what} in {namespace_label:?}");
        let (guarded, _) = pod.in_namespace(Some(&of), || Some("a policy".to_owned()));
        let expected = if is_held { Membership::Enabled } else { expected };
        assert_eq!(guarded.membership, expected, "{what} in {namespace_label:?}");
    }
    let (pod, ..) = pod("metadata: {name: web}\n");
    assert_eq!(unguarded(&pod, None).0.membership, out(NotLabelled));
}

#[test]
fn a_guarded_pod_opts_out_only_where_its_namespace_allows_it() {
    let (pod, ..) = pod("metadata: {name: web, labels: {heddle.dev/mesh: disabled}}\n");
    let guarded = |allowed: bool| {
        let (workload, told) =
            pod.in_namespace(Some(&namespace(MeshLabel::Enabled, allowed)), || Some("a policy".to_owned()));
        let told: Vec<_> = told.into_iter().map(|problem| (problem.field, problem.message)).collect();
        (workload.membership, workload.transport, told)
    };
    let refused = "`disabled` has no effect: a policy, and the namespace does not allow it (annotate the Namespace with \
                   heddle.dev/allow-exclusions: \"true\")";
    let told = ("metadata.labels[heddle.dev/mesh]".to_owned(), refused.to_owned());
    assert_eq!(guarded(false), (Membership::Enabled, Transport::Heddle, vec![told]));
    assert_eq!(guarded(true), (Membership::Disabled(NotInMesh::PodOptedOut), Transport::Plain, vec![]));
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
        assert_eq!(unguarded(&pod, Some(&namespace(label, false))).0.transport, expected, "{meta} {spec} {label:?}");
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
    let (workload, warnings) = unguarded(&pod, Some(&allowing));
    assert_eq!(warnings, []);
    let capture = workload.capture;
    let cidrs: Vec<String> = capture.exclude_outbound_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]);
    assert_eq!(capture.exclude_outbound_ports, [5432, 6379]);
    assert_eq!((capture.exclude_inbound_ports, capture.opaque_ports), (vec![9100], vec![3306]));
    assert_eq!(capture.failure_policy, FailurePolicy::Open);

    let (workload, warnings) = unguarded(&pod, Some(&namespace(MeshLabel::Enabled, false)));
    assert_eq!(workload.membership, Membership::Enabled, "it stays captured");
    assert_eq!(workload.capture, Capture::default());
    let fields: Vec<&str> = warnings.iter().map(|w| w.field.as_str()).collect();
    let all = ["exclude-outbound-cidrs", "exclude-outbound-ports", "exclude-inbound-ports", "opaque-ports"];
    assert_eq!(fields, all.map(|name| format!("metadata.annotations[heddle.dev/{name}]")));
    assert!(warnings[0].message.contains("heddle.dev/allow-exclusions: \"true\""), "{}", warnings[0].message);
    assert_eq!(unguarded(&pod, None).1, [], "nothing to warn of outside the mesh");
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
    let (workload, _) = unguarded(&pod, Some(&namespace(MeshLabel::Enabled, true)));
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
fn an_unreadable_pod_keeps_what_holds_it_in_the_mesh() {
    let (pod, invalid, _) = pod("
metadata:
  name: web
  namespace: shop
  uid: 6a7b
  labels: {heddle.dev/mesh: enabled, app: web, tier: [front], odd: 'no label'}
  annotations: {standalone.heddle.dev/netns: /run/netns/web, standalone.heddle.dev/cgroup: web}
spec: {nodeName: a, serviceAccountName: web, hostNetwork: 7}
status: {podIPs: [{ip: 10.1.0.1}, {ip: 7}]}
");
    assert_eq!(invalid.len(), 1);
    assert!(!pod.is_readable());
    let (workload, _) = unguarded(&pod, None);
    assert_eq!(workload.membership, Membership::Disabled(NotInMesh::InvalidObject));
    let (workload, _) = pod.in_namespace(None, || Some("a policy".to_owned()));
    assert_eq!(workload.membership, Membership::Enabled);
    assert_eq!((&*workload.node, workload.uid.as_str(), &*workload.service_account), ("a", "6a7b", "web"));
    assert_eq!(workload.addresses.len(), 1);
    let paths = workload.standalone.unwrap();
    assert_eq!((&*paths.netns, paths.cgroup), ("/run/netns/web", None));
    let labels: Vec<_> = pod.labels().labels.keys().map(String::as_str).collect();
    assert_eq!((labels, pod.labels().are_all), (vec!["app", "heddle.dev/mesh"], false));
}

#[test]
fn what_a_rejected_pod_keeps_table() {
    // Its label, labels, whether those are all, and its account.
    let table = [
        ("metadata: {name: web, labels: {a: b}}\nspec: []\n", "Unset", "a", true, "default"),
        ("metadata: {name: web}\nspec: []\n", "Unset", "", true, "default"),
        ("metadata: {name: web, labels: null}\nspec: []\n", "Unset", "", true, "default"),
        ("metadata: {name: web, labels: [a]}\n", "Invalid", "", false, "default"),
        ("metadata: {name: web, labels: {heddle.dev/mesh: true, a: b}}\n", "Invalid", "a", false, "default"),
        (
            "metadata: {name: web, labels: {heddle.dev/mesh: disabled, a: 7}}\n",
            "Disabled",
            "heddle.dev/mesh",
            false,
            "default",
        ),
        ("metadata: {name: web, labels: {a: b, a: c, d: e}}\n", "Invalid", "d", false, ""),
        (
            "metadata: {name: web, labels: {heddle.dev/mesh: enabled, heddle.dev/mesh: disabled}}\n",
            "Invalid",
            "",
            false,
            "",
        ),
        ("metadata: {name: web, labels: {heddle.dev/mesh: enabled}, labels: {a: b}}\n", "Invalid", "", false, ""),
        ("metadata: {name: web, labels: {a: b}}\nspec: {serviceAccountName: [a]}\n", "Unset", "a", true, ""),
        (
            "metadata: {name: web, labels: {a: b}}\nspec: {serviceAccountName: a, serviceAccountName: b}\n",
            "Invalid",
            "a",
            false,
            "",
        ),
        // The rest is lost.
        ("metadata: {name: web, labels: {a: b", "Invalid", "a", false, ""),
        ("metadata: {name: web", "Invalid", "", false, ""),
        ("metadata: {name: web, labels: {heddle.dev/mesh: enabled", "Enabled", "heddle.dev/mesh", false, ""),
    ];
    for (yaml, mesh, labels, are_all, account) in table {
        let (pod, invalid, _) = pod(yaml);
        assert!(!invalid.is_empty() && pod.invalid && !pod.is_readable(), "{yaml}");
        let known: Vec<_> = pod.labels().labels.keys().map(String::as_str).collect();
        assert_eq!((format!("{:?}", pod.mesh).as_str(), known.join(" ").as_str()), (mesh, labels), "{yaml}");
        assert_eq!((pod.labels().are_all, &*pod.workload.service_account), (are_all, account), "{yaml}");
    }
}

#[test]
fn a_label_that_is_none_may_have_been_any() {
    let (pod, invalid, _) = pod("metadata: {name: web, labels: {app: 'web ', tier: front}}\n");
    assert_eq!(invalid.len(), 1);
    assert_eq!((pod.labels().labels.len(), pod.labels().are_all, pod.is_readable()), (1, false, false));
    let (pod, ..) = self::pod("metadata: {name: web, labels: {heddle.dev/mesh: enabeld}}\n");
    assert_eq!((pod.labels().are_all, pod.is_readable()), (true, true), "all of it is legible");
}
