//! What an address means, conflicts included, and that history leaves no trace.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::service::Endpoint;
use crate::time::Timestamp;

fn dst(text: &str) -> OriginalDst {
    OriginalDst::new(text.parse().unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, address: &str, created: Option<i64>) -> Workload {
    Workload {
        addresses: vec![ip(address)],
        created: created.map(Timestamp::from_unix),
        ..Workload::new(&format!("uid-{name}"), "shop", name)
    }
}

fn cluster_ip(name: &str, vip: &str, endpoints: &[&str]) -> Service {
    Service { cluster_ips: vec![ip(vip)], ..external(name, vip, None, endpoints) }
}

fn external(name: &str, vip: &str, created: Option<i64>, endpoints: &[&str]) -> Service {
    let endpoints = endpoints.iter().map(|a| Endpoint::ready(a.parse().unwrap())).collect();
    Service {
        vips: vec![ip(vip)],
        created: created.map(Timestamp::from_unix),
        ports: vec![ServicePort { name: "".into(), port: 80, app_protocol: None, endpoints }],
        ..Service::new("shop", name)
    }
}

fn snapshot(pods: Vec<Workload>, services: Vec<Service>) -> Snapshot {
    Snapshot::new("a").apply(Delta {
        workloads: pods.into_iter().map(|p| (p.uid.clone(), Some(p))).collect(),
        services: services.into_iter().map(|s| (s.key(), Some(s))).collect(),
        ..Delta::default()
    })
}

fn deny(snapshot: &Snapshot) -> Snapshot {
    let mesh = MeshConfig { outbound_policy: OutboundPolicy::Deny, ..MeshConfig::default() };
    snapshot.apply(Delta { mesh: Some(mesh), ..Delta::default() })
}

#[test]
fn the_called_side_knows_which_service_it_stands_behind() {
    let mut unready = cluster_ip("cart", "10.96.0.2", &["10.1.0.2:8080"]);
    Arc::make_mut(&mut unready.ports[0].endpoints)[0].ready = false;
    let services = vec![
        cluster_ip("web", "10.96.0.1", &["10.1.0.1:8080", "10.1.0.3:8080"]),
        unready,
        cluster_ip("also", "10.96.0.3", &["10.1.0.1:8080"]),
    ];
    let mut snapshot = snapshot(vec![pod("web-1", "10.1.0.1", None)], services);
    let told = |snapshot: &Snapshot, addr: &str| {
        snapshot.service_of_endpoint(addr.parse().unwrap()).map(|(service, port)| format!("{}:{port}", service.name))
    };
    assert_eq!(told(&snapshot, "10.1.0.1:8080").as_deref(), Some("also:80"), "of two the first by name");
    assert_eq!(told(&snapshot, "[::ffff:10.1.0.3]:8080").as_deref(), Some("web:80"), "v4-mapped is IPv4");
    assert_eq!(told(&snapshot, "10.1.0.2:8080").as_deref(), Some("cart:80"), "ready or not, it was called");
    assert_eq!(told(&snapshot, "10.1.0.1:9090"), None, "another port of the pod");
    assert_eq!(told(&snapshot, "10.96.0.1:80"), None, "a ClusterIP is no endpoint");
    snapshot = snapshot.apply(Delta { services: vec![(("shop".into(), "also".into()), None)], ..Delta::default() });
    assert_eq!(told(&snapshot, "10.1.0.1:8080").as_deref(), Some("web:80"));
}

/// The resolution in a few words.
fn told(resolution: &Resolution) -> String {
    match resolution {
        Resolution::Service { service, port_index, candidates } => {
            let list: Vec<String> = candidates.iter().map(|e| e.addr.to_string()).collect();
            format!("service {}:{} {}", service.name, service.ports[*port_index].port, list.join(" "))
        }
        Resolution::Workload { workload, addr } => format!("pod {} {addr}", workload.name),
        Resolution::External { addr } => format!("external {addr}"),
        Resolution::Unserved { refusal, .. } | Resolution::Refused(refusal) => format!("refused {refusal:?}"),
    }
}

#[track_caller]
fn check(snapshot: &Snapshot, table: &[(&str, &str)]) {
    for (addr, expected) in table {
        assert_eq!(told(&snapshot.resolve(None, dst(addr))), *expected, "{addr}");
    }
}

#[test]
fn what_an_address_means() {
    let headless = Service {
        headless: true,
        vips: vec![],
        ..external("db", "10.96.0.9", None, &["10.1.0.2:5432", "192.0.2.7:5432"])
    };
    let host_pod = Workload { host_network: true, ..pod("host", "172.18.0.2", None) };
    let done = Workload { finished: true, ..pod("job", "10.1.0.3", None) };
    let state = snapshot(
        vec![pod("web-0", "10.1.0.1", None), pod("db-0", "10.1.0.2", None), host_pod, done],
        vec![
            cluster_ip("web", "10.96.0.1", &["10.1.0.1:8080"]),
            cluster_ip("empty", "10.96.0.2", &[]),
            external("lb", "203.0.113.1", None, &["10.1.0.1:8080"]),
            headless,
        ],
    );
    check(
        &state,
        &[
            ("10.96.0.1:80", "service web:80 10.1.0.1:8080"),
            ("[::ffff:10.96.0.1]:80", "service web:80 10.1.0.1:8080"),
            ("10.96.0.1:81", "refused NoSuchServicePort"),
            ("10.96.0.2:80", "refused NoReadyEndpoint"),
            ("203.0.113.1:80", "service lb:80 10.1.0.1:8080"),
            ("10.1.0.1:9999", "pod web-0 10.1.0.1:9999"),
            ("10.1.0.2:5432", "pod db-0 10.1.0.2:5432"),
            ("10.1.0.3:80", "external 10.1.0.3:80"),
            ("172.18.0.2:80", "external 172.18.0.2:80"),
            ("192.0.2.7:5432", "external 192.0.2.7:5432"),
            ("198.51.100.1:443", "external 198.51.100.1:443"),
        ],
    );
    check(
        &deny(&state),
        &[
            ("10.96.0.1:80", "service web:80 10.1.0.1:8080"),
            ("10.1.0.1:9999", "pod web-0 10.1.0.1:9999"),
            ("172.18.0.2:80", "refused OutboundDenied"),
            // A headless Service names it, so somebody knows it.
            ("192.0.2.7:5432", "external 192.0.2.7:5432"),
            ("198.51.100.1:443", "refused OutboundDenied"),
        ],
    );
}

#[test]
fn the_newest_pod_owns_an_address() {
    let state = snapshot(
        vec![pod("b", "10.1.0.1", Some(1)), pod("old", "10.1.0.1", None), pod("a", "10.1.0.1", Some(2))],
        vec![],
    );
    check(&state, &[("10.1.0.1:80", "pod a 10.1.0.1:80")]);
    let gone = state.apply(Delta { workloads: vec![(PodUid::new("uid-a"), None)], ..Delta::default() });
    check(&gone, &[("10.1.0.1:80", "pod b 10.1.0.1:80")]);
    let finished = Workload { finished: true, ..pod("b", "10.1.0.1", Some(1)) };
    let finished = gone.apply(Delta { workloads: vec![(finished.uid.clone(), Some(finished))], ..Delta::default() });
    check(&finished, &[("10.1.0.1:80", "pod old 10.1.0.1:80")]);
}

#[test]
fn a_tie_goes_to_the_first_by_name() {
    let state = snapshot(vec![pod("b", "10.1.0.1", Some(5)), pod("a", "10.1.0.1", Some(5))], vec![]);
    check(&state, &[("10.1.0.1:80", "pod a 10.1.0.1:80")]);
}

#[test]
fn a_pod_that_calls_its_own_address_reaches_itself() {
    let state = snapshot(vec![pod("old", "10.1.0.1", Some(1)), pod("new", "10.1.0.1", Some(2))], vec![]);
    let old = state.workload(&PodUid::new("uid-old")).unwrap();
    assert_eq!(told(&state.resolve(Some(old), dst("10.1.0.1:80"))), "pod old 10.1.0.1:80");
}

#[test]
fn external_addresses_capture_nothing_that_belongs_to_others() {
    let mut thief = external("thief", "10.96.0.1", Some(1), &["10.6.6.6:80"]);
    thief.vips.push(ip("10.1.0.1"));
    let state =
        snapshot(vec![pod("web-0", "10.1.0.1", None)], vec![cluster_ip("web", "10.96.0.1", &["10.1.0.1:8080"]), thief]);
    check(
        &state,
        &[
            ("10.96.0.1:80", "service web:80 10.1.0.1:8080"),
            ("10.96.0.1:81", "refused NoSuchServicePort"),
            ("10.1.0.1:80", "pod web-0 10.1.0.1:80"),
        ],
    );
}

#[test]
fn of_two_services_on_one_external_address_the_oldest_has_the_port() {
    let mut shared = external("shared", "203.0.113.1", Some(9), &["10.1.0.3:80"]);
    shared.ports[0].port = 443;
    let state = snapshot(
        vec![],
        vec![
            external("undated", "203.0.113.1", None, &["10.1.0.1:80"]),
            external("younger", "203.0.113.1", Some(5), &["10.1.0.1:80"]),
            external("older", "203.0.113.1", Some(4), &["10.1.0.2:80"]),
            shared,
        ],
    );
    check(
        &state,
        &[
            ("203.0.113.1:80", "service older:80 10.1.0.2:80"),
            ("203.0.113.1:443", "service shared:443 10.1.0.3:80"),
            ("203.0.113.1:444", "refused NoSuchServicePort"),
        ],
    );
}

#[test]
fn a_rejected_service_refuses_its_own_addresses_only() {
    let rejected = Service { invalid: true, ports: vec![], ..cluster_ip("bad", "10.96.0.1", &[]) };
    let shares = Service { invalid: true, ports: vec![], ..external("worse", "203.0.113.1", Some(1), &[]) };
    let state = snapshot(
        vec![],
        vec![
            rejected,
            shares,
            cluster_ip("web", "10.96.0.2", &["10.1.0.1:80"]),
            external("neighbour", "203.0.113.1", Some(2), &["10.1.0.2:80"]),
        ],
    );
    check(
        &state,
        &[
            ("10.96.0.1:80", "refused InvalidObject"),
            ("10.96.0.2:80", "service web:80 10.1.0.1:80"),
            ("203.0.113.1:80", "service neighbour:80 10.1.0.2:80"),
            ("203.0.113.1:81", "refused InvalidObject"),
        ],
    );
}

#[test]
fn dual_stack_answers_in_the_family_of_the_call() {
    let mut web = cluster_ip("web", "10.96.0.1", &["[fd00:1::1]:80", "10.1.0.1:80"]);
    web.vips.push(ip("fd00:96::1"));
    web.cluster_ips.push(ip("fd00:96::1"));
    let state = snapshot(vec![], vec![web]);
    check(
        &state,
        &[("10.96.0.1:80", "service web:80 10.1.0.1:80"), ("[fd00:96::1]:80", "service web:80 [fd00:1::1]:80")],
    );
}

#[test]
fn endpoints_share_the_snapshots_workloads_and_are_put_in_order() {
    let host = Workload { host_network: true, ..pod("host", "172.18.0.2", None) };
    let mut web = cluster_ip("web", "10.96.0.1", &["172.18.0.2:80", "10.1.0.1:80", "10.1.0.0:80", "10.1.0.1:80"]);
    let mut endpoints = web.ports[0].endpoints.to_vec();
    endpoints[0].workload = Some(Arc::new(host.clone()));
    // Not the owner of its address, so the link does not count.
    endpoints[2].workload = Some(Arc::new(pod("stranger", "10.9.9.9", None)));
    web.ports[0].endpoints = endpoints.into();
    let state = snapshot(vec![pod("web-0", "10.1.0.1", None), host], vec![web]);
    let endpoints = &state.service("shop", "web").unwrap().ports[0].endpoints;
    let addresses: Vec<String> = endpoints.iter().map(|e| e.addr.to_string()).collect();
    assert_eq!(addresses, ["10.1.0.0:80", "10.1.0.1:80", "172.18.0.2:80"]);
    let own = |uid| state.workload(&PodUid::new(uid)).unwrap();
    assert_eq!(endpoints[0].workload, None);
    assert!(Arc::ptr_eq(endpoints[1].workload.as_ref().unwrap(), own("uid-web-0")));
    assert!(Arc::ptr_eq(endpoints[2].workload.as_ref().unwrap(), own("uid-host")));
}

#[test]
fn links_follow_the_owner_of_an_address() {
    let state = snapshot(vec![pod("old", "10.1.0.1", Some(1))], vec![cluster_ip("web", "10.96.0.1", &["10.1.0.1:80"])]);
    let link = |state: &Snapshot| {
        let web = state.service("shop", "web").unwrap();
        let link = web.ports[0].endpoints[0].workload.as_ref();
        assert!(link.is_none_or(|pod| Arc::ptr_eq(pod, state.workload(&pod.uid).unwrap())));
        link.map(|pod| pod.name.to_string())
    };
    assert_eq!(link(&state).as_deref(), Some("old"));
    let set = |state: &Snapshot, uid: &str, pod: Option<Workload>| {
        state.apply(Delta { workloads: vec![(PodUid::new(uid), pod)], ..Delta::default() })
    };
    let state = set(&state, "uid-new", Some(pod("new", "10.1.0.1", Some(2))));
    assert_eq!(link(&state).as_deref(), Some("new"));
    let state = set(&state, "uid-new", Some(Workload { finished: true, ..pod("new", "10.1.0.1", Some(2)) }));
    assert_eq!(link(&state).as_deref(), Some("old"));
    let state = set(&state, "uid-old", None);
    assert_eq!(link(&state), None);
}

#[test]
fn a_published_snapshot_never_changes() {
    let first = snapshot(vec![pod("web-0", "10.1.0.1", None)], vec![cluster_ip("web", "10.96.0.1", &["10.1.0.1:80"])]);
    let before = first.clone();
    let second = first.apply(Delta {
        workloads: vec![(PodUid::new("uid-web-0"), None)],
        services: vec![(("shop".into(), "web".into()), None)],
        ..Delta::default()
    });
    assert!(first.same_state(&before) && !second.same_state(&first));
    assert_eq!((first.generation, second.generation), (1, 2));
    assert_eq!((second.workload_count(), second.service_count()), (0, 0));
    assert!(second.same_state(&Snapshot::new("a")), "nothing may be left behind in any index");
}

/// A small world, so that objects collide often.
fn some_pod() -> impl Strategy<Value = Workload> {
    let addresses = proptest::collection::vec(0_u8..4, 0..3);
    (0_u8..5, addresses, proptest::option::of(0_i64..3), any::<bool>(), any::<bool>()).prop_map(
        |(name, addresses, created, host_network, finished)| Workload {
            addresses: addresses.into_iter().map(|a| [10, 1, 0, a].into()).collect(),
            created: created.map(Timestamp::from_unix),
            host_network,
            finished,
            ..Workload::new(&format!("uid-{name}"), "shop", &format!("p{name}"))
        },
    )
}

fn some_service() -> impl Strategy<Value = Service> {
    let vips = proptest::collection::vec(0_u8..4, 0..3);
    let ports =
        proptest::collection::vec((80_u16..82, proptest::collection::vec((0_u8..4, any::<bool>()), 0..3)), 0..3);
    (0_u8..5, vips, ports, proptest::option::of(0_i64..3), any::<[bool; 3]>()).prop_map(
        |(name, vips, ports, created, [cluster, invalid, headless])| {
            // One address range for pods and Services: any may collide with any.
            let vips: Vec<IpAddr> = vips.into_iter().map(|a| [10, 1, 0, a].into()).collect();
            let endpoint =
                |(host, ready)| Endpoint { ready, ..Endpoint::ready(SocketAddr::new([10, 1, 0, host].into(), 8080)) };
            let ports = ports.into_iter().map(|(port, endpoints)| ServicePort {
                name: "".into(),
                port,
                app_protocol: None,
                endpoints: endpoints.into_iter().map(endpoint).collect(),
            });
            Service {
                cluster_ips: if cluster { vips.clone() } else { vec![] },
                vips,
                created: created.map(Timestamp::from_unix),
                invalid,
                headless,
                ports: ports.collect(),
                ..Service::new("shop", &format!("s{name}"))
            }
        },
    )
}

#[test]
fn ports_of_an_address_are_those_with_an_endpoint_there() {
    let mut web = cluster_ip("web", "10.96.0.1", &["10.1.0.1:8080", "10.1.0.2:8080"]);
    web.ports[0].name = "http".into();
    let mut admin = cluster_ip("admin", "10.96.0.2", &["10.1.0.1:9090"]);
    admin.ports[0].name = "grpc".into();
    let mut broken = cluster_ip("broken", "10.96.0.3", &["10.1.0.1:8080"]);
    broken.invalid = true;
    let snapshot = snapshot(vec![], vec![web, admin, broken]);
    for (addr, names) in
        [("10.1.0.1:8080", &["http"][..]), ("10.1.0.1:9090", &["grpc"]), ("10.1.0.2:9090", &[]), ("10.9.9.9:1", &[])]
    {
        let found: Vec<_> = snapshot.ports_at(addr.parse().unwrap()).map(|p| p.name.to_string()).collect();
        assert_eq!(found, names, "{addr}");
    }
}

#[derive(Clone, Debug)]
enum Change {
    Pod(PodUid, Box<Option<Workload>>),
    Service(ServiceKey, Option<Service>),
}

fn some_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => some_pod().prop_map(|p| Change::Pod(p.uid.clone(), Box::new(Some(p)))),
        3 => some_service().prop_map(|s| Change::Service(s.key(), Some(s))),
        1 => (0_u8..5).prop_map(|n| Change::Pod(PodUid::new(&format!("uid-{n}")), Box::new(None))),
        1 => (0_u8..5).prop_map(|n| Change::Service(("shop".into(), format!("s{n}").into()), None)),
    ]
}

