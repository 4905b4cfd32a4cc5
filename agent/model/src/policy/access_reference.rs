//! The same decisions by a plain reference, and laws that hold of all policies.
//!
//! The reference sorts nothing out: it asks every policy everything, in three-valued logic. What the call says is `Yes` or `No`; what it
//! leaves open (a field with several values, an identity nobody proved, HTTP in bytes that are none) is `Doubt`. A rule that allows wants
//! `Yes`; one that denies or tells is content with `Doubt`.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Default,
    Rule(String, usize),
    NoRule,
    Rejected(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub is_allowed: bool,
    pub why: Why,
    pub would_deny: Option<Why>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    No,
    Doubt,
    Yes,
}

use Holds::{Doubt, No, Yes};

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Yes } else { No }
    }
}

impl Holds {
    fn not(self) -> Self {
        match self {
            No => Yes,
            Doubt => Doubt,
            Yes => No,
        }
    }
}

fn every(all: impl IntoIterator<Item = Holds>) -> Holds {
    all.into_iter().min().unwrap_or(Yes)
}

fn some(all: impl IntoIterator<Item = Holds>) -> Holds {
    all.into_iter().max().unwrap_or(No)
}

/// A field and its opposite: one that is empty asks for nothing.
fn field<T>(wanted: &[T], unwanted: &[T], is: impl Fn(&[T]) -> Holds) -> Holds {
    let of = |list: &[T]| if list.is_empty() { None } else { Some(is(list)) };
    every([of(wanted).unwrap_or(Yes), of(unwanted).map_or(Yes, Holds::not)])
}

fn source(source: &Source, peer: &Peer<'_>) -> Holds {
    // Of one that proved nothing it is sure that it proved no id, and open which it has.
    let one_of = |is_one: Option<bool>, is_wanted: bool| match (is_one, is_wanted) {
        (Some(is_one), _) => is_one.into(),
        (None, true) => No,
        (None, false) => Doubt,
    };
    let of = |wanted: Option<bool>, unwanted: Option<bool>, has: (bool, bool)| {
        let wanted = if has.0 { one_of(wanted, true) } else { Yes };
        let unwanted = if has.1 { one_of(unwanted, false).not() } else { Yes };
        every([wanted, unwanted])
    };
    let id = |list: &[IdentityMatch]| peer.principal.map(|p| list.iter().any(|m| m.matches(p.id)));
    let namespace = |list: &[Arc<str>]| peer.principal.map(|p| list.iter().any(|n| **n == *p.namespace));
    let account = |list: &[(Arc<str>, Arc<str>)]| {
        peer.principal.map(|p| list.iter().any(|(n, s)| (&**n, &**s) == (p.namespace, p.service_account)))
    };
    every([
        of(
            id(&source.identities),
            id(&source.not_identities),
            (!source.identities.is_empty(), !source.not_identities.is_empty()),
        ),
        of(
            namespace(&source.namespaces),
            namespace(&source.not_namespaces),
            (!source.namespaces.is_empty(), !source.not_namespaces.is_empty()),
        ),
        of(
            account(&source.service_accounts),
            account(&source.not_service_accounts),
            (!source.service_accounts.is_empty(), !source.not_service_accounts.is_empty()),
        ),
        field(&source.cidrs, &source.not_cidrs, |nets| {
            nets.iter().any(|net| net.contains(&peer.address.to_canonical())).into()
        }),
    ])
}

fn header(wanted: &HeaderMatch, asked: &Asked) -> Holds {
    let is = |value: &str| match &wanted.value {
        TextMatch::Present => true,
        TextMatch::Exact(exact) => value == &**exact,
        TextMatch::Prefix(prefix) => value.starts_with(&**prefix),
        TextMatch::Regex(pattern) => pattern.matches(value.as_bytes()),
    };
    let values: Vec<bool> = asked.headers.iter().filter(|(n, _)| **n == *wanted.name).map(|(_, v)| is(v)).collect();
    match (values.contains(&true), values.contains(&false)) {
        (true, true) => Doubt,
        (is_there, _) => is_there.into(),
    }
}

