//! NetworkPolicy objects: what Kubernetes reads in them, what it refuses, and what is left of a rejected one.

use super::*;
use crate::object::{Object, read};

fn policy(yaml: &str) -> (Option<Dated<NetworkPolicy>>, Vec<String>) {
    let text = format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{yaml}");
    let reading = read("f.yaml", text.as_bytes());
    assert_eq!(reading.warnings, []);
    let object = reading.items.iter().find_map(|item| match &item.object {
        Object::NetworkPolicy(policy) => Some(policy.clone()),
        _ => None,
    });
    let invalid = reading.invalid.iter().map(|i| format!("{}: {}: {}", i.line, i.field, i.message));
    (object, invalid.collect())
}

/// The policy `shop/web` with this `spec`, and what is wrong with it.
fn spec(spec: &str) -> (NetworkPolicy, Vec<String>) {
    let (object, invalid) = policy(&format!("metadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n"));
    let object = object.unwrap_or_else(|| panic!("{spec}: gone"));
    (NetworkPolicy::clone(&object.policy), invalid)
}

fn good(text: &str) -> NetworkPolicy {
    let (policy, invalid) = spec(text);
    assert_eq!((invalid, policy.is_rejected), (vec![], false), "{text}");
    policy
}

fn selector(requirements: &[(&str, Operator)]) -> LabelSelector {
    let of = |(key, operator): &(&str, Operator)| Requirement { key: (*key).into(), operator: operator.clone() };
    LabelSelector(requirements.iter().map(of).collect())
}

fn one_of(values: &[&str]) -> Operator {
    Operator::In(values.iter().map(|value| Arc::from(*value)).collect())
}

#[test]
fn every_field_is_read() {
    let (object, invalid) = policy(
        r#"
metadata: {name: web, namespace: shop, creationTimestamp: 2026-08-09T10:11:12Z, generation: 1, managedFields: [{a: b}]}
spec:
  podSelector:
    matchLabels: {app: web}
    matchExpressions:
    - {key: tier, operator: In, values: [front, back]}
    - {key: a/b, operator: NotIn, values: ['']}
    - {key: c, operator: Exists}
    - {key: d, operator: DoesNotExist, values: []}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.3.4/32]}
    - podSelector: {matchLabels: {app: a}}
    - namespaceSelector: {}
    - namespaceSelector: {matchLabels: {team: x}}
      podSelector: {}
    ports: [{port: 80}, {protocol: TCP, port: 8000, endPort: 8010}, {port: http}, {protocol: UDP, port: 53}, {}]
  egress:
  - to: [{ipBlock: {cidr: 'fd00::/8'}}]
status: {}
"#,
    );
    assert_eq!(invalid, Vec::<String>::new());
    let object = object.unwrap();
    assert_eq!(object.created.map(heddle_model::Timestamp::unix), Some(1_786_270_272));
    let policy = object.policy;
    assert_eq!((&*policy.namespace, &*policy.name, policy.is_rejected), ("shop", "web", false));
    let expected = selector(&[
        ("app", one_of(&["web"])),
        ("tier", one_of(&["back", "front"])),
        ("a/b", Operator::NotIn([Arc::from("")].into_iter().collect())),
        ("c", Operator::Exists),
        ("d", Operator::DoesNotExist),
    ]);
    assert_eq!(policy.pods, expected);
    let [rule] = &policy.ingress.as_ref().unwrap()[..] else { panic!("{policy:?}") };
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let every = LabelSelector::default;
    assert_eq!(
        rule.peers,
        [
            NetworkPeer::Block { cidr: net("10.0.0.0/8"), except: vec![net("10.1.0.0/16"), net("10.2.3.4/32")] },
            NetworkPeer::Pods { namespaces: None, pods: selector(&[("app", one_of(&["a"]))]) },
            NetworkPeer::Pods { namespaces: Some(every()), pods: every() },
            NetworkPeer::Pods { namespaces: Some(selector(&[("team", one_of(&["x"]))])), pods: every() },
        ]
    );
    use NetworkPort::{Named, Range};
    let ports = vec![Range(80, 80), Range(8000, 8010), Named("http".into()), Range(1, 65535)];
    assert_eq!(rule.ports, Some(ports));
    let egress = NetworkRule { peers: vec![NetworkPeer::Block { cidr: net("fd00::/8"), except: vec![] }], ports: None };
    assert_eq!(policy.egress, Some(vec![egress]));
}

