//! Desired versus actual, to actions: a pure function.

use std::collections::{BTreeMap, BTreeSet};

use super::PodSpec;

/// One desired pod, with what the keeper found at its path.
#[derive(Clone, Debug)]
pub struct Desired {
    /// What the agent asked for.
    pub spec: PodSpec,
    /// The namespace at `netns_path`.
    pub namespace: Namespace,
}

/// What was found at a pod's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// A namespace, by its cookie.
    Found(u64),
    /// Nothing: the pod is gone.
    Gone(String),
    /// It could not be told. A pod that is in stays in: no passing trouble may take capture away.
    Unknown(String),
}

/// One pod that is enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actual {
    /// With what.
    pub spec: PodSpec,
    /// Where.
    pub netns_cookie: u64,
}

/// What to do, in order: releases come first, so that an address or a namespace can move to a successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take a pod out.
    Release {
        /// Pod uid.
        uid: String,
    },
    /// Put a pod in.
    Enrol {
        /// With what.
        spec: PodSpec,
    },
    /// Change exclusions, failure policy or addresses of a pod that stays in, without touching its listeners.
    Update {
        /// To what.
        spec: PodSpec,
    },
    /// Leave a pod as it is, in or out, and say why.
    Refuse {
        /// Pod uid.
        uid: String,
        /// For the operator.
        reason: String,
    },
}

