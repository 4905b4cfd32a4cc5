//! What guards a pod holds it in the mesh: neither its own wish nor a mistake takes it out, whatever came first.

use heddle_api::Kind;
use heddle_model::workload::{Membership, NotInMesh};

use super::tests::World;

const SERVICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.1.0.1]}]
";

fn namespace(label: &str, allows: bool) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{label}}}, annotations: \
         {{heddle.dev/allow-exclusions: '{allows}'}}}}\n"
    )
}

fn pod(label: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, labels: {{app: web{label}}}}}\nstatus: {{podIP: {ip}}}\n"
    )
}

fn object(api: &str, kind: &str, spec: &str) -> String {
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: g, namespace: shop}}\nspec: {{{spec}}}\n")
}

fn mesh_tls(spec: &str) -> String {
    object("heddle.dev/v1alpha1", "MeshTLS", spec)
}

fn policy(spec: &str) -> String {
    object("heddle.dev/v1alpha1", "AuthorizationPolicy", spec)
}

fn network(spec: &str) -> String {
    object("networking.k8s.io/v1", "NetworkPolicy", spec)
}

/// An object and whether it guards the pod `web`.
fn guards() -> Vec<(String, bool)> {
    let web = "selector: {matchLabels: {app: web}}";
    let mesh = |mode: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    let service = |spec: &str| format!("{SERVICE}---\n{}", policy(spec));
    vec![
        (mesh("Strict"), true),
        (mesh("Permissive"), false),
        (mesh_tls("mode: Strict"), true),
        (mesh_tls(&format!("mode: Strict, {web}")), true),
        (mesh_tls("mode: Disabled, ports: [{port: 8080, mode: Strict}]"), true),
        (mesh_tls("mode: strict"), true),
        (mesh_tls("mode: Permissive"), false),
        (mesh_tls("mode: Strict, selector: {matchLabels: {app: db}}"), false),
        (policy(""), true),
        (policy(&format!("{web}, rules: [{{to: [{{ports: [8080]}}]}}]")), true),
        (policy("action: Deny, rules: [{from: [{namespaces: [other]}]}]"), true),
        (policy("action: Deny, rules: [{form: []}]"), true),
        (policy("action: Deny"), false),
        (policy("action: Audit, rules: [{}]"), false),
        (policy("dryRun: true"), false),
        (policy("selector: {matchLabels: {app: db}}"), false),
        (service("targetRefs: [{kind: Service, name: web}]"), true),
        (service("targetRefs: [{kind: Service, name: db}]"), false),
        (network("podSelector: {matchLabels: {app: web}}"), true),
        (network("podSelector: {}, policyTypes: [Ingress, Egress]"), true),
        (network("podSelector: {}, policyTypes: [ingress]"), true),
        (network("podSelector: {}, policyTypes: [Egress]"), false),
        (network("podSelector: {matchLabels: {app: db}}"), false),
    ]
}

/// A way out of the mesh: Namespace, Pod, and why an unguarded one is out.
fn ways_out() -> Vec<(String, String, NotInMesh)> {
    let (on, in_mesh) = ("heddle.dev/mesh: enabled", "10.1.0.1");
    vec![
        (namespace(on, false), pod(", heddle.dev/mesh: disabled", in_mesh), NotInMesh::PodOptedOut),
        (namespace("heddle.dev/mesh: enabeld", false), pod("", in_mesh), NotInMesh::InvalidLabel),
        (namespace(on, true), pod(", heddle.dev/mesh: enabeld", in_mesh), NotInMesh::InvalidLabel),
        (namespace("", false), pod(", heddle.dev/mesh: enabeld", in_mesh), NotInMesh::InvalidLabel),
        (namespace(on, true), pod(", other: 'no label'", in_mesh), NotInMesh::InvalidObject),
    ]
}

