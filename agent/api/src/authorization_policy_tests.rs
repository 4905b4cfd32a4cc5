//! AuthorizationPolicy objects: fields, rejections and what is left of them.

use std::collections::BTreeMap;

use heddle_model::policy::{
    HostMatch, IdentityMatch, PathMatch, Peer, PortAccess, Principal, Request, Rule, TextMatch,
};

use super::*;
use crate::object::{Object, read};

fn policy(yaml: &str) -> (Option<Dated<AuthorizationPolicy>>, Vec<String>, Vec<String>) {
    let text = format!("apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\n{yaml}");
    let reading = read("f.yaml", text.as_bytes());
    let told = |list: &[heddle_model::InvalidObject]| {
        list.iter().map(|i| format!("{}: {}: {}", i.line, i.field, i.message)).collect()
    };
    let object = reading.items.iter().find_map(|item| match &item.object {
        Object::AuthorizationPolicy(policy) => Some(policy.clone()),
        _ => None,
    });
    (object, told(&reading.invalid), told(&reading.warnings))
}

/// The policy `shop/web` with this `spec`, and what is wrong with it.
fn spec(spec: &str) -> (AuthorizationPolicy, Vec<String>) {
    let (object, invalid, _) = policy(&format!("metadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n"));
    let object = object.unwrap_or_else(|| panic!("{spec}: gone"));
    (AuthorizationPolicy::clone(&object.policy), invalid)
}