/// A path as it is, and as a server reads it that drops parameters.
fn path(wanted: &[PathMatch], asked: &str) -> Holds {
    let mut bare = String::new();
    let mut is_dropped = false;
    for character in asked.chars() {
        is_dropped = character != '/' && (is_dropped || character == ';');
        if !is_dropped {
            bare.push(character);
        }
    }
    let is = |path: &str| wanted.iter().any(|m| m.matches(path));
    match (is(asked), is(&bare)) {
        (true, true) => Yes,
        (false, false) => No,
        _ => Doubt,
    }
}

fn operation(operation: &Operation, port: u16, asked: Option<&Asked>) -> Holds {
    // A tunnel is bytes, but for an operation that lists CONNECT; and no path of it is known then either.
    let is_tunnel = asked.is_some_and(|asked| asked.method == "CONNECT");
    let asked = asked.filter(|_| !is_tunnel || operation.methods.iter().any(|method| **method == *"CONNECT"));
    let of_request = |is: &dyn Fn(&Asked) -> bool| asked.map_or(Doubt, |asked| is(asked).into());
    let of_header = |wanted: &HeaderMatch| asked.map_or(Doubt, |asked| header(wanted, asked));
    every([
        field(&operation.ports, &operation.not_ports, |ports| ports.contains(&port).into()),
        field(&operation.hosts, &operation.not_hosts, |l| of_request(&|a| l.iter().any(|m| m.matches(&a.host)))),
        field(&operation.methods, &operation.not_methods, |l| of_request(&|a| l.iter().any(|m| **m == *a.method))),
        field(&operation.paths, &operation.not_paths, |l| {
            asked.filter(|_| !is_tunnel).map_or(Doubt, |asked| path(l, &asked.path))
        }),
        every(operation.headers.iter().map(of_header)),
        some(operation.not_headers.iter().map(of_header)).not(),
    ])
}

fn rule(rule: &Rule, port: u16, peer: &Peer<'_>, asked: Option<&Asked>) -> Holds {
    let from = if rule.from.is_empty() { Yes } else { some(rule.from.iter().map(|item| source(item, peer))) };
    let to = if rule.to.is_empty() { Yes } else { some(rule.to.iter().map(|item| operation(item, port, asked))) };
    every([from, to])
}

/// Whether a policy may say anything of a port.
fn is_of_port(rules: &[Rule], port: u16) -> bool {
    let item = |item: &Operation| field(&item.ports, &item.not_ports, |ports| ports.contains(&port).into()) == Yes;
    rules.is_empty() || rules.iter().any(|rule| rule.to.is_empty() || rule.to.iter().any(item))
}

/// What these policies say, all of them as if they were in force.
fn verdict(policies: &[&AuthorizationPolicy], port: u16, peer: &Peer<'_>, asked: Option<&Asked>) -> (bool, Why) {
    for policy in policies.iter().filter(|policy| policy.action != Action::Audit) {
        match &policy.rules {
            Rules::Rejected => return (false, Why::Rejected(policy.name.to_string())),
            Rules::Any(rules) if policy.action == Action::Deny => {
                if let Some(number) = rules.iter().position(|one| rule(one, port, peer, asked) >= Doubt) {
                    return (false, Why::Rule(policy.name.to_string(), number));
                }
            }
            Rules::Any(_) => {}
        }
    }
    let mut is_selected = false;
    for policy in policies.iter().filter(|policy| policy.action == Action::Allow) {
        let Rules::Any(rules) = &policy.rules else { continue };
        is_selected |= is_of_port(rules, port);
        if let Some(number) = rules.iter().position(|one| rule(one, port, peer, asked) == Yes) {
            return (true, Why::Rule(policy.name.to_string(), number));
        }
    }
    if is_selected { (false, Why::NoRule) } else { (true, Why::Default) }
}

