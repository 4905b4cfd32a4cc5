//! Tables of causes and lengths, laws of the state machine, and threads.

use std::thread;

use proptest::prelude::*;

use super::*;

const OK: Outcome = Outcome::status(200);
const BAD: Outcome = Outcome::status(500);
const GATEWAY: Outcome = Outcome::status(503);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A Service with its hosts, and time that moves when told.
struct Mesh {
    settings: Settings,
    detector: Detector,
    hosts: Vec<Arc<Host>>,
    now: Duration,
}

impl Mesh {
    fn new(hosts: usize) -> Self {
        let detector = Detector::default();
        let hosts = (0..hosts).map(|_| detector.host()).collect();
        Self { settings: Settings::default(), detector, hosts, now: secs(1_000) }
    }

    fn scene(&self) -> Scene<'_> {
        Scene { settings: &self.settings, hosts: self.hosts.len() as u32, now: self.now }
    }

    fn result(&self, host: usize, outcome: Outcome) -> Option<Transition> {
        self.detector.on_result(&self.hosts[host], outcome, None, &self.scene())
    }

    fn probed(&self, host: usize, outcome: Outcome) -> Option<Transition> {
        let Admission::Probe(probe) = self.hosts[host].admit(self.now) else { panic!("no probe is due") };
        self.detector.on_result(&self.hosts[host], outcome, Some(probe), &self.scene())
    }

    fn sweep(&self) -> Vec<(usize, Transition)> {
        self.detector.sweep(&self.hosts, &self.scene())
    }

    fn standing(&self, host: usize) -> Standing {
        self.hosts[host].standing(self.now)
    }

    /// Ejects by five 5xx.
    fn eject(&self, host: usize) -> Transition {
        (0..5).find_map(|_| self.result(host, BAD)).unwrap()
    }
}

fn ejected(cause: Cause, length: u64) -> Option<Transition> {
    Some(Transition::Ejected { cause, length: secs(length) })
}

#[test]
fn what_counts_as_a_run() {
    const LOCAL: Outcome = Outcome::Local;
    let none: Option<Cause> = None;
    // (thresholds of any 5xx, gateway, local; results; the cause at the last of them and none before)
    let table: &[([u32; 3], &[Outcome], Option<Cause>)] = &[
        ([3, 0, 0], &[BAD, BAD, BAD], Some(Cause::Consecutive5xx)),
        ([3, 0, 0], &[BAD, GATEWAY, LOCAL], Some(Cause::Consecutive5xx)),
        ([3, 0, 0], &[BAD, BAD, OK, BAD, BAD], none),
        ([3, 0, 0], &[BAD, BAD, Outcome::status(404), BAD], none),
        ([3, 0, 0], &[BAD, BAD, Outcome::status(429), BAD], none),
        ([0, 3, 0], &[GATEWAY, Outcome::status(502), Outcome::status(504)], Some(Cause::ConsecutiveGateway)),
        ([0, 3, 0], &[GATEWAY, LOCAL, GATEWAY], Some(Cause::ConsecutiveGateway)),
        ([0, 3, 0], &[GATEWAY, GATEWAY, BAD, GATEWAY], none),
        ([0, 0, 3], &[LOCAL, LOCAL, LOCAL], Some(Cause::ConsecutiveLocal)),
        ([0, 0, 3], &[LOCAL, LOCAL, BAD, LOCAL], none),
        ([3, 3, 3], &[LOCAL, LOCAL, LOCAL], Some(Cause::ConsecutiveLocal)),
        ([3, 3, 3], &[LOCAL, GATEWAY, LOCAL], Some(Cause::ConsecutiveGateway)),
        ([3, 3, 3], &[LOCAL, GATEWAY, BAD], Some(Cause::Consecutive5xx)),
        ([1, 0, 0], &[BAD], Some(Cause::Consecutive5xx)),
        ([0, 0, 0], &[BAD, GATEWAY, LOCAL, BAD, GATEWAY, LOCAL, BAD, BAD], none),
        ([1, 0, 0], &[Outcome::grpc(14)], Some(Cause::Consecutive5xx)),
        ([0, 1, 0], &[Outcome::grpc(14)], Some(Cause::ConsecutiveGateway)),
        ([1, 0, 0], &[Outcome::grpc(0), Outcome::grpc(5), Outcome::grpc(7), Outcome::grpc(16)], none),
    ];
    for ([any_5xx, gateway, local], results, cause) in table {
        let mut mesh = Mesh::new(4);
        mesh.settings.consecutive_5xx = *any_5xx;
        mesh.settings.consecutive_gateway = *gateway;
        mesh.settings.consecutive_local = *local;
        let (last, before) = results.split_last().unwrap();
        assert!(before.iter().all(|outcome| mesh.result(0, *outcome).is_none()), "{results:?}");
        let expected = cause.map(|cause| Transition::Ejected { cause, length: secs(30) });
        assert_eq!(mesh.result(0, *last), expected, "{results:?}");
        assert_eq!(mesh.detector.ejected(), u32::from(cause.is_some()));
    }
}