fn labels(pairs: &[(&str, &str)]) -> Target {
    Target::Labels(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

fn rules(policy: &AuthorizationPolicy) -> &[Rule] {
    match &policy.rules {
        Rules::Any(rules) => rules,
        Rules::Rejected => panic!("rejected: {policy:?}"),
    }
}

const FULL: &str = r#"
metadata: {name: web, namespace: shop, creationTimestamp: 2026-08-09T10:11:12Z, labels: {any: thing}}
spec:
  action: Deny
  dryRun: true
  selector: {matchLabels: {app: web, tier: ''}}
  rules:
  - from:
    - identities: ["spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/*", "spiffe://*"]
      notIdentities: ["spiffe://a.b-c/x"]
      namespaces: [shop]
      notNamespaces: [other]
      serviceAccounts: [web, other/web.a]
      notServiceAccounts: [db]
      cidrs: [10.0.0.0/8, 192.0.2.1, "fd00::/8", "::1"]
      notCidrs: ["0.0.0.0/0"]
    - namespaces: [b]
    to:
    - ports: [8080, 65535]
      notPorts: [1]
      hosts: [web.shop.svc.cluster.local, "*.Example.com", 10.0.0.1, "[fd00::1]"]
      notHosts: [a]
      methods: [GET, M-SEARCH]
      notMethods: [PUT]
      paths: [{exact: /a}, {prefix: /b/}, {template: "/users/{id}/{**}"}, {regex: "/v[0-9]+/.*"}]
      notPaths: [{exact: /}]
      headers: [{name: X-Tenant, exact: a}, {name: x-debug, present: true}, {name: x, prefix: p}, {name: y, regex: r}]
      notHeaders: [{name: z, exact: ''}]
  - {}
"#;

#[test]
fn every_field_is_read() {
    let (object, invalid, warnings) = policy(FULL);
    assert_eq!((invalid, warnings), (vec![], vec![]));
    let object = object.unwrap();
    assert_eq!(object.created.map(heddle_model::Timestamp::unix), Some(1_786_270_272));
    let policy = object.policy;
    assert_eq!((&*policy.namespace, &*policy.name), ("shop", "web"));
    assert_eq!((policy.action, policy.dry_run), (Action::Deny, true));
    assert_eq!(policy.target, labels(&[("app", "web"), ("tier", "")]));
    let [first, second] = rules(&policy) else { panic!("{policy:?}") };
    assert_eq!(second, &Rule::default());
    let [from, b] = &first.from[..] else { panic!("{policy:?}") };
    assert_eq!(b.namespaces, ["b".into()]);
    let prefix = |text: &str| IdentityMatch::Prefix(text.into());
    let exact = |text: &str| IdentityMatch::Exact(text.into());
    assert_eq!(
        from.identities,
        [
            exact("spiffe://cluster.local/ns/shop/sa/web"),
            prefix("spiffe://cluster.local/ns/shop/"),
            prefix("spiffe://")
        ]
    );
    assert_eq!(from.not_identities, [exact("spiffe://a.b-c/x")]);
    assert_eq!((&from.namespaces[..], &from.not_namespaces[..]), (&["shop".into()][..], &["other".into()][..]));
    assert_eq!(from.service_accounts, [("shop".into(), "web".into()), ("other".into(), "web.a".into())]);
    assert_eq!(from.not_service_accounts, [("shop".into(), "db".into())]);
    let nets = |list: &[ipnet::IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(nets(&from.cidrs), ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8", "::1/128"]);
    assert_eq!(nets(&from.not_cidrs), ["0.0.0.0/0"]);
    let [to] = &first.to[..] else { panic!("{policy:?}") };
    assert_eq!((&to.ports[..], &to.not_ports[..]), (&[8080, 65535][..], &[1][..]));
    let host = |text: &str| HostMatch::Exact(text.into());
    let suffix = HostMatch::Suffix(".example.com".into());
    assert_eq!(to.hosts, [host("web.shop.svc.cluster.local"), suffix, host("10.0.0.1"), host("fd00::1")]);
    assert_eq!(to.not_hosts, [host("a")]);
    assert_eq!((&to.methods[..], &to.not_methods[..]), (&["GET".into(), "M-SEARCH".into()][..], &["PUT".into()][..]));
    assert_eq!(to.paths[..2], [PathMatch::Exact("/a".into()), PathMatch::Prefix("/b".into())]);
    assert!(to.paths[2].matches("/users/7/a/b") && to.paths[3].matches("/v12/x") && !to.paths[3].matches("/a/v12/x"));
    assert_eq!(to.not_paths, [PathMatch::Exact("/".into())]);
    let header = |at: usize| (&*to.headers[at].name, &to.headers[at].value);
    assert_eq!(header(0), ("x-tenant", &TextMatch::Exact("a".into())));
    assert_eq!(header(1), ("x-debug", &TextMatch::Present));
    assert_eq!(header(2), ("x", &TextMatch::Prefix("p".into())));
    assert!(matches!(header(3), ("y", TextMatch::Regex(_))));
    assert_eq!(to.not_headers.len(), 1);
}

#[test]
fn defaults_and_targets_table() {
    let table = [
        ("", Target::Namespace),
        ("selector: {}", Target::Namespace),
        ("selector: {matchLabels: {}}", Target::Namespace),
        ("selector: {matchLabels: {app: web}}", labels(&[("app", "web")])),
        ("targetRefs: [{kind: Service, name: web}]", Target::Service("web".into())),
        ("targetRefs: [{group: '', kind: Service, name: web}]", Target::Service("web".into())),
    ];
    for (text, target) in table {
        let (policy, invalid) = spec(text);
        assert_eq!((invalid, &policy.target), (vec![], &target), "{text}");
        assert_eq!((policy.action, policy.dry_run), (Action::Allow, false), "{text}");
        assert_eq!(rules(&policy), [], "{text}");
    }
}

#[test]
fn one_that_can_match_nothing_is_warned_of() {
    for action in ["Deny", "Audit"] {
        let (_, invalid, warnings) = policy(&format!("metadata: {{name: a}}\nspec: {{action: {action}, rules: []}}\n"));
        let told =
            format!("4: spec: has no `rules`: without any {action} has no effect; `rules: [{{}}]` matches everything");
        assert_eq!((invalid, warnings), (vec![], vec![told]));
    }
}

/// What is wrong, and whom it denies then.
#[test]
fn rejections_table() {
    let web = &labels(&[("app", "web")]);
    let service = &Target::Service("web".into());
    let (all, unreadable) = (&Target::Namespace, &Target::Unreadable);
    let table = [
        ("action: deny", "spec.action: `deny` is unknown: `Allow` or `Deny` or `Audit`", all),
        ("action: DENY, selector: {matchLabels: {app: web}}", "spec.action: `DENY` is unknown", web),
        ("action: [Deny], targetRefs: [{kind: Service, name: web}]", "spec.action: must be text, not a list", service),
        ("dryRun: 'true'", "spec.dryRun: must be true or false, not the text `true`", all),
        ("acton: Deny", "spec.acton: unknown field `acton`, expected one of `action`, `dryRun`,", unreadable),
        ("acton: Deny, selector: {matchLabels: {app: web}}", "spec.acton: unknown field", web),
        ("selector: {app: web}", "spec.selector.app: unknown field `app`", unreadable),
        ("selector: {matchLabels: {app: 1}}", "spec.selector.matchLabels.app: must be text", unreadable),
        ("selector: {matchLabels: {app: }}", "spec.selector.matchLabels.app: has no value: give it one", unreadable),
        ("selector: {matchLabels: {app: a b}}", "spec.selector.matchLabels.app: `a b` is no label value", unreadable),
        ("selector: {matchLabels: {a b: c}}", "spec.selector.matchLabels.a b: `a b` is no name of a label", unreadable),
        ("selector: ", "spec.selector: has no value: give it one, or leave it out", unreadable),
        ("selector: {matchLabels: }", "spec.selector.matchLabels: has no value", all),
        ("action: ", "spec.action: has no value", all),
        ("rules: ", "spec.rules: has no value", all),
        (
            "selector: {matchLabels: {app: web}}, targetRefs: [{kind: Service, name: web}]",
            "spec.targetRefs: beside `selector`: one or the other",
            unreadable,
        ),
        ("targetRefs: []", "spec.targetRefs: 0 entries: exactly one", unreadable),
        (
            "targetRefs: [{kind: Service, name: a}, {kind: Service, name: b}]",
            "spec.targetRefs: 2 entries: exactly one, and a policy for each Service",
            unreadable,
        ),
        (
            "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: a}]",
            "spec.targetRefs[0].kind: `HTTPRoute` of group gateway.networking.k8s.io is not supported yet: a Service",
            unreadable,
        ),
        ("targetRefs: [{kind: Pod, name: a}]", "spec.targetRefs[0].kind: `Pod` is not supported yet", unreadable),
        ("targetRefs: [{kind: Service, name: A}]", "spec.targetRefs[0].name: `A` is no name of a Service", unreadable),
        ("targetRefs: [{kind: Service}]", "spec.targetRefs[0]: missing field `name`", unreadable),
        (
            "targetRefs: [{kind: Service, name: a, sectionName: b}]",
            "spec.targetRefs[0].sectionName: unknown field",
            unreadable,
        ),
        ("targetRefs: {kind: Service, name: a}", "spec.targetRefs: must be a list, not a mapping", unreadable),
        ("rules: [{}], selector: {matchLabels: {app: web}}, rule: []", "spec.rule: unknown field `rule`", web),
    ];
    for (text, problem, target) in table {
        let (policy, invalid) = spec(text);
        let expected = format!("4: {problem}");
        assert!(invalid.len() == 1 && invalid[0].starts_with(&expected), "{text}:\n{invalid:?}\n{expected}");
        assert_eq!((&policy.rules, &policy.target), (&Rules::Rejected, target), "{text}");
        assert!(policy.action == Action::Allow && !policy.dry_run, "{text}");
    }
}

/// What is wrong inside a rule. `^` stands for `from` and `$` for `to` of the first one.
#[test]
fn rejected_rules_table() {
    let table = [
        ("[null]", "[0]: must be a mapping, not nothing"),
        ("[{form: []}]", "[0].form: unknown field `form`, expected `from` or `to`"),
        ("[{from: }]", "[0].from: has no value: give it one, or leave it out"),
        ("[{from: []}]", "[0].from: is empty, and so it matches everybody: leave `from` out, or say who"),
        ("[{from: [{}]}]", "^[0]: is empty, and so it matches everybody: leave `from` out"),
        ("[{from: [{namespaces: [a]}, {}]}]", "^[1]: is empty, and so it matches everybody"),
        ("[{to: []}]", "[0].to: is empty, and so it matches everything: leave `to` out, or say what"),
        ("[{to: [{}]}]", "$[0]: is empty, and so it matches everything: leave `to` out"),
        ("[{from: [{identities: []}]}]", "^[0].identities: is empty, and would not restrict anything: leave it out"),
        ("[{from: [{identities: }]}]", "^[0].identities: has no value"),
        ("[{from: [{identity: [a]}]}]", "^[0].identity: unknown field `identity`, expected one of `identities`"),
        ("[{from: [{identities: ['*']}]}]", "^[0].identities[0]: `*` does not begin with `spiffe://`"),
        ("[{from: [{identities: [shop/web]}]}]", "^[0].identities[0]: `shop/web` does not begin with `spiffe://`"),
        ("[{from: [{identities: ['SPIFFE://a/b']}]}]", "^[0].identities[0]: `SPIFFE://a/b` does not begin"),
        ("[{from: [{identities: ['spiffe://a']}]}]", "^[0].identities[0]: `spiffe://a` is no SPIFFE id"),
        ("[{from: [{identities: ['spiffe:///a']}]}]", "^[0].identities[0]: `spiffe:///a` is no SPIFFE id"),
        ("[{from: [{identities: ['spiffe://a/b/']}]}]", "^[0].identities[0]: `spiffe://a/b/` is no SPIFFE id"),
        ("[{from: [{identities: ['spiffe://a//b*']}]}]", "^[0].identities[0]: `spiffe://a//b*` is no SPIFFE id"),
        ("[{from: [{identities: ['spiffe://a/../b']}]}]", "^[0].identities[0]: `spiffe://a/../b` is no SPIFFE id"),
        ("[{from: [{identities: ['spiffe://A/b']}]}]", "^[0].identities[0]: `spiffe://A/b` is no SPIFFE id"),
        ("[{from: [{identities: ['spiffe://a/b c']}]}]", "^[0].identities[0]: `spiffe://a/b c` is no SPIFFE id"),
        (
            "[{from: [{notIdentities: ['spiffe://a/*/b']}]}]",
            "^[0].notIdentities[0]: `spiffe://a/*/b` has a `*` that is",
        ),
        ("[{from: [{namespaces: ['*']}]}]", "^[0].namespaces[0]: `*` is no name of a namespace"),
        ("[{from: [{notNamespaces: ['']}]}]", "^[0].notNamespaces[0]: `` is no name of a namespace"),
        ("[{from: [{serviceAccounts: [a/b/c]}]}]", "^[0].serviceAccounts[0]: `a/b/c` is no ServiceAccount: `name` in"),
        ("[{from: [{notServiceAccounts: [/b]}]}]", "^[0].notServiceAccounts[0]: `/b` is no ServiceAccount"),
        (
            "[{from: [{cidrs: [10.0.0.1/8]}]}]",
            "^[0].cidrs[0]: `10.0.0.1/8` is not the network's own address: write `10.0.0.0/8`",
        ),
        (
            "[{from: [{cidrs: ['::ffff:10.0.0.0/104']}]}]",
            "^[0].cidrs[0]: `::ffff:10.0.0.0/104` is not the network's own address: write `10.0.0.0/8`",
        ),
        (
            "[{from: [{cidrs: ['::ffff:10.0.0.1']}]}]",
            "^[0].cidrs[0]: `::ffff:10.0.0.1/128` is not the network's own address: write `10.0.0.1/32`",
        ),
        ("[{from: [{notCidrs: [10.0.0.0/33]}]}]", "^[0].notCidrs[0]: `10.0.0.0/33` is no network such as"),
        ("[{from: [{cidrs: [web]}]}]", "^[0].cidrs[0]: `web` is no network such as `10.0.0.0/8`, nor an address"),
        ("[{to: [{ports: [0]}]}]", "$[0].ports[0]: 0 is no port: 1 to 65535"),
        ("[{to: [{ports: [65536]}]}]", "$[0].ports[0]: 65536 is no port"),
        ("[{to: [{ports: [80, 15006]}]}]", "$[0].ports[1]: 15006 is a port of the agent"),
        ("[{to: [{notPorts: [15001]}]}]", "$[0].notPorts[0]: 15001 is a port of the agent"),
        ("[{to: [{ports: ['80']}]}]", "$[0].ports[0]: must be a whole number, not the text `80`"),
        ("[{to: [{ports: 80}]}]", "$[0].ports: must be a list, not the number 80"),
        ("[{to: [{hosts: ['*']}]}]", "$[0].hosts[0]: `*` is not a host name, nor `*.` and one"),
        ("[{to: [{hosts: ['a.*']}]}]", "$[0].hosts[0]: `a.*` is not a host name"),
        (
            "[{to: [{notHosts: ['web:80']}]}]",
            "$[0].notHosts[0]: `web:80` is not a host name, nor `*.` and one: leave the port out",
        ),
        ("[{to: [{methods: [get]}]}]", "$[0].methods[0]: `get` never matches, as case matters in methods: write `GET`"),
        ("[{to: [{notMethods: ['*']}]}]", "$[0].notMethods[0]: `*` is no method such as `GET`"),
        ("[{to: [{paths: [/a]}]}]", "$[0].paths[0]: must be a mapping, not the text `/a`"),
        ("[{to: [{paths: [{}]}]}]", "$[0].paths[0]: exactly one of `exact`, `prefix`, `template`, `regex` is needed"),
        ("[{to: [{paths: [{exact: /a, prefix: /b}]}]}]", "$[0].paths[0]: exactly one of"),
        ("[{to: [{paths: [{exact: a}]}]}]", "$[0].paths[0]: `a`: does not begin with `/`"),
        (
            "[{to: [{paths: [{exact: /a//b}]}]}]",
            "$[0].paths[0]: `/a//b`: requests have this path as `/a/b`: write that",
        ),
        (
            "[{to: [{notPaths: [{prefix: /a/../b}]}]}]",
            "$[0].notPaths[0]: `/a/../b`: requests have this path as `/b`: write that",
        ),
        (
            "[{to: [{paths: [{exact: '/a%2fb'}]}]}]",
            "$[0].paths[0]: `/a%2fb`: requests have this path as `/a/b`: write that",
        ),
        (
            "[{to: [{paths: [{template: '/%61/{id}'}]}]}]",
            "$[0].paths[0]: `/%61/{id}`: requests have this path as `/a`: write that",
        ),
        ("[{to: [{paths: [{exact: '/a?b'}]}]}]", "$[0].paths[0]: `/a?b`: has a query, which is no part of a path"),
        ("[{to: [{paths: [{template: '/{a'}]}]}]", "$[0].paths[0]: `/{a`: `{a` is none of `{name}`"),
        ("[{to: [{paths: [{template: '/{**}/{**}'}]}]}]", "$[0].paths[0]: `/{**}/{**}`: has `{**}` twice"),
        ("[{to: [{paths: [{regex: '('}]}]}]", "$[0].paths[0]: `(`: not a regular expression: "),
        ("[{to: [{paths: [{regex: 'a)(b'}]}]}]", "$[0].paths[0]: `a)(b`: not a regular expression: "),
        ("[{to: [{paths: [{suffix: a}]}]}]", "$[0].paths[0].suffix: unknown field `suffix`"),
        ("[{to: [{headers: [{exact: a}]}]}]", "$[0].headers[0]: missing field `name`"),
        ("[{to: [{headers: [{name: a}]}]}]", "$[0].headers[0]: exactly one of `exact`, `prefix`, `regex`, `present`"),
        ("[{to: [{headers: [{name: a, exact: }]}]}]", "$[0].headers[0].exact: has no value"),
        ("[{to: [{headers: [{name: a, exact: b, present: true}]}]}]", "$[0].headers[0]: exactly one of"),
        (
            "[{to: [{headers: [{name: a, present: false}]}]}]",
            "$[0].headers[0]: `present: false` is not known: put the field",
        ),
        ("[{to: [{headers: [{name: a, prefix: ''}]}]}]", "$[0].headers[0]: `prefix` is empty: write `present: true`"),
        ("[{to: [{headers: [{name: a, exact: ' b'}]}]}]", "$[0].headers[0]: ` b` never matches: values have no blanks"),
        (
            "[{to: [{headers: [{name: a, exact: \"b\\nc\"}]}]}]",
            "$[0].headers[0]: `b\\nc` never matches: values have no control",
        ),
        ("[{to: [{headers: [{name: a, regex: '['}]}]}]", "$[0].headers[0]: `[`: not a regular expression"),
        ("[{to: [{headers: [{name: Host, exact: b}]}]}]", "$[0].headers[0]: `Host` is matched by `hosts`"),
        ("[{to: [{notHeaders: [{name: ':path', exact: b}]}]}]", "$[0].notHeaders[0]: `:path` is matched by `paths`"),
        ("[{to: [{headers: [{name: ':method', exact: b}]}]}]", "$[0].headers[0]: `:method` is matched by `methods`"),
        ("[{to: [{headers: [{name: ':scheme', exact: b}]}]}]", "$[0].headers[0]: `:scheme` is no name of a header"),
        (
            "[{to: [{headers: [{name: X-Heddle-Reason, exact: b}]}]}]",
            "$[0].headers[0]: `X-Heddle-Reason` is set by agents",
        ),
        ("[{to: [{headers: [{name: 'a b', exact: b}]}]}]", "$[0].headers[0]: `a b` is no name of a header field"),
    ];
    for (text, problem) in table {
        let (policy, invalid) = spec(&format!("rules: {text}, selector: {{matchLabels: {{app: web}}}}"));
        let problem = problem.replacen('^', "[0].from", 1).replacen('$', "[0].to", 1);
        let expected = format!("4: spec.rules{problem}");
        // A value that is nothing is told of for itself, and may be missed besides.
        assert!(invalid.first().is_some_and(|told| told.starts_with(&expected)), "{text}:\n{invalid:?}\n{expected}");
        assert!(invalid.len() == 1 || text.contains(": }"), "{text}: {invalid:?}");
        assert_eq!((policy.rules, policy.target), (Rules::Rejected, labels(&[("app", "web")])), "{text}");
    }
}

#[test]
fn every_list_is_bounded() {
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let table = [
        (format!("rules: [{}]", many("{}", RULES_MAX + 1)), "spec.rules: 65 entries: at most 64"),
        (
            format!("rules: [{{from: [{}]}}]", many("{namespaces: [a]}", SOURCES_MAX + 1)),
            "spec.rules[0].from: 65 entries: at most 64",
        ),
        (
            format!("rules: [{{to: [{}]}}]", many("{ports: [1]}", OPERATIONS_MAX + 1)),
            "spec.rules[0].to: 65 entries: at most 64",
        ),
        (
            format!("rules: [{{to: [{{ports: [{}]}}]}}]", many("1", LISTED_MAX + 1)),
            "spec.rules[0].to[0].ports: 257 entries: at most 256",
        ),
        (
            format!("rules: [{}]", many(&format!("{{to: [{{ports: [{}]}}]}}", many("1", LISTED_MAX)), 17)),
            "spec.rules: 4352 entries in all lists together: at most 4096",
        ),
        (
            format!("rules: [{{to: [{{paths: [{}]}}]}}]", many("{regex: a}", REGEXES_MAX + 1)),
            "spec.rules: 65 regular expressions together: at most 64",
        ),
    ];
    for (text, problem) in table {
        let (policy, invalid) = spec(&text);
        assert_eq!((invalid, policy.rules), (vec![format!("4: {problem}")], Rules::Rejected));
    }
}

#[test]
fn what_would_have_decided_nothing_denies_nothing() {
    let table = [
        ("action: Audit, rules: [{form: []}]", Action::Audit, false),
        ("dryRun: true, rules: [{form: []}]", Action::Allow, true),
        ("action: Deny, dryRun: true, rules: [{to: [{ports: [0]}]}]", Action::Deny, true),
        ("action: Deny, rules: [{to: [{ports: [0]}]}]", Action::Deny, false),
        // Of what cannot be read nothing good is thought.
        ("action: audit", Action::Allow, false),
        ("dryRun: 1", Action::Allow, false),
        ("dryrun: true", Action::Allow, false),
    ];
    for (text, action, dry_run) in table {
        let (policy, invalid) = spec(text);
        assert_eq!(invalid.len(), 1, "{text}: {invalid:?}");
        assert_eq!((&policy.rules, policy.action, policy.dry_run), (&Rules::Rejected, action, dry_run), "{text}");
        let access = PortAccess::new([&std::sync::Arc::new(policy)], 80);
        assert_eq!(access.is_open(), action == Action::Audit || dry_run, "{text}");
    }
}

/// Of what is said twice nobody can say which was meant; the worst is assumed.
#[test]
fn what_is_said_twice_is_not_believed_table() {
    let web = &labels(&[("app", "web")]);
    let table = [
        ("action: Audit, action: Deny, selector: {matchLabels: {app: web}}", web, Action::Allow, false),
        ("dryRun: true, dryRun: false, selector: {matchLabels: {app: web}}", web, Action::Allow, false),
        ("rules: [], rules: [], selector: {matchLabels: {app: web}}, action: Audit", web, Action::Audit, false),
        ("selector: {matchLabels: {app: web}}, selector: {}", &Target::Unreadable, Action::Allow, false),
        ("selector: {matchLabels: {app: web}, matchLabels: {}}", &Target::Unreadable, Action::Allow, false),
        ("selector: {matchLabels: {app: web, app: db}}", &Target::Unreadable, Action::Allow, false),
        ("targetRefs: [{kind: Service, name: a, name: b}]", &Target::Unreadable, Action::Allow, false),
        ("targetRefs: [{kind: Service, name: a}], targetRefs: []", &Target::Unreadable, Action::Allow, false),
    ];
    for (text, target, action, dry_run) in table {
        let (policy, invalid) = spec(text);
        assert!(invalid.len() == 1 && invalid[0].contains("is there twice"), "{text}: {invalid:?}");
        assert_eq!((&policy.rules, &policy.target), (&Rules::Rejected, target), "{text}");
        assert_eq!((policy.action, policy.dry_run), (action, dry_run), "{text}");
    }
    let (object, _, _) = policy("metadata: {name: web}\nspec: {action: Audit, dryRun: true}\nspec: {}\n");
    let policy = object.unwrap().policy;
    assert_eq!((&policy.target, policy.action, policy.dry_run), (&Target::Unreadable, Action::Allow, false));
}

#[test]
fn one_without_spec_says_nothing_and_denies() {
    for (text, target) in [("", Target::Namespace), ("spec:\n", Target::Namespace), ("sepc: {}\n", Target::Unreadable)]
    {
        let (object, invalid, _) = policy(&format!("metadata: {{name: web, namespace: shop}}\n{text}"));
        assert_eq!(invalid.len(), 1, "{text}: {invalid:?}");
        assert!(invalid[0].contains("is missing: `spec: {}`") || text.starts_with("sepc"), "{invalid:?}");
        let policy = object.unwrap().policy;
        assert_eq!((&policy.rules, &policy.target), (&Rules::Rejected, &target), "{text}");
    }
}

#[test]
fn a_name_nobody_could_use_still_speaks_for_its_targets() {
    for metadata in ["{name: Not_A_Name, namespace: shop}", "{namespace: shop}", "{name: '', namespace: shop}"] {
        let (object, invalid, _) =
            policy(&format!("metadata: {metadata}\nspec: {{selector: {{matchLabels: {{app: web}}}}}}\n"));
        assert_eq!(invalid.len(), 1, "{metadata}: {invalid:?}");
        let policy = object.unwrap().policy;
        assert_eq!((&*policy.namespace, &*policy.name), ("shop", "f.yaml:1"), "{metadata}");
        assert_eq!((&policy.rules, &policy.target), (&Rules::Rejected, &labels(&[("app", "web")])));
    }
    let (object, invalid, _) = policy("metadata: {name: web, namespace: Shop}\nspec: {}\n");
    assert_eq!((object, invalid.len()), (None, 1), "no pod has such a namespace");
    let other_version = "apiVersion: heddle.dev/v1beta9\nkind: AuthorizationPolicy\nmetadata: {name: web}\nspec: {}\n";
    let reading = read("f.yaml", other_version.as_bytes());
    assert!(matches!(&reading.items[..], [item] if matches!(&item.object, Object::AuthorizationPolicy(o)
        if o.policy.rules == Rules::Rejected)));
}

#[test]
fn broken_yaml_denies_whom_it_names_so_far() {
    let (object, invalid, _) =
        policy("metadata: {name: web, namespace: shop}\nspec:\n  selector: {matchLabels: {app: web}}\n  rules: [{\n");
    assert_eq!(invalid.len(), 1, "{invalid:?}");
    let policy = object.unwrap().policy;
    assert_eq!((&policy.rules, &policy.target), (&Rules::Rejected, &labels(&[("app", "web")])));
}

#[test]
fn a_typing_error_in_one_namespace_touches_no_other() {
    let good = |namespace: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: web, namespace: {namespace}}}\n\
             spec: {{rules: [{{from: [{{namespaces: [{namespace}]}}]}}]}}\n"
        )
    };
    let both = |one: &str| format!("{one}---\n{}", good("two"));
    let expected = read("f", both(&good("one")).as_bytes()).items.remove(1).object;
    let typos = [
        ("rules: ", "rules: ["),
        ("spec: ", "spec "),
        ("from: ", "form: "),
        ("kind: ", "kind:"),
        ("namespaces: [one]", "namespaces: one"),
        ("name: web", "name: Web"),
        ("[{", "[{}, {"),
        ("metadata", "\tmetadata"),
        ("spec: {", "spec: {targetRefs: , "),
    ];
    for (right, wrong) in typos {
        let reading = read("f", both(&good("one").replacen(right, wrong, 1)).as_bytes());
        let of_two: Vec<_> = reading.items.iter().filter(|i| &*i.object.key().namespace == "two").collect();
        assert!(matches!(&of_two[..], [item] if item.object == expected), "{wrong}: {reading:?}");
        assert!(reading.invalid.iter().all(|report| !report.object.starts_with("two/")), "{wrong}: {reading:?}");
    }
}

