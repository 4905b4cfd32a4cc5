//! Files of several objects: which are read, which are reported, and that a bad one harms no other.

use super::*;
use crate::namespace::MeshLabel;

/// `line Kind namespace/name` of what came out, and `line Kind object: field: message` of what was reported.
fn told(text: &str) -> (Vec<String>, Vec<String>) {
    let reading = read("dir/f.yaml", text.as_bytes());
    let item = |i: &Item| format!("{} {} {}", i.line, i.object.key().kind.as_str(), i.object.key().object());
    let report = |i: &InvalidObject| {
        assert_eq!(&*i.origin, "dir/f.yaml");
        format!("{} {} {}: {}: {}", i.line, i.kind, i.object, i.field, i.message)
    };
    (reading.items.iter().map(item).collect(), reading.invalid.iter().map(report).collect())
}

#[test]
fn a_bad_second_document_of_three_harms_no_other() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: one}
---
apiVersion: v1
kind: Namespace
metadata: {name: two
---
apiVersion: v1
kind: Namespace
metadata: {name: three}
";
    let (items, invalid) = told(text);
    assert_eq!(items, ["1 Namespace one", "5 Namespace two", "9 Namespace three"]);
    assert_eq!(invalid.len(), 1, "{invalid:?}");
    assert!(invalid[0].starts_with("7 Namespace two: : not YAML: unclosed bracket"), "{invalid:?}");
    let reading = read("f", text.as_bytes());
    let broken = reading.items.iter().find(|i| &*i.object.key().name == "two").unwrap();
    let unreadable = Namespace { mesh: MeshLabel::Invalid, is_readable: false, ..Namespace::absent("two") };
    assert_eq!(broken.object, Object::Namespace(unreadable));
    assert!(!reading.has_unknown, "which object it is can be told");
}

#[test]
fn kinds_table() {
    let table = [
        ("kind: Pod\nmetadata: {name: a}", "1 Pod default/a: apiVersion: `` is not read: v1"),
        ("apiVersion: v2\nkind: Pod\nmetadata: {name: a}", "1 Pod default/a: apiVersion: `v2` is not read: v1"),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}",
            "1 EndpointSlice default/a: apiVersion: `discovery.k8s.io/v1beta1` is not read: discovery.k8s.io/v1",
        ),
        (
            "apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a, namspace: shop}\nspec: {}",
            "3 AuthorizationPolicy default/a: metadata.namspace: unknown field `namspace`",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy\nmetadata: {name: a}",
            "1 NetworkPolcy a: : unknown kind `networking.k8s.io/v1 NetworkPolcy`",
        ),
        ("apiVersion: v1\nkind: Servce\nmetadata: {name: a}", "1 Servce a: : unknown kind `v1 Servce`"),
        (
            "apiVersion: heddle.dev/v1alpha1\nkind: CachePolicy\nmetadata: {name: a}",
            "1 CachePolicy a: : unknown kind `heddle.dev/v1alpha1 CachePolicy`",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {parentRefs: [{name: a}]}",
            "1 HTTPRoute default/a: apiVersion: `gateway.networking.k8s.io/v1alpha2` is not read: \
             gateway.networking.k8s.io/v1 or gateway.networking.k8s.io/v1beta1",
        ),
        ("apiVersion: v1\nmetadata: {name: a}", "1  a: kind: is missing"),
        ("just text", "1  : kind: must be an object with apiVersion and kind, not the text `just text`"),
        ("- a\n- b", "1  : kind: must be an object with apiVersion and kind, not a list"),
        ("apiVersion: v1\nkind: Pod", "1 Pod : metadata.name: is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}", "3 Pod default/A_b: metadata.name: `A_b` is no name"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b.c}",
            "3 Pod b.c/a: metadata.namespace: `b.c` is no name of a namespace",
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: x", "3 Pod : metadata: must be a mapping"),
    ];
    for (text, expected) in table {
        let (_, invalid) = told(text);
        let found = invalid.iter().any(|i| i.starts_with(expected)) || text.ends_with("metadata: x");
        assert!(found && invalid.len() == 1, "{text}:\n{invalid:?}\n{expected}");
    }
}