/// What is decided about a request, or about bytes that are none.
pub fn decide(policies: &[Arc<AuthorizationPolicy>], port: u16, peer: &Peer<'_>, asked: Option<&Asked>) -> Verdict {
    let mut sorted: Vec<&AuthorizationPolicy> = policies.iter().map(|policy| &**policy).collect();
    sorted.sort_by_key(|policy| (&policy.namespace, &policy.name));
    let (tried, in_force): (Vec<&AuthorizationPolicy>, Vec<_>) = sorted.into_iter().partition(|policy| policy.dry_run);
    let (is_allowed, why) = verdict(&in_force, port, peer, asked);
    // A rejected one that was only tried would not be in force either.
    let tried = tried.into_iter().filter(|policy| policy.rules != Rules::Rejected);
    let (would_allow, would) = verdict(&in_force.into_iter().chain(tried).collect::<Vec<_>>(), port, peer, asked);
    Verdict { is_allowed, why, would_deny: (is_allowed && !would_allow).then_some(would) }
}

/// The rules that would be told of.
fn audit(
    policies: &[Arc<AuthorizationPolicy>],
    port: u16,
    peer: &Peer<'_>,
    asked: Option<&Asked>,
) -> Vec<(String, usize)> {
    let mut told = Vec::new();
    for policy in policies.iter().filter(|policy| policy.action == Action::Audit) {
        let Rules::Any(rules) = &policy.rules else { continue };
        let matching = (0..rules.len()).filter(|number| rule(&rules[*number], port, peer, asked) >= Doubt);
        told.extend(matching.map(|number| (policy.name.to_string(), number)));
    }
    told.sort();
    told
}

const FROM: &[&str] = &[
    "id=spiffe://td/ns/shop/sa/web",
    "id=spiffe://td/ns/shop/*",
    "id=*",
    "!id=spiffe://td/ns/shop/sa/web",
    "!id=spiffe://td/ns/bank/*",
    "ns=shop",
    "ns=bank",
    "!ns=shop",
    "!ns=bank",
    "sa=shop/web",
    "!sa=shop/web",
    "sa=bank/till",
    "cidr=10.1.0.0/16",
    "cidr=fd00::/8",
    "!cidr=10.1.0.0/24",
];
const TO: &[&str] = &[
    "port=80",
    "port=81",
    "!port=80",
    "port=80",
    "host=h",
    "host=*.h",
    "!host=h",
    "method=GET",
    "method=POST",
    "method=CONNECT",
    "!method=GET",
    "path=/a",
    "path=/a/*",
    "path=/{x}",
    "path=~/[ab]+",
    "!path=/a",
    "!path=/a/*",
    "header=x:a",
    "header=x",
    "header=x:a*",
    "header=y:~a|b",
    "!header=x:a",
    "!header=x",
    "!header=y:b",
];

fn some_items(word: &'static str, fields: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let item = proptest::sample::subsequence(fields, 0..4).prop_map(move |set| format!("{word} {}", set.join(" ")));
    proptest::collection::vec(item, 0..3)
}

fn some_rule() -> impl Strategy<Value = Rule> {
    (some_items("from", FROM), some_items("to", TO)).prop_map(|(from, to)| {
        let text = [from, to].concat().join(" ");
        if text.is_empty() { Rule::default() } else { rule_of(&text.split_whitespace().collect::<Vec<_>>().join(" ")) }
    })
}

fn some_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let rules = prop_oneof![
        15 => proptest::collection::vec(some_rule(), 0..4).prop_map(Rules::Any),
        1 => Just(Rules::Rejected),
    ];
    let action = prop_oneof![4 => Just(Action::Allow), 3 => Just(Action::Deny), 1 => Just(Action::Audit)];
    (action, prop_oneof![4 => Just(false), 1 => Just(true)], rules).prop_map(|(action, dry_run, rules)| {
        AuthorizationPolicy {
            namespace: "shop".into(),
            name: "".into(),
            target: Target::Namespace,
            action,
            dry_run,
            rules,
        }
    })
}

