//! MeshTLS objects: fields, rejections and what is left of them, and whose word counts.

use proptest::prelude::*;

use super::*;
use crate::object::{Object, read};

use MtlsMode::{Disabled, Permissive, Strict};

fn modes(yaml: &str) -> (Option<MeshTls>, Vec<String>, Vec<String>) {
    let text = format!("apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\n{yaml}");
    let reading = read("f.yaml", text.as_bytes());
    let told = |list: &[heddle_model::InvalidObject]| {
        list.iter().map(|i| format!("{}: {}: {}", i.line, i.field, i.message)).collect()
    };
    let object = reading.items.iter().find_map(|item| match &item.object {
        Object::MeshTls(modes) => Some(modes.clone()),
        _ => None,
    });
    (object, told(&reading.invalid), told(&reading.warnings))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn selected_by(pairs: &[(&str, &str)]) -> Selector {
    Selector::Labels(labels(pairs))
}

#[test]
fn every_field_is_read() {
    let (object, invalid, warnings) = modes(
        "
metadata: {name: web, namespace: shop, creationTimestamp: 2026-08-09T10:11:12Z}
spec:
  selector: {matchLabels: {app: web, tier: ''}}
  mode: Strict
  ports: [{port: 9100, mode: Permissive}, {port: 8080, mode: Disabled}]
",
    );
    assert_eq!((invalid, warnings), (vec![], vec![]));
    let object = object.unwrap();
    assert_eq!((&*object.namespace, &*object.name), ("shop", "web"));
    assert_eq!(object.created.map(Timestamp::unix), Some(1_786_270_272));
    assert_eq!(object.selector, selected_by(&[("app", "web"), ("tier", "")]));
    let ports = vec![(9100, Permissive), (8080, Disabled)];
    assert_eq!(object.says, Says::Modes { mode: Some(Strict), ports });
}

#[test]
fn without_a_selector_it_speaks_for_the_namespace() {
    for selector in ["", "selector: {}", "selector: {matchLabels: {}}", "selector: null", "selector: {matchLabels: }"] {
        let (object, invalid, _) = modes(&format!("metadata: {{name: all}}\nspec:\n  mode: Strict\n  {selector}\n"));
        let object = object.unwrap();
        assert_eq!((invalid, &*object.namespace), (vec![], "default"), "{selector}");
        assert_eq!(object.selector, Selector::Namespace, "{selector}");
    }
}

#[test]
fn one_that_says_nothing_is_warned_of() {
    let (object, invalid, warnings) = modes("metadata: {name: all}\nspec: {selector: {matchLabels: {app: web}}}\n");
    assert_eq!(
        (invalid, warnings),
        (vec![], vec!["4: spec: has neither `mode` nor `ports`: it has no effect".to_owned()])
    );
    let (resolved, overruled) = resolve([object.unwrap()].iter());
    assert_eq!((resolved, overruled), (MtlsModes::default(), vec![]));
}

/// What is wrong, and for whom it is strict then.
#[test]
fn rejections_table() {
    let web = selected_by(&[("app", "web")]);
    let table = [
        (
            "mode: strict",
            "spec.mode: `strict` is unknown: `Strict` or `Permissive` or `Disabled`",
            &Selector::Namespace,
        ),
        ("mode: STRICT, selector: {matchLabels: {app: web}}", "spec.mode: `STRICT` is unknown", &web),
        ("mode: [Strict], selector: {matchLabels: {app: web}}", "spec.mode: must be text, not a list", &web),
        (
            "mdoe: Strict",
            "spec.mdoe: unknown field `mdoe`, expected one of `selector`, `mode`, `ports`",
            &Selector::Unreadable,
        ),
        ("mdoe: Strict, selector: {matchLabels: {app: web}}", "spec.mdoe: unknown field", &web),
        ("mode: Strict, selector: {app: web}", "spec.selector.app: unknown field `app`", &Selector::Unreadable),
        (
            "mode: Strict, selector: {matchLabels: {app: web}, matchExpressions: []}",
            "spec.selector.matchExpressions: unknown field",
            &Selector::Unreadable,
        ),
        (
            "mode: Strict, selector: {matchLabels: {app: 1}}",
            "spec.selector.matchLabels.app: must be text, not the number 1: put it in quotes",
            &Selector::Unreadable,
        ),
        (
            "mode: Strict, selector: {matchLabels: {app: }}",
            "spec.selector.matchLabels.app: has no value: give one, or `\"\"`",
            &Selector::Unreadable,
        ),
        (
            "mode: Disabled, selector: {matchLabels: {app: a b}}",
            "spec.selector.matchLabels.app: `a b` is no label value",
            &Selector::Unreadable,
        ),
        ("mode: Strict, selector: web", "spec.selector: must be a mapping, not the text `web`", &Selector::Unreadable),
        (
            "mode: Permissive, selector: {matchLabels: {app: web, app: db}}",
            ": `app` is there twice, first on line 4: keep one",
            &Selector::Unreadable,
        ),
        (
            "mode: Permissive, selector: {matchLabels: {app: web}}, selector: {}",
            ": `selector` is there twice",
            &Selector::Unreadable,
        ),
        ("ports: [{port: 0, mode: Strict}]", "spec.ports[0].port: 0 is no port: 1 to 65535", &Selector::Namespace),
        ("ports: [{port: http, mode: Strict}]", "spec.ports[0].port: must be a whole number", &Selector::Namespace),
        ("ports: [{port: 80}]", "spec.ports[0]: missing field `mode`", &Selector::Namespace),
        ("ports: [{mode: Strict}]", "spec.ports[0]: missing field `port`", &Selector::Namespace),
        (
            "ports: [{port: 80, mode: Strict, name: a}]",
            "spec.ports[0].name: unknown field `name`",
            &Selector::Namespace,
        ),
        (
            "ports: [{port: 80, mode: Permissive}, {port: 80, mode: Strict}]",
            "spec.ports[1].port: 80 is listed already: name each port once",
            &Selector::Namespace,
        ),
    ];
    for (spec, problem, selector) in table {
        let (object, invalid, _) = modes(&format!("metadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n"));
        let expected = format!("4: {problem}");
        assert!(invalid.len() == 1 && invalid[0].starts_with(&expected), "{spec}:\n{invalid:?}\n{expected}");
        let object = object.unwrap_or_else(|| panic!("{spec}: gone"));
        assert_eq!((&object.says, &object.selector), (&Says::Rejected, selector), "{spec}");
    }
}

#[test]
fn of_many_ports_none_is_silently_left_out() {
    let ports: Vec<String> = (1..=PORTS_MAX + 1).map(|port| format!("{{port: {port}, mode: Strict}}")).collect();
    let (object, invalid, _) = modes(&format!("metadata: {{name: web}}\nspec: {{ports: [{}]}}\n", ports.join(", ")));
    assert_eq!(invalid, ["4: spec.ports: 129 entries: at most 128"]);
    assert_eq!(object.unwrap().says, Says::Rejected);
}

#[test]
fn a_name_nobody_could_use_still_speaks_for_its_targets() {
    for metadata in ["{name: Not_A_Name, namespace: shop}", "{namespace: shop}", "{name: '', namespace: shop}"] {
        let (object, invalid, _) = modes(&format!("metadata: {metadata}\nspec: {{mode: Permissive}}\n"));
        assert_eq!(invalid.len(), 1, "{metadata}: {invalid:?}");
        let object = object.unwrap();
        assert_eq!((&*object.namespace, &*object.name), ("shop", "f.yaml:1"), "{metadata}");
        assert_eq!((object.says, object.selector), (Says::Rejected, Selector::Namespace));
    }
    let other_version =
        "apiVersion: heddle.dev/v1beta9\nkind: MeshTLS\nmetadata: {name: web}\nspec: {mode: Permissive}\n";
    let reading = read("f.yaml", other_version.as_bytes());
    assert!(
        matches!(&reading.items[..], [item] if matches!(&item.object, Object::MeshTls(o) if o.says == Says::Rejected))
    );
}

#[test]
fn selectors_table() {
    let web = labels(&[("app", "web"), ("tier", "front")]);
    let table = [
        (Selector::Namespace, true),
        (Selector::Unreadable, true),
        (selected_by(&[("app", "web")]), true),
        (selected_by(&[("app", "web"), ("tier", "front")]), true),
        (selected_by(&[("app", "web"), ("tier", "back")]), false),
        (selected_by(&[("app", "web"), ("zone", "")]), false),
        (selected_by(&[("app", "Web")]), false),
    ];
    for (selector, expected) in table {
        assert_eq!(selector.matches(&web), expected, "{selector:?}");
    }
}

/// `name@level mode port=mode …`; level `n` (namespace) or `w` (workload); mode `-` for none, `!` for a rejected object.
fn object(text: &str) -> MeshTls {
    let mode = |text: &str| match text {
        "S" => Strict,
        "P" => Permissive,
        "D" => Disabled,
        other => panic!("no mode: {other}"),
    };
    let mut parts = text.split(' ');
    let (name, level) = parts.next().unwrap().split_once('@').unwrap();
    let said = parts.next().unwrap();
    let ports = parts.map(|part| part.split_once('=').unwrap()).map(|(p, m)| (p.parse().unwrap(), mode(m))).collect();
    MeshTls {
        namespace: "shop".into(),
        name: name.into(),
        created: None,
        selector: if level == "w" { selected_by(&[("app", "web")]) } else { Selector::Namespace },
        says: match said {
            "!" => Says::Rejected,
            "-" => Says::Modes { mode: None, ports },
            word => Says::Modes { mode: Some(mode(word)), ports },
        },
    }
}

fn shown(modes: &MtlsModes) -> String {
    let letter = |mode: MtlsMode| &mode.as_str()[..1];
    let ports = modes.ports.iter().map(|(port, mode)| format!(" {port}={}", letter(*mode)));
    modes.mode.map_or("-", letter).to_owned() + &ports.collect::<String>()
}

#[test]
fn whose_word_counts_table() {
    let table: [(&[&str], &str, &[&str]); 18] = [
        (&[], "-", &[]),
        (&["a@n S"], "S", &[]),
        (&["a@w P"], "P", &[]),
        // Workload over namespace, whichever is stricter.
        (&["a@n S", "b@w P"], "P", &[]),
        (&["a@n P", "b@w S"], "S", &[]),
        // A selecting object's mode over a namespace-wide one's port; its silence leaves the port in force.
        (&["a@n P 80=S", "b@w D"], "D", &[]),
        (&["a@n P 80=S", "b@w - 90=D"], "P 80=S 90=D", &[]),
        // A port over its level's mode, and a selecting object's port over all.
        (&["a@n S 80=P"], "S 80=P", &[]),
        (&["a@n S 80=P", "b@w - 80=D"], "S 80=D", &[]),
        (&["a@n - 80=S"], "- 80=S", &[]),
        // Several of one weight: the strictest.
        (&["a@n P", "b@n S"], "S", &["a spec.mode P<S b"]),
        (&["a@w P 80=D", "b@w D 80=P"], "P", &["a spec.ports[0].mode D<P b", "b spec.mode D<P a"]),
        (&["a@w S", "b@w - 80=P"], "S 80=P", &[]),
        (&["a@w - 80=S 90=D", "b@w - 90=P"], "- 80=S 90=P", &["a spec.ports[1].mode D<P b"]),
        // A rejected one: every port of its targets, at its own weight.
        (&["a@n !"], "S", &[]),
        (&["a@n !", "b@n P 80=P"], "S", &["b spec.mode P<S a", "b spec.ports[0].mode P<S a"]),
        (&["a@n !", "b@w P"], "P", &[]),
        (&["a@w !", "b@w P 80=S", "c@n D"], "S", &["b spec.mode P<S a"]),
    ];
    for (objects, expected, told) in table {
        let mut objects: Vec<MeshTls> = objects.iter().map(|text| object(text)).collect();
        for _ in 0..2 {
            let (modes, mut overruled) = resolve(objects.iter());
            assert_eq!(shown(&modes), expected, "{objects:?}");
            overruled.sort();
            let letter = |mode: MtlsMode| &mode.as_str()[..1];
            let said: Vec<String> = overruled
                .iter()
                .map(|o| format!("{} {} {}<{} {}", o.name, o.field, letter(o.mode), letter(o.stricter), o.by))
                .collect();
            assert_eq!(said, told, "{objects:?}");
            objects.reverse();
        }
    }
    let unreadable = MeshTls { selector: Selector::Unreadable, ..object("x@w !") };
    let (modes, _) = resolve([object("a@w P 80=D"), unreadable].iter());
    assert_eq!(shown(&modes), "S", "it might have been meant for this very pod");
}

/// What users copy must be right.
#[test]
fn the_examples_in_the_documentation_are_accepted() {
    let text = include_str!("../../../docs/mtls.md");
    let examples: Vec<&str> = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let mut kinds = Vec::new();
    for example in &examples {
        let reading = read("mtls.md", example.as_bytes());
        assert_eq!((reading.invalid, reading.warnings), (vec![], vec![]), "{example}");
        kinds.extend(reading.items.iter().map(|item| item.object.key().kind.as_str()));
    }
    assert_eq!(kinds, ["Mesh", "MeshTLS", "MeshTLS"]);
}

fn any_mode() -> impl Strategy<Value = MtlsMode> {
    prop_oneof![Just(Strict), Just(Permissive), Just(Disabled)]
}

fn any_object() -> impl Strategy<Value = MeshTls> {
    let says = prop_oneof![
        6 => (proptest::option::of(any_mode()), proptest::collection::btree_map(1u16..5, any_mode(), 0..4))
            .prop_map(|(mode, ports)| Says::Modes { mode, ports: ports.into_iter().collect() }),
        1 => Just(Says::Rejected),
    ];
    let selector = prop_oneof![
        3 => Just(Selector::Namespace), 3 => Just(selected_by(&[("app", "web")])), 1 => Just(Selector::Unreadable)
    ];
    ("[a-z]{3}", selector, says).prop_map(|(name, selector, says)| MeshTls {
        namespace: "shop".into(),
        name: name.as_str().into(),
        created: None,
        selector,
        says,
    })
}

/// The promise, word by word: what a port's mode must be.
fn expected(objects: &[MeshTls], port: u16) -> Option<MtlsMode> {
    let level = |selecting: bool| objects.iter().filter(move |o| o.selector.selects_workloads() == selecting);
    let said = |selecting: bool, subject: Option<u16>| {
        let word = |o: &MeshTls| match &o.says {
            Says::Rejected => Some(Strict),
            Says::Modes { mode, ports } => match subject {
                None => *mode,
                Some(port) => ports.iter().find(|(p, _)| *p == port).map(|(_, mode)| *mode),
            },
        };
        level(selecting).filter_map(word).min()
    };
    said(true, Some(port))
        .or_else(|| said(true, None))
        .or_else(|| said(false, Some(port)))
        .or_else(|| said(false, None))
}

proptest! {
    #[test]
    fn any_objects_in_any_order_give_what_is_promised(
        mut objects in proptest::collection::vec(any_object(), 0..6), turn in 0usize..6, default in any_mode(),
    ) {
        let mesh = heddle_model::MeshConfig { mtls: default, ..Default::default() };
        let (modes, mut overruled) = resolve(objects.iter());
        for port in 1..6 {
            prop_assert_eq!(modes.of(port, &mesh), expected(&objects, port).unwrap_or(default), "port {}", port);
        }
        // Nothing is told of a word that is in force, and nothing that is not is kept quiet.
        for o in &overruled {
            prop_assert!(o.stricter < o.mode);
        }
        if !objects.is_empty() {
            let by = turn % objects.len();
            objects.rotate_left(by);
        }
        let (again, mut told) = resolve(objects.iter());
        overruled.sort();
        told.sort();
        prop_assert_eq!((modes, overruled), (again, told));
    }
}