struct Get(&'static str);

impl Request for Get {
    fn method(&self) -> &str {
        "GET"
    }

    fn host(&self) -> &str {
        "web"
    }

    fn path(&self) -> &str {
        self.0
    }

    fn header(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}
}

/// What an object says is what is decided: read to the end, once.
#[test]
fn a_policy_decides_what_it_says() {
    let (allow, invalid) = spec(
        "rules: [{from: [{serviceAccounts: [web]}], to: [{ports: [80], methods: [GET], paths: [{prefix: /api}]}]}]",
    );
    assert_eq!(invalid, Vec::<String>::new());
    let access = |port| PortAccess::new([&std::sync::Arc::new(allow.clone())], port);
    let decide = |id: &'static str, path| {
        let peer = Peer { principal: Principal::of(id, "cluster.local"), address: "10.0.0.1".parse().unwrap() };
        access(80).decide(&peer, Some(&Get(path)), &mut ()).is_allowed
    };
    let (web, other) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/other/sa/web");
    let decided: BTreeMap<_, _> = [(web, "/api/x"), (web, "/apix"), (other, "/api"), ("", "/api")]
        .into_iter()
        .map(|(id, path)| ((id, path), decide(id, path)))
        .collect();
    let expected = [((web, "/api/x"), true), ((web, "/apix"), false), ((other, "/api"), false), (("", "/api"), false)];
    assert_eq!(decided, expected.into_iter().collect());
    assert!(access(81).is_open());
}

/// What users copy must be right.
#[test]
fn the_examples_in_the_documentation_are_accepted() {
    let text = include_str!("../../../docs/authorization.md");
    let examples: Vec<&str> = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let mut kinds = Vec::new();
    for example in &examples {
        let reading = read("authorization.md", example.as_bytes());
        assert_eq!((reading.invalid, reading.warnings), (vec![], vec![]), "{example}");
        kinds.extend(reading.items.iter().map(|item| item.object.key().kind.as_str()));
    }
    let policies = ["AuthorizationPolicy"; 4];
    assert_eq!(kinds, policies.into_iter().chain(["NetworkPolicy"]).collect::<Vec<_>>());
}