fn some_policies() -> impl Strategy<Value = Vec<Arc<AuthorizationPolicy>>> {
    proptest::collection::vec(some_policy(), 0..5).prop_map(|policies| {
        let named = |(number, policy): (usize, AuthorizationPolicy)| {
            Arc::new(AuthorizationPolicy { name: number.to_string().into(), ..policy })
        };
        policies.into_iter().enumerate().map(named).collect()
    })
}

fn some_peer() -> impl Strategy<Value = Known> {
    let ids = [
        "",
        "",
        "spiffe://td/ns/shop/sa/web",
        "spiffe://td/ns/shop/sa/api",
        "spiffe://td/ns/bank/sa/till",
        "spiffe://td/else",
    ];
    let addresses = ["10.1.0.1", "10.1.7.1", "::ffff:10.1.0.1", "192.0.2.1", "fd00::1"];
    (proptest::sample::select(ids.to_vec()), proptest::sample::select(addresses.to_vec()))
        .prop_map(|(id, address)| Known { id: id.to_owned(), address: address.parse().unwrap() })
}

fn some_asked() -> impl Strategy<Value = Option<Asked>> {
    let fields = ["x:a", "x:a", "x:b", "x:ab", "x:", "y:a", "y:b", "z:a"];
    let request = (
        proptest::sample::select(&["GET", "POST", "get", "CONNECT"][..]),
        proptest::sample::select(&["h", "H.", "a.h", "i", ""][..]),
        proptest::sample::select(&["/", "/a", "/a/", "/a/b", "/b", "/ab", "*", "/a;v=1", "/a;v/b", "/b;/a"][..]),
        proptest::sample::subsequence(fields.to_vec(), 0..5),
    )
        .prop_map(|(method, host, path, fields)| Asked {
            method: method.to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            headers: fields
                .iter()
                .map(|f| f.split_once(':').map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap())
                .collect(),
        });
    prop_oneof![1 => Just(None), 5 => request.prop_map(Some)]
}

/// Whether a call is let in.
fn allows(policies: &[Arc<AuthorizationPolicy>], port: u16, peer: &Known, asked: Option<&Asked>) -> bool {
    PortAccess::new(policies, port).decide(&peer.peer(), asked, &mut ()).is_allowed
}