#[test]
fn a_life() {
    let mut mesh = Mesh::new(4);
    let version = mesh.detector.version();
    assert_eq!(Some(mesh.eject(0)), ejected(Cause::Consecutive5xx, 30));
    assert_ne!(mesh.detector.version(), version);
    assert_eq!(mesh.standing(0), Standing::Ejected { until: secs(1_030) });
    assert!(matches!(mesh.hosts[0].admit(mesh.now), Admission::Ejected));
    // What was on its way says nothing any more, good or bad.
    assert_eq!(mesh.result(0, OK), None);
    assert_eq!(mesh.result(0, BAD), None);

    mesh.now = secs(1_030);
    assert_eq!(mesh.standing(0), Standing::HalfOpen { is_probed: false });
    let Admission::Probe(probe) = mesh.hosts[0].admit(mesh.now) else { panic!("half-open") };
    assert_eq!(mesh.standing(0), Standing::HalfOpen { is_probed: true });
    assert!(matches!(mesh.hosts[0].admit(mesh.now), Admission::Ejected), "one at a time");
    // The client gave it up: no result, and room for another.
    drop(probe);
    assert_eq!(mesh.standing(0), Standing::HalfOpen { is_probed: false });
    // The second ejection is twice as long, the third three times.
    assert_eq!(mesh.probed(0, BAD), ejected(Cause::ProbeFailed, 60));
    mesh.now += secs(59);
    assert!(matches!(mesh.hosts[0].admit(mesh.now), Admission::Ejected));
    mesh.now += secs(1);
    assert_eq!(mesh.probed(0, Outcome::Local), ejected(Cause::ProbeFailed, 90));
    mesh.now += secs(90);
    assert_eq!(mesh.probed(0, Outcome::status(404)), Some(Transition::Readmitted));
    assert_eq!((mesh.standing(0), mesh.detector.ejected()), (Standing::Serving, 0));
    // It starts without a run, and with three ejections behind it.
    assert!((0..4).all(|_| mesh.result(0, BAD).is_none()));
    assert_eq!(mesh.result(0, BAD), ejected(Cause::Consecutive5xx, 120));
}

#[test]
fn lengths_grow_to_the_cap_and_shrink_while_it_serves() {
    let mut mesh = Mesh::new(4);
    mesh.sweep();
    mesh.eject(0);
    let mut lengths = Vec::new();
    for _ in 0..12 {
        mesh.now += secs(400);
        let Some(Transition::Ejected { length, .. }) = mesh.probed(0, BAD) else { panic!("it failed") };
        lengths.push(length.as_secs());
    }
    assert_eq!(lengths, [60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300]);
    mesh.now += secs(400);
    mesh.sweep();
    assert_eq!(mesh.probed(0, OK), Some(Transition::Readmitted));
    // Thirteen were remembered; each interval of service forgets one, one of ejection none.
    for _ in 0..11 {
        mesh.now += secs(10);
        mesh.sweep();
    }
    assert_eq!(Some(mesh.eject(0)), ejected(Cause::Consecutive5xx, 90));
}

#[test]
fn half_are_ejected_at_most_and_one_at_least() {
    for (hosts, percent, expected) in [
        (1, 50, 1),
        (2, 50, 1),
        (3, 50, 1),
        (4, 50, 2),
        (5, 50, 2),
        (10, 50, 5),
        (10, 0, 1),
        (10, 15, 1),
        (10, 100, 10),
    ] {
        let mut mesh = Mesh::new(hosts);
        mesh.settings.ejected_percent_max = percent;
        let transitions: Vec<_> = (0..hosts).map(|host| mesh.eject(host)).collect();
        let capped = transitions.iter().filter(|t| **t == Transition::Capped(Cause::Consecutive5xx)).count();
        assert_eq!(mesh.detector.ejected(), expected, "{percent} % of {hosts}");
        assert_eq!(capped, hosts - expected as usize, "{percent} % of {hosts}");
    }
}

