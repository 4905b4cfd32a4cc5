//! Joins, and that they leave no history behind.

use heddle_model::workload::{Membership, NotInMesh};
use heddle_model::{OriginalDst, Resolution, Snapshot};
use proptest::prelude::*;

use super::*;

pub(super) fn objects(yaml: &str) -> Vec<(Key, Arc<Object>)> {
    let reading = heddle_api::read("f", yaml.as_bytes());
    reading.items.into_iter().map(|item| (item.object.key(), Arc::new(item.object))).collect()
}

/// A reducer and the snapshot that follows it.
pub(super) struct World {
    reducer: Reducer,
    pub(super) snapshot: Snapshot,
}

impl World {
    pub(super) fn new(yaml: &str) -> Self {
        let mut world = Self { reducer: Reducer::new(), snapshot: Snapshot::new("a") };
        world.set(yaml);
        world
    }

    /// Sets objects and says which pods and Services the delta was about.
    pub(super) fn set(&mut self, yaml: &str) -> Vec<String> {
        objects(yaml).into_iter().for_each(|(key, object)| self.reducer.set(&key, Some(object)));
        self.publish()
    }

    pub(super) fn remove(&mut self, kind: Kind, namespace: &str, name: &str) -> Vec<String> {
        self.reducer.set(&Key { kind, namespace: namespace.into(), name: name.into() }, None);
        self.publish()
    }

    fn publish(&mut self) -> Vec<String> {
        let delta = self.reducer.delta();
        let pods = delta.workloads.iter().map(|(uid, _)| format!("pod {uid}"));
        let services = delta.services.iter().map(|((_, name), _)| format!("service {name}"));
        let of_pods = delta.policies.workloads.iter().map(|(uid, _)| format!("access {uid}"));
        let of_services = delta.policies.services.iter().map(|((_, name), _)| format!("access service {name}"));
        let mesh = delta.mesh.iter().map(|_| "mesh".to_owned());
        let told = pods.chain(services).chain(of_pods).chain(of_services).chain(mesh).collect();
        self.snapshot = self.snapshot.apply(delta);
        told
    }

    /// `addr=pod` of the endpoints of a Service's port.
    fn endpoints(&self, name: &str, port: u16) -> Vec<String> {
        let service = self.snapshot.service("shop", name).unwrap();
        let pod = |e: &Endpoint| e.workload.as_ref().map_or("?".to_owned(), |w| w.name.to_string());
        service.port(port).unwrap().endpoints.iter().map(|e| format!("{}={}", e.addr, pod(e))).collect()
    }

    pub(super) fn membership(&self, uid: &str) -> Membership {
        self.snapshot.workload(&PodUid::new(uid)).unwrap().membership.clone()
    }

    pub(super) fn reports(&self) -> Vec<String> {
        let kind = |warning| if warning { "warning" } else { "invalid" };
        let told = |(key, r): (&Key, &Report)| format!("{} {}: {}", kind(r.warning), key.object(), r.problem.field);
        self.reducer.reports().map(told).collect()
    }
}

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 81}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: admin, port: 8081}]
endpoints: [{addresses: [10.1.0.1]}]
";

const SECOND_SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-b, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.2]}, {addresses: [10.1.0.1], conditions: {ready: false}}, {addresses: [192.0.2.1]}]
";

#[test]
fn a_service_is_joined_with_its_slices_by_port_name() {
    let mut world = World::new(SHOP);
    assert_eq!(world.endpoints("web", 80), ["10.1.0.1:8080=web-0"]);
    assert_eq!(world.endpoints("web", 81), ["10.1.0.1:8081=web-0"]);
    assert_eq!(world.set(SECOND_SLICE), ["service web"]);
    assert_eq!(world.endpoints("web", 80), ["10.1.0.1:8080=web-0", "10.1.0.2:8080=web-1", "192.0.2.1:8080=?"]);
    assert_eq!(world.endpoints("web", 81), ["10.1.0.1:8081=web-0"]);
    let ready = world.snapshot.service("shop", "web").unwrap().ports[0].endpoints[0].ready;
    assert!(ready, "of two words on one address the better counts");
    assert_eq!(world.remove(Kind::EndpointSlice, "shop", "web-a"), ["service web"]);
    assert_eq!(world.endpoints("web", 81), Vec::<String>::new());
}

