//! Tables and properties of eligibility and choice.

use proptest::prelude::*;

use super::*;
use crate::service::ServicePort;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// `addr[@node] flags`, flags of `r`eady, `s`erving, `t`erminating.
fn endpoint(text: &str) -> Endpoint {
    let (addr, flags) = text.split_once(' ').unwrap();
    let (addr, node) = addr.split_once('@').unwrap_or((addr, ""));
    Endpoint {
        node: node.into(),
        ready: flags.contains('r'),
        serving: flags.contains('s'),
        terminating: flags.contains('t'),
        ..Endpoint::ready(at(addr))
    }
}

fn service(endpoints: &[&str]) -> Service {
    let port = ServicePort {
        name: "http".into(),
        port: 80,
        app_protocol: None,
        endpoints: endpoints.iter().map(|e| endpoint(e)).collect(),
    };
    Service { ports: vec![port], ..Service::new("shop", "web") }
}

#[test]
fn eligibility_table() {
    use Class::{Published, Ready, ServingTerminating};
    use Refusal::{NoLocalEndpoint, NoReadyEndpoint};
    const TWO_READY: &[&str] = &["10.0.0.1:80@a rs", "10.0.0.2:80@b rs"];
    const DRAINING: &[&str] = &["10.0.0.1:80@a st", "10.0.0.2:80@b t", "10.0.0.3:80@b -"];
    const MIXED: &[&str] = &["10.0.0.1:80@a rs", "10.0.0.2:80@b st", "[fd00::1]:80@a rs"];
    const ONLY_V6: &[&str] = &["[fd00::1]:80@a rs"];
    // (endpoints, settings, family, expected indices or refusal)
    type Expected = Result<(Class, &'static [u32]), Refusal>;
    let table: &[(&[&str], &str, Family, Expected)] = &[
        (TWO_READY, "", Family::V4, Ok((Ready, &[0, 1]))),
        (TWO_READY, "local", Family::V4, Ok((Ready, &[0]))),
        (TWO_READY, "", Family::V6, Err(NoReadyEndpoint)),
        (TWO_READY, "local", Family::V6, Err(NoLocalEndpoint)),
        (DRAINING, "", Family::V4, Ok((ServingTerminating, &[0]))),
        (DRAINING, "local", Family::V4, Ok((ServingTerminating, &[0]))),
        (DRAINING, "publish", Family::V4, Ok((Published, &[0, 1, 2]))),
        (DRAINING, "publish local", Family::V4, Ok((Published, &[0]))),
        (&["10.0.0.2:80@b t", "10.0.0.3:80@b -"], "", Family::V4, Err(NoReadyEndpoint)),
        (&["10.0.0.2:80@b rs"], "local", Family::V4, Err(NoLocalEndpoint)),
        (&["10.0.0.2:80@a -", "10.0.0.3:80@b rs"], "local", Family::V4, Err(NoReadyEndpoint)),
        // An endpoint without a node is on no node, not on every one.
        (&["10.0.0.2:80 rs"], "local", Family::V4, Err(NoLocalEndpoint)),
        (MIXED, "", Family::V4, Ok((Ready, &[0]))),
        (MIXED, "", Family::V6, Ok((Ready, &[2]))),
        (ONLY_V6, "", Family::V4, Err(NoReadyEndpoint)),
        (ONLY_V6, "", Family::V6, Ok((Ready, &[0]))),
        (&[], "", Family::V4, Err(NoReadyEndpoint)),
        (&[], "publish", Family::V4, Err(NoReadyEndpoint)),
        (&[], "local", Family::V4, Err(NoLocalEndpoint)),
    ];
    for (endpoints, settings, family, expected) in table {
        let service = Service {
            internal_local: settings.contains("local"),
            publish_not_ready: settings.contains("publish"),
            ..service(endpoints)
        };
        let actual = candidates(&service, 0, *family, "a");
        let actual = actual.map(|c| {
            let indices: Vec<u32> = c.indices().map(|i| i as u32).collect();
            assert_eq!(c.eligible.is_none(), indices.len() == c.endpoints.len(), "an allocation only where needed");
            (c.class, indices)
        });
        let expected = expected.map(|(class, indices)| (class, indices.to_vec()));
        assert_eq!(actual, expected, "{endpoints:?} {settings} {family:?}");
    }
}

#[test]
fn a_node_without_a_name_has_no_local_endpoint() {
    let service = Service { internal_local: true, ..service(&["10.0.0.1:80 rs"]) };
    assert_eq!(candidates(&service, 0, Family::V4, ""), Err(Refusal::NoLocalEndpoint));
}

#[test]
fn a_rejected_service_and_an_unknown_port_are_refused() {
    let rejected = Service { invalid: true, ..service(&["10.0.0.1:80 rs"]) };
    assert_eq!(candidates(&rejected, 0, Family::V4, "a"), Err(Refusal::InvalidObject));
    assert_eq!(candidates(&service(&[]), 1, Family::V4, "a"), Err(Refusal::NoSuchServicePort));
}

fn of(endpoints: &[&str]) -> Candidates {
    candidates(&service(endpoints), 0, Family::V4, "a").unwrap()
}

#[test]
fn choice_table() {
    let three = of(&["10.0.0.1:80 rs", "10.0.0.2:80 rs", "10.0.0.3:80 rs"]);
    let load = |e: &Endpoint| match e.addr.ip().to_string().as_str() {
        "10.0.0.1" => 5,
        _ => 2,
    };
    // Zero bits draw the first and the second.
    let pick = least_request(&three, load, 0, &[]).unwrap();
    assert_eq!((pick.index, pick.why), (1, PickReason::LessLoaded { load: 2, other_load: 5 }));
    // All bits draw the last and the one before it.
    let pick = least_request(&three, load, u64::MAX, &[]).unwrap();
    assert_eq!((pick.index, pick.why), (2, PickReason::EqualLoad { load: 2 }));
    let tried = [at("10.0.0.2:80")];
    let pick = least_request(&three, load, 0, &tried).unwrap();
    assert_eq!((pick.index, pick.why), (2, PickReason::LessLoaded { load: 2, other_load: 5 }));
    let tried = [at("10.0.0.2:80"), at("10.0.0.3:80")];
    let pick = least_request(&three, load, 0, &tried).unwrap();
    assert_eq!((pick.index, pick.why), (0, PickReason::OnlyOne));
    let tried = [at("10.0.0.1:80"), at("10.0.0.2:80"), at("10.0.0.3:80")];
    assert_eq!(least_request(&three, load, 0, &tried), None);
}

#[test]
fn affinity_table() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let some = of(&["10.0.0.1:80 rs", "10.0.0.2:80 -", "10.0.0.3:80 rs"]);
    let third = at("10.0.0.3:80");
    let age = Duration::from_secs;
    type Case<'a> = (Option<(SocketAddr, Duration)>, &'a [SocketAddr], Affinity);
    let table: &[Case<'_>] = &[
        (None, &[], Affinity::Anew(Forgotten::NewClient)),
        (Some((third, age(0))), &[], Affinity::Keep(2)),
        (Some((third, age(9))), &[], Affinity::Keep(2)),
        (Some((third, age(10))), &[], Affinity::Anew(Forgotten::Expired)),
        (Some((at("10.0.0.2:80"), age(1))), &[], Affinity::Anew(Forgotten::NotEligible)),
        (Some((at("10.0.0.9:80"), age(1))), &[], Affinity::Anew(Forgotten::NotEligible)),
        (Some((at("10.0.0.3:81"), age(1))), &[], Affinity::Anew(Forgotten::NotEligible)),
        (Some((third, age(1))), &[third], Affinity::Anew(Forgotten::Tried)),
        (Some((third, age(1))), &[at("10.0.0.1:80")], Affinity::Keep(2)),
    ];
    for (remembered, tried, expected) in table {
        assert_eq!(affinity(&some, *remembered, TIMEOUT, tried), *expected, "{remembered:?} {tried:?}");
    }
}