fn delta(changes: impl IntoIterator<Item = Change>) -> Delta {
    let mut delta = Delta::default();
    for change in changes {
        match change {
            Change::Pod(uid, pod) => delta.workloads.push((uid, *pod)),
            Change::Service(key, service) => delta.services.push((key, service)),
        }
    }
    delta
}

proptest! {
    #[test]
    fn state_is_a_function_of_the_objects(
        history in proptest::collection::vec(proptest::collection::vec(some_change(), 0..4), 0..20),
    ) {
        let mut pods = BTreeMap::new();
        let mut services = BTreeMap::new();
        let mut lived = Snapshot::new("a");
        for batch in history {
            for change in batch.iter().cloned() {
                match change {
                    Change::Pod(uid, pod) => match *pod {
                        Some(pod) => drop(pods.insert(uid, pod)),
                        None => drop(pods.remove(&uid)),
                    },
                    Change::Service(key, Some(service)) => drop(services.insert(key, service)),
                    Change::Service(key, None) => drop(services.remove(&key)),
                }
            }
            lived = lived.apply(delta(batch));
        }
        // The other order, to be sure that order does not matter either.
        let pods = pods.into_iter().rev().map(|(uid, pod)| Change::Pod(uid, Box::new(Some(pod))));
        let services = services.into_iter().rev().map(|(key, service)| Change::Service(key, Some(service)));
        let fresh = Snapshot::new("a").apply(delta(services.chain(pods)));
        prop_assert!(lived.same_state(&fresh));
        for host in 0..4_u8 {
            for port in 80..83 {
                let to = OriginalDst::new(SocketAddr::new([10, 1, 0, host].into(), port));
                prop_assert_eq!(lived.resolve(None, to), fresh.resolve(None, to));
            }
        }
    }
}
