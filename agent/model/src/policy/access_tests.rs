//! Deny, then allow, then the default: tables. What holds of all policies is in `access_reference.rs`.
//!
//! A row's policies are written as `Allow from ns=shop to port=80 method=GET ; to port=81`: the action, rules apart by `;`, each `from` a
//! [`Source`] and each `to` an [`Operation`] with its fields, `!` in front of those that do not match. `Rejected` and `Dry` stand in front.
//! They are called 0, 1, 2 …

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::{
    HeaderMatch, HostMatch, IdentityMatch, PathMatch, PathTemplate, Pattern, Principal, Source, Target, TextMatch,
};
use super::*;

#[path = "access_reference.rs"]
mod reference;

/// Policies, the port called with what (method, host and path, header fields; or `bytes`), by whom, and what is decided.
type Row = (&'static [&'static str], &'static str, &'static str, &'static str);

const DEFAULTS: &[Row] = &[
    (&[], "80 GET h/", "web", "allowed by default"),
    (&[], "80 bytes", "nobody", "allowed by default"),
    // One that selects no port says nothing of any.
    (&["Allow to port=81"], "80 GET h/", "web", "allowed by default"),
    (&["Allow to !port=80"], "80 GET h/", "web", "allowed by default"),
    (&["Allow to port=80 !port=80"], "80 GET h/", "web", "allowed by default"),
    (&["Allow to port=81 method=GET"], "80 bytes", "web", "allowed by default"),
    (&["Deny"], "80 GET h/", "web", "allowed by default"),
    (&["Audit from"], "80 GET h/", "web", "allowed by default"),
];

const PORTS: &[Row] = &[
    // Without rules, or with one that may be of the port: it selects.
    (&["Allow"], "80 GET h/", "web", "denied, no rule"),
    (&["Allow"], "81 bytes", "web", "denied, no rule"),
    (&["Allow from ns=shop"], "80 GET h/", "web", "allowed by 0.0"),
    (&["Allow from ns=bank"], "80 GET h/", "web", "denied, no rule"),
    (&["Allow to port=80"], "80 GET h/", "web", "allowed by 0.0"),
    (&["Allow to port=80"], "81 GET h/", "web", "allowed by default"),
    (&["Allow to port=80 port=81"], "81 bytes", "nobody", "allowed by 0.0"),
    (&["Allow to !port=81"], "80 GET h/", "web", "allowed by 0.0"),
    (&["Allow to method=GET"], "80 GET h/", "web", "allowed by 0.0"),
    (&["Allow to method=GET"], "80 POST h/", "web", "denied, no rule"),
    (&["Allow to port=80 method=GET ; to port=81"], "80 POST h/", "web", "denied, no rule"),
    (&["Allow to port=80 method=GET ; to port=81"], "81 POST h/", "web", "allowed by 0.1"),
    (&["Allow from ns=bank to port=80 ; to port=81"], "80 GET h/", "web", "denied, no rule"),
    (&["Allow to port=80 method=GET to port=81"], "81 POST h/", "web", "allowed by 0.0"),
    (&["Allow to port=80 method=GET to port=81"], "80 POST h/", "web", "denied, no rule"),
    // Operations are whole: the port of one does not go with the method of another.
    (&["Allow to port=80 method=GET to port=81 method=POST"], "80 POST h/", "web", "denied, no rule"),
    (&["Deny to port=81"], "80 GET h/", "web", "allowed by default"),
    (&["Deny to port=81"], "81 GET h/", "web", "denied by 0.0"),
];