/// `SetDefaults_NetworkPolicy`: for whom nothing is said, and which direction a policy speaks of.
#[test]
fn directions_table() {
    let any = NetworkRule::default;
    let table = [
        ("", Some(vec![]), None),
        ("ingress: []", Some(vec![]), None),
        ("ingress: [{}]", Some(vec![any()]), None),
        ("egress: [{}]", Some(vec![]), Some(vec![any()])),
        // An empty list is an absent one: `len(Egress) != 0`.
        ("egress: []", Some(vec![]), None),
        ("policyTypes: []", Some(vec![]), None),
        ("policyTypes: [], egress: [{}]", Some(vec![]), Some(vec![any()])),
        ("policyTypes: [Ingress]", Some(vec![]), None),
        ("policyTypes: [Ingress], egress: [{}]", Some(vec![]), None),
        ("policyTypes: [Egress]", None, Some(vec![])),
        ("policyTypes: [Egress], ingress: [{}]", None, Some(vec![])),
        ("policyTypes: [Egress, Egress], egress: [{}]", None, Some(vec![any()])),
        ("policyTypes: [Egress, Ingress], ingress: [{}]", Some(vec![any()]), Some(vec![])),
    ];
    for (text, ingress, egress) in table {
        let policy = good(text);
        assert_eq!((policy.ingress, policy.egress), (ingress, egress), "{text}");
        assert_eq!(policy.pods, LabelSelector::default(), "{text}: every pod of the namespace");
    }
}

#[test]
fn what_is_absent_is_everything_as_in_kubernetes_table() {
    for text in ["{}", "{from: []}", "{from: , ports: }", "{ports: []}", "{from: [], ports: []}"] {
        let policy = good(&format!("ingress: [{text}]"));
        assert_eq!(policy.ingress, Some(vec![NetworkRule::default()]), "{text}");
    }
    let absent = good("podSelector: , policyTypes: , ingress: , egress: ");
    assert_eq!((absent.pods, absent.ingress, absent.egress), (LabelSelector::default(), Some(vec![]), None));
    let peer = good("ingress: [{from: [{podSelector: {}, namespaceSelector: }]}]");
    let own = NetworkPeer::Pods { namespaces: None, pods: LabelSelector::default() };
    assert_eq!(peer.ingress.unwrap()[0].peers, [own]);
}

#[test]
fn ports_of_other_protocols_leave_none_not_all() {
    let ports = |text: &str| good(&format!("ingress: [{{ports: [{text}]}}]")).ingress.unwrap().remove(0).ports;
    assert_eq!(ports("{protocol: UDP, port: 53}"), Some(vec![]));
    assert_eq!(ports("{protocol: SCTP}"), Some(vec![]));
    assert_eq!(ports("{protocol: UDP, port: 53}, {port: 53}"), Some(vec![NetworkPort::Range(53, 53)]));
    assert_eq!(
        ports("{port: 1, endPort: 1}, {port: 65535}"),
        Some(vec![NetworkPort::Range(1, 1), NetworkPort::Range(65535, 65535)])
    );
}

#[test]
fn networks_are_as_addresses_are_held_against_them() {
    let policy = good("egress: [{to: [{ipBlock: {cidr: 10.1.2.3/8, except: ['::ffff:10.1.0.0/112']}}]}]");
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let block = NetworkPeer::Block { cidr: net("10.0.0.0/8"), except: vec![net("10.1.0.0/16")] };
    assert_eq!(policy.egress.unwrap()[0].peers, [block]);
}

