//! Modes of pods: who is touched, what changes, what is told, and what pods may exclude under them.

use std::sync::Arc;

use heddle_api::Kind;
use heddle_model::workload::Membership;
use heddle_model::{MtlsMode, PodUid, Workload};

use super::tests::World;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {heddle.dev/mesh: enabled}, annotations: {heddle.dev/allow-exclusions: 'true'}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
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
---
apiVersion: v1
kind: Pod
metadata: {name: out, namespace: shop, labels: {app: web, heddle.dev/mesh: disabled}}
status: {podIP: 10.1.0.3}
";

fn modes(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

fn mesh(mode: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

impl World {
    fn pod(&self, uid: &str) -> &Arc<Workload> {
        self.snapshot.workload(&PodUid::new(uid)).unwrap()
    }

    fn mode(&self, uid: &str, port: u16) -> &'static str {
        self.pod(uid).mtls.of(port, &self.snapshot.mesh).as_str()
    }
}

#[test]
fn from_the_mesh_to_a_single_port() {
    let mut world = World::new(SHOP);
    assert_eq!(world.mode("shop/web", 80), "Permissive");
    world.set(&mesh("Disabled"));
    assert_eq!(world.mode("shop/web", 80), "Disabled");
    world.set(&modes("all", "mode: Strict, ports: [{port: 9100, mode: Disabled}]"));
    assert_eq!((world.mode("shop/web", 80), world.mode("shop/web", 9100)), ("Strict", "Disabled"));
    world.set(&modes("web", "selector: {matchLabels: {app: web}}, ports: [{port: 80, mode: Permissive}]"));
    assert_eq!((world.mode("shop/web", 80), world.mode("shop/db", 80)), ("Permissive", "Strict"));
    assert_eq!((world.mode("shop/web", 81), world.mode("shop/web", 9100)), ("Strict", "Disabled"));
    assert_eq!(world.mode("other/web", 80), "Disabled", "an object speaks for its own namespace only");
    world.remove(Kind::MeshTls, "shop", "all");
    assert_eq!((world.mode("shop/web", 80), world.mode("shop/web", 81)), ("Permissive", "Disabled"));
}

#[test]
fn only_the_targets_of_an_object_are_touched_and_only_changed_modes_change_a_pod() {
    let mut world = World::new(SHOP);
    let web = "selector: {matchLabels: {app: web}}";
    let (before, db) = (Arc::clone(world.pod("shop/web")), Arc::clone(world.pod("shop/db")));
    assert_eq!(world.set(&modes("web", &format!("mode: Strict, {web}"))), ["pod shop/out", "pod shop/web"]);
    assert!(!Arc::ptr_eq(world.pod("shop/web"), &before));
    let strict = Arc::clone(world.pod("shop/web"));
    // Another object that says the same, and one that has no say.
    world.set(&modes("again", &format!("mode: Strict, {web}, ports: [{{port: 80, mode: Strict}}]")));
    world.set(&modes("all", "mode: Disabled"));
    assert!(Arc::ptr_eq(world.pod("shop/web"), &strict), "its modes are the same");
    assert!(!Arc::ptr_eq(world.pod("shop/db"), &db));
    // A new selector concerns those it leaves and those it takes.
    world.remove(Kind::MeshTls, "shop", "again");
    world.remove(Kind::MeshTls, "shop", "all");
    let told = world.set(&modes("web", "mode: Strict, selector: {matchLabels: {app: db}}"));
    assert_eq!(told, ["pod shop/db", "pod shop/out", "pod shop/web"]);
    assert_eq!((world.mode("shop/web", 80), world.mode("shop/db", 80)), ("Permissive", "Strict"));
    // A pod that changes its label changes sides.
    let labelled = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: db}}\nstatus: {podIP: 10.1.0.1}\n";
    assert_eq!(world.set(labelled), ["pod shop/web"]);
    assert_eq!(world.mode("shop/web", 80), "Strict");
}