const ORDER: &[Row] = &[
    (&["Allow from", "Deny from ns=shop"], "80 GET h/", "web", "denied by 1.0"),
    (&["Deny from ns=shop", "Allow from"], "80 GET h/", "web", "denied by 0.0"),
    (&["Deny from ns=bank", "Allow from"], "80 GET h/", "web", "allowed by 1.0"),
    (&["Deny from ns=bank", "Allow from ns=bank"], "80 GET h/", "web", "denied, no rule"),
    (&["Allow from ns=bank", "Allow from ns=shop"], "80 GET h/", "web", "allowed by 1.0"),
    (&["Allow from ns=bank ; from ns=shop ; from"], "80 GET h/", "web", "allowed by 0.1"),
    (&["Allow", "Allow from ns=shop"], "80 GET h/", "web", "allowed by 1.0"),
    (&["Deny to method=PUT ; to method=GET"], "80 GET h/", "web", "denied by 0.1"),
    (&["Audit from", "Deny from", "Allow from"], "80 GET h/", "web", "denied by 1.0"),
];

const PEERS: &[Row] = &[
    (&["Allow from id=spiffe://td/ns/shop/sa/web"], "80 bytes", "web", "allowed by 0.0"),
    (&["Allow from id=spiffe://td/ns/shop/sa/web"], "80 bytes", "api", "denied, no rule"),
    (&["Allow from id=spiffe://td/ns/shop/*"], "80 bytes", "api", "allowed by 0.0"),
    (&["Allow from id=*"], "80 bytes", "api", "allowed by 0.0"),
    (&["Allow from id=*"], "80 bytes", "nobody", "denied, no rule"),
    (&["Allow from ns=shop sa=shop/web"], "80 bytes", "web", "allowed by 0.0"),
    (&["Allow from ns=bank sa=shop/web"], "80 bytes", "web", "denied, no rule"),
    (&["Allow from ns=bank from sa=shop/web"], "80 bytes", "web", "allowed by 0.0"),
    (&["Allow from ns=bank ns=shop"], "80 bytes", "web", "allowed by 0.0"),
    (&["Allow from sa=bank/web"], "80 bytes", "web", "denied, no rule"),
    (&["Allow from cidr=10.0.0.0/8"], "80 bytes", "nobody", "allowed by 0.0"),
    (&["Allow from cidr=10.0.0.0/8"], "80 bytes", "nobody@::ffff:10.9.9.9", "allowed by 0.0"),
    (&["Allow from cidr=10.0.0.0/8"], "80 bytes", "web@192.0.2.1", "denied, no rule"),
    (&["Allow from cidr=10.0.0.0/8 !cidr=10.1.0.0/16"], "80 bytes", "web", "denied, no rule"),
    (&["Allow from ns=shop cidr=192.0.2.0/24"], "80 bytes", "web", "denied, no rule"),
    (&["Deny from !cidr=10.0.0.0/8"], "80 bytes", "web", "allowed by default"),
    (&["Deny from !cidr=10.0.0.0/8"], "80 bytes", "web@192.0.2.1", "denied by 0.0"),
    // Who proved nothing is not «another one» to a rule that allows, and is to one that denies.
    (&["Allow from !ns=bank"], "80 bytes", "web", "allowed by 0.0"),
    (&["Allow from !ns=bank"], "80 bytes", "nobody", "denied, no rule"),
    (&["Allow from !id=spiffe://td/ns/bank/*"], "80 bytes", "nobody", "denied, no rule"),
    (&["Allow from !sa=bank/till"], "80 bytes", "nobody", "denied, no rule"),
    (&["Deny from !ns=shop"], "80 bytes", "web", "allowed by default"),
    (&["Deny from !ns=shop"], "80 bytes", "nobody", "denied by 0.0"),
    (&["Deny from !id=spiffe://td/ns/shop/*"], "80 bytes", "nobody", "denied by 0.0"),
    (&["Deny from !sa=shop/web"], "80 bytes", "nobody", "denied by 0.0"),
    (&["Deny from ns=shop"], "80 bytes", "nobody", "allowed by default"),
    // An identity of another shape is of no namespace.
    (&["Allow from ns=shop"], "80 bytes", "spiffe://td/ns/shop/sa/web/x", "denied, no rule"),
    (&["Deny from !ns=shop"], "80 bytes", "spiffe://td/else", "denied by 0.0"),
];

