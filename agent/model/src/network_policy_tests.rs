//! What Kubernetes says of NetworkPolicy (the v1 API reference, and the recipes everybody starts from), one call a row.
//!
//! The rows are written in a small language. A policy: its namespace, the pods it isolates, then its rules. `<-` is an item of `ingress`,
//! `->` one of `egress`: peers, joined by `or` (`*`: none given, so everybody), then behind `@` the ports (not given: all; `none`: only
//! such of other protocols). A lone `<-` or `->` is the direction in `policyTypes` without any rule.

use std::collections::BTreeMap;

use super::*;
use crate::policies::{PolicyDelta, WorkloadPolicies};
use crate::snapshot::Delta;

/// Namespaces and their labels; `lost` is that of a pod, but nobody knows it.
const NAMESPACES: &[(&str, &str)] = &[("shop", "team=red,env=prod"), ("bank", "team=blue,env=prod"), ("bare", "")];

/// A pod with its addresses, labels and the names of its ports.
type Pod = (&'static str, &'static str, &'static str, &'static [(&'static str, u16)]);

const PODS: &[Pod] = &[
    ("shop/web", "10.1.0.1 fd00:1::1", "app=web,tier=front", &[("http", 8080), ("admin", 9090)]),
    // Two containers, both with a port of this name.
    ("shop/api", "10.1.0.2", "app=api,tier=back", &[("http", 8081), ("http", 8082)]),
    ("shop/db", "10.1.0.3", "app=db,tier=back,zone=", &[]),
    ("bank/web", "10.2.0.1", "app=web", &[("http", 80)]),
    ("bank/till", "10.2.0.2", "app=till", &[]),
    ("bare/job", "10.3.0.1", "", &[]),
    ("lost/stray", "10.4.0.1", "app=api", &[]),
    ("shop/host", "192.168.0.5", "app=api,tier=back", &[("http", 8080)]),
    ("shop/done", "10.1.0.9", "app=api,tier=back", &[]),
];

/// Policies, a call, and what is said of it at the caller and at the called pod.
type Row = (&'static [&'static str], &'static str, &'static str);

const WITHOUT_POLICIES: &[Row] = &[
    (&[], "shop/api > shop/web:8080", "open | open"),
    (&[], "bank/till > shop/web:1", "open | open"),
    (&["shop app=other <-"], "shop/api > shop/web:8080", "open | open"),
    (&["bank * <-"], "shop/api > shop/web:8080", "open | open"),
];

const ISOLATION: &[Row] = &[
    // Default deny, one direction at a time.
    (&["shop * <-"], "shop/api > shop/web:8080", "open | no rule of 0"),
    (&["shop * ->"], "shop/api > shop/web:8080", "no rule of 0 | open"),
    (&["shop * <- ->"], "shop/api > shop/web:8080", "no rule of 0 | no rule of 0"),
    (&["shop * <- ->"], "bank/till > shop/web:8080", "open | no rule of 0"),
    (&["shop * <- ->"], "shop/web > bank/till:80", "no rule of 0 | open"),
    (&["shop * <- ->"], "bank/till > bank/web:80", "open | open"),
    (&["shop app=web <-"], "shop/web > shop/api:8081", "open | open"),
    (&["shop app=web ->"], "shop/api > shop/web:8080", "open | open"),
    (&["shop tier=back <-"], "shop/web > shop/db:5432", "open | no rule of 0"),
    (&["shop app=web,tier=back <-"], "shop/api > shop/web:8080", "open | open"),
    // An answer belongs to the call: what isolates the called pod's egress is no matter.
    (&["shop app=web ->"], "shop/db > shop/web:8080", "open | open"),
    // Both sides have to allow.
    (&["shop app=api ->", "shop app=web <- *"], "shop/api > shop/web:8080", "no rule of 0 | rule 0 of 1"),
    (&["shop app=api -> *", "shop app=web <-"], "shop/api > shop/web:8080", "rule 0 of 0 | no rule of 1"),
    (&["shop app=api -> *", "shop app=web <- *"], "shop/api > shop/web:8080", "rule 0 of 0 | rule 0 of 1"),
    // Allow all.
    (&["shop * <- *"], "bare/job > shop/web:7", "open | rule 0 of 0"),
    (&["shop * -> *"], "shop/web > bare/job:7", "rule 0 of 0 | open"),
];

const UNION: &[Row] = &[
    (&["shop * <-", "shop app=web <- pods app=api"], "shop/api > shop/web:8080", "open | rule 0 of 1"),
    (&["shop app=web <- pods app=api", "shop * <-"], "shop/api > shop/web:8080", "open | rule 0 of 0"),
    (&["shop * <-", "shop app=web <- pods app=api"], "shop/db > shop/web:8080", "open | no rule of 0"),
    (&["shop * <- pods app=db", "shop * <- pods app=api"], "shop/api > shop/web:1", "open | rule 0 of 1"),
    (&["shop * <- pods app=db <- pods app=api"], "shop/api > shop/web:1", "open | rule 1 of 0"),
    (&["shop * <- pods app=db or pods app=api"], "shop/api > shop/web:1", "open | rule 0 of 0"),
    // One item joins peers with ports; ports of one policy do not go with the peers of another.
    (&["shop * <- pods app=db @ 1", "shop * <- pods app=api @ 2"], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["shop * <- pods app=db @ 1 <- pods app=api @ 2"], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["shop * <- pods app=db @ 1 <- pods app=api @ 2"], "shop/api > shop/web:2", "open | rule 1 of 0"),
    (&["shop * ->", "shop app=api -> pods app=web"], "shop/api > shop/web:8080", "rule 0 of 1 | open"),
];

const PEERS: &[Row] = &[
    // podSelector alone: the policy's own namespace.
    (&["shop * <- pods app=web"], "shop/web > shop/api:8081", "open | rule 0 of 0"),
    (&["shop * <- pods app=web"], "bank/web > shop/api:8081", "open | no rule of 0"),
    (&["shop * <- pods *"], "shop/db > shop/api:8081", "open | rule 0 of 0"),
    (&["shop * <- pods *"], "bank/web > shop/api:8081", "open | no rule of 0"),
    (&["shop * -> pods app=web"], "shop/api > bank/web:80", "no rule of 0 | open"),
    (&["shop * -> pods app=web"], "shop/api > shop/web:80", "rule 0 of 0 | open"),
    (&["bank * <- pods app=web"], "shop/web > bank/till:80", "open | no rule of 0"),
    (&["bank * <- pods app=web"], "bank/web > bank/till:80", "open | rule 0 of 0"),
    // namespaceSelector alone: all pods of these namespaces.
    (&["shop * <- namespaces team=blue"], "bank/till > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- namespaces team=blue"], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["shop * <- namespaces *"], "bare/job > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- namespaces *"], "shop/api > shop/web:1", "open | rule 0 of 0"),
    (&["shop * -> namespaces team=blue"], "shop/api > bank/till:1", "rule 0 of 0 | open"),
    (&["shop * -> namespaces team=blue"], "shop/api > bare/job:1", "no rule of 0 | open"),
    (&["shop * <- namespaces team=red or namespaces team=blue"], "bank/till > shop/web:1", "open | rule 0 of 0"),
    // Both in one item: both have to match.
    (&["shop * <- namespaces team=blue pods app=web"], "bank/web > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- namespaces team=blue pods app=web"], "bank/till > shop/web:1", "open | no rule of 0"),
    (&["shop * <- namespaces team=blue pods app=web"], "shop/web > shop/api:1", "open | no rule of 0"),
    // In two items: one is enough.
    (&["shop * <- namespaces team=blue or pods app=web"], "bank/till > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- namespaces team=blue or pods app=web"], "shop/web > shop/api:1", "open | rule 0 of 0"),
    (&["shop * <- namespaces team=blue or pods app=web"], "shop/db > shop/api:1", "open | no rule of 0"),
    // What is not known of a namespace, no selector may be satisfied by.
    (&["shop * <- namespaces !restricted"], "bare/job > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- namespaces !restricted"], "lost/stray > shop/web:1", "open | no rule of 0"),
    (&["shop * <- namespaces env!=dev"], "lost/stray > shop/web:1", "open | no rule of 0"),
    (&["shop * <- namespaces *"], "lost/stray > shop/web:1", "open | rule 0 of 0"),
    (&["lost * <- pods app=web"], "shop/web > lost/stray:1", "open | no rule of 0"),
    // A pod in the node's network has the node's address: an address is all there is to match. A finished one has none.
    (&["shop * <- pods app=api"], "shop/host > shop/web:1", "open | no rule of 0"),
    (&["shop * <- cidr 192.168.0.0/16"], "shop/host > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- pods app=api"], "shop/done > shop/web:1", "open | no rule of 0"),
];