#[test]
fn a_pod_that_nobody_takes_mtls_for_has_no_modes() {
    let mut world = World::new(SHOP);
    world.set(&modes("all", "mode: Strict"));
    assert!(matches!(world.pod("shop/out").membership, Membership::Disabled(_)));
    assert_eq!(world.pod("shop/out").mtls.mode, None);
    world.set("apiVersion: v1\nkind: Pod\nmetadata: {name: out, namespace: shop}\nstatus: {podIP: 10.1.0.3}\n");
    assert_eq!(world.pod("shop/out").mtls.mode, Some(MtlsMode::Strict), "it is in the mesh now");
}

#[test]
fn of_one_weight_the_strictest_counts_and_the_other_is_told() {
    let mut world = World::new(SHOP);
    world.set(&modes("a", "mode: Permissive, ports: [{port: 80, mode: Disabled}]"));
    assert_eq!(world.reports(), Vec::<String>::new());
    world.set(&modes("b", "mode: Strict, ports: [{port: 80, mode: Permissive}]"));
    assert_eq!((world.mode("shop/web", 80), world.mode("shop/web", 81)), ("Permissive", "Strict"));
    let told = ["warning shop/a: spec.mode", "warning shop/a: spec.ports[0].mode"];
    assert_eq!(world.reports(), told, "once, though it concerns two pods");
    world.remove(Kind::Pod, "shop", "web");
    assert_eq!(world.reports(), told, "it still concerns one");
    world.remove(Kind::MeshTls, "shop", "b");
    assert_eq!((world.mode("shop/db", 80), world.reports()), ("Disabled", vec![]));
}

#[test]
fn a_rejected_object_is_strict_for_its_own_targets_only() {
    let mut world = World::new(SHOP);
    world.set(&modes("web", "mode: permissive, selector: {matchLabels: {app: web}}"));
    assert_eq!((world.mode("shop/web", 80), world.mode("shop/db", 80)), ("Strict", "Permissive"));
    assert_eq!(world.mode("other/web", 80), "Permissive");
    world.set(&modes("web", "mode: Permissive, selector: {app: web}"));
    assert_eq!(
        (world.mode("shop/web", 80), world.mode("shop/db", 80)),
        ("Strict", "Strict"),
        "whom it meant, nobody knows"
    );
    assert_eq!(world.mode("other/web", 80), "Permissive");
    world.set(&modes("web", "mode: Permissive, selector: {matchLabels: {app: web}}"));
    assert_eq!((world.mode("shop/web", 80), world.mode("shop/db", 80)), ("Permissive", "Permissive"));
}

#[test]
fn a_strict_port_is_never_excluded() {
    let excluding = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {heddle.dev/exclude-inbound-ports: '9100,9200'}}
status: {podIP: 10.1.0.1}
";
    let mut world = World::new(SHOP);
    world.set(excluding);
    let excluded = |world: &World| world.pod("shop/web").capture.exclude_inbound_ports.clone();
    let told = ["warning shop/web: metadata.annotations[heddle.dev/exclude-inbound-ports]"];
    assert_eq!((excluded(&world), world.reports()), (vec![9100, 9200], vec![]));
    world.set(&modes("web", "ports: [{port: 9100, mode: Strict}]"));
    assert_eq!((excluded(&world), world.reports()), (vec![9200], told.map(str::to_owned).to_vec()));
    assert_eq!(world.set(&mesh("Strict")), ["pod shop/web", "mesh"], "of all pods only one that excludes is concerned");
    assert_eq!((excluded(&world), world.reports()), (vec![], told.map(str::to_owned).to_vec()));
    world.remove(Kind::MeshTls, "shop", "web");
    world.set(&modes("web", "mode: Permissive"));
    assert_eq!((excluded(&world), world.reports()), (vec![9100, 9200], vec![]));
}