const REQUESTS: &[Row] = &[
    (&["Allow to host=h"], "80 GET h/", "web", "allowed by 0.0"),
    (&["Allow to host=*.h"], "80 GET h/", "web", "denied, no rule"),
    (&["Allow to host=*.h"], "80 GET a.h/", "web", "allowed by 0.0"),
    (&["Deny to !host=h"], "80 GET i/", "web", "denied by 0.0"),
    (&["Allow to method=GET method=HEAD"], "80 HEAD h/", "web", "allowed by 0.0"),
    (&["Allow to method=GET"], "80 get h/", "web", "denied, no rule"),
    (&["Allow to !method=POST"], "80 GET h/", "web", "allowed by 0.0"),
    (&["Allow to path=/a"], "80 GET h/a", "web", "allowed by 0.0"),
    (&["Allow to path=/a"], "80 GET h/a/b", "web", "denied, no rule"),
    (&["Allow to path=/a/*"], "80 GET h/a/b", "web", "allowed by 0.0"),
    (&["Allow to path=/a/{id}/c"], "80 GET h/a/b/c", "web", "allowed by 0.0"),
    (&["Allow to path=~/[ab]"], "80 GET h/b", "web", "allowed by 0.0"),
    (&["Allow to path=/* !path=/admin/*"], "80 GET h/a", "web", "allowed by 0.0"),
    (&["Allow to path=/* !path=/admin/*"], "80 GET h/admin/x", "web", "denied, no rule"),
    (&["Allow to method=GET path=/a"], "80 POST h/a", "web", "denied, no rule"),
    // Several values: who allows wants all, who denies any; and the other way round for those that may not match.
    (&["Allow to header=x:a"], "80 GET h/ x:a", "web", "allowed by 0.0"),
    (&["Allow to header=x:a"], "80 GET h/ x:a x:a", "web", "allowed by 0.0"),
    (&["Allow to header=x:a"], "80 GET h/ x:a x:b", "web", "denied, no rule"),
    (&["Allow to header=x:a"], "80 GET h/", "web", "denied, no rule"),
    (&["Allow to header=x:a header=y"], "80 GET h/ x:a", "web", "denied, no rule"),
    (&["Allow to header=x:a header=y"], "80 GET h/ x:a y:", "web", "allowed by 0.0"),
    (&["Allow to !header=x:a"], "80 GET h/", "web", "allowed by 0.0"),
    (&["Allow to !header=x:a"], "80 GET h/ x:b", "web", "allowed by 0.0"),
    (&["Allow to !header=x:a"], "80 GET h/ x:b x:a", "web", "denied, no rule"),
    (&["Deny to header=x:a"], "80 GET h/ x:b x:a", "web", "denied by 0.0"),
    (&["Deny to header=x:a"], "80 GET h/ x:b", "web", "allowed by default"),
    (&["Deny to header=x:a header=y"], "80 GET h/ x:a", "web", "allowed by default"),
    (&["Deny to !header=x:a"], "80 GET h/", "web", "denied by 0.0"),
    (&["Deny to !header=x:a"], "80 GET h/ x:a", "web", "allowed by default"),
    (&["Deny to !header=x:a"], "80 GET h/ x:a x:b", "web", "denied by 0.0"),
    (&["Deny to !header=x:a !header=y"], "80 GET h/ y:1", "web", "allowed by default"),
];

const BYTES: &[Row] = &[
    // No HTTP: no rule that allows by it, every one that denies by what it asks besides.
    (&["Allow to method=GET"], "80 bytes", "web", "denied, no rule"),
    (&["Allow to !method=GET"], "80 bytes", "web", "denied, no rule"),
    (&["Allow to !path=/admin/*"], "80 bytes", "web", "denied, no rule"),
    (&["Allow to method=GET to port=80"], "80 bytes", "web", "allowed by 0.0"),
    (&["Allow to method=GET ; from ns=shop"], "80 bytes", "web", "allowed by 0.1"),
    (&["Deny to method=GET"], "80 bytes", "web", "denied by 0.0"),
    (&["Deny to !method=GET"], "80 bytes", "web", "denied by 0.0"),
    (&["Deny to port=81 method=GET"], "80 bytes", "web", "allowed by default"),
    (&["Deny from ns=bank to method=GET"], "80 bytes", "web", "allowed by default"),
    (&["Deny from ns=shop to method=GET"], "80 bytes", "web", "denied by 0.0"),
    (&["Deny from ns=shop to header=x:a", "Allow from"], "80 bytes", "web", "denied by 0.0"),
];