#[test]
fn other_kinds_are_ignored_or_said_to_have_no_effect_yet() {
    let ignored = [
        "networking.k8s.io/v1 Ingress",
        "v1 ConfigMap",
        "v1 Secret",
        "apps/v1 Deployment",
        "serving.knative.dev/v1 Service",
        "example.com/v1 Any",
    ];
    let unsupported = [
        "gateway.networking.k8s.io/v1 Gateway",
        "gateway.networking.k8s.io/v1 GatewayClass",
        "gateway.networking.k8s.io/v1 BackendTLSPolicy",
        "gateway.networking.k8s.io/v1alpha2 UDPRoute",
        // Somebody thinks that they guard something.
        "security.istio.io/v1 AuthorizationPolicy",
        "hedle.dev/v1alpha1 MeshTLS",
        "crd.projectcalico.org/v1 NetworkPolicy",
    ];
    let object = |text: &str| {
        let (version, kind) = text.split_once(' ').unwrap();
        read("f", format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n").as_bytes())
    };
    for text in ignored {
        let reading = object(text);
        assert_eq!(
            (reading.ignored, reading.items.len(), reading.invalid.len(), reading.warnings.len()),
            (1, 0, 0, 0),
            "{text}"
        );
    }
    for text in unsupported {
        let reading = object(text);
        assert_eq!(
            (reading.ignored, reading.items.len(), reading.invalid.len(), reading.warnings.len()),
            (0, 0, 0, 1),
            "{text}"
        );
        assert!(reading.warnings[0].message.contains("not supported yet"));
    }
}

#[test]
fn the_items_of_a_list_stand_for_themselves() {
    let text = "\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: one}
- apiVersion: v1
  kind: Service
  metadata: {name: two, name: again}
  spec: {clusterIP: 10.96.0.1}
- apiVersion: v1
  kind: Namespace
  metadata: {name: three}
- kind: List
  apiVersion: v1
";
    let (items, invalid) = told(text);
    assert_eq!(items, ["4 Namespace one", "7 Service default/two", "11 Namespace three"]);
    assert_eq!(invalid.len(), 2, "{invalid:?}");
    assert!(invalid[0].starts_with("9 Service default/two: : `name` is there twice"), "{invalid:?}");
    assert!(invalid[1].starts_with("14 List : kind: a List inside a List"), "{invalid:?}");
}

#[test]
fn a_service_without_a_usable_name_still_refuses_its_address() {
    let reading =
        read("f.yaml", b"apiVersion: v1\nkind: Service\nmetadata: {name: A_b}\nspec: {clusterIP: 10.96.0.1}\n");
    let Object::Service(service) = &reading.items[0].object else { panic!("{reading:?}") };
    assert!(service.invalid && service.vips.len() == 1);
    assert_eq!(&*service.name, "f.yaml:1");
}

#[test]
fn namespaces_keep_what_can_be_read() {
    use heddle_model::workload::FailurePolicy;
    let namespace = |meta: &str| {
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {meta}}}\n");
        let reading = read("f", text.as_bytes());
        match reading.items.into_iter().next().map(|i| i.object) {
            Some(Object::Namespace(n)) => (n.mesh, n.failure_policy, n.allow_exclusions, reading.invalid.len()),
            other => panic!("{other:?}"),
        }
    };
    use FailurePolicy::{Closed, Open};
    use MeshLabel::{Disabled, Enabled, Invalid, Unset};
    let table = [
        ("", (Unset, Closed, false, 0)),
        ("labels: {heddle.dev/mesh: enabled}", (Enabled, Closed, false, 0)),
        ("labels: {heddle.dev/mesh: disabled}", (Disabled, Closed, false, 0)),
        ("labels: {heddle.dev/mesh: Enabled}", (Invalid, Closed, false, 1)),
        ("labels: {heddle.dev/mesh: true}", (Invalid, Closed, false, 1)),
        ("annotations: {heddle.dev/failure-policy: Open, heddle.dev/allow-exclusions: 'true'}", (Unset, Open, true, 0)),
        (
            "labels: {heddle.dev/mesh: enabled}, annotations: {heddle.dev/failure-policy: open, heddle.dev/allow-exclusions: 'yes'}",
            (Enabled, Closed, false, 2),
        ),
    ];
    for (meta, expected) in table {
        assert_eq!(namespace(meta), expected, "{meta}");
    }
}