/// SplitMix64: seeded, so a failure repeats.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

pub(super) fn many(count: u32) -> Candidates {
    let endpoints = (1..=count).map(|i| Endpoint::ready(SocketAddr::new(std::net::Ipv4Addr::from(i).into(), 80)));
    let mut service = service(&[]);
    service.ports[0].endpoints = endpoints.collect();
    candidates(&service, 0, Family::V4, "a").unwrap()
}

#[test]
fn draws_are_uniform_when_loads_are_equal() {
    const ENDPOINTS: usize = 10;
    const DRAWS: usize = 100_000;
    let candidates = many(ENDPOINTS as u32);
    let mut random = Random(42);
    let mut hits = [0_usize; ENDPOINTS];
    for _ in 0..DRAWS {
        hits[least_request(&candidates, |_| 0, random.next(), &[]).unwrap().index] += 1;
    }
    // Chi-square with 9 degrees of freedom: 27.9 is exceeded with probability 0.001.
    let expected = (DRAWS / ENDPOINTS) as f64;
    let chi: f64 = hits.iter().map(|&h| (h as f64 - expected).powi(2) / expected).sum();
    assert!(chi < 27.9, "chi-square {chi}, {hits:?}");
}

#[test]
fn every_ordered_pair_is_drawn_alike() {
    let mut random = Random(7);
    let mut hits = std::collections::HashMap::new();
    for _ in 0..120_000 {
        *hits.entry(draw::two_of(4, random.next())).or_insert(0_u32) += 1;
    }
    assert_eq!(hits.len(), 12);
    assert!(hits.keys().all(|(a, b)| a != b && *a < 4 && *b < 4));
    // 10,000 each, standard deviation 96.
    assert!(hits.values().all(|h| (9_500..10_500).contains(h)), "{hits:?}");
}