#[test]
fn what_guards_a_pod_holds_it_in_whatever_order() {
    for (namespace, pod, why) in ways_out() {
        for (guard, is_guarded) in guards() {
            let held = if is_guarded { Membership::Enabled } else { Membership::Disabled(why) };
            let parts = [&namespace, &pod, &guard];
            for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                let mut world = World::new("");
                for part in order {
                    world.set(parts[part]);
                }
                assert_eq!(world.membership("shop/web"), held, "{order:?}\n{namespace}{pod}{guard}");
            }
            // Nothing of it is left when the guard is gone.
            let mut world = World::new(&[&*namespace, &pod, &guard].join("---\n"));
            for kind in [Kind::MeshTls, Kind::AuthorizationPolicy, Kind::NetworkPolicy] {
                world.remove(kind, "shop", "g");
            }
            world.remove(Kind::Mesh, "", "default");
            assert_eq!(world.membership("shop/web"), Membership::Disabled(why), "{namespace}{pod}{guard}");
            let told = world.reports();
            assert!(!told.iter().any(|report| report.contains("shop/web")), "{told:?}\n{guard}");
        }
    }
}

/// A pod `web` of which only so much can be read that not all its labels are known.
fn illegible(labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, labels: {{{labels}}}}}\nstatus: {{podIP: 10.1.0.1}}\n"
    )
}

#[test]
fn who_may_select_a_pod_that_cannot_be_read_guards_it() {
    let selects = |value: &str| format!("selector: {{matchLabels: {{app: {value}}}}}");
    let kinds = [
        mesh_tls(&format!("mode: Strict, {}", selects("web"))),
        mesh_tls(&format!("ports: [{{port: 8080, mode: Strict}}], {}", selects("web"))),
        policy(&selects("web")),
        policy(&format!("action: Deny, rules: [{{}}], {}", selects("web"))),
        network("podSelector: {matchLabels: {app: web}}"),
        network("podSelector: {matchExpressions: [{key: app, operator: In, values: [web, x]}]}"),
        network("podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}"),
    ];
    let held = |guard: &str, labels: &str| {
        let mut world = World::new(&namespace("heddle.dev/mesh: enabled", true));
        world.set(&illegible(labels));
        assert_ne!(world.membership("shop/web"), Membership::Enabled, "{labels}\n{guard}");
        world.set(guard);
        let later = world.membership("shop/web");
        let mut world =
            World::new(&[&*namespace("heddle.dev/mesh: enabled", true), guard, &illegible(labels)].join("---\n"));
        assert_eq!(world.membership("shop/web"), later, "{labels}\n{guard}");
        for kind in [Kind::MeshTls, Kind::AuthorizationPolicy, Kind::NetworkPolicy] {
            world.remove(kind, "shop", "g");
        }
        assert_ne!(world.membership("shop/web"), Membership::Enabled, "{labels}\n{guard}");
        later == Membership::Enabled
    };
    for guard in &kinds {
        for labels in ["app: 7", "app: 'web '", "tier: 7", "app: web, tier: [x]", "app: web, app: db"] {
            assert!(held(guard, labels), "{labels}\n{guard}");
        }
        assert!(!held(guard, "app: db, tier: 7"), "it is known not to be meant\n{guard}");
    }
}

#[test]
fn what_may_speak_of_a_pod_refuses_for_it() {
    let allow = "selector: {matchLabels: {app: web}}, rules: [{from: [{namespaces: [shop]}]}]";
    let mut world = World::new(&namespace("heddle.dev/mesh: enabled", false));
    world.set(&[&*policy(allow), &network("podSelector: {matchLabels: {app: web}}, ingress: [{}]")].join("---\n"));
    world.set(&illegible("tier: 7"));
    let policies = world.snapshot.policies_of(&heddle_model::PodUid::new("shop/web")).unwrap();
    assert_eq!(policies.authorization[0].rules, heddle_model::policy::Rules::Rejected);
    assert!(policies.network[0].is_rejected);
    world.set(&pod("", "10.1.0.1"));
    let policies = world.snapshot.policies_of(&heddle_model::PodUid::new("shop/web")).unwrap();
    assert_ne!(policies.authorization[0].rules, heddle_model::policy::Rules::Rejected);
    assert!(!policies.network[0].is_rejected);
    // A mode that may be meant closes every port; one that opens, and may be meant, opens none.
    world.set(&mesh_tls("selector: {matchLabels: {app: web}}, ports: [{port: 1, mode: Strict}]"));
    let modes = |world: &World| {
        let web = world.snapshot.workload(&heddle_model::PodUid::new("shop/web")).unwrap();
        [1, 2].map(|port| web.mtls.of(port, &world.snapshot.mesh).as_str())
    };
    assert_eq!(modes(&world), ["Strict", "Permissive"]);
    world.set(&illegible("tier: 7"));
    assert_eq!(modes(&world), ["Strict", "Strict"]);
    world.set(&mesh_tls("selector: {matchLabels: {app: web}}, mode: Disabled"));
    assert_eq!(modes(&world), ["Permissive", "Permissive"]);
}