const REJECTED: &[Row] = &[
    (&["Rejected Allow"], "80 GET h/", "web", "denied, 0 was rejected"),
    (&["Rejected Deny"], "80 bytes", "nobody", "denied, 0 was rejected"),
    (&["Allow from", "Rejected Allow"], "80 GET h/", "web", "denied, 1 was rejected"),
    (&["Deny from", "Rejected Allow"], "80 GET h/", "web", "denied by 0.0"),
    // What would decide nothing at its best decides nothing.
    (&["Rejected Audit"], "80 GET h/", "web", "allowed by default"),
    (&["Rejected Dry Deny"], "80 GET h/", "web", "allowed by default"),
    (&["Rejected Dry Allow", "Allow from"], "80 GET h/", "web", "allowed by 1.0"),
];

const DRY_RUNS: &[Row] = &[
    (&["Dry Deny from ns=shop"], "80 GET h/", "web", "allowed by default, would be denied by 0.0"),
    (&["Dry Deny from ns=bank"], "80 GET h/", "web", "allowed by default"),
    (&["Dry Allow from ns=bank"], "80 GET h/", "web", "allowed by default, would be denied, no rule"),
    (&["Dry Allow from ns=shop"], "80 GET h/", "web", "allowed by default"),
    (&["Dry Allow"], "80 bytes", "web", "allowed by default, would be denied, no rule"),
    (&["Dry Allow to port=81"], "80 bytes", "web", "allowed by default"),
    (&["Allow from ns=shop", "Dry Allow from ns=bank"], "80 GET h/", "web", "allowed by 0.0"),
    (&["Allow from ns=shop", "Dry Deny to method=GET"], "80 bytes", "web", "allowed by 0.0, would be denied by 1.0"),
    // It cannot let in what is refused, and of that nothing more is told.
    (&["Allow from ns=bank", "Dry Allow from ns=shop"], "80 GET h/", "web", "denied, no rule"),
    (&["Deny from", "Dry Deny from"], "80 GET h/", "web", "denied by 0.0"),
    (&["Dry Deny from", "Deny from"], "80 GET h/", "web", "denied by 1.0"),
    (&["Dry Audit from"], "80 GET h/", "web", "allowed by default"),
];

#[test]
fn rows() {
    let tables = [DEFAULTS, PORTS, ORDER, PEERS, REQUESTS, BYTES, REJECTED, DRY_RUNS];
    for (policies, call, peer, expected) in tables.into_iter().flatten() {
        let policies = policies_of(policies);
        let (port, asked) = call_of(call);
        let known = Known::of(peer);
        let access = PortAccess::new(&policies, port);
        let decision = access.decide(&known.peer(), asked.as_ref(), &mut ());
        assert_eq!(told(&access, decision), *expected, "{policies:?}: {call} by {peer}");
        let plain = reference::decide(&policies, port, &known.peer(), asked.as_ref());
        assert_eq!(plain, named(&access, decision), "{policies:?}: {call} by {peer}: the reference");
    }
}

#[test]
fn audits() {
    let policies = policies_of(&[
        "Audit from ns=shop to port=80 method=GET ; from ns=bank ; to header=x:a",
        "Deny from",
        "Audit from !ns=shop",
        "Rejected Audit",
    ]);
    for (call, peer, expected) in [
        ("80 GET h/", "web", &[(0, 0)][..]),
        ("80 POST h/ x:a x:b", "web", &[(0, 2)]),
        ("80 bytes", "web", &[(0, 0), (0, 2)]),
        ("81 GET h/", "web", &[]),
        ("80 POST h/", "nobody", &[(2, 0)]),
    ] {
        let (port, asked) = call_of(call);
        let access = PortAccess::new(&policies, port);
        let known = Known::of(peer);
        let mut heard = Vec::new();
        access.audit(&known.peer(), asked.as_ref(), &mut (), |policy, rule| {
            heard.push((access.policies()[policy].name.parse().unwrap(), rule));
        });
        assert_eq!(heard, expected, "{call} by {peer}");
        assert!(!access.is_quiet() && !access.is_open());
    }
}

