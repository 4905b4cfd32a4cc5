//! Policies of pods and Services: who is touched, what applies, what is told, and what pods may exclude under them.

use std::sync::Arc;

use heddle_api::Kind;
use heddle_model::PodUid;

use super::tests::World;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled, team: a}, annotations: {heddle.dev/allow-exclusions: 'true'}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: other, labels: {app: web, heddle.dev/mesh: enabled}}
status: {podIP: 10.2.0.1}
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.1.0.1]}]
";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

fn network(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

impl World {
    /// Names of the policies that select a pod: AuthorizationPolicies, then NetworkPolicies.
    fn selecting(&self, uid: &str) -> Vec<String> {
        let Some(policies) = self.snapshot.policies_of(&PodUid::new(uid)) else { return Vec::new() };
        let authorization = policies.authorization.iter().map(|policy| policy.name.to_string());
        authorization.chain(policies.network.iter().map(|policy| format!("net {}", policy.name))).collect()
    }

    /// Names of the policies that are asked at an address of a pod.
    fn asked(&self, uid: &str, addr: &str) -> Vec<String> {
        let access = self.snapshot.port_access(&PodUid::new(uid), addr.parse().unwrap());
        access.policies().iter().map(|policy| policy.name.to_string()).collect()
    }

    fn excluded(&self) -> Vec<u16> {
        self.snapshot.workload(&PodUid::new("shop/web")).unwrap().capture.exclude_inbound_ports.clone()
    }
}

#[test]
fn a_policy_applies_to_the_pods_of_its_namespace_that_it_selects() {
    let mut world = World::new(SHOP);
    assert_eq!(world.set(&policy("all", "")), ["access shop/db", "access shop/web"]);
    assert_eq!(world.set(&policy("web", "selector: {matchLabels: {app: web}}")), ["access shop/web"]);
    assert_eq!(
        world.set(&policy("both", "selector: {matchLabels: {app: web, tier: front}}, action: Audit")),
        ["access shop/web"]
    );
    assert_eq!(world.set(&policy("none", "selector: {matchLabels: {app: web, tier: back}}")), Vec::<String>::new());
    let db = "matchExpressions: [{key: app, operator: In, values: [db, x]}]";
    assert_eq!(world.set(&network("db", &format!("podSelector: {{{db}}}"))), ["access shop/db"]);
    let not_db = "matchExpressions: [{key: app, operator: NotIn, values: [db]}]";
    assert_eq!(world.set(&network("not-db", &format!("podSelector: {{{not_db}}}"))), ["access shop/web"]);
    assert_eq!(world.selecting("shop/web"), ["all", "both", "web", "net not-db"]);
    assert_eq!(world.selecting("shop/db"), ["all", "net db"]);
    assert_eq!(world.selecting("other/web"), Vec::<String>::new(), "a policy speaks for its own namespace only");
    assert_eq!(world.snapshot.authorization_policies().count(), 4);
    assert_eq!(world.snapshot.network_policies().count(), 2);
    assert_eq!(world.reports(), Vec::<String>::new());
}

#[test]
fn a_change_touches_only_those_it_concerns() {
    let mut world = World::new(SHOP);
    world.set(&policy("web", "selector: {matchLabels: {app: web}}"));
    let before = Arc::clone(world.snapshot.workload(&PodUid::new("shop/web")).unwrap());
    let told = world.set(&policy("web", "selector: {matchLabels: {app: db}}"));
    assert_eq!(told, ["access shop/db", "access shop/web"], "one it leaves and one it takes");
    assert!(Arc::ptr_eq(&before, world.snapshot.workload(&PodUid::new("shop/web")).unwrap()), "no pod is sent for it");
    assert_eq!((world.selecting("shop/web"), world.selecting("shop/db")), (vec![], vec!["web".to_owned()]));
    // A pod that changes sides, and one that changes otherwise.
    let pod = |labels: &str, ip: u8| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, labels: {{{labels}}}}}\nstatus: {{podIP: 10.1.0.{ip}}}\n"
        )
    };
    assert_eq!(world.set(&pod("app: db", 1)), ["pod shop/web", "access shop/web"]);
    assert_eq!(world.set(&pod("app: db", 9)), ["pod shop/web"]);
    assert_eq!(world.remove(Kind::Pod, "shop", "web"), ["pod shop/web", "access shop/web"]);
    assert_eq!(world.remove(Kind::AuthorizationPolicy, "shop", "web"), ["access shop/db"]);
    assert_eq!(world.selecting("shop/db"), Vec::<String>::new());
    // Policies first, pods later.
    world.set(&network("all", "podSelector: {}"));
    assert_eq!(world.set(&pod("app: web", 1)), ["pod shop/web", "access shop/web"]);
    assert_eq!(world.selecting("shop/web"), ["net all"]);
}