#[test]
fn a_service_guards_from_when_it_leads_to_the_pod() {
    let mut world = World::new(&namespace("heddle.dev/mesh: enabled", false));
    world.set(&pod(", heddle.dev/mesh: disabled", "10.1.0.1"));
    world.set(&policy("targetRefs: [{kind: Service, name: web}]"));
    let out = Membership::Disabled(NotInMesh::PodOptedOut);
    assert_eq!(world.membership("shop/web"), out);
    world.set(SERVICE);
    assert_eq!(world.membership("shop/web"), Membership::Enabled);
    world.set(&SERVICE.replace("10.1.0.1", "10.1.0.9"));
    assert_eq!(world.membership("shop/web"), out);
    world.set(&pod(", heddle.dev/mesh: disabled", "10.1.0.9"));
    assert_eq!(world.membership("shop/web"), Membership::Enabled);
}

#[test]
fn a_refused_opt_out_is_told_while_it_is_refused() {
    let told = ["warning shop/web: metadata.labels[heddle.dev/mesh]"];
    let strict = mesh_tls("mode: Strict");
    let mut world = World::new(&[&*namespace("heddle.dev/mesh: enabled", false), &strict].join("---\n"));
    world.set(&pod(", heddle.dev/mesh: disabled", "10.1.0.1"));
    assert_eq!(
        (world.membership("shop/web"), world.reports()),
        (Membership::Enabled, told.map(str::to_owned).to_vec())
    );
    // The administrator's acts: to allow it, to take the namespace out, to lift what guards.
    let out = Membership::Disabled(NotInMesh::PodOptedOut);
    world.set(&namespace("heddle.dev/mesh: enabled", true));
    assert_eq!((world.membership("shop/web"), world.reports()), (out.clone(), vec![]));
    world.set(&namespace("heddle.dev/mesh: disabled", false));
    assert_eq!((world.membership("shop/web"), world.reports()), (out.clone(), vec![]));
    world.set(&namespace("", false));
    assert_eq!((world.membership("shop/web"), world.reports()), (out.clone(), vec![]));
    world.set(&namespace("heddle.dev/mesh: enabled", false));
    assert_eq!(
        (world.membership("shop/web"), world.reports()),
        (Membership::Enabled, told.map(str::to_owned).to_vec())
    );
    world.remove(Kind::MeshTls, "shop", "g");
    assert_eq!((world.membership("shop/web"), world.reports()), (out, vec![]));
}

#[test]
fn a_guard_touches_only_pods_for_which_it_matters() {
    let mut world = World::new(&namespace("heddle.dev/mesh: enabled", true));
    // Its opt-out is allowed, whatever guards it.
    world.set(&pod(", heddle.dev/mesh: disabled", "10.1.0.1"));
    assert_eq!(world.set(&policy("")), ["access shop/web"]);
    world.set(&namespace("heddle.dev/mesh: enabled", false));
    world.remove(Kind::AuthorizationPolicy, "shop", "g");
    assert_eq!(world.set(&policy("")), ["pod shop/web", "access shop/web"]);
    assert_eq!(world.set(&policy("action: Deny, rules: [{}]")), ["pod shop/web", "access shop/web"]);
}