fn with(policies: &[Arc<AuthorizationPolicy>], more: AuthorizationPolicy) -> Vec<Arc<AuthorizationPolicy>> {
    policies.iter().cloned().chain([Arc::new(AuthorizationPolicy { name: "more".into(), ..more })]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn decisions_are_those_of_the_reference(
        policies in some_policies().prop_shuffle(), port in 80_u16..82, peer in some_peer(), asked in some_asked(),
    ) {
        let access = PortAccess::new(&policies, port);
        let decision = access.decide(&peer.peer(), asked.as_ref(), &mut ());
        prop_assert_eq!(named(&access, decision), decide(&policies, port, &peer.peer(), asked.as_ref()));
        let mut told = Vec::new();
        access.audit(&peer.peer(), asked.as_ref(), &mut (), |policy, rule| {
            told.push((access.policies()[policy].name.to_string(), rule));
        });
        prop_assert_eq!(told, audit(&policies, port, &peer.peer(), asked.as_ref()));
        prop_assert!(!access.is_open() || decision.is_allowed && decision.why == super::Why::Default);
        prop_assert!(!access.is_quiet() || decision.would_deny.is_none());
    }

    #[test]
    fn an_outlook_is_true_of_all_that_comes(
        policies in some_policies(), port in 80_u16..82, peer in some_peer(), asked in some_asked(),
    ) {
        let outlook = PortAccess::new(&policies, port).outlook(&peer.peer());
        let is_allowed = allows(&policies, port, &peer, asked.as_ref());
        match outlook {
            Outlook::Allowed => prop_assert!(is_allowed),
            Outlook::Denied => prop_assert!(!is_allowed),
            Outlook::OfRequests => prop_assert!(!allows(&policies, port, &peer, None)),
        }
    }

    #[test]
    fn what_needs_no_reading_depends_on_none(
        policies in some_policies(), port in 80_u16..82, peer in some_peer(), one in some_asked(), other in some_asked(),
    ) {
        let access = PortAccess::new(&policies, port);
        let decide = |asked: Option<&Asked>| {
            let decision = access.decide(&peer.peer(), asked, &mut ());
            (decision.is_allowed, decision.why)
        };
        if !access.needs_http() {
            prop_assert_eq!(decide(one.as_ref()), decide(other.as_ref()));
        }
        if let (false, Some(one), Some(other)) = (access.reads_paths(), one, other) {
            prop_assert_eq!(decide(Some(&one)), decide(Some(&Asked { path: other.path, ..one.clone() })));
        }
    }

    #[test]
    fn one_more_that_denies_lets_nobody_in(
        policies in some_policies(), more in some_policy(), port in 80_u16..82, peer in some_peer(), asked in some_asked(),
    ) {
        let more = AuthorizationPolicy { action: Action::Deny, ..more };
        let is_allowed = allows(&with(&policies, more), port, &peer, asked.as_ref());
        prop_assert!(!is_allowed || allows(&policies, port, &peer, asked.as_ref()));
    }

    #[test]
    fn what_is_only_tried_or_told_decides_nothing(
        policies in some_policies(), more in some_policy(), is_tried: bool, port in 80_u16..82, peer in some_peer(), asked in some_asked(),
    ) {
        let more = AuthorizationPolicy {
            dry_run: is_tried,
            action: if is_tried { more.action } else { Action::Audit },
            ..more
        };
        let is_allowed = allows(&with(&policies, more), port, &peer, asked.as_ref());
        prop_assert_eq!(is_allowed, allows(&policies, port, &peer, asked.as_ref()));
    }

    #[test]
    fn one_rule_less_of_those_that_allow_lets_nobody_in(
        policies in some_policies(), more in some_policy(), at: proptest::sample::Index, port in 80_u16..82, peer in some_peer(), asked in some_asked(),
    ) {
        let Rules::Any(mut rules) = more.rules.clone() else { return Ok(()) };
        if rules.is_empty() {
            return Ok(());
        }
        let more = AuthorizationPolicy { action: Action::Allow, dry_run: false, ..more };
        let before = allows(&with(&policies, more.clone()), port, &peer, asked.as_ref());
        rules.remove(at.index(rules.len()));
        // Only while it still selects the port, or another one does. The last rule of all leaves one without rules, which does.
        let is_selected = |policy: &AuthorizationPolicy| match &policy.rules {
            Rules::Any(rules) => policy.action == Action::Allow && !policy.dry_run && is_of_port(rules, port),
            Rules::Rejected => false,
        };
        let less = with(&policies, AuthorizationPolicy { rules: Rules::Any(rules), ..more });
        if less.iter().any(|policy| is_selected(policy)) {
            prop_assert!(before || !allows(&less, port, &peer, asked.as_ref()));
        }
    }

    #[test]
    fn a_port_that_no_policy_speaks_of_is_open(policies in some_policies(), peer in some_peer(), asked in some_asked()) {
        let of_port = |policy: &Arc<AuthorizationPolicy>| match &policy.rules {
            Rules::Any(rules) => is_of_port(rules, 80),
            Rules::Rejected => true,
        };
        let others: Vec<_> = policies.into_iter().filter(|policy| !of_port(policy)).collect();
        prop_assert!(PortAccess::new(&others, 80).is_open());
        prop_assert!(allows(&others, 80, &peer, asked.as_ref()));
    }
}