const SELECTORS: &[Row] = &[
    (&["shop * <- pods app in (api|db)"], "shop/api > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- pods app in (api|db)"], "shop/web > shop/db:1", "open | no rule of 0"),
    (&["shop * <- pods app!=api"], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["shop * <- pods app!=api"], "shop/db > shop/web:1", "open | rule 0 of 0"),
    (&["bare * <- pods app!=api"], "bare/job > bare/job:1", "itself | itself"),
    // NotIn holds where the label is absent, In does not.
    (&["shop * <- namespaces * pods app!=api"], "bare/job > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- namespaces * pods app in (api|db)"], "bare/job > shop/web:1", "open | no rule of 0"),
    (&["shop * <- pods zone"], "shop/db > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- pods zone"], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["shop * <- pods zone="], "shop/db > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- pods zone="], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["shop * <- pods !zone"], "shop/db > shop/web:1", "open | no rule of 0"),
    (&["shop * <- pods !zone"], "shop/api > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- pods tier=back,app!=db"], "shop/api > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- pods tier=back,app!=db"], "shop/db > shop/web:1", "open | no rule of 0"),
    (&["shop * <- namespaces env=prod,team!=red"], "bank/web > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- namespaces env=prod,team!=red"], "shop/api > shop/web:1", "open | no rule of 0"),
    // Labels of pods, not of namespaces, and the other way round.
    (&["shop * <- pods team=red"], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["shop * <- namespaces app=web"], "bank/web > shop/web:1", "open | no rule of 0"),
];