#[test]
fn only_what_depends_on_a_change_is_recomputed() {
    let mut world = World::new(SHOP);
    let elsewhere = "
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: elsewhere, labels: {heddle.dev/mesh: enabled}}
status: {podIP: 10.2.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: elsewhere}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}
";
    assert_eq!(world.set(elsewhere), ["pod elsewhere/other", "service other"]);
    assert_eq!(world.set(SHOP), Vec::<String>::new(), "equal objects are no change");
    assert_eq!(
        world.set("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"),
        ["pod shop/web-0", "pod shop/web-1"]
    );
    assert_eq!(
        world.set("apiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: shop}\nstatus: {podIP: 10.1.0.9}\n"),
        ["pod shop/web-0"]
    );
    assert_eq!(world.endpoints("web", 80), ["10.1.0.1:8080=?"], "the snapshot follows the address by itself");
    assert_eq!(world.set(SECOND_SLICE), ["service web"]);
}

#[test]
fn membership_follows_the_namespace_in_either_order() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n}\n";
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {heddle.dev/mesh: enabled}}\n";
    let mut world = World::new(pod);
    assert_eq!(world.membership("n/p"), Membership::Disabled(NotInMesh::NotLabelled));
    world.set(namespace);
    assert_eq!(world.membership("n/p"), Membership::Enabled);
    world.remove(Kind::Namespace, "", "n");
    assert_eq!(world.membership("n/p"), Membership::Disabled(NotInMesh::NotLabelled));
    let mut world = World::new(namespace);
    world.set(pod);
    assert_eq!(world.membership("n/p"), Membership::Enabled);
}

#[test]
fn refused_exclusions_are_reported_while_they_are_refused() {
    let namespace = |allow: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n, labels: {{heddle.dev/mesh: enabled}}, \
             annotations: {{heddle.dev/allow-exclusions: '{allow}'}}}}\n"
        )
    };
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n, annotations: {heddle.dev/opaque-ports: '80'}}\n";
    let mut world = World::new(&namespace("false"));
    world.set(pod);
    assert_eq!(world.reports(), ["warning n/p: metadata.annotations[heddle.dev/opaque-ports]"]);
    world.set(&namespace("true"));
    assert_eq!(world.reports(), Vec::<String>::new());
    world.set(&namespace("false"));
    world.remove(Kind::Pod, "n", "p");
    assert_eq!(world.reports(), Vec::<String>::new());
}

#[test]
fn of_two_pods_with_one_uid_the_first_by_name_counts() {
    let pod = |name: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n, uid: same}}\n");
    let mut world = World::new(&pod("b"));
    world.set(&pod("a"));
    let name = |world: &World| world.snapshot.workload(&PodUid::new("same")).unwrap().name.to_string();
    assert_eq!((name(&world), world.reports()), ("a".to_owned(), vec!["invalid n/b: metadata.uid".to_owned()]));
    world.remove(Kind::Pod, "n", "a");
    assert_eq!((name(&world), world.reports()), ("b".to_owned(), vec![]));
}

#[test]
fn host_network_pods_are_linked_by_name_and_address() {
    let mut world = World::new(SHOP);
    let slice = |ip: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-a, namespace: shop, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints: \
             [{{addresses: [{ip}], targetRef: {{kind: Pod, name: host}}}}]\n"
        )
    };
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: shop}\nspec: {hostNetwork: true}\nstatus: {podIP: 172.18.0.2}\n";
    world.set(&slice("172.18.0.2"));
    assert_eq!(world.endpoints("web", 80), ["172.18.0.2:80=?"]);
    assert_eq!(world.set(pod), ["pod shop/host", "service web"]);
    assert_eq!(world.endpoints("web", 80), ["172.18.0.2:80=host"]);
    world.set(&slice("172.18.0.3"));
    assert_eq!(world.endpoints("web", 80), ["172.18.0.3:80=?"], "a name alone proves nothing");
    world.set(&slice("172.18.0.2"));
    let other = "apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: shop}\nstatus: {podIP: 172.18.0.2}\n";
    world.set(other);
    assert_eq!(world.endpoints("web", 80), ["172.18.0.2:80=other"], "it says that the address is its own");
    world.remove(Kind::Pod, "shop", "other");
    assert_eq!(world.endpoints("web", 80), ["172.18.0.2:80=host"]);
    world.remove(Kind::Pod, "shop", "host");
    assert_eq!(world.endpoints("web", 80), ["172.18.0.2:80=?"]);
}