#[test]
fn labels_of_namespaces_are_given_out() {
    let mut world = World::new(SHOP);
    let labels = |world: &World| world.snapshot.namespace_labels("shop").map(|labels| labels.len());
    assert_eq!(labels(&world), Some(3));
    let generation = world.snapshot.policy_generation;
    world.set("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: b}}\n");
    assert_eq!(labels(&world), Some(2));
    assert!(world.snapshot.policy_generation > generation, "a selector may ask for them");
    world.remove(Kind::Namespace, "", "shop");
    assert_eq!((labels(&world), world.snapshot.namespace_labels("other")), (None, None));
}

#[test]
fn a_policy_of_a_service_applies_where_the_service_leads() {
    let mut world = World::new(SHOP);
    let told = world.set(&policy("web", "targetRefs: [{kind: Service, name: web}]"));
    assert_eq!((told, world.reports()), (vec!["access service web".to_owned()], vec![WARNING.to_owned()]));
    world.set(SERVICE);
    assert_eq!((world.asked("shop/web", "10.1.0.1:8080"), world.reports()), (vec!["web".to_owned()], vec![]));
    assert_eq!(world.asked("shop/web", "10.1.0.1:8081"), Vec::<String>::new());
    assert_eq!(world.selecting("shop/web"), Vec::<String>::new());
    world.remove(Kind::Service, "shop", "web");
    assert_eq!((world.asked("shop/web", "10.1.0.1:8080"), world.reports()), (vec![], vec![WARNING.to_owned()]));
    assert_eq!(
        world.set(&policy("web", "")),
        ["access shop/db", "access shop/web", "access service web"],
        "it speaks of all pods now, and no more of the Service"
    );
    assert_eq!((world.asked("shop/db", "10.1.0.2:1"), world.reports()), (vec!["web".to_owned()], vec![]));
    world.set(&policy("web", "targetRefs: [{kind: Service, name: other}]"));
    assert_eq!(world.reports(), [WARNING]);
    world.remove(Kind::AuthorizationPolicy, "shop", "web");
    assert_eq!(world.reports(), Vec::<String>::new());
}

const WARNING: &str = "warning shop/web: spec.targetRefs[0].name";

#[test]
fn a_rejected_service_lifts_no_policy() {
    let mut world = World::new(SHOP);
    world.set(SERVICE);
    world.set(&policy("web", "targetRefs: [{kind: Service, name: web}]"));
    for wrong in
        ["ports: [{port: 0}]", "ports: 80", "ports: [{port: 80, name: other}], sessionAffinity: no", "type: none"]
    {
        world.set(&SERVICE.replace("ports: [{port: 80}]}", &format!("{wrong}}}")));
        assert_eq!(world.asked("shop/web", "10.1.0.1:8080"), ["web"], "{wrong}");
        let service = world.snapshot.service("shop", "web").unwrap();
        assert!(service.invalid, "{wrong}");
    }
}

#[test]
fn an_endpoint_in_another_namespace_carries_no_policy_there() {
    let mut world = World::new(SHOP);
    world.set(SERVICE);
    world.set(&SERVICE.replace("endpoints: [", "endpoints: [{addresses: [10.2.0.1]}, {addresses: [192.0.2.1]}, "));
    world.set(&policy("web", "targetRefs: [{kind: Service, name: web}], action: deny"));
    assert_eq!(world.asked("shop/web", "10.1.0.1:8080"), ["web"]);
    assert_eq!(world.asked("other/web", "10.2.0.1:8080"), Vec::<String>::new());
}

#[test]
fn a_rejected_policy_denies_its_own_targets_only() {
    let mut world = World::new(SHOP);
    world.set(SERVICE);
    world.set(&policy("web", "action: allow, selector: {matchLabels: {app: web}}"));
    assert_eq!((world.selecting("shop/web"), world.selecting("shop/db")), (vec!["web".to_owned()], vec![]));
    world.set(&policy("web", "action: allow, targetRefs: [{kind: Service, name: web}]"));
    assert_eq!(
        (world.asked("shop/web", "10.1.0.1:8080"), world.selecting("shop/db")),
        (vec!["web".to_owned()], vec![])
    );
    world.set(&policy("web", "action: allow, selector: {app: web}"));
    assert_eq!(world.selecting("shop/db"), ["web"], "whom it meant, nobody knows");
    assert_eq!(world.selecting("other/web"), Vec::<String>::new());
}