const BLOCKS: &[Row] = &[
    (&["shop * <- cidr 10.2.0.0/16"], "bank/web > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- cidr 10.2.0.0/16"], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["shop * <- cidr 0.0.0.0/0"], "bare/job > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- cidr 10.2.0.0/16 except 10.2.0.1/32"], "bank/web > shop/web:1", "open | no rule of 0"),
    (&["shop * <- cidr 10.2.0.0/16 except 10.2.0.1/32"], "bank/till > shop/web:1", "open | rule 0 of 0"),
    (
        &["shop * <- cidr 10.0.0.0/8 except 10.3.0.0/16 except 10.2.0.2/31"],
        "bank/till > shop/web:1",
        "open | no rule of 0",
    ),
    (
        &["shop * <- cidr 10.0.0.0/8 except 10.3.0.0/16 except 10.2.0.2/31"],
        "bank/web > shop/web:1",
        "open | rule 0 of 0",
    ),
    // An exception is one of its own block only.
    (
        &["shop * <- cidr 10.0.0.0/8 except 10.2.0.0/16 or cidr 10.2.0.1/32"],
        "bank/web > shop/web:1",
        "open | rule 0 of 0",
    ),
    (&["shop * <- cidr 10.0.0.0/8 except 10.2.0.0/16 or pods app=api"], "shop/api > shop/web:1", "open | rule 0 of 0"),
    (&["shop * -> cidr 10.2.0.0/24 @ 80"], "shop/api > bank/web:80", "rule 0 of 0 | open"),
    (&["shop * -> cidr 10.2.0.0/24 @ 80"], "shop/api > bank/web:81", "no rule of 0 | open"),
    (&["shop * -> cidr 10.2.0.0/24 except 10.2.0.1/32"], "shop/api > bank/web:80", "no rule of 0 | open"),
    // Families do not mix, but a v4-mapped address is IPv4.
    (&["shop * <- cidr 10.1.0.2/32"], "shop/api@::ffff:10.1.0.2 > shop/web:1", "open | rule 0 of 0"),
    (&["shop * <- cidr 0.0.0.0/0 except 10.1.0.2/32"], "shop/api@::ffff:10.1.0.2 > shop/web:1", "open | no rule of 0"),
    (&["shop * <- cidr ::/0"], "shop/api > shop/web:1", "open | no rule of 0"),
    (&["bank * <- cidr ::/0"], "shop/web@fd00:1::1 > bank/web:1", "open | rule 0 of 0"),
    (&["bank * <- cidr 0.0.0.0/0"], "shop/web@fd00:1::1 > bank/web:1", "open | no rule of 0"),
    (&["shop * -> cidr fd00:1::/64"], "shop/api > shop/web@fd00:1::1:80", "rule 0 of 0 | open"),
];