/// The actions that lead from `actual` to `desired`. Pods in `unreadable` are wanted, but nobody knows how: they stay as
/// they are. The first of two pods that claim one namespace or address gets it (in the order given); one that already
/// has it keeps it.
#[must_use]
pub fn plan(desired: &[Desired], unreadable: &BTreeSet<String>, actual: &BTreeMap<String, Actual>) -> Vec<Action> {
    let mut releases = Vec::new();
    let mut rest = Vec::new();
    let wanted: BTreeMap<&str, &Desired> = desired.iter().rev().map(|d| (d.spec.uid.as_str(), d)).collect();

    let stays = |uid: &str, is: &Actual| {
        unreadable.contains(uid)
            || wanted.get(uid).is_some_and(|want| match &want.namespace {
                Namespace::Found(cookie) => *cookie == is.netns_cookie,
                Namespace::Unknown(_) => true,
                Namespace::Gone(_) => false,
            })
    };
    let mut cookies: BTreeMap<u64, &str> = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for (uid, is) in actual {
        if stays(uid, is) {
            cookies.insert(is.netns_cookie, uid);
            addresses.extend(is.spec.addresses.iter().map(|&a| (a, uid.as_str())));
        } else {
            releases.push(Action::Release { uid: uid.clone() });
        }
    }

    // Those that stay first: an address one of them gives up is free for a newcomer of the same round.
    let (staying, coming): (Vec<&Desired>, Vec<&Desired>) =
        desired.iter().partition(|want| actual.get(&want.spec.uid).is_some_and(|is| stays(&want.spec.uid, is)));
    let mut seen = BTreeSet::new();
    for want in staying.into_iter().chain(coming) {
        let spec = &want.spec;
        let uid = spec.uid.as_str();
        let mut refuse = |reason: String| {
            let reason = format!("pod {}: {reason}", spec.display());
            rest.push(Action::Refuse { uid: uid.to_owned(), reason });
        };
        if !seen.insert(uid) {
            refuse("listed twice".into());
            continue;
        }
        let cookie = match &want.namespace {
            Namespace::Found(cookie) => *cookie,
            Namespace::Gone(why) | Namespace::Unknown(why) => {
                refuse(why.clone());
                continue;
            }
        };
        let taken = spec.addresses.iter().find_map(|a| Some((a, addresses.get(a).filter(|other| **other != uid)?)));
        if spec.addresses.is_empty() {
            refuse("has no address yet".into());
        } else if let Some(other) = cookies.get(&cookie).filter(|other| **other != uid) {
            refuse(format!("its network namespace is already enrolled as pod {other}"));
        } else if let Some((address, other)) = taken {
            refuse(format!("address {address} is already enrolled as pod {other}"));
        } else {
            addresses.retain(|_, owner| *owner != uid);
            addresses.extend(spec.addresses.iter().map(|&a| (a, uid)));
            cookies.insert(cookie, uid);
            match actual.get(uid).filter(|is| stays(uid, is)) {
                Some(is) if is.spec == *spec => {}
                Some(_) => rest.push(Action::Update { spec: spec.clone() }),
                None => rest.push(Action::Enrol { spec: spec.clone() }),
            }
        }
    }
    releases.extend(rest);
    releases
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(uid: &str, address: &str) -> PodSpec {
        PodSpec {
            uid: uid.into(),
            namespace: "shop".into(),
            name: uid.into(),
            netns_path: format!("/run/netns/{uid}").into(),
            addresses: vec![address.parse().expect("address")],
            fail_open: false,
            exclude_outbound_cidrs: vec![],
            exclude_outbound_ports: vec![],
            exclude_inbound_ports: vec![],
            hbone: false,
            strict: false,
            strict_except: vec![],
        }
    }

    fn want(uid: &str, address: &str, cookie: u64) -> Desired {
        Desired { spec: spec(uid, address), namespace: Namespace::Found(cookie) }
    }

    fn is(uid: &str, address: &str, cookie: u64) -> (String, Actual) {
        (uid.into(), Actual { spec: spec(uid, address), netns_cookie: cookie })
    }

    fn go(desired: &[Desired], actual: &BTreeMap<String, Actual>) -> Vec<Action> {
        plan(desired, &BTreeSet::new(), actual)
    }

    fn words(actions: &[Action]) -> Vec<String> {
        actions
            .iter()
            .map(|action| match action {
                Action::Release { uid } => format!("-{uid}"),
                Action::Enrol { spec } => format!("+{}", spec.uid),
                Action::Update { spec } => format!("~{}", spec.uid),
                Action::Refuse { uid, .. } => format!("!{uid}"),
            })
            .collect()
    }

    #[test]
    fn nothing_to_do_when_all_is_as_desired() {
        let actual = BTreeMap::from([is("a", "10.0.0.1", 1)]);
        assert_eq!(words(&go(&[want("a", "10.0.0.1", 1)], &actual)), Vec::<String>::new());
    }

    #[test]
    fn releases_come_before_the_successor_of_an_address() {
        let actual = BTreeMap::from([is("old", "10.0.0.1", 1)]);
        assert_eq!(words(&go(&[want("new", "10.0.0.1", 2)], &actual)), ["-old", "+new"]);
    }

    #[test]
    fn a_new_sandbox_under_the_same_uid_is_enrolled_anew() {
        let actual = BTreeMap::from([is("a", "10.0.0.1", 1)]);
        assert_eq!(words(&go(&[want("a", "10.0.0.1", 2)], &actual)), ["-a", "+a"]);
    }

    #[test]
    fn a_vanished_namespace_releases_and_says_so() {
        let actual = BTreeMap::from([is("a", "10.0.0.1", 1)]);
        let mut gone = want("a", "10.0.0.1", 1);
        gone.namespace = Namespace::Gone("no such file".into());
        assert_eq!(words(&go(&[gone], &actual)), ["-a", "!a"]);
    }

    #[test]
    fn trouble_that_says_nothing_of_the_pod_leaves_it_in() {
        let actual = BTreeMap::from([is("a", "10.0.0.1", 1)]);
        let mut unknown = want("a", "10.0.0.1", 1);
        unknown.namespace = Namespace::Unknown("too many open files".into());
        assert_eq!(words(&go(&[unknown.clone()], &actual)), ["!a"]);
        assert_eq!(words(&go(&[unknown], &BTreeMap::new())), ["!a"]);
        let unreadable = BTreeSet::from(["a".to_owned()]);
        assert_eq!(words(&plan(&[], &unreadable, &actual)), Vec::<String>::new());
    }

    #[test]
    fn a_changed_address_updates_in_place() {
        let actual = BTreeMap::from([is("a", "10.0.0.1", 1), is("b", "10.0.0.2", 2)]);
        assert_eq!(words(&go(&[want("a", "10.0.0.9", 1), want("b", "10.0.0.2", 2)], &actual)), ["~a"]);
        assert_eq!(words(&go(&[want("a", "10.0.0.2", 1), want("b", "10.0.0.2", 2)], &actual)), ["!a"]);
    }

    #[test]
    fn who_has_an_address_keeps_it_against_a_newcomer() {
        let actual = BTreeMap::from([is("a", "10.0.0.1", 1)]);
        let actions = go(&[want("thief", "10.0.0.1", 2), want("a", "10.0.0.1", 1)], &actual);
        assert_eq!(words(&actions), ["!thief"]);
        let Action::Refuse { reason, .. } = &actions[0] else { panic!("refused") };
        assert!(reason.contains("shop/thief") && reason.contains("10.0.0.1") && reason.contains("pod a"), "{reason}");
    }

    #[test]
    fn of_two_with_one_uid_the_first_counts() {
        let actual = BTreeMap::from([is("a", "10.0.0.1", 1)]);
        let moved = want("a", "10.0.0.2", 1);
        let same = want("a", "10.0.0.1", 1);
        assert_eq!(words(&go(&[moved.clone(), same.clone()], &actual)), ["~a", "!a"]);
        assert_eq!(words(&go(&[same, moved], &actual)), ["!a"]);
    }

    #[test]
    fn one_namespace_is_one_pod() {
        let actions = go(&[want("a", "10.0.0.1", 1), want("b", "10.0.0.2", 1)], &BTreeMap::new());
        assert_eq!(words(&actions), ["+a", "!b"]);
    }

    #[test]
    fn changed_exclusions_update_in_place() {
        let actual = BTreeMap::from([is("a", "10.0.0.1", 1)]);
        let mut changed = want("a", "10.0.0.1", 1);
        changed.spec.exclude_outbound_ports = vec![9000];
        assert_eq!(words(&go(&[changed], &actual)), ["~a"]);
    }

    #[test]
    fn no_address_yet_waits() {
        let mut pending = want("a", "10.0.0.1", 1);
        pending.spec.addresses.clear();
        assert_eq!(words(&go(&[pending], &BTreeMap::new())), ["!a"]);
    }

    /// Carries a plan out on paper.
    fn apply(
        actions: &[Action],
        desired: &[Desired],
        mut actual: BTreeMap<String, Actual>,
    ) -> BTreeMap<String, Actual> {
        for action in actions {
            match action {
                Action::Release { uid } => {
                    assert!(actual.remove(uid).is_some(), "released what was not there");
                }
                Action::Enrol { spec } => {
                    let found = desired.iter().find(|d| d.spec == *spec).expect("desired");
                    let Namespace::Found(netns_cookie) = found.namespace else { panic!("no namespace") };
                    assert!(actual.values().all(|a| a.netns_cookie != netns_cookie), "one namespace twice");
                    let taken = actual.values().flat_map(|a| &a.spec.addresses).any(|a| spec.addresses.contains(a));
                    assert!(!taken, "one address twice");
                    let old = actual.insert(spec.uid.clone(), Actual { spec: spec.clone(), netns_cookie });
                    assert!(old.is_none(), "enrolled twice");
                }
                Action::Update { spec } => {
                    let others = actual.iter().filter(|(uid, _)| **uid != spec.uid);
                    let taken = others.flat_map(|(_, a)| &a.spec.addresses).any(|a| spec.addresses.contains(a));
                    assert!(!taken, "one address twice");
                    actual.get_mut(&spec.uid).expect("enrolled").spec = spec.clone();
                }
                Action::Refuse { uid, .. } => {
                    let _ = uid;
                }
            }
        }
        actual
    }

    proptest! {
        #[test]
        fn carried_out_it_is_stable_and_never_shares(
            first in proptest::collection::vec((0u8..6, 0u8..6, 0u64..6), 0..8),
            second in proptest::collection::vec((0u8..6, 0u8..6, 0u64..6), 0..8),
        ) {
            let desired = |rows: &[(u8, u8, u64)]| -> Vec<Desired> {
                rows.iter().map(|(u, a, c)| {
                    let mut d = want(&format!("p{u}"), &format!("10.0.0.{a}"), *c);
                    match *c {
                        5 => d.namespace = Namespace::Gone("gone".into()),
                        4 => d.namespace = Namespace::Unknown("who knows".into()),
                        _ => {}
                    }
                    d
                }).collect()
            };
            let (first, second) = (desired(&first), desired(&second));
            let one = apply(&go(&first, &BTreeMap::new()), &first, BTreeMap::new());
            let actions = go(&second, &one);
            let two = apply(&actions, &second, one);
            for uid in two.keys() {
                prop_assert!(second.iter().any(|d| d.spec.uid == *uid), "enrolled and not desired: {uid}");
            }
            // Who waits for an address that another gives up gets it in a later round: as many as there are pods.
            let mut settled = two;
            for _ in 0..second.len() {
                let actions = go(&second, &settled);
                settled = apply(&actions, &second, settled);
            }
            for action in go(&second, &settled) {
                prop_assert!(matches!(action, Action::Refuse { .. }), "{action:?}");
            }
        }
    }
}