#[test]
fn outlooks() {
    use Outlook::{Allowed, Denied, OfRequests};
    for (policies, peer, expected) in [
        (&[][..], "nobody", Allowed),
        (&["Allow from ns=shop"][..], "web", Allowed),
        (&["Allow from ns=shop"], "nobody", Denied),
        (&["Allow"], "web", Denied),
        (&["Allow to method=GET"], "web", OfRequests),
        (&["Allow from ns=shop to method=GET"], "web", OfRequests),
        (&["Allow from ns=shop to method=GET"], "nobody", Denied),
        (&["Allow to method=GET ; from ns=shop"], "web", Allowed),
        (&["Allow to method=GET ; from ns=shop"], "nobody", OfRequests),
        (&["Allow to method=GET to port=80"], "web", Allowed),
        (&["Deny from ns=shop"], "web", Denied),
        (&["Deny from ns=shop"], "nobody", Allowed),
        (&["Deny to path=/a"], "web", OfRequests),
        (&["Deny to path=/a to port=80"], "web", Denied),
        (&["Deny to path=/a", "Allow from ns=shop"], "web", OfRequests),
        (&["Deny to path=/a", "Allow from ns=shop"], "nobody", Denied),
        (&["Deny to port=81"], "web", Allowed),
        (&["Rejected Allow"], "web", Denied),
        (&["Dry Deny from"], "web", Allowed),
        (&["Dry Allow"], "web", Allowed),
        (&["Audit from"], "web", Allowed),
        (&["Rejected Audit"], "web", Allowed),
    ] {
        let access = PortAccess::new(&policies_of(policies), 80);
        assert_eq!(access.outlook(&Known::of(peer).peer()), expected, "{policies:?}: {peer}");
    }
}

#[test]
fn what_has_to_be_read() {
    for (policies, needs_http, reads_paths, tells_paths, is_quiet) in [
        (&[][..], false, false, false, true),
        (&["Allow from ns=shop"][..], false, false, false, true),
        (&["Allow to method=GET"], true, false, false, true),
        (&["Allow to port=81 method=GET"], false, false, false, true),
        (&["Allow to port=81 method=GET ; to port=80"], false, false, false, true),
        (&["Deny to !path=/a"], true, true, true, true),
        (&["Deny to header=x"], true, false, false, true),
        (&["Dry Deny to path=/a"], false, false, true, false),
        (&["Dry Allow from"], false, false, false, false),
        (&["Audit to path=/a"], false, false, true, false),
        (&["Rejected Deny"], false, false, false, true),
    ] {
        let access = PortAccess::new(&policies_of(policies), 80);
        let found = (access.needs_http(), access.reads_paths(), access.tells_paths(), access.is_quiet());
        assert_eq!(found, (needs_http, reads_paths, tells_paths, is_quiet), "{policies:?}");
    }
}

#[test]
fn who_listens_hears_what_was_looked_at() {
    struct Heard(Vec<String>);
    impl Observer for Heard {
        fn looked(&mut self, policy: usize, rule: Option<usize>, outcome: Result<(), &'static str>) {
            self.0.push(format!("{policy}.{}: {}", rule.unwrap_or_default(), outcome.err().unwrap_or("matches")));
        }
    }
    let policies = policies_of(&[
        "Allow from ns=bank ; to method=POST ; to path=/a header=x:a ; from to ; from",
        "Deny from !cidr=10.0.0.0/8 ; to host=i",
    ]);
    let access = PortAccess::new(&policies, 80);
    let (_, asked) = call_of("80 GET h/a");
    let mut heard = Heard(Vec::new());
    access.decide(&Known::of("web").peer(), asked.as_ref(), &mut heard);
    let expected = [
        "1.0: from.notCidrs",
        "1.1: to.hosts",
        "0.0: from.namespaces",
        "0.1: to.methods",
        "0.2: to.headers",
        "0.3: matches",
    ];
    assert_eq!(heard.0, expected);
}