const PORTS: &[Row] = &[
    (&["shop app=web <- * @ 8080"], "shop/api > shop/web:8080", "open | rule 0 of 0"),
    (&["shop app=web <- * @ 8080"], "shop/api > shop/web:8081", "open | no rule of 0"),
    (&["shop app=web <- * @ 80 8080"], "shop/api > shop/web:8080", "open | rule 0 of 0"),
    (&["shop app=web <- pods app=api @ 8080"], "shop/db > shop/web:8080", "open | no rule of 0"),
    // endPort: both ends belong to it.
    (&["shop * <- * @ 8000-8080"], "shop/api > shop/web:8000", "open | rule 0 of 0"),
    (&["shop * <- * @ 8000-8080"], "shop/api > shop/web:8080", "open | rule 0 of 0"),
    (&["shop * <- * @ 8000-8080"], "shop/api > shop/web:7999", "open | no rule of 0"),
    (&["shop * <- * @ 8000-8080"], "shop/api > shop/web:8081", "open | no rule of 0"),
    (&["shop * <- * @ 1-65535"], "shop/api > shop/web:65535", "open | rule 0 of 0"),
    (&["shop * <- * @ 8080-8000"], "shop/api > shop/web:8040", "open | no rule of 0"),
    // Names are those of the called pod.
    (&["shop * <- * @ http"], "bank/web > shop/web:8080", "open | rule 0 of 0"),
    (&["shop * <- * @ http"], "bank/web > shop/web:80", "open | no rule of 0"),
    (&["shop * <- * @ http"], "bank/web > shop/web:9090", "open | no rule of 0"),
    (&["shop * <- * @ http"], "bank/web > shop/api:8081", "open | rule 0 of 0"),
    (&["shop * <- * @ http"], "bank/web > shop/api:8082", "open | rule 0 of 0"),
    (&["shop * <- * @ http"], "bank/web > shop/db:8080", "open | no rule of 0"),
    (&["shop * <- * @ http 5432"], "bank/web > shop/db:5432", "open | rule 0 of 0"),
    (&["shop * <- * @ HTTP"], "bank/web > shop/web:8080", "open | no rule of 0"),
    (&["shop * -> * @ http"], "shop/web > bank/web:80", "rule 0 of 0 | open"),
    (&["shop * -> * @ http"], "shop/web > bank/web:8080", "no rule of 0 | open"),
    (&["shop * -> * @ http"], "shop/web > shop/api:8082", "rule 0 of 0 | open"),
    (&["shop * -> namespaces team=blue @ http"], "shop/web > bank/till:80", "no rule of 0 | open"),
    // Only ports of other protocols: nothing of TCP, and the pod is isolated all the same.
    (&["shop * <- * @ none"], "shop/api > shop/web:8080", "open | no rule of 0"),
    (&["shop * -> * @ none"], "shop/api > shop/web:53", "no rule of 0 | open"),
    (&["shop * <- * @ none <- * @ 8080"], "shop/api > shop/web:8080", "open | rule 1 of 0"),
];

const ITSELF: &[Row] = &[
    (&["shop * <- ->"], "shop/web > shop/web:8080", "itself | itself"),
    (&["shop * <- ->"], "shop/web@10.1.0.1 > shop/web@fd00:1::1:8080", "itself | itself"),
    (&["shop * <- ->"], "shop/web@127.0.0.1 > shop/web@127.0.0.1:8080", "itself | itself"),
    (&["shop * <- ->"], "shop/web@::1 > shop/web@::ffff:127.0.0.1:8080", "itself | itself"),
    (&["!shop *"], "shop/web > shop/web:8080", "itself | itself"),
];

const REJECTED: &[Row] = &[
    // Which directions it meant to isolate nobody knows: both.
    (&["!shop *"], "bank/till > shop/web:1", "open | rejected 0"),
    (&["!shop *"], "shop/web > bank/till:1", "rejected 0 | open"),
    (&["!shop * <- *"], "bank/till > shop/web:1", "open | rejected 0"),
    (&["!shop app=db"], "bank/till > shop/web:1", "open | open"),
    (&["!bank *"], "shop/api > shop/web:1", "open | open"),
    // The others still allow what they allow: to be right it could have added only.
    (&["!shop *", "shop app=web <- pods app=api"], "shop/api > shop/web:1", "rejected 0 | rule 0 of 1"),
    (&["!shop *", "shop app=web <- pods app=api"], "shop/db > shop/web:1", "rejected 0 | rejected 0"),
    (&["shop app=web <- pods app=api", "!shop *"], "bank/till > shop/web:1", "open | rejected 1"),
];