#[test]
fn who_is_capped_is_ejected_when_there_is_room() {
    let mut mesh = Mesh::new(2);
    mesh.eject(0);
    assert_eq!(mesh.eject(1), Transition::Capped(Cause::Consecutive5xx));
    assert_eq!(mesh.standing(1), Standing::Serving);
    mesh.now += secs(30);
    // Half-open still counts.
    assert_eq!(mesh.eject(1), Transition::Capped(Cause::Consecutive5xx));
    mesh.probed(0, OK);
    assert_eq!(Some(mesh.eject(1)), ejected(Cause::Consecutive5xx, 30));
}

#[test]
fn panic_when_less_than_half_are_left() {
    for (hosts, ejected, percent, expected) in [
        (1, 1, 50, true),
        (2, 1, 50, false),
        (10, 5, 50, false),
        (10, 6, 50, true),
        (10, 10, 0, false),
        (4, 0, 50, false),
    ] {
        let mut mesh = Mesh::new(hosts);
        mesh.settings.ejected_percent_max = 100;
        mesh.settings.panic_percent = percent;
        (0..ejected).for_each(|host| assert!(matches!(mesh.eject(host), Transition::Ejected { .. })));
        let left = hosts - mesh.detector.ejected() as usize;
        assert_eq!(is_panic(&mesh.settings, left, hosts), expected, "{ejected} of {hosts} ejected, {percent} %");
    }
}

#[test]
fn an_endpoint_may_ask_to_be_left_alone() {
    let asks = |seconds| Outcome::Response { status: 503, retry_after: Some(secs(seconds)) };
    let mut mesh = Mesh::new(4);
    assert_eq!(mesh.result(0, asks(7)), ejected(Cause::RetryAfter, 7));
    assert_eq!(mesh.result(1, asks(100_000)), ejected(Cause::RetryAfter, 300));
    assert_eq!(mesh.result(2, asks(7)), Some(Transition::Capped(Cause::RetryAfter)));
    mesh.now += secs(7);
    // It may ask again, and none of it counts as an ejection of ours.
    assert_eq!(mesh.probed(0, asks(9)), ejected(Cause::ProbeFailed, 9));
    mesh.now += secs(9);
    assert_eq!(mesh.probed(0, OK), Some(Transition::Readmitted));
    assert_eq!(Some(mesh.eject(0)), ejected(Cause::Consecutive5xx, 30));

    let mut mesh = Mesh::new(4);
    assert_eq!(mesh.result(0, asks(0)), None);
    assert_eq!(mesh.result(0, Outcome::Response { status: 429, retry_after: Some(secs(7)) }), None);
    mesh.settings.retry_after_max = Duration::ZERO;
    assert_eq!(mesh.result(0, asks(7)), None);
}

#[test]
fn success_rates() {
    // (requests and successes of each host, indices ejected, the worst first)
    type Case<'a> = (&'a [(u32, u32)], &'a [usize]);
    let good = (100, 99);
    let table: &[Case<'_>] = &[
        (&[good, good, good, good, good, (100, 60)], &[5]),
        (&[good, good, good, good, good, good], &[]),
        // Too few hosts, or too few of them with enough requests.
        (&[good, good, good, (100, 0)], &[]),
        (&[good, good, good, (99, 99), (99, 99), (100, 0)], &[]),
        // Who has too few requests is not judged.
        (&[good, good, good, good, good, (99, 0)], &[]),
        // One of five lies 2.0 deviations off, two lie 1.2.
        (&[good, good, good, good, (100, 0)], &[4]),
        (&[good, good, good, (100, 0), (100, 0)], &[]),
        // When all are bad, none stands out.
        (&[(100, 5); 8], &[]),
        (&[good; 0], &[]),
    ];
    for (windows, expected) in table {
        let mut mesh = Mesh::new(windows.len());
        (mesh.settings.consecutive_5xx, mesh.settings.consecutive_gateway) = (0, 0);
        assert_eq!(mesh.sweep(), [], "the first interval begins");
        for (host, (requests, successes)) in windows.iter().enumerate() {
            for n in 0..*requests {
                mesh.result(host, if n < *successes { OK } else { BAD });
            }
        }
        assert_eq!(mesh.sweep(), [], "not yet");
        mesh.now += secs(10);
        let swept = mesh.sweep();
        let transition = ejected(Cause::SuccessRate, 30).unwrap();
        assert_eq!(swept, expected.iter().map(|index| (*index, transition)).collect::<Vec<_>>(), "{windows:?}");
        mesh.now += secs(10);
        assert_eq!(mesh.sweep(), [], "the windows begin anew: {windows:?}");
    }
}

#[test]
fn the_worst_are_ejected_first() {
    let mut windows = vec![(100, 100); 20];
    (windows[3], windows[11], windows[17]) = ((100, 30), (100, 10), (100, 20));
    let windows: Vec<_> =
        windows.into_iter().map(|(requests, successes)| host::Window { requests, successes }).collect();
    assert_eq!(success_rate::outliers(&SuccessRate::default(), &windows), [11, 17, 3]);
}