#[test]
fn one_policy_by_two_ways_is_one() {
    let policies = policies_of(&["Allow from"]);
    let access = PortAccess::new(policies.iter().chain(&policies), 80);
    assert_eq!(access.policies().len(), 1);
}

/// A decision in words.
fn told(access: &PortAccess, decision: Decision) -> String {
    let word = |why| match why {
        Why::Default => " by default".to_owned(),
        Why::Rule(policy, rule) => format!(" by {}.{rule}", access.policies()[policy].name),
        Why::NoRule => ", no rule".to_owned(),
        Why::Rejected(policy) => format!(", {} was rejected", access.policies()[policy].name),
    };
    let verdict = if decision.is_allowed { "allowed" } else { "denied" };
    let tried = decision.would_deny.map_or(String::new(), |why| format!(", would be denied{}", word(why)));
    format!("{verdict}{}{tried}", word(decision.why))
}

/// A decision by the names of policies instead of their numbers.
fn named(access: &PortAccess, decision: Decision) -> reference::Verdict {
    let why = |why| match why {
        Why::Default => reference::Why::Default,
        Why::Rule(policy, rule) => reference::Why::Rule(access.policies()[policy].name.to_string(), rule),
        Why::NoRule => reference::Why::NoRule,
        Why::Rejected(policy) => reference::Why::Rejected(access.policies()[policy].name.to_string()),
    };
    reference::Verdict {
        is_allowed: decision.is_allowed,
        why: why(decision.why),
        would_deny: decision.would_deny.map(why),
    }
}

/// A peer that lives as long as what is known of it.
#[derive(Clone, Debug)]
struct Known {
    id: String,
    address: IpAddr,
}

impl Known {
    /// `web`, `web@10.0.0.1`, `spiffe://…`, `nobody`.
    fn of(text: &str) -> Self {
        let (name, address) = text.split_once('@').unwrap_or((text, "10.1.0.1"));
        let id = match name {
            "nobody" => String::new(),
            id if id.contains(':') => id.to_owned(),
            name => format!("spiffe://td/ns/shop/sa/{name}"),
        };
        Self { id, address: address.parse().unwrap() }
    }

    fn peer(&self) -> Peer<'_> {
        Peer { principal: Principal::of(&self.id, "td"), address: self.address }
    }
}