#[test]
fn a_rejected_service_refuses() {
    let mut world = World::new(SHOP);
    world.set("apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 0}]}\n");
    let to = OriginalDst::new("10.96.0.1:80".parse().unwrap());
    assert_eq!(world.snapshot.resolve(None, to).refusal(), Some(heddle_model::Refusal::InvalidObject));
    world.set(SHOP);
    assert!(matches!(world.snapshot.resolve(None, to), Resolution::Service { .. }));
}

#[test]
fn a_rejected_mesh_leaves_the_former_in_force() {
    let mesh = |spec: &str| {
        format!("apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{{spec}}}\n")
    };
    let mut world = World::new(&mesh("clusterName: one"));
    assert_eq!(&*world.snapshot.mesh.cluster_name, "one");
    assert_eq!(world.set(&mesh("clusterName: two, telemetry: {}")), Vec::<String>::new());
    assert_eq!(&*world.snapshot.mesh.cluster_name, "one");
    assert_eq!(world.reports(), ["invalid default: "]);
    assert_eq!(world.set(&mesh("clusterName: three")), ["mesh"]);
    assert_eq!((&*world.snapshot.mesh.cluster_name, world.reports()), ("three", vec![]));
    world.remove(Kind::Mesh, "", "default");
    assert_eq!(*world.snapshot.mesh, MeshConfig::default());
}