/// What is wrong; `web` where the selector is still read, else every pod is isolated.
#[test]
fn rejections_table() {
    let table = [
        ("web, policyTypes: [ingress]", "spec.policyTypes[0]: `ingress` is unknown: `Ingress` or `Egress`"),
        ("web, policyTypes: [Ingress, Egress, Ingress]", "spec.policyTypes: 3 entries: `Ingress` and `Egress` are all"),
        ("web, policyTypes: Ingress", "spec.policyTypes: must be a list, not the text `Ingress`"),
        ("web, policyType: [Ingress]", "spec.policyType: unknown field `policyType`, expected one of `podSelector`"),
        ("web, ingress: {}", "spec.ingress: must be a list, not a mapping"),
        ("web, ingress: [{form: []}]", "spec.ingress[0].form: unknown field `form`, expected `from` or `ports`"),
        ("web, ingress: [{to: []}]", "spec.ingress[0].to: unknown field `to`"),
        ("web, egress: [{from: []}]", "spec.egress[0].from: unknown field `from`"),
        ("web, ingress: [null]", "spec.ingress[0]: must be a mapping, not nothing"),
        ("web, ingress: [{from: [{}]}]", "spec.ingress[0].from[0]: says nothing: one of `podSelector`,"),
        ("web, ingress: [{from: [{podSelector: }]}]", "spec.ingress[0].from[0]: says nothing"),
        (
            "web, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
            "spec.ingress[0].from[0].ipBlock: beside a selector: one or the other",
        ),
        (
            "web, egress: [{to: [{namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
            "spec.egress[0].to[0].ipBlock: beside a selector",
        ),
        ("web, ingress: [{from: [{namespaces: {}}]}]", "spec.ingress[0].from[0].namespaces: unknown field"),
        ("web, ingress: [{from: [{ipBlock: {}}]}]", "spec.ingress[0].from[0].ipBlock: missing field `cidr`"),
        (
            "web, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]",
            "spec.ingress[0].from[0].ipBlock.cidr: `10.0.0.1` is no",
        ),
        ("web, ingress: [{from: [{ipBlock: {cidr: ''}}]}]", "spec.ingress[0].from[0].ipBlock.cidr: `` is no network"),
        (
            "web, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]",
            "spec.ingress[0].from[0].ipBlock.except[0]: `11.0.0.0/16` is no part of `10.0.0.0/8`",
        ),
        (
            "web, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]",
            "spec.ingress[0].from[0].ipBlock.except[0]: `10.0.0.0/8` is no part of",
        ),
        (
            "web, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/7]}}]}]",
            "spec.ingress[0].from[0].ipBlock.except[0]: `10.0.0.0/7` is no part of",
        ),
        (
            "web, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/8']}}]}]",
            "spec.ingress[0].from[0].ipBlock.except[0]: `fd00::/8` is no part of",
        ),
        ("web, ingress: [{ports: [{port: 0}]}]", "spec.ingress[0].ports[0].port: 0 is no port: 1 to 65535"),
        ("web, ingress: [{ports: [{port: 65536}]}]", "spec.ingress[0].ports[0].port: 65536 is no port"),
        ("web, ingress: [{ports: [{port: ''}]}]", "spec.ingress[0].ports[0].port: `` is no name of a port"),
        ("web, ingress: [{ports: [{port: '80'}]}]", "spec.ingress[0].ports[0].port: `80` is no name of a port"),
        ("web, ingress: [{ports: [{port: HTTP}]}]", "spec.ingress[0].ports[0].port: `HTTP` is no name of a port"),
        ("web, ingress: [{ports: [{port: a-name-that-is-too-long}]}]", "spec.ingress[0].ports[0].port: `a-name-that"),
        ("web, ingress: [{ports: [{port: [80]}]}]", "spec.ingress[0].ports[0].port: invalid type: sequence"),
        ("web, ingress: [{ports: [{protocol: tcp}]}]", "spec.ingress[0].ports[0].protocol: `tcp` is unknown: `TCP`"),
        ("web, ingress: [{ports: [{endPort: 80}]}]", "spec.ingress[0].ports[0].endPort: needs a number as `port`"),
        ("web, ingress: [{ports: [{port: http, endPort: 80}]}]", "spec.ingress[0].ports[0].endPort: needs a number"),
        (
            "web, ingress: [{ports: [{port: 80, endPort: 79}]}]",
            "spec.ingress[0].ports[0].endPort: 79 is before `port`, 80",
        ),
        ("web, ingress: [{ports: [{port: 80, endPort: 65536}]}]", "spec.ingress[0].ports[0].endPort: 65536 is no port"),
        ("web, ingress: [{ports: [{protocol: UDP, port: 0}]}]", "spec.ingress[0].ports[0].port: 0 is no port"),
        // Told also where the direction is not in force.
        ("web, policyTypes: [Ingress], egress: [{ports: [{port: 0}]}]", "spec.egress[0].ports[0].port: 0 is no port"),
        ("podSelector: web", "spec.podSelector: must be a mapping, not the text `web`"),
        ("podSelector: {app: web}", "spec.podSelector.app: unknown field `app`"),
        ("podSelctor: {}", "spec.podSelctor: unknown field `podSelctor`"),
        ("podSelector: {matchLabels: {app: }}", "spec.podSelector.matchLabels.app: has no value: give one, or"),
        ("podSelector: {matchLabels: {app: a b}}", "spec.podSelector.matchLabels.app: `a b` is no label value"),
        ("podSelector: {matchLabels: {'': a}}", "spec.podSelector.matchLabels[]: `` is no name of a label"),
        (
            "podSelector: {matchExpressions: [{key: a, operator: In}]}",
            "spec.podSelector.matchExpressions[0].values: `In` needs values: one at least",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            "spec.podSelector.matchExpressions[0].values: `NotIn` needs values",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            "spec.podSelector.matchExpressions[0].values: `Exists` takes no values: leave them out",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}",
            "spec.podSelector.matchExpressions[0].values: `DoesNotExist` takes no values",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}",
            "spec.podSelector.matchExpressions[0].operator: `Gt` is unknown: `In` or `NotIn` or",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: In, values: [b c]}]}",
            "spec.podSelector.matchExpressions[0].values[0]: `b c` is no label value",
        ),
        (
            "podSelector: {matchExpressions: [{key: a b, operator: Exists}]}",
            "spec.podSelector.matchExpressions[0].key: `a b` is no name of a label",
        ),
        (
            "podSelector: {matchExpressions: [{operator: Exists}]}",
            "spec.podSelector.matchExpressions[0]: missing field `key`",
        ),
        (
            "web, ingress: [{from: [{namespaceSelector: {matchLabels: {a: }}}]}]",
            "spec.ingress[0].from[0].namespaceSelector.matchLabels.a: has no value",
        ),
        (
            "web, egress: [{to: [{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}]}]",
            "spec.egress[0].to[0].podSelector.matchExpressions[0].operator: `in` is unknown",
        ),
    ];
    let web = selector(&[("app", one_of(&["web"]))]);
    for (text, problem) in table {
        let rest = text.strip_prefix("web, ");
        let yaml = rest.map(|rest| format!("podSelector: {{matchLabels: {{app: web}}}}, {rest}"));
        let (policy, invalid) = spec(yaml.as_deref().unwrap_or(text));
        let expected = format!("4: {problem}");
        assert!(invalid.len() == 1 && invalid[0].starts_with(&expected), "{text}:\n{invalid:?}\n{expected}");
        let pods = if rest.is_some() { web.clone() } else { LabelSelector::default() };
        let both_ways = (Some(vec![]), Some(vec![]));
        assert_eq!((policy.is_rejected, policy.pods), (true, pods), "{text}");
        assert_eq!((policy.ingress, policy.egress), both_ways, "{text}");
    }
}