#[test]
fn two_choices_keep_the_greatest_load_near_the_mean() {
    // 10 n balls into n bins: by one choice the fullest is about sqrt(20 ln n) = 12 above the mean, by two only
    // ln ln n / ln 2 + O(1), about 3: the reason to draw twice.
    const ENDPOINTS: usize = 1_000;
    let candidates = many(ENDPOINTS as u32);
    let mut random = Random(1);
    let mut by_two = vec![0_u32; ENDPOINTS];
    let mut by_one = vec![0_u32; ENDPOINTS];
    for _ in 0..ENDPOINTS * 10 {
        let bits = random.next();
        let load = |e: &Endpoint| by_two[candidates.find(e.addr).unwrap()];
        let index = least_request(&candidates, load, bits, &[]).unwrap().index;
        by_two[index] += 1;
        by_one[draw::two_of(ENDPOINTS, bits).0] += 1;
    }
    let (two, one) = (*by_two.iter().max().unwrap(), *by_one.iter().max().unwrap());
    assert!(two <= 14, "fullest of {ENDPOINTS} with mean load 10 by two choices: {two}");
    assert!(one > two + 4, "the positive control, one choice, should be clearly worse: {one} against {two}");
}

fn some_endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    proptest::collection::btree_map(0_u8..20, (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()), 0..12)
        .prop_map(|map| {
            let endpoint = |(host, (ready, serving, terminating, here)): (u8, (bool, bool, bool, bool))| Endpoint {
                node: if here { "a" } else { "b" }.into(),
                ready,
                serving,
                terminating,
                ..Endpoint::ready(SocketAddr::new([10, 0, 0, host].into(), 80))
            };
            map.into_iter().map(endpoint).collect()
        })
}

proptest! {
    #[test]
    fn only_eligible_untried_endpoints_are_chosen(
        endpoints in some_endpoints(), publish: bool, local: bool, random: u64,
        tried in proptest::collection::vec(0_u8..20, 0..6), loads in proptest::collection::vec(0_u32..5, 20),
    ) {
        let mut service = service(&[]);
        service.ports[0].endpoints = endpoints.into();
        (service.publish_not_ready, service.internal_local) = (publish, local);
        let tried: Vec<SocketAddr> = tried.into_iter().map(|h| SocketAddr::new([10, 0, 0, h].into(), 80)).collect();
        let load = |e: &Endpoint| match e.addr.ip() {
            std::net::IpAddr::V4(ip) => loads[usize::from(ip.octets()[3])],
            std::net::IpAddr::V6(_) => 0,
        };
        let Ok(candidates) = candidates(&service, 0, Family::V4, "a") else { return Ok(()) };
        prop_assert!(!candidates.is_empty());
        prop_assert!(candidates.indices().is_sorted());
        match least_request(&candidates, load, random, &tried) {
            None => prop_assert!(candidates.iter().all(|e| tried.contains(&e.addr))),
            Some(pick) => {
                let e = pick.endpoint;
                prop_assert_eq!(candidates.find(e.addr), Some(pick.index));
                prop_assert!(!tried.contains(&e.addr));
                prop_assert!(!local || &*e.node == "a");
                let good = match candidates.class {
                    Class::Ready => e.ready,
                    Class::ServingTerminating => e.serving && e.terminating && !candidates.iter().any(|e| e.ready),
                    Class::Published => publish,
                };
                prop_assert!(good);
                match pick.why {
                    PickReason::OnlyOne => {
                        prop_assert_eq!(candidates.iter().filter(|e| !tried.contains(&e.addr)).count(), 1);
                    }
                    PickReason::LessLoaded { load: mine, other_load } => {
                        prop_assert!(mine == load(e) && mine < other_load);
                    }
                    PickReason::EqualLoad { load: mine } => prop_assert_eq!(mine, load(e)),
                    why => prop_assert!(false, "{:?} is no reason of least request", why),
                }
            }
        }
    }
}