#[test]
fn rows() {
    let tables = [WITHOUT_POLICIES, ISOLATION, UNION, PEERS, SELECTORS, BLOCKS, PORTS, ITSELF, REJECTED];
    let mut count = 0;
    for (policies, call, expected) in tables.into_iter().flatten() {
        assert_eq!(told(policies, call), *expected, "{policies:?}: {call}");
        count += 1;
    }
    assert!(count >= 130, "{count}");
}

#[test]
fn the_outside_has_an_address_only() {
    let policies = [policy(0, "shop * <- namespaces * <- cidr 203.0.113.0/24 @ http")];
    let snapshot = snapshot(&policies);
    let web = pod(&snapshot, "shop/web");
    let to = Party::of(&snapshot, web, web.addresses[0]);
    let outside = |address: &str| Party { workload: None, namespace_labels: None, address: address.parse().unwrap() };
    let why = |from: &str, port| ingress(&policies, &outside(from), &to, port).why;
    assert_eq!(why("203.0.113.9", 8080), NetworkWhy::Rule(&policies[0], 1));
    assert_eq!(why("203.0.113.9", 80), NetworkWhy::NoRule(&policies[0]));
    assert_eq!(why("203.0.114.9", 8080), NetworkWhy::NoRule(&policies[0]));
    // Nothing outside has named a port.
    let out = [policy(0, "shop * -> * @ http")];
    assert!(!egress(&out, &to, &outside("203.0.113.9"), 8080).is_allowed);
}

#[test]
fn an_empty_selector_is_everything() {
    assert!(LabelSelector::default().matches(&Labels::new()));
    assert!(LabelSelector::default().matches(&labels("app=web")));
    let none = LabelSelector(vec![Requirement { key: "app".into(), operator: Operator::In(BTreeSet::new()) }]);
    assert!(!none.matches(&labels("app=web")));
}

/// What is said of a call at both ends.
fn told(policies: &[&str], call: &str) -> String {
    let policies: Vec<_> = policies.iter().enumerate().map(|(number, text)| policy(number, text)).collect();
    let snapshot = snapshot(&policies);
    let (from, to) = call.split_once(" > ").unwrap();
    let (to, port) = to.rsplit_once(':').unwrap();
    let end = |text: &str| {
        let (name, address) = text.split_once('@').map_or((text, None), |(name, address)| (name, Some(address)));
        let workload = pod(&snapshot, name).clone();
        let address = address.map_or(workload.addresses[0], |address| address.parse().unwrap());
        (workload, address)
    };
    let ((from, from_address), (to, to_address)) = (end(from), end(to));
    let to_addr = SocketAddr::new(to_address, port.parse().unwrap());
    let (at_caller, at_called) = between(&snapshot, &from, from_address, &to, to_addr);
    let word = |decision: NetworkDecision<'_>| {
        let (is_allowed, word) = match decision.why {
            NetworkWhy::Itself => (true, "itself".to_owned()),
            NetworkWhy::NotIsolated => (true, "open".to_owned()),
            NetworkWhy::Rule(policy, rule) => (true, format!("rule {rule} of {}", policy.name)),
            NetworkWhy::NoRule(policy) => (false, format!("no rule of {}", policy.name)),
            NetworkWhy::Rejected(policy) => (false, format!("rejected {}", policy.name)),
        };
        assert_eq!(decision.is_allowed, is_allowed);
        word
    };
    format!("{} | {}", word(at_caller), word(at_called))
}

fn pod<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Workload {
    snapshot.workload(&PodUid::new(name)).unwrap()
}