#[test]
fn a_selector_that_is_said_twice_is_not_believed() {
    for text in [
        "podSelector: {matchLabels: {app: web}}, podSelector: {}",
        "podSelector: {matchLabels: {app: web, app: db}}",
        "podSelector: {matchExpressions: [{key: a, key: b, operator: Exists}]}",
    ] {
        let (policy, invalid) = spec(text);
        assert_eq!((invalid.len(), policy.is_rejected, policy.pods), (1, true, LabelSelector::default()), "{text}");
    }
    let (policy, _) = spec("podSelector: {matchLabels: {app: web}}, ingress: [], ingress: []");
    assert_eq!(policy.pods, selector(&[("app", one_of(&["web"]))]));
}

#[test]
fn every_list_is_bounded() {
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let table = [
        (format!("ingress: [{}]", many("{}", RULES_MAX + 1)), "spec.ingress: 1025 entries: at most 1024"),
        (
            format!("egress: [{{to: [{}]}}]", many("{podSelector: {}}", LISTED_MAX + 1)),
            "spec.egress[0].to: 16385 entries: at most 16384",
        ),
        (
            format!("podSelector: {{matchExpressions: [{}]}}", many("{key: a, operator: Exists}", EXPRESSIONS_MAX + 1)),
            "spec.podSelector.matchExpressions: 1025 entries: at most 1024",
        ),
    ];
    for (text, problem) in table {
        let (policy, invalid) = spec(&text);
        assert_eq!((invalid, policy.is_rejected), (vec![format!("4: {problem}")], true));
    }
}

#[test]
fn one_without_name_or_of_another_version_still_isolates_its_pods() {
    let (object, invalid) = policy("metadata: {namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}}\n");
    let policy = object.unwrap().policy;
    assert_eq!((invalid.len(), &*policy.namespace, &*policy.name), (1, "shop", "f.yaml:1"));
    assert_eq!((policy.is_rejected, &policy.pods), (true, &selector(&[("app", one_of(&["web"]))])));
    let other = "apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {}\n";
    let reading = read("f.yaml", other.as_bytes());
    assert!(matches!(&reading.items[..], [item] if matches!(&item.object, Object::NetworkPolicy(o)
        if o.policy.is_rejected)));
}

#[test]
fn without_a_spec_every_pod_of_the_namespace_is_isolated_for_ingress() {
    let (object, invalid) = policy("metadata: {name: web, namespace: shop}\n");
    let policy = object.unwrap().policy;
    assert_eq!((invalid, policy.is_rejected), (vec![], false));
    assert_eq!((&policy.ingress, &policy.egress, &policy.pods), (&Some(vec![]), &None, &LabelSelector::default()));
}