/// Variants of a few objects that depend on each other.
fn catalogue() -> Vec<(Key, Arc<Object>)> {
    let mut yaml = String::new();
    let mut add = |text: String| {
        yaml.push_str("---\n");
        yaml.push_str(&text);
    };
    for (label, allows) in
        [("enabled", true), ("enabled", false), ("disabled", true), ("nonsense", true), ("nonsense", false)]
    {
        add(format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n, labels: {{heddle.dev/mesh: {label}}}, annotations: \
             {{heddle.dev/allow-exclusions: '{allows}'}}}}\n"
        ));
    }
    for mode in ["Strict", "Disabled"] {
        add(format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        ));
    }
    for name in ["m", "n"] {
        for spec in [
            "mode: Strict",
            "mode: Permissive, selector: {matchLabels: {app: a}}",
            "ports: [{port: 9100, mode: Strict}, {port: 9200, mode: Disabled}], selector: {matchLabels: {app: b}}",
            "mode: Disabled, ports: [{port: 9200, mode: Permissive}], selector: {matchLabels: {app: b}}",
            "mode: strict",
            "mode: Permissive, selector: {app: a}",
        ] {
            add(format!(
                "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\nmetadata: {{name: {name}, namespace: n}}\nspec: {{{spec}}}\n"
            ));
        }
    }
    for name in ["p", "q"] {
        for spec in [
            "{}",
            "selector: {matchLabels: {app: a}}, rules: [{to: [{ports: [9100]}]}]",
            "selector: {matchLabels: {app: b}}, action: Deny, rules: [{to: [{ports: [9200]}]}]",
            "selector: {matchLabels: {app: b}}, action: Audit, rules: [{}]",
            "selector: {app: a}, dryRun: true",
            "targetRefs: [{kind: Service, name: s}], rules: [{to: [{ports: [9100]}]}]",
            "targetRefs: [{kind: Service, name: t}], action: deny",
        ] {
            let spec = spec.strip_prefix("{}").unwrap_or(spec);
            add(format!(
                "apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: n}}\n\
                 spec: {{{spec}}}\n"
            ));
        }
        for spec in [
            "podSelector: {}, policyTypes: [Egress]",
            "podSelector: {matchLabels: {app: a}}",
            "podSelector: {matchExpressions: [{key: app, operator: In, values: [a, b]}]}, ingress: [{}]",
            "podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [b]}]}, ingress: [{form: []}]",
        ] {
            add(format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: n}}\n\
                 spec: {{{spec}}}\n"
            ));
        }
    }
    for name in ["a", "b"] {
        for (ip, uid, host, phase, label) in [
            (1, "x", false, "Running", ""),
            (1, name, false, "Running", ""),
            (1, name, false, "Running", ", heddle.dev/mesh: disabled"),
            (1, name, false, "Running", ", heddle.dev/mesh: nonsense"),
            (2, name, false, "Running", ""),
            (2, name, false, "Running", ", rejected: 'no label'"),
            (2, name, false, "Running", ", rejected: 7"),
            (2, name, true, "Running", ""),
            (1, name, false, "Failed", ""),
        ] {
            let app = if ip == 1 { name } else { "b" };
            add(format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n, uid: {uid}, labels: {{app: {app}{label}}}, \
                 annotations: {{heddle.dev/exclude-inbound-ports: '9100,9200'}}}}\n\
                 spec: {{hostNetwork: {host}}}\nstatus: {{phase: {phase}, podIP: 10.0.0.{ip}}}\n"
            ));
        }
    }
    for name in ["s", "t"] {
        for spec in [
            "clusterIP: 10.9.0.1, ports: [{port: 80}]",
            "clusterIP: None, ports: [{port: 80}]",
            "clusterIP: 10.9.0.1, ports: 1",
        ] {
            add(format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: n}}\nspec: {{{spec}}}\n"));
        }
    }
    for name in ["e", "f"] {
        for (service, ip, ready) in
            [("s", 1, true), ("s", 2, false), ("t", 1, true), ("t", 2, true), ("nobody", 1, true)]
        {
            add(format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: n, \
                 labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\n\
                 ports: [{{port: 80}}, {{name: m, port: 9100}}]\n\
                 endpoints: [{{addresses: [10.0.0.{ip}], conditions: {{ready: {ready}}}, targetRef: {{kind: Pod, name: a}}}}]\n"
            ));
        }
    }
    objects(&yaml)
}

proptest! {
    #[test]
    fn the_outcome_is_a_function_of_the_objects(
        history in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<bool>()), 0..60),
    ) {
        let catalogue = catalogue();
        let mut lived = World { reducer: Reducer::new(), snapshot: Snapshot::new("a") };
        let mut left = BTreeMap::new();
        for (index, present, publish) in history {
            let (key, object) = index.get(&catalogue);
            let object = present.then(|| Arc::clone(object));
            lived.reducer.set(key, object.clone());
            match object {
                Some(object) => drop(left.insert(key.clone(), object)),
                None => drop(left.remove(key)),
            }
            if publish {
                lived.publish();
            }
        }
        lived.publish();
        let mut fresh = World { reducer: Reducer::new(), snapshot: Snapshot::new("a") };
        left.iter().rev().for_each(|(key, object)| fresh.reducer.set(key, Some(Arc::clone(object))));
        fresh.publish();
        prop_assert!(lived.snapshot.same_state(&fresh.snapshot));
        prop_assert_eq!(lived.reports(), fresh.reports());
        prop_assert_eq!(lived.reducer.len(), left.len());
        // Everything removed leaves nothing: no index keeps a dead key.
        left.keys().for_each(|key| lived.reducer.set(key, None));
        lived.publish();
        prop_assert!(lived.snapshot.same_state(&Snapshot::new("a")));
        let r = &lived.reducer;
        let indexes = [
            r.pods_of.len(), r.pods_by_uid.len(), r.slices_of.len(), r.services_of_target.len(), r.reports.len(),
            r.modes_of.len(), r.overruled.len(), r.policies.len(), r.hosts.len(),
        ];
        prop_assert_eq!(indexes, [0; 9]);
    }
}