const EXCLUDING: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {heddle.dev/exclude-inbound-ports: '9100,9200'}}
status: {podIP: 10.1.0.1}
";

#[test]
fn a_port_of_which_a_policy_speaks_is_never_excluded() {
    let told = "warning shop/web: metadata.annotations[heddle.dev/exclude-inbound-ports]";
    let all = vec![9100, 9200];
    let table = [
        ("", vec![]),
        ("rules: [{to: [{ports: [9100]}]}]", vec![9200]),
        ("action: Deny, rules: [{from: [{namespaces: [other]}]}]", vec![]),
        ("action: Deny, rules: [{to: [{ports: [9200], paths: [{prefix: /}]}]}]", vec![9100]),
        ("action: Deny, rules: [{to: [{notPorts: [9200]}]}], selector: {matchLabels: {app: web}}", vec![9200]),
        // These speak of no port of the pod, or decide nothing.
        ("rules: [{to: [{ports: [80]}]}]", all.clone()),
        ("selector: {matchLabels: {app: db}}", all.clone()),
        ("action: Audit, rules: [{}]", all.clone()),
        ("dryRun: true", all.clone()),
        ("dryRun: true, action: Deny, rules: [{}]", all.clone()),
        ("dryRun: true, action: Deny, rules: [{form: []}]", all.clone()),
        // A rejected one might have spoken of any.
        ("action: Deny, rules: [{form: []}]", vec![]),
    ];
    let mut world = World::new(SHOP);
    world.set(EXCLUDING);
    assert_eq!(world.excluded(), all);
    for (spec, excluded) in table {
        world.set(&policy("p", spec));
        assert_eq!(world.excluded(), excluded, "{spec}");
        assert_eq!(world.reports().len(), usize::from(excluded != all), "{spec}");
        world.remove(Kind::AuthorizationPolicy, "shop", "p");
        assert_eq!((world.excluded(), world.reports()), (all.clone(), vec![]), "{spec}: nothing stays behind");
    }
    world.set(&policy("p", "rules: [{to: [{ports: [9100]}]}]"));
    assert_eq!(world.reports(), [told]);
    world.set(&network("n", "podSelector: {matchLabels: {app: web}}"));
    assert_eq!((world.excluded(), world.reports()), (vec![], vec![told.to_owned(); 2]), "a reason each");
    world.remove(Kind::AuthorizationPolicy, "shop", "p");
    assert_eq!((world.excluded(), world.reports()), (vec![], vec![told.to_owned()]));
    world.set(&network("n", "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]"));
    assert_eq!((world.excluded(), world.reports()), (all, vec![]), "it says nothing of ingress");
    world.set(&network("n", "podSelector: {matchLabels: {app: web}}, policyTypes: [egress]"));
    assert_eq!(world.excluded(), Vec::<u16>::new(), "a rejected one isolates both ways");
}

#[test]
fn a_port_to_which_a_service_with_a_policy_may_lead_is_never_excluded() {
    let slice = |endpoint: &str, port: u16| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-a, namespace: shop, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: any, port: {port}}}]\nendpoints: [{endpoint}]\n"
        )
    };
    let (by_address, by_name) =
        ("{addresses: [10.1.0.1]}", "{addresses: [10.9.9.9], targetRef: {kind: Pod, name: web}}");
    let mut world = World::new(SHOP);
    world.set(EXCLUDING);
    world.set(&policy("p", "targetRefs: [{kind: Service, name: web}]"));
    assert_eq!(world.excluded(), [9100, 9200]);
    assert_eq!(world.set(&slice(by_address, 9100)), ["pod shop/web", "service web"]);
    assert_eq!(world.excluded(), [9200], "in doubt: also without the Service");
    world.set(&slice(by_name, 9200));
    assert_eq!(world.excluded(), [9100]);
    world.set(&slice("{addresses: [10.9.9.9]}", 9200));
    assert_eq!(world.excluded(), [9100, 9200]);
    world.set(&slice(by_name, 9200));
    world.remove(Kind::EndpointSlice, "shop", "web-a");
    assert_eq!(world.excluded(), [9100, 9200]);
    // The policy comes last.
    world.remove(Kind::AuthorizationPolicy, "shop", "p");
    world.set(&slice(by_address, 9100));
    assert_eq!(world.excluded(), [9100, 9200]);
    world.set(&policy("p", "targetRefs: [{kind: Service, name: web}], action: Deny, rules: [{to: [{ports: [9100]}]}]"));
    assert_eq!(world.excluded(), [9200]);
    world.set(&policy("p", "targetRefs: [{kind: Service, name: web}], action: Audit, rules: [{}]"));
    assert_eq!(world.excluded(), [9100, 9200]);
}