/// All pods, with the policies of each found out by its namespace and labels.
fn snapshot(policies: &[Arc<NetworkPolicy>]) -> Snapshot {
    let mut delta = Delta::default();
    for (name, addresses, label, ports) in PODS {
        let (namespace, short) = name.split_once('/').unwrap();
        let workload = Workload {
            addresses: addresses.split(' ').map(|address| address.parse().unwrap()).collect(),
            labels: Arc::new(labels(label)),
            named_ports: ports.iter().map(|(name, number)| (Arc::from(*name), *number)).collect(),
            host_network: short == "host",
            finished: short == "done",
            ..Workload::new(name, namespace, short)
        };
        let selecting =
            |policy: &&Arc<NetworkPolicy>| *policy.namespace == *namespace && policy.pods.matches(&workload.labels);
        let network = policies.iter().filter(selecting).cloned().collect();
        let of_pod = WorkloadPolicies { network, ..WorkloadPolicies::default() };
        delta.policies.workloads.push((workload.uid.clone(), Some(of_pod)));
        delta.workloads.push((workload.uid.clone(), Some(workload)));
    }
    let namespaces = NAMESPACES.iter().map(|(name, text)| (Arc::from(*name), Some(Arc::new(labels(text)))));
    delta.policies = PolicyDelta { namespaces: namespaces.collect(), ..delta.policies };
    Snapshot::new("a").apply(delta)
}

fn labels(text: &str) -> Labels {
    let pairs = text.split(',').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
}

/// The policy of a row, named by its place there; `!` in front: rejected.
fn policy(number: usize, text: &str) -> Arc<NetworkPolicy> {
    let (is_rejected, text) = text.strip_prefix('!').map_or((false, text), |text| (true, text));
    let spaced = format!("{text} ").replace("<- ", "\n<").replace("-> ", "\n>");
    let mut lines = spaced.lines().map(str::trim);
    let (namespace, pods) = lines.next().unwrap().split_once(' ').unwrap();
    let mut policy = NetworkPolicy {
        namespace: namespace.into(),
        name: number.to_string().into(),
        pods: selector(pods),
        ingress: None,
        egress: None,
        is_rejected,
    };
    for line in lines {
        let (direction, text) = line.split_at(1);
        let rules = if direction == "<" { &mut policy.ingress } else { &mut policy.egress };
        rules.get_or_insert_default().extend((!text.is_empty()).then(|| rule(text)));
    }
    Arc::new(policy)
}

fn rule(text: &str) -> NetworkRule {
    let (peers, ports) = text.split_once('@').map_or((text, None), |(peers, ports)| (peers, Some(ports)));
    let port = |text: &str| match text.split_once('-').unwrap_or((text, text)) {
        (first, last) if first.parse::<u16>().is_ok() => {
            NetworkPort::Range(first.parse().unwrap(), last.parse().unwrap())
        }
        _ => NetworkPort::Named(text.into()),
    };
    NetworkRule {
        peers: peers.split(" or ").map(str::trim).filter(|text| *text != "*").map(peer).collect(),
        ports: ports.map(|text| text.split_whitespace().filter(|text| *text != "none").map(port).collect()),
    }
}

fn peer(text: &str) -> NetworkPeer {
    if let Some(text) = text.strip_prefix("cidr ") {
        let mut nets = text.split(" except ").map(|net| net.trim().parse().unwrap());
        return NetworkPeer::Block { cidr: nets.next().unwrap(), except: nets.collect() };
    }
    match (text.strip_prefix("namespaces "), text.strip_prefix("pods ")) {
        (Some(text), _) => {
            let (namespaces, pods) = text.split_once(" pods ").unwrap_or((text, "*"));
            NetworkPeer::Pods { namespaces: Some(selector(namespaces)), pods: selector(pods) }
        }
        (_, Some(pods)) => NetworkPeer::Pods { namespaces: None, pods: selector(pods) },
        _ => panic!("{text}"),
    }
}

/// `a=b`, `a!=b`, `a in (b|c)`, `a` (is there), `!a` (is not), joined by commas; `*` is the empty one.
fn selector(text: &str) -> LabelSelector {
    let requirement = |text: &str| {
        let set = |values: &str| values.split('|').map(Arc::from).collect();
        let (key, operator) = if let Some((key, value)) = text.split_once("!=") {
            (key, Operator::NotIn(set(value)))
        } else if let Some((key, value)) = text.split_once('=') {
            (key, Operator::In(set(value)))
        } else if let Some((key, values)) = text.split_once(" in ") {
            (key, Operator::In(set(values.trim_matches(['(', ')']))))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (text, Operator::Exists)
        };
        Requirement { key: key.into(), operator }
    };
    LabelSelector(text.split(',').map(str::trim).filter(|text| *text != "*").map(requirement).collect())
}