#[test]
fn an_endpoint_that_goes_gives_its_place_back() {
    let mut mesh = Mesh::new(4);
    mesh.eject(0);
    mesh.eject(1);
    assert_eq!(mesh.detector.ejected(), 2);
    let held = Arc::clone(&mesh.hosts[0]);
    held.retire();
    assert_eq!(mesh.detector.ejected(), 1, "even while a request holds it");
    held.retire();
    mesh.hosts.swap_remove(0);
    drop(held);
    assert_eq!(mesh.detector.ejected(), 1, "once only");
    mesh.hosts.clear();
    assert_eq!(mesh.detector.ejected(), 0, "and when it is merely dropped");
}

#[test]
fn a_late_probe_decides_nothing() {
    let mut mesh = Mesh::new(4);
    mesh.eject(0);
    mesh.now += secs(30);
    let Admission::Probe(probe) = mesh.hosts[0].admit(mesh.now) else { panic!("half-open") };
    // Of another host.
    assert_eq!(mesh.detector.on_result(&mesh.hosts[1], OK, Some(probe), &mesh.scene()), None);
    let Admission::Probe(probe) = mesh.hosts[0].admit(mesh.now) else { panic!("it was freed") };
    mesh.hosts[0].retire();
    assert_eq!(mesh.detector.on_result(&mesh.hosts[0], OK, Some(probe), &mesh.scene()), None);
    assert_eq!(mesh.detector.ejected(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Finish(prop::sample::Index, Outcome),
    GiveUp(prop::sample::Index),
    Wait(u32),
    Sweep,
    Replace(usize),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => Just(OK),
        4 => Just(GATEWAY),
        2 => Just(BAD),
        2 => Just(Outcome::Local),
        1 => (0_u64..1_000).prop_map(|s| Outcome::Response { status: 503, retry_after: Some(secs(s)) }),
    ]
}

fn step(hosts: usize) -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        8 => (0..hosts).prop_map(Step::Send),
        8 => (which(), outcome()).prop_map(|(which, outcome)| Step::Finish(which, outcome)),
        1 => which().prop_map(Step::GiveUp),
        2 => (0_u32..60_000).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        1 => (0..hosts).prop_map(Step::Replace),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_laws_hold(
        (hosts, steps) in (1_usize..9).prop_flat_map(|hosts| (Just(hosts), prop::collection::vec(step(hosts), 0..300))),
    ) {
        let mut mesh = Mesh::new(hosts);
        mesh.settings.consecutive_5xx = 2;
        mesh.settings.success_rate = Some(SuccessRate { hosts_min: 3, requests_min: 3, stdev_factor: 1.0 });
        let most = (hosts / 2).max(1) as u32;
        // (host, how it was admitted)
        let mut sent: Vec<(Arc<Host>, Option<Probe>)> = Vec::new();
        for step in steps {
            let before: Vec<Standing> = (0..hosts).map(|host| mesh.standing(host)).collect();
            match step {
                Step::Send(host) => match mesh.hosts[host].admit(mesh.now) {
                    Admission::Serve => {
                        prop_assert_eq!(before[host], Standing::Serving);
                        sent.push((Arc::clone(&mesh.hosts[host]), None));
                    }
                    Admission::Probe(probe) => {
                        prop_assert_eq!(before[host], Standing::HalfOpen { is_probed: false });
                        sent.push((Arc::clone(&mesh.hosts[host]), Some(probe)));
                    }
                    Admission::Ejected => prop_assert!(before[host] != Standing::Serving),
                },
                Step::Finish(which, outcome) if !sent.is_empty() => {
                    let (host, probe) = sent.swap_remove(which.index(sent.len()));
                    let is_probe = probe.is_some();
                    match mesh.detector.on_result(&host, outcome, probe, &mesh.scene()) {
                        Some(Transition::Ejected { length, cause }) => {
                            prop_assert!(outcome.is_failure());
                            prop_assert!(length > Duration::ZERO && length <= secs(300));
                            prop_assert_eq!(cause == Cause::ProbeFailed, is_probe);
                            prop_assert_eq!(host.standing(mesh.now), Standing::Ejected { until: mesh.now + length });
                        }
                        Some(Transition::Readmitted) => {
                            prop_assert!(is_probe && !outcome.is_failure());
                            prop_assert_eq!(host.standing(mesh.now), Standing::Serving);
                        }
                        Some(Transition::Capped(_)) => {
                            prop_assert_eq!(mesh.detector.ejected(), most);
                            prop_assert_eq!(host.standing(mesh.now), Standing::Serving);
                        }
                        None => {}
                    }
                }
                Step::GiveUp(which) if !sent.is_empty() => drop(sent.swap_remove(which.index(sent.len()))),
                Step::Wait(millis) => mesh.now += Duration::from_millis(u64::from(millis)),
                Step::Sweep => {
                    for (host, transition) in mesh.sweep() {
                        prop_assert_eq!(before[host], Standing::Serving);
                        prop_assert!(transition != Transition::Readmitted);
                    }
                }
                Step::Replace(host) => {
                    mesh.hosts[host].retire();
                    mesh.hosts[host] = mesh.detector.host();
                }
                Step::Finish(..) | Step::GiveUp(_) => {}
            }
            let out = mesh.hosts.iter().filter(|host| host.standing(mesh.now) != Standing::Serving).count() as u32;
            prop_assert_eq!(mesh.detector.ejected(), out);
            prop_assert!(out <= most);
            for (index, host) in mesh.hosts.iter().enumerate() {
                let probes = sent.iter().filter(|(of, probe)| probe.is_some() && Arc::ptr_eq(of, host)).count();
                prop_assert!(probes <= 1);
                prop_assert_eq!(probes == 1, mesh.standing(index) == Standing::HalfOpen { is_probed: true });
            }
        }
    }
}