#[test]
fn a_rejected_namespace_keeps_its_label_and_allows_nothing() {
    let table = [
        ("{name: shop, labels: {heddle.dev/mesh: enabled, a: 7}}\n", MeshLabel::Enabled),
        ("{name: shop, labels: {heddle.dev/mesh: disabled, a: 7}}\n", MeshLabel::Disabled),
        ("{name: shop, labels: {heddle.dev/mesh: Enabled, a: 7}}\n", MeshLabel::Invalid),
        ("{name: shop, labels: {heddle.dev/mesh: enabled, heddle.dev/mesh: disabled}}\n", MeshLabel::Invalid),
        ("{name: shop, labels: 7}\n", MeshLabel::Invalid),
        ("{name: shop, annotations: {a: 7}}\n", MeshLabel::Unset),
        (
            "{name: shop, annotations: {a: b, heddle.dev/allow-exclusions: 'true', c: 7}, labels: {heddle.dev/mesh: enabled}}\n",
            MeshLabel::Enabled,
        ),
        ("{name: shop, labels: {heddle.dev/mesh: enabled", MeshLabel::Enabled),
        ("{name: shop", MeshLabel::Invalid),
    ];
    for (metadata, mesh) in table {
        let reading = read("f", format!("apiVersion: v1\nkind: Namespace\nmetadata: {metadata}").as_bytes());
        let expected = Namespace { mesh, is_readable: false, ..Namespace::absent("shop") };
        assert_eq!(reading.items.first().map(|item| &item.object), Some(&Object::Namespace(expected)), "{metadata}");
        assert!(!reading.invalid.is_empty() && !reading.items[0].object.is_readable(), "{metadata}");
    }
}

#[test]
fn what_may_be_an_object_of_before_table() {
    let table = [
        ("kind: [", true),
        ("x", true),
        ("apiVersion: v1\nmetadata: {name: a}", true),
        ("apiVersion: v1\nkind: Pdo\nmetadata: {name: a}", true),
        ("apiVersion: v1\nkind: Pod\nmetadata: {nam: a}", true),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: A}", true),
        ("apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\nmetadata: {name: a, namspace: b}\nspec: {}", true),
        ("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {", true),
        // One can tell which they are, or that they are none of ours.
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a", false),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: []", false),
        ("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}", false),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}", false),
        ("apiVersion: example.com/v1\nkind: Any\nmetadata: {name: a}", false),
        ("", false),
        ("# nothing\n---\n~", false),
    ];
    for (text, has_unknown) in table {
        assert_eq!(read("f", text.as_bytes()).has_unknown, has_unknown, "{text}");
    }
    assert!(read("f", &vec![b'#'; yaml::FILE_BYTES_MAX as usize + 1]).has_unknown);
}

#[test]
fn namespaces_have_their_name_as_a_label() {
    let labels = |meta: &str| {
        let reading =
            read("f", format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop{meta}}}\n").as_bytes());
        match reading.items.into_iter().next().map(|item| item.object) {
            Some(Object::Namespace(n)) => n.labels.map(|labels| format!("{labels:?}")),
            other => panic!("{other:?}"),
        }
    };
    let name = r#""kubernetes.io/metadata.name": "shop""#;
    assert_eq!(labels("").as_deref(), Some(&*format!("{{{name}}}")));
    assert_eq!(
        labels(", labels: {a: b, kubernetes.io/metadata.name: other}"),
        Some(format!(r#"{{"a": "b", {name}}}"#))
    );
    assert_eq!(labels(", labels: [a]"), None, "nobody knows them");
}

#[test]
fn bytes_that_are_no_text_cost_their_document() {
    let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n---\n";
    let mut bytes = good.as_bytes().to_vec();
    bytes.extend(b"apiVersion: v1\nkind: Service\nmetadata: {name: bad, labels: {a: \xff\xfe}}\nspec: {clusterIP: 10.96.0.1}\n---\n");
    bytes.extend(good.replace("good}", "fine} # \u{fffd}").as_bytes());
    let reading = read("f", &bytes);
    let names: Vec<String> = reading.items.iter().map(|i| i.object.key().name.to_string()).collect();
    assert_eq!(names, ["good", "bad", "fine"]);
    let told: Vec<String> = reading.invalid.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["f:7: Service default/bad: not UTF-8 text"]);
    let Object::Service(service) = &reading.items[1].object else { panic!("{reading:?}") };
    assert!(service.invalid && service.vips.len() == 1, "it refuses its address");
}

#[test]
fn reports_of_one_file_are_bounded() {
    let reading = read("f", "x\n---\n".repeat(REPORTS_MAX + 5).as_bytes());
    assert_eq!(reading.invalid.len(), REPORTS_MAX + 1);
    assert_eq!(&*reading.invalid[REPORTS_MAX].message, "5 more reports on this file are left out");
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let reading = read("f", &vec![b'#'; yaml::FILE_BYTES_MAX as usize + 1]);
    assert!(reading.invalid[0].message.contains("longer than 67108864 bytes"));
}

#[test]
fn empty_documents_are_nothing() {
    for text in ["", "---\n---\n", "# c\n", "~\n", "null\n---\n...\n"] {
        assert_eq!(told(text), (vec![], vec![]), "{text:?}");
    }
}