/// A request.
#[derive(Clone, Debug, Default)]
struct Asked {
    method: String,
    host: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl Request for Asked {
    fn method(&self) -> &str {
        &self.method
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.headers.iter().filter(|(n, _)| n == name).for_each(|(_, value)| each(value.as_bytes()));
    }
}

/// `80 GET host/path name:value …` or `80 bytes`.
fn call_of(text: &str) -> (u16, Option<Asked>) {
    let mut words = text.split(' ');
    let port = words.next().unwrap().parse().unwrap();
    let method = words.next().unwrap();
    if method == "bytes" {
        return (port, None);
    }
    let target = words.next().unwrap();
    let (host, path) = target.split_at(target.find('/').unwrap());
    let headers =
        words.map(|field| field.split_once(':').map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap()).collect();
    (port, Some(Asked { method: method.to_owned(), host: host.to_owned(), path: path.to_owned(), headers }))
}

fn policies_of(texts: &[&str]) -> Vec<Arc<AuthorizationPolicy>> {
    texts.iter().enumerate().map(|(number, text)| Arc::new(policy_of(number, text))).collect()
}

fn policy_of(number: usize, text: &str) -> AuthorizationPolicy {
    let (is_rejected, text) = text.strip_prefix("Rejected ").map_or((false, text), |text| (true, text));
    let (dry_run, text) = text.strip_prefix("Dry ").map_or((false, text), |text| (true, text));
    let (action, rules) = text.split_once(' ').unwrap_or((text, ""));
    let actions: BTreeMap<&str, Action> = [Action::Allow, Action::Deny, Action::Audit].map(|a| (a.as_str(), a)).into();
    let rules = rules.split(" ; ").filter(|rule| !rule.is_empty()).map(rule_of).collect();
    AuthorizationPolicy {
        namespace: "shop".into(),
        name: number.to_string().into(),
        target: Target::Namespace,
        action: actions[action],
        dry_run,
        rules: if is_rejected { Rules::Rejected } else { Rules::Any(rules) },
    }
}

fn rule_of(text: &str) -> Rule {
    let mut rule = Rule::default();
    for word in text.split(' ') {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let account = || value.split_once('/').map(|(namespace, name)| (namespace.into(), name.into())).unwrap();
        match key {
            "from" => rule.from.push(Source::default()),
            "to" => rule.to.push(Operation::default()),
            "id" => rule.from.last_mut().unwrap().identities.push(identity_of(value)),
            "!id" => rule.from.last_mut().unwrap().not_identities.push(identity_of(value)),
            "ns" => rule.from.last_mut().unwrap().namespaces.push(value.into()),
            "!ns" => rule.from.last_mut().unwrap().not_namespaces.push(value.into()),
            "sa" => rule.from.last_mut().unwrap().service_accounts.push(account()),
            "!sa" => rule.from.last_mut().unwrap().not_service_accounts.push(account()),
            "cidr" => rule.from.last_mut().unwrap().cidrs.push(value.parse().unwrap()),
            "!cidr" => rule.from.last_mut().unwrap().not_cidrs.push(value.parse().unwrap()),
            "port" => rule.to.last_mut().unwrap().ports.push(value.parse().unwrap()),
            "!port" => rule.to.last_mut().unwrap().not_ports.push(value.parse().unwrap()),
            "host" => rule.to.last_mut().unwrap().hosts.push(HostMatch::new(value).unwrap()),
            "!host" => rule.to.last_mut().unwrap().not_hosts.push(HostMatch::new(value).unwrap()),
            "method" => rule.to.last_mut().unwrap().methods.push(value.into()),
            "!method" => rule.to.last_mut().unwrap().not_methods.push(value.into()),
            "path" => rule.to.last_mut().unwrap().paths.push(path_of(value)),
            "!path" => rule.to.last_mut().unwrap().not_paths.push(path_of(value)),
            "header" => rule.to.last_mut().unwrap().headers.push(header_of(value)),
            "!header" => rule.to.last_mut().unwrap().not_headers.push(header_of(value)),
            _ => panic!("{word}"),
        }
    }
    rule
}

fn identity_of(text: &str) -> IdentityMatch {
    text.strip_suffix('*').map_or(IdentityMatch::Exact(text.into()), |prefix| IdentityMatch::Prefix(prefix.into()))
}

/// `/a`, `/a/*`, `/a/{b}`, `~regex`.
fn path_of(text: &str) -> PathMatch {
    match (text.strip_prefix('~'), text.strip_suffix('*')) {
        (Some(regex), _) => PathMatch::Regex(Pattern::new(regex).unwrap()),
        (_, Some(prefix)) => PathMatch::prefix(prefix).unwrap(),
        _ if text.contains('{') => PathMatch::Template(PathTemplate::new(text).unwrap()),
        _ => PathMatch::exact(text).unwrap(),
    }
}

/// `name` (is there), `name:value`, `name:prefix*`, `name:~regex`.
fn header_of(text: &str) -> HeaderMatch {
    let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
    let value = value.map_or(TextMatch::Present, |value| match (value.strip_prefix('~'), value.strip_suffix('*')) {
        (Some(regex), _) => TextMatch::Regex(Pattern::new(regex).unwrap()),
        (_, Some(prefix)) => TextMatch::Prefix(prefix.into()),
        _ => TextMatch::Exact(value.into()),
    });
    HeaderMatch { name: name.into(), value }
}