#[test]
fn threads_keep_to_the_cap_and_to_one_probe() {
    const THREADS: u64 = 8;
    const HOSTS: usize = 10;
    const TURNS: u64 = 30_000;
    let detector = Detector::default();
    let hosts: Vec<_> = (0..HOSTS).map(|_| detector.host()).collect();
    let probes: Vec<AtomicU32> = (0..HOSTS).map(|_| AtomicU32::new(0)).collect();
    let settings = Settings { ejection_base: Duration::from_millis(10), ..Settings::default() };
    let (readmitted, ejected) = thread::scope(|scope| {
        let worker = |seed: u64| {
            let (detector, hosts, probes, settings) = (&detector, &hosts, &probes, &settings);
            move || {
                let mut random = seed;
                let (mut readmitted, mut ejected) = (0, 0);
                for turn in 0..TURNS {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let host = (random >> 33) as usize % HOSTS;
                    let scene = Scene { settings, hosts: HOSTS as u32, now: Duration::from_millis(turn) };
                    let outcome = if random >> 62 == 0 { OK } else { BAD };
                    let (probe, is_probe) = match hosts[host].admit(scene.now) {
                        Admission::Serve => (None, false),
                        Admission::Probe(probe) => (Some(probe), true),
                        Admission::Ejected => continue,
                    };
                    if is_probe {
                        assert_eq!(probes[host].fetch_add(1, AcqRel), 0, "two probes of one host");
                        probes[host].fetch_sub(1, AcqRel);
                    }
                    match detector.on_result(&hosts[host], outcome, probe, &scene) {
                        Some(Transition::Readmitted) => readmitted += 1,
                        Some(Transition::Ejected { cause, .. }) if cause != Cause::ProbeFailed => ejected += 1,
                        _ => {}
                    }
                    assert!(detector.ejected() <= HOSTS as u32 / 2);
                }
                (readmitted, ejected)
            }
        };
        let workers: Vec<_> = (1..=THREADS).map(|seed| scope.spawn(worker(seed))).collect();
        workers.into_iter().map(|w| w.join().unwrap()).fold((0, 0), |sum, (r, e)| (sum.0 + r, sum.1 + e))
    });
    let out = hosts.iter().filter(|host| host.standing(Duration::ZERO) != Standing::Serving).count() as u32;
    assert_eq!((detector.ejected(), ejected - readmitted), (out, out), "every ejection is counted once");
    assert!(readmitted > 0);
}

#[test]
fn of_many_sweepers_one_sweeps() {
    let mut mesh = Mesh::new(8);
    mesh.settings.consecutive_5xx = 0;
    mesh.settings.consecutive_gateway = 0;
    mesh.sweep();
    for host in 0..8 {
        let outcome = if host == 0 { BAD } else { OK };
        assert!((0..100).all(|_| mesh.result(host, outcome).is_none()));
    }
    mesh.now += secs(10);
    let swept: usize = thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(|| mesh.sweep().len())).collect();
        workers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    assert_eq!((swept, mesh.detector.ejected()), (1, 1));
}

#[test]
fn a_host_is_small() {
    assert!(size_of::<Host>() <= 48, "{} bytes", size_of::<Host>());
}
